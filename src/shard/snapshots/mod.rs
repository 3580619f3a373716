//! Snapshots of a shard's groups: when one is taken, what is published when, what the log gives up
//! for it, and how it gets to a follower. Files are operations that come back as completions, like
//! those of the log.
//!
//! ```text
//! take     freeze ─▶ slices, a few a turn ─▶ g7.making ─▶ log durable through the index (R8)?
//!            ─▶ sync, rename, sync the directory ─▶ the log's record of its beginning ─▶ segments
//! send     Offer ─▶ Held ─▶ chunks, a window of them ─▶ Held … ─▶ the follower replicates on
//!            link lost ─▶ kept for a while, and the log with it ─▶ the same Offer again
//! receive  Offer ─▶ .part, each chunk synced before it is acknowledged ─▶ whole: read back,
//!            verified, restored beside the live state ─▶ published ─▶ swapped in ─▶ record, reply
//! start    newest whole file + log (`start`)
//! ```
//!
//! Never true: a record of where a log begins before the snapshot that stands for the rest is
//! published; a published snapshot ahead of the durable log (durability.md R8); a state that is partly
//! of a snapshot and partly not (bugs.md 18); a file removed that is the newest of its group, or that
//! a follower is being sent.

pub mod files;
pub mod gather;
mod pinned;
mod receive;
mod send;
pub mod start;
mod take;

use std::collections::VecDeque;

pub use self::files::{FileDone, FileName, FileOp, FileOpId};
use self::pinned::Moving;
use self::receive::Receiving;
use self::send::{Refuser, Sending};
use self::start::Loaded;
use self::take::Taking;
use super::{Output, Shard};
use crate::ids::{GroupId, Index, Lsn, Tick};
use crate::machine::StateMachine;
use crate::raft::message::Offer;
use crate::raft::ready::{Install, InstallStep};
use crate::wal::DiskError;

/// Snapshots under way at a time, of each kind.
const AT_ONCE: usize = 2;
/// Snapshots that this shard sends at a time, and receives. Kept ones take no place until their
/// follower is back, so that it may be more for a while: never more than these to one node.
const TRANSFERS_MAX: usize = 4;
/// After a file operation failed nothing new is begun for this long, microseconds.
const BACKOFF_US: u64 = 1_000_000;

/// When snapshots are taken and how they travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// Applied entries after which a group is snapshotted, if their blocks have at least as many bytes
    /// as its last snapshot; 0: never by entries.
    pub entries: u64,
    /// And not before so long after the last one, microseconds.
    pub interval_us: u64,
    /// Bytes of the shard's log above which the groups that hold its front are snapshotted.
    pub log_bytes_max: u64,
    /// In every header: a snapshot of another cluster is not restored.
    pub config_hash: u64,
    /// Most bytes of a slice, of a write, and of a chunk on the wire; a multiple of 8.
    pub chunk_bytes: u32,
    /// Bytes under way to one follower, those of all groups together: its heartbeats wait behind them
    /// (1 MiB takes 84 ms at 100 Mbit/s). At least a chunk.
    pub window_bytes: u64,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self {
            entries: 10_000,
            interval_us: 5_000_000,
            log_bytes_max: 1 << 30,
            config_hash: 0,
            chunk_bytes: 256 << 10,
            window_bytes: 1 << 20,
        }
    }
}

/// What a start found of snapshots, file by file.
pub struct Found<M> {
    /// Whole ones that groups start from, with their state.
    pub loaded: Vec<Loaded<M>>,
    /// Parts of others, and how many bytes of each are whole.
    pub parts: Vec<(GroupId, Offer, u64)>,
    /// Files that nobody needs.
    pub useless: Vec<FileName>,
}

impl<M> Default for Found<M> {
    fn default() -> Self {
        Self { loaded: Vec::new(), parts: Vec::new(), useless: Vec::new() }
    }
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotStats {
    pub taken: u64,
    pub taken_bytes: u64,
    /// Installed in place of a log.
    pub installed: u64,
    pub sent_bytes: u64,
    /// Times that one was gone on with that a follower had a part of already.
    pub resumed: u64,
    /// The bytes of these parts: what was not sent again.
    pub resumed_bytes: u64,
    pub received_bytes: u64,
    /// Operations that failed, and files that did not verify.
    pub failed: u64,
    /// Times that a follower said that it cannot use what it was sent.
    pub refused: u64,
}

/// Something with a snapshot's file that an operator may have to see to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub group: GroupId,
    /// What was not done.
    pub what: &'static str,
    pub reason: String,
}

