//! What a state machine needs to be snapshotted while it goes on applying.
//!
//! ```text
//! machine ── freeze ──▶ FrozenState ── next_chunk … next_chunk ──▶ bytes, turn by turn
//!    │                       ┊ shares what has not changed
//!    └── apply, apply …      ┊ what changes is copied first, in small pieces
//!
//! bytes ──▶ restore_begin · restore_chunk … restore_chunk · restore_finish ──▶ another machine
//! ```
//!
//! The pieces in which bytes are given back need not be those in which they were taken: [`Intake`]
//! puts an item together that was cut.

use thiserror::Error;

/// Why a snapshot was not taken or not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// This state machine has no snapshots; it is rebuilt from the log.
    #[error("this state machine does not support snapshots")]
    Unsupported,
    /// Written by another version of the state machine.
    #[error("the state is of version {0}, which this build does not read")]
    Version(u32),
    /// Its limits are not those of this replica: it would go on differently.
    #[error("the snapshot was taken under other limits than this node is configured with")]
    OtherLimits,
    /// The bytes are not a snapshot of this state machine.
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
}

/// A state as it was at one index, whatever its machine applied since.
///
/// May outlive its machine, and several of one machine may exist. Dropping it half-way is fine and
/// gives its memory back.
pub trait FrozenState {
    /// Appends the next bytes, about `budget_bytes` of them: at least one item if any is left, and at
    /// most one item beyond the budget. `false`: that was the last.
    fn next_chunk(&mut self, into: &mut Vec<u8>, budget_bytes: usize) -> bool;

    /// Heap bytes of state that the machine has given up since and that only this still holds. Walks
    /// what is left to write: for metrics and tests.
    fn memory_bytes(&self) -> u64;
}

/// Puts items together from pieces that were cut anywhere.
#[derive(Debug, Default)]
pub struct Intake {
    /// The beginning of an item whose rest has not come.
    part: Vec<u8>,
    /// The item in `part` was handed out.
    taken: bool,
}

impl Intake {
    /// The next `size` bytes, off the front of `input`. `None`: all of `input` was taken, and it was
    /// not enough. Memory grows by what has arrived, never by what was announced.
    pub fn take<'a, 'i: 'a>(&'a mut self, size: usize, input: &mut &'i [u8]) -> Option<&'a [u8]> {
        if std::mem::take(&mut self.taken) {
            self.part.clear();
        }
        if self.part.is_empty()
            && let Some((item, rest)) = input.split_at_checked(size)
        {
            *input = rest;
            return Some(item);
        }
        let missing = size - self.part.len();
        let (more, rest) = input.split_at(missing.min(input.len()));
        self.part.extend_from_slice(more);
        *input = rest;
        self.taken = self.part.len() == size;
        self.taken.then_some(&self.part)
    }

    /// Nothing of an unfinished item is held.
    pub fn is_empty(&self) -> bool {
        self.taken || self.part.is_empty()
    }
}

/// Takes numbers off the front of an item whose size was checked.
#[derive(Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().expect("the item has its size");
        self.0 = rest;
        *head
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub fn u128(&mut self) -> u128 {
        u128::from_le_bytes(self.array())
    }
}

/// Appends 32-bit numbers.
pub fn put_u32s(into: &mut Vec<u8>, numbers: &[u32]) {
    numbers.iter().for_each(|n| into.extend_from_slice(&n.to_le_bytes()));
}

/// Appends 64-bit numbers.
pub fn put_u64s(into: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|n| into.extend_from_slice(&n.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_out_whole_however_the_pieces_are_cut() {
        let bytes: Vec<u8> = (0..60).collect();
        for piece in 1..=60 {
            let (mut intake, mut items, mut sizes) =
                (Intake::default(), Vec::new(), [1, 0, 7, 19, 33].iter());
            let mut size = *sizes.next().unwrap();
            for mut input in bytes.chunks(piece) {
                while let Some(item) = intake.take(size, &mut input) {
                    items.extend_from_slice(item);
                    size = sizes.next().copied().unwrap_or(1000);
                }
            }
            assert_eq!(items, bytes, "in pieces of {piece}");
            assert!(intake.is_empty());
        }
    }
}
