//! An event store from the bytes of a snapshot (the layout is in `frozen.rs`), piece by piece.
//!
//! Nothing is believed: sizes are checked before anything is allocated for them, every event is
//! walked once, so that the readers may rely on it as on a block that was checked.

use std::rc::Rc;

use zerocopy::FromBytes;

use super::EventStore;
use super::dedup::ENTRY_BYTES;
use super::frozen::{CHUNK_HEAD_BYTES, HEAD_BYTES, QUEUE_BYTES, RUN_BYTES, STATE_VERSION};
use super::queue::{CHUNK_BYTES, Chunks, Hidden, Queue, RUN_EVENTS_MAX, Run};
use super::settings::{CONFIG_KEYS_MAX, CONFIG_VALUE_BYTES_MAX};
use crate::block::{
    BLOCK_BYTES_MAX, COMMAND_HEADER_BYTES, CommandHeader, CommandKind, EVENT_ID_BYTES,
    FLAG_EVENT_ID, KEY_BYTES_MAX,
};
use crate::ids::Index;
use crate::machine::SnapshotError;
use crate::machine::snapshot::{Fields, Intake};

/// Ids taken at once.
const IDS_AT_ONCE: u64 = 64;

/// No counter gets here in the life of a log.
const COUNTS_END: u64 = 1 << 62;

type Step = Result<(), SnapshotError>;

const fn damaged<T>(what: &'static str) -> Result<T, SnapshotError> {
    Err(SnapshotError::Damaged(what))
}

/// The item that comes next.
#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    Head,
    ConfigSizes,
    Config {
        key: usize,
        value: usize,
    },
    Queue,
    Name {
        size: usize,
        chunks: u32,
        cut: Hidden,
        last: u64,
        dropped_through: u64,
    },
    ChunkHead,
    Chunk {
        runs: usize,
        skip: usize,
        bytes: usize,
    },
    Ids(u64),
    End,
}

/// How far the bytes have come.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    intake: Intake,
    plan: Plan,
}

#[derive(Debug, Default)]
struct Plan {
    phase: Phase,
    config: u64,
    queues: u64,
    chunks: u32,
    ids: u64,
    /// The queue whose chunks are coming.
    queue: Option<Queue>,
    /// Last index of the run before, in this queue.
    through: u64,
}

impl Restoring {
    pub fn chunk(&mut self, store: &mut EventStore, mut bytes: &[u8]) -> Step {
        loop {
            let size = match self.plan.phase {
                Phase::Head => HEAD_BYTES,
                Phase::ConfigSizes => 8,
                Phase::Config { key, value } => key + value,
                Phase::Queue => QUEUE_BYTES,
                Phase::Name { size, .. } => size,
                Phase::ChunkHead => CHUNK_HEAD_BYTES,
                Phase::Chunk { runs, bytes, .. } => runs * RUN_BYTES + bytes,
                Phase::Ids(count) => count as usize * ENTRY_BYTES,
                Phase::End if bytes.is_empty() => return Ok(()),
                Phase::End => return damaged("bytes follow the event store"),
            };
            let Some(item) = self.intake.take(size, &mut bytes) else { return Ok(()) };
            self.plan.step(store, item)?;
        }
    }

    pub fn finish(&self) -> Step {
        match self.plan.phase {
            Phase::End => Ok(()),
            _ => damaged("the event store is cut short"),
        }
    }
}

impl Plan {
    fn step(&mut self, store: &mut EventStore, item: &[u8]) -> Step {
        match self.phase {
            Phase::Head => self.head(store, item)?,
            Phase::ConfigSizes => return self.config_sizes(item),
            Phase::Config { key, .. } => self.config(store, item.split_at(key))?,
            Phase::Queue => return self.queue(store, item),
            Phase::Name { .. } => self.name(store, item)?,
            Phase::ChunkHead => return self.chunk_head(item),
            Phase::Chunk { .. } => self.chunk(store, item)?,
            Phase::Ids(count) => self.ids(store, item, count)?,
            Phase::End => {}
        }
        self.close_queue(store)?;
        self.phase = if self.config > 0 {
            Phase::ConfigSizes
        } else if self.chunks > 0 {
            Phase::ChunkHead
        } else if self.queues > 0 {
            Phase::Queue
        } else if self.ids > 0 {
            Phase::Ids(self.ids.min(IDS_AT_ONCE))
        } else {
            Phase::End
        };
        Ok(())
    }

