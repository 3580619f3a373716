//! What the members of a group say to each other. Small and `Copy`; blocks travel beside it.

use crate::ids::{Incarnation, Index, LogStart, Term};

/// One message of one group. Sender, receiver and group are known from where it is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// The sender's current term (for a pre-vote: the term it would campaign in).
    pub term: Term,
    /// The sender's incarnation.
    pub incarnation: Incarnation,
    /// The receiver's incarnation as the sender knows it; `ZERO` = not known yet. A leader drops
    /// replies whose echo is not its own incarnation (durability.md R5).
    pub echo: Incarnation,
    pub body: Body,
}

/// The kinds of message. §-numbers are those of the Raft paper (extended version).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// RequestVote (§5.2, §5.4.1). `pre` asks without changing anything (dissertation §9.6). `handed`:
    /// the leader itself asked for this election, so that voters that still hear it answer (§3.10
    /// there).
    VoteRequest { pre: bool, handed: bool, last_index: Index, last_term: Term },
    /// Answer to a `VoteRequest`; `term` is the voter's, also when it refuses. `recovering` marks the
    /// word of a voter that may have forgotten what it acknowledged (durability.md R6).
    VoteReply { pre: bool, granted: bool, recovering: bool },
    /// AppendEntries (§5.3); the blocks after `prev_index` travel beside it and may be none. `last`
    /// is the leader's own last index when it sent this: where a RECOVERING follower has to get
    /// (durability.md R5).
    Append { prev_index: Index, prev_term: Term, commit: Index, last: Index },
    /// The log agrees with the leader's through `matched`, durable (or written, `wal_sync = false`).
    AppendReply { matched: Index },
    /// The log does not hold `prev_index` with the leader's term. `hint_index`/`hint_term`: the
    /// highest position not above `prev_index` that could agree (end of §5.3, by term); or, above
    /// it, where the log begins, so that nothing could be compared.
    AppendReject { prev_index: Index, hint_index: Index, hint_term: Term },
    /// Keeps followers quiet and tells them what is committed (at most what they hold).
    /// `context` is given back in the reply: rounds of ReadIndex (dissertation §6.4). `last` as in
    /// `Append`.
    Heartbeat { commit: Index, context: u64, last: Index },
    /// Answer to a `Heartbeat`.
    HeartbeatReply { context: u64 },
    /// A heartbeat of a leader that has nothing to do: its log ends at `last`, with an entry of this
    /// term, and all of it is committed. Whoever has the same sleeps until something happens.
    Hibernate { last: Index, round: u32 },
    /// Answer to a `Hibernate`; with `asleep: false` also unasked: the sender woke, or never slept,
    /// and waits for heartbeats.
    HibernateReply { round: u32, asleep: bool },
    /// InstallSnapshot (§7), announced: the leader's log begins behind what the follower has. Asks how
    /// much of this snapshot the follower holds already.
    SnapshotOffer(Offer),
    /// Bytes of the snapshot of `index` that was offered, from `offset` on; they travel beside it.
    SnapshotChunk { index: Index, offset: u64, size: u64, checksum: u32 },
    /// The follower holds the first `offset` bytes of the snapshot of `index`, durable;
    /// [`CANNOT_USE`]: it cannot use that one.
    SnapshotReply { index: Index, offset: u64 },
    /// The leader asks the receiver to campaign at once (dissertation §3.10).
    TimeoutNow,
    /// A follower has reads up to `number` and asks from which index on they may be answered
    /// (dissertation §6.4).
    ReadIndex { number: u64 },
    /// The leader's answer: `index`, for all reads up to `number`.
    ReadReply { number: u64, index: Index },
}

/// In place of an offset in [`Body::SnapshotReply`]: the snapshot is whole and does not go with this
/// node's build or configuration. The largest offset that a message can have, and longer than any
/// snapshot: who does not know the word takes it for nothing.
pub const CANNOT_USE: u64 = u64::MAX / 2;

/// A snapshot, named: two with equal names have equal bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Offer {
    /// What it stands for.
    pub start: LogStart,
    /// All of it, bytes.
    pub size: u64,
    /// Of everything in it.
    pub checksum: u32,
}
