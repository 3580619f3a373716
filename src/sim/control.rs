//! The negative control (durability.md §6.4): on disks that ignore what they are told to sync, what
//! was acknowledged must be seen lost. A simulator that sees nothing there sees nothing at all.

use super::nemesis::Kinds;
use super::options::Options;
use super::oracle::LOSSES;
use super::run::{Outcome, run};

/// Seeds tried before a control counts as having shown nothing.
pub const TRIES: u64 = 20;

/// The options of a control: losses of power only, on lying disks.
pub fn options() -> Options {
    Options {
        nodes: Some(3),
        nemesis: Kinds::parse("power").unwrap_or(Kinds::NONE),
        lying_disks: true,
        seconds: 10,
        faults: 10,
        ..Options::default()
    }
}

/// The first run from `seed` on that lost something acknowledged; `None` if none did.
pub fn first_loss(seed: u64) -> Option<Outcome> {
    (seed..seed.saturating_add(TRIES)).map(|seed| run(seed, &options())).find(lost)
}

fn lost(outcome: &Outcome) -> bool {
    outcome.failure.as_ref().is_some_and(|failure| LOSSES.contains(&failure.violation.rule))
}
