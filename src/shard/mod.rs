//! A shard: many groups, one log, the queues to its peers and clients. Pure: bytes and completions
//! go in with the time, operations and bytes come out.
//!
//! ```text
//! in    peer_frame  client_frame  disk_done  (any number, each steps the groups it concerns)
//! turn  timers -> proposals, reads -> settle -> stage + one flush -> gather  => Output::disk, peer bytes
//! apply committed blocks, answers                                        => client bytes
//! out   Output, peer_egress, client_egress; then sleep until `deadline`
//! ```
//!
//! Every ordering rule of the data path is in this module and in `raft` and `wal`:
//! - a message leaves only when the persist it speaks for is settled (`group`);
//! - a client hears of a block only when it is committed and applied (`apply`);
//! - a read is answered from what was committed when it arrived, or later (`reads`): the `now` of a
//!   turn is read after its last input was taken in;
//! - after the log's first error nothing is acknowledged, voted or sent any more.

mod admin;
mod apply;
mod campaigns;
mod expiry;
mod fetches;
pub mod figures;
pub mod forced;
mod group;
mod handover;
mod hibernation;
mod members;
mod output;
mod proposals;
mod reads;
pub mod roster;
pub mod sessions;
pub mod snapshots;
pub mod stages;
mod start;
mod status;
mod timers;
mod transport;
mod view;

use std::collections::VecDeque;

use self::admin::Admin;
use self::campaigns::Campaigns;
use self::group::Group;
use self::handover::Handover;
pub use self::handover::LeaderConfig;
use self::hibernation::Liveness;
pub use self::members::LinkChange;
use self::members::LinkWatch;
pub use self::output::Output;
use self::proposals::Clients;
use self::reads::Reads;
use self::roster::Roster;
use self::sessions::SessionLimits;
pub use self::snapshots::start::restored;
use self::snapshots::{Found, SnapshotConfig, Snapshots};
use self::stages::StageTimes;
use self::start::seed;
pub use self::status::{GroupStatus, ShardStats, ShardStatus};
use self::timers::Timers;
use self::transport::{Outgoing, Peer};
pub use self::view::GroupView;
use crate::block::Block;
use crate::ids::{GroupId, Incarnation, Index, Lsn, NodeId, Tick};
use crate::machine::StateMachine;
use crate::mutants::{self, Mutant};
use crate::raft::ready::{Outbound, Persist, PersistOp, Ready, Role};
use crate::raft::{self, Event, Restored};
use crate::wal::{Completed, DiskDone, DiskError, DiskOp, OpId, Suspect, Wal, WalError};

/// What a shard is told at its start.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// The voters of every group's first configuration, this node among them, in the order of the
    /// cluster's node list. None: this node joins groups that run, and waits for their leaders.
    pub voters: Vec<NodeId>,
    /// Further nodes to be linked with from the start.
    pub peers: Vec<NodeId>,
    pub shard: u32,
    pub shards: u32,
    /// Groups of the whole cluster that are there from the start; this shard holds those with
    /// `group % shards == shard`.
    pub groups: u32,
    /// Most groups of this shard at a time, those of the start included.
    pub groups_max: u32,
    /// Whether acknowledgements wait for stable storage (durability.md) ...
    pub wal_sync: bool,
    /// ... but not those of these groups, which do the opposite. Ascending.
    pub wal_sync_except: Vec<GroupId>,
    /// Groups that start RECOVERING.
    pub suspect: Suspect,
    pub sessions: SessionLimits,
    pub snapshots: SnapshotConfig,
    /// Template for every group; id, group, voters, seed and preference are filled in.
    pub raft: raft::Config,
    /// Largest proposal, bytes.
    pub block_bytes_max: u32,
    /// Committed bytes applied in one turn before others get their chance.
    pub apply_bytes_per_turn: u64,
    /// Bytes waiting for one peer's socket above which appends are held back.
    pub peer_egress_bytes_max: usize,
    /// Bytes of answers waiting for one client's socket above which it is not read from.
    pub client_egress_bytes_max: usize,
    /// Blocks of one connection that may wait for their answer.
    pub client_blocks_max: u32,
    /// Who is to lead, where there is a choice.
    pub leaders: LeaderConfig,
}

