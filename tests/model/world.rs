//! The worlds that are explored: what may happen in each, and how often.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::state::{Action, State};
use super::{story, truth};

/// When the writes of a node are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disks {
    /// Each write is an action, and so is the background's sync.
    Free,
    /// Written at once, synced only where the rule wants it (without `wal_sync`: hard states,
    /// truncations, everything while RECOVERING). What a power loss may take is as much as it ever is:
    /// a sync in the background only makes it less.
    Written,
    /// Written and synced at once: for schedules of messages alone.
    Synced,
}

/// Bounds of one exploration. All counts are over the whole cluster and a whole run.
#[derive(Debug)]
pub struct World {
    pub name: &'static str,
    /// `wal_sync` of the group.
    pub sync: bool,
    /// When a write is done.
    pub disks: Disks,
    /// Pre-votes go over the network; else a campaign asks and hears whom it likes in one step.
    pub pre_votes: bool,
    /// It begins with n1 as the leader of term 1, and everybody has its first entry.
    pub led: bool,
    /// Highest term.
    pub terms: u64,
    pub campaigns: u8,
    /// Who campaigns, in this order; empty = anybody.
    pub candidates: &'static [usize],
    pub proposals: u8,
    /// Voters of the first configuration (bit per node).
    pub voters: u8,
    pub changes: u8,
    /// What a change may lead to.
    pub targets: &'static [u8],
    pub beats: u8,
    pub step_downs: u8,
    /// Messages that arrive a second time.
    pub repeats: u8,
    pub crashes: u8,
    pub power_losses: u8,
    /// Questions of clients, at leaders and followers.
    pub reads: u8,
    /// Snapshots that take the place of a log's front.
    pub compactions: u8,
    /// Messages under way at one time.
    pub messages: usize,
    /// Messages of terms that are over stay under way, too.
    pub dead_letters: bool,
    /// The moments that were reached: see `truth`.
    pub reached: [AtomicBool; 11],
}

impl World {
    /// Nothing may happen but messages.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            sync: true,
            disks: Disks::Free,
            pre_votes: false,
            led: false,
            terms: 7,
            campaigns: 0,
            candidates: &[],
            proposals: 0,
            voters: 0b111,
            changes: 0,
            targets: &[],
            beats: 0,
            step_downs: 0,
            repeats: 0,
            crashes: 0,
            power_losses: 0,
            reads: 0,
            compactions: 0,
            messages: 6,
            dead_letters: false,
            reached: Default::default(),
        }
    }

    /// True once: the first time that it is so.
    pub fn first_time(&self, moment: usize, is_so: impl Fn() -> bool) -> bool {
        !self.reached[moment].load(Ordering::Relaxed)
            && is_so()
            && !self.reached[moment].swap(true, Ordering::Relaxed)
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        state.actions(self, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        state.after(self, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        truth::properties(self)
    }
}

/// What an exploration has seen.
#[derive(Debug)]
pub struct Seen {
    pub states: usize,
    /// The property that failed, and how it came to that.
    pub failure: Option<(&'static str, String)>,
}

/// Explores a world to its end, or to the first failure, or until `states_max` states were generated.
///
/// # Panics
/// When it was explored to its end and a moment that every world must reach was not.
pub fn explore(world: World, states_max: Option<usize>) -> Seen {
    let (name, start) = (world.name, Instant::now());
    let builder = world.checker().threads(2).finish_when(HasDiscoveries::AnyFailures);
    let builder = match states_max {
        Some(count) => builder.target_state_count(count),
        None => builder,
    };
    let checker = builder.spawn_bfs().join();
    let (unique, all) = (checker.unique_state_count(), checker.state_count());
    let seconds = start.elapsed().as_secs_f64();
    let depth = checker.max_depth();
    let paths = checker.discoveries();
    eprintln!("{name}: {unique} states of {all}, depth {depth}, {seconds:.1} s");
    let failure = checker.model().properties().into_iter().find_map(|property| {
        let path = paths.get(property.name)?;
        let failed = property.expectation.discovery_is_failure();
        failed.then(|| (property.name, story::tell(checker.model(), path)))
    });
    if failure.is_none() {
        for property in checker.model().properties() {
            let always = property.expectation.discovery_is_failure();
            let met = always || paths.contains_key(property.name);
            assert!(met, "{name}: never {:?}", property.name);
        }
    }
    Seen { states: unique, failure }
}
