//! One shard's directory on one node, with everything that a disk may do to it.
//!
//! In: [`Disk::issue`] takes the operations of a turn and decides when each completes and how.
//! Out: [`Disk::take_due`] gives the completions that are due, [`Disk::next_due`] says when.
//! The ends of a process: [`Disk::kill`] and [`Disk::power_cut`]; the next process reads the
//! directory through [`Disk::source`].
//!
//! What survives a loss of power:
//! - a write through O_DSYNC, once it has completed; any other write once a sync of its segment
//!   that was *issued after its completion* has completed;
//! - of all other writes, those under way included, each sector of 512 bytes by chance
//!   ([`Survival`]): torn, and reordered;
//! - where nothing new survived, what lay there before (a recycled segment shows its old bytes);
//! - a name once the directory was synced, which only a completed `Prepare` does. A `Prepare` under
//!   way has happened or not, or has left a new file empty or cut short.
//!
//! A kill leaves completed writes in place but volatile; those under way survive whole, in part or
//! not at all.
//!
//! Faults: see the methods. All chance comes from the disk's own generator.

mod boot;
mod files;
mod media;

#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use self::boot::BootFile;
use self::files::Files;
use self::media::{Media, Name};
use super::rng::Rng;
use crate::ids::{Lsn, Tick};
use crate::wal::{
    DiskDone, DiskError, DiskErrorKind, DiskOp, OpId, SegmentNo, SegmentSource, WalConfig,
};

/// The unit that a loss of power leaves whole, bytes.
pub const SECTOR: usize = 512;

/// Operations that prepare a segment take this many times as long as the others.
const PREPARE_SLOWNESS: u64 = 4;

/// Which of the sectors that were not safe survive a loss of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    None,
    /// Each with probability 1/2.
    Half,
    All,
    /// Each write draws one of the three above.
    Mixed,
}

impl Survival {
    /// What holds for one write.
    fn of_write(self, rng: &mut Rng) -> Self {
        match self {
            Self::Mixed => [Self::None, Self::Half, Self::All][rng.below(3) as usize],
            other => other,
        }
    }

    fn keeps(self, rng: &mut Rng) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Half | Self::Mixed => rng.chance(50),
        }
    }
}

/// What a loss of power did, in sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PowerCut {
    pub lost_sectors: u64,
    pub kept_sectors: u64,
    /// Of the lost ones, those whose write had completed: a group without `wal_sync` may have spoken
    /// for them.
    pub lost_written: u64,
    /// Of those, the ones that a sync had promised: only a lying disk has any.
    pub lost_promised: u64,
}

/// The kinds of operation that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpClass {
    Write,
    Sync,
    Read,
    Prepare,
    /// Writing or publishing a snapshot.
    File,
    /// Reading one.
    ReadFile,
}

/// How often an operation fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Times {
    #[default]
    Never,
    Once,
    ForGood,
}

impl Times {
    fn take(&mut self) -> bool {
        let fails = *self != Self::Never;
        if *self == Self::Once {
            *self = Self::Never;
        }
        fails
    }
}

/// Where synced bytes were damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotten {
    pub segment: SegmentNo,
    pub offset: u64,
    pub len: u64,
}

/// A write that landed elsewhere and was reported as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misdirected {
    pub segment: SegmentNo,
    pub meant: u64,
    pub landed: u64,
    pub len: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    write: Times,
    sync: Times,
    read: Times,
    prepare: Times,
    /// Writing and publishing the files of snapshots; and reading them.
    file: Times,
    read_file: Times,
    /// No space for new files.
    full: bool,
    /// No space for writes either (a file system that does not overwrite in place).
    writes_full: bool,
    misdirect: bool,
}

#[derive(Clone, Copy, Debug)]
struct Latency {
    min: u64,
    max: u64,
    /// In how many of 1000 operations `spike_us` come on top.
    spike_permille: u64,
    spike_us: u64,
}

#[derive(Debug)]
struct InFlight {
    due: u64,
    /// Ties complete in the order of issue.
    order: u64,
    /// A sync covers the writes that completed before this one.
    covers: u64,
    /// Where a write goes, if not where it should.
    misdirected: Option<u64>,
    fails: Option<DiskErrorKind>,
    op: DiskOp,
}

