//! What a client and a shard say to each other after the handshake.
//!
//! - [`FrameKind::Submit`]: `count` blocks, nothing in the control section. Each block names its
//!   group, session and sequence number.
//! - [`FrameKind::Answers`]: `count` entries of 48 bytes, one for each block, in any order.
//! - [`FrameKind::Query`] / [`FrameKind::QueryReply`]: a 32-byte head, then the state machine's own
//!   bytes; the token ties them together.
//! - [`FrameKind::Status`] / [`FrameKind::StatusReply`]: empty / JSON.
//! - [`FrameKind::Admin`] / [`FrameKind::AdminReply`]: as a query; the bytes are JSON
//!   ([`super::admin`]).
//!
//! ```text
//! answer, 48 bytes
//!    0 u64 seq       of the block
//!    8 u64 first     log index of its first command; with Stale the number from which a session of
//!                    this client may begin, 0 = unknown; else 0
//!   16 u64 term      in which it was committed; 0 unless Ok
//!   24 u32 group
//!   28 u8  status
//!   29 u8  durability  1 written by a majority, 2 synced by a majority
//!   30 u16 flags     1 = this was a retry, answered from the session's table; 2 = refused at the
//!                    door: the copy that is answered was never proposed
//!   32 u32 duplicates  commands acknowledged as duplicates (SET_EVENT with a known event id)
//!   36 u32 rejected    commands that the state machine refused
//!   40 u32 hint      NotLeader: the leader's node id, 0 = unknown
//!   44 u32 epoch     recovery epoch of the place above; 0 unless Ok. Places are compared as
//!                    (epoch, index): after a loss an index can be used again under a higher epoch
//! ```
//!
//! ```text
//! question head, 32 bytes
//!    0 u32 group
//!    4 u8  status      of a reply: 0, or the refusal's
//!    5 u8  consistency of a question: 0 linearizable, 1 follower, 2 lease, 3 stale
//!    6 u16 zero
//!    8 u32 size        of the bytes that follow
//!   12 u32 hint        NotLeader: the leader's node id, 0 = unknown
//!   16 u64 index       of a reply: what the state machine had applied ...
//!   24 u32 epoch       ... in this recovery epoch
//!   28 u32 zero
//! ```
//!
//! [`FrameKind::Submit`]: super::frame::FrameKind::Submit
//! [`FrameKind::Answers`]: super::frame::FrameKind::Answers
//! [`FrameKind::Query`]: super::frame::FrameKind::Query
//! [`FrameKind::QueryReply`]: super::frame::FrameKind::QueryReply
//! [`FrameKind::Status`]: super::frame::FrameKind::Status
//! [`FrameKind::StatusReply`]: super::frame::FrameKind::StatusReply
//! [`FrameKind::Admin`]: super::frame::FrameKind::Admin
//! [`FrameKind::AdminReply`]: super::frame::FrameKind::AdminReply

use bytes::Bytes;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::frame::{Frame, FrameError, FrameKind, FrameWriter};
use crate::ids::{GroupId, Index, NodeId, Term};

/// Bytes of one answer.
pub const ANSWER_BYTES: usize = 48;
const _: () = assert!(size_of::<AnswerEntry>() == ANSWER_BYTES);
const _: () = assert!(size_of::<QueryHead>() == QUERY_HEAD_BYTES);

/// Bytes before a question or its answer.
pub const QUERY_HEAD_BYTES: usize = 32;

/// Answer flag: the block had been applied before; this is the first answer again.
pub const ANSWER_RETRY: u16 = 1;

/// Answer flag: refused before it was proposed. No log has this copy of the block, and none will.
pub const ANSWER_UNPROPOSED: u16 = 2;

