//! The Raft core alone: three replicas of one group in one thread, no disk, no network, values of
//! 128 bytes. `one_at_a_time`: a block is proposed and committed before the next. `turn_of_64`: 64
//! blocks are proposed at once, as a busy shard does in a turn. In both the leader has committed and
//! applied at the end of an iteration; followers learn the commit with the next append, as they do
//! in the product. `one_at_a_time_everywhere` waits for that, too, by an extra heartbeat.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringraft::ids::GroupId;
use ringraft::raft::harness::{Cluster, sample_block};

fn bench(c: &mut Criterion, name: &str, blocks_per_turn: u64, everywhere: bool) {
    let mut group = c.benchmark_group(name);
    for commands_per_block in [1, 100, 1000] {
        let block = sample_block(GroupId(0), commands_per_block, 128);
        let mut cluster = Cluster::new(3);
        let mut blocks = Vec::new();
        group.throughput(Throughput::Elements(blocks_per_turn * u64::from(commands_per_block)));
        group.bench_function(format!("batch_{commands_per_block}"), |b| {
            b.iter(|| {
                blocks.extend((0..blocks_per_turn).map(|_| block.clone()));
                cluster.propose(&mut blocks);
                cluster.settle();
                if everywhere {
                    cluster.heartbeat();
                }
                black_box(cluster.applied_commands())
            });
        });
        assert_eq!(cluster.leader().commit(), cluster.leader().last_index());
    }
    group.finish();
}

fn raft_core(c: &mut Criterion) {
    bench(c, "one_at_a_time", 1, false);
    bench(c, "one_at_a_time_everywhere", 1, true);
    bench(c, "turn_of_64", 64, false);
}

criterion_group!(benches, raft_core);
criterion_main!(benches);
