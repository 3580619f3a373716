//! What happens next: one heap of events by time, and in the order of their making where times are
//! equal, so that nothing depends on anything but the seed.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Something that happens. The numbers are positions in the world's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A shard wants to be called.
    Host(u32),
    /// A packet arrives.
    Packet(u32),
    /// A link is dialled; its handshake ends; its loss is noticed. With the link's generation.
    Dial(u32, u32),
    Shake(u32, u32),
    Lost(u32, u32),
    /// A client thinks of something, or looks after what is open.
    Client(u32),
    /// A fault of the plan begins, goes on (flapping), or ends.
    Begin(u32),
    Again(u32),
    End(u32),
    /// A node that is down starts; its start goes on when the boot record is written. With the
    /// number of the attempt.
    Start(u32, u32),
    Started(u32, u32),
    /// The boot record that says that the node has its memory back is written.
    Recorded(u32, u32),
    /// The operator changes members.
    Change,
    /// The operator makes groups, or ends one.
    Wish,
    /// All trouble ends.
    Heal,
    /// Is everything as it should be, some time after the trouble?
    Look,
}

/// An event and its place in time: the earliest is the greatest, as the heap wants it.
#[derive(Debug)]
struct Due {
    at: u64,
    made: u64,
    event: Event,
}

impl Due {
    fn place(&self) -> u128 {
        u128::from(self.at) << 64 | u128::from(self.made)
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        other.place().cmp(&self.place())
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Due {}

/// See the module.
#[derive(Debug, Default)]
pub struct Queue {
    heap: BinaryHeap<Due>,
    made: u64,
}

impl Queue {
    /// `event` happens at `at`, microseconds.
    pub fn push(&mut self, at: u64, event: Event) {
        self.made += 1;
        self.heap.push(Due { at, made: self.made, event });
    }

    /// The next event and its time.
    pub fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|due| (due.at, due.event))
    }
}
