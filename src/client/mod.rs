//! The client: finds the leader of each group, keeps many blocks in flight, repeats what got lost
//! under its first sequence number, and completes every block exactly once.
//!
//! # Contract
//!
//! [`ClientCore`] decides everything and does nothing: no socket, clock or thread is named here
//! (nor a random source: jitter comes from a seed). A driver feeds it and does what it says:
//!
//! ```text
//!   caller ── stamp, submit, query, status ──▶ ┌────────────┐ ── done, replies ─────▶ caller
//!                                              │ ClientCore │
//!   driver ── connected, frame, sent,  ──────▶ └────────────┘ ── connect, send, close ▶ driver
//!             disconnected                       poll(now)
//! ```
//!
//! What goes in:
//!
//! - calls by the caller: [`ClientCore::submit`] (after [`ClientCore::stamp`] gave the numbers and
//!   [`ClientCore::room`] said that it fits), [`ClientCore::query`], [`ClientCore::status`];
//! - reports by the driver: [`ClientCore::connected`], [`ClientCore::disconnected`],
//!   [`ClientCore::frame`], [`ClientCore::sent`].
//!
//! After each batch of these, and when [`ClientCore::deadline`] has come, [`ClientCore::poll`] says
//! what to do. Batching follows from that: a link has one unfinished send, and what is submitted
//! meanwhile leaves together in the next.
//!
//! The driver owes: the buffers of one link leave in order and whole; each comes back by `sent` (or
//! [`ClientCore::recycle`]) once it has left or its connection has ended; bytes received become
//! frames by [`Frame::take`], and if that fails the connection is closed and reported as
//! disconnected. A connection the core asked to close needs no report. Reports about a connection
//! that is already over are ignored.
//!
//! What is never true: a tag completed twice, or not at all; two blocks of a group with one sequence
//! number; a repeated block with another number than the first time; a block sent to a second
//! cluster; one group's blocks held up because another group has no leader.
//!
//! # Which refusals end a block
//!
//! | answer | what is done |
//! |---|---|
//! | `NotLeader(hint)` | the hint at once, at most as often in a row as there are nodes; else the next node after a pause |
//! | `Busy`, `ReadOnly` | the same node after a pause |
//! | `Recovering`, `Shutdown`, connection lost, no answer for `resend_us` | the next node after a pause |
//! | `BadRequest`, `TooLarge`, `Stale`, `SessionEpochChanged`, `Truncated`, `NoGroup` | the end: [`ClientError::Refused`] |
//! | `Stale` with a number to open from (the cluster has forgotten the session) | a new session, in which every block goes on of which no copy can have been applied; the end for the others, **fate unknown** |
//! | no word at all for `doubt_us` from the node that has it | the next node, one block first; the node's late answer counts as well |
//! | nothing by `deadline_us` | the end: [`ClientError::Timeout`], **fate unknown** |
//! | every node refuses the handshake | the end: [`ClientError::Handshake`] |
//!
//! After a pause one block of the group asks the way, and its success calls the others.
//!
//! A session that has nothing to say for `keep_alive_us` says so, lest the cluster forget it.
//!
//! # Example
//!
//! ```
//! use ringraft::client::{ClientConfig, ClientCore, ClientOutput};
//! use ringraft::ids::{GroupId, Tick};
//!
//! let config = ClientConfig::new(["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"], 42);
//! let mut client = ClientCore::new(config, Tick(0));
//! let mut out = ClientOutput::default();
//! client.poll(Tick(0), &mut out);
//! assert_eq!(out.connect.len(), 3, "every node is asked who it is");
//! assert_eq!(client.room(GroupId(0)), 0, "and until one has answered, nothing is taken");
//! ```
//!
//! [`Frame::take`]: crate::wire::frame::Frame::take

mod answer;
mod core;
pub mod driver;
mod error;
pub mod handle;
mod link;
pub mod operator;
mod question;
mod route;
mod session;
pub mod status;
mod timer;
mod trouble;

#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use self::core::ClientCore;
pub use self::error::{ClientError, ClientFault, SubmitError};
use crate::ids::{GroupId, NodeId, Tick};
use crate::wire::client::{Committed, Consistency, Place};

/// Most nodes in a client's list.
pub const NODES_MAX: usize = 56;
/// Nodes that a client can learn of beside those of its list.
pub const LEARNED_MAX: usize = 8;
/// Most blocks in flight in one group: half of the window of numbers that the cluster remembers.
pub const IN_FLIGHT_MAX: u32 = 4096;
/// Most questions in flight.
pub const QUESTIONS_MAX: usize = 65_536;
/// A group that holds so many bytes takes no more blocks.
pub const GROUP_BYTES_MAX: usize = 64 << 20;
/// A link with so many bytes queued takes no more blocks.
pub const LINK_BYTES_MAX: usize = 16 << 20;
/// A send takes no further frame once it has so many bytes.
pub const SEND_BYTES: usize = 1 << 20;
/// A frame of blocks ends here (or after its one larger block), so that the node can begin with the
/// first frame of a send while the rest arrives.
pub const SUBMIT_FRAME_BYTES: usize = 256 << 10;