impl ShardConfig {
    /// Whether acknowledgements of this group wait for stable storage.
    pub fn syncs(&self, group: GroupId) -> bool {
        self.wal_sync != self.wal_sync_except.binary_search(&group).is_ok()
    }

    /// Whether what this group acknowledged before the start may be gone (durability.md R3).
    pub fn is_suspect(&self, group: GroupId) -> bool {
        match self.suspect {
            Suspect::Nothing => false,
            Suspect::Unsynced => !self.syncs(group),
            Suspect::Everything => true,
        }
    }
}

/// What recovery found of one group.
pub type Recovered = std::collections::BTreeMap<GroupId, Restored>;

/// Deadlines are kept to this part of a heartbeat.
const TIMER_GRID: u64 = 16;

/// A read of blocks for a follower that is under way.
struct FollowerRead {
    token: u64,
    to: NodeId,
    from: Index,
}

/// A persist that is settled when the log reaches `lsn`.
type Mark = (Lsn, u32);

/// See the module.
pub struct Shard<M> {
    config: ShardConfig,
    groups: Vec<Group<M>>,
    wal: Wal,
    ready: Ready,
    timers: Timers,
    roster: Roster<M>,
    liveness: Liveness,
    campaigns: Campaigns,
    peers: Vec<Peer>,
    links: LinkWatch,
    clients: Clients,
    admin: Admin,
    questions: Reads,
    /// Messages of this turn, by peer.
    outgoing: Vec<Vec<Outgoing>>,
    /// Groups with a persist that waits for the durable, and for the written, mark.
    durable_marks: VecDeque<Mark>,
    written_marks: VecDeque<Mark>,
    /// Groups with proposals in this turn.
    proposing: Vec<u32>,
    /// Groups with committed blocks to apply.
    applying: VecDeque<u32>,
    /// Blocks of the message being stepped; kept for its memory.
    incoming: Vec<Block>,
    /// Reads that were started outside a turn.
    disk_queue: Vec<DiskOp>,
    snapshots: Snapshots<M>,
    /// Makes a group's empty state machine.
    machines: Box<dyn FnMut(GroupId) -> M>,
    reads: Vec<FollowerRead>,
    next_read: u64,
    /// Bytes of blocks taken in since the log was last given its due: spoken for, not yet staged.
    claimed: u64,
    /// The end of what recovery found, and of what it logs again behind damage. Groups speak for it
    /// as durable, so nothing leaves before it is.
    recovered: Lsn,
    /// Groups that are RECOVERING.
    recovering: usize,
    /// When sessions are next looked through for those that rest.
    next_look: Tick,
    /// Until the log is durable up to here the shard counts as RECOVERING: a group has left, and
    /// what it left with is not on stable storage yet (`None`: it is not even staged).
    recovered_at: Option<Lsn>,
    fatal: Option<WalError>,
    handover: Handover,
    stats: ShardStats,
    stages: StageTimes,
    /// Since when what was applied in this turn had been committed, a time for each probe.
    answering: Vec<Tick>,
}

impl<M: StateMachine> Shard<M> {
    /// A shard over a log that is ready to be appended to. `machine` makes each group's empty state
    /// machine; what was committed is applied again from the log.
    pub fn new(
        config: ShardConfig,
        wal: Wal,
        recovered: Recovered,
        machine: impl FnMut(GroupId) -> M + 'static,
        now: Tick,
    ) -> Self {
        Self::with_snapshots(config, wal, recovered, Found::default(), machine, now)
    }

