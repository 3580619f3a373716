//! The frame: one length-prefixed, checksummed unit on a socket.
//!
//! ```text
//!    0 u32 checksum  CRC32C of bytes 4..32+control
//!    4 u32 size      the whole frame; a multiple of 8
//!    8 u32 control   bytes of the control section, which follows the header; a multiple of 8
//!   12 u16 kind
//!   14 u8  version
//!   15 u8  flags
//!   16 u32 count     entries in the control section, or blocks where there is none
//!   20 u32 zero
//!   24 u64 token     of a question, given back in its answer
//!   32 control section, then whole blocks
//! ```
//!
//! Blocks carry checksums of their own, so the frame's covers only what is in front of them: no
//! byte of a body is summed twice at one edge.

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::block::{BLOCK_BYTES_MAX, Block, BlockError};
use crate::checksum;

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 32;
/// Largest frame.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// Version of the wire protocol; both sides must speak the same.
pub const WIRE_VERSION: u8 = 1;

const _: () = assert!(size_of::<FrameHeader>() == FRAME_HEADER_BYTES);
const _: () = assert!(FRAME_BYTES_MAX >= 2 * BLOCK_BYTES_MAX);

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameKind {
    /// First frame of a connection, from who opened it.
    Hello = 1,
    /// The answer to it: welcome, or why not.
    HelloReply = 2,
    /// Messages between two shards of different nodes.
    Peer = 3,
    /// Blocks a client proposes.
    Submit = 4,
    /// What became of them.
    Answers = 5,
    /// A question to the state machine of a group.
    Query = 6,
    /// Its answer.
    QueryReply = 7,
    /// A question about a shard: roles, terms, indices.
    Status = 8,
    /// Its answer, JSON.
    StatusReply = 9,
    /// The last frame before an orderly close, with the reason as text.
    Close = 10,
    /// An operator's command to a group, JSON: see [`crate::wire::admin`].
    Admin = 11,
    /// What became of it, JSON.
    AdminReply = 12,
}

impl FrameKind {
    const fn from_wire(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Hello,
            2 => Self::HelloReply,
            3 => Self::Peer,
            4 => Self::Submit,
            5 => Self::Answers,
            6 => Self::Query,
            7 => Self::QueryReply,
            8 => Self::Status,
            9 => Self::StatusReply,
            10 => Self::Close,
            11 => Self::Admin,
            12 => Self::AdminReply,
            _ => return None,
        })
    }
}

/// The header as it lies on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FrameHeader {
    checksum: u32,
    size: u32,
    control: u32,
    kind: u16,
    version: u8,
    flags: u8,
    count: u32,
    zero: u32,
    token: u64,
}

/// Why bytes are not a frame, or a frame not what was expected. The connection cannot go on after
/// any of them: the boundary of the next frame is no longer known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error(
        "frame size {0} is not a multiple of 8 between {FRAME_HEADER_BYTES} and {FRAME_BYTES_MAX}"
    )]
    BadSize(u32),
    #[error("frame control section of {control} bytes does not fit a frame of {size}")]
    BadControl { control: u32, size: u32 },
    #[error("frame checksum does not match")]
    Checksum,
    #[error("wire version {0} is not supported (this build speaks {WIRE_VERSION})")]
    BadVersion(u8),
    #[error("unknown frame kind {0}")]
    BadKind(u16),
    #[error("frame of kind {0:?} is not allowed here")]
    Unexpected(FrameKind),
    #[error("frame announces {count} entries, which do not fit it")]
    BadCount { count: u32 },
    #[error("entry {0} of the frame is malformed")]
    BadEntry(u32),
    #[error("frame has bytes left after its last block")]
    Leftover,
    #[error(transparent)]
    Block(#[from] BlockError),
}

/// One received frame. Its parts share the receive buffer's memory.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: FrameKind,
    pub flags: u8,
    pub count: u32,
    pub token: u64,
    pub control: Bytes,
    /// Whole blocks, not yet checked: see [`Frame::take_blocks`].
    pub blocks: Bytes,
}

impl Frame {
    /// Takes the next complete frame off `buffer`; `Ok(None)` when more bytes must arrive first.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some((header, control_end)) = check(buffer)? else { return Ok(None) };
        let mut whole = buffer.split_to(header.size as usize).freeze();
        let blocks = whole.split_off(control_end);
        let control = whole.split_off(FRAME_HEADER_BYTES);
        let kind = FrameKind::from_wire(header.kind).expect("checked above");
        Ok(Some(Self {
            kind,
            flags: header.flags,
            count: header.count,
            token: header.token,
            control,
            blocks,
        }))
    }

    /// How many bytes the frame at the front of `bytes` needs in all, as far as that is known yet:
    /// the size of the buffer to receive it in.
    pub fn bytes_needed(bytes: &[u8]) -> usize {
        match FrameHeader::read_from_prefix(bytes) {
            Ok((header, _)) if check_size(header.size).is_ok() => header.size as usize,
            _ => FRAME_HEADER_BYTES,
        }
    }

    /// Takes `count` blocks off the front of the block section and checks them.
    pub fn take_blocks(&mut self, count: u32, into: &mut Vec<Block>) -> Result<(), FrameError> {
        for _ in 0..count {
            into.push(Block::decode(&mut self.blocks)?);
        }
        Ok(())
    }

    /// The control section as `count` entries of a fixed size.
    pub fn entries<T: FromBytes + Immutable + KnownLayout>(
        &self,
    ) -> Result<impl Iterator<Item = T> + '_, FrameError> {
        if self.control.len() != self.count as usize * size_of::<T>() {
            return Err(FrameError::BadCount { count: self.count });
        }
        let read = |raw| T::read_from_bytes(raw).expect("chunks have the exact size");
        Ok(self.control.chunks_exact(size_of::<T>()).map(read))
    }
}

