//! What a shard counts is what happened.

use super::machine::Ledger;
use super::world::{Cluster, MS, Setup, block};
use crate::ids::{GroupId, NodeId};
use crate::membership::Step;
use crate::shard::figures::Figures;
use crate::wire::client::Refused;

fn figures(c: &Cluster<Ledger>, node: usize) -> Figures {
    c.shard(node).figures(c.now, true)
}

fn elected(groups: u32) -> Cluster<Ledger> {
    let mut c = Setup::new(groups).start();
    c.elect();
    c.converge();
    c
}

#[test]
fn each_block_led_here_passes_every_stage_once_and_followers_measure_nothing() {
    let mut c = elected(2);
    let (leader, client) = (c.leader(0).unwrap(), c.client(c.leader(0).unwrap()));
    let before = figures(&c, leader);
    for seq in 1..=10 {
        c.submit(client, &[block(0, 9, seq)]);
        assert!(c.answer(client).result.is_ok());
    }
    c.converge();
    let after = figures(&c, leader);
    let stages = |f: &Figures| {
        let s = &f.stages;
        [s.logged.count(), s.committed.count(), s.applied.count()]
    };
    assert_eq!(stages(&after), stages(&before).map(|n| n + 10));
    let disk_us = after.stages.logged.sum() - before.stages.logged.sum();
    assert!(disk_us >= 10 * c.setup.disk_us, "a log is not faster than its disk: {disk_us}");
    let net_us = after.stages.committed.sum() - before.stages.committed.sum();
    assert!(net_us >= 10 * (2 * c.setup.net_us + c.setup.disk_us), "nor a majority: {net_us}");
    assert!(after.flush_commands.sum() >= before.flush_commands.sum() + 10);
    let follower = (0..3).find(|&i| c.leader(0) != Some(i) && c.leader(1) != Some(i));
    if let Some(follower) = follower {
        assert_eq!(stages(&figures(&c, follower)), [0, 0, 0]);
    }
}

#[test]
fn a_follower_that_is_cut_off_lags_and_a_cut_off_node_knows_no_leader() {
    let mut c = elected(3);
    let leader = c.leader(0).unwrap();
    let lost = (0..3).find(|&i| i != leader).unwrap();
    assert_eq!(figures(&c, lost).leaderless, 0);
    c.isolate(lost);
    let client = c.client(leader);
    for seq in 1..=5 {
        c.submit(client, &[block(0, 9, seq)]);
        assert!(c.answer(client).result.is_ok());
    }
    let told = figures(&c, leader);
    let peer = |node: usize| told.peers.iter().find(|p| p.node.0 == node as u32 + 1).unwrap();
    assert!(peer(lost).lag_entries >= 5 && !peer(lost).connected, "{:?}", told.peers);
    let other = (0..3).find(|&i| i != leader && i != lost).unwrap();
    assert!(peer(other).lag_entries == 0 && peer(other).connected, "{:?}", told.peers);
    c.run_until("the lost node gives up on its leaders", 2000 * MS, |c| {
        let f = figures(c, lost);
        f.leaderless == 3 && f.leaderless_groups == [0, 1, 2] && f.pre_candidates == 3
    });
    let f = figures(&c, lost);
    assert_eq!((f.leaders, f.behind, f.behind_groups), (0, 3, vec![0, 1, 2]));
    c.heal();
    c.converge();
    c.run_until("it keeps up again", 1000 * MS, |c| figures(c, lost).behind == 0);
    c.run_until("its last answer arrives", 1000 * MS, |c| {
        figures(c, leader).peers.iter().all(|p| p.lag_entries == 0)
    });
}

/// Whoever stops the next node before that leaves a majority that cannot commit.
#[test]
fn who_begins_anew_is_behind_until_it_has_what_its_leader_has() {
    let mut c = elected(1);
    let leader = c.leader(0).unwrap();
    let lost = (0..3).find(|&i| i != leader).unwrap();
    let behind = |c: &Cluster<Ledger>, node| {
        let f = figures(c, node);
        (f.behind, f.behind_groups)
    };
    c.run_until("all keep up", 1000 * MS, |c| (0..3).all(|i| behind(c, i).0 == 0));
    c.kill(lost);
    let client = c.client(leader);
    for seq in 1..=20 {
        c.submit(client, &[block(0, 9, seq)]);
        assert!(c.answer(client).result.is_ok());
    }
    let committed = c.raft(leader, 0).commit();
    c.boot(lost);
    assert_eq!(behind(&c, lost), (1, vec![0]));
    c.run_until("it keeps up", 1000 * MS, |c| behind(c, lost).0 == 0);
    assert!(c.raft(lost, 0).commit() >= committed, "not by a word alone");
    assert_eq!(behind(&c, leader), (0, vec![]));
}

/// It is ready all the same: nobody is sent to it for that group.
#[test]
fn who_was_taken_out_of_a_group_does_not_count_as_without_a_leader() {
    let mut setup = Setup::new(2);
    setup.nodes = 4;
    let mut c = setup.start();
    c.elect();
    c.converge();
    let leader = c.leader(0).unwrap();
    let gone = if leader == 3 { 0 } else { 3 };
    let (now, step) = (c.now, [Step::Remove(NodeId(gone as u32 + 1))]);
    let mover = c.nodes[leader].shard.as_mut().unwrap();
    mover.change_group(now, GroupId(0), &step).expect("a leader that has committed");
    c.run_until("it hears of no leader any more", 5000 * MS, |c| {
        c.raft(gone, 0).leader().is_none() && c.raft(gone, 1).leader().is_some()
    });
    assert_eq!(figures(&c, gone).leaderless, 0);
    c.isolate(gone);
    c.run_until("where it takes part it knows", 5000 * MS, |c| {
        figures(c, gone).leaderless_groups == [1]
    });
}