    /// The same, some groups beginning with the state of a snapshot (see [`snapshots::start::meet`]).
    pub fn with_snapshots(
        config: ShardConfig,
        wal: Wal,
        recovered: Recovered,
        found: Found<M>,
        machine: impl FnMut(GroupId) -> M + 'static,
        now: Tick,
    ) -> Self {
        let named = config.voters.iter().chain(&config.peers).filter(|&&n| n != config.node);
        let mut named: Vec<NodeId> = named.copied().collect();
        named.sort_unstable();
        named.dedup();
        let peers: Vec<Peer> = named.into_iter().map(Peer::named).collect();
        let outgoing = peers.iter().map(|_| Vec::new()).collect();
        let mut shard = Self {
            groups: Vec::new(),
            ready: Ready::default(),
            timers: Timers::new(config.raft.heartbeat_us / TIMER_GRID),
            roster: Roster::new(config.suspect),
            campaigns: Campaigns::default(),
            liveness: Liveness::new(&config.raft),
            peers,
            links: LinkWatch::default(),
            clients: Clients::default(),
            admin: Admin::default(),
            questions: Reads::default(),
            outgoing,
            durable_marks: VecDeque::new(),
            written_marks: VecDeque::new(),
            proposing: Vec::new(),
            applying: VecDeque::new(),
            incoming: Vec::new(),
            disk_queue: Vec::new(),
            snapshots: Snapshots::new(found.parts, found.useless),
            machines: Box::new(machine),
            reads: Vec::new(),
            next_read: 0,
            claimed: 0,
            recovered: if wal.staged_bytes() > 0 { wal.staged() } else { wal.written() },
            recovering: 0,
            next_look: Tick::ZERO,
            recovered_at: Some(Lsn::ZERO),
            wal,
            fatal: None,
            handover: Handover::default(),
            stats: ShardStats::default(),
            stages: StageTimes::default(),
            answering: Vec::new(),
            config,
        };
        shard.open_groups(now, recovered, found.loaded);
        shard.meet_members();
        shard
    }

    /// The one place where a group is stepped.
    fn step(&mut self, now: Tick, local: u32, event: Event<'_>) {
        if self.groups[local as usize].raft.is_hibernating()
            && let Some(by) = event.wakes()
        {
            self.wake(now, local, by);
        }
        let raft = &mut self.groups[local as usize].raft;
        let (recovering, asleep) = (raft.is_recovering(), raft.is_hibernating());
        raft.handle(now, event, &mut self.ready);
        if recovering && !raft.is_recovering() {
            self.recovering -= 1;
            self.recovered_at = None;
        }
        self.liveness.asleep += usize::from(raft.is_hibernating());
        self.liveness.asleep -= usize::from(asleep);
        let leads = raft.role() == Role::Leader;
        let decided = matches!(raft.role(), Role::Leader | Role::Follower);
        if decided && self.groups[local as usize].campaign_ends.is_some() {
            self.give_place_back(local);
        }
        let leads_since = &mut self.groups[local as usize].leads_since;
        *leads_since = leads.then(|| leads_since.unwrap_or(now));
        self.reschedule(local);
    }

    fn reschedule(&mut self, local: u32) {
        self.timers.want(local, self.groups[local as usize].raft.deadline());
    }

    /// Reports a finished operation of the log.
    pub fn disk_done(&mut self, now: Tick, op: OpId, result: Result<DiskDone, DiskError>) {
        match self.wal.complete(now, op, result) {
            Ok(Completed::Progress) => {}
            Ok(Completed::Fetched { token, group, blocks }) => {
                self.fetched(now, token, group, blocks);
            }
            Ok(Completed::FetchFailed { token, group, error }) => {
                self.fetch_failed(now, token, group, error);
            }
            Err(error) => self.fatal = Some(error),
        }
    }

    /// One turn: everything that was reported since the last one becomes at most one flush and one
    /// batch of bytes for each peer. [`Shard::apply`] follows, once these are on their way.
    pub fn turn(&mut self, now: Tick, out: &mut Output) {
        self.stats.turns += 1;
        if self.fatal.is_some() {
            out.fatal.clone_from(&self.fatal);
            return self.ready.clear();
        }
        if !self.is_recovered() {
            self.wal.flush(now, &mut self.disk_queue);
            return out.disk.append(&mut self.disk_queue);
        }
        self.run_timers(now);
        self.watch(now);
        self.settle_ends(now);
        self.run_admin(now);
        self.expire_sessions(now);
        self.hand_over_some(now);
        self.propose(now);
        self.ask_reads(now);
        self.settle(now);
        self.start_fetches(now);
        self.note_commits(now, out);
        self.note_memberships(now, out);
        self.drive_snapshots(now, out);
        self.note_reads();
        self.stage();
        self.wal.flush(now, &mut self.disk_queue);
        out.disk.append(&mut self.disk_queue);
        self.gather();
        self.ready.clear();
    }

