//! Where a group's entries lie in the log, in memory: runs of contiguous indices.

use std::collections::{BTreeMap, VecDeque};

use super::SegmentNo;
use super::config::WalConfig;
use super::record::{HARD_STATE_BYTES, LOG_START_BYTES, RECORD_HEADER_BYTES};
use super::segment::{Need, Refs};
use crate::ids::{GroupId, HardState, Index, LogStart, Lsn};

/// Two records of a group share a run when no more than this lies between them,
const MERGE_GAP_BYTES: u64 = 4096;
/// and the run stays within this many bytes, so that a read that enters it late wastes little.
pub(super) const RUN_BYTES_MAX: u64 = 128 << 10;

/// Indices `first..=last` in the records between `lsn` and `lsn + bytes` of one flush. Records of
/// other groups may lie between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    pub first: Index,
    pub last: Index,
    pub lsn: Lsn,
    pub bytes: u32,
}

const _: () = assert!(size_of::<Run>() == 32);

impl Run {
    fn end(&self) -> u64 {
        self.lsn.0 + u64::from(self.bytes)
    }
}

#[derive(Debug, Default)]
pub(super) struct GroupLog {
    pub runs: VecDeque<Run>,
    pub state: HardState,
    /// Segment of the latest hard state; `None` before the first.
    pub state_in: Option<SegmentNo>,
    /// Where the log begins, by a record of its own ...
    pub start: LogStart,
    /// ... in this segment; `None`: there is no such record, the log was never cut.
    pub start_in: Option<SegmentNo>,
}

/// All groups of the shard.
#[derive(Debug)]
pub(super) struct LogIndex {
    config: WalConfig,
    pub groups: BTreeMap<GroupId, GroupLog>,
}

impl LogIndex {
    pub fn new(config: WalConfig) -> Self {
        Self { config, groups: BTreeMap::new() }
    }

    /// Notes a record that was staged or recovered. `flush` is the position of its flush header.
    pub fn push(&mut self, refs: &mut Refs, group: GroupId, run: Run, flush: Lsn, truncates: bool) {
        if truncates {
            self.cut(refs, group, run.first, Lsn(run.end()));
        }
        let log = self.groups.entry(group).or_default();
        if let Some(last) = log.runs.back_mut() {
            assert_eq!(run.first, last.last.next(), "a group's entries are contiguous");
            let adjacent = last.lsn > flush && run.lsn.since(Lsn(last.end())) <= MERGE_GAP_BYTES;
            let span = run.end() - last.lsn.0;
            if adjacent && !truncates && span <= RUN_BYTES_MAX {
                last.last = run.last;
                last.bytes = span as u32;
                return;
            }
        }
        let follows = !log.runs.is_empty() || run.first > log.start.index;
        assert!(follows || log.start_in.is_none(), "entries lie behind where the log begins");
        refs.hold(self.config.segment_of(run.lsn), Need::Run);
        log.runs.push_back(run);
    }

    /// Forgets the entries from `from` on; `after` is the end of the record that replaces them. Of a
    /// run that began before the log did nothing may be left.
    pub fn cut(&mut self, refs: &mut Refs, group: GroupId, from: Index, after: Lsn) {
        let Some(log) = self.groups.get_mut(&group) else { return };
        while let Some(run) = log.runs.back_mut() {
            if run.first < from {
                run.last = run.last.min(from.prev());
                if log.start_in.is_none() || run.last > log.start.index {
                    return;
                }
            }
            refs.drop(self.config.segment_of(run.lsn), Need::Run, after);
            log.runs.pop_back();
        }
    }

    /// Forgets the entries through `through`; a run that reaches beyond stays whole. `after`: the end
    /// of the record that says so.
    pub fn release(&mut self, refs: &mut Refs, group: GroupId, through: Index, after: Lsn) {
        let Some(log) = self.groups.get_mut(&group) else { return };
        while log.runs.front().is_some_and(|run| run.last <= through) {
            let run = log.runs.pop_front().expect("looked at");
            refs.drop(self.config.segment_of(run.lsn), Need::Run, after);
        }
    }

    /// Notes where the latest hard state of a group is. (term, vote) never goes back and never
    /// changes within a term (durability.md §4, bug 3).
    pub fn set_state(&mut self, refs: &mut Refs, group: GroupId, state: HardState, lsn: Lsn) {
        let log = self.groups.entry(group).or_default();
        if let Some(old) = log.state_in {
            assert!(!regresses(log.state, state), "{group:?}: {:?} then {state:?}", log.state);
            let end = lsn.plus((RECORD_HEADER_BYTES + HARD_STATE_BYTES) as u64);
            refs.drop(old, Need::State, end);
        }
        let segment = self.config.segment_of(lsn);
        refs.hold(segment, Need::State);
        log.state = state;
        log.state_in = Some(segment);
    }

