//! Sessions that the cluster forgets, that are kept alive, and that are closed.

use super::world::*;
use crate::block::FLAG_CONTINUES;
use crate::client::*;
use crate::ids::*;
use crate::shard::sessions::SessionEntry;
use crate::wire::client::Refused;

const G: GroupId = GroupId(0);

/// The table has seen others come and go: numbers up to 40 are spent. The client cannot know.
#[test]
fn a_new_client_is_told_where_to_begin_and_its_caller_sees_nothing_of_it() {
    let mut world = World::ready(3);
    world.spent = 40;
    world.submit_many(0, 3);
    world.settle();
    assert_eq!(world.results(), [(1, true), (2, true), (3, true)]);
    assert_eq!(world.applied.iter().map(|a| a.1).collect::<Vec<_>>(), [41, 42, 43]);
    assert_eq!(world.core.stamp(G), Stamp { client: SESSION, seq: 44, pending: 0 });
    assert!(world.flags.iter().all(|&flags| flags == 0), "nothing was answered in it before");
    world.submit(0);
    world.settle();
    assert_eq!(world.flags.last(), Some(&FLAG_CONTINUES));
    assert_eq!(world.core.room(G), 1024);
}

/// Number 2 was applied and its answer lost; then the session expires. A copy under a new number
/// would be a second application.
#[test]
fn a_block_that_may_have_been_applied_ends_as_stale_and_the_others_go_on() {
    let mut world = World::ready(3);
    world.submit(0);
    world.settle();
    world.moods[0] = Mood::Lossy;
    world.submit(0);
    world.settle();
    assert!(world.applied.contains(&(0, 2)));
    world.cut(0);
    (world.moods[0], world.spent) = (Mood::Sound, 7);
    world.submit(0);
    world.run(5_000_000, |w| w.done.len() == 3);
    world.done.sort_by_key(|done| done.tag);
    let stale = Err(ClientError::Refused(Refused::Stale { open_from: 0 }));
    assert_eq!(world.done[1].result, stale);
    assert!(world.done[2].result.is_ok());
    assert!(!world.applied.contains(&(0, 3)) && world.applied.contains(&(0, 8)));
}

/// A node that does not lead has refused number 1 at its door when the session is over: no log has it.
#[test]
fn a_block_that_no_leader_took_goes_on_in_the_next_session() {
    let mut world = World::ready(3);
    world.leaders.insert(0, Some(1));
    world.spent = 7;
    world.submit(0);
    world.settle();
    assert_eq!(world.arrived, [(0, 0, 1), (1, 0, 1), (1, 0, 8)]);
    assert_eq!(world.results(), [(1, true)]);
}

/// The same, but n0 led and had proposed number 1 when it was deposed: it may be in the next one's log.
#[test]
fn a_block_that_a_deposed_leader_had_proposed_does_not() {
    let mut world = World::ready(3);
    world.moods[0] = Mood::Lossy;
    world.submit(0);
    world.settle();
    world.applied.clear();
    world.moods[0] = Mood::Sound;
    (world.spent, world.leaders) = (7, [(0, Some(1))].into());
    let deposed = Err(Refused::NotLeader(Some(NodeId(2))));
    world.say(0, &[crate::wire::client::Answer::new(G, 1, deposed)]);
    world.settle();
    assert_eq!(world.arrived, [(0, 0, 1), (1, 0, 1)]);
    assert_eq!(world.results(), [(1, false)]);
}

