//! Which prefix of the log is written, and which is durable.
//!
//! ```text
//!            durable          written                       sealed
//!   ------------|----------------|-----------------------------|
//!    survives    parts: written,  in_flight: issued, completed
//!    power loss  waiting for a    in any order
//!                fdatasync
//! ```
//!
//! Only contiguous prefixes count, because recovery cannot step over a hole:
//!
//! - *written* is the end of the completed prefix: flush 7 complete before flush 6 moves nothing.
//! - *durable* is the end of the prefix in which each flush was written through O_DSYNC, or was
//!   covered by an fdatasync **issued after its write had completed**.
//!
//! Why an O_DSYNC flush behind an unsynced one is not durable by itself:
//!
//! 1. flush 1 holds records of a group with `wal_sync = false`; it is written without sync.
//! 2. flush 2 holds a vote; its O_DSYNC write completes. Flush 2 is on the medium, flush 1 is not.
//! 3. A log that called flush 2 durable now would let the vote leave.
//! 4. Power fails. Flush 1 is lost. Recovery finds a hole where flush 1 was and cuts there.
//! 5. The vote is forgotten, the node votes again in the same term: two leaders.
//!
//! So `durable` waits at flush 1 for a `Sync`, and that one must not come too early either:
//!
//! 1. flush 1 is on its way to the disk.
//! 2. `Sync` is issued and completes: it covered nothing of flush 1.
//! 3. flush 1's write completes. Counting the sync for it would again lose it.
//!
//! A `Sync` therefore counts for the position `written` had reached when it was issued.
//! With only O_DSYNC flushes `parts` stays empty and no fdatasync is ever issued.

use std::collections::VecDeque;

use super::ops::{OpId, SegmentNo};
use crate::ids::{Lsn, Tick};
use crate::mutants::{self, Mutant};

/// A background sync begins at one lag. While it is under way the log writes on, up to this many of
/// them: then it waits, or a disk that takes seconds for a sync would let acknowledged commands pile
/// up that a power cut takes along (durability.md R7; bug 28: a disk that never answers).
const LAGS_MAX: u64 = 4;

#[derive(Debug)]
struct InFlight {
    op: OpId,
    segment: SegmentNo,
    end: Lsn,
    bytes: u64,
    sync: bool,
    written: bool,
}

/// A written stretch of one segment that waits to become durable.
#[derive(Debug)]
struct Part {
    segment: SegmentNo,
    end: Lsn,
    /// Of its flushes. Positions are no measure of it: each start skips some.
    bytes: u64,
    /// When the oldest of its bytes that no sync covers was written.
    since: Tick,
    /// Durable by its own writes; waits only for what lies before it.
    dsync: bool,
}

#[derive(Debug)]
struct Syncing {
    op: OpId,
    segment: SegmentNo,
    through: Lsn,
    issued: Tick,
}

#[derive(Debug)]
pub(super) struct Marks {
    written: Lsn,
    durable: Lsn,
    in_flight: VecDeque<InFlight>,
    parts: VecDeque<Part>,
    syncing: Option<Syncing>,
    /// Sync up to here without waiting for the lag.
    wanted: Lsn,
}

impl Marks {
    pub fn new(durable: Lsn) -> Self {
        Self {
            written: durable,
            durable,
            in_flight: VecDeque::new(),
            parts: VecDeque::new(),
            syncing: None,
            wanted: Lsn::ZERO,
        }
    }

    /// A stretch that recovery has read back but that nobody has vouched for: after a process crash
    /// it may still lie in a volatile cache. Synced before anything after it counts as durable.
    pub fn doubt(&mut self, segment: SegmentNo, end: Lsn) {
        assert!(end > self.written && self.in_flight.is_empty());
        self.parts.push_back(Part { segment, end, bytes: 0, since: Tick::ZERO, dsync: false });
        self.written = end;
        self.wanted = end;
    }

    pub fn written(&self) -> Lsn {
        self.written
    }

    pub fn durable(&self) -> Lsn {
        self.durable
    }

    pub fn flushes_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Since when something is written but not durable.
    pub fn unsynced_since(&self) -> Option<Tick> {
        self.parts.front().map(|part| part.since)
    }

    /// Asks for a sync of everything before `end`, as soon as it is written.
    pub fn want(&mut self, end: Lsn) {
        self.wanted = self.wanted.max(end);
    }

