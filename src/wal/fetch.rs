//! Reading blocks back that are no longer in memory: one disk read of one stretch of one segment.

use bytes::Bytes;

use super::config::WalConfig;
use super::index::{LogIndex, Run};
use super::ops::{OpId, ReadError, SegmentNo};
use super::record::{KIND_BLOCKS, Records};
use crate::block::Block;
use crate::ids::{GroupId, Index, Lsn};

/// Runs further apart than this are not read in one go.
const READ_GAP_BYTES: u64 = 64 << 10;

/// A read under way: which runs it covers and what was asked.
#[derive(Debug)]
pub(super) struct Fetch {
    pub op: OpId,
    pub token: u64,
    pub group: GroupId,
    from: Index,
    through: Index,
    bytes_max: usize,
    pub segment: SegmentNo,
    /// Block-aligned position of the first byte read.
    base: Lsn,
    pub len: usize,
    runs: Vec<Run>,
}

/// What the caller asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub token: u64,
    pub group: GroupId,
    pub from: Index,
    pub through: Index,
    pub bytes_max: u32,
}

impl Fetch {
    /// Chooses the stretch: the run that holds `from`, and its followers while they lie near in the
    /// same segment, are written, and `bytes_max` is not exceeded.
    pub fn plan(
        op: OpId,
        wanted: Wanted,
        config: &WalConfig,
        index: &LogIndex,
        written: Lsn,
    ) -> Result<Self, ReadError> {
        let Wanted { token, group, from, through, bytes_max } = wanted;
        let mut runs = index.runs_from(group, from).ok_or(ReadError::NotFound(from))?;
        let first = *runs.next().expect("at least the run that holds it");
        if end_of(&first) > written {
            return Err(ReadError::NotYet(from));
        }
        let segment = config.segment_of(first.lsn);
        let mut chosen = vec![first];
        let mut end = end_of(&first);
        for run in runs {
            let near = config.segment_of(run.lsn) == segment
                && run.lsn.since(end) <= READ_GAP_BYTES
                && end_of(run).since(first.lsn) <= u64::from(bytes_max);
            if !near || run.first > through || end_of(run) > written {
                break;
            }
            chosen.push(*run);
            end = end_of(run);
        }
        let block = u64::from(config.block_bytes);
        let base = Lsn(first.lsn.0 / block * block);
        let len = end.since(base).next_multiple_of(block) as usize;
        let bytes_max = bytes_max as usize;
        Ok(Self { op, token, group, from, through, bytes_max, segment, base, len, runs: chosen })
    }

    /// Offset of the read in its segment.
    pub fn offset(&self, config: &WalConfig) -> u64 {
        config.offset_of(self.base)
    }

    /// Takes the blocks out of what was read. Each is checked again: header, body, group and place.
    pub fn blocks(&self, bytes: &Bytes) -> Result<Vec<Block>, ReadError> {
        let mut out = Vec::new();
        let mut taken = 0;
        for run in &self.runs {
            let from = out.last().map_or(self.from, |block: &Block| block.last().next());
            let rot = ReadError::Rot { group: self.group, index: from, lsn: run.lsn };
            let start = run.lsn.since(self.base) as usize;
            let end = start + run.bytes as usize;
            if bytes.len() < end {
                return Err(rot);
            }
            let done = self
                .take_run(run, bytes.slice(start..end), &mut out, &mut taken)
                .ok_or(rot.clone())?;
            if done {
                break;
            }
        }
        let first = self.runs.first().expect("a plan has a run");
        let rot = ReadError::Rot { group: self.group, index: self.from, lsn: first.lsn };
        if out.is_empty() { Err(rot) } else { Ok(out) }
    }

    /// `None`: rot. `Some(true)`: enough.
    fn take_run(
        &self,
        run: &Run,
        bytes: Bytes,
        out: &mut Vec<Block>,
        taken: &mut usize,
    ) -> Option<bool> {
        for record in (Records { bytes: &bytes, at: 0 }) {
            let record = record.ok()?;
            if record.header.kind != KIND_BLOCKS || record.header.group != self.group.0 {
                continue;
            }
            let mut payload = bytes.slice_ref(record.payload);
            while !payload.is_empty() {
                let block = Block::decode(&mut payload).ok()?;
                // Behind `run.last` lies what a later record replaced.
                if block.last() < self.from || block.first() > run.last {
                    continue;
                }
                let due = out.last().is_none_or(|last| block.first() == last.last().next());
                if block.group() != self.group || !due {
                    return None;
                }
                if !out.is_empty()
                    && (block.first() > self.through || *taken + block.size() > self.bytes_max)
                {
                    return Some(true);
                }
                *taken += block.size();
                out.push(block);
            }
        }
        // The run promised its last index.
        (out.last().is_some_and(|block| block.last() == run.last)).then_some(false)
    }
}

fn end_of(run: &Run) -> Lsn {
    run.lsn.plus(u64::from(run.bytes))
}
