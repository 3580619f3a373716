//! All nodes are restarted one after another while clients write: nobody gets an error, and nobody
//! waits for an election timeout.

use crate::admin::Stage;
use crate::check::verify;
use crate::cluster::{Cluster, DEFAULT, PATIENT, Spec, Timing};
use crate::load::{Load, STEADY};
use crate::process::{ringraft, tell};

fn rolling_restart(timing: Timing) {
    let mut stage = Stage::start(Spec { timing, groups: 4, ..Spec::default() }, "");
    let load = Load::start(&stage.cluster, STEADY);
    load.wait_for(200);
    load.forget_pauses();
    for node in 0..3 {
        let led =
            (0..4).filter(|&group| stage.cluster.leader_of(group).is_some_and(|l| l.0 == node));
        let led = led.count();
        let process = stage.cluster.terminate(node);
        let handed = process.said(&["hands over"]);
        assert!(handed || led == 0, "{:#?}", process.lines());
        load.wait_for(200);
        stage.cluster.start_node(node);
        stage.wait_for(node, "/health/ready", 200, "ready");
        load.wait_for(200);
    }
    let pause = load.longest_pause();
    let verified = verify(&stage.cluster, &[&load.finish()]);
    assert_eq!(verified.unknown, 0, "{verified:?}");
    tell(&format!(
        "rolling restart, election timeout {} ms at least: longest pause {} ms, {verified:?}",
        timing.election.0,
        pause.as_millis()
    ));
}

#[test]
fn a_rolling_restart_is_not_noticed_by_clients() {
    rolling_restart(DEFAULT);
}

/// The pause does not come from the timeouts.
#[test]
fn nor_with_patient_voters() {
    rolling_restart(PATIENT);
}

#[test]
fn an_operator_moves_leaders_by_hand() {
    let cluster = Cluster::start(Spec { groups: 6, ..Spec::default() });
    let load = Load::start(&cluster, STEADY);
    load.wait_for(100);
    let addresses: Vec<_> = (0..3).map(|node| cluster.client_address(node)).collect();
    let addresses = addresses.join(",");
    let leader = |arguments: &[&str]| {
        let output = ringraft(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = leader(&["leader", "transfer", "--cluster", &addresses, "--to", "3"]);
    assert!(said.contains("node 3 leads 6"), "{said}");
    load.wait_for(100);
    let said = leader(&["leader", "balance", "--cluster", &addresses]);
    assert!(said.contains("node 1 leads 2, node 2 leads 2, node 3 leads 2"), "{said}");
    load.wait_for(100);
    let verified = verify(&cluster, &[&load.finish()]);
    assert_eq!(verified.unknown, 0, "{verified:?}");
}
