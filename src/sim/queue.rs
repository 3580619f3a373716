//! What happens next: one heap of events by time, and in the order of their making where times are
//! equal, so that nothing depends on anything but the seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Something that happens. The numbers are positions in the world's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// See the module.
#[derive(Debug, Default)]
pub struct Queue {
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    made: u64,
}

impl Queue {
    /// `event` happens at `at`, microseconds.
    pub fn push(&mut self, at: u64, event: Event) {
        self.made += 1;
        self.heap.push(Reverse((at, self.made, event)));
    }

    /// The next event and its time.
    pub fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|Reverse((at, _, event))| (at, event))
    }
}
