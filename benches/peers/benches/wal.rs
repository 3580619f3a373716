//! Our log: one append made durable, one writer.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringraft_peers::our_wal::Log;
use ringraft_peers::scratch::default_parent;
use ringraft_peers::side::{Side, time_steps};
use ringraft_peers::workload::{BATCHES, GROUPS};

fn wal(c: &mut Criterion) {
    let mut group = c.benchmark_group("wal/ringraft");
    for groups in GROUPS {
        for batch in BATCHES {
            let mut side = Log::new(&default_parent(), groups, batch)
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

criterion_group!(benches, wal);
criterion_main!(benches);
