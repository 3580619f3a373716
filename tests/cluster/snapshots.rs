//! Snapshots of real processes: the log stays short, a restart replays only the rest, who was away for
//! long comes back by a snapshot, and a damaged one is got anew.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::check::verify;
use crate::cluster::{Cluster, Spec};
use crate::load::{Load, Pace, STEADY};
use crate::process::{PATIENCE, eventually, ringraft, tell};

/// So many entries to a snapshot.
const ENTRIES: u64 = 1000;

fn often() -> Spec {
    Spec { snapshot_entries: ENTRIES, snapshot_interval_s: 0, ..Spec::default() }
}

fn snapshots(cluster: &Cluster, node: usize) -> Vec<PathBuf> {
    let dir = cluster.data_dir(node).join("shard-000/snapshots");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ext| ext == "snap")).collect()
}

/// Waits until the leader's log begins behind `index`.
fn wait_for_cut(cluster: &Cluster, behind: u64) {
    eventually("the leader's log is cut", PATIENCE, || {
        let (leader, _) = cluster.leader();
        let first = cluster.shard_status(leader)?.groups[0].first;
        (first > behind + 1).then_some(())
    });
}

#[test]
fn a_follower_that_was_away_for_long_comes_back_by_a_snapshot() {
    let mut cluster = Cluster::start(often());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(100);
    let victim = (cluster.leader().0 + 1) % 3;
    cluster.kill(victim);
    // Nobody has more than the leader now.
    let last = cluster.shard_status(cluster.leader().0).unwrap().groups[0].last;
    wait_for_cut(&cluster, last);
    cluster.start_node(victim);
    cluster.wait_for_catch_up(victim);
    let status = cluster.shard_status(victim).unwrap();
    assert_eq!(status.snapshots_installed, 1, "one was enough: {status:?}");
    assert!(status.groups[0].first > last + 1);
    load.wait_for(100);
    // It goes on from there, also after another restart.
    cluster.kill(victim);
    cluster.start_node(victim);
    cluster.wait_for_catch_up(victim);
    load.wait_for(100);
    verify(&cluster, &[&load.finish()]);
}

#[test]
fn a_restart_replays_only_what_its_snapshot_does_not_hold() {
    let mut cluster = Cluster::start(often());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(5 * ENTRIES);
    let ledger = load.finish();
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.start_node(node));
    cluster.wait_for_leaders();
    let report = cluster.wait_until_equal();
    let commit = report.groups()[0].1.commit;
    for node in 0..3 {
        assert!(cluster.node(node).said(&["snapshots restored"]));
        let applied = cluster.shard_status(node).unwrap().commands_applied;
        assert!(applied < 3 * ENTRIES, "{applied} of {commit} were applied again");
        assert_eq!(snapshots(&cluster, node).len(), 1, "older ones are gone");
    }
    verify(&cluster, &[&ledger]);
}

#[test]
fn a_damaged_snapshot_is_set_aside_and_got_from_the_leader_again() {
    let mut cluster = Cluster::start(often());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(3 * ENTRIES);
    let victim = (cluster.leader().0 + 1) % 3;
    wait_for_cut(&cluster, ENTRIES);
    eventually("its own log is cut as well", PATIENCE, || {
        (cluster.shard_status(victim)?.groups[0].first > 2).then_some(())
    });
    cluster.terminate(victim);
    let file = snapshots(&cluster, victim).pop().expect("it has one");
    let dir = cluster.data_dir(victim);
    let look = |command: &str| {
        let output = ringraft(&["snapshot", command, dir.to_str().unwrap()]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = look("verify");
    assert!(code == Some(0) && text.contains(": whole"), "{text}");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 8;
    std::fs::write(&file, bytes).unwrap();
    let (code, text) = look("verify");
    assert!(code == Some(1) && text.contains("DAMAGED"), "{text}");
    assert_eq!(look("list").0, Some(0));
    cluster.start_node(victim);
    cluster.wait_for_catch_up(victim);
    assert!(cluster.node(victim).said(&["a damaged snapshot was set aside"]));
    assert!(cluster.node(victim).said(&["RECOVERING until its leader has sent it"]));
    eventually("it has its memory back", PATIENCE, || {
        let status = cluster.shard_status(victim)?;
        (status.recovering == 0 && status.snapshots_installed == 1).then_some(())
    });
    load.wait_for(100);
    verify(&cluster, &[&load.finish()]);
}

/// `RINGRAFT_STEADY_S` seconds of it, a minute unless told otherwise.
#[test]
fn the_log_stays_at_a_steady_size_however_long_the_load() {
    let seconds = match std::env::var("RINGRAFT_STEADY_S") {
        Ok(text) => text.parse().expect("RINGRAFT_STEADY_S is a number"),
        Err(_) => 20,
    };
    // A state that does not grow for ever: a snapshot must not take as long as the log to fill.
    let retention_bytes = 16 << 20;
    let spec = Spec { snapshot_entries: 10_000, snapshot_log_mib: 64, retention_bytes, ..often() };
    let cluster = Cluster::start(spec);
    let pace = Pace { blocks_per_s: 4000, in_flight: 64, value_bytes: 4096 };
    let load = Load::start(&cluster, pace);
    let (began, mut highest) = (Instant::now(), [0; 3]);
    while began.elapsed() < Duration::from_secs(seconds) {
        load.wait_for(500);
        for (node, highest) in highest.iter_mut().enumerate() {
            let Some(status) = cluster.shard_status(node) else { continue };
            *highest = status.log_bytes.max(*highest);
        }
    }
    let written: Vec<u64> =
        (0..3).map(|node| cluster.shard_status(node).unwrap().wal_bytes >> 20).collect();
    let highest = highest.map(|bytes| bytes >> 20);
    tell(&format!("{seconds} s: {written:?} MiB written, at most {highest:?} MiB of log"));
    for (node, highest) in highest.into_iter().enumerate() {
        assert!(highest <= 64 + 48, "node {} had {highest} MiB", node + 1);
    }
    drop(load.finish());
}
