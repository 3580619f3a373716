//! How long the blocks that this node leads take, stage by stage. One probe is set for all blocks
//! that a group is proposed in one turn, on the last of them: the cost is per group and turn, not
//! per command.
//!
//! ```text
//!   proposed ──────────── logged      own log holds it where its rule wants it
//!          └───────────── committed   a majority does: often before the own disk
//!                                 └── applied    and the answer is with the socket
//! ```
//!
//! What a probe waits for may never come: a leader that is replaced forgets its probes.

use std::collections::VecDeque;

use crate::ids::{Index, Tick};
use crate::metrics::Histogram;

/// Microseconds of each stage.
#[derive(Clone, Debug, Default)]
pub struct StageTimes {
    /// Proposed until its own write has settled.
    pub logged: Histogram,
    /// Proposed until committed.
    pub committed: Histogram,
    /// Committed until applied and answered.
    pub applied: Histogram,
}

struct Probe {
    last: Index,
    proposed: Tick,
    committed: Tick,
}

/// The probes of one group, oldest first. The counters say how many from the front have passed each
/// stage; one that has been logged and applied is done.
#[derive(Default)]
pub(super) struct Probes {
    queue: VecDeque<Probe>,
    logged: usize,
    committed: usize,
    applied: usize,
}

impl Probes {
    /// Blocks up to `last` were proposed.
    pub fn set(&mut self, last: Index, now: Tick) {
        debug_assert!(self.queue.back().is_none_or(|probe| probe.last < last));
        self.queue.push_back(Probe { last, proposed: now, committed: now });
    }

    /// The own log holds everything up to `index`.
    pub fn logged(&mut self, index: Index, now: Tick, times: &mut StageTimes) {
        while let Some(probe) = self.queue.get(self.logged).filter(|probe| probe.last <= index) {
            times.logged.observe(now.since(probe.proposed));
            self.logged += 1;
        }
        self.forget_done();
    }

    /// A majority holds everything up to `index`.
    pub fn committed(&mut self, index: Index, now: Tick, times: &mut StageTimes) {
        while let Some(probe) = self.queue.get_mut(self.committed)
            && probe.last <= index
        {
            times.committed.observe(now.since(probe.proposed));
            probe.committed = now;
            self.committed += 1;
        }
    }

    /// Everything up to `index` is applied; since when that was committed goes to `answering`.
    pub fn applied(&mut self, index: Index, answering: &mut Vec<Tick>) {
        while let Some(probe) = self.queue.get(self.applied)
            && probe.last <= index
            && self.applied < self.committed
        {
            answering.push(probe.committed);
            self.applied += 1;
        }
        self.forget_done();
    }

    /// This node no longer leads.
    pub fn clear(&mut self) {
        self.queue.clear();
        (self.logged, self.committed, self.applied) = (0, 0, 0);
    }

    fn forget_done(&mut self) {
        let done = self.logged.min(self.applied);
        self.queue.drain(..done);
        self.logged -= done;
        self.committed -= done;
        self.applied -= done;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(times: &StageTimes) -> (u64, u64) {
        (times.logged.sum(), times.committed.sum())
    }

    #[test]
    fn each_stage_counts_from_its_own_beginning() {
        let (mut probes, mut times, mut answering) =
            (Probes::default(), StageTimes::default(), Vec::new());
        probes.set(Index(10), Tick(100));
        probes.set(Index(20), Tick(200));
        probes.logged(Index(15), Tick(190), &mut times);
        assert_eq!(sums(&times), (90, 0));
        probes.committed(Index(20), Tick(300), &mut times);
        assert_eq!(sums(&times), (90, 200 + 100));
        probes.applied(Index(20), &mut answering);
        assert_eq!(answering, [Tick(300), Tick(300)]);
        assert_eq!(probes.queue.len(), 1, "the second one's own write is still under way");
        probes.logged(Index(20), Tick(500), &mut times);
        assert_eq!(sums(&times), (90 + 300, 300));
        assert!(probes.queue.is_empty());
    }

    #[test]
    fn two_followers_may_commit_before_the_own_disk_and_nothing_is_counted_twice() {
        let (mut probes, mut times, mut answering) =
            (Probes::default(), StageTimes::default(), Vec::new());
        for turn in 1..=100 {
            probes.set(Index(turn), Tick(10 * turn));
            probes.committed(Index(turn), Tick(10 * turn + 3), &mut times);
            probes.applied(Index(turn), &mut answering);
            probes.logged(Index(turn.saturating_sub(5)), Tick(10 * turn), &mut times);
        }
        assert_eq!((probes.queue.len(), answering.len()), (5, 100));
        assert_eq!((times.committed.count(), times.committed.sum()), (100, 300));
        assert_eq!((times.logged.count(), times.logged.sum()), (95, 95 * 50));
        probes.clear();
        probes.logged(Index(100), Tick(2000), &mut times);
        assert_eq!(times.logged.count(), 95, "what was given up is not counted");
    }
}
