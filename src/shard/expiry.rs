//! When sessions expire: this node's clock decides what to *propose*, an index in the log decides
//! what is over.
//!
//! ```text
//! idle 60 min                  look    look    look …                        look
//!   applied through            i100    i100    i340                          i900
//!   clock                      0:00    0:07    0:15                          1:00
//!                              └──────────────── 60 min ────────────────────┘
//!   a leader proposes at 1:00: "what was last used at i100 or before is over"
//! ```
//!
//! Whoever used its session after 0:00 did so behind i100, whatever clock the client, an earlier
//! leader or a follower has. Every replica keeps its own marks, so that a new leader need not begin
//! anew; one that had applied less than others only proposes less. After a start an idle time has to
//! pass first. What clocks do here can make sessions end late, never early by more than clocks
//! differ in rate, and never differently on two replicas.

use std::collections::VecDeque;

use super::Shard;
use super::sessions::{EXPIRE_MAX, SessionEntry};
use crate::ids::{Index, Tick};
use crate::machine::StateMachine;
use crate::mutants::{self, Mutant};
use crate::raft::ready::Role;

/// Looks in an idle time: a session may rest for so much longer.
const LOOKS: u64 = 8;

/// Where a group stood at each of the last looks. Empty while it has no sessions.
#[derive(Debug, Default)]
pub(super) struct Marks(VecDeque<(Tick, Index)>);

impl Marks {
    /// The group stands at `applied`: where it stood `idle_us` ago.
    fn look(&mut self, now: Tick, applied: Index, idle_us: u64) -> Option<Index> {
        self.0.push_back((now, applied));
        let old = |at: Tick| now.since(at) >= idle_us;
        while self.0.get(1).is_some_and(|&(at, _)| old(at)) {
            self.0.pop_front();
        }
        self.0.front().filter(|&&(at, _)| old(at)).map(|&(_, index)| index)
    }
}

impl<M: StateMachine> Shard<M> {
    /// Lets leaders propose the end of sessions that have rested for too long, when it is time to
    /// look for them.
    pub(super) fn expire_sessions(&mut self, now: Tick) {
        let idle_us = self.config.sessions.idle_us;
        if now < self.next_look {
            return;
        }
        self.next_look = match idle_us {
            0 => Tick(u64::MAX),
            _ => now.plus((idle_us / LOOKS).max(1)),
        };
        for local in 0..self.groups.len() as u32 {
            self.expire_in(now, local, idle_us);
        }
    }

    fn expire_in(&mut self, now: Tick, local: u32, idle_us: u64) {
        let group = &mut self.groups[local as usize];
        let Some(oldest) = group.sessions.oldest_use() else {
            return group.marks = Marks::default();
        };
        let Some(through) = group.marks.look(now, group.applied, idle_us) else { return };
        if mutants::is(Mutant::ExpireByLocalClock) {
            group.sessions.expire(through);
            return;
        }
        if oldest > through || group.raft.role() != Role::Leader {
            return;
        }
        let (id, count) = (group.raft.group(), group.sessions.len() / EXPIRE_MAX);
        for _ in 0..=count {
            self.propose_own(local, SessionEntry::Expire { through }.block(id, 0, 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_off_lies_an_idle_time_back_and_marks_stay_few() {
        let mut marks = Marks::default();
        for minute in 0..600 {
            let through = marks.look(Tick(minute), Index(10 * minute), 60);
            let expected = (minute >= 60).then(|| Index(10 * (minute - 60)));
            assert_eq!(through, expected, "minute {minute}");
            assert!(marks.0.len() <= 62);
        }
        assert_eq!(marks.look(Tick(10_000), Index(9_999), 60), Some(Index(5_990)), "after a pause");
        assert_eq!(marks.0.len(), 2);
    }
}
