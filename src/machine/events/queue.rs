//! One queue's events: the bytes of the block's body, copied once into chunks.
//!
//! ```text
//! runs    │ 100..163 │ 164..170 │ 4711 │ 4713..4776 │ …      consecutive log indices, ≤ 64 events
//!             │           │        │        │
//! chunks  [ command command … ][ command … ]                 64 KiB each, recycled when trimmed
//! ```
//!
//! Commands that follow each other in a block and go to the same queue lie side by side in the body
//! in the very form in which they are kept, so a run is one copy and one entry in the index,
//! however many events it has. A read walks at most one run to find its place.
//!
//! Retention drops whole runs: a run goes when the events behind it fill the limit alone. What the
//! first run has too many is hidden from readers ([`Queue::hidden`]), so that what is *visible* obeys
//! the limits to the event, and what is *held* is at most one run more.

use std::collections::VecDeque;

use zerocopy::FromBytes;

use crate::block::{COMMAND_HEADER_BYTES, CommandHeader, EVENT_ID_BYTES, FLAG_EVENT_ID};

/// Bytes of a chunk; an event that is larger gets one of its own size.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// Most events in a run: what a read walks over at most to find its first event.
pub(super) const RUN_EVENTS_MAX: u32 = 64;
/// A run is not extended beyond this, so that hiding and dropping stay fine-grained.
pub(super) const RUN_BYTES_MAX: u32 = 16 << 10;
/// Free chunks kept for the next append: a queue in balance takes one for each it gives back. Many
/// queues may do so in step, so an eighth of all chunks may be free, if that is more.
const FREE_CHUNKS_MIN: u64 = 4;

/// How much of a queue is kept. Both at least 1; the newest event is always kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retention {
    pub events: u64,
    /// Encoded bytes: command header, key and value, padded to 8.
    pub bytes: u64,
}

/// Chunks of all queues of a store, and the exact count of their bytes.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    free: Vec<Vec<u8>>,
    allocated: u64,
}

impl Chunks {
    /// Capacity of every chunk in use or free.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    fn take(&mut self, bytes: usize) -> Vec<u8> {
        if bytes <= CHUNK_BYTES
            && let Some(chunk) = self.free.pop()
        {
            return chunk;
        }
        let chunk = Vec::with_capacity(bytes.max(CHUNK_BYTES));
        self.allocated += chunk.capacity() as u64;
        chunk
    }

    fn give(&mut self, mut chunk: Vec<u8>) {
        if chunk.capacity() == CHUNK_BYTES {
            chunk.clear();
            self.free.push(chunk);
        } else {
            self.allocated -= chunk.capacity() as u64;
        }
        while self.free.len() as u64
            > (self.allocated / CHUNK_BYTES as u64 / 8).max(FREE_CHUNKS_MIN)
            && let Some(chunk) = self.free.pop()
        {
            self.allocated -= chunk.capacity() as u64;
        }
    }

    /// Makes room in a queue's first chunk, which starts small: most queues hold little.
    fn grow(&mut self, chunk: &mut Vec<u8>, bytes: usize) {
        let needed = chunk.len() + bytes;
        if needed <= chunk.capacity() {
            return;
        }
        let target = needed.max((chunk.capacity() * 2).clamp(512, CHUNK_BYTES));
        let before = chunk.capacity() as u64;
        chunk.reserve_exact(target - chunk.len());
        self.allocated += chunk.capacity() as u64 - before;
    }
}

/// Events with consecutive log indices, side by side in one chunk.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Log index of the first event.
    first: u64,
    /// Number of the chunk, counted from the queue's beginning.
    chunk: u64,
    /// Where in the chunk.
    start: u32,
    bytes: u32,
    count: u32,
}

impl Run {
    fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }
}

/// How much of the front is held but no longer visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hidden {
    events: u32,
    bytes: u32,
}

