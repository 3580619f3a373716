//! The event store: commands as a replica that checks nothing would get them, and questions.

use bytes::Bytes;
use ringraft::block::{Block, Command, CommandKind, FLAG_EVENT_ID};
use ringraft::ids::{GroupId, Index, Term};
use ringraft::machine::StateMachine;
use ringraft::machine::events::query::{DigestReply, ListReply, Query, READ_BYTES_MAX, ReadReply};
use ringraft::machine::events::{EventLimits, EventStore};

use super::{Tried, codec, parts};

const LIMITS: EventLimits = EventLimits {
    retention_events: 40,
    retention_bytes: 4096,
    queues: 8,
    dedup_ids: 16,
    bytes: 16 << 10,
};

/// Parts for one store: a question if the first byte is 0, else a block with so many commands.
pub fn store(input: &[u8]) -> Tried {
    let mut store = EventStore::new(LIMITS);
    let mut reply = Vec::new();
    let (mut first, mut tried) = (Index(1), Tried::default());
    for part in parts(input) {
        match part.split_first() {
            None => tried.add(false),
            Some((0, question)) => tried.add(ask(&store, question, &mut reply)),
            Some((commands, body)) => {
                let body = Bytes::copy_from_slice(&body[..body.len() & !7]);
                let announced = u32::from(*commands) % 32 + 1;
                let mut block = Block::from_body(GroupId(0), announced, 9, 1, 0, body);
                block.stamp(Term(1), first, 0);
                first = block.last().next();
                let outcome = store.apply(&block);
                assert!(outcome.applied + outcome.duplicates + outcome.rejected <= announced);
                tried.add(outcome.applied > 0);
            }
        }
    }
    assert!(store.memory_bytes() < 4 << 20, "{} bytes", store.memory_bytes());
    let _ = (store.digest(), store.full_digest());
    tried
}

fn ask(store: &EventStore, question: &[u8], reply: &mut Vec<u8>) -> bool {
    let _ = Query::decode(question);
    reply.clear();
    if store.query(question, reply).is_err() {
        assert!(reply.is_empty(), "an error leaves no half answer");
        return false;
    }
    assert!(reply.len() <= READ_BYTES_MAX as usize + (64 << 10));
    match question[0] {
        1 => drop(ReadReply::decode(reply).expect("our own answer")),
        2 => drop(ListReply::decode(reply).expect("our own answer")),
        4 | 5 => assert!(DigestReply::decode(reply).is_ok()),
        _ => {}
    }
    true
}

/// Answers as a node that lies would give them.
pub fn reply(input: &[u8]) -> Tried {
    let read = ReadReply::decode(input).is_ok() | ListReply::decode(input).is_ok();
    Tried::one(read | DigestReply::decode(input).is_ok() | Query::decode(input).is_ok())
}

pub fn samples() -> Vec<Vec<u8>> {
    let questions = [
        Query::Read { queue: b"orders", from: Index(0), limit: 10, bytes_max: 1000 },
        Query::Read { queue: b"q", from: Index(u64::MAX), limit: u32::MAX, bytes_max: u32::MAX },
        Query::List { after: b"", limit: 100 },
        Query::Config { key: b"route/a" },
        Query::Digest,
        Query::FullDigest,
    ];
    let mut samples: Vec<_> = questions.iter().map(|q| [vec![0], q.encode()].concat()).collect();
    let settings: [(&[u8], &[u8]); 10] = [
        (b"route/orders", b"other"),
        (b"route/", b"all"),
        (b"retention/events", b"3"),
        (b"retention/bytes", b"100"),
        (b"retention/orders/events", b"1"),
        (b"retention/orders/bytes", b"18446744073709551615"),
        (b"limits/queues", b"1"),
        (b"limits/dedup_ids", b"2"),
        (b"limits/bytes", b"1"),
        (b"own", b""),
    ];
    for (key, value) in settings {
        samples.push(commands(&[(CommandKind::ConfigUpdate, 0, key, value)]));
    }
    let id = [7; 16];
    samples.push(commands(&[
        (CommandKind::SetEvent, FLAG_EVENT_ID, b"orders/new", &[1; 40]),
        (CommandKind::SetEvent, 0, b"trades", b""),
        (CommandKind::DedupAdd, 0, &id, b""),
        (CommandKind::SetEvent, FLAG_EVENT_ID, b"orders", &[id; 2].concat()),
        (CommandKind::DedupExpire, 0, b"", b""),
    ]));
    let many = codec::events(0, 2, 20);
    samples.push([vec![19], many.body().to_vec()].concat());
    samples
}

type Part<'a> = (CommandKind, u8, &'a [u8], &'a [u8]);

/// A block's body behind the number of its commands less one.
fn commands(list: &[Part<'_>]) -> Vec<u8> {
    let mut builder = ringraft::block::BlockBuilder::default();
    for (i, &(kind, flags, key, value)) in list.iter().enumerate() {
        let timestamp = 100 * i as u64;
        let command = Command { kind: kind as u8, flags, timestamp, key, value };
        builder.push(&command).expect("fits");
    }
    let block = builder.finish(GroupId(0), 1, 1, 0);
    // 0 means a question: one command is 32 + 1 - 1.
    let announced = if list.len() == 1 { 32 } else { list.len() as u8 - 1 };
    [vec![announced], block.body().to_vec()].concat()
}

pub fn reply_samples() -> Vec<Vec<u8>> {
    let mut store = EventStore::new(LIMITS);
    let mut block = codec::events(0, 1, 9);
    block.stamp(Term(1), Index(1), 0);
    assert_eq!(store.apply(&block).applied, 9);
    let questions = [
        Query::Read { queue: b"orders", from: Index(0), limit: 10, bytes_max: 1000 },
        Query::List { after: b"", limit: 100 },
        Query::Digest,
    ];
    let answer = |question: &Query<'_>| {
        let mut reply = Vec::new();
        let _ = store.query(&question.encode(), &mut reply);
        reply
    };
    questions.iter().map(answer).chain(questions.iter().map(Query::encode)).collect()
}
