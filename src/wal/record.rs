//! The bytes of the log: segment header, flush header, record header. formats.md shows them byte by
//! byte; the `const` assertions here pin the sizes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::config::{LogIdentity, WalConfig};
use super::ops::{SegmentNo, WalError};
use crate::checksum;
use crate::ids::{GroupId, HardState, Index, LogStart, Lsn, NodeId, Term};
use crate::mutants::{self, Mutant};

/// "RRSG": the front of a segment.
const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"RRSG");
/// "RRF1": the front of a flush, version 1.
const FLUSH_MAGIC: u32 = u32::from_le_bytes(*b"RRF1");
/// The format this build reads and writes.
pub(super) const SEGMENT_VERSION: u32 = 1;

pub(super) const SEGMENT_HEADER_BYTES: usize = 128;
pub(super) const FLUSH_HEADER_BYTES: usize = 64;
pub(super) const RECORD_HEADER_BYTES: usize = 16;
pub(super) const HARD_STATE_BYTES: usize = 24;
pub(super) const LOG_START_BYTES: usize = 24;

const _: () = assert!(size_of::<SegmentHeader>() == SEGMENT_HEADER_BYTES);
const _: () = assert!(size_of::<FlushHeader>() == FLUSH_HEADER_BYTES);
const _: () = assert!(size_of::<RecordHeader>() == RECORD_HEADER_BYTES);
const _: () = assert!(size_of::<HardStateBytes>() == HARD_STATE_BYTES);
const _: () = assert!(size_of::<LogStartBytes>() == LOG_START_BYTES);
const _: () = assert!(SEGMENT_HEADER_BYTES <= 512, "one sector holds it: it is never half there");

/// Record payload: blocks of one group, contiguous, exactly their bytes.
pub(super) const KIND_BLOCKS: u8 = 1;
/// Record payload: a [`HardState`].
pub(super) const KIND_HARD_STATE: u8 = 2;
/// Record payload: a [`LogStart`].
pub(super) const KIND_LOG_START: u8 = 3;
/// Record flag of a log start: none of the entries logged before belongs to the log any more.
pub(super) const FLAG_ANEW: u8 = 1;
/// Record flag: the first block replaces what the group logged from its index on.
pub(super) const FLAG_TRUNCATES: u8 = 1;
/// Flush flag: written through an O_DSYNC descriptor.
pub(super) const FLAG_SYNC: u32 = 1;

/// First bytes of each segment; the rest of the block is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SegmentHeader {
    pub checksum: u32,
    pub magic: u32,
    pub version: u32,
    pub shard: u32,
    pub cluster: [u64; 2],
    pub disk: [u64; 2],
    pub node: u32,
    pub block_bytes: u32,
    pub segment_bytes: u64,
    pub segment: u64,
    pub epoch: u64,
    pub previous_end: u64,
    pub durable: u64,
    pub previous_checksum: u32,
    pub reserved: [u8; 4],
    /// No segment below this one was needed when the header was written; 0 = not said.
    pub front: u64,
    pub unused: [u8; 16],
}

/// Where a chain of flushes has got to: the end of the last one and its checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub end: Lsn,
    pub checksum: u32,
}

fn halves(wide: u128) -> [u64; 2] {
    [wide as u64, (wide >> 64) as u64]
}

fn whole(halves: [u64; 2]) -> u128 {
    u128::from(halves[0]) | u128::from(halves[1]) << 64
}

impl SegmentHeader {
    pub fn new(
        config: &WalConfig,
        identity: &LogIdentity,
        epoch: u64,
        segment: SegmentNo,
        chain: Chain,
        (durable, front): (Lsn, SegmentNo),
    ) -> Self {
        let mut header = Self {
            checksum: 0,
            magic: SEGMENT_MAGIC,
            version: SEGMENT_VERSION,
            shard: config.shard,
            cluster: halves(identity.cluster),
            disk: halves(identity.disk),
            node: identity.node,
            block_bytes: config.block_bytes,
            segment_bytes: config.segment_bytes,
            segment: segment.0,
            epoch,
            previous_end: chain.end.0,
            durable: durable.0,
            previous_checksum: chain.checksum,
            reserved: [0; 4],
            front: front.0,
            unused: [0; 16],
        };
        header.checksum = checksum::crc32c(&header.as_bytes()[4..]);
        header
    }

