//! The one encoding: a block of commands has the same bytes in a client's frame, a peer's frame, the
//! write-ahead log and when it is applied.
//!
//! ```text
//! header, 64 bytes, little-endian
//!    0 u32 header_checksum  CRC32C of bytes 4..64; stamped by the leader
//!    4 u32 body_checksum    CRC32C of the body; computed by the client, never recomputed
//!    8 u32 size             header + body, bytes; a multiple of 8
//!   12 u32 count            commands in the body; log indices the block takes up
//!   16 u64 term             Raft position, stamped by the leader; 0 before
//!   24 u64 first            log index of the first command; command i has index first + i
//!   32 u64 client           session of the proposer; 0 = none
//!   40 u64 seq              the session's sequence number in this group; 0 = none. Of the entry that
//!                           begins a recovery epoch: see `BlockHeader::since`; 0 = `first`
//!   48 u32 group
//!   52 u32 epoch            recovery epoch of the group, stamped by the leader
//!   56 u8  kind             1 commands, 2 no-op, 3 membership, 4 session, 5 piece of a snapshot,
//!                         6 list of the groups
//!   57 u8  version          1
//!   58 u16 flags            1 = the session has had an answer in this group; else 0
//!   60 u32 pending          seq - pending is the lowest sequence number the client still waits for
//! body: count x
//!    0 u32 size             of this command with its header, before padding
//!    4 u8  kind             1 SET_EVENT, 2 DEDUP_ADD, 3 DEDUP_EXPIRE, 4 CONFIG_UPDATE
//!    5 u8  flags
//!    6 u16 key_size
//!    8 u64 timestamp        the proposer's; microseconds since 1970
//!   16 key, value, zeros up to a multiple of 8
//! ```
//!
//! The leader stamps the 64 bytes of the header; the body is refcounted and never copied field by
//! field.

mod commands;

use bytes::Bytes;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use self::commands::split_command;
pub use self::commands::{
    BlockBuilder, BuildError, Command, CommandHeader, CommandKind, Commands, EVENT_ID_BYTES,
    FLAG_EVENT_ID,
};
use crate::checksum;
use crate::ids::{GroupId, Index, Term};

/// Bytes of a block's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a command's header.
pub const COMMAND_HEADER_BYTES: usize = 16;
/// Largest block, header included.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Most commands in one block.
pub const BLOCK_COUNT_MAX: usize = 8192;
/// Longest key (topic, event id, configuration key) in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Block flag: the client has had an answer in this session and group, so that a table without it
/// has forgotten it, or lost it.
pub const FLAG_CONTINUES: u16 = 1;
/// The encoding this build reads and writes.
pub const BLOCK_VERSION: u8 = 1;

const _: () = assert!(size_of::<BlockHeader>() == HEADER_BYTES);
const _: () = assert!(size_of::<CommandHeader>() == COMMAND_HEADER_BYTES);
const _: () = assert!(cfg!(target_endian = "little"), "the encoding is read in place");
const _: () = assert!(BLOCK_BYTES_MAX.is_multiple_of(8));
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(BLOCK_COUNT_MAX * COMMAND_HEADER_BYTES < BLOCK_BYTES_MAX);

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BlockKind {
    /// Client commands.
    Commands = 1,
    /// The entry a leader starts its term with (§5.4.2, dissertation §6.4). One index, no body.
    Noop = 2,
    /// A configuration of the group (§6). One index.
    Membership = 3,
    /// Something about the table of sessions and nothing else. One index.
    Session = 4,
    /// A piece of a snapshot on its way to a follower. Never in a log.
    Chunk = 5,
    /// Groups of the shard are made, or one ends: in the group that keeps the list. One index.
    Roster = 6,
}

impl BlockKind {
    const fn from_wire(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::Commands),
            2 => Some(Self::Noop),
            3 => Some(Self::Membership),
            4 => Some(Self::Session),
            5 => Some(Self::Chunk),
            6 => Some(Self::Roster),
            _ => None,
        }
    }
}

/// The header as it lies in memory, on disk and on the wire. See the module's drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockHeader {
    pub header_checksum: u32,
    pub body_checksum: u32,
    pub size: u32,
    pub count: u32,
    pub term: u64,
    pub first: u64,
    pub client: u64,
    pub seq: u64,
    pub group: u32,
    pub epoch: u32,
    pub kind: u8,
    pub version: u8,
    pub flags: u16,
    pub pending: u32,
}

impl BlockHeader {
    /// Of the entry that a leader's term begins with: the lowest index that may have been another
    /// entry's in an older recovery epoch. What its leader had not known to be committed may lie
    /// where others were committed, and lost (durability.md R9). Else `first`.
    pub fn since(&self) -> Index {
        let kind = BlockKind::from_wire(self.kind);
        let may = matches!(kind, Some(BlockKind::Noop | BlockKind::Membership)) && self.client == 0;
        Index(if may && self.seq != 0 { self.seq.min(self.first) } else { self.first })
    }

