//! What one core needs to apply a command to the event store, warm (the queue is at its limit and
//! recycles its memory). The divisor is commands, so `ns per element` is read off directly.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringraft::block::{Block, BlockBuilder, Command, CommandKind, FLAG_EVENT_ID};
use ringraft::ids::{GroupId, Index, Term};
use ringraft::machine::StateMachine;
use ringraft::machine::events::{EventLimits, EventStore};
use ringraft::shard::sessions::{Answer, Request, SessionLimits, Sessions};

const VALUE: [u8; 128] = [7; 128];
/// Blocks made ahead; their ids differ, so that few events are duplicates of each other.
const BLOCKS: u64 = 64;

fn block(batch: u64, topics: u64, with_id: bool, round: u64) -> Block {
    let mut builder = BlockBuilder::default();
    for n in 0..batch {
        let topic = format!("topic-{}/orders", n % topics);
        let mut value = VALUE;
        value[..8].copy_from_slice(&(round * batch + n).to_le_bytes());
        let command = Command {
            kind: CommandKind::SetEvent as u8,
            flags: if with_id { FLAG_EVENT_ID } else { 0 },
            timestamp: round,
            key: topic.as_bytes(),
            value: &value,
        };
        builder.push(&command).expect("it fits");
    }
    builder.finish(GroupId(0), 1, 1, 0)
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    for (name, batch, topics, with_id, retention) in [
        ("batch1000", 1000, 1, false, 64 << 20),
        ("batch1000/1MiB", 1000, 1, false, 1 << 20),
        ("batch1000/16topics", 1000, 16, false, 4 << 20),
        ("batch1000/16topics/64KiB", 1000, 16, false, 64 << 10),
        ("batch1000/ids", 1000, 1, true, 64 << 20),
        ("batch100", 100, 1, false, 64 << 20),
        ("batch1", 1, 1, false, 64 << 20),
    ] {
        let limits = EventLimits {
            retention_bytes: retention,
            dedup_ids: if with_id { 50_000 } else { 1 },
            ..EventLimits::default()
        };
        let mut store = EventStore::new(limits);
        let mut blocks: Vec<Block> =
            (0..BLOCKS).map(|n| block(batch, topics, with_id, n)).collect();
        let (mut next, mut turn) = (1, 0);
        let mut step = |store: &mut EventStore| {
            let block = &mut blocks[turn % BLOCKS as usize];
            block.stamp(Term(1), Index(next), 0);
            next += batch;
            turn += 1;
            black_box(store.apply(block));
        };
        // Warm: beyond the retention, so that every chunk is a recycled one.
        for _ in 0..2 * retention / (160 * batch) + BLOCKS {
            step(&mut store);
        }
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::from_parameter(name), |b| b.iter(|| step(&mut store)));
    }
    group.finish();
}

fn sessions(c: &mut Criterion) {
    let mut sessions = Sessions::new(SessionLimits::default());
    let mut seq = 0;
    c.bench_function("sessions/check+record, 64 clients", |b| {
        b.iter(|| {
            seq += 1;
            let request =
                Request { client: 1 + seq % 64, seq: 1 + seq / 64, pending: 0, continues: false };
            black_box(sessions.check(&request));
            sessions.record(&request, Answer { first: Index(seq), ..Answer::default() });
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = apply, sessions
}
criterion_main!(benches);
