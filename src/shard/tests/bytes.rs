//! Blocks and frames as clients send them.

use bytes::BytesMut;

use crate::block::{Block, BlockBuilder, Command};
use crate::ids::GroupId;
use crate::wire::frame::{Frame, FrameKind, FrameWriter};

/// A block of one command of session `client`.
pub fn block(group: u32, client: u64, seq: u64) -> Block {
    block_of(group, client, seq, 0, 1, 24)
}

/// A block of `count` commands with values of `bytes`.
pub fn block_of(
    group: u32,
    client: u64,
    seq: u64,
    pending: u32,
    count: u32,
    bytes: usize,
) -> Block {
    let value = vec![seq as u8; bytes];
    let mut builder = BlockBuilder::default();
    for i in 0..u64::from(count) {
        let command =
            Command { kind: 1, flags: 0, timestamp: i, key: b"orders/new", value: &value };
        builder.push(&command).expect("within the limits of a block");
    }
    builder.finish(GroupId(group), client, seq, pending)
}

/// The frames in `bytes`.
pub fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut buffer = BytesMut::from(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = Frame::take(&mut buffer).expect("the shard writes whole frames") {
        frames.push(frame);
    }
    assert!(buffer.is_empty(), "nothing but whole frames");
    frames
}

pub fn submit_frame(blocks: &[Block]) -> Frame {
    let mut out = Vec::new();
    let mut writer = FrameWriter::begin(&mut out);
    blocks.iter().for_each(|block| writer.block(block));
    writer.finish(FrameKind::Submit, blocks.len() as u32, 0);
    frames(&out).pop().expect("one frame")
}
