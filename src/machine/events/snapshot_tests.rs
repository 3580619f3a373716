//! Stories about stores that are frozen, written and restored while events go on coming.

use proptest::prelude::*;

use super::tests::{Log, Spec, Story, any_command, config, event, event_with_id};
use super::*;

/// Every public thing that can be asked of a store, and what only the next commands would show.
fn everything(store: &EventStore) -> Vec<u8> {
    let mut reply = Vec::new();
    let list = query::Query::List { after: b"", limit: u32::MAX }.encode();
    store.query(&list, &mut reply).expect("a list");
    for queue in store.queues_by_name() {
        let (queue, limit, bytes_max) = (&*queue.name, u32::MAX, u32::MAX);
        let read = query::Query::Read { queue, from: Index(0), limit, bytes_max };
        store.query(&read.encode(), &mut reply).expect("the queue is there");
    }
    for n in [store.digest(), store.full_digest(), store.bytes, store.applied.get()] {
        reply.extend_from_slice(&n.to_le_bytes());
    }
    reply.extend_from_slice(format!("{:?}", store.totals).as_bytes());
    reply
}

fn write(mut frozen: Box<dyn FrozenState>, budget: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while frozen.next_chunk(&mut bytes, budget) {}
    bytes
}

fn restore(bytes: &[u8], piece: usize) -> Result<EventStore, SnapshotError> {
    let mut store = EventStore::new(EventLimits::default());
    store.restore_begin()?;
    bytes.chunks(piece.max(1)).try_for_each(|piece| store.restore_chunk(piece))?;
    store.restore_finish().map(|()| store)
}

/// Both apply the same and must stay one in all that can be seen and in all that will come of it.
fn go_on(a: &mut EventStore, b: &mut EventStore, log: &mut Log, blocks: &[Vec<Spec>]) {
    for commands in blocks {
        let block = log.block(commands);
        assert_eq!(a.apply(&block), b.apply(&block));
        assert_eq!(a.digest(), b.digest());
    }
    assert_eq!(everything(a), everything(b));
    assert_eq!(write(a.freeze().unwrap(), 1 << 20), write(b.freeze().unwrap(), 1 << 20));
}

/// bugs.md 18. A store with events, ids, routes and hidden events is restored byte by byte.
#[test]
fn a_restored_store_answers_as_the_one_that_was_frozen() {
    let mut s = Story::new();
    s.apply(&[config("retention/events", "3"), config("route/orders/eu", "eu")]);
    s.apply(&[event("orders/eu/1", "a"), event("orders/us", "b"), event_with_id("t", 5, 9, "c")]);
    s.apply(&[event_with_id("t", 5, 9, "a duplicate"), config("limits/queues", "rejected")]);
    for n in 0..9 {
        s.apply(&[event("t", &n.to_string())]);
    }
    let bytes = write(s.store.freeze().unwrap(), 1);
    let mut restored = restore(&bytes, 1).unwrap();
    assert_eq!(everything(&restored), everything(&s.store));
    let later = [vec![event_with_id("t", 5, 9, "again"), event("orders/eu/2", "d")]];
    go_on(&mut s.store, &mut restored, &mut s.log, &later);
}

/// What retention hides is in the first run, which is kept whole until it may go: a replica that was
/// restored must drop the same runs at the same time, or `limits/bytes` makes them differ.
#[test]
fn a_queue_that_is_cut_and_trimmed_in_its_first_chunk_comes_back_with_both() {
    let mut s = Story::new();
    let many: Vec<_> = (0..60).map(|n| event("t", &format!("value {n}"))).collect();
    for _ in 0..20 {
        s.apply(&many);
    }
    s.apply(&[config("retention/t/events", "100"), config("retention/t/events", "500")]);
    let queue = s.store.queue(b"t").unwrap();
    assert!(queue.head > 0 && queue.cut.events > 0, "{} {:?}", queue.head, queue.cut);
    let mut restored = restore(&write(s.store.freeze().unwrap(), 100), 64).unwrap();
    assert_eq!(restored.queue(b"t").unwrap().cut, s.store.queue(b"t").unwrap().cut);
    let mut later: Vec<_> = (0..30).map(|_| many.clone()).collect();
    later.push(vec![config("limits/bytes", "9000"), event("u", "x")]);
    go_on(&mut s.store, &mut restored, &mut s.log, &later);
}