/// See the module.
#[derive(Debug)]
pub struct Disk {
    media: Media,
    files: Files,
    rng: Rng,
    in_flight: Vec<InFlight>,
    issued: u64,
    next_due: u64,
    latency: Latency,
    stalled_until: u64,
    syncs_stalled_until: u64,
    faults: Faults,
    misdirected: Option<Misdirected>,
}

/// Nothing is under way.
const IDLE: u64 = u64::MAX;

impl Disk {
    /// An empty directory for a log of this shape.
    pub fn new(config: WalConfig, seed: u64) -> Self {
        Self {
            media: Media::new(config),
            files: Files::default(),
            rng: Rng::new(seed),
            in_flight: Vec::new(),
            issued: 0,
            next_due: IDLE,
            latency: Latency { min: 100, max: 200, spike_permille: 0, spike_us: 0 },
            stalled_until: 0,
            syncs_stalled_until: 0,
            faults: Faults::default(),
            misdirected: None,
        }
    }

    /// Takes operations in and decides when each completes, and whether it fails. `ops` is drained.
    pub fn issue(&mut self, now: Tick, ops: &mut Vec<DiskOp>) {
        for op in ops.drain(..) {
            self.media.check(&op);
            let fails = self.fault(&op);
            let misdirected = self.misdirect(&op);
            let due = now.0 + self.draw_latency(&op);
            let (order, covers) = (self.issued, self.media.completed());
            self.issued += 1;
            let op = InFlight { due, order, covers, misdirected, fails, op };
            self.next_due = self.next_due.min(self.due(&op));
            self.in_flight.push(op);
        }
    }

    /// When it completes, unless the whole disk stands still.
    fn due(&self, op: &InFlight) -> u64 {
        let held = matches!(op.op, DiskOp::Sync { .. });
        op.due.max(if held { self.syncs_stalled_until } else { 0 })
    }

    fn first_due(&self) -> u64 {
        self.in_flight.iter().map(|op| self.due(op)).min().unwrap_or(IDLE)
    }

    fn draw_latency(&mut self, op: &DiskOp) -> u64 {
        let Latency { min, max, spike_permille, spike_us } = self.latency;
        let base = self.rng.between(min, max);
        let spike = if spike_permille > 0 && self.rng.below(1000) < spike_permille {
            self.rng.between(spike_us / 2, spike_us)
        } else {
            0
        };
        let factor = if matches!(op, DiskOp::Prepare { .. }) { PREPARE_SLOWNESS } else { 1 };
        base * factor + spike
    }

    fn fault(&mut self, op: &DiskOp) -> Option<DiskErrorKind> {
        let faults = &mut self.faults;
        let (times, full) = match op {
            DiskOp::Write { .. } => (&mut faults.write, faults.writes_full),
            DiskOp::Sync { .. } => (&mut faults.sync, false),
            DiskOp::Read { .. } => (&mut faults.read, false),
            // A file that is renamed needs no space, unless it has to be made longer.
            DiskOp::Prepare { recycle, .. } => {
                (&mut faults.prepare, faults.full && !self.media.is_whole(*recycle))
            }
        };
        match (times.take(), full) {
            (true, _) => Some(DiskErrorKind::Io),
            (false, true) => Some(DiskErrorKind::NoSpace),
            (false, false) => None,
        }
    }

    fn misdirect(&mut self, op: &DiskOp) -> Option<u64> {
        let DiskOp::Write { segment, offset, len, .. } = op else { return None };
        let block = u64::from(self.media.config().block_bytes);
        let places = (self.media.config().segment_bytes - *len as u64) / block + 1;
        if !self.faults.misdirect || places < 2 {
            return None;
        }
        self.faults.misdirect = false;
        let other = (offset / block + self.rng.between(1, places - 1)) % places * block;
        let (segment, len) = (*segment, *len as u64);
        self.misdirected = Some(Misdirected { segment, meant: *offset, landed: other, len });
        Some(other)
    }

    /// When the next completion is due; `Tick(u64::MAX)` = nothing is under way.
    pub fn next_due(&self) -> Tick {
        Tick(self.next_log_due().min(self.next_file_due()))
    }

    fn next_log_due(&self) -> u64 {
        if self.next_due == IDLE { IDLE } else { self.next_due.max(self.stalled_until) }
    }

