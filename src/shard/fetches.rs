//! Blocks that a follower needs and memory no longer holds.

use super::{FollowerRead, Shard};
use crate::ids::Tick;
use crate::machine::StateMachine;
use crate::raft::Event;
use crate::raft::ready::Fetch;

impl<M: StateMachine> Shard<M> {
    /// Starts the reads of blocks that followers need and memory no longer holds.
    pub(super) fn start_fetches(&mut self, now: Tick) {
        let mut i = 0;
        while i < self.ready.fetches.len() {
            let Fetch { group, to, from, through, bytes_max } = self.ready.fetches[i];
            i += 1;
            let token = self.next_read;
            self.next_read += 1;
            let queue = &mut self.disk_queue;
            if self.wal.read(group, from, through, bytes_max, token, queue).is_err() {
                let local = super::local_of(group, &self.config);
                self.step(now, local, Event::Fetched { to, from, blocks: &mut Vec::new() });
            } else {
                self.reads.push(FollowerRead { token, to, from });
            }
        }
        self.ready.fetches.clear();
    }
}
