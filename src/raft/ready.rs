//! What a group wants done. One `Ready` is shared by all groups of a turn: filled by
//! [`Raft::handle`](super::Raft::handle), carried out by the shard, cleared and used again.
//!
//! Blocks lie once in an arena ([`Ready::blocks`]); what must be logged and what must be sent name
//! ranges of it, so that two followers and the log share one copy.

use std::ops::Range;

use super::message::{Message, Offer};
use crate::block::Block;
use crate::ids::{GroupId, HardState, Index, LogStart, NodeId, Seq, Term};
use crate::membership::Membership;

/// Indices into [`Ready::blocks`].
pub type BlockRange = Range<u32>;

/// Everything the groups of a turn asked for, in the order in which they asked.
#[derive(Debug, Default)]
pub struct Ready {
    /// Arena of this turn's blocks.
    pub blocks: Vec<Block>,
    /// To be logged, in this order within a group.
    pub persists: Vec<Persist>,
    /// To be sent, each not before `after` is persisted.
    pub messages: Vec<Outbound>,
    /// Blocks needed that are no longer in memory; answered by `Event::Fetched`.
    pub fetches: Vec<Fetch>,
    /// Snapshots to send, and what became known of those under way, in order.
    pub installs: Vec<Install>,
    /// Commit indices that moved.
    pub committed: Vec<Committed>,
    /// Changes of role, term or leader, with the reason.
    pub transitions: Vec<Transition>,
    /// Elections after which acknowledged commands may be missing.
    pub losses: Vec<PossibleLoss>,
    /// Configurations that are in use from now on, committed or not.
    pub memberships: Vec<GroupMembership>,
    /// Reads that may be answered.
    pub reads: Vec<ReadIndex>,
}

impl Ready {
    /// Empties it and keeps the memory.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.persists.clear();
        self.messages.clear();
        self.fetches.clear();
        self.installs.clear();
        self.committed.clear();
        self.transitions.clear();
        self.losses.clear();
        self.memberships.clear();
        self.reads.clear();
    }

    /// True when nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.persists.is_empty()
            && self.messages.is_empty()
            && self.fetches.is_empty()
            && self.installs.is_empty()
            && self.committed.is_empty()
            && self.transitions.is_empty()
            && self.losses.is_empty()
            && self.memberships.is_empty()
            && self.reads.is_empty()
    }

    /// The blocks that a persist or a message names.
    pub fn slice(&self, range: &BlockRange) -> &[Block] {
        &self.blocks[range.start as usize..range.end as usize]
    }
}

/// One thing to log. `seq` counts a group's persists from 1 without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    pub group: GroupId,
    pub seq: Seq,
    pub op: PersistOp,
}

/// What to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PersistOp {
    /// Always synced (durability.md R1).
    HardState(HardState),
    /// Contiguous blocks. `truncates`: the first one replaces entries logged before, from its index
    /// on; such a record is always synced (R1).
    Append { blocks: BlockRange, truncates: bool },
    /// A snapshot was installed: the log begins behind `start`, without anything logged before.
    /// Always synced.
    Begin(LogStart),
}

/// One message to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    pub group: GroupId,
    pub to: NodeId,
    /// Must not leave before this persist of the group is durable (or written). `Seq::ZERO`: at once.
    pub after: Seq,
    pub message: Message,
    /// The blocks of an `Append`; empty otherwise.
    pub blocks: BlockRange,
}

/// A request to read logged blocks from `from` on, at least one, at most about `bytes_max` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    pub group: GroupId,
    /// The follower that needs them.
    pub to: NodeId,
    pub from: Index,
    pub through: Index,
    pub bytes_max: u32,
}

/// What is to be done about a snapshot between this node and a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Install {
    pub group: GroupId,
    pub peer: NodeId,
    pub step: InstallStep,
}

/// See [`Install`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallStep {
    /// This leader's log begins behind what the peer needs: send the newest snapshot, or
    /// the one that the peer has a part of. Comes again with every heartbeat until the peer has it.
    Send,
    /// The peer holds so many bytes of the snapshot of `index`.
    Held { index: Index, offset: u64 },
    /// The peer cannot use the snapshot of `index`.
    Refused { index: Index },
    /// The peer needs no snapshot from this node (any more).
    Stop,
    /// The leader offers a snapshot that is wanted.
    Offered(Offer),
    /// It sent a part: the body of [`Ready::blocks`]`[block]`.
    Chunk { index: Index, offset: u64, size: u64, checksum: u32, block: u32 },
}

/// A commit index moved to `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub group: GroupId,
    pub index: Index,
}

/// A leader was elected by voters of whom so many had lost power that they may all have forgotten
/// the same acknowledged commands (durability.md R6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PossibleLoss {
    pub group: GroupId,
    /// The new leader's term.
    pub term: Term,
    /// The group's recovery epoch from this leader's no-op on.
    pub epoch: u32,
}

/// The configuration that a group uses now (§6: from the moment its entry is in the log).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMembership {
    pub group: GroupId,
    pub membership: Membership,
}

/// The group's reads up to number `through` may be answered once `index` is applied here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadIndex {
    pub group: GroupId,
    pub through: u64,
    pub index: Index,
}

/// What a node is in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Follower,
    /// Asks whether it could win, without raising its term (dissertation §9.6).
    PreCandidate,
    Candidate,
    Leader,
}

/// A change worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    pub group: GroupId,
    pub term: Term,
    pub role: Role,
    pub leader: Option<NodeId>,
    /// For people: "election timeout", "higher term", "no quorum for an election timeout" …
    pub reason: &'static str,
}
