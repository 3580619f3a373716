//! A disk that fails: the node stops at once and says why, the others go on.

use crate::check::verify;
use crate::cluster::{Cluster, PATIENT, Spec, Timing};
use crate::load::{Load, STEADY};
use crate::process::{PATIENCE, eventually};

/// Later than the flushes of a start and an election, sooner than the load ends.
const FAULT: &str = "[fault]\nwal_write_error_at = 300\n";
/// Campaigns long before nodes with [`PATIENT`] timers.
const EAGER: Timing = Timing { heartbeat: 50, election: (150, 300) };

#[test]
fn a_follower_whose_disk_fails_stops_and_the_others_go_on() {
    let mut cluster = Cluster::start(Spec::default());
    let (leader, _) = cluster.leader();
    let broken = (leader + 1) % 3;
    cluster.terminate(broken);
    cluster.configure(broken, cluster.spec().timing, FAULT);
    cluster.start_node(broken);
    cluster.wait_for_catch_up(broken);
    the_disk_fails_under_load(&mut cluster, broken);
}

#[test]
fn a_leader_whose_disk_fails_stops_and_the_others_go_on() {
    let mut cluster = Cluster::prepare(Spec { timing: PATIENT, ..Spec::default() });
    let broken = 0;
    cluster.configure(broken, EAGER, FAULT);
    (0..3).for_each(|node| cluster.start_node(node));
    eventually("the eager node leads", PATIENCE, || {
        cluster.leader_of(0).filter(|(leader, _)| *leader == broken)
    });
    the_disk_fails_under_load(&mut cluster, broken);
}

fn the_disk_fails_under_load(cluster: &mut Cluster, broken: usize) {
    let load = Load::start(cluster, STEADY);
    let (process, status) = cluster.wait_for_end(broken);
    assert_eq!(status.code(), Some(1), "{:#?}", process.lines());
    let last = process.lines().pop().unwrap_or_default();
    assert!(last.starts_with("error: shard 0 stopped: "), "{last}");
    assert!(last.contains("Input/output error"), "{last}");
    load.wait_for(300);
    verify(cluster, &[&load.finish()]);
}
