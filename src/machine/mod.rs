//! State machines: what a group does with its committed commands.
//!
//! ```text
//! committed blocks ──▶ apply ──▶ Outcome (goes into the answer and the session's table)
//!                        │
//!                      state ──▶ query (reads) · digest (are the replicas equal?)
//!                        └─────▶ freeze ··· bytes ··· restore   (see `snapshot.rs`)
//! ```
//!
//! A state machine is deterministic: what it holds after a log prefix is a function of that prefix
//! alone. No clock, no randomness, no order of a randomly seeded map; times and cut-offs are data in
//! the commands. [`events::EventStore`] is the one that ships; [`register::RegisterMap`] is the
//! smallest one that is still useful, and the example for writing one's own.

pub mod events;
pub mod hash;
pub mod register;
pub mod shared;
pub mod snapshot;

use thiserror::Error;

pub use self::snapshot::{FrozenState, SnapshotError};
use crate::block::Block;
use crate::ids::Index;

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

/// One group's replicated state.
///
/// Order of calls: `apply` for every committed block of [`BlockKind::Commands`] in the order of the
/// log, each exactly once since `new` or `restore_finish`; `query`, `freeze` and the others at any
/// time between.
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

    /// The last index that was applied, if the machine keeps it. A snapshot whose state has seen more
    /// than its head says is none (bugs.md 18).
    fn applied_through(&self) -> Option<Index> {
        None
    }

    /// The state as it is now, to be written turn by turn while `apply` goes on. Must be cheap: it is
    /// called on the shard's thread, so it shares structure instead of copying it.
    fn freeze(&mut self) -> Result<Box<dyn FrozenState>, SnapshotError> {
        Err(SnapshotError::Unsupported)
    }

    /// Empties the state and makes it ready for the chunks of a snapshot. Until `restore_finish` has
    /// said `Ok` nothing else may be called; after an error the state machine must be dropped.
    fn restore_begin(&mut self) -> Result<(), SnapshotError> {
        Err(SnapshotError::Unsupported)
    }

    /// Takes the next bytes, cut anywhere. The work is bounded by their number, and memory grows by
    /// what has arrived, not by what the bytes announce.
    fn restore_chunk(&mut self, _bytes: &[u8]) -> Result<(), SnapshotError> {
        Err(SnapshotError::Unsupported)
    }

    /// All bytes were given. Afterwards the state machine behaves in everything as the one that was
    /// frozen did: digests, answers, and what later blocks do.
    fn restore_finish(&mut self) -> Result<(), SnapshotError> {
        Err(SnapshotError::Unsupported)
    }
}
