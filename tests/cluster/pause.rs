//! Nodes that stand still for a while (SIGSTOP): a slow machine, a paused VM.

use std::time::Instant;

use ringraft::ids::GroupId;
use ringraft::wire::client::Refused;

use crate::check::verify;
use crate::cluster::{Cluster, Spec};
use crate::kill9::{print_gaps, rounds};
use crate::load::{Load, STEADY, block_of, new_session};
use crate::process::{PATIENCE, eventually};
use crate::raw::RawClient;

#[test]
fn a_paused_follower_holds_nobody_up_and_catches_up_afterwards() {
    let mut cluster = Cluster::start(Spec::default());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(100);
    let (leader, _) = cluster.leader();
    let sleeper = (leader + 1) % 3;
    cluster.node(sleeper).pause();
    load.wait_for(1000);
    cluster.node(sleeper).signal(libc::SIGCONT);
    cluster.wait_for_catch_up(sleeper);
    verify(&cluster, &[&load.finish()]);
}

/// 1. The leader stops in the middle of everything; the others elect one of themselves.
/// 2. A client, which knows nothing of it, sends the old leader a block: it waits in the socket.
/// 3. The old leader wakes up, still thinks that it leads, and finds block and new leader.
///
/// It must not acknowledge that block unless the cluster has it.
#[test]
fn a_paused_leader_is_replaced_and_acknowledges_nothing_wrongly_when_it_wakes_up() {
    let mut cluster = Cluster::start(Spec::default());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(100);
    let (old, term) = cluster.leader();
    let mut client = RawClient::connect(&cluster, old);
    cluster.node(old).pause();
    let session = new_session();
    client.submit(&block_of(GroupId(0), session, 1, 0, (0, 1), 16));
    load.wait_for_newer_term(0, term);
    load.wait_for(100);
    cluster.node(old).signal(libc::SIGCONT);
    let answer = client.answer();
    assert!(matches!(answer, Err(Refused::NotLeader(_))), "{answer:?}");
    let status = eventually("the old leader follows", PATIENCE, || {
        let group = cluster.shard_status(old)?.groups.remove(0);
        (group.role == "follower" && group.leader != 0).then_some(group)
    });
    assert!(status.term > term, "{status:?}");
    // Had the cluster taken the refused block, it would be one that nobody wrote.
    verify(&cluster, &[&load.finish()]);
}

/// Nothing tells the others, or the client, that a silent leader is gone: no connection is reset. Only
/// their timers do.
#[test]
fn silent_leaders_are_replaced_time_after_time_and_follow_when_they_wake_up() {
    let mut cluster = Cluster::start(Spec::default());
    let load = Load::start(&cluster, STEADY);
    let mut gaps = Vec::new();
    for _ in 0..rounds() {
        load.wait_for(100);
        let (leader, term) = cluster.leader();
        let silent = Instant::now();
        cluster.node(leader).pause();
        gaps.push(load.wait_for_newer_term(0, term).duration_since(silent));
        load.wait_for(100);
        cluster.node(leader).signal(libc::SIGCONT);
        cluster.wait_for_catch_up(leader);
    }
    verify(&cluster, &[&load.finish()]);
    print_gaps("gone silent", gaps);
}
