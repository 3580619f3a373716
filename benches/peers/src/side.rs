//! One contestant, and the way in which contestants are measured against each other.
//!
//! The machines these benches run on are shared: a figure wanders by 2x within minutes. So the
//! sides of a comparison take turns in short slices (A B, B A, A B …), each round gives one ratio of
//! rates that were taken within the same second, and the median of those ratios is what is reported.

use std::time::{Duration, Instant};

use crate::workload::COMMAND_BYTES;

/// Most bytes of commands in one slice, so that no log outgrows its disk between two rests.
const SLICE_BYTES_MAX: u64 = 256 << 20;

/// A contestant, set up for one cell of the table.
pub trait Side {
    /// As printed.
    fn name(&self) -> String;

    /// One proposal replicated, or one append durable. Returns the commands in it.
    fn step(&mut self) -> u64;

    /// How many steps between two looks at the clock: 1 where a step costs much more than a look.
    fn stride(&self) -> u32 {
        1
    }

    /// For a side with several appends in flight: moves the nanoseconds from staging to durable of
    /// those done since the last call, and answers true. Otherwise a step's time is its latency.
    fn take_latencies(&mut self, _out: &mut Vec<u32>) -> bool {
        false
    }

    /// Called between slices, outside the time measured: old segments go, files are recycled.
    fn rest(&mut self) {}
}

/// What one side did in one slice.
#[derive(Clone, Copy, Debug)]
struct Slice {
    commands_per_s: f64,
}

/// All slices of one side.
#[derive(Debug)]
pub struct Record {
    pub name: String,
    slices: Vec<Slice>,
    /// Nanoseconds from proposal or append to its end, each the mean over one stride.
    steps_ns: Vec<u32>,
}

impl Record {
    /// Median over the slices.
    pub fn commands_per_s(&self) -> f64 {
        median(self.slices.iter().map(|s| s.commands_per_s).collect())
    }

    /// Slowest and fastest slice.
    pub fn range(&self) -> (f64, f64) {
        let rates = self.slices.iter().map(|s| s.commands_per_s);
        rates.fold((f64::MAX, 0.0), |(low, high), r| (r.min(low), r.max(high)))
    }

    /// Microseconds a step at quantile `q` in 0..1, over all slices.
    pub fn step_us(&mut self, q: f64) -> f64 {
        let at = ((self.steps_ns.len() - 1) as f64 * q).round() as usize;
        f64::from(*self.steps_ns.select_nth_unstable(at).1) / 1000.0
    }

    /// Median over the rounds of this side's rate by that of `other` in the same round.
    pub fn ratio_to(&self, other: &Record) -> f64 {
        let pairs = self.slices.iter().zip(&other.slices);
        median(pairs.map(|(a, b)| a.commands_per_s / b.commands_per_s).collect())
    }

    /// Ratio of the fastest slices: what is left of the comparison when a neighbour's load hits one
    /// side harder than the other.
    pub fn best_ratio_to(&self, other: &Record) -> f64 {
        self.range().1 / other.range().1
    }
}

/// Measures the sides in turns: `rounds` slices of about `slice` each, the order reversed every
/// other round so that drift within a round cancels as well.
pub fn race(sides: &mut [Box<dyn Side>], rounds: usize, slice: Duration) -> Vec<Record> {
    let mut records: Vec<Record> = sides
        .iter()
        .map(|s| Record { name: s.name(), slices: Vec::new(), steps_ns: Vec::new() })
        .collect();
    // The first slice of each warms caches, allocators and recycled files, and is thrown away.
    for side in sides.iter_mut() {
        run_slice(side.as_mut(), slice, &mut Vec::new());
        side.rest();
    }
    for round in 0..rounds {
        for turn in 0..sides.len() {
            let i = if round % 2 == 0 { turn } else { sides.len() - 1 - turn };
            let done = run_slice(sides[i].as_mut(), slice, &mut records[i].steps_ns);
            records[i].slices.push(done);
            sides[i].rest();
        }
    }
    records
}

fn run_slice(side: &mut dyn Side, slice: Duration, steps_ns: &mut Vec<u32>) -> Slice {
    let stride = side.stride();
    let (mut commands, mut elapsed) = (0, Duration::ZERO);
    let start = Instant::now();
    while elapsed < slice && commands * (COMMAND_BYTES as u64) < SLICE_BYTES_MAX {
        commands += (0..stride).map(|_| side.step()).sum::<u64>();
        let now = start.elapsed();
        let mean = (now - elapsed).as_nanos() / u128::from(stride);
        if !side.take_latencies(steps_ns) {
            steps_ns.push(u32::try_from(mean).unwrap_or(u32::MAX));
        }
        elapsed = now;
    }
    Slice { commands_per_s: commands as f64 / elapsed.as_secs_f64() }
}

/// Time for `steps` steps, with rests between that are not counted. For criterion.
pub fn time_steps(side: &mut dyn Side, steps: u64) -> Duration {
    let mut total = Duration::ZERO;
    let (mut left, mut commands) = (steps, 0);
    while left > 0 {
        let start = Instant::now();
        while left > 0 && commands * (COMMAND_BYTES as u64) < SLICE_BYTES_MAX {
            commands += side.step();
            left -= 1;
        }
        total += start.elapsed();
        if commands * (COMMAND_BYTES as u64) >= SLICE_BYTES_MAX {
            side.rest();
            commands = 0;
        }
    }
    total
}

fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "a side was never run");
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(rates: &[f64]) -> Record {
        let slices = rates.iter().map(|&commands_per_s| Slice { commands_per_s }).collect();
        Record { name: String::new(), slices, steps_ns: vec![1000, 2000, 9000] }
    }

    #[test]
    fn a_machine_that_slows_down_for_both_leaves_the_ratio_alone() {
        let fast = record(&[20.0, 10.0, 2.0]);
        let slow = record(&[10.0, 5.0, 1.0]);
        assert_eq!(fast.ratio_to(&slow), 2.0);
        assert_eq!(fast.commands_per_s(), 10.0);
        assert_eq!(fast.range(), (2.0, 20.0));
        assert_eq!(fast.best_ratio_to(&slow), 2.0);
    }

    #[test]
    fn quantiles_are_of_steps_in_microseconds() {
        let mut r = record(&[1.0]);
        assert_eq!((r.step_us(0.0), r.step_us(0.5), r.step_us(1.0)), (1.0, 2.0, 9.0));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    /// Counts its steps and rests.
    struct Counter(Vec<char>);

    impl Side for Counter {
        fn name(&self) -> String {
            "counter".into()
        }
        fn step(&mut self) -> u64 {
            self.0.push('s');
            SLICE_BYTES_MAX / COMMAND_BYTES as u64 + 1
        }
        fn rest(&mut self) {
            self.0.push('r');
        }
    }

    #[test]
    fn a_side_rests_before_its_log_outgrows_a_slice() {
        let mut side = Counter(Vec::new());
        time_steps(&mut side, 3);
        assert_eq!(side.0, ['s', 'r', 's', 'r', 's', 'r']);
    }
}
