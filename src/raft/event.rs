//! What goes into a group.

use super::{ChangeRefused, Message};
use crate::block::Block;
use crate::ids::{Incarnation, Index, LogStart, NodeId, Seq, Tick};
use crate::membership::{Membership, Step};

/// What can happen to a group. Blocks are lent in a vector and drained, so that its memory is reused.
#[derive(Debug)]
pub enum Event<'a> {
    /// The deadline is reached. Harmless when early.
    Timeout,
    /// All proposals of a turn. What is taken on is drained from the front, in order; what is left
    /// was refused: this node does not lead, or the leader's uncommitted bytes are at their limit.
    Propose {
        blocks: &'a mut Vec<Block>,
    },
    /// An operator's change of who takes part (§6). `answer` is set: the index of the entry that
    /// begins it, or why not. `force`: also if no quorum of voters answers, before or after.
    ProposeMembership {
        steps: &'a [Step],
        force: bool,
        answer: &'a mut Option<Result<Index, ChangeRefused>>,
    },
    /// A message from a peer; `blocks` are those of an `Append` and are drained.
    Receive {
        from: NodeId,
        message: Message,
        blocks: &'a mut Vec<Block>,
    },
    /// All persists through `seq` are durable (or written, where the group does not sync).
    Persisted {
        seq: Seq,
    },
    /// The state machine has applied everything through `index`.
    Applied {
        index: Index,
    },
    /// A snapshot of `through` or more is published: the log may begin behind it.
    Compacted {
        through: Index,
    },
    /// A snapshot that this term's leader sent has arrived whole, is published, and stands for the
    /// log through `start`, under `membership`; the state machine has it. Ask [`Raft::wants_snapshot`](super::Raft::wants_snapshot) first.
    Installed {
        start: LogStart,
        membership: Membership,
    },
    /// The snapshot that [`Ready::installs`](super::Ready::installs) asked for cannot be sent now: tried again later.
    SnapshotFailed {
        to: NodeId,
    },
    /// The answer to a [`Fetch`](super::Fetch): blocks from the one that holds `from` on. None = the read failed
    /// and is tried again after an rpc timeout.
    Fetched {
        to: NodeId,
        from: Index,
        blocks: &'a mut Vec<Block>,
    },
    /// A connection to the peer stands and its handshake named this incarnation.
    PeerConnected {
        peer: NodeId,
        incarnation: Incarnation,
    },
    /// Messages under way to and from the peer are lost.
    PeerDisconnected {
        peer: NodeId,
    },
    /// Nothing was heard of the peer's shard for an election timeout, or it is heard again. Only
    /// sleeping groups depend on it: the others have their own timers.
    PeerSilent {
        peer: NodeId,
    },
    PeerHeard {
        peer: NodeId,
    },
    /// A group that sleeps is about to be told something. `by`: whose message it is; `heard`: when
    /// the shards of the others were last heard. Nothing to a group that is awake.
    Wake {
        by: Option<NodeId>,
        heard: &'a [(NodeId, Tick)],
    },
    /// Reads up to this number want an index from which on they may be answered; numbers grow.
    /// Answered in [`Ready::reads`](super::Ready::reads), perhaps late, and with a leader's help if this node follows;
    /// never while nobody leads.
    ReadIndex {
        number: u64,
    },
    /// This leader is to hand over to `to`. [`Raft::may_transfer`](super::Raft::may_transfer) says whether it will try.
    Transfer {
        to: NodeId,
    },
}