/// Two events of 56 bytes together under a limit of 50: the first is hidden, alone in its run, and is
/// not dropped before the second fills the limit.
#[test]
fn a_first_run_that_is_cut_off_whole_comes_back() {
    let mut s = Story::new();
    s.apply(&[config("retention/t/bytes", "50"), event("t", "")]);
    s.apply(&[event("u", ""), event("t", "12345678"), config("retention/t/bytes", "90")]);
    assert_eq!(s.store.queue(b"t").unwrap().cut.events, 1);
    let mut restored = restore(&write(s.store.freeze().unwrap(), 1), 1).unwrap();
    let later: Vec<_> = (0..4).map(|_| vec![event("t", "12345678")]).collect();
    go_on(&mut s.store, &mut restored, &mut s.log, &later);
}

/// Bytes and runs that are left of a queue's chunks.
fn shape(store: &EventStore) -> Vec<(usize, usize)> {
    let queue = store.queue(b"t").unwrap();
    let mut shape: Vec<_> = queue.chunks.iter().map(|c| (c.bytes.len(), c.runs.len())).collect();
    shape[0].1 -= queue.head as usize;
    shape
}

/// Chunks decide which events join a run; one that is half full must be half full again, also when
/// its front is gone.
#[test]
fn chunks_are_full_at_the_same_places_afterwards() {
    let value = "x".repeat(700);
    for keep in ["1000", "60"] {
        let mut s = Story::new();
        s.apply(&[config("retention/t/events", keep)]);
        for n in 0..300 {
            s.apply(&[event("t", &value)]);
            if n % 7 == 0 {
                let mut restored = restore(&write(s.store.freeze().unwrap(), 4096), 999).unwrap();
                let blocks: Vec<_> =
                    (0..5).map(|_| vec![event("t", &value), event("t", "y")]).collect();
                go_on(&mut s.store, &mut restored, &mut s.log, &blocks);
                assert_eq!(shape(&s.store), shape(&restored));
            }
        }
    }
}

/// The oldest ids were evicted, a part of the others expires while the set is written.
#[test]
fn evicted_ids_stay_away_and_expired_ones_are_in_what_was_frozen_before() {
    let mut s = Story::new();
    s.apply(&[config("limits/dedup_ids", "1500")]);
    let add =
        |n: u64| (CommandKind::DedupAdd, 0, n % 100, u128::from(n).to_le_bytes().into(), vec![]);
    for n in 0..40u64 {
        s.apply(&(n * 50..n * 50 + 50).map(add).collect::<Vec<_>>());
    }
    let (seen, mut frozen, mut bytes) =
        (everything(&s.store), s.store.freeze().unwrap(), Vec::new());
    assert!(frozen.next_chunk(&mut bytes, 5000));
    s.apply(&[(CommandKind::DedupExpire, 0, 50, vec![], vec![]), add(7)]);
    while frozen.next_chunk(&mut bytes, 5000) {}
    let mut restored = restore(&bytes, 100).unwrap();
    assert_eq!((restored.dedup.len(), everything(&restored)), (1500, seen));
    let mut log = Log { next: s.log.next - 2 };
    restored.apply(&log.block(&[(CommandKind::DedupExpire, 0, 50, vec![], vec![]), add(7)]));
    assert_eq!(everything(&restored), everything(&s.store));
    let later = [(1980..2020).map(add).collect(), vec![config("limits/dedup_ids", "5"), add(1999)]];
    go_on(&mut s.store, &mut restored, &mut log, &later);
}

#[test]
fn a_large_event_and_an_emptied_queue_come_back() {
    let mut s = Story::new();
    s.apply(&[event("small", "a"), event("t", &"x".repeat(300_000)), event("t", "b")]);
    let mut restored = restore(&write(s.store.freeze().unwrap(), 1), 1 << 14).unwrap();
    // A limit below one event empties every queue; their indices stay.
    let later = [vec![config("limits/bytes", "1")]];
    go_on(&mut s.store, &mut restored, &mut s.log, &later);
    let mut restored = restore(&write(s.store.freeze().unwrap(), 1), 1 << 14).unwrap();
    assert_eq!((restored.queue(b"t").unwrap().last(), restored.bytes), (3, 0));
    let later = [vec![config("limits/bytes", ""), event("t", "c")]];
    go_on(&mut s.store, &mut restored, &mut s.log, &later);
}

