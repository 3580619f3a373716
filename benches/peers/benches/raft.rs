//! Our core: one block proposed, replicated to three replicas in memory, applied.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringraft_peers::our_raft::Cluster;
use ringraft_peers::side::time_steps;
use ringraft_peers::workload::BATCHES;

fn raft(c: &mut Criterion) {
    let mut group = c.benchmark_group("raft core/ringraft");
    for batch in BATCHES {
        let mut side = Cluster::new(batch);
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::new("blocks", batch), |b| {
            b.iter_custom(|steps| time_steps(&mut side, steps));
        });
    }
    group.finish();
}

criterion_group!(benches, raft);
criterion_main!(benches);
