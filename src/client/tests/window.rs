//! The window of numbers, batching, bounds and deadlines.

use super::world::*;
use crate::block::{BLOCK_BYTES_MAX, BlockBuilder, Command};
use crate::client::*;
use crate::ids::*;
use crate::shard::sessions::SessionEntry;
use crate::wire::client::Refused;

#[test]
fn the_window_fills_and_opens_again_in_order() {
    let mut world = World::with(ClientConfig { in_flight_max: 3, ..config(3) });
    world.settle();
    world.moods[0] = Mood::Lossy;
    world.submit_many(0, 3);
    assert_eq!(world.core.room(GroupId(0)), 0);
    assert_eq!(world.core.room(GroupId(3)), 3, "each group has a window of its own");
    let block = world.block(0);
    assert_eq!(world.core.submit(world.now, block, 9), Err(SubmitError::Full));
    world.moods[0] = Mood::Sound;
    world.settle();
    assert_eq!(world.core.room(GroupId(0)), 3);
}

#[test]
fn the_stamp_tells_what_is_still_waited_for() {
    let mut world = World::ready(3);
    world.moods[0] = Mood::Lossy;
    world.submit_many(0, 4);
    world.settle();
    assert_eq!(world.core.stamp(GroupId(0)), Stamp { client: SESSION, seq: 5, pending: 4 });
    let answer =
        |w: &World, seq| crate::wire::client::Answer::new(GroupId(0), seq, Ok(w.committed(seq)));
    world.say(0, &[answer(&world, 2), answer(&world, 3)]);
    world.settle();
    assert_eq!(world.core.stamp(GroupId(0)).pending, 4, "number 1 is still waited for");
    world.say(0, &[answer(&world, 1)]);
    world.settle();
    assert_eq!(world.core.stamp(GroupId(0)).pending, 1, "now only number 4 is");
    assert_eq!(world.done.iter().map(|d| d.seq).collect::<Vec<_>>(), [2, 3, 1]);
}

#[test]
fn a_block_stamped_for_another_place_is_refused() {
    let mut world = World::ready(3);
    let first = world.block(0);
    world.core.submit(world.now, first.clone(), 1).unwrap();
    let again = world.core.submit(world.now, first, 2);
    assert_eq!(again, Err(SubmitError::WrongStamp { expected: 2 }));
}

#[test]
fn what_is_submitted_between_two_polls_leaves_in_one_frame() {
    let mut world = World::ready(3);
    world.submit_many(0, 100);
    world.submit_many(3, 100);
    world.settle();
    assert_eq!((world.frames, world.arrived.len()), (1, 200), "two groups, one link");
}

#[test]
fn while_a_send_is_unfinished_the_next_one_gathers() {
    let mut world = World::ready(3);
    world.hold_sends = true;
    world.submit(0);
    world.settle();
    for _ in 0..10 {
        world.submit(0);
        world.settle();
    }
    assert_eq!(world.arrived.len(), 1);
    world.hold_sends = false;
    let (link, buffer) = world.held.pop().unwrap();
    world.core.sent(link, buffer);
    world.settle();
    assert_eq!((world.frames, world.arrived.len()), (2, 11));
}

#[test]
fn a_block_that_went_elsewhere_does_not_leave_by_its_old_queue_too() {
    let mut world = World::ready(3);
    world.hold_sends = true;
    world.submit(0);
    world.settle();
    world.submit(0);
    world.run(500_000, |_| false);
    // n0 is heard, so its connection stays; but its send does not end, and the block goes to n1.
    let result = Ok(world.committed(1));
    world.say(0, &[crate::wire::client::Answer::new(GroupId(0), 1, result)]);
    world.leaders.insert(0, Some(1));
    world.moods[1] = Mood::Lossy;
    world.run(600_000, |w| w.arrived.len() == 2);
    assert_eq!(world.arrived[1], (1, 0, 2));
    for (link, buffer) in std::mem::take(&mut world.held) {
        world.core.sent(link, buffer);
    }
    world.settle();
    assert_eq!(world.arrived.len(), 2);
}

