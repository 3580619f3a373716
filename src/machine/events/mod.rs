//! The event store: events by queue, a set of event ids, and a replicated configuration.
//!
//! | command | effect |
//! |---|---|
//! | `SET_EVENT` | stores the event in its topic's queue; with an event id (flag 1) only if the id is not in the set, and then adds it |
//! | `DEDUP_ADD` | adds an event id to the set, with the command's timestamp |
//! | `DEDUP_EXPIRE` | removes the ids whose timestamp lies before the command's |
//! | `CONFIG_UPDATE` | sets, or with an empty value removes, a configuration key (see `settings.rs`) |
//!
//! The queue of a topic is that of the longest matching `route/<prefix>`, else the topic up to its
//! first `/`. An event's index is its index in the log: it is what the acknowledgement told the
//! writer, it grows within a queue, and it has gaps where other queues' commands are.
//!
//! An id that is there already makes a `SET_EVENT` or `DEDUP_ADD` a *duplicate*: nothing changes, the
//! older timestamp stays. A malformed command, or one over a limit, is *rejected*.
//!
//! # Cost
//!
//! Per block: one digest step, one trim per run. Per event: two comparisons with the event before
//! it (topic, run) and its share of one copy. Nothing is allocated once chunks are recycled.

pub mod query;

mod dedup;
mod frozen;
mod queue;
mod read;
mod restore;
mod settings;

#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod tests;

pub use settings::{CONFIG_KEYS_MAX, CONFIG_VALUE_BYTES_MAX, EventLimits};

use std::rc::Rc;

use self::dedup::{DedupSet, EventId};
use self::frozen::FrozenEvents;
use self::queue::{Chunks, Queue, RUN_BYTES_MAX, RUN_EVENTS_MAX};
use self::restore::Restoring;
use self::settings::{Key, Settings};
use super::hash::{FixedMap, mix, mix_bytes, table_bytes};
use super::shared::Pages;
use super::{FrozenState, Outcome, QueryError, SnapshotError, StateMachine};
use crate::block::{
    Block, BlockKind, COMMAND_HEADER_BYTES, Command, CommandKind, EVENT_ID_BYTES, FLAG_EVENT_ID,
};
use crate::ids::Index;

/// What applying one command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// The event goes to this queue; its bytes are copied with its run.
    Store(u32),
    Applied,
    Duplicate,
    Rejected,
}

/// Events of one queue that lie side by side in the block and are not copied yet.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    queue: u32,
    first: u64,
    count: u32,
    /// Where in the body.
    start: usize,
    end: usize,
}

/// The state machine that ships.
#[derive(Debug, Default)]
pub struct EventStore {
    settings: Settings,
    queues: Pages<Queue>,
    by_name: FixedMap<Rc<[u8]>, u32>,
    chunks: Chunks,
    dedup: DedupSet,
    /// Topic of the last event and its queue: neighbours mostly share it.
    last_topic: Vec<u8>,
    last_queue: Option<u32>,
    /// Encoded bytes held in all queues.
    bytes: u64,
    /// Where the search for a queue over its share goes on.
    hand: usize,
    totals: Totals,
    applied: Index,
    digest: u64,
    /// A snapshot is being taken in: nothing else may be done.
    restoring: Option<Box<Restoring>>,
}

/// Commands since the beginning of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub applied: u64,
    pub duplicates: u64,
    pub rejected: u64,
}

impl EventStore {
    /// An empty store. `limits` must be the same on all replicas of a group.
    pub fn new(limits: EventLimits) -> Self {
        Self { settings: Settings::new(limits), ..Self::default() }
    }

    /// Last index applied; `ZERO` = none.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// What became of all commands so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Digest over everything a reader can see, computed by walking all of it. Two stores with equal
    /// logs agree on it; it costs a pass over the memory, so it is for tests and for operators.
    pub fn full_digest(&self) -> u64 {
        let mut digest = self.dedup.digest(self.settings.digest(0));
        for queue in self.queues_by_name() {
            digest = mix(mix_bytes(digest, &queue.name), queue.trimmed_through());
            for event in queue.read(0) {
                digest = mix(mix(digest, event.index), event.timestamp);
                digest = mix_bytes(mix_bytes(digest, event.topic), event.value);
                digest = mix_bytes(digest, event.id.unwrap_or_default());
            }
        }
        digest
    }

    fn queues_by_name(&self) -> Vec<&Queue> {
        let mut queues: Vec<&Queue> = self.queues.iter().collect();
        queues.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        queues
    }

    fn queue(&self, name: &[u8]) -> Option<&Queue> {
        self.by_name.get(name).map(|&at| self.queues.get(at as usize))
    }