/// One event, borrowed from the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored<'a> {
    pub index: u64,
    pub timestamp: u64,
    pub id: Option<&'a [u8]>,
    pub topic: &'a [u8],
    pub value: &'a [u8],
}

/// A queue and what it holds.
#[derive(Debug)]
pub(super) struct Queue {
    pub name: Box<[u8]>,
    pub retention: Retention,
    chunks: VecDeque<Vec<u8>>,
    /// Number of `chunks[0]`.
    chunk_first: u64,
    runs: VecDeque<Run>,
    events: u64,
    bytes: u64,
    last: u64,
    trimmed_through: u64,
}

impl Queue {
    pub fn new(name: &[u8], retention: Retention) -> Self {
        Self {
            name: name.into(),
            retention,
            chunks: VecDeque::new(),
            chunk_first: 0,
            runs: VecDeque::new(),
            events: 0,
            bytes: 0,
            last: 0,
            trimmed_through: 0,
        }
    }

    /// Encoded bytes held, hidden ones included.
    pub fn held_bytes(&self) -> u64 {
        self.bytes
    }

    /// Events a reader sees.
    pub fn visible_events(&self) -> u64 {
        self.events - u64::from(self.hidden().events)
    }

    /// Encoded bytes of the events a reader sees.
    pub fn visible_bytes(&self) -> u64 {
        self.bytes - u64::from(self.hidden().bytes)
    }

    /// Log index of the newest event ever stored; 0 = none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Highest log index of this queue that retention has taken away; 0 = none.
    pub fn trimmed_through(&self) -> u64 {
        match (self.hidden().events, self.runs.front()) {
            (hidden @ 1.., Some(run)) => run.first + u64::from(hidden) - 1,
            _ => self.trimmed_through,
        }
    }

    /// Heap bytes beside the chunks.
    pub fn index_bytes(&self) -> u64 {
        (self.runs.capacity() * size_of::<Run>()
            + self.chunks.capacity() * size_of::<Vec<u8>>()
            + self.name.len()) as u64
    }

    /// Stores `count` encoded commands with log indices from `first` on, then obeys the limits.
    pub fn append(&mut self, first: u64, count: u32, raw: &[u8], pool: &mut Chunks) {
        assert!(first > self.last, "log indices of a queue only grow");
        self.make_room(raw.len(), pool);
        let chunk = self.chunks.back_mut().expect("room was made");
        let start = chunk.len() as u32;
        chunk.extend_from_slice(raw);
        self.index_run(Run {
            first,
            chunk: self.chunk_first + self.chunks.len() as u64 - 1,
            start,
            bytes: raw.len() as u32,
            count,
        });
        self.events += u64::from(count);
        self.bytes += raw.len() as u64;
        self.last = first + u64::from(count) - 1;
        self.trim(pool);
    }

    fn make_room(&mut self, bytes: usize, pool: &mut Chunks) {
        match self.chunks.back_mut() {
            Some(chunk) if chunk.len() + bytes <= CHUNK_BYTES => pool.grow(chunk, bytes),
            Some(_) => self.chunks.push_back(pool.take(bytes)),
            None => {
                let mut chunk = Vec::new();
                pool.grow(&mut chunk, bytes);
                self.chunks.push_back(chunk);
            }
        }
    }

    /// Joins the run to the one before it when it continues it: batches of one stay compact too.
    fn index_run(&mut self, run: Run) {
        if let Some(before) = self.runs.back_mut()
            && before.last() + 1 == run.first
            && before.chunk == run.chunk
            && before.count + run.count <= RUN_EVENTS_MAX
            && before.bytes + run.bytes <= RUN_BYTES_MAX
        {
            before.count += run.count;
            before.bytes += run.bytes;
        } else {
            self.runs.push_back(run);
        }
    }

    /// Drops runs from the front that the limits do not need.
    pub fn trim(&mut self, pool: &mut Chunks) {
        while let Some(front) = self.runs.front()
            && (self.events - u64::from(front.count) >= self.retention.events
                || self.bytes - u64::from(front.bytes) >= self.retention.bytes)
        {
            self.drop_run(pool);
        }
    }

