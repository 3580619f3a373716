//! Stories about the event store. `Log` stands for the group's log: it numbers the commands.

use proptest::prelude::*;

use super::query::{DigestReply, ListReply, Query, ReadReply};
use super::*;
use crate::block::BlockBuilder;
use crate::ids::{GroupId, Term};

pub(super) type Spec = (CommandKind, u8, u64, Vec<u8>, Vec<u8>);

pub(super) struct Log {
    pub(super) next: u64,
}

impl Log {
    pub(super) fn block(&mut self, commands: &[Spec]) -> Block {
        let mut builder = BlockBuilder::default();
        for (kind, flags, timestamp, key, value) in commands {
            let (kind, flags, timestamp) = (*kind as u8, *flags, *timestamp);
            builder.push(&Command { kind, flags, timestamp, key, value }).unwrap();
        }
        let mut block = builder.finish(GroupId(0), 0, 0, 0);
        block.stamp(Term(1), Index(self.next), 0);
        self.next += block.count();
        block
    }
}

pub(super) fn event(topic: &str, value: &str) -> Spec {
    (CommandKind::SetEvent, 0, 7, topic.into(), value.into())
}

pub(super) fn event_with_id(topic: &str, id: u8, timestamp: u64, value: &str) -> Spec {
    let value = [&[id; EVENT_ID_BYTES][..], value.as_bytes()].concat();
    (CommandKind::SetEvent, FLAG_EVENT_ID, timestamp, topic.into(), value)
}

pub(super) fn config(key: &str, value: &str) -> Spec {
    (CommandKind::ConfigUpdate, 0, 0, key.into(), value.into())
}

pub(super) struct Story {
    pub(super) store: EventStore,
    pub(super) log: Log,
}

impl Story {
    pub(super) fn new() -> Self {
        Self { store: EventStore::new(EventLimits::default()), log: Log { next: 1 } }
    }

    pub(super) fn apply(&mut self, commands: &[Spec]) -> (u32, u32, u32) {
        let outcome = self.store.apply(&self.log.block(commands));
        assert_eq!(
            outcome.applied + outcome.duplicates + outcome.rejected,
            commands.len() as u32,
            "every command is counted once"
        );
        (outcome.applied, outcome.duplicates, outcome.rejected)
    }

    fn query(&self, query: Query<'_>) -> Result<Vec<u8>, QueryError> {
        let mut reply = Vec::new();
        self.store.query(&query.encode(), &mut reply).map(|()| reply)
    }

    /// Events of a queue as `index:value`.
    fn read(&self, queue: &str, from: u64, limit: u32) -> Vec<String> {
        let query =
            Query::Read { queue: queue.as_bytes(), from: Index(from), limit, bytes_max: u32::MAX };
        let reply = self.query(query).expect("the queue exists");
        let reply = ReadReply::decode(&reply).unwrap();
        let show = |v: &[u8]| String::from_utf8_lossy(v).into_owned();
        reply.events.iter().map(|e| format!("{}:{}", e.index, show(e.value))).collect()
    }

    fn trimmed_through(&self, queue: &str) -> u64 {
        self.store.queue(queue.as_bytes()).unwrap().trimmed_through()
    }
}

#[test]
fn events_are_read_back_by_queue_from_index_and_limit() {
    let mut s = Story::new();
    s.apply(&[event("orders/new", "a"), event("orders/paid", "b"), event("sensors/1", "c")]);
    s.apply(&[event("orders/new", "d")]);

    assert_eq!(s.read("orders", 0, 10), ["1:a", "2:b", "4:d"]);
    assert_eq!(s.read("orders", 2, 1), ["2:b"]);
    assert_eq!(s.read("orders", 3, 10), ["4:d"], "index 3 is another queue's");
    assert_eq!(s.read("orders", 5, 10), [""; 0]);
    assert_eq!(s.read("sensors", 0, 10), ["3:c"]);
    let missing = Query::Read { queue: b"nope", from: Index(1), limit: 1, bytes_max: 1 };
    assert_eq!(s.query(missing), Err(QueryError::NotFound("queue")));
}

