//! Deadlines of all groups in one queue. A group has at most one live entry, so that an idle group
//! costs one timer however often its deadline moves further away.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::ids::Tick;

const NEVER: Tick = Tick(u64::MAX);

#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Tick, u32)>>,
    /// By group: the time of its live entry.
    queued: Vec<Tick>,
}

impl Timers {
    /// The group wants to be called at `at`. A later wish keeps the earlier entry: it is found out,
    /// and put right, when that entry comes up.
    pub fn want(&mut self, local: u32, at: Tick) {
        let slot = local as usize;
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
        let mut timers = Timers::default();
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
    fn a_deadline_that_moves_closer_replaces_the_entry() {
        let mut timers = Timers::default();
        timers.want(0, Tick(100));
        timers.want(1, Tick(60));
        timers.want(0, Tick(50));
        assert_eq!(timers.next(), Tick(50));
        assert_eq!(timers.pop_due(Tick(100)), Some(0));
        assert_eq!(timers.pop_due(Tick(100)), Some(1));
        assert_eq!(timers.pop_due(Tick(100)), None, "the replaced entry is stale");
    }
}
