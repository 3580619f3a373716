//! Deadlines of all groups in one queue. A group has at most one live entry, so that an idle group
//! costs one timer however often its deadline moves further away.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::ids::Tick;

const NEVER: Tick = Tick(u64::MAX);

/// See the module. Wishes are rounded up to a grid: thousands of followers, each with a random
/// deadline, come due in a few turns instead of one each.
#[derive(Debug)]
pub(super) struct Timers {
    grid_us: u64,
    heap: BinaryHeap<Reverse<(Tick, u32)>>,
    /// By group: the time of its live entry.
    queued: Vec<Tick>,
}

impl Timers {
    /// `grid_us`: how late a group may be called.
    pub fn new(grid_us: u64) -> Self {
        Self { grid_us: grid_us.max(1), heap: BinaryHeap::new(), queued: Vec::new() }
    }

    /// The group wants to be called at `at`. A later wish keeps the earlier entry: it is found out,
    /// and put right, when that entry comes up.
    pub fn want(&mut self, local: u32, at: Tick) {
        let slot = local as usize;
        let at = match at.get().checked_next_multiple_of(self.grid_us) {
            Some(rounded) if at < NEVER => Tick(rounded),
            _ => NEVER,
        };
        if self.queued.len() <= slot {
            self.queued.resize(slot + 1, NEVER);
        }
        if at < self.queued[slot] {
            self.queued[slot] = at;
            self.heap.push(Reverse((at, local)));
        }
    }

    /// The next group whose entry is due; it has none afterwards.
    pub fn pop_due(&mut self, now: Tick) -> Option<u32> {
        while let Some(&Reverse((at, local))) = self.heap.peek() {
            if at > now {
                return None;
            }
            self.heap.pop();
            if self.queued[local as usize] == at {
                self.queued[local as usize] = NEVER;
                return Some(local);
            }
        }
        None
    }

    /// When the first entry is due.
    pub fn next(&self) -> Tick {
        self.heap.peek().map_or(NEVER, |Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_moves_away_costs_no_second_entry() {
        let mut timers = Timers::new(1);
        timers.want(3, Tick(10));
        for at in 11..1000 {
            timers.want(3, Tick(at));
        }
        assert_eq!(timers.heap.len(), 1);
        assert_eq!(timers.pop_due(Tick(9)), None);
        assert_eq!(timers.pop_due(Tick(10)), Some(3));
        assert_eq!(timers.pop_due(Tick(2000)), None);
    }

    #[test]
    fn deadlines_near_each_other_come_due_together_and_never_early() {
        let mut timers = Timers::new(10);
        (0..10).for_each(|local| timers.want(local, Tick(21 + u64::from(local))));
        timers.want(10, NEVER);
        timers.want(11, Tick(u64::MAX - 1));
        assert_eq!(timers.next(), Tick(30));
        assert_eq!(timers.pop_due(Tick(29)), None);
        assert_eq!(std::iter::from_fn(|| timers.pop_due(Tick(30))).count(), 10);
        assert_eq!(timers.next(), NEVER);
    }

    #[test]
    fn a_deadline_that_moves_closer_replaces_the_entry() {
        let mut timers = Timers::new(1);
        timers.want(0, Tick(100));
        timers.want(1, Tick(60));
        timers.want(0, Tick(50));
        assert_eq!(timers.next(), Tick(50));
        assert_eq!(timers.pop_due(Tick(100)), Some(0));
        assert_eq!(timers.pop_due(Tick(100)), Some(1));
        assert_eq!(timers.pop_due(Tick(100)), None, "the replaced entry is stale");
    }
}