    /// Bytes that are written and not durable, without what an earlier start had written.
    pub fn unsynced_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// A flush of `bytes` that ends at `end` has been issued.
    pub fn issued(&mut self, op: OpId, segment: SegmentNo, end: Lsn, bytes: u64, sync: bool) {
        let last = self.in_flight.back().map_or(self.written, |flush| flush.end);
        assert!(end > last, "flushes are issued in the order of their positions");
        self.in_flight.push_back(InFlight { op, segment, end, bytes, sync, written: false });
    }

    /// Is `op` a flush in flight?
    pub fn is_flush(&self, op: OpId) -> bool {
        self.in_flight.iter().any(|flush| flush.op == op)
    }

    /// Is `op` the sync in flight?
    pub fn is_sync(&self, op: OpId) -> bool {
        self.syncing.as_ref().is_some_and(|sync| sync.op == op)
    }

    /// The write of flush `op` has completed.
    pub fn wrote(&mut self, op: OpId, now: Tick) {
        let flush = self.in_flight.iter_mut().find(|flush| flush.op == op).expect("is_flush");
        assert!(!flush.written, "a write completes once");
        flush.written = true;
        if mutants::is(Mutant::CountOverHole) && flush.sync && self.parts.is_empty() {
            self.written = self.written.max(flush.end);
            self.durable = self.written;
        }
        while self.in_flight.front().is_some_and(|flush| flush.written) {
            let flush = self.in_flight.pop_front().expect("looked at above");
            self.written = self.written.max(flush.end);
            self.settle(flush, now);
        }
        self.check();
    }

    fn settle(&mut self, flush: InFlight, now: Tick) {
        let InFlight { segment, end, bytes, sync, .. } = flush;
        if self.parts.is_empty() && (sync || mutants::is(Mutant::UnsyncedIsDurable)) {
            self.durable = self.durable.max(end);
            return;
        }
        match self.parts.back_mut() {
            Some(part) if part.segment == segment && part.dsync == sync => {
                part.end = end;
                part.bytes += bytes;
            }
            _ => self.parts.push_back(Part { segment, end, bytes, since: now, dsync: sync }),
        }
    }

    /// The segment to sync now, if any. At most one sync is in flight.
    pub fn sync_due(&self, now: Tick, lag_us: u64, lag_bytes: u64) -> Option<SegmentNo> {
        let front = self.parts.front()?;
        if self.syncing.is_some() {
            return None;
        }
        let lagging = now >= front.since.plus(lag_us) || self.unsynced_bytes() >= lag_bytes;
        (lagging || self.someone_waits()).then_some(front.segment)
    }

    /// Does a record wait for the sync of the parts, and would a sync issued now serve it?
    fn someone_waits(&self) -> bool {
        if self.parts.iter().any(|part| part.dsync) {
            return true;
        }
        // Everything unsynced before the first waiting flush must be written first: a sync issued
        // earlier does not cover it and a second one would be needed.
        let in_reach = match self.in_flight.front() {
            Some(flush) => flush.sync || flush.end > self.wanted,
            None => true,
        };
        let flush_waits = self.in_flight.front().is_some_and(|flush| flush.sync);
        in_reach && (flush_waits || self.durable < self.wanted)
    }

    /// Does what is written run so far ahead of what is durable that no more may be written until
    /// a sync has completed (durability.md R7)? By bytes, with those that are under way; by age, once
    /// a sync, which began at one lag, has taken the rest of the lags.
    pub fn is_too_far_ahead(&self, now: Tick, lag_us: u64, lag_bytes: u64) -> bool {
        if mutants::is(Mutant::WriteAheadOfSync) {
            return false;
        }
        let hangs_from = |sync: &Syncing| sync.issued.plus(lag_us.saturating_mul(LAGS_MAX - 1));
        let hangs = self.syncing.as_ref().is_some_and(|sync| now >= hangs_from(sync));
        let written: u64 =
            self.in_flight.iter().filter(|flush| !flush.sync).map(|flush| flush.bytes).sum();
        hangs || self.unsynced_bytes() + written >= lag_bytes.saturating_mul(LAGS_MAX)
    }

    /// The sync that `sync_due` asked for has been issued.
    pub fn sync_issued(&mut self, op: OpId, now: Tick) {
        assert!(self.syncing.is_none());
        let segment = self.parts.front().expect("sync_due looked at it").segment;
        let of_segment = self.parts.iter().take_while(|part| {
            part.segment == segment || mutants::is(Mutant::SyncCoversOtherSegments)
        });
        let through = of_segment.last().expect("the front is one").end;
        self.syncing = Some(Syncing { op, segment, through, issued: now });
    }