/// Why a proposal or a question was not carried out. Typed from the shard to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// Ask the leader instead. The proposal's fate may be unknown, unless [`Answer::unproposed`] says
    /// otherwise: retry it with the same sequence number and it is applied once.
    #[error("not the leader of this group (leader: {0:?})")]
    NotLeader(Option<NodeId>),
    /// A queue is at its bound. Nothing happened; try again a little later.
    #[error("busy: a queue is full; try again a little later")]
    Busy,
    /// Over a limit of this cluster. Nothing happened; make it smaller.
    #[error("too large: over a limit of this cluster")]
    TooLarge,
    /// The group re-syncs after a loss. Nothing happened; ask another node.
    #[error("recovering: the group re-syncs after a loss")]
    Recovering,
    /// The node is stopping. Ask another node.
    #[error("the node is shutting down")]
    Shutdown,
    /// Malformed or not allowed. Do not repeat it.
    #[error("bad request: malformed, or not allowed here")]
    BadRequest,
    /// The disk is full or the log is at its limit. Nothing happened; free space and it resumes.
    #[error("read-only: the node's disk is full or its log is at its limit")]
    ReadOnly,
    /// The sequence number lies below what the session still waits for, or the session has expired
    /// or was dropped to make room for others. This copy of the block was not applied; if it was
    /// sent before, an earlier copy may have been. A session that numbers its blocks from
    /// `open_from` on is a new one (0 = this one is not over).
    #[error("stale: the session does not wait for this number, or is over; open a new one")]
    Stale { open_from: u64 },
    /// Commands of this session that had been acknowledged were lost when power failed on a majority
    /// without `wal_sync` (`possible_data_loss`). This block was not applied. Read back what is
    /// there, then go on in a new session.
    #[error(
        "the session's epoch changed: commands acknowledged before were lost with the power of a \
         majority; read back what is there and open a new session"
    )]
    SessionEpochChanged,
    /// What the reader has read from index `from` on was lost when power failed on a majority without
    /// `wal_sync`, or by an operator's word; the log goes on there in `epoch`. Forget it, and read on
    /// from there.
    #[error("truncated: what was read from index {from} on is lost, epoch {epoch} begins there")]
    Truncated { epoch: u32, from: Index },
    /// This node, or this shard of it, does not hold the group.
    #[error("no such group on this shard")]
    NoGroup,
}

impl Refused {
    /// Names of the reasons, for labels, at the places that [`Refused::kind`] gives.
    pub const REASONS: [&'static str; 11] = [
        "not_leader",
        "busy",
        "too_large",
        "recovering",
        "shutdown",
        "bad_request",
        "read_only",
        "stale",
        "no_group",
        "session_epoch_changed",
        "truncated",
    ];

    /// Whether the same, asked again a little later or elsewhere, may be carried out.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            Self::NotLeader(_) | Self::Busy | Self::Recovering | Self::Shutdown | Self::ReadOnly
        )
    }

    /// Place of this reason in [`Refused::REASONS`].
    pub fn kind(self) -> usize {
        match self {
            Self::NotLeader(_) => 0,
            Self::Busy => 1,
            Self::TooLarge => 2,
            Self::Recovering => 3,
            Self::Shutdown => 4,
            Self::BadRequest => 5,
            Self::ReadOnly => 6,
            Self::Stale { .. } => 7,
            Self::NoGroup => 8,
            Self::SessionEpochChanged => 9,
            Self::Truncated { .. } => 10,
        }
    }
}

/// How far an acknowledged command had come on a majority of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Durability {
    /// Handed to the kernel on a majority (`wal_sync = false`).
    Written = 1,
    /// On stable storage on a majority (`wal_sync = true`).
    Synced = 2,
}

/// Where an acknowledged block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub first: Index,
    pub term: Term,
    /// Recovery epoch of `first` (durability.md R9): with `first` it names the place for good.
    pub epoch: u32,
    pub durability: Durability,
    pub duplicates: u32,
    pub rejected: u32,
    pub retry: bool,
}

/// What became of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub group: GroupId,
    pub seq: u64,
    pub result: Result<Committed, Refused>,
    /// Refused at the door: this copy of the block reached no log, and never will. Other copies may
    /// have. Never set with a success.
    pub unproposed: bool,
}

impl Answer {
    /// What became of a block that was proposed.
    pub fn new(group: GroupId, seq: u64, result: Result<Committed, Refused>) -> Self {
        Self { group, seq, result, unproposed: false }
    }

    /// A block that was not proposed, and why.
    pub fn at_the_door(group: GroupId, seq: u64, refused: Refused) -> Self {
        Self { group, seq, result: Err(refused), unproposed: true }
    }
}

/// An answer as it lies on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AnswerEntry {
    seq: u64,
    first: u64,
    term: u64,
    group: u32,
    status: u8,
    durability: u8,
    flags: u16,
    duplicates: u32,
    rejected: u32,
    hint: u32,
    epoch: u32,
}

impl AnswerEntry {
    pub fn encode(answer: &Answer) -> Self {
        let mut entry = Self::new_zeroed_for(answer);
        match answer.result {
            Ok(done) => {
                entry.first = done.first.0;
                entry.term = done.term.0;
                entry.durability = done.durability as u8;
                entry.flags = if done.retry { ANSWER_RETRY } else { 0 };
                entry.duplicates = done.duplicates;
                entry.rejected = done.rejected;
                entry.epoch = done.epoch;
            }
            Err(refused) => {
                entry.status = status_of(refused);
                entry.flags = if answer.unproposed { ANSWER_UNPROPOSED } else { 0 };
                match refused {
                    Refused::NotLeader(hint) => entry.hint = NodeId::to_wire(hint),
                    Refused::Stale { open_from } => entry.first = open_from,
                    Refused::Truncated { epoch, from } => {
                        (entry.epoch, entry.first) = (epoch, from.0);
                    }
                    _ => {}
                }
            }
        }
        entry
    }

