//! The state machine under test: whose it is, what its clients ask of it, and what they may
//! conclude from the answers. [`super::registers`] is the one that ships with the simulator.

use super::frozen::{Chained, Plain, words};
use super::rng::Rng;
use crate::block::{Block, BlockBuilder};
use crate::ids::{GroupId, Index};
use crate::machine::hash::mix;
use crate::machine::{FrozenState, Outcome, QueryError, SnapshotError, StateMachine};
use crate::wire::client::{Committed, Consistency, Place};

/// One block that a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Counts the blocks of the run, from 1.
    pub number: u64,
    pub client: u32,
    pub group: GroupId,
    /// Simulated microseconds.
    pub asked_at: u64,
    /// Most commands that the block may have; at least 1.
    pub commands_max: u32,
}

/// What the simulator drives: implement it to put a state machine of one's own under all faults.
///
/// The simulator itself checks that acknowledged blocks stay, are applied once and leave equal
/// digests on all replicas; a subject may check more from what its clients saw.
pub trait Subject {
    type Machine: StateMachine;

    /// Makes the empty state of a group, as often as a shard asks.
    fn machines(&self) -> impl FnMut(GroupId) -> Self::Machine + 'static;

    /// Puts 1 to `commands_max` commands into the block. All randomness comes from `rng`.
    fn block(&mut self, ask: &Ask, rng: &mut Rng, into: &mut BlockBuilder);

    /// The block was acknowledged at `at` (simulated microseconds). Comes once for each.
    fn answered(&mut self, _ask: &Ask, _at: u64, _done: &Committed) {}

    /// Writes a question to the group's state machine; `false`: this subject has none.
    fn question(
        &mut self,
        _ask: &Ask,
        _consistency: Consistency,
        _rng: &mut Rng,
        _into: &mut Vec<u8>,
    ) -> bool {
        false
    }

    /// The question was answered at `at` by a replica that was at `place`. Comes at most once. The
    /// error says why that cannot be.
    fn told(
        &mut self,
        _ask: &Ask,
        _consistency: Consistency,
        _at: u64,
        _place: Place,
        _reply: &[u8],
    ) -> Result<(), String> {
        Ok(())
    }

    /// The run is over: is what was answered possible? The error says what is not. `has_lost`: the
    /// group has lost acknowledged blocks, as was told; what they did may have been seen before.
    fn finish(&mut self, _has_lost: &dyn Fn(GroupId) -> bool) -> Result<(), String> {
        Ok(())
    }
}

/// Blocks applied, by session: exactly once can be read off it.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By client, a bit for each sequence number.
    seen: Vec<Vec<u64>>,
    digest: u64,
    twice: Option<(u64, u64)>,
}

impl Ledger {
    fn note(&mut self, client: u64, seq: u64) {
        if client == 0 || client > 1 << 16 {
            return;
        }
        self.digest = mix(mix(self.digest, client), seq);
        let (slot, word, bit) = (client as usize - 1, (seq / 64) as usize, 1 << (seq % 64));
        if self.seen.len() <= slot {
            self.seen.resize(slot + 1, Vec::new());
        }
        let words = &mut self.seen[slot];
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        if words[word] & bit != 0 {
            self.twice.get_or_insert((client, seq));
        }
        words[word] |= bit;
    }

    /// Whether the session's block was applied.
    pub fn has(&self, client: u64, seq: u64) -> bool {
        let words = self.seen.get((client as usize).wrapping_sub(1));
        let word = words.and_then(|words| words.get((seq / 64) as usize));
        word.is_some_and(|word| word & 1 << (seq % 64) != 0)
    }

    /// Its size in words, the digest, and for each client a size and its words.
    fn frozen(&self) -> Plain {
        let mut words = vec![0, self.digest];
        for seen in &self.seen {
            words.push(seen.len() as u64);
            words.extend(seen);
        }
        words[0] = words.len() as u64;
        Plain::new(words.into_iter().flat_map(u64::to_le_bytes).collect())
    }

    fn restored(words: &[u64]) -> Result<Self, SnapshotError> {
        let mut ledger = Self { digest: words[1], ..Self::default() };
        let mut rest = &words[2..];
        while let Some((size, more)) = rest.split_first() {
            let short = SnapshotError::Damaged("a ledger cut short");
            let (seen, after) = more.split_at_checked(*size as usize).ok_or(short)?;
            ledger.seen.push(seen.to_vec());
            rest = after;
        }
        Ok(ledger)
    }

    /// A block (client, sequence number) that was applied twice.
    pub fn twice(&self) -> Option<(u64, u64)> {
        self.twice
    }
}

/// A subject's state machine with a ledger of what was applied to it.
#[derive(Debug)]
pub struct Observed<M> {
    pub inner: M,
    pub ledger: Ledger,
    /// The ledger's part of a snapshot that is being taken in; `None` once it was whole.
    intake: Option<Vec<u8>>,
}

impl<M> Observed<M> {
    pub fn new(inner: M) -> Self {
        Self { inner, ledger: Ledger::default(), intake: None }
    }
}

impl<M: StateMachine> StateMachine for Observed<M> {
    fn apply(&mut self, block: &Block) -> Outcome {
        self.ledger.note(block.header().client, block.header().seq);
        self.inner.apply(block)
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) -> Result<(), QueryError> {
        self.inner.query(query, reply)
    }

    fn digest(&self) -> u64 {
        mix(self.ledger.digest, self.inner.digest())
    }

    fn applied_through(&self) -> Option<Index> {
        self.inner.applied_through()
    }

    fn memory_bytes(&self) -> u64 {
        self.inner.memory_bytes()
    }

    fn freeze(&mut self) -> Result<Box<dyn FrozenState>, SnapshotError> {
        let rest = self.inner.freeze()?;
        Ok(Box::new(Chained { front: self.ledger.frozen(), rest }))
    }

    fn restore_begin(&mut self) -> Result<(), SnapshotError> {
        (self.ledger, self.intake) = (Ledger::default(), Some(Vec::new()));
        self.inner.restore_begin()
    }

    fn restore_chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let Some(intake) = &mut self.intake else { return self.inner.restore_chunk(bytes) };
        intake.extend_from_slice(bytes);
        let Some((size, _)) = intake.split_first_chunk::<8>() else { return Ok(()) };
        let size = usize::try_from(u64::from_le_bytes(*size)).unwrap_or(usize::MAX);
        let size = size.checked_mul(8).filter(|size| *size >= 16);
        let size = size.ok_or(SnapshotError::Damaged("the size of the ledger"))?;
        if intake.len() < size {
            return Ok(());
        }
        let rest = intake.split_off(size);
        self.ledger = Ledger::restored(&words(intake)?)?;
        self.intake = None;
        self.inner.restore_chunk(&rest)
    }

    fn restore_finish(&mut self) -> Result<(), SnapshotError> {
        if self.intake.is_some() {
            return Err(SnapshotError::Damaged("a ledger cut short"));
        }
        self.inner.restore_finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_tells_what_was_applied_and_what_twice() {
        let mut ledger = Ledger::default();
        for (client, seq) in [(1, 1), (2, 70), (1, 2)] {
            ledger.note(client, seq);
        }
        assert!(ledger.has(2, 70) && ledger.has(1, 2));
        assert!(!ledger.has(2, 1) && !ledger.has(3, 1) && !ledger.has(0, 0));
        assert_eq!(ledger.twice(), None);
        ledger.note(2, 70);
        assert_eq!(ledger.twice(), Some((2, 70)));
    }
}
