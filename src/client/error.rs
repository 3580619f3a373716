//! What can go wrong for a caller of the client, each with what to do about it.

use thiserror::Error;

use crate::ids::{GroupId, NodeId};
use crate::wire::client::Refused;
use crate::wire::frame::FrameError;
use crate::wire::hello::{HelloError, Refusal};

/// The end of a block or a question that did not succeed. Never given before every retry that could
/// help was made within the deadline.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// The cluster refused it and a retry would be refused again. A block was not applied; only of
    /// `Stale` the fate is unknown: it was sent more than once, and the cluster has forgotten the
    /// session meanwhile.
    #[error("refused: {0}")]
    Refused(Refused),
    /// The deadline passed first. **A block's fate is unknown**: it may have been applied, or may
    /// yet be until the next block of its group is. To know, read back; to repeat it without a
    /// check is to risk applying it twice.
    #[error("no answer within the deadline; the fate is unknown: read back before repeating it")]
    Timeout,
    /// No node takes this client. Mend what it says, then start a new client.
    #[error("no node takes this client: {0}")]
    Handshake(Refusal),
    /// The one node that was asked cannot be reached; another may answer.
    #[error("the node cannot be reached ({reason}): ask another node, or look at this one")]
    Unreachable { reason: String },
}

/// Why the client does not take a block or a question. Nothing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// No node has told the number of groups and shards yet. Wait until `groups()` is known.
    #[error("not connected to any node yet: wait for the first handshake")]
    NotReady,
    /// The group's window is full. Wait for a completion, then `room` says how many fit.
    #[error("the window of this group is full: wait for a completion")]
    Full,
    #[error("no group {0} in this cluster")]
    NoGroup(GroupId),
    #[error("no shard {0} on the nodes of this cluster")]
    NoShard(u32),
    /// Compare with the list of nodes the client was given.
    #[error("node {0} is not among those this client knows")]
    NoNode(NodeId),
    /// Blocks are submitted in the order of their stamps, each once.
    #[error("the block is not stamped for this place: sequence number {expected} is next")]
    WrongStamp { expected: u64 },
    #[error("a question of {0} bytes is longer than a block may be")]
    TooLarge(usize),
    /// See [`ClientError::Handshake`].
    #[error("no node takes this client: {0}")]
    Handshake(Refusal),
}

/// Why a connection was given up. For the log: the core has already routed around it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientFault {
    #[error(transparent)]
    Handshake(#[from] HelloError),
    /// The node does not take this client, or this client not the node.
    #[error("handshake refused: {0}")]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the node answers block {seq} of {group}, which was never sent")]
    Unasked { group: GroupId, seq: u64 },
    /// The node said goodbye, with its reason.
    #[error("closed by the node: {0}")]
    Closed(String),
}
