//! Nodes that may have forgotten what they acknowledged: a machine that went down without
//! `wal_sync`, bytes that were damaged at rest.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::check::verify;
use crate::cluster::{Cluster, Spec};
use crate::load::{Load, STEADY};
use crate::process::{PATIENCE, eventually};

fn unsynced() -> Spec {
    Spec { wal_sync: false, ..Spec::default() }
}

fn wait_until_recovered(cluster: &Cluster, node: usize) {
    eventually("the node has its memory back", PATIENCE, || {
        cluster.shard_status(node).filter(|shard| shard.recovering == 0)
    });
}

#[test]
fn a_node_whose_machine_went_down_gets_its_memory_back_from_the_others() {
    let mut cluster = Cluster::start(unsynced());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(100);
    let victim = (cluster.leader().0 + 1) % 3;
    cluster.kill(victim);
    cluster.reboot(victim);
    cluster.start_node(victim);
    wait_until_recovered(&cluster, victim);
    assert!(cluster.node(victim).said(&["PowerLossOrUnknown", "RECOVERING"]));
    eventually("it is on record", PATIENCE, || {
        cluster.node(victim).said(&["have recovered"]).then_some(())
    });
    // Once it is, a mere kill makes nobody suspicious.
    cluster.kill(victim);
    cluster.start_node(victim);
    cluster.wait_for_catch_up(victim);
    assert!(cluster.node(victim).said(&["ended last time", "ProcessCrash"]));
    load.wait_for(100);
    let status = cluster.shard_status(victim).unwrap();
    assert_eq!((status.groups[0].epoch, status.possible_data_loss), (0, 0));
    verify(&cluster, &[&load.finish()]);
}

#[test]
fn when_all_machines_went_down_at_once_a_possible_loss_is_told() {
    let mut cluster = Cluster::start(unsynced());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(100);
    let ledger = load.finish();
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.reboot(node));
    // Killed again before it has heard anybody: it still knows that it cannot be trusted.
    cluster.start_node(0);
    eventually("it says so", PATIENCE, || cluster.shard_status(0).filter(|s| s.recovering == 1));
    cluster.kill(0);
    (0..3).for_each(|node| cluster.start_node(node));
    let (leader, _) = cluster.leader();
    (0..3).for_each(|node| wait_until_recovered(&cluster, node));
    assert!(cluster.node(leader).said(&["POSSIBLE DATA LOSS"]));
    let status = cluster.shard_status(leader).unwrap();
    assert_eq!((status.groups[0].epoch, status.possible_data_loss), (1, 1));
    // The machines did not really go down.
    verify(&cluster, &[&ledger]);
}

#[test]
fn a_node_with_damaged_bytes_starts_and_is_mended_by_the_others() {
    let mut cluster = Cluster::start(Spec::default());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(100);
    let victim = (cluster.leader().0 + 1) % 3;
    cluster.terminate(victim);
    damage(cluster.data_dir(victim).join("shard-000"));
    cluster.start_node(victim);
    wait_until_recovered(&cluster, victim);
    cluster.wait_for_catch_up(victim);
    assert!(cluster.node(victim).said(&["damaged below its durable mark"]));
    cluster.terminate(victim);
    cluster.start_node(victim);
    cluster.wait_for_catch_up(victim);
    assert!(!cluster.node(victim).said(&["damaged"]), "the damage lies behind it");
    load.wait_for(100);
    verify(&cluster, &[&load.finish()]);
}

/// Turns one bit round in the middle of what the first segment holds.
pub fn damage(shard: PathBuf) {
    let files = std::fs::read_dir(shard).unwrap().map(|entry| entry.unwrap().path());
    let first = files.min().expect("a log has a segment");
    let bytes = std::fs::read(&first).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let at = (used / 2..used).find(|&at| bytes[at] != 0).unwrap();
    let file = OpenOptions::new().write(true).open(first).unwrap();
    file.write_all_at(&[bytes[at] ^ 8], at as u64).unwrap();
}
