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
//!
//! A frozen set shares the segments. What changes one afterwards copies it first: the last one once
//! for the next ids, and each one that an expiry takes only a part of. An eviction changes none.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::block::EVENT_ID_BYTES;
use crate::machine::hash::{FixedSet, mix, mix_bytes, table_bytes};
use crate::mutants::{self, Mutant};

/// An event's id as clients choose it.
pub(super) type EventId = [u8; EVENT_ID_BYTES];

const SEGMENT_IDS: usize = 1024;

/// Bytes of an entry in a snapshot.
pub(super) const ENTRY_BYTES: usize = 8 + EVENT_ID_BYTES;

#[derive(Clone, Copy, Debug)]
struct Entry {
    timestamp: u64,
    id: EventId,
}

#[derive(Clone, Debug)]
struct Segment {
    /// Bounds of the timestamps in `entries`; they may be wider after ids were evicted.
    min: u64,
    max: u64,
    entries: Vec<Entry>,
}

impl Segment {
    fn push(&mut self, entry: Entry) {
        self.min = self.min.min(entry.timestamp);
        self.max = self.max.max(entry.timestamp);
        self.entries.push(entry);
    }

    fn reset(&mut self) {
        *self = Self { entries: std::mem::take(&mut self.entries), ..Self::default() };
        self.entries.clear();
    }

    fn memory_bytes(&self) -> u64 {
        (self.entries.capacity() * size_of::<Entry>()) as u64
    }
}

impl Default for Segment {
    fn default() -> Self {
        Self { min: u64::MAX, max: 0, entries: Vec::new() }
    }
}

/// Event ids with the timestamps they were added with.
#[derive(Debug, Default)]
pub(super) struct DedupSet {
    set: FixedSet<EventId>,
    segments: VecDeque<Rc<Segment>>,
    /// Entries at the front of the first segment that are gone.
    head: usize,
    /// An emptied segment for the next one that is needed.
    spare: Option<Rc<Segment>>,
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
        self.list(Entry { timestamp, id });
        self.shrink_to(ids_max);
        true
    }

    fn list(&mut self, entry: Entry) {
        if self.segments.back().is_none_or(|s| s.entries.len() >= SEGMENT_IDS) {
            self.segments.push_back(self.spare.take().unwrap_or_default());
        }
        Rc::make_mut(self.segments.back_mut().expect("one has room")).push(entry);
    }

    /// Evicts the ids that came first until `ids_max` are left.
    pub fn shrink_to(&mut self, ids_max: u64) {
        while self.len() > ids_max
            && let Some(front) = self.segments.front()
        {
            let oldest = &front.entries[self.head];
            self.set.remove(&oldest.id);
            self.head += 1;
            if self.head == front.entries.len() {
                self.retire_front();
            }
        }
    }

    fn retire_front(&mut self) {
        self.head = 0;
        if let Some(mut segment) = self.segments.pop_front()
            && let Some(own) = Rc::get_mut(&mut segment)
        {
            own.reset();
            self.spare = Some(segment);
        }
    }

    /// Removes every id whose timestamp lies before `cut_off`.
    pub fn expire(&mut self, cut_off: u64) {
        let set = &mut self.set;
        for (at, segment) in self.segments.iter_mut().enumerate() {
            let late = mutants::is(Mutant::ExpireWholeSegments);
            if if late { segment.max } else { segment.min } >= cut_off {
                continue;
            }
            let head = if at == 0 { std::mem::take(&mut self.head) } else { 0 };
            let live = &segment.entries[head..];
            for entry in live.iter().filter(|entry| entry.timestamp < cut_off) {
                set.remove(&entry.id);
            }
            keep_since(segment, head, cut_off);
        }
        // Empty ones in the middle go too: their memory is not needed, and order does not suffer.
        self.segments.retain(|segment| !segment.entries.is_empty());
    }

    fn live(&self) -> impl Iterator<Item = &Entry> {
        self.segments.iter().flat_map(|segment| &segment.entries).skip(self.head)
    }

    /// The ids as they are now: a pointer for each 1,024 of them.
    pub fn freeze(&self) -> FrozenDedup {
        FrozenDedup { segments: self.segments.clone(), at: self.head }
    }

    /// Takes one entry of a snapshot; `false` when its id was there already.
    pub fn restore(&mut self, timestamp: u64, id: EventId) -> bool {
        let new = self.set.insert(id);
        if new {
            self.list(Entry { timestamp, id });
        }
        new
    }

    /// Digest of the ids and timestamps in order.
    pub fn digest(&self, seed: u64) -> u64 {
        self.live().fold(mix(seed, self.len()), |d, e| mix_bytes(mix(d, e.timestamp), &e.id))
    }

    pub fn memory_bytes(&self) -> u64 {
        let segments = self.segments.iter().chain(&self.spare);
        table_bytes(self.set.capacity(), EVENT_ID_BYTES)
            + segments.map(|segment| segment.memory_bytes()).sum::<u64>()
            + (self.segments.capacity() * size_of::<Rc<Segment>>()) as u64
    }
}

/// Leaves the entries behind `head` that are not older than `cut_off`; a segment that is shared is
/// replaced by what is left of it.
fn keep_since(segment: &mut Rc<Segment>, head: usize, cut_off: u64) {
    let keep = |entry: &Entry| entry.timestamp >= cut_off;
    if let Some(own) = Rc::get_mut(segment) {
        own.entries.drain(..head);
        own.entries.retain(keep);
        own.min = own.entries.iter().map(|e| e.timestamp).min().unwrap_or(u64::MAX);
        return;
    }
    let mut left = Segment::default();
    segment.entries[head..].iter().filter(|e| keep(e)).for_each(|e| left.push(*e));
    *segment = Rc::new(left);
}

/// A set as it was, handed out from the oldest id on.
#[derive(Debug)]
pub(super) struct FrozenDedup {
    segments: VecDeque<Rc<Segment>>,
    /// Entries of the first segment that are gone or handed out.
    at: usize,
}

impl FrozenDedup {
    /// Appends `u64 timestamp, 16 bytes id` of the next id. `false`: there is none.
    pub fn put_next(&mut self, into: &mut Vec<u8>) -> bool {
        let Some(segment) = self.segments.front() else { return false };
        let entry = &segment.entries[self.at];
        into.extend_from_slice(&entry.timestamp.to_le_bytes());
        into.extend_from_slice(&entry.id);
        self.at += 1;
        if self.at == segment.entries.len() {
            self.segments.pop_front();
            self.at = 0;
        }
        true
    }

    /// Bytes of segments that the live set no longer has.
    pub fn memory_bytes(&self) -> u64 {
        let own = self.segments.iter().filter(|segment| Rc::strong_count(segment) == 1);
        own.map(|segment| segment.memory_bytes()).sum()
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
        assert_eq!(set.live().count() as u64, set.len());
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
        let live: Vec<_> = set.live().map(|e| e.id).collect();
        assert_eq!(live, (10..16).map(id).collect::<Vec<_>>());
        assert_eq!(set.len(), 6);
        assert!(set.add(id(3), 40, 10), "id 3 was evicted long ago");
    }
}
