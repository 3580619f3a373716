//! Raft for one group, pure: it knows no clock, disk or network, only events and what they call for.
//!
//! # Contract
//!
//! *In*: [`Raft::handle`] with an [`Event`] and the time. It runs to completion. *Out*: a [`Ready`]
//! that the caller owns and that all groups of a turn share; everything is pushed behind what is
//! there. The caller then, in any order and as late as it likes:
//!
//! 1. logs [`Ready::persists`], in order, and reports each completed prefix as `Persisted { seq }`;
//! 2. sends each of [`Ready::messages`], but not before the persist it names in `after` is done;
//!    `Seq::ZERO` leaves at once, in parallel with the leader's own write (dissertation §10.2.1);
//! 3. reads [`Ready::fetches`] from its log and answers each with exactly one `Fetched`;
//! 4. carries on with what [`Ready::installs`] says of snapshots under way;
//! 5. applies what [`Ready::committed`] covers ([`Log::blocks_from`], or the log on disk for blocks
//!    of an earlier start) and reports `Applied { index }`;
//! 6. calls `Timeout` at [`Raft::deadline`]. Earlier is harmless, later only slow.
//!
//! Messages may be lost, doubled, late and out of order. Persists may not be lost except by a crash,
//! after which a new `Raft` starts from what is on disk.
//!
//! Never true: a message that reveals a term or a vote leaves before they are durable; two votes in
//! a term; a leader that counts itself for entries its own disk does not hold; an entry of an older
//! term that commits by counting (§5.4.2); a member that may have forgotten what it acknowledged and
//! counts in an election like the others (durability.md R6); more than one block's worth of work per
//! block.
//!
//! # Parts
//!
//! `election` terms, votes, timeouts · `leader` proposals, replication, commit, heartbeats ·
//! `follower` appends and conflicts · [`log`](mod@log) terms, cache, cursors · [`progress`] one
//! follower · `install` snapshots in place of entries · [`quorum`] majorities · `membership` who takes
//! part, `promotion` learners on their way to a vote · `recovering` the way back after a loss ·
//! `read_index` reads without the log · [`transfer`] handing over · `hibernation` sleep of idle groups ·
//! [`message`], [`ready`] what goes out.

pub mod config;
mod election;
mod event;
#[doc(hidden)]
mod fingerprint;
mod follower;
#[doc(hidden)]
pub mod harness;
mod hibernation;
mod install;
mod leader;
mod links;
pub mod log;
mod membership;
pub mod message;
mod pace;
pub mod progress;
mod promotion;
pub mod quorum;
mod read_index;
pub mod ready;
mod recovering;
pub mod transfer;
mod view;

pub use config::{Config, ConfigError, Restored};
pub use event::Event;
pub use follower::PARTED;
pub use log::{Log, TermRun};
pub use message::{Body, Message};
pub use progress::Progress;
pub use ready::{
    BlockRange, Committed, Fetch, GroupMembership, Install, InstallStep, Outbound, Persist,
    PersistOp, PossibleLoss, ReadIndex, Ready, Role, Transition,
};
pub use transfer::TransferRefused;

use thiserror::Error;

use crate::block::Block;
use crate::ids::{GroupId, HardState, Incarnation, Index, NodeId, Seq, Term, Tick};
use crate::membership::{ChangeError, Membership, Preflight};
use crate::mutants::{self, Mutant};
use crate::rng::Rng;
use hibernation::Hibernation;
use membership::{History, Standing};
use pace::Pace;
use promotion::CatchUp;
use quorum::{Ballot, JointConfig};
use read_index::{Reads, Waits};
use recovering::Recovery;
use transfer::{DiskWatch, Transfer};

/// Why a change of membership was not begun.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChangeRefused {
    #[error("this node does not lead the group")]
    NotLeader(Option<NodeId>),
    #[error("the leader has not committed anything in its term yet; try again")]
    NotYet,
    #[error("another change of members is under way; try again")]
    UnderWay,
    #[error("{0}")]
    Invalid(ChangeError),
    #[error("{0}; to do it all the same, use --force")]
    Quorum(Preflight),
    /// By the shard, not by the group.
    #[error(
        "node {node} is not a member of group {first}, which tells it of groups that were made \
         later: take it in there first"
    )]
    Apart { node: NodeId, first: GroupId },
    #[error(
        "node {node} is still in group {group}, which was made later: it has to leave the first group \
         of the shard last, and a new one has to be in it first (`member add`, then `member remove`)"
    )]
    Needed { node: NodeId, group: GroupId },
    #[error(
        "the leader of the shard's first group is not in group {group}, which was made later, and cannot \
         know whether node {node} is: hand the leadership to a member of that group first (`leader \
         transfer`)"
    )]
    Outside { node: NodeId, group: GroupId },
}