    /// Reads the header of `segment`. `None`: these bytes are not its header (never written, torn,
    /// damaged, or left by the number the file had before it was recycled).
    pub fn read(
        bytes: &[u8],
        segment: SegmentNo,
        config: &WalConfig,
        identity: &LogIdentity,
    ) -> Result<Option<Self>, WalError> {
        let Some(header) = Self::sound(bytes) else { return Ok(None) };
        header.check_owner(segment, config, identity)?;
        // What came before a segment ends at its start at the latest.
        let start = config.start_of(segment).0;
        let fits =
            header.previous_end <= start && header.durable <= start && header.front <= segment.0;
        Ok((header.segment == segment.0 && fits).then_some(header))
    }

    /// A header whose checksum vouches for it, of whatever log and version.
    pub fn sound(bytes: &[u8]) -> Option<Self> {
        let (header, _) = Self::read_from_prefix(bytes).ok()?;
        let vouched = header.checksum == checksum::crc32c(&header.as_bytes()[4..]);
        (header.magic == SEGMENT_MAGIC && vouched).then_some(header)
    }

    /// Whose log it says it is of.
    pub fn identity(&self) -> LogIdentity {
        LogIdentity { cluster: whole(self.cluster), node: self.node, disk: whole(self.disk) }
    }

    fn check_owner(
        &self,
        segment: SegmentNo,
        config: &WalConfig,
        identity: &LogIdentity,
    ) -> Result<(), WalError> {
        if self.version != SEGMENT_VERSION {
            let (found, expected) = (self.version, SEGMENT_VERSION);
            return Err(WalError::Version { segment, found, expected });
        }
        let owners = [
            ("cluster id", whole(self.cluster), identity.cluster),
            ("node id", u128::from(self.node), u128::from(identity.node)),
            ("disk id", whole(self.disk), identity.disk),
            ("shard", u128::from(self.shard), u128::from(config.shard)),
        ];
        for (what, found, expected) in owners {
            if found != expected {
                return Err(WalError::Identity { segment, what, found, expected });
            }
        }
        let sizes = [
            ("segment_bytes", self.segment_bytes, config.segment_bytes),
            ("block_bytes", u64::from(self.block_bytes), u64::from(config.block_bytes)),
        ];
        for (what, found, expected) in sizes {
            if found != expected {
                return Err(WalError::Geometry { what, found, expected });
            }
        }
        Ok(())
    }

    /// The chain this segment continues.
    pub fn previous(&self) -> Chain {
        Chain { end: Lsn(self.previous_end), checksum: self.previous_checksum }
    }
}

/// A segment's generation: bytes that an earlier life of the file left behind do not verify (bugs
/// 12). Never 0, so that zeros do not either.
fn generation_seed(epoch: u64, segment: SegmentNo) -> u32 {
    let mixed =
        (epoch ^ segment.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed >> 32) as u32 | 1
}

/// Front of each flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct FlushHeader {
    pub checksum: u32,
    pub magic: u32,
    /// Bytes of records after this header; at least one record.
    pub payload: u32,
    pub records: u32,
    /// Position of this header.
    pub lsn: u64,
    /// Everything before this position was durable when the flush was made.
    pub durable: u64,
    /// Checksum of the flush before.
    pub previous: u32,
    pub flags: u32,
    /// That of the log's life that wrote it; together with the segment it makes the seed.
    pub epoch: u64,
    pub reserved: [u8; 16],
}