    fn checksum(&self) -> u32 {
        checksum::crc32c(&self.as_bytes()[4..])
    }
}

/// Why bytes are not a block. Every case names the limit or the check that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BlockError {
    #[error("block is cut short: {have} of {need} bytes")]
    Truncated { have: usize, need: usize },
    #[error("block size {0} is not a multiple of 8 between 64 and {BLOCK_BYTES_MAX}")]
    BadSize(u32),
    #[error("block header checksum does not match")]
    HeaderChecksum,
    #[error("block body checksum does not match")]
    BodyChecksum,
    #[error("block version {0} is not supported (this build reads {BLOCK_VERSION})")]
    BadVersion(u8),
    #[error("unknown block kind {0}")]
    BadKind(u8),
    #[error("block count {0} is not between 1 and {BLOCK_COUNT_MAX}")]
    BadCount(u32),
    #[error("command {0} of the block does not fit its size")]
    BadCommand(u32),
}

/// Stored bytes that were checked once: header by value (64 bytes to stamp), body shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    header: BlockHeader,
    body: Bytes,
}

impl Block {
    /// The first entry of a leader's term.
    pub fn noop(group: GroupId) -> Self {
        Self::seal(group, BlockKind::Noop, 1, 0, 0, 0, Bytes::new())
    }

    /// One entry of `kind` that carries `body` (padded by the caller to a multiple of 8).
    pub fn special(group: GroupId, kind: BlockKind, body: Bytes) -> Self {
        assert!(body.len().is_multiple_of(8) && HEADER_BYTES + body.len() <= BLOCK_BYTES_MAX);
        Self::seal(group, kind, 1, 0, 0, 0, body)
    }

    /// `count` commands that a [`BlockBuilder`] laid out before, in a body the caller keeps and uses
    /// again. Only the lengths are checked here: where the block enters the cluster,
    /// [`Block::validate_commands`] checks the rest.
    pub fn from_body(
        group: GroupId,
        count: u32,
        client: u64,
        seq: u64,
        pending: u32,
        body: Bytes,
    ) -> Self {
        assert!(body.len().is_multiple_of(8) && HEADER_BYTES + body.len() <= BLOCK_BYTES_MAX);
        assert!(count > 0 && count as usize <= BLOCK_COUNT_MAX);
        Self::seal(group, BlockKind::Commands, count, client, seq, pending, body)
    }

    /// One entry of `kind` in a client's session; `body` as in [`Block::special`].
    pub fn in_session(group: GroupId, kind: BlockKind, client: u64, seq: u64, body: Bytes) -> Self {
        assert!(body.len().is_multiple_of(8) && HEADER_BYTES + body.len() <= BLOCK_BYTES_MAX);
        Self::seal(group, kind, 1, client, seq, 0, body)
    }

    fn seal(
        group: GroupId,
        kind: BlockKind,
        count: u32,
        client: u64,
        seq: u64,
        pending: u32,
        body: Bytes,
    ) -> Self {
        let mut header = BlockHeader {
            header_checksum: 0,
            body_checksum: checksum::crc32c(&body),
            size: (HEADER_BYTES + body.len()) as u32,
            count,
            term: 0,
            first: 0,
            client,
            seq,
            group: group.0,
            epoch: 0,
            kind: kind as u8,
            version: BLOCK_VERSION,
            flags: 0,
            pending,
        };
        header.header_checksum = header.checksum();
        Self { header, body }
    }

    /// Reads the size that a block at the start of `bytes` claims, once it is within the limits.
    /// `Ok(None)` when fewer than 64 bytes are there.
    pub fn peek_size(bytes: &[u8]) -> Result<Option<usize>, BlockError> {
        let Ok((header, _)) = BlockHeader::read_from_prefix(bytes) else { return Ok(None) };
        check_size(header.size)?;
        Ok(Some(header.size as usize))
    }

    /// Takes one block off the front of `bytes`, sharing its memory. Both checksums and all limits
    /// are checked; the commands inside are not (see [`Block::validate_commands`]).
    pub fn decode(bytes: &mut Bytes) -> Result<Self, BlockError> {
        let (header, size) = Self::check(bytes)?;
        let mut whole = bytes.split_to(size);
        let body = whole.split_off(HEADER_BYTES);
        Ok(Self { header, body })
    }

