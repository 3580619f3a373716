//! What crosses the log's edge: operations for the disk, their completions, errors and figures.

use bytes::Bytes;
use thiserror::Error;

use super::buffer::AlignedBuf;
use crate::block::Block;
use crate::ids::{GroupId, Index, Lsn, Tick};

/// Names one operation until its completion comes back. Never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// Number of a segment; also the name of its file. Segment n covers the positions
/// `n * segment_bytes .. (n + 1) * segment_bytes`. Numbers only grow; the first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentNo(pub u64);

impl SegmentNo {
    /// The following segment.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What the runtime has to do. Operations may be carried out in any order and side by side; the log
/// never issues one whose order matters before the completion it depends on.
#[derive(Debug)]
pub enum DiskOp {
    /// Write `buffer[..len]` at `offset` (both multiples of the block size).
    /// `sync`: through a descriptor opened with O_DSYNC.
    Write { op: OpId, segment: SegmentNo, offset: u64, buffer: AlignedBuf, len: usize, sync: bool },
    /// fdatasync: everything written to the segment before this was issued becomes durable.
    Sync { op: OpId, segment: SegmentNo },
    /// Make the file of `segment` exist under its name with its full size: renamed from `recycle`
    /// (its bytes stay as they are), or new and written with zeros. The file and the directory are
    /// synced before the completion.
    Prepare { op: OpId, segment: SegmentNo, recycle: Option<SegmentNo> },
    /// Read `len` bytes at `offset` (both multiples of the block size).
    Read { op: OpId, segment: SegmentNo, offset: u64, len: usize },
}

impl DiskOp {
    /// Which operation this is.
    pub fn id(&self) -> OpId {
        match *self {
            Self::Write { op, .. }
            | Self::Sync { op, .. }
            | Self::Prepare { op, .. }
            | Self::Read { op, .. } => op,
        }
    }
}

/// A finished operation.
#[derive(Debug)]
pub enum DiskDone {
    /// The buffer comes back for the next flush.
    Written {
        buffer: AlignedBuf,
    },
    Synced,
    Prepared,
    Read {
        bytes: Bytes,
    },
}

/// What kind of failure the disk reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskErrorKind {
    /// ENOSPC or EDQUOT: waiting may help.
    NoSpace,
    /// Everything else.
    Io,
}

/// A failed operation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message} (errno {errno})")]
pub struct DiskError {
    pub kind: DiskErrorKind,
    pub errno: i32,
    /// Operation and file, for people.
    pub message: String,
}

/// What a completion brought beside moved marks.
#[derive(Debug)]
#[must_use]
pub enum Completed {
    /// Look at `durable()` and `written()`.
    Progress,
    /// Answer to [`Wal::read`](super::Wal::read): at least one block, contiguous, the first one
    /// holds the index asked for.
    Fetched { token: u64, group: GroupId, blocks: Vec<Block> },
    /// The read failed; the log itself goes on.
    FetchFailed { token: u64, group: GroupId, error: ReadError },
}

/// Why blocks cannot be read back.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    #[error("index {0} is not in the log (released, truncated or never logged)")]
    NotFound(Index),
    #[error("index {0} is staged but not written yet: serve it from memory")]
    NotYet(Index),
    #[error("reading the log failed: {0}")]
    Disk(DiskError),
    #[error(
        "rot: index {index} of group {group} at position {lsn} of the log does not verify; \
         take this replica's copy as damaged"
    )]
    Rot { group: GroupId, index: Index, lsn: Lsn },
    #[error("the log is poisoned by an earlier error")]
    Poisoned,
}

/// Why a log stops, or cannot be opened. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WalError {
    #[error(
        "log {what} failed: {error}; nothing is acknowledged any more, restart the node after \
         checking the disk"
    )]
    Poisoned { what: &'static str, error: DiskError },
    #[error(
        "committed entries of group {group} cannot be read back: {error}; check the disk, then \
         restart the node"
    )]
    Lost { group: GroupId, error: ReadError },
    #[error(
        "cannot read segment {segment} while recovering: {error}. Nothing was changed: copy the \
         data directory to a sound disk, with zeros for what cannot be read (as ddrescue does), and \
         start there: that is damage as any other, and is mended by the other nodes; or replace the \
         node",
        segment = .segment.0
    )]
    Unreadable { segment: SegmentNo, error: DiskError },
    #[error(
        "segment {segment} belongs to another log ({what} is {found}, expected {expected}); start \
         the node with its own data directory, or as a new node on an empty one",
        segment = .segment.0
    )]
    Identity { segment: SegmentNo, what: &'static str, found: u128, expected: u128 },
    #[error(
        "segment {segment} has format version {found}, this build reads {expected}; start the \
         build that wrote it",
        segment = .segment.0
    )]
    Version { segment: SegmentNo, found: u32, expected: u32 },
    #[error(
        "the log was made with {what} = {found}, the configuration says {expected}; set it back"
    )]
    Geometry { what: &'static str, found: u64, expected: u64 },
    #[error("a verified flush at position {lsn} holds a record of unknown shape: {what}")]
    Format { lsn: Lsn, what: &'static str },
}

/// Whether the log can take more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Space {
    Ok,
    /// The disk is full. What is staged waits; preparing a segment is tried again each second.
    NoSpace {
        since: Tick,
        message: String,
    },
    /// `segments_max` files are in use and no group has released any.
    LimitReached,
}

/// Counters since start, and gauges of this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Flushes issued.
    pub flushes: u64,
    /// Bytes of flushes issued, headers and padding included.
    pub bytes: u64,
    /// Records staged.
    pub records: u64,
    /// Bytes of records staged, their headers included.
    pub record_bytes: u64,
    /// fdatasyncs issued.
    pub syncs: u64,
    /// Reads issued.
    pub reads: u64,
    /// Segments that hold the log.
    pub segments: u64,
    /// Prepared segments ahead.
    pub spares: u64,
    /// Files that were used again.
    pub recycled: u64,
    /// Written but not yet durable, bytes.
    pub unsynced_bytes: u64,
    /// Since when something is written but not durable.
    pub unsynced_since: Option<Tick>,
    /// Flushes in flight.
    pub in_flight: u64,
}
