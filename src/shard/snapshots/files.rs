//! The files of snapshots: their names, and what is to be done with them. The shard decides, whoever
//! runs it carries out.
//!
//! ```text
//! g7.making                      being written here; nothing names it, it goes at a start
//! g7-<index>-<term>-<epoch>-<size>-<checksum>.part
//!                                being received; its name says of which snapshot it is a part
//! g7-<index>.snap                published: whole, synced, and so is its name (bugs.md 5)
//! ```

use std::fmt;

use bytes::Bytes;

use crate::ids::{GroupId, Index, LogStart, Term};
use crate::raft::message::Offer;

/// A file in the directory of a shard's snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileName {
    Making(GroupId),
    Part(GroupId, Offer),
    Snapshot(GroupId, Index),
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Making(group) => write!(f, "g{group}.making"),
            Self::Snapshot(group, index) => write!(f, "g{group}-{index}.snap"),
            Self::Part(group, Offer { start, size, checksum }) => {
                let LogStart { index, term, epoch } = start;
                write!(f, "g{group}-{index}-{term}-{epoch}-{size}-{checksum}.part")
            }
        }
    }
}

impl FileName {
    /// What a file of this name is; `None`: none of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let (stem, kind) = name.strip_prefix('g')?.rsplit_once('.')?;
        let mut numbers = stem.split('-').map(|number| number.parse::<u64>().ok());
        let mut next = || numbers.next().flatten();
        let group = GroupId(u32::try_from(next()?).ok()?);
        let found = match kind {
            "making" => Self::Making(group),
            "snap" => Self::Snapshot(group, Index(next()?)),
            "part" => {
                let (index, term) = (Index(next()?), Term(next()?));
                let (epoch, size) = (u32::try_from(next()?).ok()?, next()?);
                let checksum = u32::try_from(next()?).ok()?;
                let start = LogStart { index, term, epoch };
                Self::Part(group, Offer { start, size, checksum })
            }
            _ => return None,
        };
        // One name for one file: no second spelling of it.
        (found.to_string() == name).then_some(found)
    }

    pub fn group(&self) -> GroupId {
        match *self {
            Self::Making(group) | Self::Part(group, _) | Self::Snapshot(group, _) => group,
        }
    }
}

/// Names an operation on a file until it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileOpId(pub u64);

/// What is to be done. Operations on one file are carried out in the order in which they were asked
/// for.
#[derive(Debug)]
pub enum FileOp {
    /// Writes at `offset`. At offset 0 the file is made, or emptied first. `sync`: it, and all written
    /// to it before, is on stable storage when this completes.
    Write { op: FileOpId, file: FileName, offset: u64, bytes: Bytes, sync: bool },
    /// Syncs `from`, renames it to `to`, and syncs the directory.
    Publish { op: FileOpId, from: FileName, to: FileName },
    /// Removes the file; that it is not there is no error.
    Remove { op: FileOpId, file: FileName },
    /// Reads exactly `len` bytes.
    Read { op: FileOpId, file: FileName, offset: u64, len: u32 },
}

impl FileOp {
    pub fn id(&self) -> FileOpId {
        match *self {
            Self::Write { op, .. }
            | Self::Publish { op, .. }
            | Self::Remove { op, .. }
            | Self::Read { op, .. } => op,
        }
    }
}

/// What became of it.
#[derive(Clone, Debug)]
pub enum FileDone {
    Written,
    Published,
    Removed,
    Read { bytes: Bytes },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_the_file_is_and_no_other_name_does() {
        let start = LogStart { index: Index(30), term: Term(4), epoch: 1 };
        let group = GroupId(7);
        let files = [
            (FileName::Making(group), "g7.making"),
            (FileName::Snapshot(group, Index(30)), "g7-30.snap"),
            (FileName::Part(group, Offer { start, size: 99, checksum: 5 }), "g7-30-4-1-99-5.part"),
        ];
        for (file, name) in files {
            assert_eq!(file.to_string(), name);
            assert_eq!(FileName::parse(name), Some(file));
        }
        for name in
            ["", "g.snap", "g7.snap", "g07-30.snap", "g7-30-1.snap", "7-30.snap", "g7-30.sna"]
        {
            assert_eq!(FileName::parse(name), None, "{name}");
        }
    }
}
