//! Questions that rely on something, and leadership that goes elsewhere.

use super::machine::Ledger;
use super::world::{Cluster, MS, Setup, block, frames};
use crate::ids::{GroupId, Index};
use crate::wire::client::{Consistency, Query, Refused, write_query};

fn led(setup: Setup) -> (Cluster<Ledger>, usize) {
    let mut c = setup.start();
    c.elect();
    c.converge();
    let leader = c.leader(0).expect("elected");
    (c, leader)
}

fn ask(c: &mut Cluster<Ledger>, client: usize, token: u64, consistency: Consistency) {
    let mut out = Vec::new();
    write_query(&mut out, token, GroupId(0), consistency, b"count");
    c.give(client, frames(&out).pop().expect("one frame")).unwrap();
}

fn reply(c: &mut Cluster<Ledger>, client: usize) -> Query {
    c.run_until("an answer", 2000 * MS, |c| !c.clients[client].replies.is_empty());
    c.clients[client].replies.remove(0)
}

fn commit(c: &mut Cluster<Ledger>, leader: usize, seq: u64) -> Index {
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, seq)]);
    c.answer(client).result.expect("committed").first
}

#[test]
fn every_replica_answers_what_sees_all_that_was_acknowledged() {
    let (mut c, leader) = led(Setup::new(1));
    let first = commit(&mut c, leader, 1);
    for node in 0..3 {
        let client = c.client(node);
        ask(&mut c, client, 5, Consistency::Follower);
        let reply = reply(&mut c, client);
        assert!(reply.result.is_ok() && reply.place.index >= first, "node {node}: {reply:?}");
    }
    let client = c.client(leader);
    for consistency in [Consistency::Linearizable, Consistency::Lease] {
        ask(&mut c, client, 6, consistency);
        assert!(reply(&mut c, client).place.index >= first);
    }
    let stats = c.shard(leader).stats();
    assert_eq!(stats.reads, [1, 1, 1, 0]);
}

#[test]
fn only_the_leader_takes_what_only_a_leader_answers() {
    let (mut c, leader) = led(Setup::new(1));
    let client = c.client((leader + 1) % 3);
    ask(&mut c, client, 1, Consistency::Linearizable);
    let hint = crate::ids::NodeId(leader as u32 + 1);
    assert_eq!(reply(&mut c, client).result, Err(Refused::NotLeader(Some(hint))));
}

/// 1. The leader is cut off and does not know it. It is asked.
/// 2. The others elect somebody, who acknowledges a command.
/// 3. Whatever the old leader says now must not be from before that.
#[test]
fn a_leader_that_is_cut_off_sends_its_readers_elsewhere() {
    let (mut c, old) = led(Setup::new(1));
    let client = c.client(old);
    c.isolate(old);
    for kind in [Consistency::Linearizable, Consistency::Follower, Consistency::Lease] {
        ask(&mut c, client, 1, kind);
        assert!(matches!(reply(&mut c, client).result, Err(Refused::NotLeader(_))), "{kind:?}");
        c.run(500 * MS);
        if c.raft(old, 0).role() != crate::raft::Role::Leader {
            break;
        }
    }
    // What it has applied it still tells to those who want no more than that.
    ask(&mut c, client, 2, Consistency::Stale);
    assert!(reply(&mut c, client).result.is_ok());
}

#[test]
fn a_lease_answers_without_a_message_and_not_without_being_asked_for() {
    let mut setup = Setup::new(1);
    setup.shard.raft.lease_reads = true;
    let (mut c, leader) = led(setup);
    // The heartbeats of the timer renew it.
    c.run(200 * MS);
    let client = c.client(leader);
    c.isolate(leader);
    ask(&mut c, client, 1, Consistency::Lease);
    ask(&mut c, client, 2, Consistency::Linearizable);
    c.run(10 * MS);
    let seen: Vec<u64> = c.clients[client].replies.iter().map(|reply| reply.token).collect();
    assert_eq!(seen, [1], "the other one waits for a round");
}

