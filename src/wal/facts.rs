//! What a write to the log says, read back from its bytes alone: for an observer that keeps its own
//! account of what is durable and must not trust the log's.

use zerocopy::FromBytes;

use super::config::WalConfig;
use super::ops::SegmentNo;
use super::record::{
    FLAG_ANEW, FLAG_TRUNCATES, FLUSH_HEADER_BYTES, FlushHeader, HardStateBytes, KIND_BLOCKS,
    KIND_HARD_STATE, KIND_LOG_START, LogStartBytes, Record, Records,
};
use super::recovery::Recovered;
use crate::block::{BlockHeader, BlockKind, HEADER_BYTES};
use crate::ids::{GroupId, HardState, Index, LogStart, Lsn, Term};

/// One thing that a flush holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    State {
        group: GroupId,
        state: HardState,
    },
    /// Where the group's log begins. `anew`: without any entry that was logged before.
    Start {
        group: GroupId,
        start: LogStart,
        anew: bool,
    },
    /// One block. `truncates`: it replaces what the group logged from `first` on.
    Block {
        group: GroupId,
        first: Index,
        last: Index,
        term: Term,
        truncates: bool,
        membership: bool,
    },
}

/// The frame around the facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlushFacts {
    /// Position of the flush header.
    pub lsn: Lsn,
    /// Position behind the padding.
    pub end: Lsn,
    pub checksum: u32,
    /// Checksum of the flush before.
    pub previous: u32,
    /// Everything before this was durable, says the log.
    pub durable: Lsn,
}

/// Reads the one flush in a write of `bytes` at `offset` of `segment`; its facts go to `found`.
pub(crate) fn read_flush(
    config: &WalConfig,
    segment: SegmentNo,
    offset: u64,
    bytes: &[u8],
    mut found: impl FnMut(Fact),
) -> Result<FlushFacts, &'static str> {
    let lead = if offset == 0 { config.lead() } else { 0 };
    let flush = bytes.get(lead..).ok_or("a segment header without a flush")?;
    let lsn = config.start_of(segment).plus(offset + lead as u64);
    let header = FlushHeader::peek(flush, lsn, flush.len() as u64).ok_or("no flush header")?;
    let flush = &flush[..header.size()];
    if !header.verifies(flush, segment) {
        return Err("a flush that does not verify");
    }
    let mut count = 0;
    for record in (Records { bytes: &flush[FLUSH_HEADER_BYTES..], at: 0 }) {
        read_record(&record?, &mut found)?;
        count += 1;
    }
    if count != header.records {
        return Err("the number of records is not what the header says");
    }
    let end = lsn.plus(config.padded(header.size()) as u64);
    let (checksum, previous, durable) = (header.checksum, header.previous, Lsn(header.durable));
    Ok(FlushFacts { lsn, end, checksum, previous, durable })
}

fn read_record(record: &Record<'_>, found: &mut impl FnMut(Fact)) -> Result<(), &'static str> {
    let group = GroupId(record.header.group);
    match record.header.kind {
        KIND_HARD_STATE => {
            let state = HardStateBytes::decode(record.payload).ok_or("hard state size")?;
            found(Fact::State { group, state });
            Ok(())
        }
        KIND_LOG_START => {
            let start = LogStartBytes::decode(record.payload).ok_or("log start")?;
            let anew = record.header.flags & FLAG_ANEW != 0;
            found(Fact::Start { group, start, anew });
            Ok(())
        }
        KIND_BLOCKS => read_blocks(record, group, found),
        _ => Err("unknown record kind"),
    }
}

fn read_blocks(
    record: &Record<'_>,
    group: GroupId,
    found: &mut impl FnMut(Fact),
) -> Result<(), &'static str> {
    let mut truncates = record.header.flags & FLAG_TRUNCATES != 0;
    let mut rest = record.payload;
    while !rest.is_empty() {
        let (header, _) = BlockHeader::read_from_prefix(rest).map_err(|_| "block cut short")?;
        let size = header.size as usize;
        if size < HEADER_BYTES || size > rest.len() || header.count == 0 {
            return Err("block of impossible size");
        }
        let (first, term) = (Index(header.first), Term(header.term));
        let last = first.plus(u64::from(header.count) - 1);
        let membership = header.kind == BlockKind::Membership as u8;
        found(Fact::Block { group, first, last, term, truncates, membership });
        truncates = false;
        rest = &rest[size..];
    }
    Ok(())
}

impl Recovered {
    /// Segments of the unbroken log with the end of what each holds.
    pub(crate) fn segment_ends(&self) -> &[(SegmentNo, Lsn)] {
        &self.ends
    }

    /// Where the next flush continues: the end of the last one and its checksum.
    pub(crate) fn chain_end(&self) -> (Lsn, u32) {
        (self.chain.end, self.chain.checksum)
    }

    /// Whether the group's hard state was found behind damage, and is not in the log until it is
    /// logged again.
    pub(crate) fn is_restated(&self, group: GroupId) -> bool {
        self.restate.contains(&group)
    }
}