    /// Whether what recovery found is durable, and not only written: a killed process may have left
    /// it in a volatile cache. The log syncs it first thing.
    pub fn is_recovered(&self) -> bool {
        self.wal.durable() >= self.recovered || mutants::is(Mutant::SpeakBeforeSynced)
    }

    fn run_timers(&mut self, now: Tick) {
        while let Some(local) = self.timers.pop_due(now) {
            if self.groups[local as usize].raft.deadline() <= now {
                self.call(now, local);
            } else {
                self.reschedule(local);
            }
        }
    }

    /// Tells the groups which of their persists the log has settled, and lets go of the messages
    /// that waited for them.
    fn settle(&mut self, now: Tick) {
        let (durable, written) = (self.wal.durable(), self.wal.written());
        while let Some(&(lsn, local)) = self.durable_marks.front()
            && lsn <= durable
        {
            self.durable_marks.pop_front();
            self.settle_group(now, local, durable, written);
        }
        while let Some(&(lsn, local)) = self.written_marks.front()
            && lsn <= written
        {
            self.written_marks.pop_front();
            self.settle_group(now, local, durable, written);
        }
    }

    fn settle_group(&mut self, now: Tick, local: u32, durable: Lsn, written: Lsn) {
        let Some(seq) = self.groups[local as usize].settle(durable, written) else { return };
        self.step(now, local, Event::Persisted { seq });
        let group = &mut self.groups[local as usize];
        group.probes.logged(group.raft.durable_index(), now, &mut self.stages);
        let id = group.raft.group();
        while let Some((to, message)) = group.release(seq) {
            transport::queue(&self.peers, &mut self.outgoing, to, Outgoing::small(id, message));
        }
    }

    /// Copies what the groups want logged into the log's buffer, in their order.
    fn stage(&mut self) {
        self.claimed = 0;
        for Persist { group, seq, op } in &self.ready.persists {
            let local = local_of(*group, &self.config);
            let (lsn, durable) = match op {
                PersistOp::HardState(state) => {
                    let durable = !mutants::is(Mutant::HardStateNotSynced);
                    (self.wal.hard_state(*group, *state), durable)
                }
                PersistOp::Append { blocks, truncates } => {
                    // What is got back while RECOVERING is synced in both modes (durability.md R5).
                    let state = &self.groups[local as usize];
                    let synced = state.sync && !mutants::is(Mutant::AppendNotSynced);
                    let truncates_synced = *truncates && !mutants::is(Mutant::TruncationNotSynced);
                    let blocks = self.ready.slice(blocks);
                    let sync = synced
                        || state.raft.is_recovering()
                        || truncates_synced
                        || blocks.iter().any(Block::is_always_synced);
                    (self.wal.append(*group, blocks, *truncates, sync), sync)
                }
                PersistOp::Begin(start) => (self.wal.begin_at(*group, *start, true), true),
            };
            let alone = self.config.voters.len() == 1 && mutants::is(Mutant::AloneBeforeOwnWrite);
            let lsn = if alone { Lsn::ZERO } else { lsn };
            self.groups[local as usize].staged(*seq, lsn, durable);
            let marks = if durable { &mut self.durable_marks } else { &mut self.written_marks };
            marks.push_back((lsn, local));
        }
        self.recovered_at.get_or_insert(self.wal.staged());
    }

    /// Sorts this turn's messages by peer; those that speak for an unsettled persist wait.
    fn gather(&mut self) {
        for Outbound { group, to, after, message, blocks } in self.ready.messages.drain(..) {
            let local = local_of(group, &self.config);
            let state = &mut self.groups[local as usize];
            if after <= state.settled() || mutants::is(Mutant::ReplyBeforeWrite) {
                let outgoing = Outgoing { group, message, blocks };
                transport::queue(&self.peers, &mut self.outgoing, to, outgoing);
            } else {
                assert!(blocks.is_empty(), "only small messages wait for the log");
                state.hold(after, to, message);
            }
        }
        self.write_peer_frames();
    }