    /// Everything but the copy of a stored event, which waits for the end of its run.
    #[inline]
    fn step(&mut self, command: &Command<'_>) -> Effect {
        match CommandKind::from_wire(command.kind) {
            Some(CommandKind::SetEvent) => self.set_event(command),
            Some(CommandKind::DedupAdd) => self.dedup_add(command),
            Some(CommandKind::DedupExpire) => {
                self.dedup.expire(command.timestamp);
                Effect::Applied
            }
            Some(CommandKind::ConfigUpdate) => self.config_update(command),
            None => Effect::Rejected,
        }
    }

    #[inline]
    fn set_event(&mut self, command: &Command<'_>) -> Effect {
        if command.flags & FLAG_EVENT_ID != 0 {
            return self.set_event_once(command);
        }
        self.queue_for(command.key).map_or(Effect::Rejected, Effect::Store)
    }

    /// An event with an id: the id is looked up first, and added only when the event is stored.
    fn set_event_once(&mut self, command: &Command<'_>) -> Effect {
        let Some((id, _)) = command.value.split_first_chunk::<EVENT_ID_BYTES>() else {
            return Effect::Rejected;
        };
        if self.dedup.contains(id) {
            return Effect::Duplicate;
        }
        let Some(queue) = self.queue_for(command.key) else { return Effect::Rejected };
        self.dedup.add(*id, command.timestamp, self.settings.limits.dedup_ids);
        Effect::Store(queue)
    }

    fn dedup_add(&mut self, command: &Command<'_>) -> Effect {
        let Ok(id) = EventId::try_from(command.key) else { return Effect::Rejected };
        if self.dedup.add(id, command.timestamp, self.settings.limits.dedup_ids) {
            Effect::Applied
        } else {
            Effect::Duplicate
        }
    }

    fn config_update(&mut self, command: &Command<'_>) -> Effect {
        let Some(key) = Key::parse(command.key) else { return Effect::Rejected };
        if matches!(key, Key::RetentionEvents(_) | Key::RetentionBytes(_)) {
            self.settle();
        }
        let Some(key) = self.settings.set(command.key, command.value) else {
            return Effect::Rejected;
        };
        match key {
            Key::Route(_) => self.last_queue = None,
            Key::RetentionEvents(_) | Key::RetentionBytes(_) => self.apply_retention(),
            Key::LimitDedupIds => self.dedup.shrink_to(self.settings.limits.dedup_ids),
            Key::LimitBytes => self.enforce_total(),
            Key::LimitQueues | Key::Application => {}
        }
        Effect::Applied
    }

    /// What old limits hid must not come back under new ones. Queues that nothing changes for stay
    /// shared with what is frozen.
    fn settle(&mut self) {
        for at in 0..self.queues.len() {
            if self.queues.get(at).hidden().events > 0 {
                self.queues.get_mut(at).settle();
            }
        }
        self.bytes = self.queues.iter().map(Queue::held_bytes).sum();
    }

    fn apply_retention(&mut self) {
        for at in 0..self.queues.len() {
            let queue = self.queues.get(at);
            let retention = self.settings.retention(&queue.name);
            if queue.retention != retention {
                let queue = self.queues.get_mut(at);
                queue.retention = retention;
                queue.trim(&mut self.chunks);
            }
        }
        self.bytes = self.queues.iter().map(Queue::held_bytes).sum();
    }

    /// The queue of a topic, made if it is the first event there. `None`: too many queues.
    #[inline]
    fn queue_for(&mut self, topic: &[u8]) -> Option<u32> {
        if self.last_queue.is_some() && self.last_topic == topic {
            return self.last_queue;
        }
        self.find_queue(topic)
    }

    fn find_queue(&mut self, topic: &[u8]) -> Option<u32> {
        let name = self.settings.route(topic);
        let queue = match self.by_name.get(name) {
            Some(&queue) => queue,
            None if self.queues.len() as u64 >= self.settings.limits.queues => return None,
            None => {
                let queue = self.queues.len() as u32;
                let made = Queue::new(name, self.settings.retention(name));
                self.by_name.insert(made.name.clone(), queue);
                self.queues.push(made);
                queue
            }
        };
        self.last_topic.clear();
        self.last_topic.extend_from_slice(topic);
        self.last_queue = Some(queue);
        Some(queue)
    }

    fn flush(&mut self, pending: &mut Pending, body: &[u8]) {
        let run = std::mem::take(pending);
        if run.count == 0 {
            return;
        }
        let queue = self.queues.get_mut(run.queue as usize);
        let before = queue.held_bytes();
        queue.append(run.first, run.count, &body[run.start..run.end], &mut self.chunks);
        self.bytes = self.bytes - before + queue.held_bytes();
        if self.bytes > self.settings.limits.bytes {
            self.enforce_total();
        }
    }

