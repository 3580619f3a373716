//! The files of the log: which hold it, which are prepared ahead, which may be used again.
//!
//! ```text
//!   junk, freed        live (front ... head)              spares
//!   [3] [4]            [5] [6] [7] [8: head]              [9] [10]
//!   rename next        reference counted                  <= ready_through
//! ```
//!
//! Segments leave only at the front, in order, and one file is renamed at a time, so that after any
//! crash the files that are left are one contiguous stretch of the log.

use std::collections::VecDeque;

use super::config::WalConfig;
use super::ops::{DiskError, OpId, SegmentNo, Space};
use crate::ids::{Lsn, Tick};
use crate::mutants::{self, Mutant};

/// Wait after a full disk before the next try, microseconds.
const RETRY_US: u64 = 1_000_000;

/// A segment of the log and what still needs it.
#[derive(Clone, Debug)]
struct Live {
    no: SegmentNo,
    /// Runs of the index in it.
    runs: u32,
    /// Latest hard states and log starts of groups in it: small, and logged again to let it go.
    states: u32,
    /// Reads under way.
    pins: u32,
    /// It may go when the log is durable up to here: past each record that took a need away.
    free_at: Lsn,
}

/// Reference counts of the segments that hold the log, lowest number first (bug 14: an index that
/// points into a purged file).
#[derive(Debug, Default)]
pub(super) struct Refs(VecDeque<Live>);

/// What needs a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Run,
    /// A hard state or a log start.
    State,
    Read,
}

impl Live {
    fn count(&mut self, need: Need) -> &mut u32 {
        match need {
            Need::Run => &mut self.runs,
            Need::State => &mut self.states,
            Need::Read => &mut self.pins,
        }
    }
}

impl Refs {
    /// A segment joins the log.
    pub fn open(&mut self, no: SegmentNo) {
        assert!(self.0.back().is_none_or(|last| last.no < no), "segments join in order");
        self.0.push_back(Live { no, runs: 0, states: 0, pins: 0, free_at: Lsn::ZERO });
    }

    /// Adds the segments of `all` that are not there yet; nothing needs them, but they keep their
    /// place in the order.
    pub fn join(&mut self, all: &[SegmentNo]) {
        for &no in all {
            if let Err(at) = self.0.binary_search_by_key(&no, |live| live.no) {
                self.0.insert(at, Live { no, runs: 0, states: 0, pins: 0, free_at: Lsn::ZERO });
            }
        }
    }

    /// No segment goes before the log is durable up to here: after rot what was found behind the
    /// damage lies nowhere else until it is logged again.
    pub fn keep_until(&mut self, staged: Lsn) {
        self.0.iter_mut().for_each(|live| live.free_at = live.free_at.max(staged));
    }

    pub fn hold(&mut self, no: SegmentNo, need: Need) {
        *self.find(no).count(need) += 1;
    }

    /// Gives a need back. `after`: the end of the record that replaces what was needed, which must
    /// be durable before the old bytes go; `Lsn::ZERO` when nothing replaces it.
    pub fn drop(&mut self, no: SegmentNo, need: Need, after: Lsn) {
        let live = self.find(no);
        live.free_at = live.free_at.max(after);
        let count = live.count(need);
        assert!(*count > 0, "segment {no:?} released more often than held");
        *count -= 1;
    }

