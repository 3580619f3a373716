//! One queue's events: the bytes of the block's body, copied once into chunks.
//!
//! ```text
//! chunk   │ runs  100..163 │ 164..170 │ │ 4711 │ 4713..4776 │ …  consecutive log indices, ≤ 64 events
//!         │          │            │     │    │        │
//!         │ bytes [ command command … ] │ [ command … ]           64 KiB, recycled when trimmed
//! ```
//!
//! Commands that follow each other in a block and go to the same queue lie side by side in the body
//! in the very form in which they are kept, so a run is one copy and one entry in the index,
//! however many events it has. A read walks at most one run to find its place.
//!
//! Retention drops whole runs: a run goes when the events behind it fill the limit alone. What the
//! first run has too many is hidden from readers ([`Queue::hidden`]), so that what is *visible* obeys
//! the limits to the event, and what is *held* is at most one run more.
//!
//! A chunk is only ever appended to, and what is gone from the front is counted in the queue
//! (`head`, `cut`). So a frozen queue shares all chunks with the live one: of what comes later only
//! the first append copies anything, the last chunk, and what is trimmed stays with whoever froze it.
//! Where chunks begin decides which runs join, hence what is trimmed: it is part of the state.

use std::collections::VecDeque;
use std::rc::Rc;

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

/// Events with consecutive log indices, side by side in one chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Log index of the first event.
    pub first: u64,
    /// Where in the chunk.
    pub start: u32,
    pub bytes: u32,
    pub count: u32,
}

impl Run {
    pub fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }
}

/// Events and where they are: the unit of sharing and of recycling. Has at least one run once it is
/// part of a queue, and no gap between runs.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub bytes: Vec<u8>,
    pub runs: Vec<Run>,
}

impl Chunk {
    pub fn last(&self) -> u64 {
        self.runs.last().map_or(0, Run::last)
    }

    pub fn raw(&self, run: &Run) -> &[u8] {
        &self.bytes[run.start as usize..(run.start + run.bytes) as usize]
    }

    pub fn memory_bytes(&self) -> u64 {
        self.bytes.capacity() as u64 + self.index_bytes()
    }

    fn index_bytes(&self) -> u64 {
        (self.runs.capacity() * size_of::<Run>()) as u64
    }
}

/// Chunks of all queues of a store, and the exact count of their bytes.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    free: Vec<Rc<Chunk>>,
    allocated: u64,
    index: u64,
}

impl Chunks {
    /// Capacity for events of every chunk in use or free.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Capacity for runs of the same.
    pub fn index_bytes(&self) -> u64 {
        self.index
    }

    /// An empty chunk that nobody else has.
    pub fn take(&mut self, bytes: usize) -> Rc<Chunk> {
        if bytes <= CHUNK_BYTES
            && let Some(chunk) = self.free.pop()
        {
            return chunk;
        }
        let bytes = Vec::with_capacity(bytes.max(CHUNK_BYTES));
        self.allocated += bytes.capacity() as u64;
        Rc::new(Chunk { bytes, runs: Vec::new() })
    }

    /// Takes back a chunk that its queue no longer needs. One that a frozen state still reads is
    /// that one's from here on.
    fn give(&mut self, mut chunk: Rc<Chunk>) {
        match Rc::get_mut(&mut chunk) {
            Some(own) if own.bytes.capacity() == CHUNK_BYTES => {
                own.bytes.clear();
                own.runs.clear();
                self.free.push(chunk);
            }
            _ => self.forget(&chunk),
        }
        while self.free.len() as u64
            > (self.allocated / CHUNK_BYTES as u64 / 8).max(FREE_CHUNKS_MIN)
            && let Some(chunk) = self.free.pop()
        {
            self.forget(&chunk);
        }
    }

    fn forget(&mut self, chunk: &Chunk) {
        self.allocated -= chunk.bytes.capacity() as u64;
        self.index -= chunk.index_bytes();
    }