    /// Checks the block at the front of `bytes` without taking it: its header and whole size.
    pub fn check(bytes: &[u8]) -> Result<(BlockHeader, usize), BlockError> {
        let short = |need| BlockError::Truncated { have: bytes.len(), need };
        let (header, rest) =
            BlockHeader::read_from_prefix(bytes).map_err(|_| short(HEADER_BYTES))?;
        check_size(header.size)?;
        let size = header.size as usize;
        if bytes.len() < size {
            return Err(short(size));
        }
        if header.version != BLOCK_VERSION {
            return Err(BlockError::BadVersion(header.version));
        }
        if header.checksum() != header.header_checksum {
            return Err(BlockError::HeaderChecksum);
        }
        if BlockKind::from_wire(header.kind).is_none() {
            return Err(BlockError::BadKind(header.kind));
        }
        if header.count == 0 || header.count as usize > BLOCK_COUNT_MAX {
            return Err(BlockError::BadCount(header.count));
        }
        if checksum::crc32c(&rest[..size - HEADER_BYTES]) != header.body_checksum {
            return Err(BlockError::BodyChecksum);
        }
        Ok((header, size))
    }

    /// Walks the commands and checks that they fill the body exactly. Called once, where a block
    /// enters the cluster; afterwards the body checksum vouches for it.
    pub fn validate_commands(&self) -> Result<(), BlockError> {
        if self.kind() != BlockKind::Commands {
            return Err(BlockError::BadKind(self.header.kind));
        }
        let mut rest: &[u8] = &self.body;
        for i in 0..self.header.count {
            let (_, after) = split_command(rest).ok_or(BlockError::BadCommand(i))?;
            rest = after;
        }
        if rest.is_empty() { Ok(()) } else { Err(BlockError::BadCommand(self.header.count)) }
    }

    /// Gives the block its place in the log. Only a leader does this, once per proposal.
    pub fn stamp(&mut self, term: Term, first: Index, epoch: u32) {
        self.header.term = term.0;
        self.header.first = first.0;
        self.header.epoch = epoch;
        self.header.header_checksum = self.header.checksum();
    }

    /// What [`BlockHeader::since`] says once the block has its place: not above it.
    pub fn begins_epoch(mut self, since: Index) -> Self {
        assert!(matches!(self.kind(), BlockKind::Noop | BlockKind::Membership));
        self.header.seq = since.get();
        self
    }

    /// Gives the block, which no log holds, another number in its client's session.
    pub fn renumber(&mut self, seq: u64, pending: u32) {
        self.header.seq = seq;
        self.header.pending = pending;
        self.header.flags &= !FLAG_CONTINUES;
        self.header.header_checksum = self.header.checksum();
    }

    /// Says that the block's session has had an answer in its group.
    pub fn set_continues(&mut self) {
        self.header.flags |= FLAG_CONTINUES;
        self.header.header_checksum = self.header.checksum();
    }

    /// The 64 bytes in front of [`Block::body`].
    #[inline]
    pub fn header(&self) -> &BlockHeader {
        &self.header
    }

    /// Everything after the header.
    #[inline]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Header and body, bytes.
    #[inline]
    pub fn size(&self) -> usize {
        self.header.size as usize
    }

    #[inline]
    pub fn count(&self) -> u64 {
        u64::from(self.header.count)
    }

    #[inline]
    pub fn term(&self) -> Term {
        Term(self.header.term)
    }

    /// Log index of the first command.
    #[inline]
    pub fn first(&self) -> Index {
        Index(self.header.first)
    }

    /// Log index of the last command.
    #[inline]
    pub fn last(&self) -> Index {
        Index(self.header.first + self.count() - 1)
    }

    #[inline]
    pub fn group(&self) -> GroupId {
        GroupId(self.header.group)
    }

    /// Synced before it counts, whatever the group's mode: changes of membership (durability.md R1) and
    /// of the list of groups, on which other groups stand,
    /// and the no-ops of a group that ever had a loss: one of them says that indices are used again
    /// under a new epoch, and were it lost, so would the next one (R6, R9).
    pub fn is_always_synced(&self) -> bool {
        match self.kind() {
            BlockKind::Commands | BlockKind::Session => false,
            BlockKind::Noop => self.header().epoch > 0,
            BlockKind::Membership | BlockKind::Chunk | BlockKind::Roster => true,
        }
    }

    /// Decoding admits no other kinds.
    #[inline]
    pub fn kind(&self) -> BlockKind {
        BlockKind::from_wire(self.header.kind).expect("checked when the block was made")
    }

    /// Appends the block's bytes.
    #[inline]
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.header.as_bytes());
        out.extend_from_slice(&self.body);
    }

    /// The commands in order, with their index in the log. Stops early only on a body that
    /// [`Block::validate_commands`] would refuse.
    pub fn commands(&self) -> Commands<'_> {
        Commands { rest: &self.body, left: self.header.count }
    }
}

