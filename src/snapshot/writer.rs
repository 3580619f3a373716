//! From frozen states to a snapshot's bytes, a few a turn.

use super::header::{self, Header};
use super::{END_BYTES, Kind, PART_BYTES_MAX, PART_HEAD_BYTES};
use crate::checksum::crc32c_append;
use crate::machine::FrozenState;
use crate::machine::snapshot::{put_u32s, put_u64s};

/// What is still to be written of one source.
struct Source {
    kind: Kind,
    state: Box<dyn FrozenState>,
}

/// Writes one snapshot. Dropping it half-way lets go of the frozen states.
pub struct SnapshotWriter {
    /// Until it is written.
    header: Option<Header>,
    header_checksum: u32,
    /// The one that is being written last.
    sources: Vec<Source>,
    /// Bytes that a source gave and that did not go into a part yet, from `at` on.
    pending: Vec<u8>,
    pending_kind: Kind,
    at: usize,
    parts: u64,
    sessions_bytes: u64,
    state_bytes: u64,
    /// Of everything written.
    checksum: u32,
    /// The same before the part at the end.
    whole: u32,
    done: bool,
}

impl SnapshotWriter {
    /// `sessions` and `state` must have been frozen at `header.index`, in the same turn.
    pub fn new(
        header: Header,
        sessions: Box<dyn FrozenState>,
        state: Box<dyn FrozenState>,
    ) -> Self {
        Self {
            header: Some(header),
            header_checksum: 0,
            sources: vec![
                Source { kind: Kind::State, state },
                Source { kind: Kind::Sessions, state: sessions },
            ],
            pending: Vec::new(),
            pending_kind: Kind::Sessions,
            at: 0,
            parts: 0,
            sessions_bytes: 0,
            state_bytes: 0,
            checksum: 0,
            whole: 0,
            done: false,
        }
    }

    /// Appends the header, one part of at most `budget_bytes` (at least one byte), or the end.
    /// `false`: the snapshot is complete.
    pub fn next(&mut self, into: &mut Vec<u8>, budget_bytes: usize) -> bool {
        let start = into.len();
        let budget = budget_bytes.clamp(1, PART_BYTES_MAX);
        if let Some(header) = self.header.take() {
            header::encode(&header, into);
            let checksum = &into[start..start + 4];
            self.header_checksum = u32::from_le_bytes(checksum.try_into().expect("4 bytes"));
        } else if self.done {
            return false;
        } else if self.refill(budget) {
            self.put_part(into, budget);
        } else {
            self.put_end(into);
            self.done = true;
        }
        self.checksum = crc32c_append(self.checksum, &into[start..]);
        !self.done
    }

    /// Of everything before the end, once that is written: with the size it names these very bytes.
    pub fn whole_checksum(&self) -> u32 {
        self.whole
    }

    /// Bytes that only the frozen states still hold: what this snapshot costs in memory.
    pub fn memory_bytes(&self) -> u64 {
        let frozen: u64 = self.sources.iter().map(|source| source.state.memory_bytes()).sum();
        frozen + self.pending.capacity() as u64
    }

    /// Sees to it that something is pending. `false`: nothing is left.
    fn refill(&mut self, budget: usize) -> bool {
        while self.at == self.pending.len() {
            let Some(source) = self.sources.last_mut() else { return false };
            (self.at, self.pending_kind) = (0, source.kind);
            self.pending.clear();
            if !source.state.next_chunk(&mut self.pending, budget) {
                self.sources.pop();
            }
        }
        true
    }

    fn put_part(&mut self, into: &mut Vec<u8>, budget: usize) {
        let size = budget.min(self.pending.len() - self.at);
        match self.pending_kind {
            Kind::Sessions => self.sessions_bytes += size as u64,
            _ => self.state_bytes += size as u64,
        }
        let end = self.at + size;
        put_part(
            self.header_checksum,
            self.pending_kind,
            self.parts,
            &self.pending[self.at..end],
            into,
        );
        (self.at, self.parts) = (end, self.parts + 1);
    }

    fn put_end(&mut self, into: &mut Vec<u8>) {
        self.whole = self.checksum;
        let mut end = Vec::with_capacity(END_BYTES);
        put_u64s(&mut end, &[self.sessions_bytes, self.state_bytes, self.parts]);
        put_u32s(&mut end, &[self.checksum, 0]);
        put_part(self.header_checksum, Kind::End, self.parts, &end, into);
    }
}

pub(super) fn put_part(seed: u32, kind: Kind, number: u64, payload: &[u8], into: &mut Vec<u8>) {
    let start = into.len();
    put_u32s(into, &[0, payload.len() as u32, kind as u32, 0]);
    put_u64s(into, &[number]);
    assert_eq!(into.len() - start, PART_HEAD_BYTES);
    into.extend_from_slice(payload);
    let checksum = crc32c_append(seed, &into[start + 4..]);
    into[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
}
