//! Entries that hold the front of a log which is too long, and that no snapshot can stand for, since
//! they are not committed.
//!
//! Story: n4 is down while it is removed from g1, with entries of g1 behind its commit index. It comes
//! back for its other groups; of g1 it never hears again. The same holds for any group without a
//! quorum beside groups that are well: the log of all would fill up behind a few entries.
//!
//! They are read back and logged again at the head. Raft hears nothing of it: the entries are the same,
//! and they have been durable all the time.

use super::super::Shard;
use crate::block::Block;
use crate::ids::{Index, Term};
use crate::machine::StateMachine;

/// Marks the token of a read; the rest is the group's place.
const PINNED_TOKEN: u64 = 1 << 62;
/// Groups at a time.
const AT_ONCE: usize = 16;
/// Bytes of one read.
const READ_BYTES: u32 = 1 << 20;

/// A group whose log is read back.
pub(super) struct Moving {
    local: u32,
    rest: Rest,
    blocks: Vec<Block>,
}

/// All that a log has: from its first entry to its last one, of this term. As long as that is the
/// same, so is everything in between.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rest {
    first: Index,
    last: Index,
    term: Term,
}

impl Moving {
    fn next(&self) -> Index {
        self.blocks.last().map_or(self.rest.first, |block| block.last().next())
    }
}

impl<M: StateMachine> Shard<M> {
    /// What was logged again is committed before it is written, and memory no longer has it.
    pub(in super::super) fn apply_when_written(&mut self, local: u32) {
        if !self.snapshots.unwritten.iter().any(|(of, _)| *of == local) {
            self.snapshots.unwritten.push((local, self.wal.staged()));
        }
    }

    /// Groups that waited for that go on.
    pub(super) fn apply_written(&mut self) {
        let (written, groups) = (self.wal.written(), &mut self.groups);
        self.snapshots.unwritten.retain(|&(local, end)| {
            if end <= written {
                groups[local as usize].want_apply(local, &mut self.applying);
            }
            end > written
        });
    }

    /// The group holds the front and has nothing to cut.
    pub(super) fn log_again(&mut self, local: u32) {
        let moving = &self.snapshots.moving;
        if moving.len() >= AT_ONCE || moving.iter().any(|moving| moving.local == local) {
            return;
        }
        if let Some(rest) = self.rest_of_log(local) {
            self.read_on(Moving { local, rest, blocks: Vec::new() });
        }
    }

    /// What there is to move: everything, if nothing of it is known to be committed, all of it is
    /// written, and it is little.
    fn rest_of_log(&self, local: u32) -> Option<Rest> {
        let group = &self.groups[local as usize];
        let (log, begins) = (group.raft.log(), group.snapshot.start.index);
        let (first, last, term) = (log.first_index(), log.last_index(), log.last_term());
        let idle = log.start().index == begins && log.commit() == begins;
        let settled = first <= last && log.durable() == last;
        let may = idle && settled && self.wal.may_log_again(group.raft.group(), first);
        may.then_some(Rest { first, last, term })
    }

    fn read_on(&mut self, moving: Moving) {
        let group = self.groups[moving.local as usize].raft.group();
        let (next, last) = (moving.next(), moving.rest.last);
        let token = PINNED_TOKEN | u64::from(moving.local);
        let queue = &mut self.disk_queue;
        if self.wal.read(group, next, last, READ_BYTES, token, queue).is_ok() {
            self.snapshots.moving.push(moving);
        }
    }

    /// Whether this read was for that; then it goes on. What could not be read is tried again when
    /// the log is looked at again.
    pub(in super::super) fn fetched_pinned(&mut self, token: u64, blocks: &mut Vec<Block>) -> bool {
        let of = |moving: &Moving| PINNED_TOKEN | u64::from(moving.local) == token;
        let Some(at) = self.snapshots.moving.iter().position(of) else { return false };
        let mut moving = self.snapshots.moving.swap_remove(at);
        let due = blocks.first().is_some_and(|block| block.first() == moving.next());
        if !due || self.rest_of_log(moving.local) != Some(moving.rest) {
            return true;
        }
        moving.blocks.append(blocks);
        if moving.next() <= moving.rest.last {
            self.read_on(moving);
        } else {
            let group = self.groups[moving.local as usize].raft.group();
            self.wal.log_again(group, &moving.blocks);
        }
        true
    }
}