/// See the module.
pub(super) struct Snapshots<M> {
    ops: Vec<FileOp>,
    next_op: u64,
    /// Groups that are to be snapshotted.
    wanted: VecDeque<u32>,
    taking: Vec<Taking>,
    sending: Vec<Sending>,
    /// Followers that cannot use what they would be sent.
    refusers: Vec<Refuser>,
    receiving: Vec<Receiving<M>>,
    /// As [`Found::parts`].
    parts: Vec<(GroupId, Offer, u64)>,
    /// Files that go as soon as no follower is sent them, or has a part of them.
    superseded: Vec<(GroupId, Index)>,
    /// Nothing new is begun before.
    rests_until: Tick,
    looks_at: Tick,
    moving: Vec<Moving>,
    /// Groups that wait to read back what was logged again, until the log is written through there.
    unwritten: Vec<(u32, Lsn)>,
    /// Whole ones that do not go with this build or configuration, and until when no other one of
    /// their groups is asked for either.
    refused: Vec<(GroupId, Offer, Tick)>,
    troubles: Vec<Trouble>,
    pub stats: SnapshotStats,
}

impl<M> Snapshots<M> {
    pub fn new(parts: Vec<(GroupId, Offer, u64)>, useless: Vec<FileName>) -> Self {
        let mut new = Self {
            ops: Vec::new(),
            next_op: 1,
            wanted: VecDeque::new(),
            taking: Vec::new(),
            sending: Vec::new(),
            refusers: Vec::new(),
            receiving: Vec::new(),
            parts,
            superseded: Vec::new(),
            rests_until: Tick::ZERO,
            looks_at: Tick::ZERO,
            moving: Vec::new(),
            unwritten: Vec::new(),
            refused: Vec::new(),
            troubles: Vec::new(),
            stats: SnapshotStats::default(),
        };
        useless.into_iter().for_each(|file| new.remove(file));
        new
    }

    fn op(&mut self) -> FileOpId {
        self.next_op += 1;
        FileOpId(self.next_op)
    }

    fn remove(&mut self, file: FileName) {
        let op = self.op();
        self.ops.push(FileOp::Remove { op, file });
    }

    /// A file that a newer one has replaced goes, unless a follower is being sent it or has a part.
    fn retire(&mut self, group: GroupId, index: Index) {
        if index > Index::ZERO && !self.superseded.contains(&(group, index)) {
            self.superseded.push((group, index));
        }
        self.remove_superseded();
    }

    fn remove_superseded(&mut self) {
        let sending = &self.sending;
        let free = |&mut (group, index): &mut (GroupId, Index)| {
            !sending.iter().any(|s| s.group == group && s.offer.start.index == index)
        };
        let gone: Vec<_> = self.superseded.extract_if(.., free).collect();
        gone.into_iter().for_each(|(group, index)| self.remove(FileName::Snapshot(group, index)));
    }

    fn failed(&mut self, now: Tick, group: GroupId, what: &'static str, reason: impl ToString) {
        self.stats.failed += 1;
        self.troubles.push(Trouble { group, what, reason: reason.to_string() });
        self.rests_until = now.plus(BACKOFF_US);
    }

    /// Something can be begun or gone on with now.
    pub fn has_work(&self, now: Tick) -> bool {
        let may_begin = self.taking.len() < AT_ONCE && now >= self.rests_until;
        !self.ops.is_empty()
            || (may_begin && !self.wanted.is_empty())
            || self.taking.iter().any(Taking::wants_a_turn)
    }

    /// When it is to be looked again whether one is to be begun, or let go of.
    pub fn deadline(&self) -> Tick {
        let waits = !self.wanted.is_empty() && self.taking.len() < AT_ONCE;
        let begins = if waits { self.rests_until } else { Tick(u64::MAX) };
        self.sending.iter().map(Sending::kept_until).fold(begins, Tick::min)
    }
}