    fn note_commits(&mut self, now: Tick, out: &mut Output) {
        for commit in self.ready.committed.drain(..) {
            let local = local_of(commit.group, &self.config);
            let group = &mut self.groups[local as usize];
            group.probes.committed(commit.index, now, &mut self.stages);
            group.want_apply(local, &mut self.applying);
        }
        let mut transitions = std::mem::take(&mut self.ready.transitions);
        for transition in &transitions {
            self.stats.campaigns += u64::from(transition.role == Role::Candidate);
            self.stats.elections_won += u64::from(transition.role == Role::Leader);
            if transition.role != Role::Leader {
                let local = local_of(transition.group, &self.config);
                // Whoever it was handed to is about to lead.
                let heir = self.groups[local as usize].heir.take();
                self.disown(local, transition.leader.or(heir));
                self.stop_sending_of(transition.group);
            }
        }
        self.stats.possible_data_loss += self.ready.losses.len() as u64;
        out.losses.append(&mut self.ready.losses);
        out.transitions.append(&mut transitions);
        self.ready.transitions = transitions;
    }

    /// When the next turn is needed even if nothing is reported. `now` when work is left over.
    pub fn deadline(&self, now: Tick) -> Tick {
        let left_over = !self.applying.is_empty()
            || !self.disk_queue.is_empty()
            || !self.ready.is_empty()
            || !self.proposing.is_empty()
            || self.liveness.has_news()
            || self.snapshots.has_work(now)
            || !self.admin.is_empty()
            || self.questions.has_news();
        if self.fatal.is_some() {
            return now;
        }
        if !self.is_recovered() {
            return self.wal.deadline();
        }
        if left_over {
            return now;
        }
        let handover = self.handover.deadline(self.config.leaders.balance_us);
        let questions = self.questions.deadline().min(self.next_look);
        let own = questions.min(handover).min(self.links_deadline()).min(self.snapshots.deadline());
        let own = own.min(self.liveness.deadline()).min(self.roster.deadline());
        self.timers.next().min(self.wal.deadline()).min(own)
    }

    /// True when [`Shard::apply`] has something to do.
    pub fn has_work_to_apply(&self) -> bool {
        !self.applying.is_empty()
    }

    /// One step of the start: `false` once everything that recovery found is on stable storage. A
    /// killed process may leave completed writes in the disk's volatile cache; until they are
    /// synced, no group may speak for them (durability.md R1, R2).
    pub fn is_starting(&mut self, now: Tick, out: &mut Output) -> bool {
        if self.fatal.is_some() {
            return false;
        }
        self.wal.flush(now, &mut out.disk);
        !self.is_recovered()
    }

    /// True when nobody waits for an answer, everything staged is on stable storage, and after
    /// [`Shard::drain`] when others lead what this node led.
    pub fn is_quiet(&self) -> bool {
        let idle = |group: &Group<M>| {
            group.pending.is_empty() && group.proposals.is_empty() && group.reads.is_empty()
        };
        self.handover.is_over()
            && self.groups.iter().all(idle)
            && self.wal.durable() >= self.wal.staged()
    }

    /// Counters since the start.
    pub fn stats(&self) -> ShardStats {
        self.stats
    }

    /// The log, for its figures.
    pub fn wal(&self) -> &Wal {
        &self.wal
    }

    /// Groups that are RECOVERING, and at least 1 while the log does not hold for good what the last
    /// one left with. The boot record says so until this is 0 (durability.md R3). Otherwise:
    ///
    /// 1. two of three have forgotten; n1, one of them, wins by the votes of all, begins epoch 1 with
    ///    a no-op and is not RECOVERING any more; the boot record is told;
    /// 2. power fails before the no-op is durable: n1 starts as one that never forgot anything;
    /// 3. n1 and n2, a majority without marks, elect a leader in epoch 0: indices of which a reader
    ///    may have heard are used again, and nobody is told (R6, R9).
    pub fn recovering(&self) -> usize {
        let suspected = self.config.suspect > Suspect::Nothing;
        let held = self.recovered_at.is_some_and(|lsn| lsn <= self.wal.durable());
        let unsettled = suspected && !(held && self.is_recovered());
        let unsettled = unsettled || self.roster.is_in_doubt();
        self.recovering.max(usize::from(unsettled))
    }
}

fn local_of(group: GroupId, config: &ShardConfig) -> u32 {
    group.0 / config.shards
}

#[cfg(test)]
mod tests;
