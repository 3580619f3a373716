//! Once warm, the pure layers allocate nothing for a command. A binary of its own, because it counts
//! what the whole process allocates.

#[path = "no_alloc/shards.rs"]
mod shards;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::{Bytes, BytesMut};
use ringraft::block::{Block, BlockBuilder, Command, CommandKind, EVENT_ID_BYTES, FLAG_EVENT_ID};
use ringraft::ids::{GroupId, Index, Term, Tick};
use ringraft::machine::StateMachine;
use ringraft::machine::events::{EventLimits, EventStore};
use ringraft::raft::harness::{Cluster, sample_block};
use ringraft::shard::sessions::{Answer, Request, SessionLimits, Sessions, Verdict};
use ringraft::wal::{DiskDone, DiskOp, LogIdentity, Wal, WalConfig};
use ringraft::wire::frame::{Frame, FrameKind, FrameWriter};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract; the
// counter is a const-initialised thread local without a destructor and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `alloc` or `realloc` above, that is from `System`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: as for `dealloc`; `size` is the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn a_warm_raft_group_of_three_allocates_nothing() {
    let block = sample_block(GroupId(0), 100, 128);
    let mut cluster = Cluster::new(3);
    let mut blocks = Vec::with_capacity(64);
    let mut rounds = |cluster: &mut Cluster, n: usize| {
        for round in 0..n {
            blocks.extend((0..1 + round % 64).map(|_| block.clone()));
            cluster.propose(&mut blocks);
            cluster.settle();
            if round % 16 == 0 {
                cluster.heartbeat();
            }
        }
    };
    rounds(&mut cluster, 200);
    let before = cluster.applied_commands();
    assert_eq!(allocations(|| rounds(&mut cluster, 1000)), 0);
    assert!(cluster.applied_commands() - before > 1_000_000, "the work was really done");
    assert!(allocations(|| drop(Vec::<u8>::with_capacity(9))) > 0, "the counter counts");
}

#[test]
fn decoding_and_checking_blocks_allocates_nothing() {
    let mut bytes = Vec::new();
    (0..64).for_each(|_| sample_block(GroupId(0), 100, 128).encode_into(&mut bytes));
    let bytes = Bytes::from(bytes);
    let mut decoded = 0;
    let mut decode = || {
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            let block = Block::decode(&mut rest).expect("whole");
            block.validate_commands().expect("well formed");
            decoded += block.commands().count();
        }
    };
    decode();
    assert_eq!(allocations(|| (0..10).for_each(|_| decode())), 0);
    assert_eq!(decoded, 11 * 64 * 100);
}

#[test]
fn writing_and_taking_frames_allocates_nothing() {
    let block = sample_block(GroupId(0), 10, 128);
    let (mut out, mut inbox, mut blocks) = (Vec::new(), BytesMut::new(), Vec::new());
    let mut taken = 0;
    let mut round = || {
        out.clear();
        for _ in 0..4 {
            let mut writer = FrameWriter::begin(&mut out);
            (0..8).for_each(|_| writer.block(&block));
            writer.finish(FrameKind::Submit, 8, 0);
        }
        inbox.extend_from_slice(&out);
        while let Some(mut frame) = Frame::take(&mut inbox).expect("well formed") {
            frame.take_blocks(frame.count, &mut blocks).expect("whole");
            taken += blocks.len();
            blocks.clear();
        }
    };
    (0..10).for_each(|_| round());
    assert_eq!(allocations(|| (0..100).for_each(|_| round())), 0);
    assert_eq!(taken, 110 * 32);
}

#[test]
fn the_cycle_of_the_log_allocates_nothing() {
    let config = WalConfig { segment_bytes: 8 << 20, ..WalConfig::default() };
    let identity = LogIdentity { cluster: 1, node: 1, disk: 1 };
    let mut wal = Wal::create(config, identity, 7);
    let (mut ops, mut next) = (Vec::new(), Index(1));
    let mut block = sample_block(GroupId(0), 100, 128);
    let mut cycle = || {
        block.stamp(Term(1), next, 0);
        wal.append(GroupId(0), std::slice::from_ref(&block), false, true);
        next = block.last().next();
        wal.flush(Tick(1), &mut ops);
        for op in ops.drain(..) {
            let (id, done) = match op {
                DiskOp::Write { op, buffer, .. } => (op, DiskDone::Written { buffer }),
                DiskOp::Prepare { op, .. } => (op, DiskDone::Prepared),
                DiskOp::Sync { op, .. } => (op, DiskDone::Synced),
                DiskOp::Read { .. } => unreachable!("nothing is read"),
            };
            let _ = wal.complete(Tick(1), id, Ok(done)).expect("the disk is well");
        }
        wal.release(GroupId(0), next.prev());
    };
    (0..3000).for_each(|_| cycle());
    assert_eq!(allocations(|| (0..3000).for_each(|_| cycle())), 0);
    assert_eq!(wal.durable(), wal.staged());
    assert!(wal.stats().recycled > 3, "the log went round");
}

