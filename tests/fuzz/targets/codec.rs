//! The pure decoders of the wire: frames with everything that can be in them, the handshake, blocks.

use bytes::{Bytes, BytesMut};
use ringraft::block::{Block, BlockBuilder, Command, CommandKind, FLAG_EVENT_ID};
use ringraft::ids::{GroupId, Incarnation, Index, NodeId, Term};
use ringraft::machine::events::query::{DigestReply, ListReply, ReadReply};
use ringraft::shard::ShardStatus;
use ringraft::wire::admin::{AdminReply, AdminRequest};
use ringraft::wire::client::{
    Answer, AnswerEntry, Committed, Consistency, Durability, Place, Refused, read_query,
    read_status_reply, write_answers, write_query, write_query_reply, write_status,
    write_status_reply,
};
use ringraft::wire::frame::{
    FRAME_BYTES_MAX, Frame, FrameKind, FrameWriter, read_close, write_close,
};
use ringraft::wire::hello::{Hello, HelloReply, Refusal, Role};
use ringraft::wire::peer::PeerEntry;

use super::{Tried, repair};

/// Mode bits, in the first byte of an input.
pub const REPAIR_FRAME: u8 = 1;
pub const REPAIR_BLOCKS: u8 = 2;

/// The bytes behind the mode, repaired as it says.
pub fn repaired(input: &[u8]) -> Option<(u8, Vec<u8>)> {
    let (&mode, bytes) = input.split_first()?;
    let mut bytes = bytes.to_vec();
    if mode & REPAIR_BLOCKS != 0 {
        repair::blocks_of_frame(&mut bytes);
    }
    if mode & REPAIR_FRAME != 0 {
        repair::frame(&mut bytes);
    }
    Some((mode, bytes))
}

/// Frames off a stream, and every reader there is on each of them.
pub fn frame(input: &[u8]) -> Tried {
    let Some((_, bytes)) = repaired(input) else { return Tried::one(false) };
    let mut taken = false;
    assert!(Frame::bytes_needed(&bytes) <= FRAME_BYTES_MAX);
    let mut buffer = BytesMut::from(&bytes[..]);
    while let Ok(Some(frame)) = Frame::take(&mut buffer) {
        read_everything(frame);
        taken = true;
    }
    Tried::one(taken)
}

fn read_everything(mut frame: Frame) {
    if let Ok(entries) = frame.entries::<AnswerEntry>() {
        entries.for_each(|entry| {
            let _ = entry.decode();
        });
    }
    if let Ok(entries) = frame.entries::<PeerEntry>() {
        entries.for_each(|entry| {
            let _ = entry.decode();
        });
    }
    let _ = (Hello::read(&frame), HelloReply::read(&frame));
    if let Ok(query) = read_query(&frame)
        && let Ok(bytes) = query.result
    {
        let _ = (ReadReply::decode(&bytes), ListReply::decode(&bytes), DigestReply::decode(&bytes));
    }
    match frame.kind {
        FrameKind::Close => assert!(read_close(&frame).len() <= 3 * frame.control.len()),
        FrameKind::Admin | FrameKind::AdminReply => {
            drop(AdminRequest::from_json(&frame.control));
            drop(AdminReply::from_json(&frame.control));
        }
        FrameKind::StatusReply => drop(ShardStatus::from_json(&read_status_reply(&frame))),
        _ => {}
    }
    let mut blocks = Vec::new();
    let _ = frame.take_blocks(frame.count, &mut blocks);
    blocks.iter().for_each(walk);
}

fn walk(block: &Block) {
    let walked = block.commands().count() as u64;
    assert!(walked <= block.count());
    if block.validate_commands().is_ok() {
        assert_eq!(walked, block.count(), "what was checked is walked to its end");
    }
}

/// Exactly one handshake, as the acceptor reads it.
pub fn hello(input: &[u8]) -> Tried {
    let Some((_, bytes)) = repaired(input) else { return Tried::one(false) };
    let mut taken = false;
    if let Ok(Some(frame)) = Frame::take(&mut BytesMut::from(&bytes[..])) {
        let read = Hello::read(&frame);
        if let Ok(hello) = read {
            let mut again = Vec::new();
            hello.write(&mut again);
            let frame = Frame::take(&mut BytesMut::from(&again[..])).unwrap().unwrap();
            assert_eq!(Hello::read(&frame), Ok(hello), "what was understood can be said again");
        }
        taken = read.is_ok() || HelloReply::read(&frame).is_ok();
    }
    Tried::one(taken)
}

