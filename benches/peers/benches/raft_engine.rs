//! Crate `raft-engine` 0.4.2: one append made durable, one writer.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringraft_peers::raft_engine::{Files, Log};
use ringraft_peers::scratch::default_parent;
use ringraft_peers::side::{Side, time_steps};
use ringraft_peers::workload::{BATCHES, GROUPS};

fn raft_engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("wal/raft-engine 0.4.2");
    for groups in GROUPS {
        for batch in BATCHES {
            let mut side = Log::new(&default_parent(), groups, batch, Files::Prefilled)
                .expect("the scratch directory can be written");
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new(format!("{groups} groups"), batch), |b| {
                b.iter_custom(|steps| time_steps(&mut side, steps));
            });
            side.rest();
        }
    }
    group.finish();
}

criterion_group!(benches, raft_engine);
criterion_main!(benches);
