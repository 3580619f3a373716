//! Registers with write and compare-and-set: the smallest state machine whose answers say enough
//! to check a history for linearizability.

use std::collections::BTreeMap;

use super::frozen::{Plain, words};
use super::linear::{self, History, Op, OpRef, Told};
use super::rng::Rng;
use super::subject::{Ask, Subject};
use crate::block::{Block, BlockBuilder, Command};
use crate::ids::GroupId;
use crate::machine::hash::{mix, mix_bytes};
use crate::machine::{FrozenState, Outcome, QueryError, SnapshotError, StateMachine};
use crate::wire::client::{Committed, Consistency, Place};

/// value = 8 bytes, the new content.
pub const WRITE: u8 = 1;
/// value = 16 bytes: what must be there, and what comes in its place. Counts as rejected when
/// something else is there.
pub const COMPARE_AND_SET: u8 = 2;

/// Registers of a group.
const KEYS: u64 = 4;

/// Registers by key; 0 where nothing was written.
#[derive(Debug, Default)]
pub struct RegisterMachine {
    registers: BTreeMap<u64, u64>,
    digest: u64,
    /// Of a snapshot that is being taken in.
    intake: Vec<u8>,
}

impl RegisterMachine {
    fn run(&mut self, command: &Command<'_>) -> bool {
        let word = |at: usize| {
            let raw = command.value.get(8 * at..8 * at + 8)?;
            Some(u64::from_le_bytes(raw.try_into().ok()?))
        };
        let Ok(key) = command.key.try_into().map(u64::from_le_bytes) else { return false };
        let register = self.registers.entry(key).or_default();
        match (command.kind, word(0), word(1)) {
            (WRITE, Some(new), _) => *register = new,
            (COMPARE_AND_SET, Some(old), Some(new)) if *register == old => *register = new,
            _ => return false,
        }
        true
    }
}

impl StateMachine for RegisterMachine {
    fn apply(&mut self, block: &Block) -> Outcome {
        let mut outcome = Outcome::default();
        for command in block.commands() {
            let done = self.run(&command);
            let count = if done { &mut outcome.applied } else { &mut outcome.rejected };
            *count += 1;
            self.digest = mix(mix_bytes(self.digest, command.value), u64::from(done));
        }
        outcome
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) -> Result<(), QueryError> {
        let key = query.try_into().map_err(|_| QueryError::Malformed("a key has 8 bytes"))?;
        let value = self.registers.get(&u64::from_le_bytes(key)).copied().unwrap_or(0);
        reply.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn digest(&self) -> u64 {
        self.digest
    }

    fn memory_bytes(&self) -> u64 {
        self.registers.len() as u64 * 32
    }

    fn freeze(&mut self) -> Result<Box<dyn FrozenState>, SnapshotError> {
        let pairs = self.registers.iter().flat_map(|(key, value)| [*key, *value]);
        let words = std::iter::once(self.digest).chain(pairs);
        Ok(Box::new(Plain::new(words.flat_map(u64::to_le_bytes).collect())))
    }

    fn restore_begin(&mut self) -> Result<(), SnapshotError> {
        *self = Self::default();
        Ok(())
    }

    fn restore_chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.intake.extend_from_slice(bytes);
        Ok(())
    }

    fn restore_finish(&mut self) -> Result<(), SnapshotError> {
        let words = words(&std::mem::take(&mut self.intake))?;
        let (digest, pairs) = words.split_first().ok_or(SnapshotError::Damaged("empty"))?;
        self.digest = *digest;
        self.registers = pairs.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        Ok(())
    }
}

/// The subject: clients write unique values and swap what they last heard of. What they were told is
/// judged by [`linear`] in the end.
#[derive(Debug, Default)]
pub struct Registers {
    /// By register: the content that an answer told of last.
    heard: BTreeMap<u64, u64>,
    /// What each block without an answer does, by its number.
    open: BTreeMap<u64, Vec<(OpRef, u64, Op)>>,
    history: History,
    /// What each question without an answer reads, by its number; of a stale one nothing can be
    /// concluded but what it says.
    reading: BTreeMap<u64, (u64, Option<OpRef>)>,
    /// What was read, by register and place.
    read: BTreeMap<(u64, Place), u64>,
}

