//! Crate `raft` 0.7: one batch proposed, replicated to three replicas in memory, applied by all.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringraft_peers::raft_rs::{Cluster, Shape};
use ringraft_peers::side::time_steps;
use ringraft_peers::workload::BATCHES;

fn raft_rs(c: &mut Criterion) {
    let mut group = c.benchmark_group("raft core/raft 0.7");
    for (name, shape) in [("entries", Shape::EntryPerCommand), ("fused", Shape::Fused)] {
        for batch in BATCHES {
            let mut side = Cluster::new(batch, shape);
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new(name, batch), |b| {
                b.iter_custom(|steps| time_steps(&mut side, steps));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, raft_rs);
criterion_main!(benches);
