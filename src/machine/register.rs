//! The smallest useful state machine: a map of registers, `set` and `get`.
//!
//! A command of kind 1 (whatever the event store calls it) sets register `key` to `value`; an empty
//! value removes it. A query is a key, its reply the value. It is what a first state machine of
//! one's own looks like, and what tests of linearizability read and write.

use std::collections::BTreeMap;

use super::hash::mix;
use super::{Outcome, QueryError, StateMachine};
use crate::block::Block;

/// The only command: key = register, value = its new content.
pub const SET: u8 = 1;

/// Registers by name.
#[derive(Debug, Default)]
pub struct RegisterMap {
    registers: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of all keys and values.
    bytes: u64,
    digest: u64,
}

impl RegisterMap {
    /// A map without registers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The content of a register.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.registers.get(key).map(Vec::as_slice)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        let old = match value {
            [] => self.registers.remove(key),
            _ => self.registers.insert(key.to_vec(), value.to_vec()),
        };
        self.bytes -= old.map_or(0, |old| (key.len() + old.len()) as u64);
        self.bytes += if value.is_empty() { 0 } else { (key.len() + value.len()) as u64 };
    }
}

impl StateMachine for RegisterMap {
    fn apply(&mut self, block: &Block) -> Outcome {
        let mut outcome = Outcome::default();
        for command in block.commands() {
            if command.kind == SET {
                self.set(command.key, command.value);
                outcome.applied += 1;
            } else {
                outcome.rejected += 1;
            }
        }
        self.digest = mix(self.digest, block.first().get());
        self.digest = mix(self.digest, u64::from(block.header().body_checksum));
        self.digest = mix(self.digest, self.registers.len() as u64 ^ self.bytes << 20);
        outcome
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) -> Result<(), QueryError> {
        reply.extend_from_slice(self.get(query).ok_or(QueryError::NotFound("register"))?);
        Ok(())
    }

    fn digest(&self) -> u64 {
        self.digest
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes + (self.registers.len() * 2 * size_of::<Vec<u8>>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockBuilder, Command};
    use crate::ids::{GroupId, Index, Term};

    fn block(first: u64, commands: &[(u8, &[u8], &[u8])]) -> Block {
        let mut builder = BlockBuilder::default();
        for &(kind, key, value) in commands {
            builder.push(&Command { kind, flags: 0, timestamp: 0, key, value }).unwrap();
        }
        let mut block = builder.finish(GroupId(0), 0, 0, 0);
        block.stamp(Term(1), Index(first), 0);
        block
    }

    #[test]
    fn the_last_write_is_what_is_read_and_an_empty_one_removes() {
        let mut map = RegisterMap::new();
        let outcome =
            map.apply(&block(1, &[(SET, b"x", b"1"), (SET, b"y", b"2"), (9, b"x", b"3")]));
        assert_eq!(outcome, Outcome { applied: 2, duplicates: 0, rejected: 1 });
        map.apply(&block(4, &[(SET, b"x", b"10"), (SET, b"y", b"")]));

        let mut reply = Vec::new();
        map.query(b"x", &mut reply).unwrap();
        assert_eq!(reply, b"10");
        assert_eq!(map.query(b"y", &mut reply), Err(QueryError::NotFound("register")));
        assert_eq!(map.bytes, 3);
    }

    #[test]
    fn equal_logs_give_equal_digests_and_others_do_not() {
        let (mut a, mut b, mut c) = (RegisterMap::new(), RegisterMap::new(), RegisterMap::new());
        a.apply(&block(1, &[(SET, b"x", b"1")]));
        b.apply(&block(1, &[(SET, b"x", b"1")]));
        c.apply(&block(1, &[(SET, b"x", b"2")]));
        assert_eq!(a.digest(), b.digest());
        assert_ne!(a.digest(), c.digest());
    }
}
