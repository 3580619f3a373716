//! Queries and status.

use super::world::{Cluster, MS, Setup, block, frames};
use crate::block::{BlockBuilder, Command, CommandKind};
use crate::ids::{GroupId, Index};
use crate::machine::events::query::{Query, ReadReply};
use crate::machine::events::{EventLimits, EventStore};
use crate::shard::ShardStatus;
use crate::wire::admin::{AdminReply, AdminRequest};
use crate::wire::client::{Consistency, Refused, write_admin, write_query, write_status};
use crate::wire::frame::Frame;

fn one(write: impl FnOnce(&mut Vec<u8>)) -> Frame {
    let mut out = Vec::new();
    write(&mut out);
    frames(&out).pop().expect("one frame")
}

#[test]
fn an_acknowledged_event_is_read_back_from_its_queue() {
    let mut c = Setup::new(2).start_with(|_| EventStore::new(EventLimits::default()));
    c.elect();
    let leader = c.leader(1).unwrap();
    let client = c.client(leader);
    let mut builder = BlockBuilder::default();
    let kind = CommandKind::SetEvent as u8;
    for value in [b"one", b"two"] {
        let command = Command { kind, flags: 0, timestamp: 5, key: b"orders/new", value };
        builder.push(&command).unwrap();
    }
    c.submit(client, &[builder.finish(GroupId(1), 9, 1, 0)]);
    let first = c.answer(client).result.expect("committed").first;

    let read = Query::Read { queue: b"orders", from: Index(0), limit: 10, bytes_max: 4096 };
    c.give(
        client,
        one(|out| write_query(out, 77, GroupId(1), Consistency::Linearizable, &read.encode())),
    )
    .unwrap();
    c.run(MS);
    let reply = c.clients[client].replies.pop().expect("an answer");
    assert_eq!((reply.token, reply.group), (77, GroupId(1)));
    let bytes = reply.result.expect("the queue is there");
    let events = ReadReply::decode(&bytes).expect("well formed").events;
    let seen: Vec<_> = events.iter().map(|e| (e.index, e.value)).collect();
    assert_eq!(seen, [(first, &b"one"[..]), (first.next(), b"two")]);
}

fn ask(
    c: &mut Cluster<super::machine::Ledger>,
    group: u32,
    question: &[u8],
) -> Result<(), Refused> {
    let client = c.client(0);
    c.give(client, one(|out| write_query(out, 1, GroupId(group), Consistency::Stale, question)))
        .unwrap();
    c.run(MS);
    c.clients[client].replies.pop().expect("an answer").result.map(|_| ())
}

#[test]
fn a_question_without_an_answer_is_refused_with_the_reason() {
    let mut c = Setup::new(2).start();
    assert_eq!(ask(&mut c, 0, b"count"), Ok(()));
    assert_eq!(ask(&mut c, 1 << 21, b"count"), Err(Refused::NoGroup));
    assert_eq!(ask(&mut c, u32::MAX, b"count"), Err(Refused::NoGroup));
    assert_eq!(ask(&mut c, 0, b"what"), Err(Refused::BadRequest));
}

#[test]
fn status_tells_roles_indices_and_equal_digests() {
    let mut c = Setup::new(3).start();
    c.elect();
    let leader = c.leader(2).unwrap();
    let client = c.client(leader);
    c.submit(client, &[block(2, 9, 1)]);
    assert!(c.answer(client).result.is_ok());
    c.converge();
    let mut seen = Vec::new();
    for node in 0..3 {
        let client = c.client(node);
        c.give(client, one(|out| write_status(out, 5))).unwrap();
        c.run(MS);
        let json = c.clients[client].statuses.pop().expect("an answer");
        seen.push(ShardStatus::from_json(&json).expect("JSON"));
    }
    for (node, status) in seen.iter().enumerate() {
        assert_eq!((status.node, status.groups.len()), (node as u32 + 1, 3));
        assert_eq!((status.peers_connected, status.space.as_str()), (2, "ok"));
        let group = &status.groups[2];
        assert_eq!(group.role, if node == leader { "leader" } else { "follower" });
        assert_eq!(group.leader, leader as u32 + 1);
        assert_eq!((group.commit, group.applied), (group.last, group.last));
        assert_eq!(group.digest, seen[0].groups[2].digest);
        assert_ne!(group.digest, status.groups[1].digest);
    }
}

#[test]
fn an_operators_command_is_answered_with_what_became_of_it() {
    let mut c = Setup::new(2).start();
    let client = c.client(0);
    let mut tell = |group: u32, json: &[u8]| {
        c.give(client, one(|out| write_admin(out, 3, GroupId(group), json))).unwrap();
        c.run(MS);
        let reply = c.clients[client].replies.pop().expect("an answer");
        assert_eq!((reply.token, reply.group), (3, GroupId(group)));
        reply.result.map(|json| AdminReply::from_json(&json).expect("JSON"))
    };
    let shown = tell(1, &AdminRequest::Show.to_json()).expect("the group is there");
    assert!(shown.done && shown.data["group"] == 1, "{shown:?}");
    let strange = tell(1, br#"{"command":"dance"}"#).expect("the group is there");
    assert!(!strange.done && strange.text.contains("dance"), "{strange:?}");
    assert_eq!(tell(1 << 21, &AdminRequest::Show.to_json()), Err(Refused::NoGroup));
}
