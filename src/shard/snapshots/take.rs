//! Taking a snapshot of a group, and what its log gives up for it.

use bytes::Bytes;

use super::super::Shard;
use super::{AT_ONCE, FileDone, FileName, FileOp, FileOpId, SnapshotConfig};
use crate::ids::{GroupId, Index, LogStart, Lsn, Tick};
use crate::machine::StateMachine;
use crate::mutants::{self, Mutant};
use crate::raft::message::Offer;
use crate::raft::ready::Role;
use crate::raft::{Event, Log, Raft};
use crate::snapshot::{Header, SnapshotWriter};
use crate::wal::{DiskError, Wal};

/// How often a log that is too long is looked at, microseconds.
const LOOK_US: u64 = 100_000;
/// A file that is being written is synced each time it has grown by this.
const SYNC_BYTES: u64 = 8 << 20;
/// Of `entries`, so many parts of this number stay in the log behind a snapshot for followers that
/// lag a little.
const TAIL_PART: u64 = 4;

/// A snapshot that is being written.
pub(super) struct Taking {
    group: GroupId,
    local: u32,
    start: LogStart,
    writer: SnapshotWriter,
    buffer: Vec<u8>,
    offset: u64,
    /// The log must be durable through here before this may be published (R8).
    lsn: Lsn,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Slices are drawn and gathered.
    Draws,
    /// Under way; `true`: the last one.
    Writes(FileOpId, bool),
    /// Whole, and waits for the log.
    WaitsForLog,
    Publishes(FileOpId),
}

impl Taking {
    pub fn waits_for(&self, op: FileOpId) -> bool {
        matches!(self.stage, Stage::Writes(id, _) | Stage::Publishes(id) if id == op)
    }

    pub fn group(&self) -> GroupId {
        self.group
    }

    pub fn index(&self) -> Index {
        self.start.index
    }

    pub fn wants_a_turn(&self) -> bool {
        self.stage == Stage::Draws
    }
}

impl<M: StateMachine> Shard<M> {
    /// The group has applied something: is it time for a snapshot?
    #[inline]
    pub(in super::super) fn note_applied(&mut self, now: Tick, local: u32) {
        let group = &self.groups[local as usize];
        let since = group.applied.since(group.snapshot.start.index);
        let SnapshotConfig { entries, interval_us, .. } = self.config.snapshots;
        let due = entries > 0 && since >= entries && group.applied_bytes >= group.snapshot.size;
        if due && !group.snapshot_wanted && now.since(group.snapshot_at) >= interval_us {
            self.want_snapshot(local);
        }
    }

    pub(super) fn want_snapshot(&mut self, local: u32) {
        let group = &mut self.groups[local as usize];
        if !group.snapshot_wanted && !group.snapshots_off {
            group.snapshot_wanted = true;
            self.snapshots.wanted.push_back(local);
        }
    }

    /// A log over its bound: the groups that hold its front give that up, or are snapshotted so that
    /// they can; entries that are not committed go to the head.
    pub(super) fn look_at_log(&mut self, now: Tick) {
        let bytes_max = self.config.snapshots.log_bytes_max;
        if now < self.snapshots.looks_at || self.wal.log_bytes() <= bytes_max {
            return;
        }
        self.snapshots.looks_at = now.plus(LOOK_US);
        for group in self.wal.pinning(bytes_max) {
            let Some(local) = self.local(group) else { continue };
            let state = &self.groups[local as usize];
            let snapshot = state.snapshot.start.index;
            if state.raft.log().start().index < snapshot {
                self.cut_log(now, local, true);
            }
            if self.groups[local as usize].applied > snapshot {
                self.want_snapshot(local);
            } else {
                self.log_again(local);
            }
        }
    }

    pub(super) fn take_snapshots(&mut self, now: Tick) {
        while self.snapshots.taking.len() < AT_ONCE && now >= self.snapshots.rests_until {
            let Some(local) = self.snapshots.wanted.pop_front() else { break };
            self.begin_snapshot(local);
        }
        for at in 0..self.snapshots.taking.len() {
            self.draw(at);
            self.publish_if_safe(at);
        }
    }