#[test]
fn two_frozen_states_and_one_dropped_half_way_are_each_as_they_were() {
    let mut s = Story::new();
    let block = |n: u64| vec![event("a", &n.to_string()), event_with_id("b", n as u8, n, "v")];
    for n in 0..100 {
        s.apply(&block(n));
    }
    let (first, at_first) = (s.store.freeze().unwrap(), write(s.store.freeze().unwrap(), 1));
    for n in 100..200 {
        s.apply(&block(n));
    }
    let mut half = s.store.freeze().unwrap();
    assert!(half.next_chunk(&mut Vec::new(), 1000));
    let (second, at_second) = (s.store.freeze().unwrap(), write(s.store.freeze().unwrap(), 1));
    s.apply(&[config("retention/events", "1"), (CommandKind::DedupExpire, 0, 150, vec![], vec![])]);
    drop(half);
    s.apply(&block(200));
    drop(s.store);
    assert_eq!(write(second, 77), at_second);
    assert_eq!(write(first, 5000), at_first);
}

/// A million events are written in slices while as many come and the first million goes. Counts, not
/// times: what a slice appends, what a freeze and the writes after it copy, what memory it costs.
#[test]
fn a_large_store_is_frozen_in_bounded_pieces_and_its_cost_is_bounded() {
    const QUEUES: u64 = 10;
    let mut s = Story::new();
    s.apply(&[config("retention/events", "100000")]);
    let block = |n: u64| -> Vec<Spec> {
        let topic = format!("queue-{}/x", n % QUEUES);
        let mut block: Vec<_> = (0..999).map(|_| event(&topic, "0123456789")).collect();
        block.push((CommandKind::DedupAdd, 0, n, u128::from(n).to_le_bytes().into(), vec![]));
        block
    };
    let blocks: Vec<_> = (0..QUEUES).map(block).collect();
    for n in 0..1100u64 {
        s.apply(&blocks[(n % QUEUES) as usize]);
    }
    let events: u64 = s.store.queues.iter().map(Queue::visible_events).sum();
    assert_eq!(events, QUEUES * 100_000);

    let (full, live) = (everything(&s.store), s.store.memory_bytes());
    let mut frozen = s.store.freeze().unwrap();
    assert_eq!(frozen.memory_bytes(), 0, "a freeze shares everything");
    s.apply(&blocks[0]);
    let copied = frozen.memory_bytes();
    assert!(copied <= 4 * 65_536, "one queue's last chunk and what was trimmed: {copied}");

    let (mut bytes, mut slices, mut most) = (Vec::new(), 0u64, 0);
    let mut restored = EventStore::new(EventLimits::default());
    restored.restore_begin().unwrap();
    loop {
        let more = frozen.next_chunk(&mut bytes, 65_536);
        assert!(bytes.len() <= 3 * 65_536, "a slice of {} bytes", bytes.len());
        restored.restore_chunk(&bytes).unwrap();
        bytes.clear();
        slices += 1;
        s.apply(&blocks[(slices % QUEUES) as usize]);
        s.apply(&blocks[(slices * 7 % QUEUES) as usize]);
        most = most.max(frozen.memory_bytes());
        if !more {
            break;
        }
    }
    restored.restore_finish().unwrap();
    assert!(slices > 300, "{slices}");
    assert!(most > live / 10 && most <= live, "at most {most} of {live} bytes more");
    assert_eq!(frozen.memory_bytes(), 0, "what is written is let go");
    assert_eq!(everything(&restored), full);
    let (before, after) = (live as f64, restored.memory_bytes() as f64);
    assert!((0.8..1.2).contains(&(after / before)), "{before} and {after} bytes");
}