    /// Drops the oldest run and the chunks that no run lies in any more. Bytes freed.
    pub fn drop_run(&mut self, pool: &mut Chunks) -> u64 {
        let Some(run) = self.runs.pop_front() else { return 0 };
        self.events -= u64::from(run.count);
        self.bytes -= u64::from(run.bytes);
        self.trimmed_through = run.last();
        let keep_from = self.runs.front().map_or(u64::MAX, |run| run.chunk);
        while self.chunk_first < keep_from
            && let Some(chunk) = self.chunks.pop_front()
        {
            pool.give(chunk);
            self.chunk_first += 1;
        }
        u64::from(run.bytes)
    }

    /// Takes what is hidden away for good: a limit that is raised later does not bring it back.
    pub fn settle(&mut self) {
        let hidden = self.hidden();
        self.trimmed_through = self.trimmed_through();
        let Some(front) = self.runs.front_mut() else { return };
        front.first += u64::from(hidden.events);
        front.count -= hidden.events;
        front.start += hidden.bytes;
        front.bytes -= hidden.bytes;
        self.events -= u64::from(hidden.events);
        self.bytes -= u64::from(hidden.bytes);
    }

    /// The events at the front that are over the limits. They lie in the first run: `trim` has
    /// dropped it otherwise. The newest event is never hidden.
    fn hidden(&self) -> Hidden {
        let mut hidden = Hidden::default();
        let Some(run) = self.runs.front() else { return hidden };
        let mut rest = self.raw(run);
        while (self.events - u64::from(hidden.events) > self.retention.events
            || self.bytes - u64::from(hidden.bytes) > self.retention.bytes)
            && u64::from(hidden.events) + 1 < self.events
            && let Some((_, after)) = split(0, rest)
        {
            hidden.events += 1;
            hidden.bytes = run.bytes - after.len() as u32;
            rest = after;
        }
        hidden
    }

    fn raw(&self, run: &Run) -> &[u8] {
        let chunk = &self.chunks[(run.chunk - self.chunk_first) as usize];
        &chunk[run.start as usize..(run.start + run.bytes) as usize]
    }

    /// Visible events with log index `from` or higher, in order.
    pub fn read(&self, from: u64) -> impl Iterator<Item = Stored<'_>> {
        let from = from.max(self.trimmed_through() + 1);
        let start = self.runs.partition_point(|run| run.last() < from);
        self.runs
            .range(start..)
            .flat_map(|run| RunEvents { index: run.first, rest: self.raw(run) })
            .skip_while(move |event| event.index < from)
    }
}

/// Walks the commands of one run.
struct RunEvents<'a> {
    index: u64,
    rest: &'a [u8],
}

impl<'a> Iterator for RunEvents<'a> {
    type Item = Stored<'a>;

    fn next(&mut self) -> Option<Stored<'a>> {
        let (event, rest) = split(self.index, self.rest)?;
        self.index += 1;
        self.rest = rest;
        Some(event)
    }
}

/// Reads one command as it was copied from a block that had been checked.
fn split(index: u64, bytes: &[u8]) -> Option<(Stored<'_>, &[u8])> {
    let (header, _) = CommandHeader::read_from_prefix(bytes).ok()?;
    let key_end = COMMAND_HEADER_BYTES + header.key_size as usize;
    let size = header.size as usize;
    let topic = &bytes[COMMAND_HEADER_BYTES..key_end];
    let (id, value) = match &bytes[key_end..size] {
        value if header.flags & FLAG_EVENT_ID == 0 => (None, value),
        value => value.split_at_checked(EVENT_ID_BYTES).map(|(id, v)| (Some(id), v))?,
    };
    let event = Stored { index, timestamp: header.timestamp, id, topic, value };
    Some((event, &bytes[size.next_multiple_of(8)..]))
}