fn check_size(size: u32) -> Result<(), BlockError> {
    let n = size as usize;
    if (HEADER_BYTES..=BLOCK_BYTES_MAX).contains(&n) && n.is_multiple_of(8) {
        Ok(())
    } else {
        Err(BlockError::BadSize(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event<'a>(key: &'a [u8], value: &'a [u8]) -> Command<'a> {
        Command { kind: CommandKind::SetEvent as u8, flags: 0, timestamp: 5, key, value }
    }

    fn encoded(block: &Block) -> Vec<u8> {
        let mut out = Vec::new();
        block.encode_into(&mut out);
        out
    }

    fn sample() -> Block {
        let mut builder = BlockBuilder::default();
        builder.push(&event(b"orders/new", b"one")).unwrap();
        builder.push(&event(b"orders/paid", b"")).unwrap();
        builder.finish(GroupId(7), 11, 3, 2)
    }

    #[test]
    fn what_a_client_builds_is_what_is_read_back() {
        let block = sample();
        let mut bytes = Bytes::from(encoded(&block));
        let back = Block::decode(&mut bytes).unwrap();
        assert_eq!(back, block);
        assert!(bytes.is_empty());
        back.validate_commands().unwrap();
        let keys: Vec<_> = back.commands().map(|c| c.key.to_vec()).collect();
        assert_eq!(keys, [b"orders/new".to_vec(), b"orders/paid".to_vec()]);
    }

    #[test]
    fn stamping_changes_the_place_and_not_the_body() {
        let mut block = sample();
        let body = block.body().clone();
        block.stamp(Term(4), Index(100), 1);
        assert_eq!((block.term(), block.first(), block.last()), (Term(4), Index(100), Index(101)));
        assert_eq!(block.body().as_ptr(), body.as_ptr(), "the body is shared, not copied");
        Block::decode(&mut Bytes::from(encoded(&block))).unwrap();
    }

    #[test]
    fn the_layout_is_pinned_by_a_golden_block() {
        let mut builder = BlockBuilder::default();
        builder.push(&event(b"k", b"v")).unwrap();
        let mut block = builder.finish(GroupId(1), 2, 3, 4);
        block.stamp(Term(5), Index(6), 7);
        let bytes = encoded(&block);
        assert_eq!(bytes.len(), 64 + 24);
        assert_eq!(&bytes[8..16], [88, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[16], 5);
        assert_eq!(bytes[24], 6);
        assert_eq!((bytes[32], bytes[40], bytes[48], bytes[52]), (2, 3, 1, 7));
        assert_eq!(&bytes[56..64], [1, 1, 0, 0, 4, 0, 0, 0]);
        assert_eq!(&bytes[64..82], [18, 0, 0, 0, 1, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, b'k', b'v']);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = encoded(&sample());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Block::decode(&mut Bytes::from(bad)).is_err(), "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn a_block_takes_what_fits_and_then_says_full() {
        let mut builder = BlockBuilder::default();
        let value = vec![0; 100_000];
        while builder.push(&event(b"t", &value)).is_ok() {}
        assert_eq!(builder.push(&event(b"t", &value)), Err(BuildError::Full));
        assert_eq!(
            builder.push(&event(b"t", &vec![0; BLOCK_BYTES_MAX])),
            Err(BuildError::TooLarge(BLOCK_BYTES_MAX + 17))
        );
        assert_eq!(
            builder.push(&event(&[0; KEY_BYTES_MAX + 1], b"")),
            Err(BuildError::KeyTooLong(KEY_BYTES_MAX + 1))
        );
        let block = builder.finish(GroupId(0), 0, 0, 0);
        assert_eq!(block.count(), 10);
        assert!(block.size() <= BLOCK_BYTES_MAX);
    }

    #[test]
    fn a_lying_command_size_is_refused_where_blocks_enter() {
        let mut body = vec![0u8; 24];
        body[0] = 25;
        let block =
            Block::seal(GroupId(0), BlockKind::Commands, 1, 0, 0, 0, Bytes::from(body.clone()));
        assert_eq!(block.validate_commands(), Err(BlockError::BadCommand(0)));
        body[0] = 16;
        let block = Block::seal(GroupId(0), BlockKind::Commands, 1, 0, 0, 0, Bytes::from(body));
        assert_eq!(block.validate_commands(), Err(BlockError::BadCommand(1)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_block_or_a_typed_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = Bytes::from(bytes);
            if let Ok(block) = Block::decode(&mut bytes) {
                let _ = block.validate_commands();
                let _ = block.commands().count();
            }
        }

        #[test]
        fn any_body_under_a_true_header_never_panics(
            body in proptest::collection::vec(any::<u8>(), 0..50).prop_map(|b| [b.as_slice(), &[0; 8][..(8 - b.len() % 8) % 8]].concat()),
            count in 1u32..5,
        ) {
            let block = Block::seal(GroupId(0), BlockKind::Commands, count, 0, 0, 0, Bytes::from(body));
            let valid = block.validate_commands().is_ok();
            prop_assert_eq!(block.commands().count() == count as usize || !valid, true);
        }
    }
}