impl FlushHeader {
    /// Stamps the front of `flush` (header and payload, without padding); returns the checksum.
    pub fn seal(
        flush: &mut [u8],
        (epoch, segment): (u64, SegmentNo),
        lsn: Lsn,
        records: u32,
        durable: Lsn,
        previous: u32,
        sync: bool,
    ) -> u32 {
        let mut header = Self {
            checksum: 0,
            magic: FLUSH_MAGIC,
            payload: (flush.len() - FLUSH_HEADER_BYTES) as u32,
            records,
            lsn: lsn.0,
            durable: durable.0,
            previous,
            flags: if sync { FLAG_SYNC } else { 0 },
            epoch,
            reserved: [0; 16],
        };
        flush[..FLUSH_HEADER_BYTES].copy_from_slice(header.as_bytes());
        let seed = generation_seed(epoch, segment);
        header.checksum = checksum::crc32c_append(seed, &flush[4..]);
        flush[..4].copy_from_slice(&header.checksum.to_le_bytes());
        header.checksum
    }

    /// The header at `lsn` if the cheap marks fit and the payload ends within `room` bytes.
    pub fn peek(bytes: &[u8], lsn: Lsn, room: u64) -> Option<Self> {
        let (header, _) = Self::read_from_prefix(bytes).ok()?;
        let fits = header.payload as u64 + FLUSH_HEADER_BYTES as u64 <= room;
        let sane = header.magic == FLUSH_MAGIC && header.lsn == lsn.0 && header.durable <= lsn.0;
        (sane && fits && header.payload as usize >= RECORD_HEADER_BYTES).then_some(header)
    }

    /// Header and payload, bytes.
    pub fn size(&self) -> usize {
        FLUSH_HEADER_BYTES + self.payload as usize
    }

    /// Does the checksum vouch for `flush` (exactly [`FlushHeader::size`] bytes)?
    pub fn verifies(&self, flush: &[u8], segment: SegmentNo) -> bool {
        let seed = generation_seed(self.epoch, segment);
        let sound = checksum::crc32c_append(seed, &flush[4..]) == self.checksum;
        flush.len() == self.size() && (sound || mutants::is(Mutant::TornFlushCounts))
    }
}

/// Front of each record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RecordHeader {
    /// Bytes after this header; a multiple of 8.
    pub size: u32,
    pub kind: u8,
    pub flags: u8,
    pub reserved: u16,
    pub group: u32,
    /// Blocks in the record; 0 for the other kinds.
    pub count: u32,
}

/// One record of a verified flush.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub header: RecordHeader,
    /// Offset of the record's header in the bytes walked.
    pub at: usize,
    pub payload: &'a [u8],
}

/// Walks records; a record that does not fit ends the walk with an error.
pub(super) struct Records<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let at = self.at;
        self.at = self.bytes.len();
        let Ok((header, rest)) = RecordHeader::read_from_prefix(rest) else {
            return Some(Err("record header cut short"));
        };
        let Some(payload) = rest.get(..header.size as usize) else {
            return Some(Err("record longer than its flush"));
        };
        self.at = at + RECORD_HEADER_BYTES + payload.len();
        Some(Ok(Record { header, at, payload }))
    }
}

/// A hard state as it is logged.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct HardStateBytes {
    term: u64,
    commit: u64,
    vote: u32,
    reserved: u32,
}

impl HardStateBytes {
    pub fn encode(state: HardState) -> Self {
        let vote = NodeId::to_wire(state.vote);
        Self { term: state.term.0, commit: state.commit.0, vote, reserved: 0 }
    }

    pub fn decode(bytes: &[u8]) -> Option<HardState> {
        let raw = Self::read_from_bytes(bytes).ok()?;
        let vote = NodeId::from_wire(raw.vote);
        Some(HardState { term: Term(raw.term), vote, commit: Index(raw.commit) })
    }
}

/// Where a group's log begins, as it is logged.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct LogStartBytes {
    index: u64,
    term: u64,
    epoch: u32,
    reserved: u32,
}

