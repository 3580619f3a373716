//! Learners on their way to a vote (dissertation §4.2.1).
//!
//! The leader gives a learner rounds: each goes from where the log ends when the round begins. A round
//! that took less than an election timeout shows that the learner keeps up: as a voter it will not
//! hold commits back for longer than an election would. It is then seated, through a joint
//! configuration like any other voter.

use super::progress::State;
use super::{Raft, Ready, Role};
use crate::ids::{Index, NodeId, Tick};
use crate::membership::Step;

/// How a learner keeps up with its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct CatchUp {
    pub node: NodeId,
    /// End of the running round.
    target: Index,
    since: Tick,
    /// Its last round was a short one.
    ready: bool,
}

impl CatchUp {
    pub(super) fn forget_time(&mut self) {
        self.since = Tick::ZERO;
    }
}

impl Raft {
    /// Begins to watch the learners that are to become voters; a follower watches none.
    pub(super) fn follow_learners(&mut self, now: Tick) {
        let joining = &self.history.current().joining;
        if self.role != Role::Leader || joining.is_empty() {
            return self.catch_up.clear();
        }
        self.catch_up.retain(|c| joining.iter().any(|joining| joining.node == c.node));
        let target = self.log.last_index();
        for joining in joining {
            if self.catch_up.iter().all(|c| c.node != joining.node) {
                let fresh = CatchUp { node: joining.node, target, since: now, ready: false };
                self.catch_up.push(fresh);
            }
        }
    }

    /// Peer `i` holds the log through `matched`.
    #[inline]
    pub(super) fn note_round(&mut self, now: Tick, i: usize, matched: Index) {
        if self.catch_up.is_empty() {
            return;
        }
        let (node, last) = (self.peers[i].id, self.log.last_index());
        let patience = self.config.election_timeout_min_us;
        let Some(learner) = self.catch_up.iter_mut().find(|c| c.node == node) else { return };
        if matched >= learner.target {
            let quick = now.since(learner.since) < patience;
            learner.ready = quick || matched == last;
            (learner.target, learner.since) = (last, now);
        }
    }

    /// Makes voters of those that keep up, if a change may be made now; else it is tried again.
    pub(super) fn seat_learners(&mut self, now: Tick, ready: &mut Ready) {
        if self.role != Role::Leader || self.catch_up.iter().all(|c| !c.ready) {
            return;
        }
        // Whom another one replaces goes when that one comes.
        let joining = &self.history.current().joining;
        let stays = |node: NodeId| joining.iter().all(|joining| joining.replaces != Some(node));
        let keeps_up = |c: &&CatchUp| {
            let here = self.peer(c.node).map(|i| &self.peers[i].progress);
            let flows = here.is_some_and(|progress| progress.state() == State::Replicate);
            c.ready && flows && stays(c.node) && self.is_live(now, c.node)
        };
        let seats: Vec<_> =
            self.catch_up.iter().filter(keeps_up).map(|c| Step::Seat(c.node)).collect();
        if !seats.is_empty() {
            // Refused while another change is open, or for want of a quorum: the next answer of
            // the learner, or of anybody, tries again.
            let _ = self.on_propose_membership(now, &seats, false, ready);
        }
    }
}
