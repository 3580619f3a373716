//! Who takes part in a group (§6), and its one encoding: the body of a membership entry in the log,
//! and a part of a snapshot's header.
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u64 | index of the entry that brought it; 0 in the entry itself, whose place says it |
//! | 8 | u32 | bytes of all this, a multiple of 8 |
//! | 12 | 6 × u16 | members in each list, nodes that join, addresses |
//! | 24 | u32 × | voters, outgoing voters, learners, voters that become learners |
//! | | 2 × u32 × | learners that become voters, and whom each replaces (0 = nobody) |
//! | | u32 node, u8 and u8 sizes, u16 zero, bytes × | addresses for peers and for clients |
//! | | | zeros up to a multiple of 8 |

mod change;
mod preflight;

pub use change::{ChangeError, Step, VOTERS_MAX};
pub use preflight::{Preflight, Voters, preflight};
use thiserror::Error;

use crate::ids::{Index, NodeId};

/// Most members of one list.
pub const MEMBERS_MAX: usize = 64;
/// Longest address, bytes.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// Before the lists.
pub const FIXED_BYTES: usize = 24;
/// Nobody's membership is longer.
pub const MEMBERSHIP_BYTES_MAX: usize =
    FIXED_BYTES + MEMBERS_MAX * (LISTS * 4 + 8 + 8 + 2 * ADDRESS_BYTES_MAX);
const LISTS: usize = 4;

/// A configuration of a group. Each list ascends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Membership {
    /// Index of the entry that brought it; `ZERO`: the group's first configuration.
    pub index: Index,
    /// The (incoming) voters.
    pub voters: Vec<NodeId>,
    /// The outgoing half while the configuration is joint; else empty.
    pub outgoing: Vec<NodeId>,
    /// Get the log, and neither vote nor count.
    pub learners: Vec<NodeId>,
    /// Outgoing voters that become learners when the joint configuration is left.
    pub learners_next: Vec<NodeId>,
    /// Learners that their leader makes voters as soon as they have caught up.
    pub joining: Vec<Joining>,
    /// Where nodes are found that no configuration file needs to name.
    pub addresses: Vec<NodeAddress>,
}

/// A learner that is to become a voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Joining {
    pub node: NodeId,
    /// The member that leaves in the same change.
    pub replaces: Option<NodeId>,
}

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress {
    pub node: NodeId,
    /// `host:port` for the other nodes.
    pub peer: String,
    /// `host:port` for clients.
    pub client: String,
}

/// Why bytes are not a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MembershipError {
    #[error("the membership is cut short")]
    CutShort,
    #[error("the size of the membership")]
    Size,
    #[error("a list of members that does not ascend, or is too long")]
    List,
    #[error("an address that is no text")]
    Address,
    #[error("bytes behind the membership that are not zero")]
    Trailing,
}

impl Membership {
    /// The configuration of a group's first start: nobody but voters.
    pub fn of_voters(mut voters: Vec<NodeId>) -> Self {
        voters.sort_unstable();
        voters.dedup();
        Self { voters, ..Self::default() }
    }

    /// Two halves must agree (§6).
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Votes and counts, in either half.
    pub fn is_voter(&self, node: NodeId) -> bool {
        contains(&self.voters, node) || contains(&self.outgoing, node)
    }

    /// Gets the log without a say in it.
    pub fn is_learner(&self, node: NodeId) -> bool {
        contains(&self.learners, node)
    }

    /// Gets the log.
    pub fn is_member(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.is_learner(node)
    }

