//! What a snapshot of a store of 100 MB costs the shard's thread: the freeze, the first apply behind
//! it, one slice, and all of it written and restored. `floor` is what the machine needs to copy and
//! checksum as many bytes, in the same minute.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringraft::block::{Block, BlockBuilder, Command, CommandKind};
use ringraft::checksum::crc32c;
use ringraft::ids::{GroupId, Index, Term};
use ringraft::machine::StateMachine;
use ringraft::machine::events::{EventLimits, EventStore};
use ringraft::shard::sessions::{Answer, Request, SessionLimits, Sessions};
use ringraft::snapshot::{Header, Piece, SnapshotReader, SnapshotWriter};

const STATE_BYTES: u64 = 100_000_000;
const BATCH: u64 = 100;
/// What a turn may spend on a snapshot.
const SLICE: usize = 64 << 10;

/// 100 events of 128 bytes in turns of ten for 16 queues, and an id each tenth block.
fn block(round: u64) -> Block {
    let mut builder = BlockBuilder::default();
    for n in 0..BATCH {
        let topic = format!("topic-{}/orders", (round * 10 + n / 10) % 16);
        let (kind, key, value) = match n {
            0 if round.is_multiple_of(10) => {
                (CommandKind::DedupAdd, u128::from(round).to_le_bytes().to_vec(), &[][..])
            }
            _ => (CommandKind::SetEvent, topic.into_bytes(), &[7; 128][..]),
        };
        let command = Command { kind: kind as u8, flags: 0, timestamp: round, key: &key, value };
        builder.push(&command).expect("it fits");
    }
    let mut block = builder.finish(GroupId(0), 1, 1, 0);
    block.stamp(Term(1), Index(1 + round * BATCH), 0);
    block
}

struct Group {
    store: EventStore,
    sessions: Sessions,
    round: u64,
}

impl Group {
    fn new() -> Self {
        let limits = EventLimits { bytes: STATE_BYTES, ..EventLimits::default() };
        let mut group = Self {
            store: EventStore::new(limits),
            sessions: Sessions::new(SessionLimits::default()),
            round: 0,
        };
        (0..2 * STATE_BYTES / (160 * BATCH)).for_each(|_| group.apply());
        group
    }

    fn apply(&mut self) {
        let block = block(self.round);
        self.apply_made(&block);
    }

    fn apply_made(&mut self, block: &Block) {
        let request = Request {
            client: 1 + self.round % 1000,
            seq: 1 + self.round / 1000,
            pending: 0,
            continues: false,
        };
        black_box(self.store.apply(block));
        self.sessions.record(&request, Answer::default());
        self.round += 1;
    }

    fn freeze(&mut self) -> SnapshotWriter {
        let state = self.store.freeze().expect("it has snapshots");
        SnapshotWriter::new(Header::default(), Box::new(self.sessions.freeze()), state)
    }
}

fn restore(bytes: &[u8]) -> (EventStore, Sessions) {
    let limits = EventLimits { bytes: STATE_BYTES, ..EventLimits::default() };
    let (mut store, mut sessions) =
        (EventStore::new(limits), Sessions::new(SessionLimits::default()));
    store.restore_begin().expect("supported");
    sessions.restore_begin();
    let mut reader = SnapshotReader::new();
    for mut input in bytes.chunks(SLICE) {
        while let Some(piece) = reader.next(&mut input).expect("whole") {
            match piece {
                Piece::Header(_) | Piece::End => {}
                Piece::Sessions(bytes) => sessions.restore_chunk(bytes).expect("whole"),
                Piece::State(bytes) => store.restore_chunk(bytes).expect("whole"),
            }
        }
    }
    store.restore_finish().expect("whole");
    sessions.restore_finish().expect("whole");
    reader.finish().expect("whole");
    (store, sessions)
}

/// One snapshot with a block applied after each slice: the longest slice and the longest apply.
fn longest(group: &mut Group) -> (Duration, Duration, u64) {
    let blocks: Vec<Block> = (group.round..group.round + 4000).map(block).collect();
    let (mut writer, mut slice, mut apply) = (group.freeze(), Duration::ZERO, Duration::ZERO);
    let (mut bytes, mut memory) = (Vec::with_capacity(4 * SLICE), 0);
    for n in 0.. {
        bytes.clear();
        let start = Instant::now();
        let more = writer.next(&mut bytes, SLICE);
        slice = slice.max(start.elapsed());
        if let Some(block) = blocks.get(n) {
            let start = Instant::now();
            group.apply_made(block);
            apply = apply.max(start.elapsed());
        }
        memory = memory.max(writer.memory_bytes());
        if !more {
            return (slice, apply, memory);
        }
    }
    unreachable!("it ends")
}

fn snapshot(c: &mut Criterion) {
    let mut group = Group::new();
    let mut bytes = Vec::new();
    let mut writer = group.freeze();
    while writer.next(&mut bytes, SLICE) {}
    let size = bytes.len() as u64;

    let mut g = c.benchmark_group("snapshot_100MB");
    g.throughput(Throughput::Bytes(size));
    g.bench_function("floor: copy and checksum", |b| {
        let mut copy = Vec::with_capacity(SLICE);
        b.iter(|| {
            for part in bytes.chunks(SLICE) {
                copy.clear();
                copy.extend_from_slice(part);
                black_box(crc32c(&copy));
            }
        });
    });
    g.bench_function("write in slices of 64 KiB", |b| {
        let mut out = Vec::with_capacity(4 * SLICE);
        b.iter(|| {
            let mut writer = group.freeze();
            while writer.next(&mut out, SLICE) {
                black_box(&out);
                out.clear();
            }
        });
    });
    g.bench_function("restore", |b| b.iter_with_large_drop(|| restore(&bytes)));
    g.throughput(Throughput::Elements(1));
    g.bench_function("freeze", |b| b.iter_with_large_drop(|| group.freeze()));
    g.bench_function("apply 100 commands, not frozen", |b| {
        b.iter_custom(|n| {
            let blocks: Vec<Block> = (group.round..group.round + n).map(block).collect();
            let start = Instant::now();
            blocks.iter().for_each(|block| group.apply_made(block));
            start.elapsed()
        });
    });
    g.bench_function("first apply of 100 commands behind a freeze", |b| {
        b.iter_custom(|n| {
            let mut took = Duration::ZERO;
            for _ in 0..n {
                let (frozen, block) = (group.freeze(), block(group.round));
                let start = Instant::now();
                group.apply_made(&block);
                took += start.elapsed();
                drop(frozen);
            }
            took
        });
    });
    g.bench_function("longest slice of a snapshot", |b| {
        b.iter_custom(|n| (0..n).map(|_| longest(&mut group).0).sum());
    });
    g.bench_function("longest apply of 100 commands during a snapshot", |b| {
        b.iter_custom(|n| (0..n).map(|_| longest(&mut group).1).sum());
    });
    g.bench_function("drop half-way", |b| {
        let frozen_and_changed = |group: &mut Group| {
            let writer = group.freeze();
            (0..1000).for_each(|_| group.apply());
            writer
        };
        b.iter_batched(|| frozen_and_changed(&mut group), drop, BatchSize::PerIteration);
    });
    g.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = snapshot
}
criterion_main!(benches);
