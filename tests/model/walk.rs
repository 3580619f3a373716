//! Random walks: deeper than an exploration gets, with bounds too wide for one.

use std::collections::BTreeMap;

use ringraft::ids::Term;
use stateright::{Expectation, Model, Path};

use super::node::fingerprint;
use super::state::{Action, State};
use super::story;
use super::world::World;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// What the walks came by.
#[derive(Debug, Default)]
pub struct Walked {
    pub steps: usize,
    pub highest_term: Term,
    pub acknowledged: usize,
    pub losses_reported: usize,
    /// Seed, property and story of the first failure.
    pub failure: Option<(u64, &'static str, String)>,
}

/// One walk a seed, each of at most `steps_max` steps, with all properties checked at each.
pub fn walk(world: &World, seeds: std::ops::Range<u64>, steps_max: usize) -> Walked {
    let mut walked = Walked::default();
    for seed in seeds {
        let (path, state) = one_walk(world, seed, steps_max, &mut walked.steps);
        let highest = state.nodes.iter().map(|node| node.raft.term()).max();
        walked.highest_term = walked.highest_term.max(highest.expect("three nodes"));
        walked.acknowledged += state.truth.acknowledged.len();
        walked.losses_reported += usize::from(state.truth.reported);
        if let Some(property) = broken_property(world, &state) {
            let path = Path::from_actions(world, State::new(world), &path).expect("was walked");
            walked.failure = Some((seed, property, story::tell(world, &path)));
            break;
        }
    }
    walked
}

fn one_walk(world: &World, seed: u64, steps_max: usize, steps: &mut usize) -> (Vec<Action>, State) {
    let mut random = Random(seed);
    let (mut state, mut path, mut actions) = (State::new(world), Vec::new(), Vec::new());
    for _ in 0..steps_max {
        actions.clear();
        state.actions(world, &mut actions);
        if actions.is_empty() {
            break;
        }
        let action = choose(&actions, &mut random);
        let Some(next) = state.after(world, action) else { continue };
        *steps += 1;
        path.push(action);
        state = next;
        if broken_property(world, &state).is_some() {
            break;
        }
    }
    (path, state)
}

/// Mostly what a quiet cluster does, so that there is something to disturb.
fn choose(actions: &[Action], random: &mut Random) -> Action {
    let is_quiet = |action: &&Action| {
        use Action::*;
        match action {
            Deliver { again, .. } => !again,
            Write { .. }
            | Sync { .. }
            | Connect { .. }
            | Propose { .. }
            | Beat { .. }
            | Change { .. }
            | Read { .. }
            | Compact { .. }
            | Install { .. } => true,
            Campaign { .. } | StepDown { .. } | Crash { .. } | PowerLoss { .. } => false,
        }
    };
    let quiet = actions.iter().filter(is_quiet).count();
    let others = actions.len() - quiet;
    let disturb = quiet == 0 || (others > 0 && random.below(12) == 0);
    let at = random.below(if disturb { others } else { quiet });
    *actions.iter().filter(|action| is_quiet(action) != disturb).nth(at).expect("counted")
}

fn broken_property(world: &World, state: &State) -> Option<&'static str> {
    let mut rules = world.properties().into_iter();
    let broken = rules.find(|property| {
        property.expectation == Expectation::Always && !(property.condition)(world, state)
    });
    broken.map(|property| property.name)
}

/// Walks a small world and compares the futures of states that are taken for the same one. Gives how
/// many were met again.
pub fn compare_futures(world: &World, seeds: std::ops::Range<u64>, steps_max: usize) -> usize {
    let mut futures: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut again = 0;
    for seed in seeds {
        let mut random = Random(seed);
        let mut state = State::new(world);
        for _ in 0..steps_max {
            let steps = world.next_steps(&state);
            let future = steps.iter().map(|(_, next)| fingerprint(next)).collect();
            match futures.get(&fingerprint(&state)) {
                None => drop(futures.insert(fingerprint(&state), future)),
                Some(known) => {
                    assert_eq!(*known, future, "seed {seed}: one fingerprint, two futures");
                    again += 1;
                }
            }
            if steps.is_empty() {
                break;
            }
            let at = random.below(steps.len());
            state = steps.into_iter().nth(at).expect("within").1;
        }
    }
    again
}
