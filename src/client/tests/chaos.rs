//! Any order of events: numbers stay unique, and every tag is completed exactly once.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::world::*;
use crate::client::*;
use crate::ids::*;
use crate::wire::client::Refused;

#[derive(Clone, Debug)]
enum Step {
    Submit(u32),
    Ask(u32),
    Lead(u32, Option<usize>),
    Lie(usize, usize),
    Mood(usize, Mood),
    Cut(usize),
    Kill(usize),
    Turn,
    Wait(u64),
    HoldSends(bool),
}

fn mood() -> impl Strategy<Value = Mood> {
    prop_oneof![
        3 => Just(Mood::Sound),
        1 => Just(Mood::Mute),
        1 => Just(Mood::Lossy),
        1 => Just(Mood::Refuses(Refused::Busy)),
        1 => Just(Mood::Refuses(Refused::Shutdown)),
        1 => Just(Mood::Refuses(Refused::NotLeader(None))),
        1 => Just(Mood::Refuses(Refused::BadRequest)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u32..4).prop_map(Step::Submit),
        2 => (0u32..4).prop_map(Step::Ask),
        2 => (0u32..4, proptest::option::of(0usize..3)).prop_map(|(g, l)| Step::Lead(g, l)),
        1 => (0usize..3, 0usize..3).prop_map(|(n, l)| Step::Lie(n, l)),
        2 => (0usize..3, mood()).prop_map(|(n, m)| Step::Mood(n, m)),
        1 => (0usize..3).prop_map(Step::Cut),
        1 => (0usize..3).prop_map(Step::Kill),
        5 => Just(Step::Turn),
        3 => prop_oneof![0u64..10_000, 0u64..3_000_000].prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::HoldSends),
    ]
}

fn release_sends(world: &mut World) {
    world.hold_sends = false;
    for (link, buffer) in std::mem::take(&mut world.held) {
        world.core.sent(link, buffer);
    }
}

fn play(world: &mut World, step: Step, asked: &mut BTreeSet<u64>) {
    match step {
        Step::Submit(group) if world.core.room(GroupId(group)) > 0 => {
            asked.insert(world.submit(group));
        }
        Step::Ask(group) if world.core.groups().is_some() => {
            asked.insert(world.ask(group, QueryTarget::Leader));
        }
        Step::Submit(_) | Step::Ask(_) => {}
        Step::Lead(group, leader) => {
            world.leaders.insert(group, leader);
        }
        Step::Lie(node, leader) => {
            world.lies.insert(node, leader);
        }
        Step::Mood(node, mood) => world.moods[node] = mood,
        Step::Cut(node) => world.cut(node),
        Step::Kill(node) => world.kill(node),
        Step::Turn => {
            world.turn();
        }
        Step::Wait(us) => world.run(us, |_| false),
        Step::HoldSends(true) => world.hold_sends = true,
        Step::HoldSends(false) => release_sends(world),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_tag_is_completed_exactly_once_whatever_happens(
        steps in proptest::collection::vec(step(), 1..120),
        seed: u64,
        in_flight_max in 1u32..20,
    ) {
        let mut world = World::with(ClientConfig { seed, in_flight_max, ..config(3) });
        world.shards = 2;
        let mut asked = BTreeSet::new();
        for step in steps {
            play(&mut world, step, &mut asked);
        }
        // Heal: within one deadline everything that is open must end.
        release_sends(&mut world);
        world.moods.fill(Mood::Sound);
        world.lies.clear();
        world.leaders.clear();
        world.run(11_000_000, |w| w.done.len() + w.replies.len() == asked.len());
        let ended = world.done.iter().map(|d| d.tag).chain(world.replies.iter().map(|r| r.tag));
        let ended: Vec<u64> = ended.collect();
        prop_assert_eq!(ended.len(), asked.len(), "something ended twice or never");
        prop_assert_eq!(ended.into_iter().collect::<BTreeSet<_>>(), asked);
        // Only a block that was refused for what it is gives its number back.
        let refused = Err(ClientError::Refused(Refused::BadRequest));
        let used = world.done.iter().filter(|d| d.result != refused);
        let used: Vec<_> = used.map(|d| (d.group, d.seq)).collect();
        let numbers: BTreeSet<_> = used.iter().copied().collect();
        prop_assert_eq!(numbers.len(), used.len(), "a number was used for two blocks");
        for done in world.done.iter().filter(|d| d.result.is_ok()) {
            prop_assert!(world.applied.contains(&(done.group.0, done.seq)));
        }
        // And the healed cluster serves: what is submitted now succeeds soon.
        let before = world.done.len();
        if world.core.room(GroupId(0)) > 0 {
            world.submit(0);
            world.run(2_000_000, |w| w.done.len() > before);
            prop_assert!(world.done[before].result.is_ok());
        }
    }
}
