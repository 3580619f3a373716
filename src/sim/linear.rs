//! Is a history of register operations linearizable (Herlihy and Wing 1990)?
//!
//! Each operation takes effect at one instant between its invocation and its response. Registers
//! are independent, so each key is judged alone (locality, §3.3 there). The search keeps every
//! *configuration* that the events so far allow, after Wing and Gong (1993) in the just-in-time
//! order of Lowe (2017): an operation is made to take effect when its response, or one that needs
//! it, has come.
//!
//! ```text
//!   configuration = value of the register + the open operations that have taken effect
//!   invocation    : nothing happens, the operation is open
//!   response      : from each configuration, let open operations take effect in any order until
//!                   this one has, with the result that was told; none left = a violation
//! ```
//!
//! An operation of unknown outcome stays open for ever: it may take effect at any later time, or
//! never. What keeps that cheap: a configuration is dropped when another one can do everything that
//! it can (`stands_in`).

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use thiserror::Error;

use crate::machine::hash::FixedMap;

/// Content of a register; `None` = not there yet.
pub type Value = Option<u64>;

/// An operation on one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write(u64),
    /// Sets `new` if the register holds `expected`, else does nothing.
    CompareAndSet {
        expected: Value,
        new: u64,
    },
    Read,
}

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A write was done.
    Written,
    /// Whether a compare-and-set found what it expected.
    Swapped(bool),
    Value(Value),
    /// Nothing: it may take effect at any later time, or never.
    Nothing,
}

/// One operation of one client. Times are any numbers that grow; operations overlap if one begins
/// at or before the time the other ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub client: u64,
    pub key: u64,
    pub op: Op,
    pub invoked: u64,
    /// Meaningless while `told` is `Nothing`.
    pub returned: u64,
    pub told: Told,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |v: Value| v.map_or_else(|| "-".to_owned(), |v| v.to_string());
        write!(f, "c{} [{}..", self.client, self.invoked)?;
        match self.told {
            Told::Nothing => write!(f, "?] ")?,
            _ => write!(f, "{}] ", self.returned)?,
        }
        match self.op {
            Op::Write(new) => write!(f, "write {new}"),
            Op::CompareAndSet { expected, new } => write!(f, "cas {}->{new}", value(expected)),
            Op::Read => write!(f, "read"),
        }?;
        match self.told {
            Told::Written => Ok(()),
            Told::Swapped(done) => write!(f, " {}", if done { "done" } else { "refused" }),
            Told::Value(seen) => write!(f, " = {}", value(seen)),
            Told::Nothing => write!(f, " (unknown)"),
        }
    }
}

/// Names an operation of a [`History`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpRef(usize);

/// Operations in the order of their invocation.
#[derive(Clone, Debug, Default)]
pub struct History {
    operations: Vec<Operation>,
}

impl History {
    pub fn new() -> Self {
        Self::default()
    }

    /// A client begins an operation. Until [`History::respond`] its outcome is unknown.
    pub fn invoke(&mut self, client: u64, key: u64, op: Op, now: u64) -> OpRef {
        let told = Told::Nothing;
        self.operations.push(Operation { client, key, op, invoked: now, returned: now, told });
        OpRef(self.operations.len() - 1)
    }

    /// The client was told the result.
    ///
    /// # Panics
    /// When the result is not one of this kind of operation.
    pub fn respond(&mut self, op: OpRef, now: u64, told: Told) {
        let operation = &mut self.operations[op.0];
        let fits = match operation.op {
            Op::Write(_) => told == Told::Written,
            Op::CompareAndSet { .. } => matches!(told, Told::Swapped(_)),
            Op::Read => matches!(told, Told::Value(_)),
        };
        assert!(fits && now >= operation.invoked, "{operation} was told {told:?} at {now}");
        (operation.returned, operation.told) = (now, told);
    }