    fn begin_snapshot(&mut self, local: u32) {
        let group = &mut self.groups[local as usize];
        group.snapshot_wanted = false;
        let id = group.raft.group();
        let log = group.raft.log();
        let index = Self::index_of_state(group.applied, log, &self.wal, id);
        let busy = self.snapshots.taking.iter().any(|taking| taking.local == local);
        let newest = group.snapshot.start.index;
        if busy || index < newest || (index == newest && !group.snapshot_bad) {
            return;
        }
        let Some(term) = log.term_at(index) else { return };
        // A node that has joined knows who takes part only from the first entry that says so.
        if group.raft.membership_at(index).voters.is_empty() {
            return;
        }
        let start = LogStart { index, term, epoch: log.epoch_at(index) };
        let Ok(state) = group.machine.freeze() else {
            group.snapshots_off = true;
            return;
        };
        let header = header(&group.raft, start, self.config.snapshots.config_hash);
        let sessions = Box::new(group.sessions.freeze());
        let writer = SnapshotWriter::new(header, sessions, state);
        group.applied_bytes = 0;
        let lsn = self.wal.sync();
        let (buffer, stage) = (Vec::new(), Stage::Draws);
        let taking = Taking { group: id, local, start, writer, buffer, offset: 0, lsn, stage };
        self.snapshots.taking.push(taking);
        if mutants::is(Mutant::ReleaseBeforePublish) {
            let applied = self.groups[local as usize].raft.log().applied().min(index);
            self.wal.begin_at(id, LogStart { index: applied, ..start }, false);
        }
    }

    /// What a state that was given everything through `applied` stands for: that, and nothing else
    /// (bug 18).
    fn index_of_state(applied: Index, log: &Log, wal: &Wal, group: GroupId) -> Index {
        let ahead = mutants::is(Mutant::SnapshotAheadOfState) && log.is_edge(log.commit());
        let behind = mutants::is(Mutant::SnapshotBehindState) && applied > Index::ZERO;
        match () {
            () if ahead => log.commit(),
            () if behind => wal.edge_at_most(group, applied.prev()).unwrap_or(applied),
            () => applied,
        }
    }

    /// One slice a turn; a full buffer is written.
    fn draw(&mut self, at: usize) {
        let chunk = self.config.snapshots.chunk_bytes as usize;
        let taking = &mut self.snapshots.taking[at];
        if taking.stage != Stage::Draws {
            return;
        }
        let more = taking.writer.next(&mut taking.buffer, chunk);
        if more && taking.buffer.len() < chunk {
            return;
        }
        let bytes = Bytes::from(std::mem::take(&mut taking.buffer));
        let (offset, file) = (taking.offset, FileName::Making(taking.group));
        taking.offset += bytes.len() as u64;
        let op = self.snapshots.op();
        self.snapshots.taking[at].stage = Stage::Writes(op, !more);
        // Little is left to be synced at the end, however large it is.
        let sync = (offset + bytes.len() as u64) / SYNC_BYTES > offset / SYNC_BYTES;
        self.snapshots.ops.push(FileOp::Write { op, file, offset, bytes, sync });
    }

    fn publish_if_safe(&mut self, at: usize) {
        let durable = self.wal.durable() >= self.snapshots.taking[at].lsn
            || mutants::is(Mutant::PublishBeforeLog);
        if self.snapshots.taking[at].stage != Stage::WaitsForLog || !durable {
            return;
        }
        let op = self.snapshots.op();
        let taking = &mut self.snapshots.taking[at];
        taking.stage = Stage::Publishes(op);
        let from = FileName::Making(taking.group);
        let to = FileName::Snapshot(taking.group, taking.start.index);
        self.snapshots.ops.push(FileOp::Publish { op, from, to });
    }

