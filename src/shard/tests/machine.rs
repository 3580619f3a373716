//! A state machine that remembers whose blocks it was given, in which order: exactly once can be
//! read off it.

use crate::block::Block;
use crate::machine::hash::mix;
use crate::machine::{Outcome, QueryError, StateMachine};

/// Every block applied: its session and sequence number.
#[derive(Debug, Default)]
pub struct Ledger {
    pub entries: Vec<(u64, u64)>,
    digest: u64,
}

impl Ledger {
    /// How often a session's block was applied.
    pub fn times(&self, client: u64, seq: u64) -> usize {
        self.entries.iter().filter(|&&entry| entry == (client, seq)).count()
    }
}

impl StateMachine for Ledger {
    fn apply(&mut self, block: &Block) -> Outcome {
        let header = block.header();
        self.entries.push((header.client, header.seq));
        self.digest = mix(mix(self.digest, header.client), header.seq);
        self.digest = mix(self.digest, header.first);
        Outcome { applied: header.count, ..Outcome::default() }
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) -> Result<(), QueryError> {
        match query {
            b"count" => reply.extend_from_slice(&(self.entries.len() as u64).to_le_bytes()),
            b"long" => reply.resize(reply.len() + (64 << 10), 7),
            _ => return Err(QueryError::Malformed("no such question")),
        }
        Ok(())
    }

    fn digest(&self) -> u64 {
        self.digest
    }

    fn memory_bytes(&self) -> u64 {
        (self.entries.capacity() * size_of::<(u64, u64)>()) as u64
    }
}
