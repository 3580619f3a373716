//! Whether this replica keeps up with its leader, by its own measure: what `/health/ready` tells an
//! operator who waits before he stops the next node. Nothing in the protocol depends on it.
//!
//! A follower that begins anew is given rounds, as its leader gives them to learners (dissertation
//! §4.2.1): each goes to where the leader's log ended when the round began. A round that took less
//! than an election timeout, or ends where the leader's log ends now, shows that it keeps up. That
//! stays so, however busy the group is, until its leader is lost, a snapshot has to be sent or the node
//! begins anew. Whose own disk stands still keeps up with nobody.

use super::{Raft, Role};
use crate::ids::{Index, Tick};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pace {
    /// Nothing was heard of a leader since the start, or for an election timeout; or a snapshot is on
    /// its way.
    #[default]
    Unknown,
    /// On a round.
    Behind {
        target: Index,
        since: Tick,
    },
    Level,
}

impl Raft {
    /// The leader's log ended at `last` when it sent what has just been handled.
    #[inline]
    pub(super) fn note_leader_at(&mut self, now: Tick, last: Index) {
        if self.pace != Pace::Level {
            self.next_round(now, last);
        }
    }

    fn next_round(&mut self, now: Tick, last: Index) {
        let commit = self.log.commit();
        let quick = match self.pace {
            Pace::Behind { target, .. } if commit < target => return,
            Pace::Behind { since, .. } => now.since(since) < self.config.election_timeout_min_us,
            Pace::Unknown | Pace::Level => false,
        };
        let is_level = quick || commit >= last;
        self.pace = if is_level { Pace::Level } else { Pace::Behind { target: last, since: now } };
    }

    /// A leader does, and a follower that has had what its leader has; not one that is RECOVERING or
    /// parted.
    pub fn keeps_up(&self, now: Tick) -> bool {
        let level = self.role == Role::Leader || self.pace == Pace::Level;
        level && self.recovery.is_none() && !self.is_parted() && !self.is_disk_stalled(now)
    }
}
