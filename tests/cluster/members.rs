//! Nodes join and leave while clients write, by the commands that an operator has.

use serde_json::Value;

use crate::check::verify;
use crate::cluster::{Cluster, Spec};
use crate::load::{Load, STEADY};
use crate::process::{PATIENCE, eventually, tell};

/// `ringraft member` with these arguments; what it said.
fn member(cluster: &Cluster, arguments: &[&str]) -> Result<String, String> {
    cluster.operate("member", arguments).map_err(|(_, complained)| complained)
}

pub fn join(cluster: &Cluster, node: usize) -> String {
    let (id, peer) = ((node + 1).to_string(), cluster.peer_address(node));
    let client = cluster.client_address(node);
    let place = ["add", "--node", &id, "--peer", &peer, "--client", &client];
    member(cluster, &place).expect("it joins")
}

fn remove(cluster: &Cluster, node: usize) -> String {
    let id = (node + 1).to_string();
    member(cluster, &["remove", "--node", &id]).expect("it leaves")
}

/// The voters of a group, as its leader sees them.
pub fn voters(cluster: &Cluster, group: &str) -> Vec<u64> {
    let json = member(cluster, &["list", "--output", "json"]).expect("somebody leads");
    let all: Value = serde_json::from_str(&json).unwrap();
    let members = all[group]["members"].as_array().unwrap().iter();
    let votes = members.filter(|member| member["role"] == "voter");
    votes.map(|member| member["node"].as_u64().unwrap()).collect()
}

#[test]
fn a_fourth_node_joins_under_load_and_then_the_others_leave_the_leader_first() {
    let mut cluster = Cluster::start(Spec { groups: 3, shards: 2, ..Spec::default() });
    // Its clients know three nodes and learn of the fourth.
    let load = Load::start(&cluster, STEADY);
    load.wait_for(300);
    let fourth = cluster.plan_node();
    cluster.start_node(fourth);
    tell(&join(&cluster, fourth));
    load.wait_for(300);
    assert_eq!(voters(&cluster, "2"), [1, 2, 3, 4]);
    // It is in already: it takes nobody's place, and nobody waits for that.
    let (peer, client) = (cluster.peer_address(fourth), cluster.client_address(fourth));
    let place = ["replace", "--old", "3", "--node", "4", "--peer", &peer, "--client", &client];
    let why = member(&cluster, &place).unwrap_err();
    assert!(why.contains("member remove --node 3"), "{why}");
    let (leader, term) = cluster.leader();
    tell(&remove(&cluster, leader));
    load.wait_for_newer_term(0, term);
    load.wait_for(300);
    // It is out, and nobody needs it.
    cluster.kill(leader);
    load.wait_for(300);
    let left: Vec<u64> = (1..=4).filter(|&id| id != leader as u64 + 1).collect();
    assert_eq!(voters(&cluster, "0"), left);
    // Who is left knows the new node by the log alone: its name is in no other file.
    let other = (leader + 1) % 3;
    cluster.kill(other);
    cluster.start_node(other);
    cluster.wait_for_catch_up(other);
    load.wait_for(300);
    // Now the others leave, too: all groups are on the new node, which no client was told of.
    for node in (0..3).filter(|&node| node != leader) {
        remove(&cluster, node);
        load.wait_for(100);
        cluster.kill(node);
        load.wait_for(300);
    }
    assert_eq!(voters(&cluster, "1"), [4]);
    let ledger = load.finish();
    let verified = verify(&cluster, &[&ledger]);
    tell(&format!("a node joined, the others left: {verified:?}"));
    assert_eq!(verified.unknown, 0, "no write failed");
}

#[test]
fn of_two_voters_the_leader_leaves() {
    let cluster = &mut Cluster::start(Spec { voters: 2, ..Spec::default() });
    let load = Load::start(cluster, STEADY);
    load.wait_for(200);
    let (leader, term) = cluster.leader();
    remove(cluster, leader);
    load.wait_for_newer_term(0, term);
    cluster.kill(leader);
    load.wait_for(200);
    assert_eq!(voters(cluster, "0"), [2 - leader as u64]);
    let ledger = load.finish();
    assert_eq!(verify(cluster, &[&ledger]).unknown, 0, "no write failed");
}

#[test]
fn what_would_leave_no_quorum_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::start(Spec::default());
    let (leader, _) = cluster.leader();
    let (down, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(down);
    let id = (other + 1).to_string();
    let refused = eventually("the leader misses the node", PATIENCE, || {
        member(&cluster, &["remove", "--dry-run", "--node", &id]).err()
    });
    assert!(refused.contains("no quorum") && refused.contains("--force"), "{refused}");
    assert_eq!(voters(&cluster, "0"), [1, 2, 3]);
    let stranger = member(&cluster, &["remove", "--node", "9"]);
    assert!(stranger.is_ok(), "it is not there: {stranger:?}");
    let odd = member(&cluster, &["promote", "--node", "9"]).unwrap_err();
    assert!(odd.contains("node 9 is not a learner"), "{odd}");
}
