//! Committed blocks become state, and whoever proposed them hears of it.
//!
//! Only here is a client acknowledged: the block is committed (on a majority, where its rule wants
//! it) and applied on this node.

use std::collections::VecDeque;

use super::group::{Group, Pending};
use super::proposals::Clients;
use super::sessions::{self, Request, SessionEntry, Sessions, Verdict};
use super::{FollowerRead, Shard};
use crate::block::{Block, BlockKind};
use crate::ids::{GroupId, Index, NodeId, Tick};
use crate::machine::{Outcome, StateMachine};
use crate::mutants::{self, Mutant};
use crate::raft::{Event, Log, Raft, TermRun};
use crate::wal::{ReadError, WalError};
use crate::wire::client::{Answer, Committed, Durability, Refused};

/// Bytes read at once when committed blocks are no longer in memory (after a restart).
const APPLY_FETCH_BYTES: u32 = 1 << 20;
/// Marks a read of the log as one for applying; the others are counted.
const APPLY_TOKEN: u64 = 1 << 63;

impl<M: StateMachine> Shard<M> {
    /// Applies what is committed, within the turn's budget, and writes the answers. Call it after
    /// the turn's operations are on their way: nothing here delays a flush or a message.
    pub fn apply(&mut self, now: Tick) {
        let mut budget = self.config.apply_bytes_per_turn;
        let mut rounds = self.applying.len();
        self.answering.clear();
        while rounds > 0 && budget > 0 && self.fatal.is_none() {
            rounds -= 1;
            let Some(local) = self.applying.pop_front() else { break };
            self.groups[local as usize].apply_dequeued();
            self.apply_group(now, local, &mut budget);
        }
        self.answer_reads();
        self.clients.write_answers();
    }

    /// What [`Shard::apply`] has answered is with the sockets. Only for the figures: without it the
    /// last stage is not measured.
    pub fn answered(&mut self, now: Tick) {
        for committed in self.answering.drain(..) {
            self.stages.applied.observe(now.since(committed));
        }
    }

    fn apply_group(&mut self, now: Tick, local: u32, budget: &mut u64) {
        let group = &mut self.groups[local as usize];
        let (before, left) = (group.applied, *budget);
        let in_memory = apply_cached(group, &mut self.clients, budget, &mut self.stats);
        group.applied_bytes += left - *budget;
        let (applied, commit) = (group.applied, group.raft.commit());
        if !in_memory {
            self.fetch_to_apply(local);
        } else if applied < commit {
            self.groups[local as usize].want_apply(local, &mut self.applying);
        }
        if applied > before {
            self.groups[local as usize].probes.applied(applied, &mut self.answering);
            self.applied_for_reads(local);
            self.step(now, local, Event::Applied { index: applied });
            self.note_applied(now, local);
            if local == 0 {
                self.follow_list(now);
            }
        }
    }

    fn fetch_to_apply(&mut self, local: u32) {
        let group = &mut self.groups[local as usize];
        let (id, from, through) = (group.raft.group(), group.applied.next(), group.raft.commit());
        let queue = &mut self.disk_queue;
        let bytes = APPLY_FETCH_BYTES;
        match self.wal.read(id, from, through, bytes, APPLY_TOKEN, queue) {
            Ok(()) => group.apply_fetching = true,
            Err(ReadError::NotYet(_)) => self.apply_when_written(local),
            Err(error) => drop(self.fatal.get_or_insert(WalError::Lost { group: id, error })),
        }
    }

    /// Raft is told which of its questions this answers: the block that holds the index asked for
    /// may begin before it, and a failed read has no blocks at all.
    fn fetched_for_follower(&mut self, now: Tick, local: u32, token: u64, blocks: &mut Vec<Block>) {
        let Some(at) = self.reads.iter().position(|read| read.token == token) else { return };
        let FollowerRead { to, from, .. } = self.reads.swap_remove(at);
        self.step(now, local, Event::Fetched { to, from, blocks });
    }

    /// A follower's blocks are asked for again after a while. What is committed and cannot be read
    /// back here stops the shard: this replica has lost it. So does damage, whoever asked: the next
    /// start finds it and goes RECOVERING, while a leader that went on would starve the follower.
    pub(super) fn fetch_failed(&mut self, now: Tick, token: u64, group: GroupId, error: ReadError) {
        if token == APPLY_TOKEN || matches!(error, ReadError::Rot { .. }) {
            self.fatal.get_or_insert(WalError::Lost { group, error });
        } else {
            self.fetched(now, token, group, Vec::new());
        }
    }

