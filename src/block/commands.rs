//! The commands in a block's body: laid out by a client, read in place where they are applied.

use bytes::{BufMut, BytesMut};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    BLOCK_BYTES_MAX, BLOCK_COUNT_MAX, Block, BlockKind, COMMAND_HEADER_BYTES, HEADER_BYTES,
    KEY_BYTES_MAX,
};
use crate::ids::GroupId;

/// Header of one command in a block's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommandHeader {
    pub size: u32,
    pub kind: u8,
    pub flags: u8,
    pub key_size: u16,
    pub timestamp: u64,
}

/// What a client asks of the event store. Other state machines may use the kinds as they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CommandKind {
    /// key = topic, value = event, flag 1 = the value begins with a 16-byte event id.
    SetEvent = 1,
    /// key = event id (16 bytes).
    DedupAdd = 2,
    /// timestamp = cut-off: ids added before it are removed.
    DedupExpire = 3,
    /// key and value of the replicated configuration.
    ConfigUpdate = 4,
}

impl CommandKind {
    pub const fn from_wire(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::SetEvent),
            2 => Some(Self::DedupAdd),
            3 => Some(Self::DedupExpire),
            4 => Some(Self::ConfigUpdate),
            _ => None,
        }
    }
}

/// `SET_EVENT`: the value begins with a 16-byte event id.
pub const FLAG_EVENT_ID: u8 = 1;
/// Bytes of an event id.
pub const EVENT_ID_BYTES: usize = 16;

/// One command, borrowed from its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// Raw kind; [`CommandKind::from_wire`] names those of the event store.
    pub kind: u8,
    pub flags: u8,
    /// Microseconds since 1970 by the proposer's clock: data, never compared with a local clock.
    pub timestamp: u64,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// Iterator over a block's commands.
#[derive(Clone, Debug)]
pub struct Commands<'a> {
    pub(super) rest: &'a [u8],
    pub(super) left: u32,
}

impl<'a> Iterator for Commands<'a> {
    type Item = Command<'a>;

    #[inline]
    fn next(&mut self) -> Option<Command<'a>> {
        if self.left == 0 {
            return None;
        }
        let (command, rest) = split_command(self.rest)?;
        self.rest = rest;
        self.left -= 1;
        Some(command)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left as usize))
    }
}

#[inline]
pub(super) fn split_command(bytes: &[u8]) -> Option<(Command<'_>, &[u8])> {
    let (header, _) = CommandHeader::read_from_prefix(bytes).ok()?;
    let size = header.size as usize;
    let key_end = COMMAND_HEADER_BYTES + header.key_size as usize;
    let padded = size.checked_next_multiple_of(8)?;
    if size < key_end || padded > bytes.len() || header.key_size as usize > KEY_BYTES_MAX {
        return None;
    }
    let command = Command {
        kind: header.kind,
        flags: header.flags,
        timestamp: header.timestamp,
        key: &bytes[COMMAND_HEADER_BYTES..key_end],
        value: &bytes[key_end..size],
    };
    Some((command, &bytes[padded..]))
}

/// Gathers commands into one block, as a client does.
#[derive(Debug, Default)]
pub struct BlockBuilder {
    body: BytesMut,
    count: u32,
}

/// Why a command does not go into the block that is being built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BuildError {
    #[error("the block is full: finish it and start another")]
    Full,
    #[error("a key of {0} bytes is longer than {KEY_BYTES_MAX}")]
    KeyTooLong(usize),
    #[error("a command of {0} bytes can never fit a block of {BLOCK_BYTES_MAX}")]
    TooLarge(usize),
}

impl BlockBuilder {
    pub fn with_capacity(bytes: usize) -> Self {
        Self { body: BytesMut::with_capacity(bytes), count: 0 }
    }

    /// Commands so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Adds a command after those already there.
    pub fn push(&mut self, command: &Command<'_>) -> Result<(), BuildError> {
        self.push_parts(command, &[])
    }

    /// Adds a command whose value is `command.value` followed by `tail`, without joining them first.
    pub fn push_parts(&mut self, command: &Command<'_>, tail: &[u8]) -> Result<(), BuildError> {
        let Command { kind, flags, timestamp, key, value } = *command;
        if key.len() > KEY_BYTES_MAX {
            return Err(BuildError::KeyTooLong(key.len()));
        }
        let size = COMMAND_HEADER_BYTES + key.len() + value.len() + tail.len();
        let padded = size.next_multiple_of(8);
        if HEADER_BYTES + padded > BLOCK_BYTES_MAX {
            return Err(BuildError::TooLarge(size));
        }
        if HEADER_BYTES + self.body.len() + padded > BLOCK_BYTES_MAX
            || self.count as usize == BLOCK_COUNT_MAX
        {
            return Err(BuildError::Full);
        }
        let header =
            CommandHeader { size: size as u32, kind, flags, key_size: key.len() as u16, timestamp };
        self.body.reserve(padded);
        self.body.put_slice(header.as_bytes());
        self.body.put_slice(key);
        self.body.put_slice(value);
        self.body.put_slice(tail);
        self.body.put_bytes(0, padded - size);
        self.count += 1;
        Ok(())
    }

    /// Closes the block and leaves the builder empty. `pending` = how far behind `seq` the lowest
    /// sequence number lies for which the client still waits.
    ///
    /// # Panics
    /// When no command was pushed.
    pub fn finish(&mut self, group: GroupId, client: u64, seq: u64, pending: u32) -> Block {
        assert!(self.count > 0, "a block has at least one command");
        let body = self.body.split().freeze();
        let count = std::mem::take(&mut self.count);
        Block::seal(group, BlockKind::Commands, count, client, seq, pending, body)
    }
}