#[test]
fn many_reads_share_a_round() {
    let (mut c, leader) = led(Setup::new(1));
    let client = c.client(leader);
    let before = c.traffic.messages;
    for token in 0..500 {
        ask(&mut c, client, token, Consistency::Linearizable);
    }
    c.run_until("all answers", 1000 * MS, |c| c.clients[client].replies.len() == 500);
    let messages = c.traffic.messages - before;
    assert!(messages < 20, "{messages} messages for 500 reads");
}

#[test]
fn questions_of_one_connection_are_bounded() {
    let mut setup = Setup::new(1);
    setup.shard.client_blocks_max = 10;
    let (mut c, leader) = led(setup);
    let client = c.client(leader);
    c.isolate(leader);
    (0..30).for_each(|token| ask(&mut c, client, token, Consistency::Linearizable));
    c.run(MS);
    let busy = c.clients[client].replies.iter().filter(|r| r.result == Err(Refused::Busy));
    assert_eq!(busy.count(), 20);
    // The others have waited in vain: there is room again.
    c.run_until("refusals", 2000 * MS, |c| c.clients[client].replies.len() == 30);
    ask(&mut c, client, 99, Consistency::Follower);
    c.run(MS);
    assert_eq!(c.clients[client].replies.len(), 30, "it waits");
}

#[test]
fn a_node_that_stops_hands_its_groups_over_and_serves_them_until_then() {
    let (mut c, leader) = led(Setup::new(3));
    let terms: Vec<_> = (0..3).map(|group| c.raft(leader, group).term()).collect();
    let led: Vec<u32> = (0..3).filter(|&group| c.leader(group) == Some(leader)).collect();
    c.nodes[leader].shard.as_mut().unwrap().drain();
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1)]);
    let answer = c.answer(client).result;
    assert!(
        matches!(answer, Ok(_) | Err(Refused::Busy | Refused::NotLeader(Some(_)))),
        "{answer:?}"
    );
    // Far less than anybody's patience.
    c.run(20 * MS);
    for group in led {
        let now = c.leader(group).expect("somebody leads");
        assert_ne!(now, leader);
        assert_eq!(c.raft(now, group).term(), terms[group as usize].next(), "one election");
    }
    assert!(c.shard(leader).is_quiet());
}

/// Who is told to campaign and does not want to says nothing. The next try goes to somebody else.
#[test]
fn of_two_nodes_that_stop_together_both_find_the_one_that_stays() {
    let mut c = Setup::new(6).start();
    c.elect();
    c.converge();
    (0..2).for_each(|i| c.nodes[i].shard.as_mut().unwrap().drain());
    c.run_until("the third node leads all", 800 * MS, |c| {
        (0..6).all(|group| c.leader(group) == Some(2))
    });
}

/// Of those who could take over, the one with the priority gets all; with priority 0 one leads only
/// where nobody else can.
#[test]
fn a_node_that_stops_hands_nothing_to_one_that_is_not_to_lead() {
    let mut setup = Setup::new(6);
    setup.shard.leaders.priorities = vec![(crate::ids::NodeId(2), 0)];
    let mut c = setup.start();
    c.elect();
    c.converge();
    let before: Vec<_> = (0..6).map(|group| c.leader(group)).collect();
    assert!(before.iter().all(|&leader| leader != Some(1)), "nor does it begin: {before:?}");
    c.nodes[0].shard.as_mut().unwrap().drain();
    c.run_until("the third node leads all", 800 * MS, |c| {
        (0..6).all(|group| c.leader(group) == Some(2))
    });
    c.nodes[2].shard.as_mut().unwrap().drain();
    c.run_until("and then nobody else can", 2000 * MS, |c| {
        (0..6).all(|group| c.leader(group) == Some(1))
    });
}

#[test]
fn leaders_go_home_when_that_is_wanted() {
    let mut setup = Setup::new(6);
    setup.shard.leaders.balance_us = 100 * MS;
    setup.shard.leaders.priorities = vec![(crate::ids::NodeId(3), 0)];
    let mut c = setup.start();
    c.elect();
    c.run_until("all are where they belong", 20_000 * MS, |c| {
        (0..6).all(|group| c.leader(group) == Some(group as usize % 2))
    });
}
