//! Carries out the log's operations over the ring: writes, syncs and reads on segment files.
//!
//! Each segment has two descriptors, both `O_DIRECT`: one with `O_DSYNC` for flushes that must be
//! on stable storage when they complete, one without for those that need not.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use io_uring::{opcode, types};

use super::ring::{Completion, Ring, Token};
use super::scrape::DiskFigures;
use crate::ids::Tick;
use crate::mutants::{self, Mutant};
use crate::wal::{AlignedBuf, DiskDone, DiskError, DiskErrorKind, DiskOp, OpId, SegmentNo};

const DISK: u8 = 16;

/// Path of a segment's file.
pub fn segment_path(dir: &Path, segment: SegmentNo) -> PathBuf {
    dir.join(format!("{:012}.wal", segment.0))
}

/// The segment that a file name stands for.
pub fn segment_of(path: &Path) -> Option<SegmentNo> {
    let name = path.file_name()?.to_str()?.strip_suffix(".wal")?;
    if name.len() == 12 { name.parse().ok().map(SegmentNo) } else { None }
}

/// An error of the system as the log names it.
pub fn disk_error(error: &io::Error) -> DiskError {
    let kind = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskErrorKind::NoSpace,
        _ => DiskErrorKind::Io,
    };
    DiskError { kind, errno: error.raw_os_error().unwrap_or(0), message: error.to_string() }
}

/// Segments whose descriptors are kept open; those of others are opened again when needed.
const SEGMENTS_OPEN_MAX: usize = 16;

struct SegmentFile {
    synced: File,
    plain: File,
}

enum Pending {
    Write { buffer: AlignedBuf, len: usize, done: usize, offset: u64, sync: bool },
    Sync,
    Read { buffer: AlignedBuf, len: usize },
}

/// An operation that the kernel has.
struct InFlight {
    id: OpId,
    segment: SegmentNo,
    pending: Pending,
    since: Tick,
}

/// A finished operation of the log.
pub type DiskEvent = (OpId, Result<DiskDone, DiskError>);

/// The segment files of one shard.
pub struct Disk {
    dir: PathBuf,
    files: BTreeMap<SegmentNo, SegmentFile>,
    pending: Vec<Option<InFlight>>,
    free: Vec<u32>,
    in_flight: usize,
    /// For drills: counts down with each write; the one that finds 1 fails with EIO.
    fail_write_in: Option<u64>,
    failed: Vec<DiskEvent>,
    figures: DiskFigures,
}

impl Disk {
    pub fn new(dir: PathBuf, fail_write_in: Option<u64>) -> Self {
        Self {
            dir,
            files: BTreeMap::new(),
            pending: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            fail_write_in,
            failed: Vec::new(),
            figures: DiskFigures::default(),
        }
    }

    /// For metrics.
    pub fn figures(&self) -> &DiskFigures {
        &self.figures
    }

    /// Operations that the kernel has not finished.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Forgets the descriptors of a segment whose file was renamed or removed.
    pub fn forget(&mut self, segment: SegmentNo) {
        self.files.remove(&segment);
    }

    /// Starts an operation. `Prepare` is not for the ring: see [`super::cold`].
    pub fn start(&mut self, ring: &mut Ring, op: DiskOp) {
        let (id, segment, pending) = match op {
            DiskOp::Write { op, segment, offset, buffer, len, sync } => {
                (op, segment, Pending::Write { buffer, len, done: 0, offset, sync })
            }
            DiskOp::Sync { op, segment } => return self.start_sync(ring, op, segment),
            DiskOp::Read { op, segment, offset, len } => {
                return self.start_read(ring, op, segment, offset, len);
            }
            DiskOp::Prepare { .. } => unreachable!("segments are prepared off the ring"),
        };
        if self.drill_says_fail() {
            let error = io::Error::from_raw_os_error(libc::EIO);
            self.figures.errors += 1;
            self.failed.push((id, Err(disk_error(&error))));
            return;
        }
        let slot = self.insert(ring.now(), id, segment, pending);
        self.push_write(ring, slot);
    }

    fn drill_says_fail(&mut self) -> bool {
        match &mut self.fail_write_in {
            Some(left) if *left <= 1 => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    fn push_write(&mut self, ring: &mut Ring, slot: u32) {
        let Some(InFlight { id, segment, pending, .. }) = &self.pending[slot as usize] else {
            return;
        };
        let Pending::Write { buffer, len, done, offset, sync } = pending else { return };
        let (id, segment) = (*id, *segment);
        let rest = &buffer.as_slice()[*done..*len];
        let (pointer, size, at, sync) =
            (rest.as_ptr(), rest.len() as u32, offset + *done as u64, *sync);
        match self.open(segment) {
            Ok(files) => {
                let file = if sync { &files.synced } else { &files.plain };
                let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), pointer, size)
                    .offset(at)
                    .build();
                // SAFETY: the buffer's pages stay where they are, in the slot, untouched until
                // this operation's completion; `open` keeps the descriptors of pending operations.
                unsafe { ring.push(entry, token(slot)) };
            }
            Err(error) => self.fail(slot, id, &error),
        }
    }

    fn start_sync(&mut self, ring: &mut Ring, id: OpId, segment: SegmentNo) {
        if mutants::is(Mutant::NoSync) {
            self.failed.push((id, Ok(DiskDone::Synced)));
            return;
        }
        let slot = self.insert(ring.now(), id, segment, Pending::Sync);
        match self.open(segment) {
            Ok(files) => {
                let entry = opcode::Fsync::new(types::Fd(files.plain.as_raw_fd()))
                    .flags(types::FsyncFlags::DATASYNC)
                    .build();
                // SAFETY: the operation points to no memory.
                unsafe { ring.push(entry, token(slot)) };
            }
            Err(error) => self.fail(slot, id, &error),
        }
    }

