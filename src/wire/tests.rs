use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::client::*;
use super::frame::*;
use super::hello::*;
use super::peer::*;
use crate::block::{BlockBuilder, Command};
use crate::ids::*;
use crate::raft::message::{Body, Message};

fn block(key: &[u8]) -> crate::block::Block {
    let mut builder = BlockBuilder::default();
    builder.push(&Command { kind: 1, flags: 0, timestamp: 1, key, value: b"v" }).unwrap();
    builder.finish(GroupId(3), 9, 1, 0)
}

fn take(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
    Frame::take(&mut BytesMut::from(bytes))
}

fn message(body: Body) -> Message {
    Message { term: Term(7), incarnation: Incarnation(2), echo: Incarnation(3), body }
}

fn all_bodies() -> Vec<Body> {
    vec![
        Body::VoteRequest { pre: true, handed: false, last_index: Index(4), last_term: Term(5) },
        Body::VoteRequest { pre: false, handed: false, last_index: Index(4), last_term: Term(5) },
        Body::VoteRequest { pre: false, handed: true, last_index: Index(4), last_term: Term(5) },
        Body::VoteReply { pre: true, granted: false, recovering: false },
        Body::VoteReply { pre: false, granted: true, recovering: false },
        Body::VoteReply { pre: false, granted: true, recovering: true },
        Body::Append { prev_index: Index(1), prev_term: Term(2), commit: Index(3), last: Index(4) },
        Body::AppendReply { matched: Index(8) },
        Body::AppendReject { prev_index: Index(9), hint_index: Index(4), hint_term: Term(1) },
        Body::Heartbeat { commit: Index(5), context: 6, last: Index(7) },
        Body::HeartbeatReply { context: 6 },
        Body::Hibernate { last: Index(5), round: 6 },
        Body::HibernateReply { round: 6, asleep: true },
        Body::HibernateReply { round: 6, asleep: false },
        Body::TimeoutNow,
        Body::ReadIndex { number: 9 },
        Body::ReadReply { number: 9, index: Index(3) },
    ]
}

#[test]
fn every_message_comes_back_as_it_was_sent() {
    for body in all_bodies() {
        let sent = message(body);
        let blocks = if matches!(body, Body::Append { .. }) { 2 } else { 0 };
        let entry = PeerEntry::encode(GroupId(11), &sent, blocks);
        assert_eq!(entry.decode(), Some((GroupId(11), sent, blocks)));
    }
}

#[test]
fn a_sign_of_life_comes_back_as_it_was_sent_and_is_no_message() {
    let sign = KeepAlive { incarnation: Incarnation(2), echo: Incarnation(3), number: 9 };
    let entry = PeerEntry::keep_alive(&sign);
    assert_eq!((entry.as_keep_alive(), entry.decode()), (Some(sign), None));
    for body in all_bodies() {
        let entry = PeerEntry::encode(GroupId(0), &message(body), 0);
        assert_eq!(entry.as_keep_alive(), None);
    }
}

#[test]
fn only_an_append_carries_blocks() {
    let entry = PeerEntry::encode(GroupId(1), &message(Body::AppendReply { matched: Index(1) }), 1);
    assert_eq!(entry.decode(), None);
}

#[test]
fn flags_that_a_message_does_not_have_are_refused() {
    for body in all_bodies() {
        let mut entry = PeerEntry::encode(GroupId(1), &message(body), 0);
        let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut entry);
        bytes[5] |= 16;
        assert_eq!(entry.decode(), None, "{body:?}");
    }
    let reply = Body::VoteReply { pre: false, granted: true, recovering: false };
    let mut entry = PeerEntry::encode(GroupId(1), &message(reply), 0);
    zerocopy::IntoBytes::as_mut_bytes(&mut entry)[5] |= 8;
    assert_eq!(entry.decode(), None, "only a request says that the leader asked for it");
    let ask =
        Body::VoteRequest { pre: true, handed: false, last_index: Index(1), last_term: Term(1) };
    let mut entry = PeerEntry::encode(GroupId(1), &message(ask), 0);
    zerocopy::IntoBytes::as_mut_bytes(&mut entry)[5] |= 8;
    assert_eq!(entry.decode(), None, "whoever is told to campaign asks nobody before");
    let mut entry = PeerEntry::encode(GroupId(1), &message(Body::HeartbeatReply { context: 6 }), 0);
    zerocopy::IntoBytes::as_mut_bytes(&mut entry)[5] = 4;
    assert_eq!(entry.decode(), None, "only a vote is marked");
}

