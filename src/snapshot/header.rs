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
//! | 48 | u64 | index of the membership entry that holds |
//! | 56 | 4 × u16 | members in each list |
//! | 64 | u32 × | voters, outgoing voters, learners, voters that become learners; zeros up to `size` |

use super::{MAGIC, ReadError, VERSION};
use crate::checksum::crc32c;
use crate::ids::{GroupId, Index, NodeId, Term};
use crate::machine::snapshot::{Fields, put_u32s, put_u64s};

/// Most members of one list.
pub const MEMBERS_MAX: usize = 64;
/// Before the lists.
pub(super) const FIXED_BYTES: usize = 64;
const LISTS: usize = 4;
pub(super) const HEADER_BYTES_MAX: usize = FIXED_BYTES + LISTS * MEMBERS_MAX * 4;

/// Who takes part, as of a snapshot's index (§6 of the paper). Each list ascends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Index of the entry that brought it; `ZERO`: the group's first configuration.
    pub index: Index,
    /// The (incoming) voters.
    pub voters: Vec<NodeId>,
    /// The outgoing half while the configuration is joint; else empty.
    pub outgoing: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// Outgoing voters that become learners when the joint configuration is left.
    pub learners_next: Vec<NodeId>,
}

impl Membership {
    fn lists(&self) -> [&Vec<NodeId>; LISTS] {
        [&self.voters, &self.outgoing, &self.learners, &self.learners_next]
    }
}

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

/// # Panics
/// When a list does not ascend, names node 0 or is longer than [`MEMBERS_MAX`]: the caller's bug.
pub(super) fn encode(header: &Header, into: &mut Vec<u8>) {
    let lists = header.membership.lists();
    assert!(lists.iter().all(|list| is_list(list)), "{:?}", header.membership);
    let start = into.len();
    let members: usize = lists.iter().map(|list| list.len()).sum();
    let size = (FIXED_BYTES + members * 4).next_multiple_of(8);
    put_u32s(into, &[0, MAGIC, VERSION, size as u32, header.group.0, header.epoch]);
    put_u64s(into, &[header.index.get(), header.term.get(), header.config_hash]);
    put_u64s(into, &[header.membership.index.get()]);
    for list in lists {
        into.extend_from_slice(&(list.len() as u16).to_le_bytes());
    }
    for list in lists {
        list.iter().for_each(|node| put_u32s(into, &[node.0]));
    }
    into.resize(start + size, 0);
    let checksum = crc32c(&into[start + 4..]);
    into[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
}

fn is_list(list: &[NodeId]) -> bool {
    list.len() <= MEMBERS_MAX
        && list.first() != Some(&NodeId::ZERO)
        && list.windows(2).all(|pair| pair[0] < pair[1])
}

/// Bytes of the whole header, by its first [`FIXED_BYTES`].
pub(super) fn size(fixed: &[u8]) -> Result<usize, ReadError> {
    let mut fields = Fields(&fixed[4..]);
    if fields.u32() != MAGIC {
        return Err(ReadError::NotASnapshot);
    }
    match fields.u32() {
        VERSION => {}
        version => return Err(ReadError::Version(version)),
    }
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
    fields.0 = &bytes[16..];
    let (group, epoch) = (GroupId(fields.u32()), fields.u32());
    let (index, term) = (Index(fields.u64()), Term(fields.u64()));
    let config_hash = fields.u64();
    let at = Index(fields.u64());
    let sizes = fields.u64();
    let sizes: [usize; LISTS] =
        std::array::from_fn(|list| (sizes >> (16 * list)) as usize & 0xffff);
    let members: usize = sizes.iter().sum();
    if (FIXED_BYTES + members * 4).next_multiple_of(8) != bytes.len() {
        return Err(ReadError::Header("the number of members"));
    }
    let [voters, outgoing, learners, learners_next] =
        sizes.map(|size| (0..size).map(|_| NodeId(fields.u32())).collect::<Vec<_>>());
    let membership = Membership { index: at, voters, outgoing, learners, learners_next };
    if !membership.lists().iter().all(|list| is_list(list)) || fields.0.iter().any(|&b| b != 0) {
        return Err(ReadError::Header("the members"));
    }
    Ok((Header { group, epoch, index, term, config_hash, membership }, checksum))
}