    fn new_zeroed_for(answer: &Answer) -> Self {
        Self {
            seq: answer.seq,
            first: 0,
            term: 0,
            group: answer.group.0,
            status: 0,
            durability: 0,
            flags: 0,
            duplicates: 0,
            rejected: 0,
            hint: 0,
            epoch: 0,
        }
    }

    /// `None` if a field has no meaning.
    pub fn decode(&self) -> Option<Answer> {
        let result = match self.status {
            0 => Ok(Committed {
                first: Index(self.first),
                term: Term(self.term),
                epoch: self.epoch,
                durability: match self.durability {
                    1 => Durability::Written,
                    2 => Durability::Synced,
                    _ => return None,
                },
                duplicates: self.duplicates,
                rejected: self.rejected,
                retry: self.flags & ANSWER_RETRY != 0,
            }),
            8 => Err(Refused::Stale { open_from: self.first }),
            11 => Err(Refused::Truncated { epoch: self.epoch, from: Index(self.first) }),
            status => Err(refused_of(status, self.hint)?),
        };
        let unproposed = result.is_err() && self.flags & ANSWER_UNPROPOSED != 0;
        Some(Answer { group: GroupId(self.group), seq: self.seq, result, unproposed })
    }
}

fn status_of(refused: Refused) -> u8 {
    match refused {
        Refused::NotLeader(_) => 1,
        Refused::Busy => 2,
        Refused::TooLarge => 3,
        Refused::Recovering => 4,
        Refused::Shutdown => 5,
        Refused::BadRequest => 6,
        Refused::ReadOnly => 7,
        Refused::Stale { .. } => 8,
        Refused::NoGroup => 9,
        Refused::SessionEpochChanged => 10,
        Refused::Truncated { .. } => 11,
    }
}

fn refused_of(status: u8, hint: u32) -> Option<Refused> {
    Some(match status {
        1 => Refused::NotLeader(NodeId::from_wire(hint)),
        2 => Refused::Busy,
        3 => Refused::TooLarge,
        4 => Refused::Recovering,
        5 => Refused::Shutdown,
        6 => Refused::BadRequest,
        7 => Refused::ReadOnly,
        8 => Refused::Stale { open_from: 0 },
        9 => Refused::NoGroup,
        10 => Refused::SessionEpochChanged,
        _ => return None,
    })
}

/// Writes a frame of answers. At most [`ANSWERS_PER_FRAME`] of them.
pub fn write_answers(out: &mut Vec<u8>, answers: &[AnswerEntry]) {
    for part in answers.chunks(ANSWERS_PER_FRAME) {
        let mut writer = FrameWriter::begin(out);
        part.iter().for_each(|answer| writer.entry(answer));
        writer.finish(FrameKind::Answers, part.len() as u32, 0);
    }
}

/// Bound on the answers in one frame, well inside the frame limit.
pub const ANSWERS_PER_FRAME: usize = 16_384;
const _: () = assert!(ANSWERS_PER_FRAME * ANSWER_BYTES + 32 <= super::frame::FRAME_BYTES_MAX);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct QueryHead {
    group: u32,
    status: u8,
    consistency: u8,
    zero16: u16,
    size: u32,
    hint: u32,
    index: u64,
    epoch: u32,
    zero32: u32,
}

/// What a reader may rely on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Consistency {
    /// Sees everything that was acknowledged before it was asked; answered by the leader, which makes
    /// sure that it still leads (dissertation §6.4).
    #[default]
    Linearizable = 0,
    /// As good, answered by whichever replica is asked, with the leader's help.
    Follower = 1,
    /// As good while the clocks keep the bound in the cluster's configuration, and then without a
    /// round trip; without `lease_reads` it is the same as `Linearizable`.
    Lease = 2,
    /// Whatever the replica has applied. The answer's [`Place`] says how far that is.
    Stale = 3,
}

impl Consistency {
    /// All of them, by their number.
    pub const ALL: [Self; 4] = [Self::Linearizable, Self::Follower, Self::Lease, Self::Stale];

    /// For labels and the command line, by number.
    pub const NAMES: [&'static str; 4] = ["linearizable", "follower", "lease", "stale"];
}

/// A place in a group's log for good: after a loss an index can be used again, under a higher
/// recovery epoch (durability.md R9). Ordered as the places are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub epoch: u32,
    pub index: Index,
}