/// Another node, in whatever role this node is.
#[derive(Clone, Debug)]
struct Peer {
    id: NodeId,
    standing: Standing,
    /// Highest incarnation seen; `ZERO` = none yet.
    incarnation: Incarnation,
    /// Its answer in the running (pre-)election.
    vote: Option<Ballot>,
    /// Means something only while this node leads.
    progress: Progress,
    /// It has no connection, or was silent for an election timeout: the group may sleep without it.
    absent: bool,
    /// Its answer to the running offer to sleep.
    sleeps: bool,
    /// Its reads, and the highest context of a heartbeat that it has answered; as `progress`.
    reads: Waits,
    context: u64,
}

/// One group on one node. See the module's contract.
#[derive(Clone, Debug)]
pub struct Raft {
    config: Config,
    voters: JointConfig,
    history: History,
    /// A planted bug compares with it.
    deciding: Membership,
    /// Learners that this leader watches.
    catch_up: Vec<CatchUp>,
    log: Log,
    role: Role,
    leader: Option<NodeId>,
    term: Term,
    vote: Option<NodeId>,
    /// What was last given to be persisted.
    hard_state: HardState,
    hard_state_seq: Seq,
    /// Last persist given out, and last one done.
    issued: Seq,
    persisted: Seq,
    /// Other nodes that are sent to (members, and those just taken out), then strangers.
    peers: Vec<Peer>,
    /// How many of them are sent to.
    members: usize,
    /// Own vote, counted only once it is durable.
    own_vote: Option<Ballot>,
    /// When the leader of this term was last heard; `None` when it is not believed to live.
    heard_at: Option<Tick>,
    election_deadline: Tick,
    heartbeat_deadline: Tick,
    /// Commit index last told in a `Ready`.
    announced: Index,
    /// Recovery epoch that this leader stamps on its blocks (durability.md R6).
    epoch: u32,
    /// There while the group is RECOVERING (durability.md R4).
    recovery: Option<Recovery>,
    /// While it is: its newest configuration may be an old one.
    damaged: bool,
    /// The term whose leader's log was seen to lack what is committed here.
    parted: Option<Term>,
    /// Of the last round of ReadIndex; given back in heartbeat replies. It grows through all terms of
    /// a start, so that no answer fits a later round.
    context: u64,
    hibernation: Hibernation,
    reads: Reads,
    transfer: Option<Transfer>,
    /// This node is stopping and does not want to lead any more.
    retired: bool,
    disk_watch: DiskWatch,
    pace: Pace,
    /// With leases: no vote before this, because an earlier start may have promised a leader not to.
    silent_until: Tick,
    rng: Rng,
}

impl Raft {
    /// A follower with what recovery found. `commit()` may already be above 0; the first `handle`
    /// announces it.
    ///
    /// # Panics
    /// When [`Config::validate`] or [`Restored::check`] fails.
    pub fn new(config: Config, restored: Restored, now: Tick) -> Self {
        config.validate().expect("the caller has validated the configuration");
        restored.check().expect("the caller has checked what it found");
        let Restored { hard_state, terms, start, last, applied, recovering, damaged, memberships } =
            restored;
        let log = Log::new(start, last, terms, hard_state.commit, applied);
        let first = Membership::of_voters(config.voters.clone());
        let history = History::restored(first, memberships);
        let mut raft = Self {
            peers: Vec::new(),
            members: 0,
            rng: Rng::new(config.seed),
            voters: JointConfig::of(history.current()),
            deciding: Membership::default(),
            catch_up: Vec::new(),
            history,
            log,
            role: Role::Follower,
            leader: None,
            term: hard_state.term,
            vote: hard_state.vote,
            hard_state,
            hard_state_seq: Seq::ZERO,
            issued: Seq::ZERO,
            persisted: Seq::ZERO,
            own_vote: None,
            heard_at: None,
            election_deadline: now,
            heartbeat_deadline: now,
            announced: applied,
            epoch: 0,
            recovery: (recovering && !mutants::is(Mutant::NeverRecovering)).then(Recovery::default),
            damaged: damaged && !mutants::is(Mutant::DamagedWinsWithLoss),
            parted: None,
            context: 0,
            hibernation: Hibernation::default(),
            reads: Reads::default(),
            transfer: None,
            retired: false,
            disk_watch: DiskWatch::default(),
            pace: Pace::default(),
            silent_until: Tick::ZERO,
            config,
        };
        let membership = raft.history.current().clone();
        raft.sort_peers(now, &membership);
        raft.first_election_deadline(now);
        raft
    }

