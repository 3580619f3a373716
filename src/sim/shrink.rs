//! The smallest plan that still fails: faults are dropped while the failure stays (delta debugging,
//! Zeller 1999).

use super::options::{Options, Shape};
use super::run::{Outcome, run};

/// Runs that a shrinking may take.
const RUNS_MAX: u32 = 400;

/// Of a failing run, the options with the fewest faults found under which the same rule is broken.
pub fn shrink(failed: &Outcome, options: &Options) -> (Options, Outcome) {
    let plan = Shape::new(failed.seed, options).plan;
    let all: Vec<u32> = plan.iter().map(|fault| fault.number).collect();
    let rule = failed.failure.as_ref().map(|failure| failure.violation.rule);
    let mut best = failed.clone();
    let mut runs = 0;
    let smallest = minimize(all, |kept| {
        runs += 1;
        if runs > RUNS_MAX {
            return false;
        }
        let outcome = run(failed.seed, &only(options, kept));
        let same = outcome.failure.as_ref().map(|failure| failure.violation.rule) == rule;
        if same {
            best = outcome;
        }
        same
    });
    (only(options, &smallest), best)
}

fn only(options: &Options, kept: &[u32]) -> Options {
    Options { only: Some(kept.to_vec()), ..options.clone() }
}

/// The smallest part of `all`, in its order, that was found for which `fails` holds.
fn minimize(mut all: Vec<u32>, mut fails: impl FnMut(&[u32]) -> bool) -> Vec<u32> {
    let mut size = all.len().div_ceil(2);
    while !all.is_empty() {
        let mut at = 0;
        let before = all.len();
        while at < all.len() {
            let end = (at + size).min(all.len());
            let without: Vec<u32> = all[..at].iter().chain(&all[end..]).copied().collect();
            if fails(&without) {
                all = without;
            } else {
                at = end;
            }
        }
        if size == 1 && all.len() == before {
            break;
        }
        size = size.div_ceil(2).min(all.len().max(1));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_is_dropped_and_what_does_is_kept() {
        let mut asked = 0;
        let smallest = minimize((0..60).collect(), |kept| {
            asked += 1;
            [7, 8, 41].iter().all(|n| kept.contains(n))
        });
        assert_eq!(smallest, [7, 8, 41]);
        assert!(asked < 100, "{asked}");
        assert_eq!(minimize((0..60).collect(), |_| true), [0; 0]);
        assert_eq!(minimize(vec![1, 2], |_| false), [1, 2]);
    }
}
