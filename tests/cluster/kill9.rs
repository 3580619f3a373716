//! kill -9 under load, again and again: of a follower, of the leader, of all three.

use std::time::{Duration, Instant};

use crate::check::verify;
use crate::cluster::{Cluster, Spec};
use crate::load::{Load, STEADY};
use crate::process::tell;

/// Who is killed in a round.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Follower,
    Leader,
    Everybody,
}

/// How often each kind of trouble is made.
pub fn rounds() -> usize {
    match std::env::var("RINGRAFT_ROUNDS") {
        Ok(text) => text.parse().expect("RINGRAFT_ROUNDS is a number"),
        Err(_) => 2,
    }
}

#[test]
fn kill_9_loses_nothing_when_every_acknowledgement_is_synced() {
    kill_rounds(true);
}

#[test]
fn kill_9_loses_nothing_when_acknowledgements_are_only_written() {
    kill_rounds(false);
}

fn kill_rounds(wal_sync: bool) {
    let rounds = rounds();
    let mut cluster = Cluster::start(Spec { wal_sync, ..Spec::default() });
    let load = Load::start(&cluster, STEADY);
    let mut gaps = Vec::new();
    for round in 0..rounds {
        for victim in [Victim::Follower, Victim::Leader, Victim::Everybody] {
            load.wait_for(100);
            match victim {
                Victim::Follower => kill_a_follower(&mut cluster, &load, round),
                Victim::Leader => gaps.push(kill_the_leader(&mut cluster, &load)),
                Victim::Everybody => kill_everybody(&mut cluster, &load),
            }
        }
    }
    load.wait_for(100);
    let ledger = load.finish();
    let verified = verify(&cluster, &[&ledger]);
    tell(&format!("wal_sync = {wal_sync}, {rounds} rounds of each kind: {verified:?}"));
    print_gaps("kill -9", gaps);
}

/// The rest goes on meanwhile.
fn kill_a_follower(cluster: &mut Cluster, load: &Load, round: usize) {
    let (leader, _) = cluster.leader();
    let follower = (leader + 1 + round % 2) % 3;
    cluster.kill(follower);
    load.wait_for(100);
    cluster.start_node(follower);
    cluster.wait_for_catch_up(follower);
}

/// Time from the kill to the first acknowledgement of the next leader.
fn kill_the_leader(cluster: &mut Cluster, load: &Load) -> Duration {
    let (leader, term) = cluster.leader();
    let killed = Instant::now();
    cluster.kill(leader);
    let gap = load.wait_for_newer_term(0, term).duration_since(killed);
    tell(&format!("leader killed: {} ms to the next acknowledged write", gap.as_millis()));
    load.wait_for(100);
    cluster.start_node(leader);
    cluster.wait_for_catch_up(leader);
    gap
}

fn kill_everybody(cluster: &mut Cluster, load: &Load) {
    let (_, term) = cluster.leader();
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.start_node(node));
    load.wait_for_newer_term(0, term);
    (0..3).for_each(|node| cluster.wait_for_catch_up(node));
}

/// Tells how long it took from the end of a leader, which ended so, to the next acknowledged write.
pub fn print_gaps(end: &str, mut gaps: Vec<Duration>) {
    gaps.sort_unstable();
    let at = |percent: usize| gaps[(gaps.len() * percent).div_ceil(100).max(1) - 1].as_millis();
    tell(&format!(
        "leader {end} to the next acknowledged write, {} times: p50 {} ms, p99 {} ms",
        gaps.len(),
        at(50),
        at(99)
    ));
}
