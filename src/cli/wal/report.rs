//! What `verify` and `stats` say about a log.

use std::fmt::Write;

use serde::Serialize;

use super::directory::LogDir;
use super::{Failure, unreadable};
use crate::wal::{Content, Damage, Recovered, SegmentNo, SegmentSource, Verdict, inspect};

/// Files without a sound header are read in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// One log, summed up.
#[derive(Debug, Serialize)]
pub(super) struct LogReport {
    directory: String,
    node: u32,
    shard: u32,
    /// "empty", "clean", "torn tail" (normal after a crash) or "rot".
    verdict: &'static str,
    segment_files: usize,
    segment_bytes: u64,
    /// Files that hold nothing of the log.
    spare_files: usize,
    flushes: u64,
    records: u64,
    /// Bytes of blocks, headers included.
    block_bytes: u64,
    /// The unbroken log ends here ...
    end: u64,
    /// ... and is known to have been durable up to here.
    durable: u64,
    damage: Option<DamageReport>,
    groups: Vec<GroupReport>,
}

#[derive(Debug, Serialize)]
struct DamageReport {
    segment: u64,
    offset: u64,
    lsn: u64,
    was_durable: bool,
    groups: Vec<u32>,
}

#[derive(Debug, Serialize)]
struct GroupReport {
    group: u32,
    first: u64,
    last: u64,
    last_term: u64,
    term: u64,
    /// 0 = none in this term.
    vote: u32,
    commit: u64,
}

impl From<Damage> for DamageReport {
    fn from(damage: Damage) -> Self {
        Self {
            segment: damage.segment.0,
            offset: damage.offset,
            lsn: damage.lsn.0,
            was_durable: damage.was_durable,
            groups: damage.groups.iter().map(|group| group.0).collect(),
        }
    }
}

impl LogReport {
    pub fn of(log: &mut LogDir) -> Result<Self, Failure> {
        let Some(shape) = log.shape else { return Self::without_headers(log) };
        let (mut block_bytes, files) = (0, log.files.segments().len());
        let found = inspect(&shape, &mut log.files, log.mark, |flush| {
            for record in &flush.records {
                if let Content::Blocks { bytes, .. } = record.content {
                    block_bytes += u64::from(bytes);
                }
            }
        });
        let (recovered, damage) = found.map_err(|error| unreadable(log, error))?;
        Ok(Self {
            directory: log.path.display().to_string(),
            node: shape.identity.node,
            shard: shape.config.shard,
            verdict: match recovered.verdict {
                Verdict::Empty => "empty",
                Verdict::Clean => "clean",
                Verdict::TornTail => "torn tail",
                Verdict::Rot { .. } => "rot",
            },
            segment_files: files,
            segment_bytes: shape.config.segment_bytes,
            spare_files: recovered.spares.len(),
            flushes: recovered.flushes,
            records: recovered.records,
            block_bytes,
            end: recovered.end.0,
            durable: recovered.durable.0,
            damage: damage.map(DamageReport::from),
            groups: groups(&recovered),
        })
    }

    /// No segment says whose log this is: nothing was ever written, or every header is damaged.
    fn without_headers(log: &mut LogDir) -> Result<Self, Failure> {
        let lost = log.mark.0 > 0;
        if lost {
            let text = "no segment has a sound header, and the log was durable";
            return Err(unreadable(log, format!("rot: {text} through {}", log.mark.0)));
        }
        if let Some(segment) = first_with_bytes(log)? {
            let text = "no segment has a sound header, yet there is something in segment";
            let meaning = "headers are damaged, or the very first write was torn";
            return Err(unreadable(log, format!("{text} {:012}.wal: {meaning}", segment.0)));
        }
        Ok(Self {
            directory: log.path.display().to_string(),
            node: 0,
            shard: 0,
            verdict: "empty",
            segment_files: log.files.segments().len(),
            segment_bytes: 0,
            spare_files: log.files.segments().len(),
            flushes: 0,
            records: 0,
            block_bytes: 0,
            end: 0,
            durable: 0,
            damage: None,
            groups: Vec::new(),
        })
    }

    pub fn is_rotten(&self) -> bool {
        self.verdict == "rot"
    }

    /// One line, and one more for what is damaged.
    pub fn verdict(&self) -> String {
        let Self { directory, verdict, flushes, records, end, durable, .. } = self;
        let mut text = format!(
            "{directory}: {verdict}; {flushes} flushes, {records} records, unbroken through {end}, \
             known durable through {durable}\n"
        );
        let Some(damage) = &self.damage else { return text };
        let DamageReport { segment, offset, lsn, was_durable, groups } = damage;
        let groups = match groups.as_slice() {
            [] => "it names no group any more".into(),
            groups => format!("it seems to be of group {groups:?}"),
        };
        let meaning = match was_durable {
            true => "it was durable: every group of this shard has to recover from its peers",
            false => "it was never durable: nobody was told of it, the next start cuts it off",
        };
        let _ = writeln!(
            text,
            "  damaged at segment {segment:012}.wal offset {offset} (position {lsn}): {groups}; \
             {meaning}"
        );
        text
    }

    /// The verdict, sizes, and a line for each group.
    pub fn table(&self) -> String {
        let mut text = self.verdict();
        let _ = writeln!(
            text,
            "  node {} shard {}: {} segment files of {} MiB, {} spare; {:.1} MiB of blocks",
            self.node,
            self.shard,
            self.segment_files,
            self.segment_bytes >> 20,
            self.spare_files,
            self.block_bytes as f64 / f64::from(1 << 20),
        );
        let _ = writeln!(
            text,
            "  {:>8} {:>12} {:>12} {:>8} {:>8} {:>6} {:>12}",
            "group", "first", "last", "of term", "term", "vote", "commit"
        );
        for group in &self.groups {
            let GroupReport { group, first, last, last_term, term, vote, commit } = group;
            let _ = writeln!(
                text,
                "  {group:>8} {first:>12} {last:>12} {last_term:>8} {term:>8} {vote:>6} {commit:>12}"
            );
        }
        text
    }
}

/// The first segment that is not all zeros.
fn first_with_bytes(log: &mut LogDir) -> Result<Option<SegmentNo>, Failure> {
    for segment in log.files.segments() {
        let mut at = 0;
        loop {
            let piece = log.files.read(segment, at, PIECE_BYTES);
            let piece = piece.map_err(|error| unreadable(log, error))?;
            if piece.iter().any(|byte| *byte != 0) {
                return Ok(Some(segment));
            }
            if piece.is_empty() {
                break;
            }
            at += piece.len() as u64;
        }
    }
    Ok(None)
}

fn groups(recovered: &Recovered) -> Vec<GroupReport> {
    let report = |(id, group): (&crate::ids::GroupId, &crate::wal::RecoveredGroup)| GroupReport {
        group: id.0,
        first: if group.last.0 == 0 { 0 } else { group.first.0 },
        last: group.last.0,
        last_term: group.last_term().0,
        term: group.hard_state.term.0,
        vote: group.hard_state.vote.map_or(0, |node| node.0),
        commit: group.hard_state.commit.0,
    };
    let all = recovered.groups.iter().filter(|(_, group)| !group.hard_state.is_ended());
    all.map(report).collect()
}

/// One array on one line.
pub(super) fn json(reports: &[LogReport]) -> String {
    serde_json::to_string(reports).expect("plain data") + "\n"
}
