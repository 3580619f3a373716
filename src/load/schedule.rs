//! When the next block is due. Integer arithmetic on nanoseconds since the run began; the caller
//! has the clock.
//!
//! ```text
//! closed loop, N in flight:  a block is due when fewer than N are unanswered, that is: now
//! open loop, r commands/s:   block k of b commands is due at k·b/r, whether or not the earlier ones
//!                            are answered. A block that finds N in flight is sent late, and stays
//!                            due when it was.
//! ```

use std::num::NonZeroU64;

const NS_PER_S: u128 = 1_000_000_000;

/// How blocks are offered to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Most blocks unanswered at one time.
    pub in_flight_max: u32,
    /// Commands a second; `None` for a closed loop.
    pub rate: Option<NonZeroU64>,
    /// Commands in a block, which are due together.
    pub batch_size: u32,
}

impl Schedule {
    /// True where due and sent can differ.
    pub fn is_open(&self) -> bool {
        self.rate.is_some()
    }

    /// When block `k` (from 0) of an open loop is due, ns since the start, rounded down: rounding
    /// never adds up. `None` for a closed loop.
    pub fn due_ns(&self, k: u64) -> Option<u64> {
        let rate = u128::from(self.rate?.get());
        let ns = u128::from(k) * u128::from(self.batch_size) * NS_PER_S / rate;
        Some(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send a block now; it was due at this time.
    Send { due_ns: u64 },
    /// Nothing is due before this time.
    At(u64),
    /// As many in flight as allowed: wait for an acknowledgement.
    Full,
}

/// Goes through a schedule.
#[derive(Clone, Debug)]
pub struct Pacer {
    schedule: Schedule,
    sent: u64,
    in_flight: u32,
}

impl Pacer {
    /// # Panics
    /// When nothing may be in flight, or blocks are empty: configuration refuses both.
    pub fn new(schedule: Schedule) -> Self {
        assert!(schedule.in_flight_max > 0 && schedule.batch_size > 0);
        Self { schedule, sent: 0, in_flight: 0 }
    }

    /// Asks at `now_ns` what to do; `Send` counts the block as sent.
    pub fn next(&mut self, now_ns: u64) -> Next {
        let due_ns = self.schedule.due_ns(self.sent).unwrap_or(now_ns);
        if self.in_flight == self.schedule.in_flight_max {
            return Next::Full;
        }
        if due_ns > now_ns {
            return Next::At(due_ns);
        }
        self.sent += 1;
        self.in_flight += 1;
        Next::Send { due_ns }
    }

    /// A block was acknowledged or given up.
    ///
    /// # Panics
    /// When none is in flight: an answer was counted twice.
    pub fn done(&mut self) {
        assert!(self.in_flight > 0, "more answers than blocks");
        self.in_flight -= 1;
    }

    /// Blocks that wait for their answer.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Blocks sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn closed(in_flight_max: u32) -> Pacer {
        Pacer::new(Schedule { in_flight_max, rate: None, batch_size: 1 })
    }

    fn open(in_flight_max: u32, rate: u64, batch_size: u32) -> Schedule {
        Schedule { in_flight_max, rate: NonZeroU64::new(rate), batch_size }
    }

    #[test]
    fn a_closed_loop_keeps_exactly_n_in_flight() {
        let mut pacer = closed(2);
        assert_eq!(pacer.next(10), Next::Send { due_ns: 10 });
        assert_eq!(pacer.next(11), Next::Send { due_ns: 11 });
        assert_eq!(pacer.next(12), Next::Full);
        pacer.done();
        assert_eq!(pacer.next(13), Next::Send { due_ns: 13 });
        assert_eq!((pacer.in_flight(), pacer.sent()), (2, 3));
    }

    #[test]
    fn an_open_loop_waits_for_the_due_time() {
        let mut pacer = Pacer::new(open(10, 1000, 1));
        assert_eq!(pacer.next(0), Next::Send { due_ns: 0 });
        assert_eq!(pacer.next(1), Next::At(1_000_000));
        assert_eq!(pacer.next(1_000_000), Next::Send { due_ns: 1_000_000 });
    }

    #[test]
    fn a_stalled_open_loop_sends_late_what_was_due_in_time() {
        let mut pacer = Pacer::new(open(1, 1000, 1));
        assert_eq!(pacer.next(0), Next::Send { due_ns: 0 });
        assert_eq!(pacer.next(5_000_000), Next::Full);
        for k in 1..=5 {
            pacer.done();
            assert_eq!(pacer.next(5_000_000), Next::Send { due_ns: k * 1_000_000 });
        }
        pacer.done();
        assert_eq!(pacer.next(5_000_000), Next::At(6_000_000));
    }

    #[test]
    fn the_rate_counts_commands_not_blocks() {
        assert_eq!(open(1, 1000, 100).due_ns(1), Some(100_000_000));
    }

    #[test]
    #[should_panic(expected = "more answers than blocks")]
    fn an_answer_too_many_is_noticed() {
        closed(1).done();
    }

    proptest! {
        #[test]
        fn due_times_never_go_back_and_never_drift(
            rate in 1u64..100_000_000, batch in 1u32..8192, k in 0u64..1_000_000_000,
        ) {
            let schedule = open(1, rate, batch);
            let due = schedule.due_ns(k).unwrap();
            prop_assert!(schedule.due_ns(k + 1).unwrap() >= due);
            // As many commands as the rate allows by then, to the nanosecond.
            let exact = u128::from(k) * u128::from(batch) * NS_PER_S;
            let rate = u128::from(rate);
            if due < u64::MAX {
                prop_assert!(u128::from(due) * rate <= exact);
                prop_assert!((u128::from(due) + 1) * rate > exact);
            }
        }

        #[test]
        fn no_order_of_events_exceeds_the_window_or_loses_a_block(
            events in proptest::collection::vec((any::<bool>(), 0u64..3_000_000), 1..300),
            window in 1u32..8, rate in proptest::option::of(1u64..5_000),
        ) {
            let schedule = Schedule { in_flight_max: window, rate: rate.and_then(NonZeroU64::new), batch_size: 1 };
            let mut pacer = Pacer::new(schedule);
            let (mut now, mut sent, mut done) = (0, 0, 0);
            for (answer, step) in events {
                now += step;
                if answer && pacer.in_flight() > 0 {
                    pacer.done();
                    done += 1;
                } else if let Next::Send { due_ns } = pacer.next(now) {
                    prop_assert!(due_ns <= now);
                    prop_assert_eq!(due_ns, schedule.due_ns(sent).unwrap_or(now));
                    sent += 1;
                }
                prop_assert!(pacer.in_flight() <= window);
                prop_assert_eq!(u64::from(pacer.in_flight()), sent - done);
            }
        }
    }
}