#[test]
fn a_reader_pages_through_with_next_and_gets_at_least_one_event_a_page() {
    let mut s = Story::new();
    let commands: Vec<_> = (0..300).map(|n| event("t", &format!("{n}"))).collect();
    s.apply(&commands);

    let (mut from, mut seen) = (Index(0), 0);
    loop {
        let query = Query::Read { queue: b"t", from, limit: 1000, bytes_max: 1 };
        let reply = s.query(query).unwrap();
        let reply = ReadReply::decode(&reply).unwrap();
        let [event] = reply.events[..] else { break };
        assert_eq!(event.value, format!("{seen}").as_bytes());
        assert_eq!((event.topic, event.timestamp, event.id), (&b"t"[..], 7, None));
        (from, seen) = (reply.next, seen + 1);
    }
    assert_eq!((seen, from), (300, Index(301)));
}

#[test]
fn a_route_sends_later_events_of_a_topic_elsewhere_even_within_a_block() {
    let mut s = Story::new();
    s.apply(&[
        event("a/b", "1"),
        config("route/a/b", "special"),
        event("a/b", "3"),
        event("a", "4"),
    ]);
    assert_eq!(s.read("a", 0, 9), ["1:1", "4:4"]);
    assert_eq!(s.read("special", 0, 9), ["3:3"]);
    s.apply(&[config("route/a/b", ""), event("a/b", "6")]);
    assert_eq!(s.read("a", 0, 9), ["1:1", "4:4", "6:6"]);
    assert!(s.query(Query::Config { key: b"route/a/b" }).is_err());
}

#[test]
fn an_event_whose_id_was_seen_is_a_duplicate_and_stores_nothing() {
    let mut s = Story::new();
    assert_eq!(
        s.apply(&[event_with_id("t", 1, 100, "a"), event_with_id("t", 1, 101, "b")]),
        (1, 1, 0)
    );
    let add = (CommandKind::DedupAdd, 0, 200, vec![2; EVENT_ID_BYTES], vec![]);
    assert_eq!(s.apply(&[add.clone(), add, event_with_id("t", 2, 201, "c")]), (1, 2, 0));
    assert_eq!(s.read("t", 0, 9), ["1:a"]);

    // The expiry takes its cut-off from the entry: id 1 is older, id 2 is not.
    s.apply(&[(CommandKind::DedupExpire, 0, 200, vec![], vec![])]);
    assert_eq!(
        s.apply(&[event_with_id("t", 1, 300, "d"), event_with_id("t", 2, 300, "e")]),
        (1, 1, 0)
    );
    let reply =
        s.query(Query::Read { queue: b"t", from: Index(2), limit: 9, bytes_max: 999 }).unwrap();
    let reply = ReadReply::decode(&reply).unwrap();
    assert_eq!(reply.events[0].id, Some([1; EVENT_ID_BYTES]));
    assert_eq!(reply.events[0].value, b"d");
}

#[test]
fn malformed_commands_are_rejected_and_the_rest_of_the_block_is_applied() {
    let mut s = Story::new();
    let short_id = (CommandKind::SetEvent, FLAG_EVENT_ID, 0, b"t".to_vec(), vec![1; 15]);
    let odd_id = (CommandKind::DedupAdd, 0, 0, vec![1; 17], vec![]);
    let commands = [short_id, odd_id, config("limits/queues", "x"), event("t", "kept")];
    assert_eq!(s.apply(&commands), (1, 0, 3));
    assert_eq!(s.read("t", 0, 9), ["4:kept"]);
}

#[test]
fn one_queue_too_many_is_rejected_and_does_not_use_up_its_event_id() {
    let mut s = Story::new();
    s.apply(&[config("limits/queues", "1"), event("a", "1")]);
    assert_eq!(s.apply(&[event_with_id("b", 9, 0, "2"), event("a", "3")]), (1, 0, 1));
    s.apply(&[config("limits/queues", "2")]);
    assert_eq!(s.apply(&[event_with_id("b", 9, 0, "again")]), (1, 0, 0));
}