fn check_size(size: u32) -> Result<(), FrameError> {
    let n = size as usize;
    if (FRAME_HEADER_BYTES..=FRAME_BYTES_MAX).contains(&n) && n.is_multiple_of(8) {
        Ok(())
    } else {
        Err(FrameError::BadSize(size))
    }
}

/// Checks the frame at the front of `bytes`: `None` while it is incomplete. Version, kind and size
/// are refused as soon as the header is there, before anybody waits for megabytes.
fn check(bytes: &[u8]) -> Result<Option<(FrameHeader, usize)>, FrameError> {
    let Ok((header, _)) = FrameHeader::read_from_prefix(bytes) else { return Ok(None) };
    if header.version != WIRE_VERSION {
        return Err(FrameError::BadVersion(header.version));
    }
    if FrameKind::from_wire(header.kind).is_none() {
        return Err(FrameError::BadKind(header.kind));
    }
    check_size(header.size)?;
    let control = header.control as usize;
    if control > header.size as usize - FRAME_HEADER_BYTES || !control.is_multiple_of(8) {
        return Err(FrameError::BadControl { control: header.control, size: header.size });
    }
    if bytes.len() < header.size as usize {
        return Ok(None);
    }
    let control_end = FRAME_HEADER_BYTES + control;
    if checksum::crc32c(&bytes[4..control_end]) != header.checksum {
        return Err(FrameError::Checksum);
    }
    Ok(Some((header, control_end)))
}

/// Writes one frame onto the end of a buffer: header, control entries, blocks, then [`finish`].
///
/// [`finish`]: FrameWriter::finish
#[derive(Debug)]
pub struct FrameWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    control_end: usize,
}

impl<'a> FrameWriter<'a> {
    pub fn begin(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.resize(start + FRAME_HEADER_BYTES, 0);
        Self { out, start, control_end: start + FRAME_HEADER_BYTES }
    }

    /// Adds a control entry. All of them come before the first block.
    pub fn entry<T: IntoBytes + Immutable>(&mut self, entry: &T) {
        debug_assert_eq!(self.control_end, self.out.len());
        self.out.extend_from_slice(entry.as_bytes());
        self.control_end = self.out.len();
    }

    /// Adds opaque bytes to the control section, padded with zeros to a multiple of 8.
    pub fn control_bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        let written = self.out.len() - self.start;
        self.out.resize(self.start + written.next_multiple_of(8), 0);
        self.control_end = self.out.len();
    }

    /// Adds a block behind the control section.
    pub fn block(&mut self, block: &Block) {
        block.encode_into(self.out);
    }

    /// Stamps the header.
    ///
    /// # Panics
    /// When the frame grew over [`FRAME_BYTES_MAX`]: who fills it must keep to the limit.
    pub fn finish(self, kind: FrameKind, count: u32, token: u64) {
        let size = self.out.len() - self.start;
        assert!(size <= FRAME_BYTES_MAX && size.is_multiple_of(8), "frame of {size} bytes");
        let mut header = FrameHeader {
            checksum: 0,
            size: size as u32,
            control: (self.control_end - self.start - FRAME_HEADER_BYTES) as u32,
            kind: kind as u16,
            version: WIRE_VERSION,
            flags: 0,
            count,
            zero: 0,
            token,
        };
        let frame = &mut self.out[self.start..];
        frame[..FRAME_HEADER_BYTES].copy_from_slice(header.as_bytes());
        let control_end = self.control_end - self.start;
        header.checksum = checksum::crc32c(&frame[4..control_end]);
        frame[..4].copy_from_slice(&header.checksum.to_le_bytes());
    }
}

/// Writes a [`FrameKind::Close`] frame that says why.
pub fn write_close(out: &mut Vec<u8>, reason: &str) {
    let mut writer = FrameWriter::begin(out);
    let most = reason.len().min(512);
    let cut = (0..=most).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or(0);
    writer.control_bytes(&reason.as_bytes()[..cut]);
    writer.finish(FrameKind::Close, cut as u32, 0);
}

/// The reason in a [`FrameKind::Close`] frame.
pub fn read_close(frame: &Frame) -> String {
    let size = (frame.count as usize).min(frame.control.len());
    String::from_utf8_lossy(&frame.control[..size]).into_owned()
}