/// A question to a group's state machine, or its answer: opaque to the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub token: u64,
    pub group: GroupId,
    /// Of a question.
    pub consistency: Consistency,
    /// Of an answer: how far the state machine was that gave it. Of a question: how far the reader has
    /// read.
    pub place: Place,
    pub result: Result<Bytes, Refused>,
}

/// Writes a question.
pub fn write_query(
    out: &mut Vec<u8>,
    token: u64,
    group: GroupId,
    consistency: Consistency,
    question: &[u8],
) {
    write_query_after(out, token, group, consistency, Place::default(), question);
}

/// Writes a question of someone who has read through `after`, and is to be told if that is lost.
pub fn write_query_after(
    out: &mut Vec<u8>,
    token: u64,
    group: GroupId,
    consistency: Consistency,
    after: Place,
    question: &[u8],
) {
    let (index, epoch, consistency) = (after.index.0, after.epoch, consistency as u8);
    let head = QueryHead { consistency, index, epoch, ..QueryHead::of(group, Ok(question)) };
    write_query_frame(out, FrameKind::Query, token, head, question);
}

/// Writes the answer to a question.
pub fn write_query_reply(
    out: &mut Vec<u8>,
    token: u64,
    group: GroupId,
    place: Place,
    result: Result<&[u8], Refused>,
) {
    let (index, epoch) = match result {
        Err(Refused::Truncated { epoch, from }) => (from.0, epoch),
        _ => (place.index.0, place.epoch),
    };
    let head = QueryHead { index, epoch, ..QueryHead::of(group, result) };
    write_query_frame(out, FrameKind::QueryReply, token, head, result.unwrap_or_default());
}

/// Writes an operator's command; `request` is JSON.
pub fn write_admin(out: &mut Vec<u8>, token: u64, group: GroupId, request: &[u8]) {
    let head = QueryHead::of(group, Ok(request));
    write_query_frame(out, FrameKind::Admin, token, head, request);
}

/// Writes what became of an operator's command.
pub fn write_admin_reply(
    out: &mut Vec<u8>,
    token: u64,
    group: GroupId,
    result: Result<&[u8], Refused>,
) {
    let head = QueryHead::of(group, result);
    write_query_frame(out, FrameKind::AdminReply, token, head, result.unwrap_or_default());
}

impl QueryHead {
    fn of(group: GroupId, result: Result<&[u8], Refused>) -> Self {
        let (status, hint) = match result {
            Ok(_) => (0, 0),
            Err(Refused::NotLeader(hint)) => (1, NodeId::to_wire(hint)),
            Err(refused) => (status_of(refused), 0),
        };
        let size = result.map_or(0, |bytes| bytes.len() as u32);
        let (group, consistency, zero16, zero32) = (group.0, 0, 0, 0);
        Self { group, status, consistency, zero16, size, hint, index: 0, epoch: 0, zero32 }
    }
}

fn write_query_frame(
    out: &mut Vec<u8>,
    kind: FrameKind,
    token: u64,
    head: QueryHead,
    bytes: &[u8],
) {
    let mut writer = FrameWriter::begin(out);
    writer.entry(&head);
    writer.control_bytes(bytes);
    writer.finish(kind, 1, token);
}

/// Reads a question or the answer to one.
pub fn read_query(frame: &Frame) -> Result<Query, FrameError> {
    let (head, rest) =
        QueryHead::read_from_prefix(&frame.control).map_err(|_| FrameError::BadEntry(0))?;
    if head.size as usize > rest.len() {
        return Err(FrameError::BadEntry(0));
    }
    let start = size_of::<QueryHead>();
    let result = match head.status {
        0 => Ok(frame.control.slice(start..start + head.size as usize)),
        11 => Err(Refused::Truncated { epoch: head.epoch, from: Index(head.index) }),
        status => Err(refused_of(status, head.hint).ok_or(FrameError::BadEntry(0))?),
    };
    let known = Consistency::ALL.get(usize::from(head.consistency));
    let consistency = *known.ok_or(FrameError::BadEntry(0))?;
    let place = Place { epoch: head.epoch, index: Index(head.index) };
    Ok(Query { token: frame.token, group: GroupId(head.group), consistency, place, result })
}

/// Writes a question about the shard.
pub fn write_status(out: &mut Vec<u8>, token: u64) {
    FrameWriter::begin(out).finish(FrameKind::Status, 0, token);
}

/// Writes its answer.
pub fn write_status_reply(out: &mut Vec<u8>, token: u64, json: &[u8]) {
    let mut writer = FrameWriter::begin(out);
    writer.control_bytes(json);
    writer.finish(FrameKind::StatusReply, json.len() as u32, token);
}

/// The JSON in a [`FrameKind::StatusReply`].
pub fn read_status_reply(frame: &Frame) -> Bytes {
    frame.control.slice(..(frame.count as usize).min(frame.control.len()))
}