/// A number that is never used looks, after a loss, like an answer that is lost.
#[test]
fn a_block_that_is_refused_for_what_it_is_leaves_no_hole_in_the_numbers() {
    for refused in [Refused::TooLarge, Refused::BadRequest] {
        let mut world = World::ready(3);
        world.submit(0);
        world.settle();
        world.moods[0] = Mood::Refuses(refused);
        world.submit(0);
        world.settle();
        world.moods[0] = Mood::Sound;
        world.submit(0);
        world.settle();
        assert_eq!(world.results(), [(1, true), (2, false), (3, true)]);
        assert_eq!(world.arrived, [(0, 0, 1), (0, 0, 2), (0, 0, 2)], "2 was seen by nobody");
        assert!(world.entries.is_empty());

        // Number 3 is refused with 4 behind it.
        world.moods[0] = Mood::Lossy;
        world.submit_many(0, 2);
        world.settle();
        world.applied.remove(&(0, 3));
        world.say(0, &[crate::wire::client::Answer::at_the_door(G, 3, refused)]);
        world.moods[0] = Mood::Sound;
        world.settle();
        assert_eq!(world.entries, [SessionEntry::KeepAlive], "it takes number 3");
        assert_eq!(world.arrived.last(), Some(&(0, 0, 3)));
        world.run(2_000_000, |w| w.done.len() == 5);
        assert_eq!(world.results()[3..], [(4, false), (5, true)], "who asked hears nothing of it");
        assert_eq!(world.applied, (1..=4).map(|seq| (0, seq)).collect());
        assert_eq!(world.core.stamp(G), Stamp { client: SESSION, seq: 5, pending: 0 });
    }
}

/// While a block of the old session is on its way nothing of the new one leaves.
#[test]
fn the_next_session_begins_when_the_last_answer_of_the_old_one_is_there() {
    let mut world = World::ready(3);
    world.moods[0] = Mood::Lossy;
    world.submit_many(0, 2);
    world.settle();
    let stale = Err(Refused::Stale { open_from: 9 });
    let refusal = |seq| crate::wire::client::Answer::new(G, seq, stale);
    world.moods[0] = Mood::Sound;
    world.say(0, &[refusal(1)]);
    world.settle();
    world.submit(0);
    world.settle();
    assert_eq!(world.arrived.len(), 2, "number 2 is still on its way");
    world.say(0, &[refusal(2)]);
    world.settle();
    assert_eq!(world.arrived[2..].iter().map(|a| a.2).collect::<Vec<_>>(), [9, 10, 11]);
    assert_eq!(world.results(), [(1, true), (2, true), (3, true)]);
}

#[test]
fn a_session_at_rest_says_that_it_is_there_and_a_busy_one_does_not() {
    let mut world = World::with(ClientConfig { keep_alive_us: 60_000_000, ..config(3) });
    world.settle();
    world.submit(0);
    world.run(59_000_000, |_| false);
    assert!(world.entries.is_empty());
    world.submit(0);
    world.run(59_000_000, |_| false);
    assert!(world.entries.is_empty(), "a block says as much");
    world.run(150_000_000, |_| false);
    assert_eq!(world.entries, [SessionEntry::KeepAlive; 3]);
    assert_eq!(world.done.len(), 2, "the caller hears nothing of it");
    assert_eq!(world.flags.last(), Some(&FLAG_CONTINUES));
    assert_eq!(world.core.stamp(G).pending, 0);
}

#[test]
fn a_session_is_closed_when_nothing_is_under_way_and_opened_again_by_the_next_block() {
    let mut world = World::ready(3);
    world.submit(0);
    assert_eq!(world.core.close_session(world.now, G, 8), Err(SubmitError::Full));
    world.settle();
    world.core.close_session(world.now, G, 8).unwrap();
    world.settle();
    assert_eq!(world.entries, [SessionEntry::Close]);
    assert_eq!(world.results(), [(1, true), (8, true)]);
    // The cluster has forgotten it, and others that went further.
    world.spent = 5;
    world.core.close_session(world.now, G, 9).unwrap();
    world.settle();
    assert_eq!(
        world.done[2].result,
        Err(ClientError::Refused(Refused::Stale { open_from: 0 })),
        "it is gone already"
    );
    world.submit(0);
    world.settle();
    assert_eq!(world.arrived.last(), Some(&(0, 0, 6)));
    assert_eq!(world.done.len(), 4);
}
