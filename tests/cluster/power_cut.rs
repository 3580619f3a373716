//! Power cuts under load: of a follower, of the leader, of all three. What was not flushed to a disk
//! is really gone (see `PowerDisk`), and the node starts on what is left, as after a boot.
//!
//! The promise: with `wal_sync` nothing that was acknowledged is ever lost. Without it nothing is
//! lost while a majority keeps its power; if all lose it at once a suffix may go, and what remains is
//! one prefix on which all replicas agree.
//!
//! The control: without `wal_sync` and with all three cut right after the acknowledgements, some are
//! seen to be lost. If none were, the cuts would cut nothing and the other stories show nothing.

use ringraft::shard::ShardStatus;

use crate::check::{forget_lost_suffix, verify};
use crate::cluster::{Cluster, Spec};
use crate::kill9::rounds;
use crate::load::{Load, STEADY};
use crate::mounts::PowerDisk;
use crate::process::{PATIENCE, eventually, tell};

/// Room for the log of a story, MiB.
const DISK_MIB: u64 = 160;
/// Of these rounds of the control at least one must lose something.
const CONTROL_ROUNDS: usize = 4;

/// Whose power fails in a round.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Follower,
    Leader,
    Everybody,
}

/// Three nodes, each with a disk of its own whose power can be cut.
struct Machines {
    // The processes end before their disks go.
    cluster: Cluster,
    disks: [PowerDisk; 3],
    cuts: u32,
}

impl Machines {
    /// `None` where disks cannot be mounted.
    fn start(spec: Spec) -> Option<Self> {
        let disks =
            [PowerDisk::mount(DISK_MIB)?, PowerDisk::mount(DISK_MIB)?, PowerDisk::mount(DISK_MIB)?];
        let places = disks.each_ref().map(|disk| Some(disk.place().to_owned()));
        let mut cluster = Cluster::prepare(Spec { disks: places, ..spec });
        for node in 0..3 {
            cluster.reboot(node);
            cluster.start_node(node);
        }
        cluster.wait_for_leaders();
        Some(Self { cluster, disks, cuts: 0 })
    }

    /// The power of these nodes fails, as nearly at once as can be.
    fn cut(&mut self, nodes: &[usize]) {
        nodes.iter().for_each(|&node| self.disks[node].cut());
        nodes.iter().for_each(|&node| self.cluster.kill(node));
        self.cuts += nodes.len() as u32;
    }

    /// It comes back.
    fn boot(&mut self, nodes: &[usize]) {
        for &node in nodes {
            self.disks[node].restore();
            self.cluster.reboot(node);
            self.cluster.start_node(node);
        }
    }

    /// One round under load, which goes on as soon as it can.
    fn round(&mut self, load: &Load, victim: Victim, round: usize) {
        load.wait_for(100);
        let (leader, term) = self.cluster.leader();
        let nodes = match victim {
            Victim::Follower => vec![(leader + 1 + round % 2) % 3],
            Victim::Leader => vec![leader],
            Victim::Everybody => vec![leader, (leader + 1) % 3, (leader + 2) % 3],
        };
        self.cut(&nodes);
        match victim {
            Victim::Follower => load.wait_for(100),
            Victim::Leader => drop(load.wait_for_newer_term(0, term)),
            Victim::Everybody => {}
        }
        self.boot(&nodes);
        if matches!(victim, Victim::Everybody) {
            load.wait_for_newer_term(0, term);
        }
        nodes.iter().for_each(|&node| self.cluster.wait_for_catch_up(node));
        // What the promise is about: the next loss does not overlap with this one.
        self.wait_until_recovered();
        let lost =
            eventually("the nodes answer", PATIENCE, || self.count(|s| s.possible_data_loss));
        assert_eq!(lost, 0, "{victim:?}: nothing can be missing, and the nodes say it may be");
    }

    /// Until all nodes have their memory back and vote again.
    fn wait_until_recovered(&self) {
        eventually("the nodes have recovered", PATIENCE, || {
            (self.count(|shard| shard.recovering.into()) == Some(0)).then_some(())
        });
    }