    fn head(&mut self, store: &mut EventStore, item: &[u8]) -> Step {
        let mut head = Fields(item);
        match (head.u32(), head.u32()) {
            (STATE_VERSION, _) => {}
            (version, _) => return Err(SnapshotError::Version(version)),
        }
        if store.settings.defaults.numbers().iter().any(|&limit| limit != head.u64()) {
            return Err(SnapshotError::OtherLimits);
        }
        (store.applied, store.digest) = (Index(head.u64()), head.u64());
        let totals = &mut store.totals;
        (totals.applied, totals.duplicates) = (head.u64(), head.u64());
        totals.rejected = head.u64();
        let counts = [store.applied.get(), totals.applied, totals.duplicates, totals.rejected];
        if counts.iter().any(|&count| count >= COUNTS_END) {
            return damaged("a counter");
        }
        let hand = head.u64();
        (self.config, self.queues, self.ids) = (head.u64(), head.u64(), head.u64());
        if self.config > CONFIG_KEYS_MAX as u64 || self.queues >= u64::from(u32::MAX) {
            return damaged("more keys or queues than there can be");
        }
        if hand > self.queues {
            return damaged("the place in the list of queues");
        }
        store.hand = hand as usize;
        Ok(())
    }

    fn config_sizes(&mut self, item: &[u8]) -> Step {
        let mut sizes = Fields(item);
        let (key, value) = (sizes.u32() as usize, sizes.u32() as usize);
        if key > KEY_BYTES_MAX || value == 0 || value > CONFIG_VALUE_BYTES_MAX {
            return damaged("the size of a configuration key");
        }
        self.phase = Phase::Config { key, value };
        Ok(())
    }

    fn config(&mut self, store: &mut EventStore, (key, value): (&[u8], &[u8])) -> Step {
        if store.settings.get(key).is_some() {
            return damaged("a configuration key is there twice");
        }
        if store.settings.set(key, value).is_none() {
            return damaged("a configuration key that would have been rejected");
        }
        self.config -= 1;
        Ok(())
    }

    fn queue(&mut self, store: &EventStore, item: &[u8]) -> Step {
        let mut queue = Fields(item);
        let (size, chunks) = (queue.u32() as usize, queue.u32());
        let cut = Hidden { events: queue.u32(), bytes: queue.u32() };
        let (last, dropped_through) = (queue.u64(), queue.u64());
        if size > KEY_BYTES_MAX {
            return damaged("the size of a queue's name");
        }
        if dropped_through > last || last > store.applied.get() {
            return damaged("a queue's indices");
        }
        self.phase = Phase::Name { size, chunks, cut, last, dropped_through };
        Ok(())
    }

    fn name(&mut self, store: &mut EventStore, name: &[u8]) -> Step {
        let Phase::Name { chunks, cut, last, dropped_through, .. } = self.phase else {
            unreachable!("called for a name")
        };
        let mut queue = Queue::new(name, store.settings.retention(name));
        let at = (store.queues.len()) as u32;
        if store.by_name.insert(queue.name.clone(), at).is_some() {
            return damaged("a queue is there twice");
        }
        (queue.cut, queue.last, queue.dropped_through) = (cut, last, dropped_through);
        self.queue = Some(queue);
        self.queues -= 1;
        self.chunks = chunks;
        self.through = dropped_through;
        Ok(())
    }

    fn chunk_head(&mut self, item: &[u8]) -> Step {
        let mut head = Fields(item);
        let (runs, skip, bytes) = (head.u32() as usize, head.u32() as usize, head.u32() as usize);
        let most = if skip == 0 { BLOCK_BYTES_MAX } else { CHUNK_BYTES.saturating_sub(skip) };
        if runs == 0 || bytes > most || runs > bytes / COMMAND_HEADER_BYTES {
            return damaged("the size of a chunk of events");
        }
        self.phase = Phase::Chunk { runs, skip, bytes };
        Ok(())
    }

