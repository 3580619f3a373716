//! Changes of leader, and what becomes of the blocks that were under way.

use super::machine::Ledger;
use super::world::{Cluster, MS, Setup, block, block_of};
use crate::wire::client::Refused;

fn led() -> (Cluster<Ledger>, usize) {
    let mut cluster = Setup::new(1).start();
    cluster.elect();
    cluster.converge();
    let leader = cluster.leader(0).expect("elected");
    (cluster, leader)
}

fn new_leader(c: &mut Cluster<Ledger>, old: usize) -> usize {
    c.run_until("another leader", 3000 * MS, |c| c.leader(0).is_some_and(|i| i != old));
    c.run_until("it commits", 1000 * MS, |c| {
        let raft = c.raft(c.leader(0).unwrap(), 0);
        raft.log().term_at(raft.commit()) == Some(raft.term())
    });
    c.leader(0).unwrap()
}

fn once_everywhere(c: &Cluster<Ledger>, client: u64, seq: u64) {
    for i in 0..3 {
        assert_eq!(c.machine(i, 0).times(client, seq), 1, "node {i}");
    }
}

#[test]
fn a_block_that_outlived_its_leader_is_applied_once_and_its_retry_gets_the_first_answer() {
    let (mut c, old) = led();
    let client = c.client(old);
    c.submit(client, &[block(0, 9, 1)]);
    let last = c.raft(old, 0).last_index().next();
    c.run_until("a follower has it", 100 * MS, |c| {
        (0..3).any(|i| i != old && c.raft(i, 0).last_index() == last)
    });
    // Before the leader hears of it, it is alone.
    assert!(c.raft(old, 0).commit() < last);
    c.isolate(old);
    let deposed = c.answer(client);
    assert!(matches!(deposed.result, Err(Refused::NotLeader(_))));
    assert!(!deposed.unproposed, "its log has the block, and so has a follower's");

    let new = new_leader(&mut c, old);
    let again = c.client(new);
    c.submit(again, &[block(0, 9, 1)]);
    let done = c.answer(again).result.expect("committed");
    assert!(done.retry);
    assert_eq!(done.first, last, "the answer of the first copy");
    c.heal();
    c.converge();
    once_everywhere(&c, 9, 1);
}

#[test]
fn a_block_that_died_with_its_leader_is_applied_by_the_retry() {
    let (mut c, old) = led();
    c.isolate(old);
    let client = c.client(old);
    c.submit(client, &[block(0, 9, 1)]);
    assert!(matches!(c.answer(client).result, Err(Refused::NotLeader(_))));
    let new = new_leader(&mut c, old);
    let again = c.client(new);
    c.submit(again, &[block(0, 9, 1)]);
    let done = c.answer(again).result.expect("committed");
    assert!(!done.retry);
    c.heal();
    c.converge();
    once_everywhere(&c, 9, 1);
}

#[test]
fn a_block_sent_twice_is_applied_once_and_an_old_one_is_stale() {
    let (mut c, leader) = led();
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1), block(0, 9, 1)]);
    c.run(20 * MS);
    let both: Vec<_> = c.answers(client).iter().map(|a| a.result.expect("committed")).collect();
    assert_eq!(both.len(), 2);
    assert_eq!((both[0].retry, both[1].retry), (false, true));
    assert_eq!(both[0].first, both[1].first);

    // The client no longer waits for what lies below 5.
    c.submit(client, &[block_of(0, 9, 5, 0, 1, 8)]);
    assert!(c.answer(client).result.is_ok());
    c.submit(client, &[block(0, 9, 1)]);
    assert_eq!(c.answer(client).result, Err(Refused::Stale { open_from: 0 }));
    c.converge();
    once_everywhere(&c, 9, 1);
}

#[test]
fn who_does_not_lead_names_the_leader() {
    let (mut c, leader) = led();
    let other = (leader + 1) % 3;
    let client = c.client(other);
    c.submit(client, &[block(0, 9, 1)]);
    let hint = c.raft(leader, 0).id();
    assert_eq!(c.answer(client).result, Err(Refused::NotLeader(Some(hint))));
    c.submit(client, &[block(0, 9, 1)]);
    assert!(c.answer(client).unproposed, "it reached no log");
}

#[test]
fn a_killed_leader_is_replaced_within_a_heartbeat_because_its_connections_break() {
    let (mut c, old) = led();
    let before = c.now;
    c.kill(old);
    new_leader(&mut c, old);
    assert!(c.now.since(before) < 60 * MS, "took {} us", c.now.since(before));
}
