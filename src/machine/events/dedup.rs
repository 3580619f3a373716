//! The set of event ids that were seen, bounded, in the order in which they came.
//!
//! ```text
//! segments  [ id id … id ][ id id … id ][ id … ]   1,024 each, oldest first, with the lowest and
//!            min..max      min..max      min..max  highest timestamp of each
//! set       { every id in the segments }           and no other
//! ```
//!
//! Timestamps come from proposers, so they are nearly but not exactly in order. An expiry looks at
//! the two bounds of a segment and touches only those that hold something older than its cut-off.

use std::collections::VecDeque;

use crate::block::EVENT_ID_BYTES;
use crate::machine::hash::{FixedSet, mix, mix_bytes, table_bytes};
use crate::mutants::{self, Mutant};

/// An event's id as clients choose it.
pub(super) type EventId = [u8; EVENT_ID_BYTES];

const SEGMENT_IDS: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Entry {
    timestamp: u64,
    id: EventId,
}

#[derive(Debug)]
struct Segment {
    /// Bounds of the timestamps in `entries`; they may be wider after ids were evicted.
    min: u64,
    max: u64,
    /// Entries before it are gone.
    head: usize,
    entries: Vec<Entry>,
}

impl Segment {
    fn live(&self) -> &[Entry] {
        &self.entries[self.head..]
    }

    fn push(&mut self, entry: Entry) {
        self.min = self.min.min(entry.timestamp);
        self.max = self.max.max(entry.timestamp);
        self.entries.push(entry);
    }

    fn reset(&mut self) {
        *self = Self { entries: std::mem::take(&mut self.entries), ..Self::default() };
        self.entries.clear();
    }
}

impl Default for Segment {
    fn default() -> Self {
        Self { min: u64::MAX, max: 0, head: 0, entries: Vec::new() }
    }
}

/// Event ids with the timestamps they were added with.
#[derive(Debug, Default)]
pub(super) struct DedupSet {
    set: FixedSet<EventId>,
    segments: VecDeque<Segment>,
    /// An emptied segment for the next one that is needed.
    spare: Option<Segment>,
}

impl DedupSet {
    pub fn len(&self) -> u64 {
        self.set.len() as u64
    }

    pub fn contains(&self, id: &EventId) -> bool {
        self.set.contains(id)
    }

    /// Adds an id; `false`, and the older timestamp stays, when it is there already. Beyond
    /// `ids_max` ids the one that came first goes.
    pub fn add(&mut self, id: EventId, timestamp: u64, ids_max: u64) -> bool {
        if !self.set.insert(id) && !mutants::is(Mutant::DedupForgets) {
            return false;
        }
        let full = self.segments.back().is_none_or(|s| s.entries.len() >= SEGMENT_IDS);
        if full {
            self.segments.push_back(self.spare.take().unwrap_or_default());
        }
        let segment = self.segments.back_mut().expect("one has room");
        segment.push(Entry { timestamp, id });
        self.shrink_to(ids_max);
        true
    }

    /// Evicts the ids that came first until `ids_max` are left.
    pub fn shrink_to(&mut self, ids_max: u64) {
        while self.len() > ids_max
            && let Some(front) = self.segments.front_mut()
        {
            if let Some(oldest) = front.live().first() {
                self.set.remove(&oldest.id);
                front.head += 1;
            }
            if front.live().is_empty() {
                self.retire_front();
            }
        }
    }

    fn retire_front(&mut self) {
        if let Some(mut segment) = self.segments.pop_front() {
            segment.reset();
            self.spare = Some(segment);
        }
    }

    /// Removes every id whose timestamp lies before `cut_off`.
    pub fn expire(&mut self, cut_off: u64) {
        let set = &mut self.set;
        for segment in self.segments.iter_mut().filter(|s| {
            let bound = if mutants::is(Mutant::ExpireWholeSegments) { s.max } else { s.min };
            bound < cut_off
        }) {
            segment.entries.drain(..segment.head);
            segment.head = 0;
            segment.entries.retain(|entry| {
                let keep = entry.timestamp >= cut_off;
                if !keep {
                    set.remove(&entry.id);
                }
                keep
            });
            segment.min = segment.entries.iter().map(|e| e.timestamp).min().unwrap_or(u64::MAX);
        }
        // Empty ones in the middle go too: their memory is not needed, and order does not suffer.
        self.segments.retain(|segment| !segment.live().is_empty());
    }

    /// Digest of the ids and timestamps in order.
    pub fn digest(&self, seed: u64) -> u64 {
        let live = self.segments.iter().flat_map(Segment::live);
        live.fold(mix(seed, self.len()), |d, e| mix_bytes(mix(d, e.timestamp), &e.id))
    }

    pub fn memory_bytes(&self) -> u64 {
        let segments = self.segments.iter().chain(&self.spare);
        let entries: usize = segments.map(|s| s.entries.capacity()).sum();
        table_bytes(self.set.capacity(), EVENT_ID_BYTES)
            + (entries * size_of::<Entry>() + self.segments.capacity() * size_of::<Segment>())
                as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> EventId {
        u128::from(n).to_le_bytes()
    }

    #[test]
    fn an_id_is_added_once_and_keeps_its_first_timestamp() {
        let mut set = DedupSet::default();
        assert!(set.add(id(1), 10, 100));
        assert!(!set.add(id(1), 99, 100));
        set.expire(11);
        assert!(!set.contains(&id(1)));
    }

    #[test]
    fn expiry_takes_exactly_what_is_older_than_the_cut_off_in_any_order() {
        let mut set = DedupSet::default();
        // Neighbours come 500 out of order, as from proposers whose clocks differ.
        for n in 0..5000u64 {
            set.add(id(n), n ^ 0x1f4, 1 << 20);
        }
        set.expire(3000);
        for n in 0..5000u64 {
            assert_eq!(set.contains(&id(n)), n ^ 0x1f4 >= 3000, "id {n}");
        }
        let listed: usize = set.segments.iter().map(|s| s.live().len()).sum();
        assert_eq!(listed as u64, set.len());
    }

    #[test]
    fn over_the_limit_the_id_that_came_first_goes() {
        let mut set = DedupSet::default();
        for n in 0..10_000u64 {
            set.add(id(n), 1_000_000 - n, 3000);
        }
        assert_eq!(set.len(), 3000);
        assert!(!set.contains(&id(6999)) && set.contains(&id(7000)) && set.contains(&id(9999)));
        assert!(set.segments.len() <= 4, "emptied segments go");
        set.shrink_to(0);
        assert_eq!((set.len(), set.segments.len()), (0, 0));
    }

    #[test]
    fn an_expiry_after_evictions_does_not_bring_evicted_ids_back() {
        let mut set = DedupSet::default();
        // Ids 0 to 9 are evicted, although theirs are the newest timestamps.
        for n in 0..20u64 {
            set.add(id(n), 100 - n, 10);
        }
        set.expire(85);
        let live: Vec<_> = set.segments.iter().flat_map(Segment::live).map(|e| e.id).collect();
        assert_eq!(live, (10..16).map(id).collect::<Vec<_>>());
        assert_eq!(set.len(), 6);
        assert!(set.add(id(3), 40, 10), "id 3 was evicted long ago");
    }
}
