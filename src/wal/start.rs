//! Where groups' logs begin, and how the files of the log come free.
//!
//! ```text
//! snapshot published ──▶ begin_at: record {group, index}, synced ──▶ runs through `index` forgotten
//!                                                                        │ once it is durable
//! front segment held by hard states and log starts alone ──▶ these are   ▼
//! logged again at the head ─────────────────────────────────▶ segment used again
//! ... or by entries that nobody can say are committed ──▶ likewise, in one flush
//! ```
//!
//! The order is what matters (bugs.md 13, 14): a record that takes a need away is durable before the
//! segment that was needed is touched (`Live::free_at`), and segments go lowest first. A crash at any
//! step leaves the old bytes, the new record, or both.

use zerocopy::IntoBytes;

use super::index::GroupLog;
use super::record::{
    FLAG_ANEW, KIND_LOG_START, LOG_START_BYTES, LogStartBytes, RECORD_HEADER_BYTES, record_header,
};
use super::{NEVER, Wal};
use crate::block::Block;
use crate::ids::{GroupId, HardState, Index, LogStart, Lsn};

impl Wal {
    /// The group's log begins behind `start` from here on: a snapshot holds the rest, and is already
    /// published. Always synced. `anew`: a snapshot was installed in place of the log, none of whose
    /// entries belongs to it any more.
    ///
    /// # Panics
    /// When the log began further on already, unless `anew`.
    pub fn begin_at(&mut self, group: GroupId, start: LogStart, anew: bool) -> Lsn {
        if self.poisoned.is_some() {
            return NEVER;
        }
        let known = self.index.groups.get(&group).filter(|log| log.start_in.is_some());
        let back = known.is_some_and(|log| start.index < log.start.index);
        assert!(anew || !back, "{group:?}: a log does not begin further back than it did");
        let end = self.log_start(group, start, anew);
        self.move_front();
        end
    }

    /// Logs the group's hard state again, with a commit index that the next start is to know of.
    pub fn note_commit(&mut self, group: GroupId, commit: Index) {
        let known = self.index.groups.get(&group).filter(|log| log.state_in.is_some());
        if let Some(state) =
            known.map(|log| log.state).filter(|s| s.commit < commit && !s.is_ended())
        {
            self.hard_state(group, HardState { commit, ..state });
        }
    }

    /// The group has ended: none of its entries is needed, nor where they began. A hard state of the
    /// highest term there is says so for good; it is carried along like any other (64 bytes). Always
    /// synced, and nothing may be logged for the group afterwards.
    pub fn end_group(&mut self, group: GroupId) -> Lsn {
        if self.poisoned.is_some() {
            return NEVER;
        }
        let end = self.hard_state(group, HardState::ENDED);
        self.index.end(&mut self.segments.refs, group, end);
        self.move_front();
        end
    }

    fn log_start(&mut self, group: GroupId, start: LogStart, anew: bool) -> Lsn {
        let flags = if anew { FLAG_ANEW } else { 0 };
        let header = record_header(group, KIND_LOG_START, flags, LOG_START_BYTES, 0);
        let (lsn, _) = self.writer.push_header(header, true, true);
        self.writer.push_bytes(LogStartBytes::encode(start).as_bytes());
        self.note_record(RECORD_HEADER_BYTES + LOG_START_BYTES);
        self.index.set_start(&mut self.segments.refs, group, (start, anew), lsn);
        self.writer.end()
    }

    /// Forgets entries through `through` without a record of it: a later start finds a log that
    /// begins somewhere, and must know by itself that nothing is missing.
    pub fn release(&mut self, group: GroupId, through: Index) {
        self.index.release(&mut self.segments.refs, group, through, Lsn::ZERO);
        if self.poisoned.is_none() {
            self.move_front();
        }
    }

    /// Logs again what alone holds the front segment: hard states and log starts, a few dozen bytes
    /// for each group. Segments that nothing needs are used again, lowest first.
    fn move_front(&mut self) {
        while let Some(front) = self.segments.held_by_states() {
            let here = Some(front);
            let groups = &self.index.groups;
            let held = groups.iter().filter(|(_, l)| l.state_in == here || l.start_in == here);
            let moved: Vec<_> = held
                .map(|(group, l)| {
                    let state = (l.state_in == here).then_some(l.state);
                    (*group, state, (l.start_in == here).then_some(l.start))
                })
                .collect();
            for (group, state, start) in moved {
                if let Some(state) = state {
                    self.hard_state(group, state);
                }
                if let Some(start) = start {
                    self.log_start(group, start, false);
                }
            }
        }
    }

    /// Whether what the group has logged from `from` on is little enough to be logged again.
    pub fn may_log_again(&self, group: GroupId, from: Index) -> bool {
        let runs = self.index.runs_from(group, from);
        let bytes = runs.map(|runs| runs.map(|run| u64::from(run.bytes)).sum::<u64>());
        bytes.is_some_and(|bytes| bytes <= self.again_bytes_max())
    }

    /// Of one group at once: it goes out in one write, and votes wait behind it.
    fn again_bytes_max(&self) -> u64 {
        (4 * u64::from(self.config.flush_bytes_max)).min(self.config.segment_bytes / 4)
    }

    /// Logs entries again that hold the front and that no snapshot can stand for: `blocks` are all
    /// that the group has, from `first` to its last, and all of them are written. `false`: they are
    /// too many.
    ///
    /// They replace themselves in **one** flush. A crash leaves the old copy, or all of the new one;
    /// the old one is not touched before the new one is durable. Cut in two, the first half would
    /// replace more than it brings.
    pub fn log_again(&mut self, group: GroupId, blocks: &[Block]) -> bool {
        let bytes: usize = blocks.iter().map(|block| block.size() + RECORD_HEADER_BYTES).sum();
        if self.poisoned.is_some() || blocks.is_empty() || bytes as u64 > self.again_bytes_max() {
            return false;
        }
        self.writer.fit(bytes);
        self.append(group, blocks, true, true);
        self.move_front();
        true
    }

    /// Where a group's log may be cut: the highest edge of its records at or below `index`.
    pub fn edge_at_most(&self, group: GroupId, index: Index) -> Option<Index> {
        self.index.edge_at_most(group, index)
    }

    /// Groups whose entries hold the front segment, when the log takes more than `bytes_max` bytes:
    /// they are to be snapshotted, so that it can go. Walks over all groups.
    ///
    /// A front that is held by states alone is moved here as well: it may have come up when the one
    /// before it went, and no group may ever cut its log again.
    pub fn pinning(&mut self, bytes_max: u64) -> Vec<GroupId> {
        if self.log_bytes() <= bytes_max || self.poisoned.is_some() {
            return Vec::new();
        }
        self.move_front();
        let Some(front) = self.segments.front() else { return Vec::new() };
        let lowest = |log: &GroupLog| log.runs.front().map(|run| self.config.segment_of(run.lsn));
        let holds = |(_, log): &(&GroupId, &GroupLog)| lowest(log) == Some(front);
        self.index.groups.iter().filter(holds).map(|(group, _)| *group).collect()
    }

    /// Bytes of the files that hold the log.
    pub fn log_bytes(&self) -> u64 {
        self.segments.refs.len() as u64 * self.config.segment_bytes
    }

    /// Most of the files that there may be hold the log already.
    pub fn is_crowded(&self) -> bool {
        4 * self.segments.refs.len() as u64 > 3 * u64::from(self.config.segments_max)
    }

    /// The lowest segment of the log.
    pub fn front_segment(&self) -> Option<super::SegmentNo> {
        self.segments.front()
    }
}