#[test]
fn retention_by_count_shows_exactly_the_newest_events() {
    let mut s = Story::new();
    s.apply(&[config("retention/t/events", "10")]);
    for n in 0..500 {
        s.apply(&[event("t", &n.to_string())]);
        let shown = s.read("t", 0, 1000);
        assert_eq!(shown.len(), 10.min(n + 1));
        assert_eq!(shown.last().unwrap(), &format!("{}:{n}", n + 2));
    }
    assert_eq!(s.trimmed_through("t"), 491);
    // A higher limit keeps more from now on, and does not bring back what was hidden.
    s.apply(&[config("retention/t/events", "100")]);
    assert_eq!(s.read("t", 0, 1000).len(), 10);
    assert_eq!(s.trimmed_through("t"), 491);
    s.apply(&[event("t", "new")]);
    assert_eq!(s.read("t", 0, 1000).len(), 11);
}

#[test]
fn a_limit_holds_for_the_events_before_it_in_the_same_block() {
    let mut s = Story::new();
    let limit = |n| config("retention/t/events", n);
    s.apply(&[event("t", "1"), event("t", "2"), event("t", "3"), limit("1"), limit("100")]);
    assert_eq!(s.read("t", 0, 9), ["3:3"]);
}

#[test]
fn retention_by_bytes_bounds_the_memory_and_tells_readers_of_the_gap() {
    let mut s = Story::new();
    s.apply(&[config("retention/bytes", "1000000")]);
    let value = "x".repeat(1000);
    let block: Vec<_> = (0..100).map(|_| event("t", &value)).collect();
    for _ in 0..100 {
        s.apply(&block);
    }
    let reply = s.query(Query::List { after: b"", limit: 9 }).unwrap();
    let queues = ListReply::decode(&reply).unwrap().queues;
    let kept = 1_000_000 / 1024;
    assert_eq!((queues[0].events, queues[0].last), (kept, Index(10_001)));
    assert_eq!(queues[0].trimmed_through, Index(10_001 - kept));
    assert!(s.store.memory_bytes() < 1_500_000, "{}", s.store.memory_bytes());
}

#[test]
fn the_newest_event_stays_even_if_it_is_larger_than_the_limit() {
    let mut s = Story::new();
    s.apply(&[config("retention/bytes", "100")]);
    s.apply(&[event("t", "small"), event("t", &"x".repeat(200_000))]);
    let reply =
        s.query(Query::Read { queue: b"t", from: Index(0), limit: 9, bytes_max: 1 }).unwrap();
    let reply = ReadReply::decode(&reply).unwrap();
    assert_eq!(reply.events.len(), 1);
    assert_eq!(reply.events[0].value.len(), 200_000);
}

#[test]
fn all_queues_together_obey_their_limit_and_the_small_ones_lose_nothing() {
    let mut s = Story::new();
    s.apply(&[config("limits/bytes", "1000000"), event("small", "kept")]);
    let value = "x".repeat(1000);
    for n in 0..3000 {
        s.apply(&[event(["big-1", "big-2", "big-3"][n % 3], &value)]);
    }
    assert!(s.store.bytes <= 1_000_000, "{}", s.store.bytes);
    assert!(s.store.bytes > 900_000, "{}", s.store.bytes);
    assert_eq!(s.read("small", 0, 9), ["2:kept"]);
    s.apply(&[config("limits/bytes", "1")]);
    assert_eq!(s.store.bytes, 0, "a limit below one event keeps none");
    s.apply(&[config("limits/bytes", ""), event("big-1", "y")]);
    assert_eq!(s.read("big-1", 0, 9).len(), 1);
}

#[test]
fn memory_is_given_back_when_events_go() {
    let mut s = Story::new();
    let value = "x".repeat(1000);
    for n in 0..200 {
        let topics: Vec<_> = (0..20).map(|t| event(&format!("t{t}/{n}"), &value)).collect();
        s.apply(&topics);
    }
    let full = s.store.chunks.allocated();
    s.apply(&[config("retention/events", "1")]);
    assert!(full > 4_000_000);
    // One part-filled chunk for each of 20 queues, and the free ones.
    assert!(s.store.chunks.allocated() <= (20 + 4) * 65_536, "{}", s.store.chunks.allocated());
}

