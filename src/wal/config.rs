//! What a log is told at start, and the arithmetic between positions and segments.

use thiserror::Error;

use super::ops::SegmentNo;
use super::record::{FLUSH_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::block::BLOCK_BYTES_MAX;
use crate::ids::Lsn;

/// Settings of one shard's log. `segment_bytes` and `block_bytes` are written into every segment and
/// must stay what they were when the log was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Number of the shard on this node; part of the log's identity.
    pub shard: u32,
    /// Size of a segment's file, bytes; a multiple of `block_bytes`.
    pub segment_bytes: u64,
    /// Alignment and padding of each write, bytes; a power of two from 512 on.
    pub block_bytes: u32,
    /// Flushes in flight at once.
    pub depth: u32,
    /// Largest flush, bytes with header and padding. One block that is larger goes out alone.
    pub flush_bytes_max: u32,
    /// How long staged records may wait for company, microseconds. Hard states do not wait.
    pub linger_us: u64,
    /// Most files the log may have, spare ones included; at least 3.
    pub segments_max: u32,
    /// Segments prepared ahead of the one in use; at least 1.
    pub spare_segments: u32,
    /// Oldest age of written but unsynced bytes before a background sync, microseconds
    /// (durability.md R7). Where that sync takes three times this, nothing more is written before it is
    /// done.
    pub sync_lag_us: u64,
    /// Most written but unsynced bytes before a background sync (R7); from four times as many on
    /// nothing more is written before the sync is done.
    pub sync_lag_bytes: u64,
    /// Staged bytes from which on [`Wal::has_capacity`](super::Wal::has_capacity) says no.
    pub staged_bytes_max: u64,
    /// The same, once a flush has waited this long for its turn, microseconds. A vote waits behind
    /// what is staged, so this has to be well below an election timeout, whatever the disk's pace
    /// (bug 36). A disk that does nothing at all does not count: then the bytes do.
    pub staged_age_max_us: u64,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            shard: 0,
            segment_bytes: 64 << 20,
            block_bytes: 4096,
            depth: 6,
            flush_bytes_max: 1 << 20,
            linger_us: 0,
            segments_max: 64,
            spare_segments: 2,
            sync_lag_us: 100_000,
            sync_lag_bytes: 1 << 20,
            staged_bytes_max: 16 << 20,
            staged_age_max_us: 75_000,
        }
    }
}

/// Whose log it is: checked at every start, so that a directory is never read by a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    pub cluster: u128,
    pub node: u32,
    pub disk: u128,
}

/// Why the settings of a log cannot be used; each says the rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WalConfigError {
    #[error("wal block_bytes {0} must be a power of two between 512 and 65536")]
    BlockBytes(u32),
    #[error("wal segment_bytes {0} must be a multiple of block_bytes")]
    SegmentBytes(u64),
    #[error("wal segment_bytes {have} cannot hold the largest block: at least {need} bytes")]
    SegmentTooSmall { have: u64, need: u64 },
    #[error("wal flush_bytes_max {0} must be at least two blocks and at most 16 MiB")]
    FlushBytes(u32),
    #[error("wal depth must be between 1 and 64, not {0}")]
    Depth(u32),
    #[error("wal segments_max {0} must be at least 3 (one in use, one ahead, one in reserve)")]
    SegmentsMax(u32),
    #[error("wal spare_segments {0} must be at least 1 and below segments_max")]
    SpareSegments(u32),
}

impl WalConfig {
    /// Checks the rules above. The server calls it before anything is written.
    pub fn check(&self) -> Result<(), WalConfigError> {
        let header_and_block = FLUSH_HEADER_BYTES + RECORD_HEADER_BYTES + BLOCK_BYTES_MAX;
        let need = u64::from(self.block_bytes) + self.padded(header_and_block) as u64;
        self.check_shape()?;
        if self.segment_bytes < need {
            return Err(WalConfigError::SegmentTooSmall { have: self.segment_bytes, need });
        }
        Ok(())
    }

    /// The rules that also hold for the small segments of tests.
    pub(super) fn check_shape(&self) -> Result<(), WalConfigError> {
        let block = self.block_bytes;
        if !block.is_power_of_two() || !(512..=65536).contains(&block) {
            return Err(WalConfigError::BlockBytes(block));
        }
        if !self.segment_bytes.is_multiple_of(u64::from(block))
            || self.segment_bytes < 2 * u64::from(block)
        {
            return Err(WalConfigError::SegmentBytes(self.segment_bytes));
        }
        if self.flush_bytes_max < 2 * block || self.flush_bytes_max > 16 << 20 {
            return Err(WalConfigError::FlushBytes(self.flush_bytes_max));
        }
        if !(1..=64).contains(&self.depth) {
            return Err(WalConfigError::Depth(self.depth));
        }
        if self.segments_max < 3 {
            return Err(WalConfigError::SegmentsMax(self.segments_max));
        }
        if self.spare_segments < 1 || self.spare_segments >= self.segments_max {
            return Err(WalConfigError::SpareSegments(self.spare_segments));
        }
        Ok(())
    }

    /// First position of a segment; its header lies there.
    pub(super) fn start_of(&self, segment: SegmentNo) -> Lsn {
        Lsn(segment.0 * self.segment_bytes)
    }

    /// The segment a byte at `lsn` lies in.
    pub(super) fn segment_of(&self, lsn: Lsn) -> SegmentNo {
        SegmentNo(lsn.0 / self.segment_bytes)
    }

    /// The segment that holds the last byte before `end`.
    pub(super) fn segment_before(&self, end: Lsn) -> SegmentNo {
        SegmentNo(end.0.saturating_sub(1) / self.segment_bytes)
    }

    /// Offset of `lsn` in its segment.
    pub(super) fn offset_of(&self, lsn: Lsn) -> u64 {
        lsn.0 % self.segment_bytes
    }

    /// `bytes` up to the next multiple of the block size.
    pub(super) fn padded(&self, bytes: usize) -> usize {
        bytes.next_multiple_of(self.block_bytes as usize)
    }

    /// The header block in front of a segment's flushes.
    pub(super) fn lead(&self) -> usize {
        self.block_bytes as usize
    }
}
