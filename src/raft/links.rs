//! What connections to other nodes tell a group.

use super::{Mutant, Raft, Ready, Role, mutants};
use crate::ids::{Incarnation, NodeId, Tick};

impl Raft {
    pub(super) fn on_connected(
        &mut self,
        now: Tick,
        peer: NodeId,
        incarnation: Incarnation,
        ready: &mut Ready,
    ) {
        let Some(i) = self.peer(peer) else { return };
        let known = self.peers[i].incarnation;
        if incarnation < known {
            return;
        }
        self.peers[i].absent = false;
        self.learn_incarnation(i, incarnation);
        let restarted = incarnation > known && !mutants::is(Mutant::NoWakeOnIncarnationChange);
        if restarted && self.is_hibernating() && self.leader == Some(peer) {
            // Who has begun anew leads nothing.
            self.wake_from_lost_leader(now);
        }
        if self.role == Role::Leader && i < self.members {
            self.wake(now, Some(peer), &[], ready);
            let progress = &mut self.peers[i].progress;
            progress.become_probe(progress.next());
            self.replicate(now, i, ready);
        }
    }

    pub(super) fn on_disconnected(&mut self, now: Tick, peer: NodeId) {
        let Some(i) = self.peer(peer) else { return };
        let progress = &mut self.peers[i].progress;
        progress.become_probe(progress.next());
        self.peers[i].absent = true;
        if self.leader == Some(peer) && self.is_hibernating() {
            if !mutants::is(Mutant::NoWakeOnIncarnationChange) {
                self.wake_from_lost_leader(now);
            }
        } else if self.leader == Some(peer) {
            self.suspect_leader(now);
        } else if self.role == Role::Leader && self.is_hibernating() {
            self.wake_without_quorum(now);
        }
    }
}
