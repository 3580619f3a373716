//! A log laid open for people: what recovery would say of it, and every flush and record in it.
//! Reads only.

use zerocopy::FromBytes;

use super::config::{LogIdentity, WalConfig};
use super::ops::{SegmentNo, WalError};
use super::record::{
    FLAG_ANEW, FLAG_SYNC, FLAG_TRUNCATES, FLUSH_HEADER_BYTES, HardStateBytes, KIND_BLOCKS,
    KIND_HARD_STATE, KIND_LOG_START, LogStartBytes, Record, Records, SegmentHeader,
};
use super::recovery::{Recovered, Verdict, recover_from};
use super::scan::{Flush, Scan, SegmentSource};
use crate::block::{BlockHeader, HEADER_BYTES};
use crate::ids::{GroupId, HardState, Index, LogStart, Lsn, Term};

/// What a segment says about the log it belongs to: enough to read the log without its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogShape {
    pub config: WalConfig,
    pub identity: LogIdentity,
}

impl LogShape {
    /// From the first bytes of a segment file; `None` if they are not a sound header of this version.
    pub fn read(front: &[u8]) -> Option<Self> {
        let header = SegmentHeader::sound(front)?;
        let config = WalConfig {
            shard: header.shard,
            segment_bytes: header.segment_bytes,
            block_bytes: header.block_bytes,
            ..WalConfig::default()
        };
        config.check_shape().ok()?;
        Some(Self { config, identity: header.identity() })
    }
}

/// Where a flush stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Part of the unbroken log.
    Log,
    /// Behind its end: whole in itself, but what comes before it is missing.
    Behind,
}

/// One flush.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlushView {
    pub segment: SegmentNo,
    /// Offset of its header in the segment's file, bytes.
    pub offset: u64,
    pub lsn: Lsn,
    /// Position behind its padding.
    pub end: Lsn,
    /// Everything before this was durable when the flush was made.
    pub durable: Lsn,
    /// Written through a descriptor with O_DSYNC.
    pub sync: bool,
    pub place: Place,
    pub records: Vec<RecordView>,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordView {
    pub lsn: Lsn,
    pub group: GroupId,
    pub content: Content,
}

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    HardState(HardState),
    /// Where the group's log begins; `anew`: without any entry that was logged before.
    LogStart {
        start: LogStart,
        anew: bool,
    },
    /// Contiguous blocks.
    Blocks {
        first: Index,
        last: Index,
        /// Of the first and of the last block.
        terms: (Term, Term),
        blocks: u32,
        bytes: u32,
        /// The first one replaces what the group logged from its index on.
        truncates: bool,
    },
    /// The flush verifies and the record is of no known shape.
    Unknown,
}

/// The place where a log breaks off although something valid lies behind it or was durable beyond it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub segment: SegmentNo,
    /// In the segment's file, bytes.
    pub offset: u64,
    pub lsn: Lsn,
    /// Rot: the log was durable beyond this place. Otherwise the torn end of a write that nobody was
    /// told of.
    pub was_durable: bool,
    /// Groups that the damaged bytes seem to name. Unverified: the damage may be in the names.
    pub groups: Vec<GroupId>,
}

/// Runs recovery over a log and then shows each flush, in the order of the files. `mark`: the durable
/// position that the boot record remembers.
pub fn inspect(
    shape: &LogShape,
    files: &mut dyn SegmentSource,
    mark: Lsn,
    mut show: impl FnMut(&FlushView),
) -> Result<(Recovered, Option<Damage>), WalError> {
    let LogShape { config, identity } = shape;
    let recovered = recover_from(*config, *identity, files, mark)?;
    let mut numbers = files.segments();
    numbers.sort_unstable();
    for no in numbers {
        let mut scan = Scan::new(config, files, no);
        let mut offset = config.lead() as u64;
        while let Some(flush) = scan.find_flush(offset)? {
            let view = view(config, no, &flush, recovered.end);
            offset = view.offset + flush.end.since(flush.lsn);
            show(&view);
        }
    }
    let damage = damage(config, files, &recovered)?;
    Ok((recovered, damage))
}

fn view(config: &WalConfig, segment: SegmentNo, flush: &Flush, end: Lsn) -> FlushView {
    let front = flush.lsn.plus(FLUSH_HEADER_BYTES as u64);
    let records = Records { bytes: &flush.payload, at: 0 };
    FlushView {
        segment,
        offset: config.offset_of(flush.lsn),
        lsn: flush.lsn,
        end: flush.end,
        durable: Lsn(flush.header.durable),
        sync: flush.header.flags & FLAG_SYNC != 0,
        place: if flush.lsn < end { Place::Log } else { Place::Behind },
        records: records.flatten().map(|record| record_view(front, &record)).collect(),
    }
}

fn record_view(front: Lsn, record: &Record<'_>) -> RecordView {
    let content = match record.header.kind {
        KIND_HARD_STATE => HardStateBytes::decode(record.payload).map(Content::HardState),
        KIND_LOG_START => LogStartBytes::decode(record.payload)
            .map(|start| Content::LogStart { start, anew: record.header.flags & FLAG_ANEW != 0 }),
        KIND_BLOCKS => blocks(record),
        _ => None,
    };
    RecordView {
        lsn: front.plus(record.at as u64),
        group: GroupId(record.header.group),
        content: content.unwrap_or(Content::Unknown),
    }
}

fn blocks(record: &Record<'_>) -> Option<Content> {
    let mut rest = record.payload;
    let mut ends: Option<(BlockHeader, BlockHeader)> = None;
    let mut count = 0;
    while !rest.is_empty() {
        let (header, _) = BlockHeader::read_from_prefix(rest).ok()?;
        let size = header.size as usize;
        rest = rest.get(size.max(HEADER_BYTES)..)?;
        ends = Some((ends.map_or(header, |(first, _)| first), header));
        count += 1;
    }
    let (first, last) = ends?;
    Some(Content::Blocks {
        first: Index(first.first),
        last: Index(last.first.saturating_add(u64::from(last.count)).saturating_sub(1)),
        terms: (Term(first.term), Term(last.term)),
        blocks: count,
        bytes: record.payload.len() as u32,
        truncates: record.header.flags & FLAG_TRUNCATES != 0,
    })
}

fn damage(
    config: &WalConfig,
    files: &mut dyn SegmentSource,
    recovered: &Recovered,
) -> Result<Option<Damage>, WalError> {
    let was_durable = match recovered.verdict {
        Verdict::Empty | Verdict::Clean => return Ok(None),
        Verdict::TornTail => false,
        Verdict::Rot { .. } => true,
    };
    // The next flush of a full segment begins behind the following one's header.
    let mut lsn = recovered.end;
    if config.offset_of(lsn) == 0 {
        lsn = lsn.plus(config.lead() as u64);
    }
    let (segment, offset) = (config.segment_of(lsn), config.offset_of(lsn));
    let mut groups = Vec::new();
    if files.segments().contains(&segment) {
        groups = Scan::new(config, files, segment).groups_at(offset)?;
    }
    Ok(Some(Damage { segment, offset, lsn, was_durable, groups }))
}

#[cfg(test)]
#[path = "tests/inspect.rs"]
mod tests;
