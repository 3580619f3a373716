//! Recovery from the disk, and followers that were away.

use super::machine::Ledger;
use super::world::{Cluster, MS, Setup, block, block_of};
use crate::wal::{DiskErrorKind, DiskOp};

/// Has `count` blocks of group 0 committed, one after another; session 9, from `seq` on.
fn commit(c: &mut Cluster<Ledger>, seq: u64, count: u64) {
    c.elect();
    let leader = c.leader(0).unwrap();
    let client = c.client(leader);
    for seq in seq..seq + count {
        c.submit(client, &[block_of(0, 9, seq, 0, 1, 200)]);
        assert!(c.answer(client).result.is_ok());
    }
    c.hang_up(client);
}

fn all_there(c: &Cluster<Ledger>, count: u64) {
    for i in 0..3 {
        assert!((1..=count).all(|seq| c.machine(i, 0).times(9, seq) == 1), "node {i}");
    }
}

fn after_the_end_of_all(sync: bool, end: fn(&mut Cluster<Ledger>, usize)) {
    let mut setup = Setup::new(5);
    setup.shard.wal_sync = sync;
    let mut c = setup.start();
    for round in 0..5 {
        commit(&mut c, 1 + round * 20, 20);
        (0..3).for_each(|i| end(&mut c, i));
        (0..3).for_each(|i| c.boot(i));
        c.elect();
        c.converge();
        all_there(&c, (1 + round) * 20);
    }
    assert_eq!(c.nodes[0].incarnation, 6);
}

#[test]
fn all_nodes_killed_at_once_lose_nothing_acknowledged() {
    after_the_end_of_all(true, Cluster::kill);
    after_the_end_of_all(false, Cluster::kill);
}

#[test]
fn a_power_cut_of_all_nodes_loses_nothing_synced() {
    after_the_end_of_all(true, Cluster::cut_power);
}

#[test]
fn a_restarted_node_applies_its_log_again_and_agrees() {
    let mut c = Setup::new(1).start();
    commit(&mut c, 1, 30);
    let victim = (c.leader(0).unwrap() + 1) % 3;
    c.kill(victim);
    commit(&mut c, 31, 30);
    c.boot(victim);
    c.converge();
    all_there(&c, 60);
    assert!(c.shard(victim).wal().stats().reads > 0, "what it had was read from its own disk");
}

/// A leader that keeps next to nothing in memory, and a follower that missed 60 blocks.
fn behind() -> (Cluster<Ledger>, usize, usize) {
    let mut setup = Setup::new(1);
    setup.shard.raft.cache_bytes_max = 2048;
    setup.shard.raft.append_bytes_max = 4096;
    let mut c = setup.start();
    commit(&mut c, 1, 5);
    c.converge();
    let leader = c.leader(0).unwrap();
    let away = (leader + 1) % 3;
    c.isolate(away);
    c.run(400 * MS);
    commit(&mut c, 6, 60);
    assert_eq!(c.leader(0), Some(leader));
    assert!(c.raft(leader, 0).cached_bytes() <= 2048);
    (c, leader, away)
}

#[test]
fn a_follower_that_was_away_is_served_from_the_log() {
    let (mut c, leader, _) = behind();
    let reads = c.shard(leader).wal().stats().reads;
    c.heal();
    c.converge();
    all_there(&c, 65);
    assert!(c.shard(leader).wal().stats().reads > reads + 2, "in several reads");
}

#[test]
fn a_read_that_failed_is_tried_again() {
    let (mut c, leader, away) = behind();
    c.hold_disk(leader);
    let is_read: fn(&DiskOp) -> bool = |op| matches!(op, DiskOp::Read { .. });
    c.heal();
    c.hold_disk(leader);
    c.run_until("a read for the follower", 500 * MS, |c| c.find_op(leader, is_read).is_some());
    let at = c.find_op(leader, is_read).unwrap();
    c.fail_op(leader, at, DiskErrorKind::Io);
    c.release_disk(leader);
    c.run(2000 * MS);
    assert_eq!(c.applied(away, 0), c.applied(leader, 0), "the follower is not given up");
    all_there(&c, 65);
}

#[test]
fn nothing_leaves_until_the_recovered_log_is_durable() {
    let mut setup = Setup::new(1);
    setup.shard.wal_sync = false;
    setup.wal.sync_lag_us = 1 << 40;
    let mut c = setup.start();
    commit(&mut c, 1, 5);
    c.converge();
    // What the killed processes wrote may still lie in a volatile cache.
    (0..3).for_each(|i| c.kill(i));
    assert!(c.nodes.iter().all(|node| !node.disk.at_risk.is_empty()));
    (0..3).for_each(|i| c.hold_disk(i));
    (0..3).for_each(|i| c.boot(i));
    let sent = c.traffic.messages;
    c.run(1000 * MS);
    assert_eq!(c.traffic.messages, sent, "not a vote, not an acknowledgement");
    c.heal();
    c.elect();
    c.converge();
    all_there(&c, 5);
}

#[test]
fn a_node_that_voted_and_never_held_an_entry_starts_again() {
    let mut c = Setup::new(1).start();
    c.run_until("a vote", 1000 * MS, |c| {
        (0..3).any(|i| c.raft(i, 0).vote().is_some() && c.raft(i, 0).last_index().0 == 0)
    });
    let of = |c: &Cluster<Ledger>, i| (c.raft(i, 0).term(), c.raft(i, 0).vote());
    let voted = (0..3).find(|&i| c.raft(i, 0).vote().is_some()).unwrap();
    c.isolate(voted);
    c.run(10 * MS);
    let before = of(&c, voted);
    assert_eq!(c.raft(voted, 0).last_index().0, 0);
    c.cut_power(voted);
    c.boot(voted);
    assert_eq!(of(&c, voted), before, "and remembers its vote");
    c.heal();
    commit(&mut c, 1, 3);
    c.converge();
    all_there(&c, 3);
}

#[test]
fn a_deposed_leaders_own_entries_give_way() {
    let mut c = Setup::new(1).start();
    commit(&mut c, 1, 5);
    let old = c.leader(0).unwrap();
    c.isolate(old);
    let client = c.client(old);
    let lost: Vec<_> = (100..110).map(|seq| block(0, 7, seq)).collect();
    c.submit(client, &lost);
    c.run(2000 * MS);
    assert_eq!(c.answers(client).len(), 10, "each is told to ask the leader");
    c.elect();
    commit(&mut c, 6, 5);
    c.heal();
    c.converge();
    all_there(&c, 10);
    assert!((0..3).all(|i| c.machine(i, 0).times(7, 100) == 0));
    c.kill(old);
    c.boot(old);
    c.converge();
    all_there(&c, 10);
}