/// Blocks of 100 events in turn for a few queues, every other one with an id.
fn events(rounds: u64) -> Vec<Block> {
    let mut builder = BlockBuilder::default();
    let kind = CommandKind::SetEvent as u8;
    let block = |round: u64| {
        for i in 0..100u64 {
            let topic = [&b"orders/new"[..], b"trades/done", b"alerts"][(i / 10) as usize % 3];
            let mut value = [7u8; 128];
            value[..8].copy_from_slice(&(round * 100 + i).to_le_bytes());
            assert!(value.len() > EVENT_ID_BYTES);
            let flags = if i % 2 == 0 { FLAG_EVENT_ID } else { 0 };
            let command = Command { kind, flags, timestamp: round, key: topic, value: &value };
            builder.push(&command).expect("fits");
        }
        let mut block = builder.finish(GroupId(0), 1, round + 1, 0);
        block.stamp(Term(1), Index(1 + round * 100), 0);
        block
    };
    (0..rounds).map(block).collect()
}

#[test]
fn applying_events_allocates_nothing() {
    let limits = EventLimits {
        retention_bytes: 4 << 20,
        dedup_ids: 10_000,
        bytes: 16 << 20,
        ..EventLimits::default()
    };
    let mut store = EventStore::new(limits);
    let blocks = events(6000);
    let (warm, hot) = blocks.split_at(4000);
    warm.iter().for_each(|block| assert_eq!(store.apply(block).applied, 100));
    let mut applied = 0;
    let count = allocations(|| hot.iter().for_each(|block| applied += store.apply(block).applied));
    assert_eq!((count, applied), (0, 200_000));
}

/// What is frozen costs copies while it is there; afterwards the store is as it was before.
#[test]
fn a_store_whose_snapshot_is_written_allocates_nothing_again() {
    let limits =
        EventLimits { retention_bytes: 4 << 20, dedup_ids: 10_000, ..EventLimits::default() };
    let mut store = EventStore::new(limits);
    let blocks = events(6000);
    let (warm, hot) = blocks.split_at(5000);
    let mut bytes = Vec::new();
    for (n, block) in warm.iter().enumerate() {
        store.apply(block);
        if n == 3000 {
            let mut frozen = store.freeze().expect("it has snapshots");
            while frozen.next_chunk(&mut bytes, 1 << 16) {}
        }
    }
    assert!(bytes.len() > 10 << 20, "three queues of 4 MiB");
    let mut applied = 0;
    let count = allocations(|| hot.iter().for_each(|block| applied += store.apply(block).applied));
    assert_eq!((count, applied), (0, 100_000));
}

#[test]
fn asking_and_recording_sessions_allocates_nothing() {
    let mut sessions = Sessions::new(SessionLimits::default());
    let mut record = |from: u64, to: u64| {
        for seq in from..to {
            for client in 1..=100 {
                let request =
                    Request { client, seq, pending: (seq - 1).min(7) as u32, continues: false };
                assert_eq!(sessions.check(&request), Verdict::New);
                sessions.record(&request, Answer::default());
                assert_ne!(sessions.check(&request), Verdict::New);
            }
        }
    };
    record(1, 20);
    assert_eq!(allocations(|| record(20, 200)), 0);
}

/// All of it together. What may still grow is the log's own index, which nothing releases before
/// there are snapshots: it doubles now and then, it does not allocate for each command.
#[test]
fn a_warm_cluster_of_shards_allocates_nothing_for_a_command() {
    let mut cluster = shards::Shards::new(3, 4);
    let mut seq = 0;
    let mut rounds = |cluster: &mut shards::Shards, n: usize| {
        for _ in 0..n {
            seq += 1;
            cluster.round(seq);
        }
    };
    rounds(&mut cluster, 2000);
    let (before, answered) = (cluster.allocations, cluster.answered);
    rounds(&mut cluster, 1000);
    let (count, blocks) = (cluster.allocations - before, cluster.answered - answered);
    assert_eq!(blocks, 4 * 1000);
    let commands = blocks * u64::from(shards::COMMANDS);
    let doublings = 4 * 3;
    assert!(count <= doublings, "{count} allocations for {commands} commands in {blocks} blocks");
}

#[test]
fn a_warm_cluster_of_shards_allocates_nothing_for_a_read() {
    let mut cluster = shards::Shards::new(3, 4);
    (1..=200).for_each(|seq| cluster.round(seq));
    (0..200).for_each(|_| cluster.read());
    let (before, read) = (cluster.allocations, cluster.read);
    (0..500).for_each(|_| cluster.read());
    let (count, reads) = (cluster.allocations - before, cluster.read - read);
    assert_eq!(reads, 4 * 4 * 500, "one of each kind in each group");
    // Buffers of answers double now and then.
    assert!(count <= 4, "{count} allocations for {reads} reads");
}