    /// Notes where a group's log begins from here on. `anew`: no entry logged before belongs to it.
    pub fn set_start(
        &mut self,
        refs: &mut Refs,
        group: GroupId,
        (start, anew): (LogStart, bool),
        lsn: Lsn,
    ) {
        let end = lsn.plus((RECORD_HEADER_BYTES + LOG_START_BYTES) as u64);
        if anew {
            self.cut(refs, group, Index::ZERO, end);
        } else {
            self.release(refs, group, start.index, end);
        }
        let log = self.groups.entry(group).or_default();
        if let Some(old) = log.start_in {
            refs.drop(old, Need::State, end);
        }
        let segment = self.config.segment_of(lsn);
        refs.hold(segment, Need::State);
        (log.start, log.start_in) = (start, Some(segment));
    }

    /// Forgets all of a group but its hard state, which says that it has ended; `after` is the end of
    /// that record.
    pub fn end(&mut self, refs: &mut Refs, group: GroupId, after: Lsn) {
        self.cut(refs, group, Index::ZERO, after);
        let log = self.groups.entry(group).or_default();
        if let Some(old) = log.start_in.take() {
            refs.drop(old, Need::State, after);
        }
        log.start = LogStart::default();
    }

    /// The highest end of a record's blocks, at or below `index`, that the group has in the log.
    pub fn edge_at_most(&self, group: GroupId, index: Index) -> Option<Index> {
        let runs = &self.groups.get(&group)?.runs;
        let at = runs.partition_point(|run| run.last <= index).checked_sub(1)?;
        Some(runs[at].last)
    }

    /// The runs from the one that holds `from`, at least that one.
    pub fn runs_from(&self, group: GroupId, from: Index) -> Option<impl Iterator<Item = &Run>> {
        let runs = &self.groups.get(&group)?.runs;
        let at = runs.partition_point(|run| run.last < from);
        runs.get(at).filter(|run| run.first <= from)?;
        Some(runs.range(at..))
    }
}

/// Would `new` after `old` take back a term or a vote?
pub(super) fn regresses(old: HardState, new: HardState) -> bool {
    let vote_changed = old.vote.is_some() && old.vote != new.vote;
    new.term < old.term || (new.term == old.term && vote_changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, Term};

    const G: GroupId = GroupId(1);

    fn run(first: u64, last: u64, lsn: u64) -> Run {
        Run { first: Index(first), last: Index(last), lsn: Lsn(lsn), bytes: 100 }
    }

    fn fresh() -> (LogIndex, Refs) {
        let mut refs = Refs::default();
        refs.open(SegmentNo(1));
        (LogIndex::new(WalConfig { segment_bytes: 1 << 20, ..WalConfig::default() }), refs)
    }

    const BASE: u64 = 1 << 20;

    #[test]
    fn neighbours_of_one_flush_share_a_run_and_a_replacement_does_not() {
        let (mut index, mut refs) = fresh();
        let flush = Lsn(BASE + 4096);
        index.push(&mut refs, G, run(1, 10, BASE + 4160), flush, false);
        index.push(&mut refs, G, run(11, 12, BASE + 4300), flush, false);
        assert_eq!(index.groups[&G].runs.len(), 1);
        index.push(&mut refs, G, run(5, 8, BASE + 4400), flush, true);
        let runs: Vec<_> = index.groups[&G].runs.iter().map(|r| (r.first.0, r.last.0)).collect();
        assert_eq!(runs, [(1, 4), (5, 8)]);
        index.push(&mut refs, G, run(9, 9, BASE + 9000), Lsn(BASE + 8192), false);
        assert_eq!(index.groups[&G].runs.len(), 3, "another flush, another run");
    }

    #[test]
    fn a_read_finds_the_run_that_holds_its_index() {
        let (mut index, mut refs) = fresh();
        index.push(&mut refs, G, run(3, 10, BASE + 4160), Lsn(BASE + 4096), false);
        index.push(&mut refs, G, run(11, 20, BASE + 8256), Lsn(BASE + 8192), false);
        let first = |from| index.runs_from(G, Index(from)).map(|mut r| r.next().unwrap().first.0);
        assert_eq!([first(2), first(3), first(10), first(11)], [None, Some(3), Some(3), Some(11)]);
        assert_eq!(first(21), None);
    }

    #[test]
    fn release_and_cut_give_back_what_they_held() {
        let (mut index, mut refs) = fresh();
        index.push(&mut refs, G, run(1, 10, BASE + 4160), Lsn(BASE + 4096), false);
        index.push(&mut refs, G, run(11, 20, BASE + 8256), Lsn(BASE + 8192), false);
        index.release(&mut refs, G, Index(15), Lsn::ZERO);
        assert_eq!(index.groups[&G].runs.len(), 1);
        index.cut(&mut refs, G, Index(11), Lsn::ZERO);
        assert!(index.groups[&G].runs.is_empty());
    }

    #[test]
    fn a_vote_never_changes_within_its_term() {
        let state = |term, vote| HardState { term: Term(term), vote, commit: Index::ZERO };
        let [a, b] = [Some(NodeId(1)), Some(NodeId(2))];
        assert!(regresses(state(2, a), state(2, b)));
        assert!(regresses(state(2, a), state(2, None)));
        assert!(regresses(state(2, a), state(1, a)));
        assert!(!regresses(state(2, None), state(2, b)));
        assert!(!regresses(state(2, a), state(3, None)));
    }
}