    fn start_read(&mut self, ring: &mut Ring, id: OpId, segment: SegmentNo, at: u64, len: usize) {
        let mut buffer = AlignedBuf::with_capacity(len);
        buffer.pad_to(len);
        let slot = self.insert(ring.now(), id, segment, Pending::Read { buffer, len });
        let Some(InFlight { pending: Pending::Read { buffer, .. }, .. }) =
            &mut self.pending[slot as usize]
        else {
            return;
        };
        let pointer = buffer.as_mut_slice().as_mut_ptr();
        match self.open(segment) {
            Ok(files) => {
                let fd = types::Fd(files.plain.as_raw_fd());
                let entry = opcode::Read::new(fd, pointer, len as u32).offset(at).build();
                // SAFETY: as for a write; the buffer has `len` bytes.
                unsafe { ring.push(entry, token(slot)) };
            }
            Err(error) => self.fail(slot, id, &error),
        }
    }

    fn insert(&mut self, since: Tick, id: OpId, segment: SegmentNo, pending: Pending) -> u32 {
        self.in_flight += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.pending.push(None);
            (self.pending.len() - 1) as u32
        });
        self.pending[slot as usize] = Some(InFlight { id, segment, pending, since });
        slot
    }

    fn take(&mut self, slot: u32) -> Option<InFlight> {
        let taken = self.pending.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        self.in_flight -= 1;
        Some(taken)
    }

    fn fail(&mut self, slot: u32, id: OpId, error: &io::Error) {
        self.take(slot);
        self.figures.errors += 1;
        self.failed.push((id, Err(disk_error(error))));
    }

    fn open(&mut self, segment: SegmentNo) -> io::Result<&SegmentFile> {
        if !self.files.contains_key(&segment) {
            self.close_idle();
            let path = segment_path(&self.dir, segment);
            let open = |flags| {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC | flags)
                    .open(&path)
            };
            let synced = if mutants::is(Mutant::NoSync) { 0 } else { libc::O_DSYNC };
            let file = SegmentFile { synced: open(synced)?, plain: open(0)? };
            self.files.insert(segment, file);
        }
        Ok(&self.files[&segment])
    }

    /// Keeps the number of open descriptors bounded however long the log is.
    fn close_idle(&mut self) {
        if self.files.len() < SEGMENTS_OPEN_MAX {
            return;
        }
        let busy = |no: &SegmentNo| self.pending.iter().flatten().any(|op| op.segment == *no);
        if let Some(idle) = self.files.keys().copied().find(|no| !busy(no)) {
            self.files.remove(&idle);
        }
    }

    /// True when an operation failed that `drain_failed` has not told yet.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Operations that failed before they reached the kernel.
    pub fn drain_failed(&mut self, events: &mut Vec<DiskEvent>) {
        events.append(&mut self.failed);
    }

    /// Turns a completion into an event. `false` if it belongs to somebody else.
    pub fn complete(
        &mut self,
        ring: &mut Ring,
        completion: &Completion,
        events: &mut Vec<DiskEvent>,
    ) -> bool {
        if completion.token.kind != DISK {
            return false;
        }
        let slot = completion.token.index;
        match completion.count() {
            Err(error) => {
                if let Some(op) = self.take(slot) {
                    self.figures.errors += 1;
                    events.push((op.id, Err(disk_error(&error))));
                }
            }
            Ok(count) => self.completed(ring, slot, count, events),
        }
        true
    }

    fn completed(&mut self, ring: &mut Ring, slot: u32, count: usize, events: &mut Vec<DiskEvent>) {
        // A short write goes on where it stopped, as long as it makes whole sectors.
        if let Some(Some(InFlight { pending: Pending::Write { len, done, .. }, .. })) =
            self.pending.get_mut(slot as usize)
            && *done + count < *len
            && count > 0
            && count.is_multiple_of(512)
        {
            *done += count;
            return self.push_write(ring, slot);
        }
        let Some(InFlight { id, pending, since, .. }) = self.take(slot) else { return };
        let micros = ring.now().since(since);
        match &pending {
            Pending::Write { sync: true, .. } => self.figures.synced_writes.observe(micros),
            Pending::Write { .. } => self.figures.plain_writes.observe(micros),
            Pending::Sync => self.figures.syncs.observe(micros),
            Pending::Read { .. } => self.figures.reads.observe(micros),
        }
        let result = match pending {
            Pending::Write { buffer, len, done, .. } if done + count == len => {
                Ok(DiskDone::Written { buffer })
            }
            Pending::Read { buffer, len } if count == len => {
                Ok(DiskDone::Read { bytes: Bytes::from_owner(Owned(buffer)) })
            }
            Pending::Sync => Ok(DiskDone::Synced),
            _ => Err(DiskError {
                kind: DiskErrorKind::Io,
                errno: 0,
                message: format!("the disk moved only {count} bytes"),
            }),
        };
        self.figures.errors += u64::from(result.is_err());
        events.push((id, result));
    }
}

impl Drop for Disk {
    /// After a panic operations may be in flight: what the kernel still reads or writes is leaked.
    fn drop(&mut self) {
        if self.in_flight > 0 {
            std::mem::forget(std::mem::take(&mut self.pending));
        }
    }
}

fn token(slot: u32) -> Token {
    Token { kind: DISK, generation: 0, index: slot }
}

struct Owned(AlignedBuf);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}