    /// The sync in flight has completed.
    pub fn synced(&mut self) {
        let mut sync = self.syncing.take().expect("is_sync");
        if mutants::is(Mutant::SyncCoversLaterWrites) {
            sync.through = self.written;
        }
        assert!(sync.through > self.durable && sync.through <= self.written);
        self.durable = sync.through;
        // What was written meanwhile in a merged part stays, with an age that is not too young.
        while let Some(part) = self.parts.front_mut() {
            if part.end > sync.through && !part.dsync {
                if part.segment == sync.segment {
                    part.bytes = part.bytes.min(part.end.since(sync.through));
                    part.since = part.since.max(sync.issued);
                }
                break;
            }
            self.durable = self.durable.max(part.end);
            self.parts.pop_front();
        }
        self.check();
    }

    /// The sync in flight has failed and is to be tried once more: never, but for a planted bug.
    pub fn sync_again(&mut self) {
        self.syncing = None;
    }

    /// When a background sync is due.
    pub fn deadline(&self, lag_us: u64) -> Option<Tick> {
        let front = self.parts.front().filter(|_| self.syncing.is_none())?;
        Some(front.since.plus(lag_us))
    }

    fn check(&self) {
        assert!(self.durable <= self.written);
        assert_eq!(self.parts.is_empty(), self.durable == self.written);
        assert!(self.parts.front().is_none_or(|part| !part.dsync && part.end > self.durable));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S1: SegmentNo = SegmentNo(1);
    const S2: SegmentNo = SegmentNo(2);
    const NEVER: u64 = u64::MAX / 2;

    fn marks() -> Marks {
        Marks::new(Lsn(0))
    }

    fn due(marks: &Marks) -> Option<SegmentNo> {
        marks.sync_due(Tick(0), NEVER, NEVER)
    }

    #[test]
    fn flush_7_complete_before_flush_6_moves_nothing() {
        let mut m = marks();
        m.issued(OpId(6), S1, Lsn(10), 10, true);
        m.issued(OpId(7), S1, Lsn(20), 10, true);
        m.wrote(OpId(7), Tick(0));
        assert_eq!((m.written(), m.durable()), (Lsn(0), Lsn(0)));
        m.wrote(OpId(6), Tick(0));
        assert_eq!((m.written(), m.durable()), (Lsn(20), Lsn(20)));
        assert_eq!(due(&m), None, "synced writes need no fdatasync");
    }

    #[test]
    fn a_vote_behind_unsynced_bytes_waits_for_their_sync() {
        let mut m = marks();
        m.issued(OpId(1), S1, Lsn(10), 10, false);
        m.issued(OpId(2), S1, Lsn(20), 10, true);
        m.wrote(OpId(2), Tick(0));
        assert_eq!(due(&m), None, "a sync now would not cover flush 1");
        m.wrote(OpId(1), Tick(0));
        assert_eq!((m.written(), m.durable()), (Lsn(20), Lsn(0)));
        assert_eq!(due(&m), Some(S1));
        m.sync_issued(OpId(3), Tick(0));
        m.synced();
        assert_eq!(m.durable(), Lsn(20));
    }

    #[test]
    fn a_sync_waits_until_it_can_serve_the_one_that_waits_for_it() {
        let mut m = marks();
        m.issued(OpId(1), S1, Lsn(10), 10, false);
        m.wrote(OpId(1), Tick(0));
        m.issued(OpId(2), S1, Lsn(20), 10, false);
        m.issued(OpId(3), S1, Lsn(30), 10, true);
        assert_eq!(due(&m), None, "flush 2 would need a second one");
        m.wrote(OpId(2), Tick(0));
        assert_eq!(due(&m), Some(S1));
    }

    #[test]
    fn what_is_written_after_a_sync_was_issued_is_not_covered_by_it() {
        let mut m = marks();
        m.issued(OpId(1), S1, Lsn(10), 10, false);
        m.wrote(OpId(1), Tick(5));
        assert_eq!(m.sync_due(Tick(5), 0, NEVER), Some(S1));
        m.sync_issued(OpId(2), Tick(5));
        m.issued(OpId(3), S1, Lsn(20), 10, false);
        m.wrote(OpId(3), Tick(6));
        m.synced();
        assert_eq!((m.written(), m.durable()), (Lsn(20), Lsn(10)));
        assert_eq!(m.unsynced_since(), Some(Tick(5)));
    }

    #[test]
    fn a_synced_flush_that_completes_during_the_sync_becomes_durable_with_it() {
        let mut m = marks();
        m.issued(OpId(1), S1, Lsn(10), 10, false);
        m.wrote(OpId(1), Tick(0));
        m.issued(OpId(2), S1, Lsn(20), 10, true);
        assert_eq!(due(&m), Some(S1), "side by side with the O_DSYNC write");
        m.sync_issued(OpId(3), Tick(0));
        m.wrote(OpId(2), Tick(0));
        assert_eq!(m.durable(), Lsn(0));
        m.synced();
        assert_eq!(m.durable(), Lsn(20));
    }

    #[test]
    fn unsynced_bytes_in_two_segments_need_two_syncs() {
        let mut m = marks();
        m.issued(OpId(1), S1, Lsn(10), 10, false);
        m.issued(OpId(2), S2, Lsn(20), 10, false);
        m.issued(OpId(3), S2, Lsn(30), 10, true);
        for op in 1..=3 {
            m.wrote(OpId(op), Tick(0));
        }
        assert_eq!(due(&m), Some(S1));
        m.sync_issued(OpId(4), Tick(0));
        m.synced();
        assert_eq!((m.durable(), due(&m)), (Lsn(10), Some(S2)));
        m.sync_issued(OpId(5), Tick(0));
        m.synced();
        assert_eq!(m.durable(), Lsn(30));
    }

    #[test]
    fn what_is_written_runs_at_most_four_lags_ahead_of_what_is_durable() {
        let mut m = marks();
        let ahead = |m: &Marks, now| m.is_too_far_ahead(Tick(now), 100, 10);
        assert!(!ahead(&m, NEVER), "nothing is at risk");
        m.issued(OpId(1), S1, Lsn(39), 39, false);
        assert!(!ahead(&m, 50));
        m.wrote(OpId(1), Tick(50));
        assert_eq!(m.sync_due(Tick(50), 100, 10), Some(S1));
        m.sync_issued(OpId(2), Tick(50));
        assert!(!ahead(&m, 349));
        assert!(ahead(&m, 350), "the sync has taken three lags");
        m.issued(OpId(3), S1, Lsn(79), 40, false);
        assert!(ahead(&m, 51), "what is under way counts");
        m.wrote(OpId(3), Tick(52));
        m.synced();
        assert_eq!(m.durable(), Lsn(39));
        assert!(ahead(&m, 52), "the sync covered the first flush alone: forty bytes are at risk");
        assert_eq!(m.sync_due(Tick(52), 100, 10), Some(S1), "or it would wait for ever");
        m.sync_issued(OpId(4), Tick(52));
        m.synced();
        assert!(!ahead(&m, NEVER));
        m.issued(OpId(5), S1, Lsn(179), 100, true);
        assert!(!ahead(&m, NEVER), "synced writes are at no risk");
    }

    #[test]
    fn bytes_in_the_next_segment_are_as_old_as_they_are() {
        let mut m = marks();
        m.issued(OpId(1), S1, Lsn(10), 10, false);
        m.issued(OpId(2), S2, Lsn(20), 10, false);
        m.wrote(OpId(1), Tick(0));
        m.wrote(OpId(2), Tick(50));
        m.sync_issued(OpId(3), Tick(100));
        m.synced();
        assert_eq!(m.unsynced_since(), Some(Tick(50)), "that sync did not touch them");
        assert_eq!(m.sync_due(Tick(149), 100, 100), None);
        assert_eq!(m.sync_due(Tick(150), 100, 100), Some(S2));
    }

    #[test]
    fn the_background_sync_comes_by_age_or_by_bytes_and_never_without_need() {
        let mut m = marks();
        assert_eq!((m.sync_due(Tick(NEVER), 0, 0), m.deadline(100)), (None, None));
        m.issued(OpId(1), S1, Lsn(10), 10, false);
        m.wrote(OpId(1), Tick(50));
        assert_eq!(m.deadline(100), Some(Tick(150)));
        assert_eq!(m.sync_due(Tick(149), 100, 11), None);
        assert_eq!(m.sync_due(Tick(150), 100, 11), Some(S1));
        assert_eq!(m.sync_due(Tick(50), 100, 10), Some(S1));
    }
}
