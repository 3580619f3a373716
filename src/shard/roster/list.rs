//! The list of a shard's groups, as its first group replicates it: which were made and with whom, and
//! which have ended. It changes only as entries are applied, and is part of that group's snapshots.
//!
//! ```text
//! an entry's body, and each item of the list in a snapshot
//!    0 u32 what     1 groups are made, 2 a group ends
//!    4 u32 place    of the (first) group: group = place x shards + shard
//!    8 u32 count    groups made, at places that follow each other; 1 for an end
//!   12 u32 size     bytes of all this, a multiple of 8
//!   16 u64 request  who asked: the same one again is the same creation; 0 = nobody in particular
//!   24              the first configuration of the groups made, as in an entry of membership
//! ```
//!
//! Places are used in ascending order and never twice: what ends stays in the list. So an entry that
//! comes twice, or a second creation at the same place by a leader who did not know of the first one,
//! changes nothing.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::block::{Block, BlockKind};
use crate::ids::GroupId;
use crate::machine::hash::mix_bytes;
use crate::machine::snapshot::{Fields, put_u32s, put_u64s};
use crate::membership::Membership;

/// Before the membership.
const HEAD_BYTES: usize = 24;
const MADE: u32 = 1;
const ENDED: u32 = 2;
/// Groups that one entry makes at most.
pub const MADE_AT_ONCE_MAX: u32 = 1024;
/// Places that a shard has at most, those of groups that have ended included.
pub const PLACES_MAX: u32 = 1 << 20;

/// What an entry changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Make(Made),
    /// The group at this place ends.
    End(u32),
}

/// Groups that one entry made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Of the first of them.
    pub place: u32,
    pub count: u32,
    /// See the module.
    pub request: u64,
    /// The configuration that they begin with.
    pub members: Membership,
}

impl Made {
    fn places(&self) -> std::ops::Range<u32> {
        self.place..self.place.saturating_add(self.count)
    }
}

impl Change {
    /// The entry that says so, in the log of the shard's first group.
    pub fn block(&self, group: GroupId) -> Block {
        let mut body = Vec::new();
        self.encode(&mut body);
        Block::special(group, BlockKind::Roster, Bytes::from(body))
    }

    /// What an entry says; `None`: nothing that this version knows.
    pub fn of(block: &Block) -> Option<Self> {
        if block.kind() != BlockKind::Roster {
            return None;
        }
        let (change, rest) = Self::decode(block.body())?;
        rest.is_empty().then_some(change)
    }

    fn encode(&self, into: &mut Vec<u8>) {
        let start = into.len();
        let (what, place, count, request) = match self {
            Self::Make(made) => (MADE, made.place, made.count, made.request),
            Self::End(place) => (ENDED, *place, 1, 0),
        };
        put_u32s(into, &[what, place, count, 0]);
        put_u64s(into, &[request]);
        if let Self::Make(made) = self {
            made.members.encode(into);
        }
        let size = (into.len() - start) as u32;
        into[start + 12..start + 16].copy_from_slice(&size.to_le_bytes());
    }

    /// The first change in `bytes`, and what follows it.
    fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let mut head = Fields(bytes.get(..HEAD_BYTES)?);
        let (what, place, count, size) = (head.u32(), head.u32(), head.u32(), head.u32() as usize);
        let request = head.u64();
        let (item, rest) = bytes.split_at_checked(size)?;
        let members = item.get(HEAD_BYTES..)?;
        if place >= PLACES_MAX || !(1..=MADE_AT_ONCE_MAX).contains(&count) {
            return None;
        }
        let change = match what {
            MADE => {
                let members = Membership::decode(members).ok().filter(|m| !m.voters.is_empty())?;
                Self::Make(Made { place, count, request, members })
            }
            ENDED if (count, request) == (1, 0) && members.is_empty() => Self::End(place),
            _ => return None,
        };
        Some((change, rest))
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupList {
    /// By place.
    made: Vec<Made>,
    ended: BTreeSet<u32>,
}

impl GroupList {
    /// Nothing was ever changed: the groups are those of the configuration.
    pub fn is_empty(&self) -> bool {
        self.made.is_empty() && self.ended.is_empty()
    }

    /// Entries that have changed it. It grows with each change.
    pub fn changes(&self) -> usize {
        self.made.len() + self.ended.len()
    }

    /// The place behind the last group that was made here; 0 if none was.
    pub fn next_place(&self) -> u32 {
        self.made.last().map_or(0, |made| made.places().end)
    }

    /// The creation of the group at a place; `None`: it is not one that was made.
    pub fn maker(&self, place: u32) -> Option<&Made> {
        let after = self.made.partition_point(|made| made.place <= place);
        self.made[..after].last().filter(|made| made.places().contains(&place))
    }

