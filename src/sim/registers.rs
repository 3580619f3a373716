//! Registers with write and compare-and-set: the smallest state machine whose answers say enough
//! to check a history for linearizability.

use std::collections::BTreeMap;

use super::rng::Rng;
use super::subject::{Ask, Subject};
use crate::block::{Block, BlockBuilder, Command};
use crate::ids::GroupId;
use crate::machine::hash::{mix, mix_bytes};
use crate::machine::{Outcome, QueryError, StateMachine};
use crate::wire::client::Committed;

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
}

/// What a command of a block does to its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Write(u64),
    CompareAndSet(u64, u64),
}

#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "the history is judged by a checker of its own")]
struct Done {
    key: u64,
    action: Action,
    asked_at: u64,
    /// When it was answered, and whether it took effect; `None`: never answered.
    answered: Option<(u64, bool)>,
}

/// The subject: clients write unique values and swap what they last heard of.
#[derive(Debug, Default)]
pub struct Registers {
    /// By group and key: the content that an answer told of last.
    heard: BTreeMap<(GroupId, u64), u64>,
    open: BTreeMap<u64, Vec<usize>>,
    /// By group, in the order of asking.
    history: BTreeMap<GroupId, Vec<Done>>,
}

impl Subject for Registers {
    type Machine = RegisterMachine;

    fn machine(&self, _: GroupId) -> RegisterMachine {
        RegisterMachine::default()
    }

    /// Writes of different registers, and at most one compare-and-set, so that the count of
    /// rejected commands tells which it was.
    fn block(&mut self, ask: &Ask, rng: &mut Rng, into: &mut BlockBuilder) {
        let count = rng.between(1, u64::from(ask.commands_max).min(KEYS));
        let first = rng.below(KEYS);
        let history = self.history.entry(ask.group).or_default();
        let open = self.open.entry(ask.number).or_default();
        for i in 0..count {
            let (key, new) = ((first + i) % KEYS, ask.number * KEYS + i);
            let heard = self.heard.get(&(ask.group, key)).copied().unwrap_or(0);
            let swaps = i == 0 && rng.chance(60);
            let action = if swaps { Action::CompareAndSet(heard, new) } else { Action::Write(new) };
            push(into, key, action, rng.below(200) as usize);
            open.push(history.len());
            history.push(Done { key, action, asked_at: ask.asked_at, answered: None });
        }
    }

    fn answered(&mut self, ask: &Ask, at: u64, committed: &Committed) {
        let history = self.history.entry(ask.group).or_default();
        for place in self.open.remove(&ask.number).into_iter().flatten() {
            let done = &mut history[place];
            let (took, new) = match done.action {
                Action::Write(new) => (true, new),
                Action::CompareAndSet(_, new) => (committed.rejected == 0, new),
            };
            done.answered = Some((at, took));
            if took {
                self.heard.insert((ask.group, done.key), new);
            }
        }
    }
}

/// Commands of mixed sizes: `padding` zeros behind the words that count.
fn push(into: &mut BlockBuilder, key: u64, action: Action, padding: usize) {
    let mut value = [0; 16 + 200];
    let (kind, words) = match action {
        Action::Write(new) => (WRITE, [new, 0]),
        Action::CompareAndSet(old, new) => (COMPARE_AND_SET, [old, new]),
    };
    value[..8].copy_from_slice(&words[0].to_le_bytes());
    value[8..16].copy_from_slice(&words[1].to_le_bytes());
    let (key, value) = (key.to_le_bytes(), &value[..16 + padding.min(200)]);
    let command = Command { kind, flags: 0, timestamp: 0, key: &key, value };
    into.push(&command).expect("a few small commands fit a block");
}