    /// The next operation that has completed by `now`, in the order of completion.
    pub fn take_due(&mut self, now: Tick) -> Option<(OpId, Result<DiskDone, DiskError>)> {
        if self.next_log_due() > now.0 {
            return None;
        }
        let first = |(_, op): &(usize, &InFlight)| (self.due(op), op.order);
        let (at, _) = self.in_flight.iter().enumerate().min_by_key(first)?;
        let done = self.in_flight.swap_remove(at);
        self.next_due = self.first_due();
        let id = done.op.id();
        Some((id, self.finish(done)))
    }

    fn finish(&mut self, done: InFlight) -> Result<DiskDone, DiskError> {
        if let Some(kind) = done.fails {
            self.fail_op(&done);
            return Err(error(kind, "injected"));
        }
        match done.op {
            DiskOp::Write { segment, offset, buffer, len, sync, .. } => {
                let at = done.misdirected.unwrap_or(offset);
                self.media.write(segment, at, &buffer.as_slice()[..len], sync);
                Ok(DiskDone::Written { buffer })
            }
            DiskOp::Sync { segment, .. } => {
                self.media.sync(segment, done.covers);
                Ok(DiskDone::Synced)
            }
            DiskOp::Prepare { segment, recycle, .. } => {
                self.media.prepare(segment, recycle);
                Ok(DiskDone::Prepared)
            }
            DiskOp::Read { segment, offset, len, .. } => {
                let bytes = self.media.read(segment, offset, len);
                Ok(DiskDone::Read { bytes })
            }
        }
    }

    /// What a failed operation did to the medium is unknown.
    fn fail_op(&mut self, done: &InFlight) {
        match &done.op {
            DiskOp::Write { segment, offset, buffer, len, .. } => {
                let bytes = &buffer.as_slice()[..*len];
                self.media.write_partly(*segment, *offset, bytes, Survival::Half, &mut self.rng);
            }
            DiskOp::Sync { segment, .. } => self.media.doom(*segment, done.covers),
            DiskOp::Prepare { .. } | DiskOp::Read { .. } => {}
        }
    }

    /// The process is gone, the machine is not.
    pub fn kill(&mut self) {
        self.media.calm();
        self.files.kill(&mut self.rng);
        for InFlight { op, misdirected, .. } in std::mem::take(&mut self.in_flight) {
            match op {
                DiskOp::Write { segment, offset, buffer, len, .. } => {
                    let at = misdirected.unwrap_or(offset);
                    let survival = Survival::Mixed.of_write(&mut self.rng);
                    let bytes = &buffer.as_slice()[..len];
                    self.media.write_partly(segment, at, bytes, survival, &mut self.rng);
                }
                DiskOp::Prepare { segment, recycle, .. } => {
                    self.media.prepare_partly(segment, recycle, Name::Volatile, &mut self.rng);
                }
                DiskOp::Sync { .. } | DiskOp::Read { .. } => {}
            }
        }
        self.next_due = IDLE;
    }

    /// Power fails. `survival` decides about everything that was not safe.
    pub fn power_cut(&mut self, survival: Survival) -> PowerCut {
        let mut cut = PowerCut::default();
        self.media.power_cut(survival, &mut self.rng, &mut cut);
        self.files.power_cut(survival, &mut self.rng);
        for InFlight { op, misdirected, .. } in std::mem::take(&mut self.in_flight) {
            match op {
                DiskOp::Write { segment, offset, buffer, len, .. } => {
                    let at = misdirected.unwrap_or(offset);
                    let survival = survival.of_write(&mut self.rng);
                    let bytes = &buffer.as_slice()[..len];
                    self.media.tear(segment, at, bytes, survival, &mut self.rng, &mut cut);
                }
                DiskOp::Prepare { segment, recycle, .. } => {
                    self.media.prepare_partly(segment, recycle, Name::Durable, &mut self.rng);
                }
                DiskOp::Sync { .. } | DiskOp::Read { .. } => {}
            }
        }
        self.next_due = IDLE;
        cut
    }

    /// The directory as the next process finds it.
    pub fn source(&mut self) -> Source<'_> {
        Source(self)
    }

    /// Does anything lie only in a cache, or is it under way?
    pub fn is_volatile(&self) -> bool {
        let writes = self.in_flight.iter().any(|op| matches!(op.op, DiskOp::Write { .. }));
        writes || self.media.is_volatile()
    }

    /// Operations under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

