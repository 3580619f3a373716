//! A model check of the real `Raft`: three nodes, and every schedule of messages, writes, crashes and
//! power losses within the bounds of each world. What is checked and what is left out: `docs::model`.

// A build with planted bugs looks for those, and leaves the rest of the tests to the other build.
#![cfg_attr(feature = "mutants", allow(dead_code))]

mod node;
mod state;
mod story;
mod truth;
mod variants;
mod walk;
mod world;

use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// One test at a time: each uses both cores, and a planted bug is one for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    static HOOK: Once = Once::new();
    // An assertion of the core is a verdict here: it is told with its story, not where it fails.
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !state::is_stepping() {
                before(panic);
            }
        }));
    });
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wider bounds, for a run of minutes.
fn is_long() -> bool {
    std::env::var_os("RINGRAFT_MODEL_LONG").is_some()
}

#[cfg(not(feature = "mutants"))]
#[test]
fn the_rules_hold_in_every_world() {
    let _alone = alone();
    let long = is_long();
    // `RINGRAFT_MODEL_WORLD=crash` explores that one alone.
    let only = std::env::var("RINGRAFT_MODEL_WORLD").ok();
    let mut states = 0;
    for (world, states_max) in variants::worlds(long) {
        if only.as_ref().is_some_and(|name| *name != world.name) {
            continue;
        }
        let seen = world::explore(world, states_max);
        if let Some((property, story)) = seen.failure {
            panic!("{property:?} does not hold {story}");
        }
        states += seen.states;
    }
    eprintln!("{states} states in all");
    assert!(states >= 1_000_000 || only.is_some(), "only {states} states");
}

#[cfg(not(feature = "mutants"))]
#[test]
fn the_rules_hold_on_long_walks_through_wide_worlds() {
    let _alone = alone();
    let long = is_long();
    let walks = if long { 200_000 } else { 8_000 };
    for sync in [true, false] {
        let world = variants::wide(sync);
        let walked = walk::walk(&world, 0..walks, 150);
        if let Some((seed, property, story)) = walked.failure {
            panic!("seed {seed}: {property:?} does not hold {story}");
        }
        eprintln!("{}: {walks} walks, {walked:?}", world.name);
        assert!(walked.steps > 50 * walks as usize && walked.highest_term.get() >= 4);
        assert!(walked.acknowledged > walks as usize / 4);
        assert_eq!(walked.losses_reported > 0, !sync);
    }
}

/// The exploration takes states of one fingerprint for one state: then they must have one future.
#[cfg(not(feature = "mutants"))]
#[test]
fn states_with_one_fingerprint_have_one_future() {
    let _alone = alone();
    let new = [variants::rounds_of_reads(), variants::snapshot_over_conflict()];
    let old = [variants::one_leader(), variants::one_loss_one_leader(), variants::crash()];
    for world in old.into_iter().chain(new) {
        let again = walk::compare_futures(&world, 0..1_000, 40);
        assert!(again > 2_000, "{}: only {again} states were met again", world.name);
    }
}

/// Each rule is shown to be needed: without it the model finds a way to break a promise.
#[cfg(feature = "mutants")]
#[test]
fn every_planted_bug_is_found() {
    use ringraft::mutants;

    let _alone = alone();
    let mut missed = Vec::new();
    for (mutant, world, states_max) in variants::planted() {
        mutants::set(Some(mutant));
        let seen = world::explore(world, Some(states_max));
        mutants::set(None);
        match seen.failure {
            Some((property, story)) => {
                eprintln!("{}: {property:?} fails", mutant.name());
                assert!(story.contains("arrives") && story.contains("at the end n1"), "{story}");
            }
            None => missed.push(mutant.name()),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
