//! The smallest useful state machine: a map of registers, `set` and `get`.
//!
//! A command of kind 1 (whatever the event store calls it) sets register `key` to `value`; an empty
//! value removes it. A query is a key, its reply the value. It is what a first state machine of
//! one's own looks like, and what tests of linearizability read and write.
//!
//! ```text
//! snapshot  u32 version 1  u32 0  u64 digest  u64 count, count registers in the order of keys:
//!           u32 size of the key  u32 size of the value  key  value
//! ```

use super::hash::mix;
use super::shared::{MapDrain, SharedMap};
use super::snapshot::{Fields, Intake, put_u32s, put_u64s};
use super::{FrozenState, Outcome, QueryError, SnapshotError, StateMachine};
use crate::block::{BLOCK_BYTES_MAX, Block, KEY_BYTES_MAX};

/// The only command: key = register, value = its new content.
pub const SET: u8 = 1;

const STATE_VERSION: u32 = 1;
/// Head of a snapshot.
const HEAD_BYTES: usize = 24;

/// Registers by name.
#[derive(Debug, Default)]
pub struct RegisterMap {
    registers: SharedMap,
    /// Bytes of all keys and values.
    bytes: u64,
    digest: u64,
    restoring: Option<Restoring>,
}

impl RegisterMap {
    /// A map without registers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The content of a register.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.registers.get(key)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        let old = match value {
            [] => self.registers.remove(key),
            _ => self.registers.insert(key, value),
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
        // Two pointers with their counts an entry.
        self.bytes + self.registers.len() as u64 * 64
    }

    fn freeze(&mut self) -> Result<Box<dyn FrozenState>, SnapshotError> {
        assert!(self.restoring.is_none(), "a snapshot is half restored");
        let mut head = Vec::with_capacity(HEAD_BYTES);
        put_u32s(&mut head, &[STATE_VERSION, 0]);
        put_u64s(&mut head, &[self.digest, self.registers.len() as u64]);
        Ok(Box::new(FrozenRegisters { head, registers: self.registers.clone().drain() }))
    }

    fn restore_begin(&mut self) -> Result<(), SnapshotError> {
        *self = Self { restoring: Some(Restoring::default()), ..Self::default() };
        Ok(())
    }

    fn restore_chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut restoring = self.restoring.take().expect("restore_begin came before");
        let outcome = restoring.chunk(self, bytes);
        self.restoring = Some(restoring);
        outcome
    }

    fn restore_finish(&mut self) -> Result<(), SnapshotError> {
        match self.restoring.as_ref().expect("restore_begin came before").phase {
            Phase::End => self.restoring = None,
            _ => return Err(SnapshotError::Damaged("the registers are cut short")),
        }
        Ok(())
    }
}

/// Shares the pages of the map.
struct FrozenRegisters {
    /// Empty once it is written.
    head: Vec<u8>,
    registers: MapDrain,
}

impl FrozenState for FrozenRegisters {
    fn next_chunk(&mut self, into: &mut Vec<u8>, budget_bytes: usize) -> bool {
        let start = into.len();
        into.append(&mut self.head);
        while into.len() - start < budget_bytes.max(1) {
            if !self.registers.put_next(into) {
                return false;
            }
        }
        true
    }

    fn memory_bytes(&self) -> u64 {
        self.registers.memory_bytes()
    }
}

/// What is expected next.
#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    Head,
    Sizes,
    /// A register with a key of so many bytes, and so many bytes in all.
    Register(usize, usize),
    End,
}

#[derive(Debug, Default)]
struct Restoring {
    intake: Intake,
    phase: Phase,
    left: u64,
}