impl LogStartBytes {
    pub fn encode(start: LogStart) -> Self {
        let LogStart { index, term, epoch } = start;
        Self { index: index.0, term: term.0, epoch, reserved: 0 }
    }

    /// `None`: not of this size, or numbers near the end of their range.
    pub fn decode(bytes: &[u8]) -> Option<LogStart> {
        let Self { index, term, epoch, .. } = Self::read_from_bytes(bytes).ok()?;
        let sane = index <= u64::MAX / 2 && term <= u64::MAX / 2;
        sane.then_some(LogStart { index: Index(index), term: Term(term), epoch })
    }
}

/// The header of a record of `group`.
pub(super) fn record_header(
    group: GroupId,
    kind: u8,
    flags: u8,
    size: usize,
    count: usize,
) -> RecordHeader {
    let (size, count) = (size as u32, count as u32);
    RecordHeader { size, kind, flags, reserved: 0, group: group.0, count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_no_flush_and_no_segment_whatever_the_generation() {
        let zeros = [0; 4096];
        assert!(FlushHeader::peek(&zeros, Lsn::ZERO, 4096).is_none());
        let identity = LogIdentity { cluster: 0, node: 0, disk: 0 };
        let config = WalConfig::default();
        assert_eq!(SegmentHeader::read(&zeros, SegmentNo(0), &config, &identity), Ok(None));
        assert!((0..10_000).all(|n| generation_seed(n, SegmentNo(n)) != 0));
    }

    #[test]
    fn the_layout_is_pinned_by_golden_bytes() {
        let mut flush = vec![0; FLUSH_HEADER_BYTES + 16];
        let generation = (7, SegmentNo(3));
        FlushHeader::seal(&mut flush, generation, Lsn(0x0102), 5, Lsn(0x0100), 0x0a0b_0c0d, true);
        assert_eq!(&flush[4..16], b"RRF1\x10\0\0\0\x05\0\0\0");
        assert_eq!(&flush[16..32], b"\x02\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0");
        assert_eq!(&flush[32..48], b"\x0d\x0c\x0b\x0a\x01\0\0\0\x07\0\0\0\0\0\0\0");
        let header = record_header(GroupId(9), KIND_BLOCKS, FLAG_TRUNCATES, 88, 1);
        assert_eq!(header.as_bytes(), b"\x58\0\0\0\x01\x01\0\0\x09\0\0\0\x01\0\0\0");
        let state = HardState { term: Term(4), vote: Some(NodeId(2)), commit: Index(6) };
        let bytes = HardStateBytes::encode(state);
        assert_eq!(bytes.as_bytes()[..17], *b"\x04\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x02");
        assert_eq!(HardStateBytes::decode(bytes.as_bytes()), Some(state));
        let start = LogStart { index: Index(6), term: Term(4), epoch: 3 };
        let bytes = LogStartBytes::encode(start);
        assert_eq!(bytes.as_bytes(), b"\x06\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
        assert_eq!(LogStartBytes::decode(bytes.as_bytes()), Some(start));
        assert_eq!(LogStartBytes::decode(&[0xff; LOG_START_BYTES]), None);
    }

    #[test]
    fn a_flush_verifies_only_under_its_own_generation() {
        let mut flush = vec![9; FLUSH_HEADER_BYTES + 32];
        FlushHeader::seal(&mut flush, (7, SegmentNo(3)), Lsn(512), 1, Lsn(0), 0, false);
        let header = FlushHeader::peek(&flush, Lsn(512), 4096).unwrap();
        assert!(header.verifies(&flush, SegmentNo(3)));
        assert!(!header.verifies(&flush, SegmentNo(4)));
        assert!(!FlushHeader { epoch: 8, ..header }.verifies(&flush, SegmentNo(3)));
        assert!(FlushHeader::peek(&flush, Lsn(1024), 4096).is_none());
    }
}
