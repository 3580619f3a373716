//! Leaders that move, lie, die, are busy or say nothing.

use super::world::*;
use crate::client::*;
use crate::ids::*;
use crate::wire::client::{Answer, Refused};

fn not_leader(group: u32, seq: u64) -> Answer {
    Answer::new(GroupId(group), seq, Err(Refused::NotLeader(None)))
}

fn success(world: &World, seq: u64) -> Answer {
    Answer { group: GroupId(0), seq, result: Ok(world.committed(seq)), unproposed: false }
}

#[test]
fn a_hint_is_followed_at_once_and_remembered() {
    let mut world = World::ready(3);
    world.leaders.insert(1, Some(2));
    world.submit(1);
    world.settle();
    assert_eq!(world.now, Tick(0), "no pause on the way");
    assert_eq!(world.arrived, [(1, 1, 1), (2, 1, 1)], "the same number both times");
    world.submit(1);
    world.settle();
    assert_eq!(world.arrived[2], (2, 1, 2));
    assert_eq!(world.results(), [(1, true), (2, true)]);
    assert_eq!(world.core.leader(GroupId(1)), 2);
}

#[test]
fn a_chain_of_stale_hints_leads_to_the_leader() {
    let mut world = World::ready(5);
    world.leaders.insert(0, Some(4));
    world.lies.extend([(0, 1), (1, 2), (2, 3)]);
    world.submit(0);
    world.settle();
    assert_eq!(world.results(), [(1, true)]);
    assert_eq!(world.arrived.iter().map(|a| a.0).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[test]
fn two_nodes_that_point_at_each_other_cannot_keep_a_block_flying() {
    let mut world = World::ready(3);
    world.leaders.insert(0, None);
    world.lies.extend([(0, 1), (1, 0), (2, 0)]);
    world.submit(0);
    world.run(1_000_000, |_| false);
    let tries = world.arrived.len();
    assert!((4..100).contains(&tries), "{tries} tries in a second");
    world.leaders.insert(0, Some(2));
    world.run(2_000_000, |w| !w.done.is_empty());
    assert_eq!(world.results(), [(1, true)]);
}

#[test]
fn without_a_leader_the_nodes_are_asked_in_turn_with_growing_pauses() {
    let mut world = World::ready(3);
    world.leaders.insert(0, None);
    world.submit(0);
    let mut times = Vec::new();
    for n in 1..8 {
        world.run(5_000_000, |w| w.arrived.len() == n);
        times.push(world.now.0);
    }
    let asked: Vec<usize> = world.arrived.iter().map(|a| a.0).collect();
    assert_eq!(asked, [0, 1, 2, 0, 1, 2, 0]);
    let pauses: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
    assert!((2_500..=5_000).contains(&pauses[0]), "first {} us", pauses[0]);
    assert!((80_000..=160_000).contains(&pauses[5]), "sixth {} us", pauses[5]);
}

#[test]
fn while_nobody_leads_one_block_asks_for_all() {
    let mut world = World::ready(3);
    world.leaders.insert(0, None);
    world.submit_many(0, 100);
    world.run(1_000_000, |_| false);
    let asked = world.arrived.len() - 100;
    assert!((3..20).contains(&asked), "{asked} blocks after the first hundred");
    world.leaders.insert(0, Some(2));
    world.run(2_000_000, |w| !w.done.is_empty());
    world.settle();
    assert_eq!(world.done.len(), 100, "and with its answer all the others leave");
}

#[test]
fn if_the_block_that_asks_is_itself_at_fault_the_others_go_on() {
    let mut world = World::ready(1);
    world.leaders.insert(0, None);
    world.submit_many(0, 3);
    world.settle();
    world.moods[0] = Mood::Refuses(Refused::TooLarge);
    world.run(1_000_000, |w| w.done.len() == 3);
    assert_eq!(world.done.len(), 3);
}

#[test]
fn a_lost_connection_mid_flight_repeats_the_same_numbers_elsewhere_and_applies_once() {
    let mut world = World::ready(3);
    world.moods[0] = Mood::Lossy;
    let tags: Vec<u64> = (0..5).map(|_| world.submit(0)).collect();
    world.settle();
    assert!(world.done.is_empty(), "applied, but the answers are lost");
    world.leaders.insert(0, Some(1));
    world.kill(0);
    world.run(1_000_000, |w| w.done.len() == 5);
    assert_eq!(world.results(), tags.iter().map(|t| (*t, true)).collect::<Vec<_>>());
    assert!(world.done.iter().all(|d| d.result.as_ref().unwrap().retry));
    assert_eq!(world.applied.len(), 5);
    let again: Vec<u64> = world.arrived[5..].iter().map(|a| a.2).collect();
    assert_eq!(again, [1, 2, 3, 4, 5], "in order, under their first numbers");
}

/// 1. n1 leads and stands still: its connection stays open, and n2 and n3 still name it.
/// 2. After 200 ms without a word one block asks n2 and n3; what they say of n1 is not believed.
/// 3. They elect n2: all blocks go there, under their numbers.
/// 4. n1 wakes up. It is heard of again and believed in again.
#[test]
fn a_leader_that_stands_still_is_left_for_its_successor_before_its_connection_breaks() {
    let mut world = World::ready(3);
    world.submit_many(0, 1);
    world.run(1_000, |w| w.done.len() == 1);
    world.moods[0] = Mood::Mute;
    world.submit_many(0, 5);
    world.run(199_000, |_| false);
    assert_eq!(world.done.len(), 1);
    assert_eq!(world.arrived.len(), 1, "it has its time");
    world.run(50_000, |_| false);
    assert!(world.arrived[1..].iter().all(|a| a.0 != 0 && a.2 == 2), "one asks for all");
    assert!((3..9).contains(&world.arrived.len()), "n2 and n3 in turn, with growing pauses");
    world.leaders.insert(0, Some(1));
    world.run(100_000, |w| w.done.len() == 6);
    assert_eq!(world.applied.len(), 6);
    assert!(world.faults.is_empty() && world.open.values().any(|(n, _)| *n == 0));
    world.moods[0] = Mood::Sound;
    world.say(0, &[not_leader(1, 2)]);
    world.settle();
    world.leaders.insert(0, Some(0));
    world.submit_many(0, 1);
    world.run(1_000, |w| w.done.len() == 7);
    assert_eq!(world.core.leader(GroupId(0)), 0, "a hint to it is followed at once");
}

#[test]
fn a_slow_leader_is_asked_around_by_one_block_and_its_late_answer_counts() {
    let mut world = World::ready(3);
    world.moods[0] = Mood::Mute;
    world.submit_many(0, 50);
    world.run(400_000, |_| false);
    let elsewhere = world.arrived.iter().filter(|a| a.0 != 0);
    assert!(elsewhere.clone().count() > 0 && elsewhere.clone().all(|a| a.2 == 1));
    world.moods[0] = Mood::Sound;
    let late: Vec<Answer> = (1..=50).map(|seq| success(&world, seq)).collect();
    world.say(0, &late);
    world.settle();
    assert_eq!(world.done.len(), 50);
    assert_eq!(world.core.leader(GroupId(0)), 0);
    assert_eq!(world.connects.len(), 3, "no connection was given up");
}

/// However long an answer takes (less than `resend_us`), alone or among others.
#[test]
fn whoever_is_slow_by_nature_is_not_doubted_for_long() {
    for (nodes, takes_us) in [(1, 250_000), (1, 900_000), (3, 300_000), (3, 900_000)] {
        let mut world = World::ready(nodes);
        world.moods[0] = Mood::Mute;
        let mut sent = Vec::new();
        for seq in 1..=20 {
            world.submit(0);
            world.run(takes_us, |_| false);
            let answer = success(&world, seq);
            world.say(0, &[answer]);
            world.settle();
            assert_eq!(world.done.len(), seq as usize);
            sent.push(world.core.counters().blocks_sent);
        }
        assert_eq!(sent[19] - sent[9], 10, "from then on each leaves once: {sent:?}");
    }
}

/// Nothing else is submitted, and the block had to wait before it was sent: n0 was busy.
#[test]
fn a_leader_that_falls_silent_behind_a_pause_is_doubted_as_soon() {
    let mut world = World::ready(3);
    world.moods[0] = Mood::Refuses(Refused::Busy);
    world.submit(0);
    world.settle();
    world.moods[0] = Mood::Mute;
    world.run(10_000, |_| false);
    world.leaders.insert(0, Some(1));
    world.run(220_000, |w| !w.done.is_empty());
    assert_eq!(world.results(), [(1, true)]);
}

#[test]
fn a_connection_that_stays_silent_for_the_resend_time_is_closed() {
    let mut world = World::ready(3);
    world.moods[0] = Mood::Mute;
    world.submit(0);
    world.run(199_000, |_| false);
    world.leaders.insert(0, Some(1));
    world.run(100_000, |w| !w.done.is_empty());
    assert_eq!(world.results(), [(1, true)]);
    world.run(1_000_000, |_| false);
    // They name it again, and it still says nothing.
    world.leaders.insert(0, Some(0));
    world.submit(0);
    world.run(300_000, |_| false);
    let dialled = world.connects.iter().filter(|n| **n == 0).count();
    assert!(dialled > 1, "the dead connection was closed, and another one tried");
}

#[test]
fn a_refusal_from_an_earlier_try_is_ignored() {
    let mut world = World::ready(3);
    world.leaders.insert(1, Some(2));
    world.moods[2] = Mood::Lossy;
    world.submit(1);
    world.settle();
    assert_eq!(world.arrived.len(), 2, "it waits for n2 now");
    world.say(1, &[not_leader(1, 1)]);
    world.settle();
    assert_eq!(world.arrived.len(), 2);
    assert_eq!(world.core.leader(GroupId(1)), 2);
}

#[test]
fn an_answer_twice_or_late_completes_nothing_twice() {
    let mut world = World::ready(3);
    world.submit(0);
    world.settle();
    let result = world.done[0].result.clone().map_err(|_| Refused::Busy);
    let again = Answer::new(GroupId(0), 1, result);
    world.say(0, &[again, again]);
    world.submit(0);
    world.settle();
    world.say(0, &[again]);
    world.settle();
    assert_eq!(world.results(), [(1, true), (2, true)]);
    assert!(world.faults.is_empty());
}

#[test]
fn an_answer_to_what_was_never_sent_ends_the_connection() {
    let mut world = World::ready(1);
    world.submit(0);
    world.settle();
    world.say(0, &[not_leader(0, 2)]);
    world.settle();
    assert_eq!(world.faults, [ClientFault::Unasked { group: GroupId(0), seq: 2 }]);
    world.submit(0);
    world.run(1_000_000, |w| w.done.len() == 2);
    assert_eq!(world.done.len(), 2, "and the next connection serves");
}

#[test]
fn busy_and_read_only_are_tried_again_at_the_same_node_after_a_pause() {
    for refused in [Refused::Busy, Refused::ReadOnly] {
        let mut world = World::ready(3);
        world.moods[0] = Mood::Refuses(refused);
        world.submit_many(0, 3);
        world.settle();
        assert_eq!(world.arrived.len(), 3, "no second try without a pause");
        world.moods[0] = Mood::Sound;
        world.run(5_000, |w| w.done.len() == 3);
        assert_eq!(world.done.len(), 3);
        assert!(world.now.0 >= 2_500);
        assert!(world.arrived.iter().all(|a| a.0 == 0));
    }
}

#[test]
fn a_stopping_or_recovering_node_is_left_for_the_next() {
    for refused in [Refused::Shutdown, Refused::Recovering] {
        let mut world = World::ready(3);
        world.moods[0] = Mood::Refuses(refused);
        world.leaders.insert(0, Some(1));
        world.submit(0);
        world.run(5_000, |w| !w.done.is_empty());
        assert_eq!(world.results(), [(1, true)]);
        assert_eq!(world.core.leader(GroupId(0)), 1);
    }
}

#[test]
fn what_no_retry_can_help_ends_at_once() {
    let finals = [
        Refused::BadRequest,
        Refused::TooLarge,
        Refused::Stale { open_from: 0 },
        Refused::SessionEpochChanged,
        Refused::NoGroup,
    ];
    for refused in finals {
        let mut world = World::ready(3);
        world.moods[0] = Mood::Refuses(refused);
        world.submit(0);
        world.settle();
        assert_eq!(world.done[0].result, Err(ClientError::Refused(refused)));
        assert_eq!(world.arrived.len(), 1);
    }
}

#[test]
fn a_group_without_a_leader_holds_up_no_other() {
    let mut world = World::ready(3);
    world.leaders.insert(3, None);
    world.submit_many(3, 50);
    world.settle();
    let tag = world.submit(0);
    world.settle();
    assert_eq!(world.results(), [(tag, true)], "same node, same connection, no time passed");
}

#[test]
fn a_dead_node_hinted_at_is_not_waited_for() {
    let mut world = World::ready(3);
    world.kill(0);
    world.lies.extend([(1, 0), (2, 0)]);
    world.leaders.insert(0, Some(1));
    world.lies.remove(&1);
    world.submit(0);
    world.run(100_000, |w| !w.done.is_empty());
    assert_eq!(world.results(), [(1, true)]);
}

/// Everybody in the client's list has left the group: they know who is in it, not who leads.
#[test]
fn a_leader_that_nobody_names_is_found_among_the_members() {
    let mut world = World::ready(2);
    world.moods.push(Mood::Sound);
    world.leaders.insert(0, Some(2));
    world.moods[0] = Mood::Refuses(Refused::NotLeader(None));
    world.moods[1] = Mood::Refuses(Refused::NotLeader(None));
    let members = r#"{"done":true,"text":"","data":{"members":[{"node":3,"client":"2"}]}}"#;
    world.members = Some(members.to_owned());
    world.submit(0);
    world.run(2_000_000, |w| !w.done.is_empty());
    assert!(world.done[0].result.is_ok(), "{:?}", world.done);
}