/// Faults. Each lasts until it has happened, or until [`Disk::heal`].
impl Disk {
    /// Microseconds that an operation takes.
    pub fn set_latency(&mut self, min: u64, max: u64) {
        (self.latency.min, self.latency.max) = (min, max);
    }

    /// In `permille` of 1000 operations up to `us` microseconds come on top.
    pub fn set_spikes(&mut self, permille: u64, us: u64) {
        (self.latency.spike_permille, self.latency.spike_us) = (permille, us);
    }

    /// Nothing completes before `until`.
    pub fn stall_until(&mut self, until: Tick) {
        self.stalled_until = until.0;
    }

    /// No sync completes before `until`; writes do. A log without `wal_sync` would go on for ever.
    pub fn stall_syncs_until(&mut self, until: Tick) {
        self.syncs_stalled_until = until.0;
        self.next_due = self.first_due();
    }

    /// The next operation of this class fails with EIO, or all from now on. A failed write leaves
    /// some of its sectors. A failed sync leaves what it covered in doubt: a later sync that
    /// succeeds says nothing about it (bug 1).
    pub fn fail(&mut self, class: OpClass, times: Times) {
        let faults = &mut self.faults;
        *match class {
            OpClass::Write => &mut faults.write,
            OpClass::Sync => &mut faults.sync,
            OpClass::Read => &mut faults.read,
            OpClass::Prepare => &mut faults.prepare,
            OpClass::File => &mut faults.file,
            OpClass::ReadFile => &mut faults.read_file,
        } = times;
    }

    /// ENOSPC for new files, or no longer.
    pub fn fill(&mut self, full: bool) {
        self.faults.full = full;
    }

    /// ENOSPC for writes to files that are there, or no longer.
    pub fn fill_writes(&mut self, full: bool) {
        self.faults.writes_full = full;
    }

    /// The next write lands at another block of its segment and is reported as done.
    pub fn misdirect_next_write(&mut self) {
        self.faults.misdirect = true;
    }

    /// Whether something is still to fail, or to go astray.
    pub fn is_armed(&self) -> bool {
        let Faults { write, sync, read, prepare, writes_full, misdirect, .. } = self.faults;
        let fails = [write, sync, read, prepare].iter().any(|times| *times != Times::Never);
        fails || writes_full || misdirect
    }

    /// Whether an operation under way is going to fail.
    pub fn is_failing(&self) -> bool {
        self.in_flight.iter().any(|op| op.fails.is_some())
    }

    /// The write that was misdirected since the last call.
    pub fn take_misdirected(&mut self) -> Option<Misdirected> {
        self.misdirected.take()
    }

    /// Damages synced bytes that the log wrote: some bits, or a sector. `None`: there are none.
    pub fn rot(&mut self, rng: &mut Rng) -> Option<Rotten> {
        self.media.rot(rng, Lsn(u64::MAX))
    }

    /// The same, only before the position `end` of the log. What the log cannot know to have been
    /// durable, it cannot find damaged either: durability.md §5 speaks of what lies below its mark.
    pub fn rot_below(&mut self, end: Lsn, rng: &mut Rng) -> Option<Rotten> {
        self.media.rot(rng, end)
    }

    /// False: a disk that forgets what O_DSYNC and fdatasync mean (the negative control).
    pub fn set_honest(&mut self, honest: bool) {
        self.media.honest = honest;
    }

    /// Errors, want of space, stalls and spikes are over. Latency and honesty stay as set.
    pub fn heal(&mut self) {
        self.faults = Faults::default();
        self.stalled_until = 0;
        self.stall_syncs_until(Tick::ZERO);
        self.latency.spike_permille = 0;
    }
}

fn error(kind: DiskErrorKind, what: &str) -> DiskError {
    let errno = if kind == DiskErrorKind::NoSpace { 28 } else { 5 };
    DiskError { kind, errno, message: what.to_owned() }
}

/// The directory as recovery reads it; see [`Disk::source`].
pub struct Source<'a>(&'a mut Disk);

impl SegmentSource for Source<'_> {
    fn segments(&self) -> Vec<SegmentNo> {
        self.0.media.segments()
    }

    fn read(&mut self, segment: SegmentNo, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        if self.0.faults.read.take() {
            return Err(error(DiskErrorKind::Io, "injected"));
        }
        Ok(self.0.media.read(segment, offset, len))
    }
}
