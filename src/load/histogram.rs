//! Latencies of one run, per command.
//!
//! Where commands are due at fixed times (an open loop), a slow answer delays the commands behind
//! it. Measured from when they were *sent*, those look fast: the stall counts once instead of for
//! everyone who waited. Measured from when they were *due* it counts for all. Both are kept; the
//! first ("uncorrected") only to show the difference.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Three significant digits: an error of 0.1 % at most.
const SIGNIFICANT_DIGITS: u8 = 3;
/// Longer latencies are counted as this long: two minutes.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// What the reports print of a histogram, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Nanoseconds from when each command was due (and, for an open loop, sent) to its
/// acknowledgement.
#[derive(Clone, Debug)]
pub struct Latency {
    corrected: Histogram<u64>,
    uncorrected: Option<Histogram<u64>>,
}

impl Latency {
    /// `open_loop`: due and sent can differ, so both are kept.
    pub fn new(open_loop: bool) -> Self {
        Self { corrected: empty(), uncorrected: open_loop.then(empty) }
    }

    /// `commands` commands of one block, due and sent and acknowledged together. Times are
    /// nanoseconds on one monotonic clock.
    pub fn record(&mut self, due_ns: u64, sent_ns: u64, acknowledged_ns: u64, commands: u64) {
        debug_assert!(due_ns <= sent_ns && sent_ns <= acknowledged_ns);
        add(&mut self.corrected, acknowledged_ns.saturating_sub(due_ns), commands);
        if let Some(uncorrected) = &mut self.uncorrected {
            add(uncorrected, acknowledged_ns.saturating_sub(sent_ns), commands);
        }
    }

    /// Takes in what another thread recorded.
    ///
    /// # Panics
    /// When one of the two is of an open loop and the other is not.
    pub fn merge(&mut self, other: &Self) {
        const SAME: &str = "all histograms have the same bounds";
        self.corrected.add(&other.corrected).expect(SAME);
        match (&mut self.uncorrected, &other.uncorrected) {
            (Some(mine), Some(theirs)) => mine.add(theirs).expect(SAME),
            (None, None) => {}
            _ => panic!("an open and a closed loop do not mix"),
        }
    }

    /// Forgets everything, for the end of a warm-up.
    pub fn clear(&mut self) {
        self.corrected.reset();
        if let Some(uncorrected) = &mut self.uncorrected {
            uncorrected.reset();
        }
    }

    /// Commands recorded.
    pub fn commands(&self) -> u64 {
        self.corrected.len()
    }

    /// From due to acknowledged.
    pub fn percentiles(&self) -> Percentiles {
        summary(&self.corrected)
    }

    /// From sent to acknowledged; only for an open loop.
    pub fn uncorrected_percentiles(&self) -> Option<Percentiles> {
        self.uncorrected.as_ref().map(summary)
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, SIGNIFICANT_DIGITS).expect("constants are valid")
}

fn add(histogram: &mut Histogram<u64>, latency_ns: u64, commands: u64) {
    histogram.saturating_record_n(latency_ns, commands);
}

fn summary(histogram: &Histogram<u64>) -> Percentiles {
    // Bucket bounds are not latencies: a tenth of a microsecond is as far as the digits go.
    let micros = |ns: u64| (ns as f64 / 100.0).round() / 10.0;
    let at = |quantile| micros(histogram.value_at_quantile(quantile));
    Percentiles {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: micros(histogram.max()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) -> bool {
        (found - expected).abs() <= expected * 0.002
    }

    #[test]
    fn percentiles_are_by_command_not_by_block() {
        let mut latency = Latency::new(false);
        latency.record(0, 0, 100_000, 990);
        latency.record(0, 0, 900_000, 10);
        let p = latency.percentiles();
        assert!(close(p.p50, 100.0) && close(p.p99, 100.0), "{p:?}");
        assert!(close(p.p999, 900.0) && close(p.max, 900.0), "{p:?}");
        assert_eq!(latency.commands(), 1000);
        assert_eq!(latency.uncorrected_percentiles(), None);
    }

    #[test]
    fn a_stall_counts_for_all_who_were_due_in_it() {
        // One command a millisecond; the first is answered after 100 ms, and until then none of
        // the others can be sent. Each of them then takes 10 µs.
        let mut latency = Latency::new(true);
        latency.record(0, 0, 100_000_000, 1);
        for k in 1..100 {
            let due = k * 1_000_000;
            latency.record(due, 100_000_000, 100_010_000, 1);
        }
        let uncorrected = latency.uncorrected_percentiles().unwrap();
        assert!(close(uncorrected.p50, 10.0), "{uncorrected:?}");
        assert!(close(latency.percentiles().p50, 50_000.0), "{:?}", latency.percentiles());
    }

    #[test]
    fn threads_are_merged_and_a_warm_up_is_forgotten() {
        let mut first = Latency::new(true);
        first.record(0, 5, 1_000_000, 1);
        first.clear();
        first.record(0, 5, 1000, 3);
        let mut second = Latency::new(true);
        second.record(0, 5, 9000, 1);
        first.merge(&second);
        assert_eq!(first.commands(), 4);
        assert!(close(first.percentiles().max, 9.0));
    }

    #[test]
    fn absurd_latencies_saturate() {
        let mut latency = Latency::new(false);
        latency.record(0, 0, u64::MAX, 1);
        assert!(latency.percentiles().max >= 120e6);
    }

    #[test]
    #[should_panic(expected = "do not mix")]
    fn open_and_closed_loops_do_not_merge() {
        Latency::new(true).merge(&Latency::new(false));
    }
}