    /// Takes turns in dropping the oldest run of queues that hold more than their share, until all
    /// together are within `limits/bytes`. While they are not, some queue is over its share.
    fn enforce_total(&mut self) {
        let limit = self.settings.limits.bytes;
        let share = limit / self.queues.len().max(1) as u64;
        while self.bytes > limit {
            self.hand = (self.hand + 1) % self.queues.len();
            if self.queues.get(self.hand).held_bytes() > share {
                self.bytes -= self.queues.get_mut(self.hand).drop_run(&mut self.chunks);
            }
        }
    }

    fn count(&mut self, block: &Block, outcome: Outcome) {
        self.totals.applied += u64::from(outcome.applied);
        self.totals.duplicates += u64::from(outcome.duplicates);
        self.totals.rejected += u64::from(outcome.rejected);
        self.applied = block.last();
        // The log's content by its checksum and place; what was made of it by the counts, and by
        // what the limits left. Two replicas that took different decisions part here and stay parted.
        let outcome = u64::from(outcome.duplicates) << 32 | u64::from(outcome.rejected);
        let sizes = (self.queues.len() as u64) << 32 ^ self.dedup.len();
        let mut digest = mix(self.digest, block.first().get());
        digest = mix(digest, u64::from(block.header().body_checksum) << 32 | block.count());
        digest = mix(mix(digest, outcome), sizes);
        self.digest = mix(digest, self.bytes);
    }
}

impl StateMachine for EventStore {
    /// # Panics
    /// When the block is not one of commands, or lies before one that was applied: the engine
    /// applies each index once (bugs.md 32), and going on would make the replicas differ.
    fn apply(&mut self, block: &Block) -> Outcome {
        assert_eq!(block.kind(), BlockKind::Commands, "only commands are applied");
        assert!(self.restoring.is_none(), "a snapshot is half restored");
        assert!(block.first() > self.applied, "{:?} is applied already", block.first());
        let body: &[u8] = block.body();
        let mut outcome = Outcome::default();
        let mut pending = Pending::default();
        let mut start = 0;
        for (index, command) in (block.first().get()..).zip(block.commands()) {
            let size = COMMAND_HEADER_BYTES + command.key.len() + command.value.len();
            let end = start + size.next_multiple_of(8);
            if command.kind == CommandKind::ConfigUpdate as u8 {
                // It may trim or change limits: what came before it must be there first.
                self.flush(&mut pending, body);
            }
            match self.step(&command) {
                Effect::Store(queue) => {
                    let joins = pending.queue == queue
                        && pending.end == start
                        && pending.count < RUN_EVENTS_MAX
                        && end - pending.start <= RUN_BYTES_MAX as usize;
                    if pending.count == 0 || !joins {
                        self.flush(&mut pending, body);
                        pending = Pending { queue, first: index, count: 0, start, end };
                    }
                    pending.count += 1;
                    pending.end = end;
                    outcome.applied += 1;
                }
                Effect::Applied => outcome.applied += 1,
                Effect::Duplicate => outcome.duplicates += 1,
                Effect::Rejected => outcome.rejected += 1,
            }
            start = end;
        }
        self.flush(&mut pending, body);
        self.count(block, outcome);
        outcome
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) -> Result<(), QueryError> {
        self.answer(&query::Query::decode(query)?, reply)
    }

    fn digest(&self) -> u64 {
        self.digest
    }

    fn applied_through(&self) -> Option<Index> {
        Some(self.applied)
    }

    fn memory_bytes(&self) -> u64 {
        let index: u64 = self.queues.iter().map(Queue::index_bytes).sum();
        self.chunks.allocated()
            + self.chunks.index_bytes()
            + index
            + self.queues.memory_bytes()
            + table_bytes(self.by_name.capacity(), size_of::<(Rc<[u8]>, u32)>())
            + self.dedup.memory_bytes()
            + self.settings.memory_bytes()
    }

    /// Costs a pointer for each 256 queues, 128 configuration keys and 1,024 event ids.
    fn freeze(&mut self) -> Result<Box<dyn FrozenState>, SnapshotError> {
        assert!(self.restoring.is_none(), "a snapshot is half restored");
        Ok(Box::new(FrozenEvents::new(self)))
    }

    fn restore_begin(&mut self) -> Result<(), SnapshotError> {
        let restoring = Some(Box::default());
        *self = Self { restoring, ..Self::new(self.settings.defaults) };
        Ok(())
    }

    fn restore_chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut restoring = self.restoring.take().expect("restore_begin came before");
        let outcome = restoring.chunk(self, bytes);
        self.restoring = Some(restoring);
        outcome
    }

    fn restore_finish(&mut self) -> Result<(), SnapshotError> {
        self.restoring.as_ref().expect("restore_begin came before").finish()?;
        self.restoring = None;
        Ok(())
    }
}