impl Restoring {
    fn chunk(&mut self, map: &mut RegisterMap, mut bytes: &[u8]) -> Result<(), SnapshotError> {
        loop {
            let size = match self.phase {
                Phase::Head => HEAD_BYTES,
                Phase::Sizes => 8,
                Phase::Register(_, size) => size,
                Phase::End if bytes.is_empty() => return Ok(()),
                Phase::End => return Err(SnapshotError::Damaged("bytes follow the registers")),
            };
            let Some(item) = self.intake.take(size, &mut bytes) else { return Ok(()) };
            match self.phase {
                Phase::Head => {
                    let mut head = Fields(item);
                    match (head.u32(), head.u32()) {
                        (STATE_VERSION, _) => {}
                        (version, _) => return Err(SnapshotError::Version(version)),
                    }
                    (map.digest, self.left) = (head.u64(), head.u64());
                }
                Phase::Sizes => {
                    let mut sizes = Fields(item);
                    let (key, value) = (sizes.u32() as usize, sizes.u32() as usize);
                    if key > KEY_BYTES_MAX || value == 0 || value > BLOCK_BYTES_MAX {
                        return Err(SnapshotError::Damaged("the size of a register"));
                    }
                    self.phase = Phase::Register(key, key + value);
                    continue;
                }
                Phase::Register(key, _) => {
                    let (key, value) = item.split_at(key);
                    if map.registers.insert(key, value).is_some() {
                        return Err(SnapshotError::Damaged("a register is there twice"));
                    }
                    map.bytes += item.len() as u64;
                    self.left -= 1;
                }
                Phase::End => {}
            }
            self.phase = if self.left == 0 { Phase::End } else { Phase::Sizes };
        }
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

    fn write(mut frozen: Box<dyn FrozenState>, budget: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while frozen.next_chunk(&mut bytes, budget) {}
        bytes
    }

    fn restore(bytes: &[u8], piece: usize) -> Result<RegisterMap, SnapshotError> {
        let mut map = RegisterMap::new();
        map.set(b"from before", b"gone");
        map.restore_begin()?;
        bytes.chunks(piece).try_for_each(|piece| map.restore_chunk(piece))?;
        map.restore_finish().map(|()| map)
    }

    #[test]
    fn a_snapshot_is_the_map_as_it_was_frozen_whatever_came_later() {
        let mut map = RegisterMap::new();
        for n in 0..1000u64 {
            map.apply(&block(n + 1, &[(SET, &(n % 700).to_be_bytes(), &n.to_be_bytes())]));
        }
        let (frozen, digest, bytes) = (map.freeze().unwrap(), map.digest(), map.bytes);
        assert_eq!(frozen.memory_bytes(), 0);
        for n in 1000..1500u64 {
            map.apply(&block(n + 1, &[(SET, &(n % 600).to_be_bytes(), b"")]));
        }
        assert!(frozen.memory_bytes() > 0);
        let snapshot = write(frozen, 50);
        for piece in [1, 33, usize::MAX] {
            let mut restored = restore(&snapshot, piece).unwrap();
            assert_eq!((restored.digest(), restored.bytes), (digest, bytes));
            assert_eq!(restored.get(&650u64.to_be_bytes()), Some(&650u64.to_be_bytes()[..]));
            for n in 1000..1500u64 {
                restored.apply(&block(n + 1, &[(SET, &(n % 600).to_be_bytes(), b"")]));
            }
            assert_eq!(restored.digest(), map.digest());
            assert!(restored.registers.iter().eq(map.registers.iter()));
        }
    }

    #[test]
    fn damaged_registers_are_refused() {
        let mut map = RegisterMap::new();
        map.apply(&block(1, &[(SET, b"x", b"1"), (SET, b"y", b"2")]));
        let bytes = write(map.freeze().unwrap(), 1);
        assert!(restore(&bytes, 7).is_ok());
        for cut in 0..bytes.len() {
            assert!(restore(&bytes[..cut], 7).is_err(), "cut at {cut}");
        }
        assert!(restore(&[&bytes[..], &[0]].concat(), 7).is_err());
        let mut newer = bytes.clone();
        newer[0] = 2;
        assert_eq!(restore(&newer, 7).err(), Some(SnapshotError::Version(2)));
        let mut large = bytes;
        large[HEAD_BYTES + 7] = 1;
        assert!(matches!(restore(&large, 7), Err(SnapshotError::Damaged(_))));
    }
}
