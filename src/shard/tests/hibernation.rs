//! Groups that sleep: what they cost, what wakes them, and that nobody who is needed sleeps on.

use super::world::{Cluster, MS, Setup, block};
use crate::ids::{GroupId, NodeId, Tick};
use crate::membership::Step;
use crate::raft::ready::Role;
use crate::shard::tests::machine::Ledger;

const REST: u64 = 200 * MS;

/// Three nodes whose groups sleep after 100 ms.
fn setup(groups: u32) -> Setup {
    let mut setup = Setup::new(groups);
    setup.wal.segment_bytes = 2 << 20;
    setup.shard.raft.hibernate_after_us = 100 * MS;
    setup
}

/// All groups have a leader, nobody has anything to do, and all sleep.
fn asleep(setup: Setup) -> Cluster<Ledger> {
    let mut c = setup.start();
    c.elect();
    c.converge();
    sleep_again(&mut c);
    c
}

fn sleep_again(c: &mut Cluster<Ledger>) {
    c.run_until("all groups sleep", 3000 * MS, |c| {
        let groups = c.setup.shard.groups as usize;
        (0..c.nodes.len()).all(|i| !c.is_up(i) || c.shard(i).hibernating() == groups)
    });
}

fn awake(c: &Cluster<Ledger>, i: usize, group: u32) -> bool {
    !c.raft(i, group).is_hibernating()
}

#[test]
fn groups_at_rest_cost_one_sign_of_life_a_pair_of_shards() {
    let mut c = asleep(setup(300));
    let before = c.traffic;
    c.run(1000 * MS);
    // Two peers, 20 heartbeat intervals a second, three nodes, however many groups.
    assert_eq!(c.traffic.messages - before.messages, 2 * 20 * 3);
    assert!((0..3).all(|i| c.shard(i).hibernating() == 300));
}

#[test]
fn a_proposal_wakes_its_group_at_once_and_no_other() {
    let mut c = asleep(setup(8));
    let leader = c.leader(5).unwrap();
    let client = c.client(leader);
    let began = c.now;
    c.submit(client, &[block(5, 9, 1)]);
    assert!(c.answer(client).result.is_ok());
    // One round trip and a write on each side, as if it had been awake.
    assert!(c.now.since(began) < 2 * MS, "{} us", c.now.since(began));
    assert!((0..3).all(|i| awake(&c, i, 5) && c.shard(i).hibernating() == 7));
    sleep_again(&mut c);
    let commit = c.raft(leader, 5).commit();
    assert!((0..3).all(|i| c.raft(i, 5).commit() == commit), "they sleep on the same");
}

/// Story: a refused command wakes a sleeping leader, and nothing else happens to the group. Nobody
/// called it again: awake, it neither beat nor slept, took its silent peers for dead, and stepped down
/// at its next proposal, before any answer could have come.
#[test]
fn a_refused_command_leaves_no_group_awake_without_a_timer() {
    let mut c = asleep(setup(8));
    let leader = c.leader(5).unwrap();
    let term = c.raft(leader, 5).term();
    let refused = |c: &mut Cluster<Ledger>| {
        let now = c.now;
        let shard = c.nodes[leader].shard.as_mut().unwrap();
        assert!(shard.transfer(now, GroupId(5), NodeId(99)).is_err());
        assert!(awake(c, leader, 5));
    };
    refused(&mut c);
    sleep_again(&mut c);
    refused(&mut c);
    c.run(450 * MS);
    let client = c.client(leader);
    let began = c.now;
    c.submit(client, &[block(5, 9, 1)]);
    assert!(c.answer(client).result.is_ok());
    assert!(c.now.since(began) < 2 * MS, "{} us", c.now.since(began));
    assert_eq!((c.leader(5), c.raft(leader, 5).term()), (Some(leader), term));
}