    /// Blocks that were read back from the log, for a follower or to be applied here.
    pub(super) fn fetched(
        &mut self,
        now: Tick,
        token: u64,
        group: GroupId,
        mut blocks: Vec<Block>,
    ) {
        if self.fetched_pinned(token, &mut blocks) {
            return;
        }
        let Some(local) = self.local(group) else {
            return self.reads.retain(|read| read.token != token);
        };
        if token != APPLY_TOKEN {
            return self.fetched_for_follower(now, local, token, &mut blocks);
        }
        if self.fatal.is_some() {
            return;
        }
        let state = &mut self.groups[local as usize];
        state.apply_fetching = false;
        let commit = state.raft.commit();
        for block in blocks.iter().take_while(|block| block.last() <= commit) {
            if block.first() == state.applied.next() || mutants::is(Mutant::ApplyFetchedTwice) {
                apply_block(state, &mut self.clients, block, &mut self.stats);
                state.applied_bytes += block.size() as u64;
            }
        }
        let applied = state.applied;
        if applied < commit {
            state.want_apply(local, &mut self.applying);
        }
        self.applied_for_reads(local);
        self.step(now, local, Event::Applied { index: applied });
        self.note_applied(now, local);
        if local == 0 {
            self.follow_list(now);
        }
    }
}

/// Applies from memory while the budget lasts. `false`: the next block is no longer there.
fn apply_cached<M: StateMachine>(
    group: &mut Group<M>,
    clients: &mut Clients,
    budget: &mut u64,
    stats: &mut super::ShardStats,
) -> bool {
    let early = mutants::is(Mutant::ApplyBeforeCommit);
    let commit = if early { group.raft.last_index() } else { group.raft.commit() };
    let Group { raft, machine, sessions, applied, pending, sync, .. } = group;
    if *applied >= commit {
        return true;
    }
    let Some(blocks) = raft.log().blocks_from(applied.next()) else { return false };
    let mut applier = applier(raft, machine, sessions, *sync, pending);
    for block in blocks.take_while(|block| block.last() <= commit) {
        applier.apply(applied, block, clients, stats);
        *budget = budget.saturating_sub(block.size() as u64);
        if *budget == 0 {
            break;
        }
    }
    true
}

fn apply_block<M: StateMachine>(
    group: &mut Group<M>,
    clients: &mut Clients,
    block: &Block,
    stats: &mut super::ShardStats,
) {
    let Group { raft, machine, sessions, applied, pending, sync, .. } = group;
    let mut applier = applier(raft, machine, sessions, *sync, pending);
    applier.apply(applied, block, clients, stats);
}

fn applier<'a, M>(
    raft: &'a Raft,
    machine: &'a mut M,
    sessions: &'a mut Sessions,
    sync: bool,
    pending: &'a mut VecDeque<Pending>,
) -> Applier<'a, M> {
    Applier { machine, sessions, sync, pending, log: raft.log(), leader: raft.leader() }
}

/// The parts of a group that applying changes, apart from its Raft, whose blocks are being read.
struct Applier<'a, M> {
    machine: &'a mut M,
    sessions: &'a mut Sessions,
    sync: bool,
    pending: &'a mut VecDeque<Pending>,
    log: &'a Log,
    leader: Option<NodeId>,
}