    /// All that get the log, ascending.
    pub fn members(&self) -> Vec<NodeId> {
        let mut all = [&self.voters[..], &self.outgoing, &self.learners].concat();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Where a node listens, if this says it.
    pub fn address(&self, node: NodeId) -> Option<&NodeAddress> {
        let at = self.addresses.binary_search_by_key(&node, |address| address.node).ok()?;
        Some(&self.addresses[at])
    }

    fn lists(&self) -> [&[NodeId]; LISTS] {
        [&self.voters, &self.outgoing, &self.learners, &self.learners_next]
    }

    fn is_well_formed(&self) -> bool {
        let joining: Vec<_> = self.joining.iter().map(|joining| joining.node).collect();
        let addresses: Vec<_> = self.addresses.iter().map(|address| address.node).collect();
        let short = |text: &str| !text.is_empty() && text.len() <= ADDRESS_BYTES_MAX;
        self.lists().iter().all(|list| is_list(list))
            && is_list(&joining)
            && is_list(&addresses)
            && self.addresses.iter().all(|a| short(&a.peer) && short(&a.client))
    }

    /// Appends the encoding; its size is a multiple of 8.
    ///
    /// # Panics
    /// When a list does not ascend, names node 0 or is too long: the caller's bug.
    pub fn encode(&self, into: &mut Vec<u8>) {
        assert!(self.is_well_formed(), "lists of members ascend and are bounded: {self:?}");
        let start = into.len();
        into.extend_from_slice(&self.index.get().to_le_bytes());
        into.extend_from_slice(&[0; 4]);
        let sizes = self.lists().map(<[_]>::len);
        for size in sizes.into_iter().chain([self.joining.len(), self.addresses.len()]) {
            into.extend_from_slice(&(size as u16).to_le_bytes());
        }
        for node in self.lists().into_iter().flatten() {
            into.extend_from_slice(&node.0.to_le_bytes());
        }
        for joining in &self.joining {
            let replaces = joining.replaces.unwrap_or(NodeId::ZERO);
            into.extend_from_slice(&joining.node.0.to_le_bytes());
            into.extend_from_slice(&replaces.0.to_le_bytes());
        }
        for address in &self.addresses {
            into.extend_from_slice(&address.node.0.to_le_bytes());
            into.extend_from_slice(&[address.peer.len() as u8, address.client.len() as u8, 0, 0]);
            into.extend_from_slice(address.peer.as_bytes());
            into.extend_from_slice(address.client.as_bytes());
        }
        let size = (into.len() - start).next_multiple_of(8);
        into.resize(start + size, 0);
        into[start + 8..start + 12].copy_from_slice(&(size as u32).to_le_bytes());
    }

    /// Reads a membership that fills `bytes` exactly. Allocates no more than they hold.
    pub fn decode(bytes: &[u8]) -> Result<Self, MembershipError> {
        let mut rest = Rest(bytes);
        let index = Index(u64::from_le_bytes(rest.array()?));
        let size = u32::from_le_bytes(rest.array()?) as usize;
        if size != bytes.len() || !size.is_multiple_of(8) || size > MEMBERSHIP_BYTES_MAX {
            return Err(MembershipError::Size);
        }
        let mut sizes = [0; LISTS + 2];
        for size in &mut sizes {
            *size = usize::from(u16::from_le_bytes(rest.array()?));
        }
        if sizes.iter().any(|&size| size > MEMBERS_MAX) {
            return Err(MembershipError::List);
        }
        let [voters, outgoing, learners, learners_next, joining, addresses] = sizes;
        let membership = Self {
            index,
            voters: rest.nodes(voters)?,
            outgoing: rest.nodes(outgoing)?,
            learners: rest.nodes(learners)?,
            learners_next: rest.nodes(learners_next)?,
            joining: (0..joining).map(|_| rest.joining()).collect::<Result<_, _>>()?,
            addresses: (0..addresses).map(|_| rest.address()).collect::<Result<_, _>>()?,
        };
        if !membership.is_well_formed() {
            return Err(MembershipError::List);
        }
        if rest.0.len() >= 8 || rest.0.iter().any(|&byte| byte != 0) {
            return Err(MembershipError::Trailing);
        }
        Ok(membership)
    }
}

fn contains(list: &[NodeId], node: NodeId) -> bool {
    list.binary_search(&node).is_ok()
}

fn is_list(list: &[NodeId]) -> bool {
    list.len() <= MEMBERS_MAX
        && list.first() != Some(&NodeId::ZERO)
        && list.windows(2).all(|pair| pair[0] < pair[1])
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], MembershipError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(MembershipError::CutShort)?;
        self.0 = rest;
        Ok(*head)
    }

    fn node(&mut self) -> Result<NodeId, MembershipError> {
        Ok(NodeId(u32::from_le_bytes(self.array()?)))
    }

    fn nodes(&mut self, count: usize) -> Result<Vec<NodeId>, MembershipError> {
        (0..count).map(|_| self.node()).collect()
    }

    fn joining(&mut self) -> Result<Joining, MembershipError> {
        let (node, replaces) = (self.node()?, self.node()?);
        Ok(Joining { node, replaces: (replaces != NodeId::ZERO).then_some(replaces) })
    }

    fn address(&mut self) -> Result<NodeAddress, MembershipError> {
        let node = self.node()?;
        let [peer, client, zero0, zero1] = self.array()?;
        if zero0 != 0 || zero1 != 0 {
            return Err(MembershipError::Address);
        }
        Ok(NodeAddress { node, peer: self.text(peer)?, client: self.text(client)? })
    }

    fn text(&mut self, size: u8) -> Result<String, MembershipError> {
        let (text, rest) =
            self.0.split_at_checked(usize::from(size)).ok_or(MembershipError::CutShort)?;
        self.0 = rest;
        let text = std::str::from_utf8(text).map_err(|_| MembershipError::Address)?;
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(ids: &[u32]) -> Vec<NodeId> {
        ids.iter().map(|&id| NodeId(id)).collect()
    }

    fn replacing_three_by_four() -> Membership {
        let address = |node: u32| NodeAddress {
            node: NodeId(node),
            peer: format!("10.0.0.{node}:7001"),
            client: format!("[fe80::{node}]:7002"),
        };
        Membership {
            index: Index(9_000),
            voters: nodes(&[1, 2, 4]),
            outgoing: nodes(&[1, 2, 3]),
            learners: nodes(&[5, 6]),
            learners_next: nodes(&[3]),
            joining: vec![
                Joining { node: NodeId(5), replaces: None },
                Joining { node: NodeId(6), replaces: Some(NodeId(1)) },
            ],
            addresses: vec![address(4), address(5), address(6)],
        }
    }

    fn encoded(membership: &Membership) -> Vec<u8> {
        let mut bytes = Vec::new();
        membership.encode(&mut bytes);
        bytes
    }

    #[test]
    fn a_membership_is_read_as_it_was_written() {
        for membership in [Membership::default(), replacing_three_by_four()] {
            let bytes = encoded(&membership);
            assert!(bytes.len().is_multiple_of(8) && bytes.len() <= MEMBERSHIP_BYTES_MAX);
            assert_eq!(Membership::decode(&bytes), Ok(membership));
        }
    }

    #[test]
    fn what_is_cut_short_or_goes_on_is_refused() {
        let bytes = encoded(&replacing_three_by_four());
        for size in 0..bytes.len() {
            assert!(Membership::decode(&bytes[..size]).is_err(), "{size} bytes");
        }
        let mut longer = bytes.clone();
        longer.extend_from_slice(&[0; 8]);
        assert_eq!(Membership::decode(&longer), Err(MembershipError::Size));
        let size = longer.len() as u32;
        longer[8..12].copy_from_slice(&size.to_le_bytes());
        assert_eq!(Membership::decode(&longer), Err(MembershipError::Trailing));
    }

    #[test]
    fn lists_out_of_order_too_long_or_with_node_0_are_refused() {
        let mut bytes = encoded(&Membership::of_voters(nodes(&[1, 2])));
        bytes[24..28].copy_from_slice(&3u32.to_le_bytes());
        assert_eq!(Membership::decode(&bytes), Err(MembershipError::List));
        bytes[24..28].copy_from_slice(&0u32.to_le_bytes());
        assert_eq!(Membership::decode(&bytes), Err(MembershipError::List));
        bytes[12..14].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(Membership::decode(&bytes), Err(MembershipError::List));
    }

    #[test]
    fn members_are_found_in_their_lists() {
        let membership = replacing_three_by_four();
        assert!(membership.is_joint() && membership.is_voter(NodeId(3)));
        assert!(membership.is_learner(NodeId(5)) && !membership.is_voter(NodeId(5)));
        assert_eq!(membership.members(), nodes(&[1, 2, 3, 4, 5, 6]));
        assert_eq!(membership.address(NodeId(5)).unwrap().peer, "10.0.0.5:7001");
        assert_eq!(membership.address(NodeId(1)), None);
    }

    proptest! {
        #[test]
        fn damage_is_another_membership_or_a_typed_error(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..6),
        ) {
            let mut bytes = encoded(&replacing_three_by_four());
            for (at, change) in changes {
                let at = at.index(bytes.len());
                bytes[at] ^= change;
            }
            if let Ok(membership) = Membership::decode(&bytes) {
                prop_assert_eq!(encoded(&membership), bytes);
            }
        }
    }
}