#[test]
fn a_peer_frame_brings_messages_and_then_blocks() {
    let mut out = Vec::new();
    let append = message(Body::Append {
        prev_index: Index(0),
        prev_term: Term(0),
        commit: Index(0),
        last: Index(0),
    });
    let mut writer = FrameWriter::begin(&mut out);
    writer.entry(&PeerEntry::encode(GroupId(3), &append, 2));
    writer.block(&block(b"a"));
    writer.block(&block(b"b"));
    writer.finish(FrameKind::Peer, 1, 0);

    for cut in 0..out.len() {
        assert!(take(&out[..cut]).unwrap().is_none(), "a frame cut at {cut} is awaited");
    }
    let mut frame = take(&out).unwrap().unwrap();
    expect_peer(&frame).unwrap();
    let entries: Vec<PeerEntry> = frame.entries().unwrap().collect();
    let (_, _, count) = entries[0].decode().unwrap();
    let mut blocks = Vec::new();
    frame.take_blocks(count, &mut blocks).unwrap();
    assert_eq!(blocks, [block(b"a"), block(b"b")]);
    assert!(frame.blocks.is_empty());
}

#[test]
fn a_flipped_bit_in_front_of_the_blocks_is_noticed() {
    let mut out = Vec::new();
    let mut writer = FrameWriter::begin(&mut out);
    writer.entry(&PeerEntry::encode(GroupId(3), &message(Body::HeartbeatReply { context: 1 }), 0));
    writer.finish(FrameKind::Peer, 1, 0);
    for bit in 0..out.len() * 8 {
        let mut bad = out.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(!matches!(take(&bad), Ok(Some(_))), "bit {bit} went unnoticed");
    }
}