    /// The only way in. See the module's contract.
    pub fn handle(&mut self, now: Tick, event: Event<'_>, ready: &mut Ready) {
        if self.hibernation.asleep
            && let Some(by) = event.wakes()
        {
            self.wake(now, by, &[], ready);
        }
        match event {
            Event::Timeout => self.on_timeout(now, ready),
            Event::Propose { blocks } => self.on_propose(now, blocks, ready),
            Event::ProposeMembership { steps, force, answer } => {
                *answer = Some(self.on_propose_membership(now, steps, force, ready));
            }
            Event::Receive { from, message, blocks } => {
                self.on_receive(now, from, message, blocks, ready);
                blocks.clear();
            }
            Event::Persisted { seq } => self.on_persisted(now, seq, ready),
            Event::Applied { index } => self.log.applied_to(index),
            Event::Compacted { through } => self.log.begin_at(through),
            Event::Installed { start, membership } => {
                self.on_installed(now, start, membership, ready);
            }
            Event::SnapshotFailed { to } => self.on_snapshot_failed(to),
            Event::Fetched { to, from, blocks } => {
                self.on_fetched(now, to, from, blocks, ready);
                blocks.clear();
            }
            Event::PeerConnected { peer, incarnation } => {
                self.on_connected(now, peer, incarnation, ready);
            }
            Event::PeerDisconnected { peer } => self.on_disconnected(now, peer),
            Event::PeerSilent { peer } => self.on_silent(now, peer),
            Event::PeerHeard { peer } => self.on_heard(now, peer, ready),
            Event::Wake { by, heard } => self.wake(now, by, heard, ready),
            Event::ReadIndex { number } => self.on_read_index(number),
            Event::Transfer { to } => self.on_transfer(now, to, ready),
        }
        self.leave_recovery_if_synced(ready);
        self.settle_membership(now, ready);
        self.drive_transfer(now, ready);
        self.drive_reads(now, ready);
        self.save_hard_state(ready);
        self.announce_commit(ready);
        self.evict(now);
        self.watch_disk(now);
        #[cfg(debug_assertions)]
        self.check_invariants();
    }

    /// When `Timeout` is next needed; `Tick(u64::MAX)` = never.
    pub fn deadline(&self) -> Tick {
        match self.role {
            _ if self.hibernation.asleep => Tick(u64::MAX),
            Role::Leader if self.members == 0 => Tick(u64::MAX),
            Role::Leader => self.heartbeat_deadline.min(Transfer::deadline(&self.transfer)),
            // Its own vote is being written; nobody else is asked.
            Role::Candidate if self.votes_alone() => Tick(u64::MAX),
            _ if self.leader.is_none() && !self.may_campaign() => Tick(u64::MAX),
            _ => self.election_deadline,
        }
    }

    fn on_timeout(&mut self, now: Tick, ready: &mut Ready) {
        if now < self.deadline() {
            return;
        }
        match self.role {
            // A transfer that has run out is looked after in any case.
            Role::Leader if now < self.heartbeat_deadline => {}
            Role::Leader => self.on_heartbeat_due(now, ready),
            _ => self.on_election_due(now, ready),
        }
    }

