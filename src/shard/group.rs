//! One group of the shard: its Raft, its state machine, and what waits for the log.
//!
//! Why a message waits, as a race:
//! 1. A follower steps an append: its Raft pushes the persist (seq 7) and the reply (after 7).
//! 2. The shard stages the record at LSN 900 and submits the flush.
//! 3. Were the reply sent now, and the power lost, the leader would count a copy that is gone.
//! 4. So the reply is held; the flush completes; the log's mark passes 900.
//! 5. [`Group::settle`] says 7; Raft hears `Persisted { 7 }`; [`Group::release`] gives the reply.
//!
//! A group without `wal_sync` settles appends at the *written* mark, but hard states and truncations
//! always at the *durable* one (durability.md R1). Persists settle in order, so one late hard state
//! holds back the appends behind it.

use std::collections::VecDeque;

use super::ShardConfig;
use super::expiry::Marks;
use super::reads::GroupReads;
use super::sessions::Sessions;
use super::stages::Probes;
use crate::block::Block;
use crate::ids::{Index, Lsn, NodeId, Seq, Term, Tick};
use crate::machine::StateMachine;
use crate::mutants::{self, Mutant};
use crate::raft::Raft;
use crate::raft::message::{Message, Offer};

struct Unsettled {
    seq: Seq,
    lsn: Lsn,
    durable: bool,
}

struct Held {
    after: Seq,
    to: NodeId,
    message: Message,
}

/// Who waits for a block of this leader's term.
pub(super) struct Pending {
    pub first: Index,
    pub term: Term,
    pub conn: u64,
    pub seq: u64,
}

/// Whose proposal it is, beside the block in `proposals`.
pub(super) struct Origin {
    pub conn: u64,
    pub seq: u64,
    pub count: u64,
}

pub(super) struct Group<M> {
    pub raft: Raft,
    pub machine: M,
    pub sessions: Sessions,
    /// Where it stood at times past, for the expiry of sessions.
    pub marks: Marks,
    /// Replies wait for stable storage, not only for the write.
    pub sync: bool,
    /// Applied through this index.
    pub applied: Index,
    /// In the shard's queue of groups to apply.
    apply_queued: bool,
    /// It is over: this stands at its place.
    pub ended: bool,
    /// A read of committed blocks from the log is under way.
    pub apply_fetching: bool,
    /// It stands for election, and has its place among those who do until then at most.
    pub campaign_ends: Option<Tick>,
    /// This turn's proposals and whose they are.
    pub proposals: Vec<Block>,
    pub origins: Vec<Origin>,
    /// Proposed, not yet applied; by index.
    pub pending: VecDeque<Pending>,
    /// Since when this node leads it.
    pub leads_since: Option<Tick>,
    /// Whom this leader hands the group to, or did last.
    pub heir: Option<NodeId>,
    /// Questions that wait.
    pub reads: GroupReads,
    /// Measure what is proposed here.
    pub probes: Probes,
    /// Its newest published snapshot; index 0: none.
    pub snapshot: Offer,
    /// When it was published here.
    pub snapshot_at: Tick,
    /// Bytes of blocks applied since one was begun.
    pub applied_bytes: u64,
    /// It waits for one to be taken.
    pub snapshot_wanted: bool,
    /// That one cannot be trusted: another one may take its place at the same index.
    pub snapshot_bad: bool,
    /// The state machine cannot be snapshotted.
    pub snapshots_off: bool,
    unsettled: VecDeque<Unsettled>,
    held: VecDeque<Held>,
    settled: Seq,
}

impl<M: StateMachine> Group<M> {
    pub fn new(raft: Raft, machine: M, config: &ShardConfig) -> Self {
        Self {
            sync: config.syncs(raft.group()),
            raft,
            machine,
            sessions: Sessions::new(config.sessions),
            marks: Marks::default(),
            applied: Index::ZERO,
            apply_queued: false,
            ended: false,
            apply_fetching: false,
            campaign_ends: None,
            proposals: Vec::new(),
            origins: Vec::new(),
            pending: VecDeque::new(),
            leads_since: None,
            heir: None,
            reads: GroupReads::default(),
            probes: Probes::default(),
            snapshot: Offer::default(),
            snapshot_at: Tick::ZERO,
            applied_bytes: 0,
            snapshot_wanted: false,
            snapshot_bad: false,
            snapshots_off: false,
            unsettled: VecDeque::new(),
            held: VecDeque::new(),
            settled: Seq::ZERO,
        }
    }

    /// A snapshot's state takes the place of what there is: machine, sessions and applied index in one
    /// step.
    pub fn restore(&mut self, machine: M, sessions: Sessions, applied: Index) {
        assert!(applied >= self.applied, "a state never goes back");
        (self.machine, self.sessions, self.applied) = (machine, sessions, applied);
    }

    /// Every persist up to this one is where its rule wants it.
    pub fn settled(&self) -> Seq {
        self.settled
    }

    /// A persist was staged and ends at `lsn`.
    pub fn staged(&mut self, seq: Seq, lsn: Lsn, durable: bool) {
        debug_assert!(self.unsettled.back().is_none_or(|last| last.seq < seq));
        self.unsettled.push_back(Unsettled { seq, lsn, durable });
    }

    /// The log's marks have moved: the highest persist that is settled now, if that is news.
    pub fn settle(&mut self, durable: Lsn, written: Lsn) -> Option<Seq> {
        let before = self.settled;
        while let Some(first) = self.unsettled.front() {
            let mark = if first.durable { durable } else { written };
            if first.lsn > mark {
                break;
            }
            self.settled = first.seq;
            self.unsettled.pop_front();
        }
        if self.settled > before { Some(self.settled) } else { None }
    }

    /// Keeps a message until `after` is settled.
    pub fn hold(&mut self, after: Seq, to: NodeId, message: Message) {
        // Later messages may name an earlier persist (a refusal after an append): they wait no
        // longer than the one in front of them, which only makes them later, never earlier.
        let after = self.held.back().map_or(after, |last| last.after.max(after));
        self.held.push_back(Held { after, to, message });
    }

    /// The next message that waited for `seq` or less.
    pub fn release(&mut self, seq: Seq) -> Option<(NodeId, Message)> {
        let after = self.held.front()?.after;
        let one_early = after == seq.next() && mutants::is(Mutant::ReplyOneEarly);
        if after > seq && !one_early {
            return None;
        }
        self.held.pop_front().map(|held| (held.to, held.message))
    }

    /// Puts the group into the queue of those to apply, once.
    pub fn want_apply(&mut self, local: u32, queue: &mut VecDeque<u32>) {
        let fetching = self.apply_fetching && !mutants::is(Mutant::ApplyFetchedTwice);
        if !self.apply_queued && !fetching {
            self.apply_queued = true;
            queue.push_back(local);
        }
    }

    /// The group was taken off that queue.
    pub fn apply_dequeued(&mut self) {
        self.apply_queued = false;
    }
}