/// More than any node will have; a number from the network that sizes a table has a bound.
const SHARDS_MAX: u32 = 1024;
const GROUPS_MAX: u32 = 1 << 20;
const POOL_BUFFERS_MAX: usize = 64;
const _: () = assert!(
    (NODES_MAX + LEARNED_MAX) * SHARDS_MAX as usize <= 1 << 16,
    "a LinkId has 16 bits of slot"
);

/// One node to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// If given, no other node is accepted at the address; else it is learned.
    pub id: Option<NodeId>,
    /// `host:port` of the client port; opaque to the core.
    pub address: String,
}

/// What a client is told at its start. Times in µs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// 1 to [`NODES_MAX`] nodes of one cluster.
    pub nodes: Vec<NodeAddress>,
    /// 0: whichever cluster the first node belongs to.
    pub cluster: u128,
    /// Names the session in the cluster's tables. Not 0; random, so that no two clients share it.
    pub session: u64,
    /// A block or question is over after this long without success.
    pub deadline_us: u64,
    /// After this long without any word from a node that owes an answer another one is asked, at most
    /// `resend_us`: a leader that stands still resets no connection. Where answers take long by
    /// themselves it is four times what they take.
    pub doubt_us: u64,
    /// After this long without an answer another node is asked. Also the limit of a connect.
    pub resend_us: u64,
    /// First pause after a refusal or a lost link; doubled each time in a row, with jitter.
    pub backoff_min_us: u64,
    pub backoff_max_us: u64,
    /// Blocks in flight per group, 1 to [`IN_FLIGHT_MAX`] (cut to it).
    pub in_flight_max: u32,
    /// A session without blocks for this long tells the cluster that it is still there: shorter than
    /// what a cluster lets sessions rest (`cluster.store.session_idle_ms`); 0 = never.
    pub keep_alive_us: u64,
    /// Of the jitter.
    pub seed: u64,
}

impl ClientConfig {
    /// The defaults: deadline 10 s, asking elsewhere after 1 s, or 0.2 s of silence, pauses of 5 to 100 ms, 1,024 blocks
    /// in flight, a sign of life every 20 minutes.
    pub fn new<A: Into<String>>(addresses: impl IntoIterator<Item = A>, session: u64) -> Self {
        let node = |address: A| NodeAddress { id: None, address: address.into() };
        Self {
            nodes: addresses.into_iter().map(node).collect(),
            cluster: 0,
            session,
            deadline_us: 10_000_000,
            doubt_us: 200_000,
            resend_us: 1_000_000,
            backoff_min_us: 5_000,
            backoff_max_us: 100_000,
            in_flight_max: 1024,
            keep_alive_us: 20 * 60 * 1_000_000,
            seed: session,
        }
    }
}

/// Tag of what the core sends for itself. Callers do not use it.
const OWN_TAG: u64 = u64::MAX;

/// Tells the caller of the end of a block, unless it is the core's own.
fn finish(done: &mut Vec<Done>, end: Done) {
    if end.tag != OWN_TAG {
        done.push(end);
    }
}

/// One connection to one shard of one node. A new connection to it has a new id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(u32);

impl LinkId {
    /// A small number, the same for every connection to this shard of this node: for tables.
    pub fn slot(self) -> usize {
        (self.0 & 0xffff) as usize
    }
}

/// What [`BlockBuilder::finish`](crate::block::BlockBuilder::finish) wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub client: u64,
    pub seq: u64,
    pub pending: u32,
}

/// Who answers a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryTarget {
    /// Whoever leads the group.
    Leader,
    /// This node; if it cannot answer, that is the answer.
    Node(NodeId),
    /// The first node of the list that can be reached and answers: put the nearest one there.
    Any,
}

/// The end of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// As submitted.
    pub tag: u64,
    pub group: GroupId,
    /// As stamped, or as numbered in a session that took its place. A block that is refused for what
    /// it is (`TooLarge`, `BadRequest`) may give its number back to a later one.
    pub seq: u64,
    pub result: Result<Committed, ClientError>,
}

/// The end of a question: the state machine's bytes, or a status as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryDone {
    /// As asked.
    pub tag: u64,
    /// Of an answered query: what the state machine had applied.
    pub place: Place,
    pub result: Result<Bytes, ClientError>,
}

/// What the driver is to do, in this order, and what the caller is to know. Filled by
/// [`ClientCore::poll`], emptied by the driver, used again.
#[derive(Debug, Default)]
pub struct ClientOutput {
    /// Connections to close. No report is wanted.
    pub close: Vec<LinkId>,
    /// Connections to open, to these addresses.
    pub connect: Vec<(LinkId, String)>,
    /// Buffers to send. A buffer for a link that is in `close` is to be given back unsent.
    pub send: Vec<(LinkId, Vec<u8>)>,
    pub done: Vec<Done>,
    pub replies: Vec<QueryDone>,
}

impl ClientOutput {
    /// Empties it and keeps the memory. Buffers in `send` are better given back.
    pub fn clear(&mut self) {
        self.close.clear();
        self.connect.clear();
        self.send.clear();
        self.done.clear();
        self.replies.clear();
    }
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCounters {
    /// Blocks put into frames, repetitions included.
    pub blocks_sent: u64,
    /// Blocks and questions taken back to be sent again.
    pub retries: u64,
    /// Answers that moved a group to another node.
    pub redirects: u64,
    /// Connections that failed or were given up.
    pub links_lost: u64,
}