    fn on_receive(
        &mut self,
        now: Tick,
        from: NodeId,
        message: Message,
        blocks: &mut Vec<Block>,
        ready: &mut Ready,
    ) {
        if from == self.config.id {
            return;
        }
        // Also who is not in the configuration here: it may be in a later one.
        let i = self.meet(from);
        if !self.is_current(i, &message) {
            return;
        }
        self.peers[i].absent = false;
        if let Body::VoteRequest { pre, handed, last_index, last_term } = message.body {
            let last = (last_index, last_term);
            return self.on_vote_request(now, i, message.term, (pre, handed), last, ready);
        }
        if message.term > self.term {
            self.become_follower(now, message.term, None, "higher term", ready);
        }
        if let Body::VoteReply { pre, granted, recovering } = message.body {
            let ballot = match (granted, recovering) {
                (false, _) => Ballot::Refused,
                (true, false) => Ballot::Granted,
                (true, true) => Ballot::Marked,
            };
            return self.on_vote_reply(now, i, message.term, pre, ballot, ready);
        }
        if message.term < self.term {
            return self.on_older_term(now, i, &message.body, ready);
        }
        match message.body {
            Body::Append { prev_index, prev_term, commit, last } => {
                if self.refuses_second_leader(i) {
                    return;
                }
                self.note_answer(&message, commit, last);
                let prev = (prev_index, prev_term);
                self.on_append(now, i, prev, (commit, last), blocks, ready);
                self.note_leader_at(now, last);
            }
            Body::Heartbeat { commit, context, last } => {
                if self.refuses_second_leader(i) {
                    return;
                }
                self.note_answer(&message, commit, last);
                let commit =
                    if message.echo == self.config.incarnation { commit } else { Index(0) };
                self.on_heartbeat(now, i, commit, context, ready);
                self.note_leader_at(now, last);
            }
            Body::Hibernate { last, round } => {
                if !self.refuses_second_leader(i) {
                    self.on_hibernate(now, i, (last, round), ready);
                }
            }
            Body::SnapshotOffer(offer) => {
                if self.refuses_second_leader(i) {
                    return;
                }
                self.on_snapshot_offer(now, i, offer, ready);
            }
            Body::SnapshotChunk { .. } => {
                if self.refuses_second_leader(i) {
                    return;
                }
                self.on_snapshot_chunk(now, i, &message.body, blocks, ready);
            }
            Body::TimeoutNow => self.on_timeout_now(now, i, ready),
            Body::ReadReply { number, index } => self.on_read_reply(i, number, index),
            // The rest are for a leader. An answer of this term proves that this node led or leads
            // in it.
            _ if self.role != Role::Leader || i >= self.members => {}
            Body::AppendReply { matched } => self.on_append_reply(now, i, matched, ready),
            Body::AppendReject { prev_index, hint_index, hint_term } => {
                self.on_append_reject(now, i, prev_index, (hint_index, hint_term), ready);
            }
            Body::HibernateReply { round, asleep } => {
                self.on_hibernate_reply(now, i, round, asleep);
            }
            Body::SnapshotReply { index, offset } => {
                self.on_snapshot_reply(now, i, index, offset, ready);
            }
            Body::HeartbeatReply { context } => {
                self.note_leave(i);
                self.on_heartbeat_reply(now, i, context);
            }
            Body::ReadIndex { number } => self.on_follower_reads(i, number),
            Body::VoteRequest { .. } | Body::VoteReply { .. } => unreachable!("handled above"),
        }
    }

    /// Sorts out messages from or to an earlier start of either side (durability.md R5), and learns
    /// the sender's incarnation.
    fn is_current(&mut self, i: usize, message: &Message) -> bool {
        let is_reply = !matches!(
            message.body,
            Body::VoteRequest { .. }
                | Body::Append { .. }
                | Body::Heartbeat { .. }
                | Body::Hibernate { .. }
                | Body::SnapshotOffer(_)
                | Body::SnapshotChunk { .. }
                | Body::TimeoutNow
        );
        let echo = message.echo;
        if is_reply && echo != Incarnation::ZERO && echo != self.config.incarnation {
            return false;
        }
        if message.incarnation < self.peers[i].incarnation {
            return mutants::is(Mutant::AcceptOldIncarnation);
        }
        self.learn_incarnation(i, message.incarnation);
        true
    }

    fn learn_incarnation(&mut self, i: usize, incarnation: Incarnation) {
        let next = self.log.last_index().next();
        let peer = &mut self.peers[i];
        if incarnation <= peer.incarnation {
            return;
        }
        // What an earlier start acknowledged, or granted, may be gone.
        let keep = mutants::is(Mutant::KeepMatchOfOldIncarnation);
        if peer.incarnation != Incarnation::ZERO && !keep {
            peer.progress.reset(next);
            peer.vote = None;
            peer.reads = Waits::default();
        }
        peer.incarnation = incarnation;
    }