    /// Forgets the operations of the keys that are not kept; earlier [`OpRef`]s are void.
    pub fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        self.operations.retain(|operation| keep(operation.key));
    }

    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    pub fn len(&self) -> usize {
        self.operations.len()
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

/// Why a history is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    #[error("register {key} is not linearizable: nothing explains {last}\n{before}")]
    NotLinearizable {
        key: u64,
        last: Operation,
        /// The operations around it, one a line.
        before: String,
    },
    #[error("register {key} is too complex to judge: {what}; use more registers, or fewer clients")]
    TooComplex { key: u64, what: &'static str },
}

/// Configurations tried for one register before the search gives up.
const WORK_MAX: u64 = 4_000_000;
/// Operations of one register that may be open at once, those of unknown outcome included.
const OPEN_MAX: usize = 64 * WORDS;
const WORDS: usize = 4;
/// Operations shown with a violation.
const SHOWN: usize = 12;

/// Judges every register of `history`.
pub fn check(history: &History) -> Result<(), Violation> {
    let mut keys: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    for operation in &history.operations {
        // Nobody can tell whether such a read took place.
        if operation.op != Op::Read || operation.told != Told::Nothing {
            keys.entry(operation.key).or_default().push(*operation);
        }
    }
    keys.into_iter().try_for_each(|(key, operations)| Search::new(key, &operations).run())
}

/// A set of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Slots([u64; WORDS]);

impl Slots {
    fn has(&self, slot: usize) -> bool {
        self.0[slot / 64] >> (slot % 64) & 1 == 1
    }

    fn set(&mut self, slot: usize) {
        self.0[slot / 64] |= 1 << (slot % 64);
    }

    fn clear(&mut self, slot: usize) {
        self.0[slot / 64] &= !(1 << (slot % 64));
    }

    fn and(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    fn is_within(&self, other: &Self) -> bool {
        self.without(other) == Self::default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Configuration {
    value: Value,
    /// Open operations with a known outcome that have taken effect.
    known: Slots,
    /// And those of unknown outcome.
    unknown: Slots,
}

#[derive(Clone, Copy)]
enum Step {
    // In this order at equal times: what only touches, overlaps.
    Invoke(usize),
    Return(usize),
}

/// Configurations reached, by the known operations that have taken effect; without those that
/// another one can stand in for.
#[derive(Default)]
struct Seen(FixedMap<Slots, Vec<Configuration>>);

struct Search<'a> {
    key: u64,
    operations: &'a [Operation],
    /// The operation in each slot.
    open: Vec<Option<usize>>,
    /// Slots of operations whose outcome nobody was told,
    lasting: Slots,
    /// and the writes among them with what they write.
    blind: Vec<(usize, u64)>,
    frontier: Vec<Configuration>,
    work: u64,
}

impl<'a> Search<'a> {
    fn new(key: u64, operations: &'a [Operation]) -> Self {
        let empty = Slots::default();
        let start = Configuration { value: None, known: empty, unknown: empty };
        let (open, blind, frontier) = (Vec::new(), Vec::new(), vec![start]);
        Self { key, operations, open, lasting: empty, blind, frontier, work: 0 }
    }

    fn run(mut self) -> Result<(), Violation> {
        for step in self.steps() {
            match step {
                Step::Invoke(op) => self.invoke(op)?,
                Step::Return(op) => self.respond(op)?,
            }
        }
        Ok(())
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::with_capacity(2 * self.operations.len());
        for (n, operation) in self.operations.iter().enumerate() {
            steps.push((operation.invoked, false, n));
            if operation.told != Told::Nothing {
                steps.push((operation.returned, true, n));
            }
        }
        steps.sort_unstable();
        let step = |(_, returns, n)| if returns { Step::Return(n) } else { Step::Invoke(n) };
        steps.into_iter().map(step).collect()
    }

    fn too_complex(&self, what: &'static str) -> Violation {
        Violation::TooComplex { key: self.key, what }
    }

    fn invoke(&mut self, op: usize) -> Result<(), Violation> {
        let free = self.open.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.open.len());
        if slot == OPEN_MAX {
            return Err(self.too_complex("too many operations of unknown outcome"));
        }
        if free.is_none() {
            self.open.push(None);
        }
        self.open[slot] = Some(op);
        if self.operations[op].told == Told::Nothing {
            self.lasting.set(slot);
            if let Op::Write(new) = self.operations[op].op {
                self.blind.push((slot, new));
            }
        }
        Ok(())
    }

    fn respond(&mut self, op: usize) -> Result<(), Violation> {
        let slot = self.open.iter().position(|open| *open == Some(op)).expect("it was invoked");
        let mut found = Vec::new();
        let mut seen = Seen::default();
        let mut queue = VecDeque::from(std::mem::take(&mut self.frontier));
        while let Some(config) = queue.pop_front() {
            if config.known.has(slot) {
                found.push(config);
                continue;
            }
            self.work += 1;
            if self.work > WORK_MAX {
                return Err(self.too_complex("too many orders are possible"));
            }
            self.steps_from(config, |after| {
                if self.is_news(&mut seen, after) {
                    queue.push_back(after);
                }
            });
        }
        if found.is_empty() {
            return Err(self.violation(op));
        }
        self.open[slot] = None;
        self.frontier = self.reduce(found, slot);
        self.free_used_up();
        Ok(())
    }

    /// What can come next. A write of unknown outcome counts only together with an operation that
    /// sees what it wrote: in front of another write, or unseen, it is as good as never.
    ///
    /// An operation that was told what never changes the value goes first where it gets that: it
    /// stands in no other one's way, and every order with it later is allowed with it now.
    fn steps_from(&self, config: Configuration, mut step: impl FnMut(Configuration)) {
        let harmless = |slot: usize| {
            let told = self.operations[self.open[slot]?].told;
            let passive = matches!(told, Told::Value(_) | Told::Swapped(false));
            passive.then(|| self.take_effect(config, slot)).flatten()
        };
        if let Some(after) = (0..self.open.len()).find_map(harmless) {
            return step(after);
        }
        for slot in 0..self.open.len() {
            let Some(op) = self.open[slot] else { continue };
            let writes = matches!(self.operations[op].op, Op::Write(_));
            if writes && self.lasting.has(slot) {
                continue;
            }
            self.take_effect(config, slot).into_iter().for_each(&mut step);
            if writes || config.known.has(slot) || config.unknown.has(slot) {
                continue;
            }
            for &(blind, new) in &self.blind {
                if !config.unknown.has(blind) {
                    let mut between = Configuration { value: Some(new), ..config };
                    between.unknown.set(blind);
                    self.take_effect(between, slot).into_iter().for_each(&mut step);
                }
            }
        }
    }

    /// Can `a` do everything that `b` can? Both have made the same known operations take effect. It
    /// has used up no more of the others, and holds the same value, or one write more can give it
    /// that value.
    fn stands_in(&self, a: &Configuration, b: &Configuration) -> bool {
        let written = |(slot, new): &(usize, u64)| {
            b.value == Some(*new) && b.unknown.has(*slot) && !a.unknown.has(*slot)
        };
        a.unknown.is_within(&b.unknown) && (a.value == b.value || self.blind.iter().any(written))
    }

    /// True, and noted, unless a configuration was seen that can do all that this one can.
    fn is_news(&self, seen: &mut Seen, config: Configuration) -> bool {
        let rivals = seen.0.entry(config.known).or_default();
        let news = !rivals.iter().any(|rival| self.stands_in(rival, &config));
        if news {
            rivals.retain(|rival| !self.stands_in(&config, rival));
            rivals.push(config);
        }
        news
    }

    /// Gives the slot back, and drops configurations that another one can stand in for.
    fn reduce(&self, found: Vec<Configuration>, slot: usize) -> Vec<Configuration> {
        let mut seen = Seen::default();
        for mut config in found {
            config.known.clear(slot);
            self.is_news(&mut seen, config);
        }
        seen.0.into_values().flatten().collect()
    }

    /// The configuration after the open operation in `slot` has taken effect, if it can.
    fn take_effect(&self, config: Configuration, slot: usize) -> Option<Configuration> {
        let operation = &self.operations[self.open[slot]?];
        if config.known.has(slot) || config.unknown.has(slot) {
            return None;
        }
        let value = match (operation.op, operation.told) {
            (Op::Write(new), _) => Some(new),
            (Op::Read, told) => (told == Told::Value(config.value)).then_some(config.value)?,
            (Op::CompareAndSet { expected, new }, told) => {
                let swaps = expected == config.value;
                match told {
                    Told::Swapped(done) if done != swaps => return None,
                    // Without effect it is as good as never.
                    Told::Nothing if !swaps => return None,
                    _ if swaps => Some(new),
                    _ => config.value,
                }
            }
        };
        let mut after = Configuration { value, ..config };
        if self.lasting.has(slot) {
            after.unknown.set(slot)
        } else {
            after.known.set(slot)
        }
        Some(after)
    }

    /// An operation of unknown outcome that has taken effect in all configurations needs no slot.
    fn free_used_up(&mut self) {
        let all = |sum: Slots, config: &Configuration| sum.and(&config.unknown);
        let used = self.frontier.iter().fold(self.lasting, all);
        if used == Slots::default() {
            return;
        }
        for slot in (0..self.open.len()).filter(|slot| used.has(*slot)) {
            self.open[slot] = None;
        }
        self.lasting = self.lasting.without(&used);
        self.blind.retain(|(slot, _)| !used.has(*slot));
        for config in &mut self.frontier {
            config.unknown = config.unknown.without(&used);
        }
    }

    fn violation(&self, op: usize) -> Violation {
        let last = self.operations[op];
        let mut near: Vec<&Operation> =
            self.operations.iter().filter(|other| other.invoked <= last.returned).collect();
        near.sort_by_key(|other| match other.told {
            Told::Nothing => other.invoked,
            _ => other.returned,
        });
        let shown = &near[near.len().saturating_sub(SHOWN)..];
        let before = shown.iter().map(|o| format!("  {o}\n")).collect();
        Violation::NotLinearizable { key: self.key, last, before }
    }
}
