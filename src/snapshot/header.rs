//! The head of a snapshot: what it stands for.
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u32 | checksum of bytes 4..size |
//! | 4 | u32 | magic |
//! | 8 | u32 | version |
//! | 12 | u32 | size of the header, a multiple of 8 |
//! | 16 | u32 | group |
//! | 20 | u32 | recovery epoch |
//! | 24 | u64 | last included index |
//! | 32 | u64 | its term |
//! | 40 | u64 | hash of the configuration |
//! | 48 | | the membership that holds (`membership`), up to `size` |

use super::{MAGIC, ReadError, VERSION};
use crate::checksum::crc32c;
use crate::ids::{GroupId, Index, LogStart, Term};
use crate::machine::snapshot::{Fields, put_u32s, put_u64s};
use crate::membership::{self, MEMBERSHIP_BYTES_MAX, Membership};

/// Before the membership.
const HEAD_BYTES: usize = 48;
/// Enough to know the size.
pub(super) const FIXED_BYTES: usize = HEAD_BYTES + membership::FIXED_BYTES;
pub(super) const HEADER_BYTES_MAX: usize = HEAD_BYTES + MEMBERSHIP_BYTES_MAX;
const _: () = assert!(HEADER_BYTES_MAX <= super::PART_BYTES_MAX);

/// What a snapshot stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub group: GroupId,
    /// Recovery epoch of the last included entry (durability.md R9).
    pub epoch: u32,
    /// The snapshot stands for the log through this index.
    pub index: Index,
    /// Of the entry at `index`.
    pub term: Term,
    /// Of what all nodes must agree on; a snapshot of another one must not be restored.
    pub config_hash: u64,
    pub membership: Membership,
}

impl Header {
    /// Where a log begins for which this stands.
    pub fn start(&self) -> LogStart {
        LogStart { index: self.index, term: self.term, epoch: self.epoch }
    }
}

/// # Panics
/// When a list of members does not ascend, names node 0 or is too long: the caller's bug.
pub(super) fn encode(header: &Header, into: &mut Vec<u8>) {
    let start = into.len();
    put_u32s(into, &[0, MAGIC, VERSION, 0, header.group.0, header.epoch]);
    put_u64s(into, &[header.index.get(), header.term.get(), header.config_hash]);
    header.membership.encode(into);
    let size = (into.len() - start) as u32;
    into[start + 12..start + 16].copy_from_slice(&size.to_le_bytes());
    let checksum = crc32c(&into[start + 4..]);
    into[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// Bytes of the whole header, by its first [`FIXED_BYTES`].
pub(super) fn size(fixed: &[u8]) -> Result<usize, ReadError> {
    let mut fields = Fields(&fixed[4..]);
    if fields.u32() != MAGIC {
        return Err(ReadError::NotASnapshot);
    }
    // Not a word of the version before the checksum was right: a flipped bit in it is damage, which
    // other nodes can mend, and no reason to refuse a start.
    let _version = fields.u32();
    let size = fields.u32() as usize;
    if !(FIXED_BYTES..=HEADER_BYTES_MAX).contains(&size) || !size.is_multiple_of(8) {
        return Err(ReadError::Header("its size"));
    }
    Ok(size)
}

/// Reads a header of which [`size`] was asked, and its checksum.
pub(super) fn decode(bytes: &[u8]) -> Result<(Header, u32), ReadError> {
    let mut fields = Fields(bytes);
    let checksum = fields.u32();
    if checksum != crc32c(&bytes[4..]) {
        return Err(ReadError::Header("its checksum"));
    }
    fields.0 = &bytes[8..];
    match fields.u32() {
        VERSION => {}
        version => return Err(ReadError::Version(version)),
    }
    fields.0 = &bytes[16..];
    let (group, epoch) = (GroupId(fields.u32()), fields.u32());
    let (index, term) = (Index(fields.u64()), Term(fields.u64()));
    let config_hash = fields.u64();
    let membership = Membership::decode(fields.0).map_err(|_| ReadError::Header("the members"))?;
    Ok((Header { group, epoch, index, term, config_hash, membership }, checksum))
}