#[test]
fn large_blocks_are_split_over_frames_and_sends_and_bounded_in_bytes() {
    let mut world = World::ready(1);
    world.hold_sends = true;
    let value = vec![7; BLOCK_BYTES_MAX - 100];
    let group = GroupId(0);
    let mut taken = 0;
    while world.core.room(group) > 0 {
        let mut builder = BlockBuilder::default();
        let command = Command { kind: 1, flags: 0, timestamp: 0, key: b"", value: &value };
        builder.push(&command).unwrap();
        let stamp = world.core.stamp(group);
        let block = builder.finish(group, stamp.client, stamp.seq, stamp.pending);
        world.core.submit(world.now, block, taken).unwrap();
        taken += 1;
        world.settle();
    }
    assert!((16..20).contains(&taken), "{taken} MiB were queued");
    world.hold_sends = false;
    let (link, buffer) = world.held.pop().unwrap();
    world.core.sent(link, buffer);
    world.settle();
    assert_eq!(world.done.len() as u64, taken);
}

#[test]
fn at_the_deadline_a_block_ends_with_its_fate_unknown() {
    let mut world = World::ready(3);
    world.leaders.insert(0, None);
    let tag = world.submit(0);
    world.run(9_999_999, |w| !w.done.is_empty());
    assert!(world.done.is_empty());
    world.run(1, |w| !w.done.is_empty());
    assert_eq!(world.now, Tick(10_000_000), "to the microsecond");
    assert_eq!((world.done[0].tag, &world.done[0].result), (tag, &Err(ClientError::Timeout)));
    assert_eq!(world.core.stamp(GroupId(0)).pending, 0, "the cluster may forget it");
}

#[test]
fn the_deadline_comes_also_when_every_node_is_dead() {
    let mut world = World::ready(3);
    (0..3).for_each(|n| world.kill(n));
    world.submit(0);
    world.run(10_000_000, |w| !w.done.is_empty());
    assert_eq!(world.done[0].result, Err(ClientError::Timeout));
    assert!(world.connects.len() < 200, "{} connects in ten seconds", world.connects.len());
}

/// The number of a block that is refused late is used for a sign of life, which is as old as the block
/// was: were it new, the block behind it would be overdue with nobody to end it, and the same alarm
/// would ring for ever.
#[test]
fn a_block_behind_one_that_was_refused_late_ends_at_its_own_deadline() {
    let patient = ClientConfig { resend_us: 60_000_000, doubt_us: 60_000_000, ..config(1) };
    let mut world = World::with(patient);
    world.settle();
    world.moods[0] = Mood::Lossy;
    let (first, second) = (world.submit(0), world.submit(0));
    world.run(9_000_000, |_| false);
    let refused = Refused::BadRequest;
    world.say(0, &[crate::wire::client::Answer::at_the_door(GroupId(0), 1, refused)]);
    world.settle();
    assert_eq!(world.entries, [SessionEntry::KeepAlive], "it takes number 1");
    world.run(2_000_000, |w| w.done.len() == 2);
    assert_eq!(world.now, Tick(10_000_000));
    let results: Vec<_> = world.done.iter().map(|d| (d.tag, &d.result)).collect();
    let late = Err(ClientError::Timeout);
    assert_eq!(results, [(first, &Err(ClientError::Refused(refused))), (second, &late)]);
}

#[test]
fn a_late_answer_after_the_deadline_is_ignored() {
    let mut world = World::ready(1);
    world.leaders.insert(0, None);
    world.submit(0);
    world.run(10_000_000, |w| !w.done.is_empty());
    let result = Ok(world.committed(1));
    world.say(0, &[crate::wire::client::Answer::new(GroupId(0), 1, result)]);
    world.settle();
    assert_eq!(world.done.len(), 1);
    assert!(world.faults.is_empty());
}

#[test]
fn groups_live_on_the_shard_of_their_number() {
    let mut world = World::new(3);
    world.shards = 4;
    world.settle();
    for group in 0..8 {
        world.submit(group);
    }
    world.settle();
    assert_eq!(world.done.len(), 8);
    let stride = world.core.map.stride;
    let shards = world.open.keys().map(|link| link.slot() / stride);
    assert_eq!(shards.max(), Some(3), "shards 0 to 3 are used");
}

#[test]
fn memory_comes_back_and_is_used_again() {
    let mut world = World::ready(1);
    world.submit(0);
    world.hold_sends = true;
    world.settle();
    let (link, mut buffer) = world.held.pop().unwrap();
    buffer.reserve_exact(50_000);
    let memory = buffer.as_ptr();
    world.core.sent(link, buffer);
    world.submit(0);
    world.settle();
    assert_eq!(world.held[0].1.as_ptr(), memory);
}
