//! Snapshots of the simulator's own small states: copied whole when they are frozen.

use crate::machine::{FrozenState, SnapshotError};

/// Bytes that are given out piece by piece.
#[derive(Debug, Default)]
pub struct Plain {
    bytes: Vec<u8>,
    at: usize,
}

impl Plain {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }
}

impl FrozenState for Plain {
    fn next_chunk(&mut self, into: &mut Vec<u8>, budget_bytes: usize) -> bool {
        let end = self.bytes.len().min(self.at + budget_bytes.max(1));
        into.extend_from_slice(&self.bytes[self.at..end]);
        self.at = end;
        end < self.bytes.len()
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// One state in front of another: its size, its bytes, then the other's.
pub struct Chained {
    pub front: Plain,
    pub rest: Box<dyn FrozenState>,
}

impl FrozenState for Chained {
    fn next_chunk(&mut self, into: &mut Vec<u8>, budget_bytes: usize) -> bool {
        if self.front.at < self.front.bytes.len() {
            self.front.next_chunk(into, budget_bytes);
            return true;
        }
        self.rest.next_chunk(into, budget_bytes)
    }

    fn memory_bytes(&self) -> u64 {
        self.front.memory_bytes() + self.rest.memory_bytes()
    }
}

/// The words that bytes are made of.
pub fn words(bytes: &[u8]) -> Result<Vec<u64>, SnapshotError> {
    let (words, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(SnapshotError::Damaged("half a word"));
    }
    Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}