#[test]
fn a_leader_killed_while_its_groups_sleep_is_replaced_within_the_election_timeout() {
    let mut c = asleep(setup(12));
    let leader = c.leader(0).unwrap();
    let led: Vec<u32> = (0..12).filter(|&g| c.leader(g) == Some(leader)).collect();
    let began = c.now;
    c.kill(leader);
    c.run_until("others lead its groups", 400 * MS, |c| led.iter().all(|&g| c.leader(g).is_some()));
    let others = (0..3).filter(|&i| i != leader).collect::<Vec<_>>();
    for &i in &others {
        let asleep = c.shard(i).hibernating();
        assert!(asleep >= 12 - led.len(), "groups of the living sleep on: {asleep}");
    }
    assert!(c.now.since(began) < 400 * MS);
    // They sleep without the node that is gone, and it is sent what it lacks when it is back.
    let client = c.client(c.leader(led[0]).unwrap());
    c.submit(client, &[block(led[0], 9, 1)]);
    assert!(c.answer(client).result.is_ok());
    c.run_until("the two that are left sleep", 3000 * MS, |c| {
        others.iter().all(|&i| c.shard(i).hibernating() == 12)
    });
    c.boot(leader);
    c.converge();
    sleep_again(&mut c);
}

#[test]
fn a_leader_whose_wires_fall_silent_is_replaced_though_no_connection_ends() {
    let mut c = asleep(setup(3));
    let leader = c.leader(0).unwrap();
    let others: Vec<_> = (0..3).filter(|&i| i != leader).collect();
    // Its sockets take nothing; what it would hear still arrives.
    others.iter().for_each(|&other| c.stick(leader, other, true));
    c.run_until("somebody else leads", 700 * MS, |c| c.leader(0).is_some_and(|now| now != leader));
    c.run_until("it hears of that", 700 * MS, |c| c.raft(leader, 0).role() == Role::Follower);
    others.iter().for_each(|&other| c.stick(leader, other, false));
    c.converge();
    sleep_again(&mut c);
}

#[test]
fn a_leader_that_hears_nobody_wakes_and_steps_down() {
    let mut c = asleep(setup(1));
    let leader = c.leader(0).unwrap();
    let others: Vec<_> = (0..3).filter(|&i| i != leader).collect();
    others.iter().for_each(|&other| c.stick(other, leader, true));
    c.run_until("it steps down", 1000 * MS, |c| c.raft(leader, 0).role() != Role::Leader);
    c.run_until("somebody leads whom a quorum hears", 1500 * MS, |c| {
        c.leader(0).is_some_and(|now| now != leader)
    });
    others.iter().for_each(|&other| c.stick(other, leader, false));
    c.converge();
    sleep_again(&mut c);
}

#[test]
fn a_follower_that_restarts_is_noticed_and_disturbs_nobody() {
    let mut c = asleep(setup(6));
    let leader = c.leader(0).unwrap();
    let term = c.raft(leader, 0).term();
    let follower = (leader + 1) % 3;
    c.kill(follower);
    c.run(20 * MS);
    c.boot(follower);
    c.run(REST);
    assert_eq!(c.raft(follower, 0).leader(), c.raft(leader, 0).leader());
    assert_eq!((c.raft(leader, 0).role(), c.raft(leader, 0).term()), (Role::Leader, term));
    c.converge();
    sleep_again(&mut c);
}

/// Story: n4 is down and is taken out. When it is back it knows nothing of that, and asks for votes in each
/// group several times a second, for ever; each question woke its group, so that none slept any more.
#[test]
fn groups_sleep_on_beside_a_node_that_was_removed_while_it_was_away() {
    let mut setup = setup(6);
    setup.nodes = 4;
    let mut c = asleep(setup);
    let gone = 3;
    c.kill(gone);
    c.elect();
    let groups = c.setup.shard.groups;
    for group in 0..groups {
        let leader = c.leader(group).unwrap();
        c.nodes[leader].woken = true;
        let (now, step) = (c.now, [Step::Remove(NodeId(gone as u32 + 1))]);
        let mover = c.nodes[leader].shard.as_mut().unwrap();
        mover.change_group(now, GroupId(group), &step).expect("three answer");
    }
    let sleeps = |c: &Cluster<Ledger>, i: usize| c.shard(i).hibernating() == groups as usize;
    c.run_until("those that are left sleep", 20_000 * MS, |c| (0..gone).all(|i| sleeps(c, i)));
    c.boot(gone);
    let until = c.now.plus(3000 * MS);
    c.run_until("nothing wakes anybody", 3001 * MS, |c| {
        assert!((0..gone).all(|i| sleeps(c, i)), "{} us before the end", until.since(c.now));
        c.now >= until
    });
    assert!(c.nodes[gone].sent > 100, "it has asked all the time: {}", c.nodes[gone].sent);
    // Nor does it disturb anybody who is awake.
    let leader = c.leader(2).unwrap();
    let (term, client) = (c.raft(leader, 2).term(), c.client(leader));
    c.submit(client, &[block(2, 9, 1)]);
    assert!(c.answer(client).result.is_ok());
    c.run_until("they sleep again", 3000 * MS, |c| (0..gone).all(|i| sleeps(c, i)));
    assert_eq!((c.leader(2), c.raft(leader, 2).term()), (Some(leader), term));
}