#[test]
fn the_list_of_queues_is_by_name_and_in_pages() {
    let mut s = Story::new();
    s.apply(&[event("c", ""), event("a", ""), event("b", "")]);
    let names = |after: &[u8], limit| {
        let reply = s.query(Query::List { after, limit }).unwrap();
        let reply = ListReply::decode(&reply).unwrap();
        reply.queues.iter().map(|q| q.name.to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(names(b"", 2), [b"a", b"b"]);
    assert_eq!(names(b"b", 2), [b"c"]);
}

#[test]
#[should_panic(expected = "is applied already")]
fn applying_an_index_twice_is_a_bug_and_stops_the_node() {
    let mut s = Story::new();
    let block = s.log.block(&[event("t", "1")]);
    s.store.apply(&block);
    s.store.apply(&block);
}

pub(super) fn any_command() -> impl Strategy<Value = Spec> {
    let topic = prop_oneof![Just("a"), Just("a/x"), Just("b"), Just("b/y/z"), Just("c")];
    prop_oneof![
        6 => (topic.clone(), "[a-z]{0,20}").prop_map(|(t, v)| event(t, &v)),
        2 => (topic, 0u8..20, 0u64..50).prop_map(|(t, id, at)| event_with_id(t, id, at, "v")),
        1 => (0u8..20, 0u64..50)
            .prop_map(|(id, at)| (CommandKind::DedupAdd, 0, at, vec![id; EVENT_ID_BYTES], vec![])),
        1 => (0u64..60).prop_map(|at| (CommandKind::DedupExpire, 0, at, vec![], vec![])),
        1 => (0usize..7, 1u64..200).prop_map(|(k, n)| {
            let keys = ["retention/events", "retention/a/bytes", "limits/queues", "limits/dedup_ids",
                "limits/bytes", "route/b/", "other"];
            config(keys[k], &(n * 10).to_string())
        }),
    ]
}

proptest! {
    /// Two replicas apply the same log; a third one applies it with one byte changed.
    #[test]
    fn equal_logs_give_equal_digests_and_a_changed_one_another(
        blocks in proptest::collection::vec(proptest::collection::vec(any_command(), 1..12), 1..20),
    ) {
        let (mut a, mut b, mut c) = (Story::new(), Story::new(), Story::new());
        for (n, commands) in blocks.iter().enumerate() {
            let outcome = a.apply(commands);
            prop_assert_eq!(b.apply(commands), outcome);
            prop_assert_eq!(a.store.digest(), b.store.digest());
            prop_assert_eq!(a.store.full_digest(), b.store.full_digest());
            let mut other = commands.clone();
            if n == 0 {
                other[0].2 ^= 1;
            }
            c.apply(&other);
            prop_assert_ne!(a.store.digest(), c.store.digest());
        }
        let held: u64 = a.store.queues.iter().map(Queue::held_bytes).sum();
        prop_assert_eq!(a.store.bytes, held);
        let reply = a.query(Query::Digest).unwrap();
        prop_assert_eq!(DigestReply::decode(&reply).unwrap().applied, Index(a.log.next - 1));
    }

    /// The store against the simplest model of one: a list of events.
    #[test]
    fn what_is_read_is_what_a_plain_list_would_hold(
        blocks in proptest::collection::vec(proptest::collection::vec((0u8..3, 0usize..300), 1..40), 1..30),
        keep in 1usize..100,
    ) {
        let mut s = Story::new();
        s.apply(&[config("retention/events", &keep.to_string())]);
        let mut model: [Vec<String>; 3] = Default::default();
        let mut index = 1;
        for block in blocks {
            let mut commands = Vec::new();
            for (queue, size) in block {
                index += 1;
                let value = "v".repeat(size);
                commands.push(event(["a/1", "b/2", "c/3"][queue as usize], &value));
                model[queue as usize].push(format!("{index}:{value}"));
            }
            s.apply(&commands);
        }
        for (name, expected) in ["a", "b", "c"].iter().zip(&model).filter(|(_, m)| !m.is_empty()) {
            prop_assert_eq!(&s.read(name, 0, u32::MAX), &expected[expected.len().saturating_sub(keep)..]);
        }
    }
}