    pub(super) fn taking_done(
        &mut self,
        now: Tick,
        at: usize,
        result: Result<FileDone, DiskError>,
    ) {
        let taking = &mut self.snapshots.taking[at];
        match (result, taking.stage) {
            (Ok(_), Stage::Writes(_, false)) => taking.stage = Stage::Draws,
            (Ok(_), Stage::Writes(_, true)) => {
                taking.stage = Stage::WaitsForLog;
                self.publish_if_safe(at);
            }
            (Ok(_), _) => {
                let taking = self.snapshots.taking.swap_remove(at);
                self.published(now, &taking);
            }
            (Err(error), _) => {
                // Space may come back, and a broken disk shows in the log as well.
                let taking = self.snapshots.taking.swap_remove(at);
                self.snapshots.remove(FileName::Making(taking.group));
                self.snapshots.failed(now, taking.group, "a snapshot was not written", error);
                self.want_snapshot(taking.local);
            }
        }
    }

    fn published(&mut self, now: Tick, taking: &Taking) {
        let Taking { group: id, local, start, offset: size, .. } = *taking;
        let checksum = taking.writer.whole_checksum();
        let group = &mut self.groups[local as usize];
        let newest = group.snapshot.start.index;
        if start.index < newest {
            // One that was installed meanwhile reaches further.
            return self.snapshots.remove(FileName::Snapshot(id, start.index));
        }
        group.snapshot_bad = false;
        group.snapshot_at = now;
        group.snapshot = Offer { start, size, checksum };
        self.snapshots.stats.taken += 1;
        self.snapshots.stats.taken_bytes += size;
        if newest < start.index {
            self.snapshots.retire(id, newest);
        }
        // One that was damaged and is replaced, under the same name.
        let offer = Offer { start, size, checksum };
        self.stop_sending(|s| s.group == id && s.offer.start == start && s.offer != offer);
        self.cut_log(now, local, false);
    }

    /// Gives up what the newest snapshot holds as well, but for a tail that followers may still need.
    /// `all`: no tail, the log is too long; but for one that a snapshot on its way needs, as long as
    /// there are files left for that.
    pub(super) fn cut_log(&mut self, now: Tick, local: u32, all: bool) {
        let group = &self.groups[local as usize];
        let (raft, id) = (&group.raft, group.raft.group());
        let newest = group.snapshot.start.index;
        let target = match all {
            // What is on its way to a follower would be sent for nothing, again and again.
            true if self.wal.is_crowded() => newest,
            true => self.or_least_sent(now, raft, newest),
            false => self.tail_from(now, raft, newest),
        };
        // A group whose front is wanted gives up what it can; others are cut where a record ends.
        let edge = if target == newest { Some(newest) } else { self.wal.edge_at_most(id, target) };
        let begins = raft.log().start().index;
        let Some(index) = edge.filter(|&edge| edge > begins && raft.log().is_edge(edge)) else {
            return;
        };
        let log = raft.log();
        let term = log.term_at(index).expect("between where the log begins and what is applied");
        let start = LogStart { index, term, epoch: log.epoch_at(index) };
        self.wal.begin_at(id, start, false);
        self.step(now, local, Event::Compacted { through: index });
    }

    fn tail_from(&self, now: Tick, raft: &Raft, newest: Index) -> Index {
        let entries = self.config.snapshots.entries;
        let back = |n: u64| Index(newest.0.saturating_sub(n));
        let mut target = back(entries / TAIL_PART);
        if raft.role() == Role::Leader {
            let patience = raft.config().election_timeout_max_us;
            let live = raft.progress().filter(|(_, p)| now.since(p.contact_at()) < patience);
            let slowest = live.map(|(_, p)| p.matched()).min().unwrap_or(newest);
            target = target.min(slowest.max(back(entries)));
        }
        self.or_least_sent(now, raft, target)
    }

    /// `target`, or as far back as the log has to go on from a snapshot that is being sent.
    fn or_least_sent(&self, now: Tick, raft: &Raft, target: Index) -> Index {
        if mutants::is(Mutant::CutUnderTransfer) {
            return target;
        }
        self.least_sent(now, raft.group()).map_or(target, |least| least.min(target))
    }
}

/// What a snapshot of this group at `start` says of itself.
fn header(raft: &Raft, start: LogStart, config_hash: u64) -> Header {
    let LogStart { index, term, epoch } = start;
    let membership = raft.membership_at(index).clone();
    Header { group: raft.group(), epoch, index, term, config_hash, membership }
}
