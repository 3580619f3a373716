//! The event store as it was at one index, on its way into a snapshot.
//!
//! ```text
//! head     u32 version 1  u32 0  5 × u64 limits  u64 applied  u64 digest  3 × u64 totals  u64 hand
//!          u64 configuration keys  u64 queues  u64 event ids
//! keys     u32 size of the key  u32 size of the value  key  value
//! queues   u32 size of the name  u32 chunks  u32 cut events  u32 cut bytes
//!          u64 last  u64 dropped through  name, then chunks:
//!            u32 runs  u32 skip  u32 bytes  u32 0
//!            runs × { u64 first  u32 count  u32 bytes }, then the bytes of the events
//! ids      u64 timestamp  16 bytes id
//! ```
//!
//! Everything in the order in which the store holds it. `skip` bytes of a chunk lie before its first
//! run that is left: where a chunk is full decides which events join a run, and so what retention
//! takes together, hence a restored store must fill its chunks as the first one does.
//!
//! # Cost
//!
//! Freezing copies one pointer for each page. Afterwards the first event of a queue copies a pointer
//! for each of its chunks (64 KiB of events) and its last chunk; the first id copies the last segment
//! of ids; a configuration change copies a page. Beyond that the frozen state costs what the store
//! gives up while it is written, at most the size of the store; each chunk goes once it is written.

use std::collections::VecDeque;
use std::rc::Rc;

use super::EventStore;
use super::dedup::FrozenDedup;
use super::queue::{Chunk, Queue};
use crate::machine::FrozenState;
use crate::machine::shared::{MapDrain, PagesDrain};
use crate::machine::snapshot::{put_u32s, put_u64s};

pub(super) const STATE_VERSION: u32 = 1;
pub(super) const HEAD_BYTES: usize = 120;
pub(super) const QUEUE_BYTES: usize = 32;
pub(super) const CHUNK_HEAD_BYTES: usize = 16;
pub(super) const RUN_BYTES: usize = 16;

/// See the module. Parts that are written are let go.
#[derive(Debug)]
pub(super) struct FrozenEvents {
    /// Empty once it is written.
    head: Vec<u8>,
    config: MapDrain,
    queues: PagesDrain<Queue>,
    /// Of the queue that is being written.
    chunks: VecDeque<Rc<Chunk>>,
    /// Runs that are gone at the front of `chunks`.
    gone: usize,
    ids: FrozenDedup,
}

impl FrozenEvents {
    pub fn new(store: &EventStore) -> Self {
        Self {
            head: head(store),
            config: store.settings.table.clone().drain(),
            queues: store.queues.clone().drain(),
            chunks: VecDeque::new(),
            gone: 0,
            ids: store.dedup.freeze(),
        }
    }

    /// Appends one item. `false`: there is none left.
    fn put_next(&mut self, into: &mut Vec<u8>) -> bool {
        if let Some(chunk) = self.chunks.pop_front() {
            put_chunk(&chunk, std::mem::take(&mut self.gone), into);
            return true;
        }
        if !self.head.is_empty() {
            into.append(&mut self.head);
            return true;
        }
        self.config.put_next(into) || self.put_queue(into) || self.ids.put_next(into)
    }

    fn put_queue(&mut self, into: &mut Vec<u8>) -> bool {
        let Some(queue) = self.queues.next() else { return false };
        let (name, chunks) = (queue.name.len() as u32, queue.chunks.len() as u32);
        put_u32s(into, &[name, chunks, queue.cut.events, queue.cut.bytes]);
        put_u64s(into, &[queue.last, queue.dropped_through]);
        into.extend_from_slice(&queue.name);
        (self.chunks, self.gone) = (queue.chunks, queue.head as usize);
        true
    }
}

fn head(store: &EventStore) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let (limits, totals) = (store.settings.defaults, store.totals);
    put_u32s(&mut head, &[STATE_VERSION, 0]);
    put_u64s(&mut head, &limits.numbers());
    put_u64s(&mut head, &[store.applied.get(), store.digest]);
    put_u64s(&mut head, &[totals.applied, totals.duplicates, totals.rejected]);
    put_u64s(&mut head, &[store.hand as u64, store.settings.table.len() as u64]);
    put_u64s(&mut head, &[store.queues.len() as u64, store.dedup.len()]);
    assert_eq!(head.len(), HEAD_BYTES);
    head
}

fn put_chunk(chunk: &Chunk, gone: usize, into: &mut Vec<u8>) {
    let runs = &chunk.runs[gone..];
    let skip = runs.first().map_or(0, |run| run.start);
    let events = &chunk.bytes[skip as usize..];
    put_u32s(into, &[runs.len() as u32, skip, events.len() as u32, 0]);
    for run in runs {
        put_u64s(into, &[run.first]);
        put_u32s(into, &[run.count, run.bytes]);
    }
    into.extend_from_slice(events);
}

impl FrozenState for FrozenEvents {
    fn next_chunk(&mut self, into: &mut Vec<u8>, budget_bytes: usize) -> bool {
        let start = into.len();
        while into.len() - start < budget_bytes.max(1) {
            if !self.put_next(into) {
                return false;
            }
        }
        true
    }

    fn memory_bytes(&self) -> u64 {
        let queues = self.queues.unshared().flat_map(|queue| &queue.chunks);
        let chunks = queues.chain(&self.chunks).filter(|chunk| Rc::strong_count(chunk) == 1);
        chunks.map(|chunk| chunk.memory_bytes()).sum::<u64>()
            + self.ids.memory_bytes()
            + self.config.memory_bytes()
    }
}
