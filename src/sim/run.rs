//! One seed from beginning to end, with its report when it fails.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::options::Options;
use super::oracle::Violation;
use super::registers::Registers;
use super::stats::Stats;
use super::subject::Subject;
use super::world::World;

/// Lines of the trace in a report.
const LINES: usize = 60;

/// What came of a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub seed: u64,
    pub stats: Stats,
    /// Of every event: two runs of a seed agree in it.
    pub hash: u64,
    pub failure: Option<Failure>,
}

/// A broken rule and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub violation: Violation,
    /// The last things that happened.
    pub trace: String,
    /// What runs it again.
    pub command: String,
}

impl Outcome {
    /// Everything that a person needs to look into it; empty for a run in which all was well.
    pub fn report(&self) -> String {
        let Some(Failure { violation, trace, command }) = &self.failure else {
            return String::new();
        };
        let Violation { rule, what, at } = violation;
        format!(
            "seed {}\nbroken  {rule}\n        {what}\n        at {}.{:06} s\nagain   {command}\n\n\
             {trace}",
            self.seed,
            at / 1_000_000,
            at % 1_000_000
        )
    }
}

/// Runs a seed with the registers as the state machine.
pub fn run(seed: u64, options: &Options) -> Outcome {
    run_with(seed, options, Registers::default())
}

/// Runs a seed with a state machine of one's own.
pub fn run_with<S: Subject>(seed: u64, options: &Options, subject: S) -> Outcome {
    let mut world = World::new(seed, options.clone(), subject);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let broken = match result {
        Ok(result) => result.err(),
        Err(panic) => Some(world.panicked(&panic_text(&*panic))),
    };
    let failure = broken.map(|violation| Failure {
        violation,
        trace: world.trace(if options.trace { usize::MAX } else { LINES }),
        command: options.command_line(seed),
    });
    Outcome {
        seed,
        stats: Stats { seeds: 1, faults_least: world.stats.faults, ..world.stats },
        hash: world.hash(),
        failure,
    }
}

/// All that happens in a seed, line by line, heartbeats too.
pub fn trace(seed: u64, options: &Options) -> String {
    let options = Options { trace: true, ..options.clone() };
    let mut world = World::new(seed, options, Registers::default());
    let _ = catch_unwind(AssertUnwindSafe(|| world.run()));
    world.trace(usize::MAX)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

impl Failure {
    /// Two runs of a seed differ.
    pub fn no_replay(first: &Outcome, second: &Outcome, options: &Options) -> Self {
        let what = format!("event hashes {:016x} and {:016x}", first.hash, second.hash);
        let violation = Violation { rule: "a seed replays to the bit", what, at: 0 };
        Self { violation, trace: String::new(), command: options.command_line(first.seed) }
    }
}