    /// Makes room in a chunk that nobody else has. A queue's first chunk starts small: most queues
    /// hold little.
    fn grow(&mut self, chunk: &mut Chunk, bytes: usize) {
        let needed = chunk.bytes.len() + bytes;
        if needed <= chunk.bytes.capacity() {
            return;
        }
        let target = needed.max((chunk.bytes.capacity() * 2).clamp(512, CHUNK_BYTES));
        let before = chunk.bytes.capacity() as u64;
        chunk.bytes.reserve_exact(target - chunk.bytes.len());
        self.allocated += chunk.bytes.capacity() as u64 - before;
    }

    /// The chunk for writing, with room for `bytes`: copied first if a frozen state reads it.
    pub fn own<'a>(&mut self, chunk: &'a mut Rc<Chunk>, bytes: usize) -> &'a mut Chunk {
        if Rc::get_mut(chunk).is_none() {
            let mut copy = match chunk.bytes.capacity() {
                CHUNK_BYTES => self.take(CHUNK_BYTES),
                _ => Rc::default(),
            };
            let own = Rc::get_mut(&mut copy).expect("it is new");
            self.grow(own, chunk.bytes.len() + bytes);
            own.bytes.extend_from_slice(&chunk.bytes);
            chunk.runs.iter().for_each(|run| self.index_run(own, *run));
            self.give(std::mem::replace(chunk, copy));
        }
        let own = Rc::get_mut(chunk).expect("copied if it was shared");
        self.grow(own, bytes);
        own
    }

    /// Appends a run to a chunk's index.
    pub fn index_run(&mut self, chunk: &mut Chunk, run: Run) {
        let before = chunk.index_bytes();
        chunk.runs.push(run);
        self.index += chunk.index_bytes() - before;
    }
}

/// How much of the front is held but no longer visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hidden {
    pub events: u32,
    pub bytes: u32,
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

/// A queue and what it holds. A clone shares all chunks: a pointer each is copied.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub name: Rc<[u8]>,
    pub retention: Retention,
    pub(super) chunks: VecDeque<Rc<Chunk>>,
    /// Runs at the front of the first chunk that are gone.
    pub(super) head: u32,
    /// What is gone of the run behind them.
    pub(super) cut: Hidden,
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) last: u64,
    /// Without what is hidden.
    pub(super) dropped_through: u64,
}