/// Between its end and its new start less than an election timeout passes: silence alone would not
/// show it.
#[test]
fn a_leader_that_restarts_at_once_is_noticed_by_its_incarnation() {
    let mut c = asleep(setup(4));
    let leader = c.leader(2).unwrap();
    c.kill(leader);
    c.boot(leader);
    c.run(30 * MS);
    let sleepers = (0..3).filter(|&i| i != leader && !awake(&c, i, 2)).count();
    assert_eq!(sleepers, 0, "nobody sleeps under a leader that is none");
    c.run_until("somebody leads", 600 * MS, |c| {
        c.leader(2).is_some_and(|i| c.raft(i, 2).log().term_at(c.raft(i, 2).commit()).is_some())
    });
    c.elect();
    c.converge();
}

#[test]
fn nobody_sleeps_while_a_follower_lacks_something() {
    let mut c = asleep(setup(1));
    let leader = c.leader(0).unwrap();
    let slow = (leader + 1) % 3;
    c.hold_disk(slow);
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1)]);
    assert!(c.answer(client).result.is_ok(), "two of three are enough");
    c.run(5 * REST);
    assert!((0..3).all(|i| awake(&c, i, 0)), "the third has not confirmed it");
    c.release_disk(slow);
    sleep_again(&mut c);
}

/// More groups than are told of anything in one turn.
#[test]
fn thousands_of_groups_of_a_dead_leader_wake_in_slices_and_all_find_a_leader() {
    const GROUPS: u32 = 2000;
    let mut c = asleep(setup(GROUPS));
    let turns: u64 = c.nodes.iter().map(|node| node.turns).sum();
    c.kill(0);
    c.run_until("all groups have leaders", 1500 * MS, |c| {
        (0..GROUPS).all(|g| c.leader(g).is_some())
    });
    assert!(c.nodes.iter().map(|node| node.turns).sum::<u64>() > turns);
    c.run_until("they sleep again", 3000 * MS, |c| {
        (1..3).all(|i| c.shard(i).hibernating() == GROUPS as usize)
    });
}

#[test]
fn with_hibernation_off_a_member_refuses_to_sleep_and_its_groups_stay_awake() {
    let mut c = Setup::new(2).start();
    c.elect();
    c.run(1000 * MS);
    assert!((0..3).all(|i| c.shard(i).hibernating() == 0));
    assert!(c.shard(0).deadline(c.now) < Tick(u64::MAX));
}

/// Nobody answers it, so that no round is decided: without a bound all of them would begin a new one
/// three to six times a second.
#[test]
fn of_a_thousand_groups_without_a_leader_a_few_hundred_stand_at_a_time() {
    let mut c = setup(1500).start();
    c.isolate(0);
    c.run(500 * MS);
    let begun = |c: &Cluster<Ledger>| {
        let all = c.nodes[0].transitions.iter();
        all.filter(|t| t.role == Role::PreCandidate && t.reason == "election timeout").count()
    };
    let before = begun(&c);
    c.run(900 * MS);
    let rounds = begun(&c) - before;
    // 512 places, each for 150 ms.
    assert!((512 * 4..=512 * 7).contains(&rounds), "{rounds} rounds");
    c.heal();
    c.elect();
    c.converge();
}