impl<M: StateMachine> Applier<'_, M> {
    fn apply(
        &mut self,
        applied: &mut Index,
        block: &Block,
        clients: &mut Clients,
        stats: &mut super::ShardStats,
    ) {
        assert_eq!(block.first(), applied.next(), "blocks are applied in order, without a gap");
        self.note_epochs(block);
        let result = match block.kind() {
            BlockKind::Commands => self.run(block),
            BlockKind::Session => self.run_session(block),
            BlockKind::Roster => {
                self.sessions.change_groups(block);
                Ok(self.committed(block, Outcome::default()))
            }
            BlockKind::Noop | BlockKind::Membership | BlockKind::Chunk => {
                Ok(self.committed(block, Outcome::default()))
            }
        };
        *applied = block.last();
        stats.blocks_applied += 1;
        stats.commands_applied += block.count();
        self.answer(block, result, clients);
    }

    /// A recovery epoch begins where its first entry says, which lies behind: before anything is
    /// applied there, so that nobody is told of a place under the older epoch. Whoever has applied
    /// more by now knew that to be committed, and it was (durability.md R9).
    #[inline]
    fn note_epochs(&mut self, block: &Block) {
        let known = self.sessions.epochs().last();
        if known < self.log.last_epoch() {
            self.note_epochs_until(block.last());
        }
        let is_first = matches!(block.kind(), BlockKind::Noop | BlockKind::Membership)
            && self.log.epoch_at(block.first().prev()) < block.header().epoch;
        if is_first {
            self.sessions.mix_epoch(block.header());
        }
    }

    fn note_epochs_until(&mut self, last: Index) {
        let commit = self.log.commit();
        let committed = |run: &&TermRun| run.first <= commit && run.since <= last;
        for run in self.log.epochs_behind(last.prev()).filter(committed) {
            if run.epoch > self.sessions.epochs().last() {
                self.sessions.begin_epoch(run.epoch, run.since);
            }
        }
    }

    /// Exactly once: a block that the session's table knows is answered from it and not run again.
    fn run(&mut self, block: &Block) -> Result<Committed, Refused> {
        let header = block.header();
        if header.client == 0 || mutants::is(Mutant::SkipSessionCheck) {
            let outcome = self.machine.apply(block);
            return Ok(self.committed(block, outcome));
        }
        let request = Request::of(header);
        match self.sessions.check(&request) {
            Verdict::New if header.epoch > 0 && self.sessions.misses_answers_of(&request) => {
                // With it the session ends, on every replica alike: told once, its client begins anew.
                self.sessions.close(header.client);
                Err(Refused::SessionEpochChanged)
            }
            Verdict::New => {
                let outcome = match block.kind() {
                    BlockKind::Commands => self.machine.apply(block),
                    _ => Outcome::default(),
                };
                let (first, term) = (block.first(), block.term());
                self.sessions.record(&request, sessions::Answer { first, term, outcome });
                Ok(self.committed(block, outcome))
            }
            Verdict::Duplicate(known) => Ok(Committed {
                first: known.first,
                term: known.term,
                epoch: self.sessions.epochs().at(known.first),
                retry: true,
                ..self.committed(block, known.outcome)
            }),
            Verdict::Stale => Err(Refused::Stale { open_from: 0 }),
            Verdict::Expired { from } => Err(Refused::Stale { open_from: from }),
            Verdict::WindowTooLarge => Err(Refused::BadRequest),
        }
    }

    /// Changes the table of sessions and nothing else.
    fn run_session(&mut self, block: &Block) -> Result<Committed, Refused> {
        match SessionEntry::of(block).ok_or(Refused::BadRequest)? {
            SessionEntry::KeepAlive => self.run(block),
            SessionEntry::Close => {
                let result = self.run(block);
                if result.is_ok() {
                    self.sessions.close(block.header().client);
                }
                result
            }
            SessionEntry::Expire { through } => {
                self.sessions.expire(through);
                Ok(self.committed(block, Outcome::default()))
            }
        }
    }

    fn committed(&self, block: &Block, outcome: Outcome) -> Committed {
        Committed {
            first: block.first(),
            term: block.term(),
            epoch: self.sessions.epochs().at(block.first()),
            durability: if self.sync { Durability::Synced } else { Durability::Written },
            duplicates: outcome.duplicates,
            rejected: outcome.rejected,
            retry: false,
        }
    }

    /// Answers whoever proposed this block here. An entry of another term at this index was
    /// replaced: its proposer is told to ask the leader again.
    fn answer(&mut self, block: &Block, result: Result<Committed, Refused>, clients: &mut Clients) {
        while let Some(front) = self.pending.front() {
            if front.first > block.first() {
                return;
            }
            let ours = front.first == block.first() && front.term == block.term();
            let result = if ours { result } else { Err(Refused::NotLeader(self.leader)) };
            let answer = Answer::new(block.group(), front.seq, result);
            clients.answer(front.conn, &answer);
            self.pending.pop_front();
        }
    }
}