    /// The sum of a figure over all shards, if all nodes answer.
    fn count(&self, figure: impl Fn(&ShardStatus) -> u64) -> Option<u64> {
        let report = self.cluster.status(&self.cluster.running())?;
        Some(report.nodes.iter().flat_map(|node| &node.shards).map(figure).sum())
    }

    fn rounds(&mut self, victims: &[Victim]) {
        let load = Load::start(&self.cluster, STEADY);
        for round in 0..rounds() {
            victims.iter().for_each(|&victim| self.round(&load, victim, round));
        }
        load.wait_for(100);
        let verified = verify(&self.cluster, &[&load.finish()]);
        let (count, cuts) = (rounds() * victims.len(), self.cuts);
        tell(&format!("power cuts {victims:?}: {count} rounds, {cuts} cuts, {verified:?}"));
    }
}

#[test]
fn without_sync_power_may_fail_for_one_node_at_a_time_and_nothing_is_lost() {
    let spec = Spec { wal_sync: false, ..Spec::default() };
    let Some(mut machines) = Machines::start(spec) else { return };
    machines.rounds(&[Victim::Follower, Victim::Leader]);
}

#[test]
fn with_synced_acknowledgements_power_may_fail_anywhere_and_nothing_is_lost() {
    let Some(mut machines) = Machines::start(Spec::default()) else { return };
    machines.rounds(&[Victim::Follower, Victim::Leader, Victim::Everybody]);
}

/// Power fails for all, right after acknowledgements, again and again; how many commands that cost
/// in each round. What remains is one prefix on all nodes, and stays.
fn lost_with_everybody(spec: Spec) -> Option<Vec<u64>> {
    let mut machines = Machines::start(spec.clone())?;
    let (mut books, mut lost) = (Vec::new(), Vec::new());
    for _ in 0..CONTROL_ROUNDS.max(rounds()) {
        let load = Load::start(&machines.cluster, STEADY);
        load.wait_for(1000);
        books.push(load.finish());
        machines.cut(&[0, 1, 2]);
        machines.boot(&[0, 1, 2]);
        machines.cluster.wait_for_leaders();
        lost.push(forget_lost_suffix(&machines.cluster, &mut books));
        // Nodes that promised to sync do not know better than that they did.
        let warned = machines.count(|shard| shard.possible_data_loss).expect("all are up") > 0;
        assert_eq!(warned, !spec.wal_sync, "whether the nodes say that commands may be missing");
        // Until then what they take in is synced, and the round would lose nothing.
        machines.wait_until_recovered();
    }
    let cuts = machines.cuts;
    tell(&format!("power cuts, control: {} rounds, {cuts} cuts, lost {lost:?}", lost.len()));
    Some(lost)
}

#[test]
fn control_without_sync_and_all_power_gone_a_suffix_is_lost_and_the_replicas_agree_on_the_rest() {
    // The node that synced last decides what is left: with the default lag it is nearly everything.
    let spec = Spec { wal_sync: false, sync_lag: (400, 64 << 20), ..Spec::default() };
    let Some(lost) = lost_with_everybody(spec) else { return };
    assert!(lost.iter().any(|&n| n > 0), "the cuts lose nothing, so they show nothing");
}

/// The same with `wal_sync`, on disks that are never told to flush.
#[cfg(feature = "mutants")]
#[test]
fn mutant_a_node_that_does_not_sync_is_seen_to_lose_what_it_acknowledged() {
    let spec = Spec { mutant: Some("no-sync"), ..Spec::default() };
    // Whoever names as durable what is not can even lose something out of the middle.
    let seen = std::panic::catch_unwind(|| lost_with_everybody(spec));
    let is_hole = |cause: &Box<dyn std::any::Any + Send>| {
        cause.downcast_ref::<String>().is_some_and(|text| text.starts_with("a hole before"))
    };
    match seen {
        Ok(None) => {}
        Ok(Some(lost)) => {
            assert!(lost.iter().any(|&n| n > 0), "acknowledged without sync, and nobody saw it");
        }
        Err(cause) if is_hole(&cause) => {}
        Err(cause) => std::panic::resume_unwind(cause),
    }
}
