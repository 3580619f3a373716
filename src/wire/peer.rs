//! Messages between the same shard of two nodes: one frame carries those of many groups.
//!
//! ```text
//! entry, 64 bytes, in the control section; the frame's token is zero
//!    0 u32 group
//!    4 u8  kind       1 vote request, 2 vote reply, 3 append, 4 append reply, 5 append reject,
//!                     6 heartbeat, 7 heartbeat reply, 8 timeout now, 9 read index, 10 read reply,
//!                     11 snapshot offer, 12 snapshot chunk, 13 snapshot reply, 14 sleep?, 15 its
//!                     answer, 16 keep-alive: of no group, but of the whole shard (group and term
//!                     are zero), 17 groups that have ended: the same (echo is zero)
//!    5 u8  flags      1 pre-vote, 2 granted, 4 the voter is RECOVERING, 8 the leader asked for this
//!                     election (kind 1) or asleep (kind 15); others are refused
//!    6 u16 zero
//!    8 u32 blocks     of this append (or the one of a chunk), in the frame's block section, in the
//!                     order of the entries
//!   12 u32 incarnation  of the sender
//!   16 u32 echo       the receiver's incarnation as the sender knows it
//!   20 u32 zero
//!   24 u64 term
//!   32 u64 a, b, c, d the kind's own fields, in the order of [`Body`]
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::frame::{Frame, FrameError, FrameKind};
use crate::ids::{GroupId, Incarnation, Index, LogStart, Term};
use crate::raft::message::{Body, Message, Offer};

/// Bytes of one message, without its blocks.
pub const PEER_ENTRY_BYTES: usize = 64;
const _: () = assert!(size_of::<PeerEntry>() == PEER_ENTRY_BYTES);

/// No cluster lives to see it; a term near the end of its range would stop elections for good.
const TERM_MAX: u64 = u64::MAX / 2;
const _: () = assert!(crate::raft::message::CANNOT_USE <= TERM_MAX, "it must get through");

const FLAG_PRE: u8 = 1;
const FLAG_GRANTED: u8 = 2;
const FLAG_RECOVERING: u8 = 4;
const FLAG_ASLEEP: u8 = 8;
const KEEP_ALIVE: u8 = 16;
const ENDED: u8 = 17;
const FLAG_HANDED: u8 = 8;

/// The flags that a kind of message may have; 0 for those without.
const fn flags_of(kind: u8) -> u8 {
    match kind {
        1 => FLAG_PRE | FLAG_HANDED,
        2 => FLAG_PRE | FLAG_GRANTED | FLAG_RECOVERING,
        15 => FLAG_ASLEEP,
        _ => 0,
    }
}

/// A sign of life of a shard, for all its groups that sleep. Each number is used once a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Of the sender.
    pub incarnation: Incarnation,
    /// The receiver's as the sender knows it; `ZERO` = not known yet.
    pub echo: Incarnation,
    pub number: u64,
}

/// Places that one entry about ended groups speaks of.
pub const ENDED_PLACES: usize = 192;

/// Groups of a shard that have ended, of [`ENDED_PLACES`] places: a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedGroups {
    /// Of the sender.
    pub incarnation: Incarnation,
    /// The first place, divided by [`ENDED_PLACES`].
    window: u32,
    bits: [u64; 3],
}

impl EndedGroups {
    /// All of `places` lie in one window, and there is at least one.
    pub fn of(incarnation: Incarnation, places: &[usize]) -> Self {
        let window = (places[0] / ENDED_PLACES) as u32;
        let mut bits = [0; 3];
        for place in places.iter().map(|place| place % ENDED_PLACES) {
            bits[place / 64] |= 1 << (place % 64);
        }
        Self { incarnation, window, bits }
    }

    /// The places, ascending.
    pub fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, bits) = (self.window as usize * ENDED_PLACES, self.bits);
        (0..ENDED_PLACES)
            .filter(move |at| bits[at / 64] >> (at % 64) & 1 == 1)
            .map(move |at| first + at)
    }
}

/// A message as it lies on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PeerEntry {
    group: u32,
    kind: u8,
    flags: u8,
    zero16: u16,
    blocks: u32,
    incarnation: u32,
    echo: u32,
    zero32: u32,
    term: u64,
    fields: [u64; 4],
}

impl PeerEntry {
    /// The entry for `message`, with the number of blocks that travel beside it.
    pub fn encode(group: GroupId, message: &Message, blocks: u32) -> Self {
        let (kind, flags, fields) = match message.body {
            Body::VoteRequest { pre, handed, last_index, last_term } => {
                let flags = flag(pre, FLAG_PRE) | flag(handed, FLAG_HANDED);
                (1, flags, [last_index.0, last_term.0, 0, 0])
            }
            Body::VoteReply { pre, granted, recovering } => {
                let granted = flag(granted, FLAG_GRANTED) | flag(recovering, FLAG_RECOVERING);
                (2, flag(pre, FLAG_PRE) | granted, [0; 4])
            }
            Body::Append { prev_index, prev_term, commit, last } => {
                (3, 0, [prev_index.0, prev_term.0, commit.0, last.0])
            }
            Body::AppendReply { matched } => (4, 0, [matched.0, 0, 0, 0]),
            Body::AppendReject { prev_index, hint_index, hint_term } => {
                (5, 0, [prev_index.0, hint_index.0, hint_term.0, 0])
            }
            Body::Heartbeat { commit, context, last } => (6, 0, [commit.0, context, last.0, 0]),
            Body::HeartbeatReply { context } => (7, 0, [context, 0, 0, 0]),
            Body::Hibernate { last, round } => (14, 0, [last.0, round.into(), 0, 0]),
            Body::HibernateReply { round, asleep } => {
                (15, flag(asleep, FLAG_ASLEEP), [round.into(), 0, 0, 0])
            }
            Body::SnapshotOffer(Offer { start, size, checksum }) => {
                let last = u64::from(checksum) << 32 | u64::from(start.epoch);
                (11, 0, [start.index.0, start.term.0, size, last])
            }
            Body::SnapshotChunk { index, offset, size, checksum } => {
                (12, 0, [index.0, offset, size, u64::from(checksum)])
            }
            Body::SnapshotReply { index, offset } => (13, 0, [index.0, offset, 0, 0]),
            Body::TimeoutNow => (8, 0, [0; 4]),
            Body::ReadIndex { number } => (9, 0, [number, 0, 0, 0]),
            Body::ReadReply { number, index } => (10, 0, [number, index.0, 0, 0]),
        };
        Self {
            group: group.0,
            kind,
            flags,
            zero16: 0,
            blocks,
            incarnation: message.incarnation.0,
            echo: message.echo.0,
            zero32: 0,
            term: message.term.0,
            fields,
        }
    }

