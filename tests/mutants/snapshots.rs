//! Snapshots on their way from one shard to another.

use ringraft::ids::NodeId;
use ringraft::rng::Rng;
use ringraft::shard::snapshots::SnapshotConfig;

use super::shards::Trio;

const CHUNK: u32 = 1 << 10;

/// A snapshot is soon taken, sent in small chunks, and nothing is kept in the log for stragglers.
fn soon(snapshots: &mut SnapshotConfig) {
    snapshots.entries = 4;
    snapshots.interval_us = 0;
    snapshots.chunk_bytes = CHUNK;
    snapshots.window_bytes = 4 * u64::from(CHUNK);
}

/// The third is away for so long that its leader has nothing but a snapshot for it.
fn third_is_behind() -> Trio {
    fall_behind(Trio::new(soon))
}

fn fall_behind(mut trio: Trio) -> Trio {
    trio.cuts = vec![(0, 2), (1, 2)];
    (1..=40).for_each(|seq| drop(trio.submit(seq)));
    trio.run(50);
    assert!(trio.snapshots(0).taken > 0 && trio.leads());
    trio
}

/// Both ends of the link see that it was cut, and that it is there again.
fn third_is_back(trio: &mut Trio) {
    for (at, peer) in [(0, 3), (1, 3), (2, 1), (2, 2)] {
        let (shard, now, peer) = (&mut trio.shards[at], trio.now, NodeId(peer));
        shard.peer_disconnected(now, peer);
        shard.peer_connected(now, peer, ringraft::ids::Incarnation(1));
    }
    trio.cuts.clear();
}

/// Bit rot in the leader's file: the follower asks for another one and installs that (bug 11).
pub fn damage_on_the_way_is_not_installed() {
    let mut trio = third_is_behind();
    let mut rng = Rng::new(5);
    assert!(trio.disks[0].rot_snapshot(&mut rng).is_some());
    third_is_back(&mut trio);
    trio.run(400);
    let seen = trio.snapshots(2);
    assert_eq!((seen.installed, seen.failed), (1, 1), "the second one");
    assert_eq!(trio.state(2), trio.state(0));
}

/// Chunks that come twice are each taken once (bug 17).
pub fn chunks_that_come_twice_are_taken_once() {
    let mut trio = third_is_behind();
    trio.times = 2;
    third_is_back(&mut trio);
    trio.run(400);
    let seen = trio.snapshots(2);
    assert_eq!((seen.installed, seen.failed), (1, 0));
    assert_eq!(trio.state(2), trio.state(0));
}

/// Load goes on while the third gets its snapshot, and others are taken meanwhile: it goes on by the
/// log from the one it got, and needs no second one.
pub fn what_follows_a_snapshot_that_is_sent_stays_in_the_log() {
    let slowly = |snapshots: &mut SnapshotConfig| {
        soon(snapshots);
        snapshots.window_bytes = u64::from(CHUNK);
    };
    let mut trio = fall_behind(Trio::new(slowly));
    let taken = trio.snapshots(0).taken;
    third_is_back(&mut trio);
    let mut seq = 40;
    while trio.snapshots(2).installed == 0 {
        seq += 1;
        drop(trio.submit(seq));
        assert!(seq < 400, "it is never installed");
    }
    assert!(trio.snapshots(0).taken >= taken + 2, "the story needs a newer one");
    trio.run(100);
    assert_eq!(trio.snapshots(2).installed, 1);
    assert_eq!(trio.state(2), trio.state(0));
}