impl Queue {
    pub fn new(name: &[u8], retention: Retention) -> Self {
        Self {
            name: name.into(),
            retention,
            chunks: VecDeque::new(),
            head: 0,
            cut: Hidden::default(),
            events: 0,
            bytes: 0,
            last: 0,
            dropped_through: 0,
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
        match (self.hidden().events, self.front()) {
            (hidden @ 1.., Some(run)) => run.first + u64::from(hidden) - 1,
            _ => self.dropped_through,
        }
    }

    /// Heap bytes beside the chunks.
    pub fn index_bytes(&self) -> u64 {
        (self.chunks.capacity() * size_of::<Rc<Chunk>>() + self.name.len()) as u64
    }

    /// Stores `count` encoded commands with log indices from `first` on, then obeys the limits.
    pub fn append(&mut self, first: u64, count: u32, raw: &[u8], pool: &mut Chunks) {
        assert!(first > self.last, "log indices of a queue only grow");
        let chunk = self.room(raw.len(), pool);
        let start = chunk.bytes.len() as u32;
        chunk.bytes.extend_from_slice(raw);
        join_or_index(chunk, Run { first, start, bytes: raw.len() as u32, count }, pool);
        self.events += u64::from(count);
        self.bytes += raw.len() as u64;
        self.last = first + u64::from(count) - 1;
        self.trim(pool);
    }

    /// The last chunk, or a new one when it is full. How full it is decides, not its capacity, which
    /// may differ between replicas.
    fn room(&mut self, bytes: usize, pool: &mut Chunks) -> &mut Chunk {
        match self.chunks.back() {
            Some(chunk) if chunk.bytes.len() + bytes <= CHUNK_BYTES => {}
            Some(_) => self.chunks.push_back(pool.take(bytes)),
            None => self.chunks.push_back(Rc::default()),
        }
        pool.own(self.chunks.back_mut().expect("there is one now"), bytes)
    }

    /// The oldest run, without what is cut off.
    fn front(&self) -> Option<Run> {
        let mut run = *self.chunks.front()?.runs.get(self.head as usize)?;
        run.first += u64::from(self.cut.events);
        run.count -= self.cut.events;
        run.start += self.cut.bytes;
        run.bytes -= self.cut.bytes;
        Some(run)
    }

    /// Whether [`Queue::trim`] would change anything.
    pub fn is_over(&self) -> bool {
        self.front().is_some_and(|front| {
            self.events - u64::from(front.count) >= self.retention.events
                || self.bytes - u64::from(front.bytes) >= self.retention.bytes
        })
    }

    /// Drops runs from the front that the limits do not need.
    pub fn trim(&mut self, pool: &mut Chunks) {
        while self.is_over() {
            self.drop_run(pool);
        }
    }

    /// Drops the oldest run, and its chunk if it was the last one in it. Bytes freed.
    pub fn drop_run(&mut self, pool: &mut Chunks) -> u64 {
        let Some(run) = self.front() else { return 0 };
        self.events -= u64::from(run.count);
        self.bytes -= u64::from(run.bytes);
        self.dropped_through = run.last();
        self.cut = Hidden::default();
        self.head += 1;
        if self.chunks.front().is_some_and(|chunk| chunk.runs.len() == self.head as usize)
            && let Some(chunk) = self.chunks.pop_front()
        {
            pool.give(chunk);
            self.head = 0;
        }
        u64::from(run.bytes)
    }

    /// Takes what is hidden away for good: a limit that is raised later does not bring it back.
    pub fn settle(&mut self) {
        let hidden = self.hidden();
        self.dropped_through = self.trimmed_through();
        self.cut.events += hidden.events;
        self.cut.bytes += hidden.bytes;
        self.events -= u64::from(hidden.events);
        self.bytes -= u64::from(hidden.bytes);
    }

    /// The events at the front that are over the limits. They lie in the first run: `trim` has
    /// dropped it otherwise. The newest event is never hidden.
    pub fn hidden(&self) -> Hidden {
        let mut hidden = Hidden::default();
        let (Some(run), Some(chunk)) = (self.front(), self.chunks.front()) else { return hidden };
        let mut rest = chunk.raw(&run);
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

    /// Visible events with log index `from` or higher, in order.
    pub fn read(&self, from: u64) -> impl Iterator<Item = Stored<'_>> {
        // What is gone from the first chunk lies below.
        let from = from.max(self.trimmed_through() + 1);
        let start = self.chunks.partition_point(|chunk| chunk.last() < from);
        let skip =
            self.chunks.get(start).map_or(0, |c| c.runs.partition_point(|r| r.last() < from));
        self.chunks
            .range(start..)
            .flat_map(|chunk| chunk.runs.iter().map(move |run| (chunk, run)))
            .skip(skip)
            .flat_map(|(chunk, run)| RunEvents { index: run.first, rest: chunk.raw(run) })
            .skip_while(move |event| event.index < from)
    }
}

/// Joins the run to the one before it when it continues it: batches of one stay compact too.
fn join_or_index(chunk: &mut Chunk, run: Run, pool: &mut Chunks) {
    if let Some(before) = chunk.runs.last_mut()
        && before.last() + 1 == run.first
        && before.count + run.count <= RUN_EVENTS_MAX
        && before.bytes + run.bytes <= RUN_BYTES_MAX
    {
        before.count += run.count;
        before.bytes += run.bytes;
    } else {
        pool.index_run(chunk, run);
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
pub(super) fn split(index: u64, bytes: &[u8]) -> Option<(Stored<'_>, &[u8])> {
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
