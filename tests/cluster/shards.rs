//! Several shards on each node, several groups on each shard.

use crate::check::verify;
use crate::cluster::{Cluster, Spec};
use crate::load::{Load, STEADY};

#[test]
fn groups_on_several_shards_agree_and_survive_kill_9_of_all_nodes() {
    let mut cluster = Cluster::start(Spec { shards: 2, groups: 4, ..Spec::default() });
    let load = Load::start(&cluster, STEADY);
    load.wait_for(400);
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.start_node(node));
    load.wait_for(400);
    let ledger = load.finish();
    for group in 0..4 {
        assert!(ledger.entries.iter().filter(|entry| entry.group.0 == group).count() > 100);
    }
    let verified = verify(&cluster, &[&ledger]);
    let commands: u64 = ledger.entries.iter().map(|entry| entry.count).sum();
    assert_eq!((verified.acked, verified.unknown), (commands, 0));
}