    fn find(&mut self, no: SegmentNo) -> &mut Live {
        if self.0.back().is_some_and(|last| last.no == no) {
            return self.0.back_mut().expect("looked at");
        }
        let at = self.0.binary_search_by_key(&no, |live| live.no);
        &mut self.0[at.expect("whatever is referenced is a live segment")]
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[derive(Debug)]
struct Preparing {
    op: OpId,
    recycle: Option<SegmentNo>,
}

#[derive(Debug)]
pub(super) struct Segments {
    config: WalConfig,
    pub refs: Refs,
    /// Files to use again before new ones are made.
    reusable: VecDeque<SegmentNo>,
    /// The same, once the log is durable up to there.
    held: (Lsn, Vec<SegmentNo>),
    /// Every segment up to this number that is not `reusable` exists.
    ready_through: SegmentNo,
    /// The segment that this start goes on in.
    first: SegmentNo,
    preparing: Option<Preparing>,
    full: Option<(Tick, String)>,
    retry_at: Tick,
    pub recycled: u64,
}

impl Segments {
    /// `refs` of the log so far, `reusable` files, and the number before the first new segment.
    pub fn new(
        config: WalConfig,
        refs: Refs,
        reusable: Vec<SegmentNo>,
        ready_through: SegmentNo,
    ) -> Self {
        Self {
            config,
            refs,
            reusable: reusable.into(),
            held: (Lsn::ZERO, Vec::new()),
            ready_through,
            first: ready_through.next(),
            preparing: None,
            full: None,
            retry_at: Tick::ZERO,
            recycled: 0,
        }
    }

    /// Files that the recovered log, which ends at `end`, does not need. What was recovered may lie in
    /// a volatile cache still: if power takes it, the next start looks for what it replaced, and after
    /// damage that is in these files. So they wait until it is durable.
    pub fn hold_back(&mut self, files: Vec<SegmentNo>, end: Lsn) {
        assert!(self.held.1.is_empty());
        self.held = (end, files);
    }

    /// The highest segment that staging has reached.
    pub fn head(&self) -> SegmentNo {
        self.refs.0.back().expect("a log has a head").no
    }

    /// May a flush go to `segment`?
    pub fn is_ready(&self, segment: SegmentNo) -> bool {
        segment <= self.ready_through
    }

    /// Prepared segments that staging has not reached.
    pub fn spares(&self) -> u64 {
        self.ready_through.0.saturating_sub(self.head().0)
    }

    /// Files that exist, the one being made included.
    fn files(&self) -> u64 {
        let made = self.refs.0.iter().filter(|live| live.no <= self.ready_through).count();
        let making = self.preparing.as_ref().is_some_and(|p| p.recycle.is_none());
        let renaming = self.preparing.as_ref().is_some_and(|p| p.recycle.is_some());
        let moved = u64::from(making) + u64::from(renaming);
        let unused = self.reusable.len() + self.held.1.len();
        made as u64 + self.spares() + unused as u64 + moved
    }

    /// The file to prepare now, if one is wanted and possible.
    pub fn prepare_due(&mut self, now: Tick) -> Option<(SegmentNo, Option<SegmentNo>)> {
        let ahead = self.head().0 + u64::from(self.config.spare_segments);
        let wanted = self.preparing.is_none() && self.ready_through.0 < ahead;
        if !wanted || !self.held.1.is_empty() || (self.full.is_some() && now < self.retry_at) {
            return None;
        }
        let next = self.ready_through.next();
        // A start goes on in a segment of its own whatever the bound: without it no vote could be
        // logged, and nothing could be cut that would make room.
        let possible = next == self.first || !self.reusable.is_empty() || self.files() < self.max();
        possible.then(|| (next, self.reusable.pop_front()))
    }

    pub fn prepare_issued(&mut self, op: OpId, recycle: Option<SegmentNo>) {
        assert!(self.preparing.is_none());
        self.preparing = Some(Preparing { op, recycle });
    }

    pub fn is_prepare(&self, op: OpId) -> bool {
        self.preparing.as_ref().is_some_and(|preparing| preparing.op == op)
    }

    pub fn prepared(&mut self) {
        let preparing = self.preparing.take().expect("is_prepare");
        self.recycled += u64::from(preparing.recycle.is_some());
        self.ready_through = self.ready_through.next();
        self.full = None;
    }

    /// The disk is full: try again later.
    pub fn prepare_failed(&mut self, now: Tick, error: DiskError) {
        let preparing = self.preparing.take().expect("is_prepare");
        if let Some(no) = preparing.recycle {
            self.reusable.push_front(no);
        }
        let wait = if mutants::is(Mutant::FullForGood) { RETRY_US << 20 } else { RETRY_US };
        self.retry_at = now.plus(wait);
        let since = self.full.take().map_or(now, |(since, _)| since);
        self.full = Some((since, error.message));
    }

    pub fn deadline(&self) -> Option<Tick> {
        (self.full.is_some() && self.preparing.is_none()).then_some(self.retry_at)
    }

    fn max(&self) -> u64 {
        u64::from(self.config.segments_max)
    }

    /// Record bytes that fit before the reserve of one segment is touched; padding is allowed for.
    pub fn room(&self, head_room: u64) -> u64 {
        let files = if self.full.is_some() { self.files().min(self.max()) } else { self.max() };
        let used = self.refs.len() as u64;
        if used + 1 > files {
            return 0;
        }
        let block = u64::from(self.config.block_bytes);
        let after_padding = |bytes: u64| {
            let flushes = bytes / u64::from(self.config.flush_bytes_max) + 1;
            bytes.saturating_sub(flushes * block)
        };
        let whole = after_padding(self.config.segment_bytes - block);
        after_padding(head_room) + (files - used - 1) * whole
    }

    pub fn space(&self, room: u64) -> Space {
        match &self.full {
            Some((since, message)) => Space::NoSpace { since: *since, message: message.clone() },
            None if room == 0 => Space::LimitReached,
            None => Space::Ok,
        }
    }

    /// The front segment if only hard states and log starts still hold it: they are to be logged
    /// again.
    pub fn held_by_states(&self) -> Option<SegmentNo> {
        let front = self.refs.0.front()?;
        (front.no != self.head() && front.runs == 0 && front.states > 0).then_some(front.no)
    }

    /// The lowest segment that the next start may need: all below were let go by
    /// [`Segments::reclaim`], and each of their files may be renamed at any moment. So a start that does
    /// not look at them finds no less than it must be able to do with.
    pub fn lowest_needed(&self) -> SegmentNo {
        let early = mutants::is(Mutant::ReleasedUndurable);
        let needed = |live: &&Live| !early || live.runs + live.states + live.pins > 0;
        let front = self.refs.0.iter().find(needed).map_or(self.head(), |live| live.no);
        self.held.1.iter().copied().fold(front, SegmentNo::min)
    }

    /// The front segment, if it is not the one being written.
    pub fn front(&self) -> Option<SegmentNo> {
        self.refs.0.front().map(|live| live.no).filter(|no| *no != self.head())
    }

    /// Lets go of segments at the front that nothing needs. A truncation or a hard state that freed
    /// one must be durable first, or it could be lost after the bytes it replaced are gone; and so
    /// must the beginning of the next segment, where the log will then start.
    pub fn reclaim(&mut self, durable: Lsn) {
        let whole = durable >= self.held.0 || mutants::is(Mutant::RecycleEarly);
        if whole && !self.held.1.is_empty() {
            self.reusable.extend(self.held.1.drain(..));
            self.reusable.make_contiguous().sort_unstable();
        }
        // What lies lower goes first. A leftover that outlived the segment which took its place would
        // be the lowest file at the next start, and be taken for the beginning of the log.
        if !self.held.1.is_empty() {
            return;
        }
        while let (Some(front), Some(next)) = (self.refs.0.front(), self.refs.0.get(1)) {
            let needed = front.runs + front.states + front.pins > 0;
            let early = durable < front.free_at || durable <= self.config.start_of(next.no);
            if needed || (early && !mutants::is(Mutant::RecycleEarly)) {
                break;
            }
            self.reusable.push_back(front.no);
            self.refs.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::ops::DiskErrorKind;

    fn segments() -> Segments {
        let config = WalConfig {
            segment_bytes: 8192,
            block_bytes: 512,
            flush_bytes_max: 4096,
            segments_max: 4,
            spare_segments: 1,
            ..WalConfig::default()
        };
        let mut refs = Refs::default();
        refs.open(SegmentNo(1));
        Segments::new(config, refs, Vec::new(), SegmentNo(0))
    }

    #[test]
    fn a_free_segment_waits_for_what_freed_it_to_be_durable_and_is_then_used_again() {
        let mut s = segments();
        s.refs.hold(SegmentNo(1), Need::Run);
        s.refs.open(SegmentNo(2));
        s.refs.drop(SegmentNo(1), Need::Run, Lsn(20_000));
        s.reclaim(Lsn(19_999));
        assert_eq!(s.refs.len(), 2, "not yet durable");
        s.reclaim(Lsn(20_000));
        assert_eq!(s.refs.len(), 1);
        s.ready_through = SegmentNo(2);
        assert_eq!(s.prepare_due(Tick(0)), Some((SegmentNo(3), Some(SegmentNo(1)))));
    }

    #[test]
    fn leftovers_are_used_again_before_any_segment_that_the_log_lets_go() {
        let mut s = segments();
        (2..=3).for_each(|no| s.refs.open(SegmentNo(no)));
        s.hold_back(vec![SegmentNo(9), SegmentNo(7)], Lsn(30_000));
        s.reclaim(Lsn(29_000));
        assert_eq!((s.refs.len(), s.reusable.len()), (3, 0), "nothing overtakes them");
        s.reclaim(Lsn(30_000));
        assert_eq!(s.reusable, [7, 9, 1, 2].map(SegmentNo));
    }

    #[test]
    #[should_panic(expected = "released more often than held")]
    fn a_reference_is_given_back_once() {
        let mut s = segments();
        s.refs.hold(SegmentNo(1), Need::Run);
        s.refs.drop(SegmentNo(1), Need::Run, Lsn::ZERO);
        s.refs.drop(SegmentNo(1), Need::Run, Lsn::ZERO);
    }

    #[test]
    fn a_full_disk_is_tried_again_after_a_second_and_the_last_file_is_the_reserve() {
        let mut s = segments();
        for op in 1..=2 {
            let (_, recycle) = s.prepare_due(Tick(0)).unwrap();
            s.prepare_issued(OpId(op), recycle);
            s.prepared();
        }
        assert_eq!(s.prepare_due(Tick(0)), None, "one in use, one ahead");
        s.refs.open(SegmentNo(2));
        s.prepare_due(Tick(0)).unwrap();
        s.prepare_issued(OpId(3), None);
        let message = "no space left".to_owned();
        let error = DiskError { kind: DiskErrorKind::NoSpace, errno: 28, message };
        s.prepare_failed(Tick(5), error);
        assert_eq!(s.room(7000), 0, "the second of two files is the reserve");
        assert!(matches!(s.space(0), Space::NoSpace { since: Tick(5), .. }));
        assert_eq!((s.prepare_due(Tick(6)), s.deadline()), (None, Some(Tick(1_000_005))));
        assert!(s.prepare_due(Tick(1_000_005)).is_some());
        s.prepare_issued(OpId(4), None);
        s.prepared();
        assert!(s.room(7000) > 0);
        assert_eq!(s.space(1), Space::Ok);
    }
}
