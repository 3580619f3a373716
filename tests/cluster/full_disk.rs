//! A full disk is not a failed one: the node says so, takes nothing more, loses nothing, and goes on
//! by itself when there is space again.
//!
//! The disk is a small ext4 file system in a file, which only root can mount. Without root the
//! stories are skipped, loudly.

use std::path::Path;
use std::time::{Duration, Instant};

use ringraft::client::ClientError;
use ringraft::ids::GroupId;
use ringraft::wire::client::Refused;

use crate::check::verify;
use crate::cluster::{Cluster, DEFAULT, PATIENT, Spec};
use crate::load::{Entry, Fate, Ledger, Load, Pace, block_of, new_session};
use crate::mounts::SmallDisk;
use crate::process::{PATIENCE, eventually, tell};
use crate::raw::RawClient;

/// Fills a disk of tens of MiB within seconds.
const HEAVY: Pace = Pace { blocks_per_s: 1000, in_flight: 8, value_bytes: 16 << 10 };
/// What the stories promise: space is noticed within this time.
const NOTICED: Duration = Duration::from_secs(5);

fn is_full(cluster: &Cluster, node: usize) -> bool {
    cluster.shard_status(node).is_some_and(|status| status.space.starts_with("disk full: "))
}

fn free_space(ballast: &Path) -> Instant {
    std::fs::remove_file(ballast).unwrap();
    Instant::now()
}

#[test]
fn a_leader_on_a_full_disk_refuses_as_read_only_loses_nothing_and_resumes() {
    let Some(disk) = SmallDisk::mount(96) else { return };
    let ballast = disk.ballast(64);
    let disks = [Some(disk.place().to_owned()), None, None];
    let mut cluster = Cluster::prepare(Spec { timing: PATIENT, disks, ..Spec::default() });
    cluster.configure(0, DEFAULT, "");
    (0..3).for_each(|node| cluster.start_node(node));
    eventually("the eager node leads", PATIENCE, || {
        cluster.leader_of(0).filter(|(leader, _)| *leader == 0)
    });
    let load = Load::start(&cluster, HEAVY);
    eventually("the leader's disk is full", PATIENCE, || is_full(&cluster, 0).then_some(()));
    // What still fits the last segment is taken, and is then there like everything else.
    let mut probes = Vec::new();
    eventually("a write is refused as read only", PATIENCE, || {
        let mut client = RawClient::connect(&cluster, 0);
        let (group, session) = (GroupId(0), new_session());
        client.submit(&block_of(group, session, 1, 0, (0, 1), 256 << 10));
        let answer = client.answer();
        let fate = Fate::Unknown(ClientError::Timeout);
        probes.push(Ledger { session, entries: vec![Entry { group, id: 0, count: 1, fate }] });
        (answer == Err(Refused::ReadOnly)).then_some(())
    });
    resumes_when_there_is_space(cluster, load, &ballast, probes);
}

#[test]
fn a_cluster_on_one_full_disk_loses_nothing_and_resumes() {
    let Some(disk) = SmallDisk::mount(160) else { return };
    let ballast = disk.ballast(64);
    let disks = [(); 3].map(|()| Some(disk.place().to_owned()));
    let cluster = Cluster::start(Spec { timing: PATIENT, disks, ..Spec::default() });
    let load = Load::start(&cluster, HEAVY);
    // Nodes that are not full yet have nobody left to agree with.
    eventually("a majority or its leader is on a full disk", PATIENCE, || {
        let (leader, _) = cluster.leader_of(0)?;
        let full = (0..3).filter(|&node| is_full(&cluster, node)).count();
        (full >= 2 || is_full(&cluster, leader)).then_some(())
    });
    resumes_when_there_is_space(cluster, load, &ballast, Vec::new());
}

/// Nobody has given up, nothing is lost, and writes go on; and so it is after a kill -9.
fn resumes_when_there_is_space(
    mut cluster: Cluster,
    load: Load,
    ballast: &Path,
    mut ledgers: Vec<Ledger>,
) {
    let freed = free_space(ballast);
    load.wait_for(10);
    let resumed = freed.elapsed();
    tell(&format!("full disk: writes go on {} ms after there is space", resumed.as_millis()));
    assert!(resumed < NOTICED, "{resumed:?}");
    ledgers.push(load.finish());
    let ledgers: Vec<&Ledger> = ledgers.iter().collect();
    verify(&cluster, &ledgers);
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.start_node(node));
    cluster.wait_for_leaders();
    verify(&cluster, &ledgers);
}

#[test]
fn a_follower_on_a_full_disk_holds_nobody_up_and_catches_up_when_there_is_space() {
    let Some(disk) = SmallDisk::mount(96) else { return };
    let ballast = disk.ballast(64);
    let full = 2;
    let disks = [None, None, Some(disk.place().to_owned())];
    let mut cluster = Cluster::prepare(Spec { timing: PATIENT, disks, ..Spec::default() });
    // The two others elect one of themselves before it comes.
    [0, 1].into_iter().for_each(|node| cluster.start_node(node));
    cluster.wait_for_leaders();
    cluster.start_node(full);
    cluster.wait_for_catch_up(full);
    let load = Load::start(&cluster, HEAVY);
    eventually("the follower's disk is full", PATIENCE, || is_full(&cluster, full).then_some(()));
    load.wait_for(200);
    let ledger = load.finish();
    assert!(cluster.node(full).is_alive());
    free_space(&ballast);
    eventually("space is noticed", NOTICED, || (!is_full(&cluster, full)).then_some(()));
    let written = ledger.entries.iter().map(|e| e.count * HEAVY.value_bytes as u64).sum::<u64>();
    tell(&format!("full follower: {} MiB written by the others meanwhile", written >> 20));
    verify(&cluster, &[&ledger]);
}