    /// The creation that a request has brought about.
    pub fn made_for(&self, request: u64) -> Option<&Made> {
        let mut newest_first = self.made.iter().rev();
        newest_first.find(|made| request != 0 && made.request == request)
    }

    pub fn has_ended(&self, place: u32) -> bool {
        self.ended.contains(&place)
    }

    /// Places of groups that have ended, ascending.
    pub fn ended(&self) -> impl Iterator<Item = u32> + '_ {
        self.ended.iter().copied()
    }

    /// Applies an entry; what it says a second time, or too late, changes nothing. The digest of the
    /// list goes on from `digest`.
    pub fn apply(&mut self, change: &Change, digest: u64) -> u64 {
        let changed = match change {
            Change::Make(made) => self.make(made),
            Change::End(place) => self.ended.insert(*place),
        };
        if !changed {
            return digest;
        }
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        mix_bytes(digest, &bytes)
    }

    fn make(&mut self, made: &Made) -> bool {
        let fresh = made.place >= self.next_place();
        if fresh {
            self.made.push(made.clone());
        }
        fresh
    }

    /// For a snapshot: every change that is left of the list.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.made.iter().for_each(|made| Change::Make(made.clone()).encode(&mut bytes));
        self.ended().for_each(|place| Change::End(place).encode(&mut bytes));
        bytes
    }

    /// Back from a snapshot. `None`: no list is written like this.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut list = Self::default();
        while !bytes.is_empty() {
            let (change, rest) = Change::decode(bytes)?;
            let in_order = match &change {
                Change::Make(made) => list.ended.is_empty() && list.make(made),
                Change::End(place) => list.ended.last() < Some(place) && list.ended.insert(*place),
            };
            if !in_order {
                return None;
            }
            bytes = rest;
        }
        Some(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    fn made(place: u32, count: u32, request: u64) -> Change {
        let members = Membership::of_voters(vec![NodeId(1), NodeId(3)]);
        Change::Make(Made { place, count, request, members })
    }

    fn list(changes: &[Change]) -> (GroupList, u64) {
        let mut list = GroupList::default();
        let digest = changes.iter().fold(0, |digest, change| list.apply(change, digest));
        (list, digest)
    }

    #[test]
    fn what_is_said_twice_or_too_late_changes_nothing() {
        let once = list(&[made(4, 2, 9), Change::End(4)]);
        let twice =
            list(&[made(4, 2, 9), made(4, 2, 9), Change::End(4), Change::End(4), made(5, 9, 8)]);
        assert_eq!(once, twice);
        assert_eq!(once.0.next_place(), 6);
        assert!(once.0.has_ended(4) && !once.0.has_ended(5));
    }

    #[test]
    fn a_request_and_a_place_find_their_creation() {
        let (list, _) = list(&[made(4, 2, 9), made(8, 1, 10), made(9, 1, 0)]);
        assert_eq!(list.made_for(9).map(|made| made.place), Some(4));
        assert_eq!(list.made_for(0), None);
        let maker = |place| list.maker(place).map(|made| made.request);
        assert_eq!([3, 4, 5, 6, 8].map(maker), [None, Some(9), Some(9), None, Some(10)]);
    }

    #[test]
    fn a_snapshot_of_the_list_is_the_list_and_nothing_else_is_one() {
        let changes = [made(4, 2, 9), made(8, 1, 10), Change::End(2), Change::End(8)];
        let (full, _) = list(&changes);
        let bytes = full.encode();
        assert_eq!(GroupList::decode(&bytes), Some(full));
        assert_eq!(GroupList::decode(&[]), Some(GroupList::default()));
        for cut in 1..bytes.len() {
            let whole = GroupList::decode(&bytes[..cut]);
            assert!(whole.is_none_or(|list| list.changes() < changes.len()), "cut at {cut}");
        }
        let item = |change: &Change| {
            let mut bytes = Vec::new();
            change.encode(&mut bytes);
            bytes
        };
        let back = [item(&Change::End(8)), item(&Change::End(2))].concat();
        assert_eq!(GroupList::decode(&back), None);
        for change in [made(PLACES_MAX, 1, 0), made(1, 0, 0), made(1, MADE_AT_ONCE_MAX + 1, 0)] {
            assert_eq!(GroupList::decode(&item(&change)), None, "{change:?}");
        }
    }

    #[test]
    fn an_entry_says_what_was_meant() {
        for change in [made(4, 2, 9), Change::End(7)] {
            assert_eq!(Change::of(&change.block(GroupId(1))), Some(change));
        }
        assert_eq!(Change::of(&Block::noop(GroupId(1))), None);
    }
}