/// The third has another configuration and cannot use what its leader has. It says so once, and does
/// not have each new snapshot sent to it to find out; after a minute it tries another one.
pub fn who_cannot_use_a_snapshot_does_not_ask_for_each() {
    let odd = |n: u32, snapshots: &mut SnapshotConfig| {
        soon(snapshots);
        snapshots.config_hash = u64::from(n == 3);
    };
    let mut trio = fall_behind(Trio::of(odd));
    third_is_back(&mut trio);
    for seq in 41..=80 {
        drop(trio.submit(seq));
        trio.run(20);
    }
    let seen = trio.snapshots(2);
    assert_eq!((seen.installed, seen.failed), (0, 1), "it found out once");
    // A new link, and a newer snapshot is offered at once.
    third_is_back(&mut trio);
    trio.run(1000);
    assert_eq!(trio.snapshots(2).failed, 1, "another one would be the same");
    trio.run(60_000);
    assert_eq!(trio.snapshots(2).failed, 2, "perhaps somebody has done something");
}

/// The same: its leader's log goes on being cut, though there is a snapshot that it was offered.
pub fn who_cannot_use_a_snapshot_holds_no_log() {
    let odd = |n: u32, snapshots: &mut SnapshotConfig| {
        soon(snapshots);
        snapshots.config_hash = u64::from(n == 3);
    };
    let mut trio = fall_behind(Trio::of(odd));
    third_is_back(&mut trio);
    trio.run(500);
    (41..=80).for_each(|seq| drop(trio.submit(seq)));
    trio.run(50);
    let held = trio.log_entries();
    assert!(held <= 16, "{held} entries are held for nobody");
}

/// The third gets a part of a snapshot; then its link breaks, and newer ones are published.
fn third_has_a_part() -> Trio {
    let slowly = |snapshots: &mut SnapshotConfig| {
        soon(snapshots);
        snapshots.window_bytes = u64::from(CHUNK);
    };
    let mut trio = fall_behind(Trio::new(slowly));
    third_is_back(&mut trio);
    while trio.snapshots(2).received_bytes < 2 * u64::from(CHUNK) {
        trio.run(1);
    }
    let taken = trio.snapshots(0).taken;
    trio.cuts = vec![(0, 2), (1, 2), (2, 0), (2, 1)];
    for (at, peer) in [(0, 3), (1, 3), (2, 1), (2, 2)] {
        trio.shards[at].peer_disconnected(trio.now, NodeId(peer));
    }
    (41..=80).for_each(|seq| drop(trio.submit(seq)));
    trio.run(50);
    assert!(trio.snapshots(0).taken >= taken + 2 && trio.snapshots(2).installed == 0);
    trio
}

/// It comes back soon, and goes on where it was (bug 40).
pub fn a_transfer_goes_on_when_its_link_is_back() {
    let mut trio = third_has_a_part();
    third_is_back(&mut trio);
    trio.run(400);
    assert_eq!(trio.snapshots(2).installed, 1);
    let seen = trio.snapshots(0);
    assert!(seen.resumed == 1 && seen.resumed_bytes >= u64::from(CHUNK), "{seen:?}");
    assert_eq!(trio.state(2), trio.state(0));
}

/// It does not come back: what it would have needed goes.
pub fn who_does_not_come_back_holds_no_log() {
    let mut trio = third_has_a_part();
    assert!(trio.log_entries() > 40, "it is waited for");
    trio.run(11_000);
    let held = trio.log_entries();
    assert!(held <= 16, "{held} entries are held for nobody");
}

/// While leadership is on its way to somebody who does not answer, every proposal gets an answer, and
/// what is answered with a place in the log has that place (bug 39).
pub fn what_comes_during_a_transfer_is_refused() {
    let mut trio = Trio::new(|_| {});
    drop(trio.submit(1));
    trio.run(20);
    assert!(trio.answers().iter().any(|answer| answer.result.is_ok()), "the leader serves");
    trio.cuts = vec![(0, 1)];
    drop(trio.submit(2));
    trio.shards[0].transfer(trio.now, ringraft::ids::GroupId(0), NodeId(2)).expect("it is close");
    let answers = trio.submit(3);
    assert!(answers.iter().any(|answer| answer.seq == 3 && answer.result.is_err()), "{answers:?}");
}
