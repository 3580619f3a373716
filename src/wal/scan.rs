//! Walking segments at recovery: large sequential reads, flushes one after another, and the search
//! for valid flushes behind the place where the chain ends.

use bytes::Bytes;

use super::config::WalConfig;
use super::ops::{DiskError, SegmentNo, WalError};
use super::record::{Chain, FLUSH_HEADER_BYTES, FlushHeader, Records};
use crate::ids::{GroupId, Lsn};

/// The files of a log as recovery sees them.
pub trait SegmentSource {
    /// Numbers of all files there are, in any order.
    fn segments(&self) -> Vec<SegmentNo>;

    /// `len` bytes at `offset` (both multiples of the block size); fewer where the file ends.
    fn read(&mut self, segment: SegmentNo, offset: u64, len: usize) -> Result<Bytes, DiskError>;
}

/// One read of recovery, bytes.
const WINDOW_BYTES: u64 = 8 << 20;
/// One read where a single flush is wanted; a larger one is read at once all the same.
const GLANCE_BYTES: u64 = 64 << 10;

/// A verified flush.
#[derive(Debug)]
pub(super) struct Flush {
    pub header: FlushHeader,
    /// Its records.
    pub payload: Bytes,
    pub lsn: Lsn,
    /// Position behind the padding.
    pub end: Lsn,
}

impl Flush {
    /// Is this the one after `chain`, of the life that began its segment?
    pub fn follows(&self, chain: Chain, epoch: u64) -> bool {
        self.header.previous == chain.checksum && self.header.epoch == epoch
    }

    /// The chain with this flush added.
    pub fn chain(&self) -> Chain {
        Chain { end: self.end, checksum: self.header.checksum }
    }
}

/// A segment under the reading glass.
pub(super) struct Scan<'a> {
    config: &'a WalConfig,
    files: &'a mut dyn SegmentSource,
    segment: SegmentNo,
    window: Bytes,
    window_at: u64,
    /// Bytes of one read.
    stride: u64,
}

impl<'a> Scan<'a> {
    pub fn new(
        config: &'a WalConfig,
        files: &'a mut dyn SegmentSource,
        segment: SegmentNo,
    ) -> Self {
        Self { config, files, segment, window: Bytes::new(), window_at: 0, stride: WINDOW_BYTES }
    }

    /// For a look at one flush or two.
    #[must_use]
    pub fn briefly(mut self) -> Self {
        self.stride = GLANCE_BYTES;
        self
    }

    /// Up to `len` bytes at `offset`, from the window or by moving it there.
    fn bytes(&mut self, offset: u64, len: usize) -> Result<Bytes, WalError> {
        let end = offset + len as u64;
        let window_end = self.window_at + self.window.len() as u64;
        if offset < self.window_at || end > window_end {
            let left = self.config.segment_bytes - offset;
            let want = (self.config.padded(len) as u64).max(self.stride).min(left);
            self.window = self
                .files
                .read(self.segment, offset, want as usize)
                .map_err(|error| WalError::Unreadable { segment: self.segment, error })?;
            self.window_at = offset;
        }
        let start = (offset - self.window_at) as usize;
        let have = self.window.len().saturating_sub(start).min(len);
        Ok(self.window.slice(start.min(self.window.len())..start.min(self.window.len()) + have))
    }

    /// The verified flush at `offset`, whatever chain it belongs to.
    pub fn flush_at(&mut self, offset: u64) -> Result<Option<Flush>, WalError> {
        let room = self.config.segment_bytes.saturating_sub(offset);
        if room < FLUSH_HEADER_BYTES as u64 {
            return Ok(None);
        }
        let lsn = self.config.start_of(self.segment).plus(offset);
        let front = self.bytes(offset, FLUSH_HEADER_BYTES)?;
        let Some(header) = FlushHeader::peek(&front, lsn, room) else { return Ok(None) };
        let bytes = self.bytes(offset, header.size())?;
        if !header.verifies(&bytes, self.segment) {
            return Ok(None);
        }
        let end = lsn.plus(self.config.padded(bytes.len()) as u64);
        Ok(Some(Flush { header, payload: bytes.slice(FLUSH_HEADER_BYTES..), lsn, end }))
    }

    /// Does the front of a flush of this very place lie at `offset`, verified or not?
    pub fn trace_at(&mut self, offset: u64) -> Result<bool, WalError> {
        let room = self.config.segment_bytes.saturating_sub(offset);
        if room < FLUSH_HEADER_BYTES as u64 {
            return Ok(false);
        }
        let lsn = self.config.start_of(self.segment).plus(offset);
        let front = self.bytes(offset, FLUSH_HEADER_BYTES)?;
        Ok(FlushHeader::peek(&front, lsn, room).is_some())
    }

    /// The next verified flush at or behind `offset`, at any block's edge.
    pub fn find_flush(&mut self, mut offset: u64) -> Result<Option<Flush>, WalError> {
        while offset < self.config.segment_bytes {
            if let Some(flush) = self.flush_at(offset)? {
                return Ok(Some(flush));
            }
            offset += u64::from(self.config.block_bytes);
        }
        Ok(None)
    }

    /// The groups that the records at `offset` seem to name, whether or not the flush verifies.
    pub fn groups_at(&mut self, offset: u64) -> Result<Vec<GroupId>, WalError> {
        let room = self.config.segment_bytes.saturating_sub(offset);
        if room < FLUSH_HEADER_BYTES as u64 {
            return Ok(Vec::new());
        }
        let lsn = self.config.start_of(self.segment).plus(offset);
        let front = self.bytes(offset, FLUSH_HEADER_BYTES)?;
        let Some(header) = FlushHeader::peek(&front, lsn, room) else { return Ok(Vec::new()) };
        let bytes = self.bytes(offset, header.size())?;
        let records = Records { bytes: bytes.get(FLUSH_HEADER_BYTES..).unwrap_or_default(), at: 0 };
        let mut groups: Vec<_> =
            records.map_while(Result::ok).map(|record| GroupId(record.header.group)).collect();
        groups.sort_unstable();
        groups.dedup();
        Ok(groups)
    }
}
