//! Orderly ends, and a directory that has an owner.

use crate::check::verify;
use crate::cluster::{Cluster, Spec};
use crate::load::{Load, STEADY};
use crate::process::{Process, serve};

#[test]
fn sigterm_drains_and_a_restart_finds_a_clean_end_and_everything() {
    let mut cluster = Cluster::start(Spec::default());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(200);
    let ledger = load.finish();
    for node in 0..3 {
        let process = cluster.terminate(node);
        assert!(process.said(&["asked to stop: draining"]), "{:#?}", process.lines());
    }
    (0..3).for_each(|node| cluster.start_node(node));
    cluster.wait_for_leaders();
    for node in 0..3 {
        assert!(cluster.node(node).said(&["ended last time", "Clean"]));
    }
    let verified = verify(&cluster, &[&ledger]);
    assert!(verified.acked > 200 && verified.unknown == 0, "{verified:?}");
}

#[test]
fn sigterm_of_one_node_under_load_is_not_noticed_by_its_clients() {
    let mut cluster = Cluster::start(Spec::default());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(100);
    let (leader, _) = cluster.leader();
    cluster.terminate(leader);
    load.wait_for(100);
    cluster.start_node(leader);
    cluster.wait_for_catch_up(leader);
    let verified = verify(&cluster, &[&load.finish()]);
    assert_eq!(verified.unknown, 0);
}

#[test]
fn kill_9_is_told_from_a_clean_end() {
    let mut cluster = Cluster::start(Spec::default());
    cluster.kill(1);
    cluster.start_node(1);
    cluster.wait_for_catch_up(1);
    assert!(cluster.node(1).said(&["ended last time", "ProcessCrash"]));
}

#[test]
fn a_second_process_on_a_directory_is_refused_and_the_first_goes_on() {
    let mut cluster = Cluster::start(Spec::default());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(50);
    // The same node again, on other ports: only the directory is shared.
    let text = std::fs::read_to_string(cluster.config_path(0)).unwrap();
    let (peer, client) = (cluster.peer_address(0), cluster.client_address(0));
    let elsewhere = || format!("127.0.0.1:{}", crate::cluster::free_port());
    let text = text.replace(&peer, &elsewhere()).replace(&client, &elsewhere());
    let config = cluster.dir.path().join("second.toml");
    std::fs::write(&config, text).unwrap();
    let mut second = Process::spawn(serve(&config));
    assert_eq!(second.wait().code(), Some(2));
    let lines = second.lines();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].starts_with("error: "), "{lines:#?}");
    assert!(lines[0].contains("in use by another process; stop it"), "{lines:#?}");
    load.wait_for(100);
    assert!(cluster.node(0).ended().is_none());
    verify(&cluster, &[&load.finish()]);
}
