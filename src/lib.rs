//! Ringraft: a batched multi-Raft replication engine for Linux.
//!
//! One reactor a core on io_uring; each reactor (a *shard*) owns many independent Raft groups, one
//! shared write-ahead log and its own connections. Nothing on the hot path is shared between cores.
//!
//! # The pipeline
//!
//! ```text
//!            frame of blocks                 appends (one frame a peer and turn)
//!   client ───────────────────▶ leader's shard ─────────────────────▶ followers' shards
//!                               │  turn: timers → propose → settle          │
//!                               │        → stage + one flush → gather       │ the same turn
//!                               ▼                                           ▼
//!                        wal (O_DSYNC write)                         wal (O_DSYNC write)
//!                               │ own write durable                         │ reply, held until the
//!                               ▼                                           ▼ append is durable
//!                        commit = what a majority has ◀──────────────── AppendReply
//!                               │
//!                               ▼
//!   client ◀─────────── apply → answer (index, term, durability)
//!           frame of answers
//! ```
//!
//! A block of commands is encoded once, by the client. The leader stamps 64 bytes of it; its body is
//! the same refcounted memory until it is gathered into the log's buffer and each peer's buffer.
//!
//! # The layering rule
//!
//! ```text
//! cli → server | client | load → runtime → shard → snapshot → { wal, raft, machine, wire } → block → ids
//! ```
//!
//! A module may use only what stands to its right ([`wire`] also names the types of
//! [`raft::message`]; [`checksum`], [`rng`], [`membership`] and [`metrics`] stand beside [`ids`]; of its
//! neighbours [`snapshot`] uses only [`machine`]). [`shard`] and everything right of it know
//! no socket, file, clock, thread, random source, executor or `async`: time comes in as an integer,
//! randomness as a seed, bytes as `Bytes`. Every decision about order (when may I acknowledge, vote,
//! delete) is made there, so that a test drives the very code that ships. [`runtime`] moves bytes and
//! reports completions.
//!
//! # Invariants, and where they are kept
//!
//! | never | kept in |
//! |---|---|
//! | an acknowledgement before a majority has the block where its rule wants it | [`shard`] (`group`, `apply`), [`raft`] (`leader`) |
//! | a vote, or a message of a new term, before (term, vote) is durable | [`raft`] (`send`), [`shard`] (`group`) |
//! | two votes in one term, a term that falls | [`raft`] (`issue_hard_state`), [`wal`] (`index`) |
//! | a committed entry replaced | [`raft::log`] (`truncate`) |
//! | an entry of an older term committed by counting | [`raft`] (`advance_commit`) |
//! | the leader counted for what its own disk does not hold | [`raft::log`] (`durable`) |
//! | *durable* moving over a hole, or past an unsynced flush | [`wal`] (`durability`) |
//! | anything promised after the log's first error | [`wal`] (`complete`), [`shard`] (`turn`) |
//! | damaged bytes below the durable mark cut off as a torn tail | [`wal`] (`recovery`) |
//! | a member that may have forgotten what it acknowledged, counted like the others | [`raft`] (`recovering`, [`raft::quorum`]), `wal::BootRecord` |
//! | a loss that is possible and not told | [`raft`] (`begin_epoch`), [`shard`] (`apply`) |
//! | a block applied twice for one sequence number | [`shard::sessions`] |
//! | a part, a mixture or a damaged byte taken for a snapshot | [`snapshot`] (`reader`) |
//! | a log cut before the snapshot that stands for the rest is published, or one published ahead of the durable log | [`shard::snapshots`] (`take`) |
//! | a group made or ended but by a committed entry, or one that has ended come back | [`shard::roster`] |
//! | a state that is partly of a snapshot and partly not | [`shard::snapshots`] (`receive`) |
//! | a queue, window or buffer without a bound | [`shard`], [`client`], [`config`] |
//!
//! The whole list, with functions and tests: [`docs::invariants`].

pub mod block;
pub mod checksum;
pub mod cli;
pub mod client;
pub mod config;
pub mod docs;
pub mod ids;
pub mod load;
pub mod machine;
pub mod membership;
pub mod metrics;
#[doc(hidden)]
pub mod mutants;
pub mod raft;
pub mod rng;
pub mod runtime;
pub mod server;
pub mod shard;
pub mod sim;
pub mod snapshot;
pub mod wal;
pub mod wire;