impl<M: StateMachine> Shard<M> {
    /// The group is over: nothing of it is under way any more. The files that it leaves.
    pub(super) fn forget_snapshots(&mut self, local: u32) -> Vec<FileName> {
        let group = self.config.group_at(local);
        let snapshots = &mut self.snapshots;
        snapshots.sending.retain(|sending| sending.group != group);
        snapshots.refusers.retain(|refuser| refuser.group != group);
        let newest = self.groups[local as usize].snapshot.start.index;
        let mut files = vec![FileName::Making(group)];
        let published = snapshots.superseded.extract_if(.., |(id, _)| *id == group);
        let mut indices: Vec<Index> = published.map(|(_, index)| index).collect();
        indices.push(newest);
        let taking = snapshots.taking.extract_if(.., |taking| taking.group() == group);
        indices.extend(taking.map(|taking| taking.index()));
        for receiving in snapshots.receiving.extract_if(.., |receiving| receiving.group() == group)
        {
            files.push(receiving.file());
            indices.push(receiving.index());
        }
        let parts = snapshots.parts.extract_if(.., |part| part.0 == group);
        files.extend(parts.map(|(group, offer, _)| FileName::Part(group, offer)));
        indices.retain(|index| *index > Index::ZERO);
        indices.sort_unstable();
        indices.dedup();
        files.extend(indices.into_iter().map(|index| FileName::Snapshot(group, index)));
        files
    }

    /// Removes what an ended group has left. What fails is found useless by the next start.
    pub(super) fn remove_files(&mut self, files: Vec<FileName>) {
        files.into_iter().for_each(|file| self.snapshots.remove(file));
    }

    /// One turn's worth of work on snapshots.
    pub(super) fn drive_snapshots(&mut self, now: Tick, out: &mut Output) {
        let mut at = 0;
        while at < self.ready.installs.len() {
            let install = self.ready.installs[at];
            at += 1;
            self.on_install(now, install);
        }
        self.ready.installs.clear();
        self.look_after_sending(now);
        self.look_after_receiving(now);
        self.look_at_log(now);
        self.apply_written();
        self.take_snapshots(now);
        out.files.append(&mut self.snapshots.ops);
        out.troubles.clear();
        out.troubles.append(&mut self.snapshots.troubles);
    }

    fn on_install(&mut self, now: Tick, install: Install) {
        let Install { group, peer, step } = install;
        let Some(local) = self.local(group) else { return };
        match step {
            InstallStep::Send => self.send_snapshot(now, local, peer),
            InstallStep::Held { index, offset } => self.peer_holds(now, group, peer, index, offset),
            InstallStep::Refused { index } => self.peer_refuses(now, group, peer, index),
            InstallStep::Stop => self.stop_sending(|s| s.group == group && s.to == peer),
            InstallStep::Offered(offer) => self.snapshot_offered(now, local, peer, offer),
            InstallStep::Chunk { index, offset, size, checksum, block } => {
                let bytes = self.ready.blocks[block as usize].body().clone();
                let named = (index, size, checksum);
                self.chunk_received(local, peer, named, offset, bytes);
            }
        }
    }

    /// Reports a finished operation on a file.
    pub fn file_done(&mut self, now: Tick, op: FileOpId, result: Result<FileDone, DiskError>) {
        if self.fatal.is_some() {
            return;
        }
        if let Some(at) = self.snapshots.taking.iter().position(|t| t.waits_for(op)) {
            self.taking_done(now, at, result);
        } else if let Some(at) = self.snapshots.sending.iter().position(|s| s.waits_for(op)) {
            self.chunk_read(now, at, result);
        } else if let Some(at) = self.snapshots.receiving.iter().position(|r| r.waits_for(op)) {
            self.receiving_done(now, at, result);
        }
        // A file that was not removed is found useless by the next start.
    }

    /// Counters since the start.
    pub fn snapshot_stats(&self) -> SnapshotStats {
        self.snapshots.stats
    }
}
