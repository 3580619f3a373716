//! A group's snapshot as one unit of bytes: which log prefix it stands for, who takes part, the
//! sessions and the state, all under one checksum (bugs.md 11, 18).
//!
//! ```text
//! │ header │ part 0 │ part 1 │ … │ part n │ end │
//!            sessions … then state          sizes, checksum of everything before it
//! ```
//!
//! [`SnapshotWriter`] draws the parts from two frozen states, a few bytes a turn, while both go on
//! changing; [`SnapshotReader`] gives them back from pieces that may be cut anywhere, each part only
//! once its checksum was right. It is a snapshot only when [`Piece::End`] has come: until then what
//! was restored must not be used.
//!
//! A part's checksum is seeded with the header's, and parts are numbered: parts of another snapshot,
//! or in another order, or twice (bugs.md 17), do not verify. Publishing (by rename, and only when the
//! log is durable through the index: durability.md R8) is for who owns the files.

mod header;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use header::Header;
pub use reader::{Piece, SnapshotReader};
use thiserror::Error;
pub use writer::SnapshotWriter;

pub use crate::membership::{MEMBERS_MAX, Membership};

/// First bytes of every snapshot: `RRSN`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"RRSN");
/// Another one is refused by name.
pub const VERSION: u32 = 1;
/// Most bytes in one part, its head left out: what a reader holds at most.
pub const PART_BYTES_MAX: usize = 256 << 10;
/// Head of a part.
const PART_HEAD_BYTES: usize = 24;
/// What the part at the end holds.
const END_BYTES: usize = 32;

/// What a part holds; parts come in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
enum Kind {
    Sessions = 1,
    State = 2,
    End = 3,
}

impl Kind {
    const fn from_wire(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Sessions),
            2 => Some(Self::State),
            3 => Some(Self::End),
            _ => None,
        }
    }
}

/// Why bytes are not a snapshot. After any of them the reader is finished: get the snapshot anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    #[error("this is not a snapshot")]
    NotASnapshot,
    #[error("the snapshot is of version {0}, this build reads version {VERSION}")]
    Version(u32),
    #[error("the snapshot's header is damaged: {0}")]
    Header(&'static str),
    #[error("part {number} of the snapshot is damaged: {what}")]
    Part { number: u64, what: &'static str },
    #[error("the parts of the snapshot are not those that its end counts")]
    Incomplete,
    #[error("the snapshot is cut short")]
    CutShort,
    #[error("bytes follow the end of the snapshot")]
    Trailing,
}
