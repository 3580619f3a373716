//! When a client hears of its block, and when a follower's word leaves.

use super::world::{Cluster, MS, Setup, block};
use crate::machine::StateMachine;
use crate::wal::DiskOp;
use crate::wire::client::Durability;

/// A cluster at rest: its leader and the other two.
fn three(setup: Setup) -> (Cluster<super::machine::Ledger>, usize, [usize; 2]) {
    let mut cluster = setup.start();
    cluster.elect();
    cluster.converge();
    let leader = cluster.leader(0).expect("elected");
    (cluster, leader, [(leader + 1) % 3, (leader + 2) % 3])
}

impl<M: StateMachine + 'static> Cluster<M> {
    /// Completes by hand the operations of a held disk that `wanted` picks.
    pub fn complete_by_hand(&mut self, i: usize, wanted: fn(&DiskOp) -> bool) -> usize {
        let mut count = 0;
        while let Some(at) = self.find_op(i, wanted) {
            let (op, done) = self.nodes[i].disk.complete(at);
            self.nodes[i].shard.as_mut().expect("up").disk_done(self.now, op, Ok(done));
            self.turn(i);
            count += 1;
        }
        count
    }
}

#[test]
fn a_block_is_answered_only_when_a_majority_of_disks_holds_it() {
    let (mut c, leader, [a, _]) = three(Setup::new(1));
    (0..3).for_each(|i| c.hold_disk(i));
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1)]);
    c.run(50 * MS);
    assert_eq!(c.answers(client), [], "no disk has it");

    c.release_disk(leader);
    c.run(50 * MS);
    assert_eq!(c.answers(client), [], "the leader alone is no majority");

    c.release_disk(a);
    let answer = c.answer(client);
    let done = answer.result.expect("committed");
    assert_eq!((answer.seq, done.durability, done.retry), (1, Durability::Synced, false));
    assert_eq!(c.machine(leader, 0).times(9, 1), 1);
}

#[test]
fn two_followers_are_a_majority_without_the_leaders_own_disk() {
    let (mut c, leader, _) = three(Setup::new(1));
    c.hold_disk(leader);
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1)]);
    assert!(c.answer(client).result.is_ok());
    let raft = c.raft(leader, 0);
    assert!(raft.durable_index() < raft.commit(), "its own write is still under way");
}

#[test]
fn a_followers_word_waits_for_its_own_flush() {
    let (mut c, leader, [a, b]) = three(Setup::new(1));
    c.isolate(b);
    c.hold_disk(a);
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1)]);
    c.run(20 * MS);
    let matched = |c: &Cluster<_>| {
        let raft = c.raft(leader, 0);
        let id = c.raft(a, 0).id();
        raft.progress().find(|(node, _)| *node == id).expect("a peer").1.matched()
    };
    let last = c.raft(leader, 0).last_index();
    assert_eq!(c.raft(a, 0).last_index(), last, "the follower has it in memory");
    assert!(matched(&c) < last, "and has not said so");

    assert!(c.complete_by_hand(a, |op| matches!(op, DiskOp::Write { .. })) > 0);
    c.run(MS);
    assert_eq!(matched(&c), last);
    assert!(c.answer(client).result.is_ok());
}

#[test]
fn without_sync_a_block_is_answered_when_it_is_written() {
    let mut setup = Setup::new(1);
    setup.shard.wal_sync = false;
    setup.wal.sync_lag_us = 1 << 40;
    let (mut c, leader, _) = three(setup);
    let syncs: u64 = c.nodes.iter().map(|node| node.disk.syncs).sum();
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1)]);
    let done = c.answer(client).result.expect("committed");
    assert_eq!(done.durability, Durability::Written);
    assert_eq!(c.nodes.iter().map(|node| node.disk.syncs).sum::<u64>(), syncs, "nobody synced");
    assert!(c.nodes.iter().any(|node| !node.disk.at_risk.is_empty()));
}

/// Bug 28 and durability.md R7: writes that complete are no progress for ever.
///
/// 1. The leader's syncs hang; its writes go on, and what is acknowledged piles up.
/// 2. Four lags later it writes no more, so that nothing more is acknowledged here.
/// 3. Two election timeouts later it is not the leader any more.
#[test]
fn without_sync_a_leader_whose_syncs_hang_gives_up() {
    let mut setup = Setup::new(1);
    setup.shard.wal_sync = false;
    setup.wal.sync_lag_us = 20 * MS;
    let (mut c, leader, _) = three(setup);
    let client = c.client(leader);
    c.hold_disk(leader);
    let mut seq = 0;
    for _ in 0..2000 {
        if c.leader(0) != Some(leader) {
            break;
        }
        seq += 1;
        c.submit(client, &[block(0, 9, seq)]);
        c.run(MS);
        c.complete_by_hand(leader, |op| matches!(op, DiskOp::Write { .. }));
    }
    assert!(seq > 80, "it goes on for four lags");
    c.run_until("another one leads", 3000 * MS, |c| c.leader(0).is_some_and(|i| i != leader));
}

#[test]
fn without_sync_a_vote_still_waits_for_stable_storage() {
    let mut setup = Setup::new(1);
    setup.shard.wal_sync = false;
    setup.wal.sync_lag_us = 1 << 40;
    let (mut c, leader, rest) = three(setup);
    // An unsynced block lies in front of the votes: their own O_DSYNC does not carry them.
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1)]);
    assert!(c.answer(client).result.is_ok());
    c.run(MS);
    rest.iter().for_each(|&i| c.hold_disk(i));
    let term = c.raft(leader, 0).term();
    c.isolate(leader);
    for _ in 0..2000 {
        c.run(MS);
        for i in rest {
            c.complete_by_hand(i, |op| matches!(op, DiskOp::Write { .. }));
        }
    }
    assert!(rest.iter().all(|&i| c.raft(i, 0).term() > term), "they have tried");
    assert!(rest.iter().all(|&i| Some(i) != c.leader(0)), "no vote was good enough");
    c.heal();
    c.elect();
    assert!(c.raft(c.leader(0).unwrap(), 0).term() > term);
}

#[test]
fn without_sync_an_append_behind_a_new_term_waits_for_the_term() {
    let mut setup = Setup::new(1);
    setup.nodes = 5;
    setup.shard.wal_sync = false;
    setup.wal.sync_lag_us = 1 << 40;
    let (mut c, old, [a, _]) = three(setup);
    // In front of a's new term lies an unsynced block, so that no write alone makes it durable.
    let client = c.client(old);
    c.submit(client, &[block(0, 9, 1)]);
    assert!(c.answer(client).result.is_ok());
    c.run(5 * MS);
    c.isolate(a);
    c.kill(old);
    c.run_until("another leader", 3000 * MS, |c| c.leader(0).is_some());
    c.elect();
    let new = c.leader(0).unwrap();
    c.heal();
    c.hold_disk(a);
    for _ in 0..300 {
        c.run(MS);
        c.complete_by_hand(a, |op| matches!(op, DiskOp::Write { .. }));
    }
    assert_eq!(c.raft(a, 0).term(), c.raft(new, 0).term(), "it has heard of the term");
    assert_eq!(c.raft(a, 0).last_index(), c.raft(new, 0).last_index(), "and taken the entries");
    let id = c.raft(a, 0).id();
    let matched = |c: &Cluster<_>| {
        c.raft(new, 0).progress().find(|(node, _)| *node == id).expect("a peer").1.matched()
    };
    assert_eq!(matched(&c).0, 0, "but says nothing in a term it could forget");
    c.release_disk(a);
    c.run(200 * MS);
    assert_eq!(matched(&c), c.raft(new, 0).last_index());
}