#[test]
fn a_state_of_another_version_or_of_other_limits_is_refused() {
    let mut s = Story::new();
    s.apply(&[event("t", "a")]);
    let bytes = write(s.store.freeze().unwrap(), 1);
    let mut newer = bytes.clone();
    newer[0] = 2;
    assert_eq!(restore(&newer, 50).err(), Some(SnapshotError::Version(2)));
    let mut other = EventStore::new(EventLimits { dedup_ids: 7, ..EventLimits::default() });
    other.restore_begin().unwrap();
    assert_eq!(other.restore_chunk(&bytes), Err(SnapshotError::OtherLimits));
    for cut in 0..bytes.len() {
        assert!(matches!(restore(&bytes[..cut], 50), Err(SnapshotError::Damaged(_))), "{cut}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(restore(&longer, 1000), Err(SnapshotError::Damaged(_))));
}

#[test]
fn the_layout_is_pinned_by_a_golden_state() {
    let mut s = Story::new();
    s.apply(&[config("retention/t/events", "1"), event("t", "a"), event_with_id("t", 1, 2, "b")]);
    let bytes = write(s.store.freeze().unwrap(), 1);
    let (head, key, queue, id) = (120, 8 + 18 + 1, 32 + 1, 24);
    let chunk = 16 + 16 + 24 + 40;
    assert_eq!(bytes.len(), head + key + queue + chunk + id);
    assert_eq!(crate::checksum::crc32c(&bytes), GOLDEN, "a new layout needs a new version");
}

const GOLDEN: u32 = 0xff66_9efb;

#[test]
#[should_panic(expected = "half restored")]
fn a_half_restored_store_applies_nothing() {
    let mut s = Story::new();
    s.store.restore_begin().unwrap();
    s.apply(&[event("t", "a")]);
}

fn any_blocks(most: usize) -> impl Strategy<Value = Vec<Vec<Spec>>> {
    proptest::collection::vec(proptest::collection::vec(any_command(), 1..40), 0..most)
}

proptest! {
    /// Any prefix, a freeze, the rest of the log while chunks are taken; the restored store applies
    /// the same rest, then both apply more.
    #[test]
    fn a_restored_store_behaves_as_the_one_that_was_frozen(
        prefix in any_blocks(20), meanwhile in any_blocks(12), later in any_blocks(6),
        budget in 1usize..2000, piece in 1usize..3000,
    ) {
        let mut s = Story::new();
        for commands in prefix.iter() {
            s.apply(commands);
        }
        let (seen, next) = (everything(&s.store), s.log.next);
        let (mut frozen, untouched) = (s.store.freeze().unwrap(), write(s.store.freeze().unwrap(), 1));
        let (mut bytes, mut more) = (Vec::new(), true);
        for commands in &meanwhile {
            s.apply(commands);
            more = more && frozen.next_chunk(&mut bytes, budget);
        }
        while more {
            more = frozen.next_chunk(&mut bytes, budget);
        }
        prop_assert_eq!(&bytes, &untouched);
        let mut restored = restore(&bytes, piece).unwrap();
        prop_assert_eq!(everything(&restored), seen);
        let mut log = Log { next };
        for commands in &meanwhile {
            restored.apply(&log.block(commands));
        }
        go_on(&mut s.store, &mut restored, &mut log, &later);
        let (a, b) = (s.store.memory_bytes(), restored.memory_bytes());
        prop_assert!(a.abs_diff(b) <= 20 * 65_536, "{} and {} bytes", a, b);
    }

    /// Bytes that pass every checksum and are wrong all the same are an error, or a store that works.
    #[test]
    fn changed_bytes_never_make_a_broken_store(
        blocks in any_blocks(5),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
        later in any_blocks(3),
    ) {
        let mut s = Story::new();
        for commands in blocks.iter() {
            s.apply(commands);
        }
        let mut bytes = write(s.store.freeze().unwrap(), 1);
        for (at, change) in changes {
            let at = at.index(bytes.len());
            bytes[at] ^= change;
        }
        if let Ok(mut store) = restore(&bytes, 100) {
            everything(&store);
            let mut log = Log { next: store.applied.get() + 1 };
            for commands in later.iter() {
                store.apply(&log.block(commands));
            }
            everything(&store);
        }
    }
}