impl Subject for Registers {
    type Machine = RegisterMachine;

    fn machines(&self) -> impl FnMut(GroupId) -> RegisterMachine + 'static {
        |_| RegisterMachine::default()
    }

    /// Writes of different registers, and at most one compare-and-set, so that the count of
    /// rejected commands tells which it was.
    fn block(&mut self, ask: &Ask, rng: &mut Rng, into: &mut BlockBuilder) {
        let count = rng.between(1, u64::from(ask.commands_max).min(KEYS));
        let first = rng.below(KEYS);
        let open = self.open.entry(ask.number).or_default();
        for i in 0..count {
            let (key, new) = ((first + i) % KEYS, ask.number * KEYS + i);
            let register = u64::from(ask.group.0) * KEYS + key;
            let expected = self.heard.get(&register).copied();
            let swaps = i == 0 && rng.chance(60);
            let op = if swaps { Op::CompareAndSet { expected, new } } else { Op::Write(new) };
            push(into, key, op, rng.below(200) as usize);
            let client = u64::from(ask.client);
            let place = self.history.invoke(client, register, op, ask.asked_at);
            open.push((place, register, op));
        }
    }

    fn answered(&mut self, ask: &Ask, at: u64, committed: &Committed) {
        for (place, register, op) in self.open.remove(&ask.number).into_iter().flatten() {
            let swapped = committed.rejected == 0;
            let (told, new) = match op {
                Op::CompareAndSet { new, .. } => (Told::Swapped(swapped), Some(new)),
                Op::Write(new) => (Told::Written, Some(new)),
                Op::Read => continue,
            };
            self.history.respond(place, at, told);
            if let Some(new) = new.filter(|_| told != Told::Swapped(false)) {
                self.heard.insert(register, new);
            }
        }
    }

    fn question(
        &mut self,
        ask: &Ask,
        consistency: Consistency,
        rng: &mut Rng,
        into: &mut Vec<u8>,
    ) -> bool {
        let key = rng.below(KEYS);
        let register = u64::from(ask.group.0) * KEYS + key;
        let place = (consistency != Consistency::Stale)
            .then(|| self.history.invoke(u64::from(ask.client), register, Op::Read, ask.asked_at));
        self.reading.insert(ask.number, (register, place));
        into.extend_from_slice(&key.to_le_bytes());
        true
    }

    fn told(
        &mut self,
        ask: &Ask,
        _: Consistency,
        at: u64,
        place: Place,
        reply: &[u8],
    ) -> Result<(), String> {
        let Some((register, read)) = self.reading.remove(&ask.number) else { return Ok(()) };
        let value = reply.try_into().map(u64::from_le_bytes);
        let value = value.map_err(|_| "a register has 8 bytes".to_owned())?;
        if let Some(read) = read {
            let told = Told::Value((value != 0).then_some(value));
            self.history.respond(read, at, told);
        }
        let known = *self.read.entry((register, place)).or_insert(value);
        if known == value {
            Ok(())
        } else {
            Err(format!("register {register} held {value}, and {known} for another reader"))
        }
    }

    fn finish(&mut self, has_lost: &dyn Fn(GroupId) -> bool) -> Result<(), String> {
        self.history.retain(|register| !has_lost(GroupId((register / KEYS) as u32)));
        linear::check(&self.history).map_err(|violation| violation.to_string())
    }
}

/// Commands of mixed sizes: `padding` zeros behind the words that count.
fn push(into: &mut BlockBuilder, key: u64, op: Op, padding: usize) {
    let mut value = [0; 16 + 200];
    let (kind, words) = match op {
        Op::CompareAndSet { expected, new } => (COMPARE_AND_SET, [expected.unwrap_or(0), new]),
        Op::Write(new) => (WRITE, [new, 0]),
        Op::Read => (WRITE, [0, 0]),
    };
    value[..8].copy_from_slice(&words[0].to_le_bytes());
    value[8..16].copy_from_slice(&words[1].to_le_bytes());
    let (key, value) = (key.to_le_bytes(), &value[..16 + padding.min(200)]);
    let command = Command { kind, flags: 0, timestamp: 0, key: &key, value };
    into.push(&command).expect("a few small commands fit a block");
}