/// Blocks one after another.
pub fn block(input: &[u8]) -> Tried {
    let Some((mode, bytes)) = input.split_first() else { return Tried::one(false) };
    let mut taken = false;
    let mut bytes = bytes.to_vec();
    if mode & REPAIR_BLOCKS != 0 {
        repair::blocks(&mut bytes);
    }
    let _ = Block::peek_size(&bytes);
    let mut rest = Bytes::from(bytes);
    while let Ok(block) = Block::decode(&mut rest) {
        walk(&block);
        taken = true;
    }
    Tried::one(taken)
}

/// A block of `count` events with ids.
pub fn events(group: u32, seq: u64, count: u64) -> Block {
    let mut builder = BlockBuilder::default();
    for i in 0..count {
        let mut value = [b'v'; 24];
        value[..8].copy_from_slice(&(seq * 100 + i).to_le_bytes());
        let (kind, key) = (CommandKind::SetEvent as u8, &b"orders/new"[..(3 + i as usize).min(10)]);
        let command = Command { kind, flags: FLAG_EVENT_ID, timestamp: seq, key, value: &value };
        builder.push(&command).expect("fits");
    }
    builder.finish(GroupId(group), 9, seq, 0)
}

fn bytes_of(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

pub fn submit(blocks: &[Block]) -> Vec<u8> {
    bytes_of(|out| {
        let mut writer = FrameWriter::begin(out);
        blocks.iter().for_each(|block| writer.block(block));
        writer.finish(FrameKind::Submit, blocks.len() as u32, 0);
    })
}

/// One frame of every kind, well formed.
pub fn frame_samples() -> Vec<Vec<u8>> {
    let (group, first, term) = (GroupId(1), Index(7), Term(2));
    let durability = Durability::Synced;
    let done =
        Committed { first, term, epoch: 1, durability, duplicates: 1, rejected: 0, retry: true };
    let results = [Ok(done), Err(Refused::Busy), Err(Refused::NotLeader(Some(NodeId(2))))];
    let answers = results.map(|result| AnswerEntry::encode(&Answer::new(group, 3, result)));
    let read = ReadReply { trimmed_through: Index(1), next: Index(9), events: Vec::new() };
    let mut read = [read.trimmed_through.0, read.next.0].map(u64::to_le_bytes).concat();
    read.extend_from_slice(&[1, 0, 0, 0]);
    read.extend_from_slice(&[[5; 16], [1, 0, 2, 0, 3, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9]].concat());
    read.extend_from_slice(b"99999999tovalue");
    let json = br#"{"node":1,"incarnation":1,"shard":0,"shards":1,"groups":[]}"#;
    let mut samples = hello_samples();
    samples.extend([
        submit(&[events(0, 1, 3), events(1, 2, 1)]),
        bytes_of(|out| write_answers(out, &answers)),
        bytes_of(|out| write_query(out, 4, group, Consistency::Follower, b"\x04")),
        bytes_of(|out| write_query_reply(out, 4, group, Place::default(), Ok(&read))),
        bytes_of(|out| {
            write_query_reply(out, 4, group, Place::default(), Err(Refused::NotLeader(None)))
        }),
        bytes_of(|out| write_status(out, 5)),
        bytes_of(|out| write_status_reply(out, 5, json)),
        bytes_of(|out| write_close(out, "the node is stopping")),
    ]);
    samples.extend(super::node::peer_samples().into_iter().step_by(7));
    samples
}

pub fn hello_samples() -> Vec<Vec<u8>> {
    let hello = Hello {
        role: Role::Peer,
        cluster: 7,
        disk: 8,
        config: 9,
        node: Some(NodeId(2)),
        incarnation: Incarnation(3),
        to: Some(NodeId(1)),
        shard: 0,
        first: 0,
    };
    let reply = HelloReply {
        refusal: Some(Refusal::Disk),
        cluster: 7,
        disk: 8,
        config: 9,
        node: NodeId(1),
        incarnation: Incarnation(3),
        shard: 0,
        shards: 2,
        groups: 4,
    };
    let client = Hello { role: Role::Client, node: None, ..hello };
    let welcome = HelloReply { refusal: None, ..reply };
    vec![
        bytes_of(|out| hello.write(out)),
        bytes_of(|out| client.write(out)),
        bytes_of(|out| reply.write(out)),
        bytes_of(|out| welcome.write(out)),
    ]
}

pub fn block_samples() -> Vec<Vec<u8>> {
    let plain = bytes_of(|out| events(0, 1, 5).encode_into(out));
    let two = bytes_of(|out| {
        events(0, 1, 1).encode_into(out);
        Block::noop(GroupId(2)).encode_into(out);
    });
    vec![plain, two]
}