    fn chunk(&mut self, store: &mut EventStore, item: &[u8]) -> Step {
        let Phase::Chunk { runs, skip, .. } = self.phase else {
            unreachable!("called for a chunk")
        };
        let Some(queue) = &mut self.queue else { unreachable!("its queue came before") };
        let (mut index, events) = item.split_at(runs * RUN_BYTES);
        let (mut chunk, pool) = (Rc::default(), &mut store.chunks);
        if !queue.chunks.is_empty() {
            chunk = pool.take(skip + events.len());
        }
        let own = pool.own(&mut chunk, skip + events.len());
        own.bytes.resize(skip, 0);
        own.bytes.extend_from_slice(events);
        let mut start = skip;
        for _ in 0..runs {
            let mut fields = Fields(index);
            let (first, count, bytes) = (fields.u64(), fields.u32(), fields.u32());
            index = fields.0;
            let run = Run { first, start: start as u32, bytes, count };
            let Some(raw) = own.bytes.get(start..start.saturating_add(bytes as usize)) else {
                return damaged("a run of events is longer than its chunk");
            };
            let cut = if start == skip && queue.chunks.is_empty() {
                queue.cut
            } else {
                Hidden::default()
            };
            check_run(&run, raw, cut, self.through)?;
            (self.through, start) = (run.last(), start + bytes as usize);
            queue.events += u64::from(count - cut.events);
            queue.bytes += u64::from(bytes - cut.bytes);
            Chunks::index_run(pool, own, run);
        }
        if start != own.bytes.len() {
            return damaged("events of a chunk belong to no run");
        }
        queue.chunks.push_back(chunk);
        self.chunks -= 1;
        Ok(())
    }

    /// Takes the queue into the store when its last chunk has come.
    fn close_queue(&mut self, store: &mut EventStore) -> Step {
        if self.chunks > 0 {
            return Ok(());
        }
        let Some(queue) = self.queue.take() else { return Ok(()) };
        let is_cut = queue.cut != Hidden::default();
        match queue.chunks.back() {
            Some(chunk) if chunk.last() != queue.last => return damaged("a queue's last index"),
            None if is_cut => return damaged("an empty queue that is cut"),
            _ => {}
        }
        store.bytes += queue.held_bytes();
        store.queues.push(queue);
        Ok(())
    }

    fn ids(&mut self, store: &mut EventStore, item: &[u8], count: u64) -> Step {
        for entry in item.chunks_exact(ENTRY_BYTES) {
            let mut fields = Fields(entry);
            let (timestamp, id) = (fields.u64(), fields.u128().to_le_bytes());
            if !store.dedup.restore(timestamp, id) {
                return damaged("an event id is there twice");
            }
        }
        self.ids -= count;
        Ok(())
    }
}

/// A run's events are whole and as many as it says, and so are those that are cut off at its front;
/// the others lie above `through`.
fn check_run(run: &Run, raw: &[u8], cut: Hidden, through: u64) -> Step {
    if run.count == 0 || run.count > RUN_EVENTS_MAX || cut.events > run.count {
        return damaged("the number of events in a run");
    }
    let overflows = run.first.checked_add(u64::from(run.count)).is_none();
    if overflows || run.first == 0 || run.first + u64::from(cut.events) <= through {
        return damaged("a run's indices");
    }
    let mut rest = raw;
    for event in 0..=run.count {
        if event == cut.events && raw.len() - rest.len() != cut.bytes as usize {
            return damaged("what is cut off at the front of a queue");
        }
        if event == run.count {
            break;
        }
        let Some(size) = event_bytes(rest) else { return damaged("an event") };
        rest = &rest[size..];
    }
    if rest.is_empty() { Ok(()) } else { damaged("the bytes of a run") }
}

/// Padded size of the event at the front, if it is one.
fn event_bytes(bytes: &[u8]) -> Option<usize> {
    let (header, _) = CommandHeader::read_from_prefix(bytes).ok()?;
    let (size, key) = (header.size as usize, header.key_size as usize);
    let id = if header.flags & FLAG_EVENT_ID == 0 { 0 } else { EVENT_ID_BYTES };
    let padded = size.checked_next_multiple_of(8)?;
    let fits = COMMAND_HEADER_BYTES + key + id <= size && padded <= bytes.len();
    let known = header.kind == CommandKind::SetEvent as u8 && key <= KEY_BYTES_MAX;
    (fits && known).then_some(padded)
}