    /// The entry of a sign of life.
    pub fn keep_alive(keep_alive: &KeepAlive) -> Self {
        let KeepAlive { incarnation, echo, number } = *keep_alive;
        Self {
            group: 0,
            kind: KEEP_ALIVE,
            flags: 0,
            zero16: 0,
            blocks: 0,
            incarnation: incarnation.0,
            echo: echo.0,
            zero32: 0,
            term: 0,
            fields: [number, 0, 0, 0],
        }
    }

    /// The entry about ended groups.
    pub fn ended(ended: &EndedGroups) -> Self {
        let number = u64::from(ended.window);
        let zero = KeepAlive { incarnation: ended.incarnation, echo: Incarnation::ZERO, number };
        let [a, b, c] = ended.bits;
        Self { kind: ENDED, fields: [number, a, b, c], ..Self::keep_alive(&zero) }
    }

    /// What it says of ended groups, if it does.
    pub fn as_ended(&self) -> Option<EndedGroups> {
        let [window, a, b, c] = self.fields;
        let window = u32::try_from(window).ok()?;
        let incarnation = Incarnation(self.incarnation);
        let ended = EndedGroups { incarnation, window, bits: [a, b, c] };
        (*self == Self::ended(&ended)).then_some(ended)
    }

    /// The sign of life, if it is one.
    pub fn as_keep_alive(&self) -> Option<KeepAlive> {
        let keep_alive = KeepAlive {
            incarnation: Incarnation(self.incarnation),
            echo: Incarnation(self.echo),
            number: self.fields[0],
        };
        (*self == Self::keep_alive(&keep_alive)).then_some(keep_alive)
    }

    /// The group, the message and how many blocks belong to it; `None` if it is malformed.
    pub fn decode(&self) -> Option<(GroupId, Message, u32)> {
        let pre = self.flags & FLAG_PRE != 0;
        let granted = self.flags & FLAG_GRANTED != 0;
        let recovering = self.flags & FLAG_RECOVERING != 0;
        let [a, b, c, d] = self.fields;
        let body = match self.kind {
            1 => {
                let handed = self.flags & FLAG_HANDED != 0;
                Body::VoteRequest { pre, handed, last_index: Index(a), last_term: Term(b) }
            }
            2 => Body::VoteReply { pre, granted, recovering },
            3 => Body::Append {
                prev_index: Index(a),
                prev_term: Term(b),
                commit: Index(c),
                last: Index(d),
            },
            4 => Body::AppendReply { matched: Index(a) },
            5 => Body::AppendReject {
                prev_index: Index(a),
                hint_index: Index(b),
                hint_term: Term(c),
            },
            6 => Body::Heartbeat { commit: Index(a), context: b, last: Index(c) },
            7 => Body::HeartbeatReply { context: a },
            14 => Body::Hibernate { last: Index(a), round: u32::try_from(b).ok()? },
            15 => {
                let asleep = self.flags & FLAG_ASLEEP != 0;
                Body::HibernateReply { round: u32::try_from(a).ok()?, asleep }
            }
            8 => Body::TimeoutNow,
            9 => Body::ReadIndex { number: a },
            10 => Body::ReadReply { number: a, index: Index(b) },
            // No log lives to see such an index, and no disk such a file.
            11..=13 if a > TERM_MAX || b > TERM_MAX || c > TERM_MAX => return None,
            11 => Body::SnapshotOffer(Offer {
                start: LogStart { index: Index(a), term: Term(b), epoch: d as u32 },
                size: c,
                checksum: (d >> 32) as u32,
            }),
            12 => Body::SnapshotChunk {
                index: Index(a),
                offset: b,
                size: c,
                checksum: u32::try_from(d).ok()?,
            },
            13 => Body::SnapshotReply { index: Index(a), offset: b },
            _ => return None,
        };
        // A question without effect is not one that anybody was told to ask.
        let torn = self.flags & (FLAG_PRE | FLAG_HANDED) == FLAG_PRE | FLAG_HANDED;
        let strange = self.flags & !flags_of(self.kind) != 0 || torn;
        if strange || (self.blocks > 0 && !matches!(self.kind, 3 | 12)) || self.term > TERM_MAX {
            return None;
        }
        let message = Message {
            term: Term(self.term),
            incarnation: Incarnation(self.incarnation),
            echo: Incarnation(self.echo),
            body,
        };
        Some((GroupId(self.group), message, self.blocks))
    }
}

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

/// Checks that a frame is one of peers' messages.
pub fn expect_peer(frame: &Frame) -> Result<(), FrameError> {
    if frame.kind == FrameKind::Peer { Ok(()) } else { Err(FrameError::Unexpected(frame.kind)) }
}
