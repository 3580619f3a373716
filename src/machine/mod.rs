//! State machines: what a group does with its committed commands.
//!
//! ```text
//! committed blocks ──▶ apply ──▶ Outcome (goes into the answer and the session's table)
//!                        │
//!                      state ──▶ query (reads) · digest (are the replicas equal?) · snapshot
//! ```
//!
//! A state machine is deterministic: what it holds after a log prefix is a function of that prefix
//! alone. No clock, no randomness, no order of a randomly seeded map; times and cut-offs are data in
//! the commands. [`events::EventStore`] is the one that ships; [`register::RegisterMap`] is the
//! smallest one that is still useful, and the example for writing one's own.

pub mod events;
pub mod hash;
pub mod register;

use thiserror::Error;

use crate::block::Block;

/// What became of a block's commands. `applied + duplicates + rejected` is the block's count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Commands that took effect.
    pub applied: u32,
    /// Commands whose effect was there already (an event id seen before).
    pub duplicates: u32,
    /// Commands that the state machine refused: malformed, or over a replicated limit.
    pub rejected: u32,
}

/// Why a query has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    /// The bytes are not a query of this state machine.
    #[error("the query is malformed: {0}")]
    Malformed(&'static str),
    /// What the query names does not exist.
    #[error("there is no {0} of that name")]
    NotFound(&'static str),
}

/// Why a snapshot was not taken or not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// This state machine has no snapshots; it is rebuilt from the log.
    #[error("this state machine does not support snapshots")]
    Unsupported,
    /// The receiver of the chunks wants no more (superseded, or its disk failed).
    #[error("the snapshot was aborted")]
    Aborted,
    /// The bytes are not a snapshot of this state machine.
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
}

/// Takes a snapshot's bytes, in order, in chunks of the state machine's choosing.
pub trait SnapshotSink {
    /// Takes the next chunk; an error ends the snapshot.
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError>;
}

/// Gives a snapshot's bytes back, in order; the chunks need not be cut as they were written.
pub trait SnapshotSource {
    /// Appends the next chunk to `into`; `false` when the snapshot is complete.
    fn chunk(&mut self, into: &mut Vec<u8>) -> Result<bool, SnapshotError>;
}

/// One group's replicated state.
///
/// Order of calls: `apply` for every committed block of [`BlockKind::Commands`] in the order of the
/// log, each exactly once since `new` or `restore`; `query` and the others at any time between.
///
/// [`BlockKind::Commands`]: crate::block::BlockKind::Commands
pub trait StateMachine {
    /// Applies one block. Its command *i* has log index `block.first() + i`. Never fails: what
    /// cannot be done is counted as rejected, on every replica alike.
    fn apply(&mut self, block: &Block) -> Outcome;

    /// Appends the answer to `query` to `reply`. Both are opaque to the engine. On an error `reply`
    /// is as it was.
    fn query(&self, query: &[u8], reply: &mut Vec<u8>) -> Result<(), QueryError>;

    /// A number that is equal on all replicas that applied equal logs, and almost surely different
    /// when what they hold differs. Asked for often, hence kept up to date by `apply`.
    fn digest(&self) -> u64;

    /// Heap bytes held, for limits and metrics.
    fn memory_bytes(&self) -> u64;

    /// Writes the whole state. The engine does not call it yet: it replays the log.
    fn snapshot(&self, _sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        Err(SnapshotError::Unsupported)
    }

    /// Replaces the whole state by a snapshot's; on an error the state is unusable and must be
    /// dropped. The engine does not call it yet.
    fn restore(&mut self, _source: &mut dyn SnapshotSource) -> Result<(), SnapshotError> {
        Err(SnapshotError::Unsupported)
    }
}