    fn on_persisted(&mut self, now: Tick, seq: Seq, ready: &mut Ready) {
        assert!(seq <= self.issued, "only what was asked for is persisted");
        if seq <= self.persisted {
            return;
        }
        if self.vote.is_some() && (self.persisted.next()..=seq).contains(&self.hard_state_seq) {
            self.vote_is_durable(now);
        }
        self.persisted = seq;
        let moved = self.log.written(seq);
        match self.role {
            Role::Candidate if seq >= self.hard_state_seq => self.count_own_vote(now, ready),
            Role::Leader if moved => self.advance_commit(),
            _ => {}
        }
    }

    /// Gives (term, vote) to be persisted if they changed. Runs before anything that could reveal
    /// them is pushed, and at the end of `handle`.
    #[inline]
    fn save_hard_state(&mut self, ready: &mut Ready) {
        if (self.hard_state.term, self.hard_state.vote) != (self.term, self.vote) {
            self.issue_hard_state(ready);
        }
    }

    #[cold]
    fn issue_hard_state(&mut self, ready: &mut Ready) {
        let before = self.hard_state;
        let same_vote = before.vote.is_none() || before.vote == self.vote;
        assert!(
            self.term > before.term || (self.term == before.term && same_vote),
            "terms do not fall and a vote does not change (§5.2)"
        );
        let state = HardState { term: self.term, vote: self.vote, commit: self.log.commit() };
        self.hard_state = state;
        self.hard_state_seq = self.issue(PersistOp::HardState(state), ready);
    }

    fn issue(&mut self, op: PersistOp, ready: &mut Ready) -> Seq {
        self.issued = self.issued.next();
        ready.persists.push(Persist { group: self.config.group, seq: self.issued, op });
        self.issued
    }

    /// Takes `ready.blocks[from..]`, already appended to the log, to be logged.
    fn issue_append(&mut self, from: usize, truncates: bool, ready: &mut Ready) -> BlockRange {
        self.save_hard_state(ready);
        self.withdraw_offer();
        let blocks = from as u32..ready.blocks.len() as u32;
        let seq = self.issue(PersistOp::Append { blocks: blocks.clone(), truncates }, ready);
        self.log.write_started(seq);
        blocks
    }

    /// Sends to peer `i`, not before `after` nor before the term it reveals are persisted.
    fn send(&mut self, i: usize, after: Seq, body: Body, blocks: BlockRange, ready: &mut Ready) {
        self.save_hard_state(ready);
        let revealed =
            if self.hard_state_seq > self.persisted && !mutants::is(Mutant::TermBeforeDurable) {
                self.hard_state_seq
            } else {
                Seq::ZERO
            };
        let pre = matches!(body, Body::VoteRequest { pre: true, .. });
        let message = Message {
            term: if pre { self.term.next() } else { self.term },
            incarnation: self.config.incarnation,
            echo: self.peers[i].incarnation,
            body,
        };
        ready.messages.push(Outbound {
            group: self.config.group,
            to: self.peers[i].id,
            after: after.max(revealed),
            message,
            blocks,
        });
    }

    fn announce_commit(&mut self, ready: &mut Ready) {
        let index = self.log.commit();
        if index > self.announced {
            self.announced = index;
            ready.committed.push(Committed { group: self.config.group, index });
        }
    }

    fn evict(&mut self, now: Tick) {
        if !self.log.may_evict() {
            return;
        }
        let shared = if self.role == Role::Leader { self.shared(now) } else { Index(u64::MAX) };
        self.log.evict(shared, self.config.cache_bytes_max);
    }

    fn transition(&mut self, reason: &'static str, ready: &mut Ready) {
        ready.transitions.push(Transition {
            group: self.config.group,
            term: self.term,
            role: self.role,
            leader: self.leader,
            reason,
        });
    }

    fn peer(&self, id: NodeId) -> Option<usize> {
        self.peers.iter().position(|p| p.id == id)
    }
}

impl Peer {
    fn new(id: NodeId) -> Self {
        Self {
            id,
            standing: Standing::Stranger,
            incarnation: Incarnation::ZERO,
            vote: None,
            progress: Progress::new(),
            absent: true,
            sleeps: false,
            reads: Waits::default(),
            context: 0,
        }
    }

    fn forget_time(&mut self) {
        self.progress.forget_time();
        if let Standing::Leaving { until: Some(until), .. } = &mut self.standing {
            *until = Tick::ZERO;
        }
    }
}

#[cfg(test)]
mod tests;