#[test]
fn an_oversized_length_is_refused_at_the_header() {
    let mut out = Vec::new();
    write_status(&mut out, 1);
    out[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(take(&out).unwrap_err(), FrameError::BadSize(u32::MAX));
    assert_eq!(Frame::bytes_needed(&out), FRAME_HEADER_BYTES, "and no buffer is sized by it");
}

#[test]
fn answers_and_refusals_come_back_as_they_were_given() {
    let done = Committed {
        first: Index(5),
        term: Term(2),
        epoch: 4,
        durability: Durability::Synced,
        duplicates: 3,
        rejected: 1,
        retry: true,
    };
    let mut results = vec![Ok(done), Ok(Committed { durability: Durability::Written, ..done })];
    results.extend(
        [
            Refused::NotLeader(Some(NodeId(3))),
            Refused::NotLeader(None),
            Refused::Busy,
            Refused::TooLarge,
            Refused::Recovering,
            Refused::Shutdown,
            Refused::BadRequest,
            Refused::ReadOnly,
            Refused::Stale { open_from: 0 },
            Refused::Stale { open_from: 1 << 40 },
            Refused::NoGroup,
            Refused::SessionEpochChanged,
            Refused::Truncated { epoch: 3, from: Index(118) },
        ]
        .map(Err),
    );
    for result in results {
        let answer = Answer::new(GroupId(2), 77, result);
        assert_eq!(AnswerEntry::encode(&answer).decode(), Some(answer));
        if let Err(refused) = result {
            let answer = Answer::at_the_door(GroupId(2), 77, refused);
            assert_eq!(AnswerEntry::encode(&answer).decode(), Some(answer));
        }
    }
}

#[test]
fn queries_carry_opaque_bytes_both_ways() {
    let mut out = Vec::new();
    write_query(&mut out, 42, GroupId(1), Consistency::Lease, b"what is x?");
    let place = Place { epoch: 3, index: Index(9) };
    write_query_reply(&mut out, 42, GroupId(1), place, Ok(b"5"));
    write_query_reply(
        &mut out,
        43,
        GroupId(1),
        Place::default(),
        Err(Refused::NotLeader(Some(NodeId(2)))),
    );
    let mut bytes = BytesMut::from(&out[..]);
    let mut next = || read_query(&Frame::take(&mut bytes).unwrap().unwrap()).unwrap();
    let asked = next();
    assert_eq!(asked.result, Ok(Bytes::from_static(b"what is x?")));
    assert_eq!(asked.consistency, Consistency::Lease);
    let reply = next();
    assert_eq!(reply.place, place);
    assert_eq!((reply.token, reply.result), (42, Ok(Bytes::from_static(b"5"))));
    assert_eq!(next().result, Err(Refused::NotLeader(Some(NodeId(2)))));
}

#[test]
fn a_handshake_is_128_bytes_and_comes_back() {
    let hello = Hello {
        role: Role::Peer,
        cluster: 1 << 100,
        disk: 2 << 100,
        config: 3,
        node: Some(NodeId(4)),
        incarnation: Incarnation(5),
        to: Some(NodeId(6)),
        shard: 7,
        first: 0,
    };
    let mut out = Vec::new();
    hello.write(&mut out);
    assert_eq!(out.len(), HELLO_BYTES);
    assert_eq!(Hello::read(&take(&out).unwrap().unwrap()), Ok(hello));

    let reply = HelloReply {
        refusal: Some(Refusal::Disk),
        cluster: 1,
        disk: 2,
        config: 3,
        node: NodeId(4),
        incarnation: Incarnation(5),
        shard: 6,
        shards: 7,
        groups: 8,
    };
    out.clear();
    reply.write(&mut out);
    assert_eq!(out.len(), HELLO_BYTES);
    assert_eq!(HelloReply::read(&take(&out).unwrap().unwrap()), Ok(reply));
}

#[test]
fn a_client_cannot_claim_to_be_a_node() {
    let forged = Hello {
        role: Role::Client,
        cluster: 0,
        disk: 0,
        config: 0,
        node: Some(NodeId(1)),
        incarnation: Incarnation(1),
        to: None,
        shard: 0,
        first: 0,
    };
    let mut out = Vec::new();
    forged.write(&mut out);
    let read = Hello::read(&take(&out).unwrap().unwrap());
    assert!(matches!(read, Err(HelloError::Malformed(_))));
}

#[test]
fn a_close_frame_says_why() {
    let mut out = Vec::new();
    write_close(&mut out, "wrong cluster");
    assert_eq!(read_close(&take(&out).unwrap().unwrap()), "wrong cluster");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_frames_or_a_typed_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = Frame::take(&mut buffer) {}
    }

    /// Past the frame's checksum everything must still hold for contents that a hostile peer chose.
    #[test]
    fn any_contents_under_a_true_header_never_panic(
        kind in 1u16..=12,
        control in proptest::collection::vec(any::<u8>(), 0..300),
        count in 0u32..10,
    ) {
        let kinds = [FrameKind::Hello, FrameKind::HelloReply, FrameKind::Peer, FrameKind::Submit,
            FrameKind::Answers, FrameKind::Query, FrameKind::QueryReply, FrameKind::Status,
            FrameKind::StatusReply, FrameKind::Close,
            FrameKind::Admin, FrameKind::AdminReply];
        let mut out = Vec::new();
        let mut writer = FrameWriter::begin(&mut out);
        writer.control_bytes(&control);
        writer.finish(kinds[kind as usize - 1], count, 5);
        let mut frame = take(&out).unwrap().unwrap();
        let _ = Hello::read(&frame);
        let _ = HelloReply::read(&frame);
        let _ = read_query(&frame);
        let _ = read_close(&frame);
        let _ = read_status_reply(&frame);
        if let Ok(entries) = frame.entries::<PeerEntry>() {
            let _ = entries.filter_map(|e| e.decode()).count();
        }
        if let Ok(entries) = frame.entries::<AnswerEntry>() {
            let _ = entries.filter_map(|e| e.decode()).count();
        }
        let _ = frame.take_blocks(count, &mut Vec::new());
    }
}