/// Story: n4 was down for good and was taken out. The others went on counting it among their peers, as
/// one that is not connected: an alarm that nothing ends.
#[test]
fn a_node_that_was_removed_is_no_peer_that_is_missing() {
    let mut setup = Setup::new(2);
    setup.nodes = 4;
    let mut c = setup.start();
    c.elect();
    c.converge();
    let gone = (0..4).find(|&i| (0..2).all(|g| c.leader(g) != Some(i))).unwrap();
    c.kill(gone);
    let peers = |c: &Cluster<Ledger>, i: usize| {
        let told = figures(c, i).peers;
        (told.len(), told.iter().filter(|peer| peer.connected).count())
    };
    for group in 0..2 {
        let leader = c.leader(group).unwrap();
        assert_eq!(peers(&c, leader), (3, 2), "it is missed");
        let (now, step) = (c.now, [Step::Remove(NodeId(gone as u32 + 1))]);
        c.nodes[leader].woken = true;
        let mover = c.nodes[leader].shard.as_mut().unwrap();
        mover.change_group(now, GroupId(group), &step).expect("three answer");
    }
    let left: Vec<_> = (0..4).filter(|&i| i != gone).collect();
    c.run_until("nobody waits for it any more", 10_000 * MS, |c| {
        left.iter().all(|&i| peers(c, i) == (2, 2))
    });
}

/// Elections won on all nodes that run.
fn wins(c: &Cluster<Ledger>) -> u64 {
    (0..3).filter(|&i| c.is_up(i)).map(|i| figures(c, i).stats.elections_won).sum()
}

fn transfer(c: &mut Cluster<Ledger>, from: usize, to: usize) {
    let (now, to) = (c.now, NodeId(to as u32 + 1));
    c.nodes[from].woken = true;
    let shard = c.nodes[from].shard.as_mut().unwrap();
    shard.transfer(now, GroupId(0), to).expect("it is in touch");
}

/// Story: a leader that says that it hands over, or that it gave that up, counted as elected anew: with
/// every rolling restart leaders seemed to move about.
#[test]
fn a_leader_is_counted_once_however_much_it_says_while_it_leads() {
    let mut c = elected(1);
    let (old, before) = (c.leader(0).unwrap(), wins(&c));
    let heir = (old + 1) % 3;
    transfer(&mut c, old, heir);
    c.run_until("the other one leads", 3000 * MS, |c| c.leader(0) == Some(heir));
    c.converge();
    c.run(200 * MS);
    assert_eq!(wins(&c), before + 1, "the heir won an election, nobody else did");
    // Its word to the next one does not arrive.
    let term = c.raft(heir, 0).term();
    transfer(&mut c, heir, old);
    c.cut(heir, old);
    c.run_until("the transfer is given up", 1000 * MS, |c| !c.raft(heir, 0).is_transferring());
    c.heal();
    c.run(500 * MS);
    assert_eq!((c.leader(0), c.raft(heir, 0).term()), (Some(heir), term));
    assert_eq!(wins(&c), before + 1, "nobody was elected");
}

#[test]
fn refusals_are_counted_by_their_reason_and_elections_by_their_winner() {
    let mut c = elected(4);
    // One election a term, and a group's first term begins with its first leader or later.
    let terms: u64 = (0..4).map(|g| c.raft(c.leader(g).unwrap(), g).term().0).sum();
    assert!((4..=terms).contains(&wins(&c)), "{} wins in {terms} terms", wins(&c));
    let leader = c.leader(0).unwrap();
    let follower = (0..3).find(|&i| i != leader).unwrap();
    let client = c.client(follower);
    c.submit(client, &[block(0, 9, 1), block(0, 9, 2), block(1 << 21, 9, 3)]);
    c.run(10 * MS);
    assert_eq!(c.answers(client).len(), 3);
    let refused = figures(&c, follower).stats.refused;
    let of = |reason: Refused| refused[reason.kind()];
    assert_eq!((of(Refused::NotLeader(None)), of(Refused::NoGroup)), (2, 1));
    assert_eq!(refused.iter().sum::<u64>(), c.shard(follower).status().proposals_refused);
    let survivors = |c: &Cluster<Ledger>| -> u64 {
        let left = (0..3).filter(|&i| i != leader);
        left.map(|i| figures(c, i).stats.elections_won).sum()
    };
    let before = survivors(&c);
    c.kill(leader);
    c.run_until("group 0 has another leader", 3000 * MS, |c| {
        c.leader(0).is_some_and(|i| i != leader)
    });
    assert!(survivors(&c) > before);
}

#[test]
fn the_sums_are_those_of_the_groups() {
    let mut c = elected(5);
    let client = c.client(c.leader(3).unwrap());
    c.submit(client, &[block(3, 9, 1)]);
    assert!(c.answer(client).result.is_ok());
    c.converge();
    for node in 0..3 {
        let f = figures(&c, node);
        let status = c.shard(node).status();
        assert_eq!(f.groups as usize, status.groups.len());
        assert_eq!(f.leaders + f.followers + f.pre_candidates + f.candidates, 5);
        assert_eq!(f.commit_sum, status.groups.iter().map(|g| g.commit).sum::<u64>());
        assert_eq!(f.applied_sum, status.groups.iter().map(|g| g.applied).sum::<u64>());
        assert_eq!(f.term_max, status.groups.iter().map(|g| g.term).max().unwrap());
        for (group, told) in f.per_group.iter().zip(&status.groups) {
            assert_eq!(
                (group.group, group.commit, group.last),
                (told.group, told.commit, told.last)
            );
            assert_eq!(group.leads, told.role == "leader");
        }
    }
}
