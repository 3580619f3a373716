//! All voters of a group lose power at once, and none of its learners does.
//!
//! Nobody asks a learner who is to lead. So what it has committed may be gone with the disks of those
//! who are asked: they tell of a loss and go on without it, and the learner has to notice that its
//! log is not theirs any more (`raft::Raft::part`). By chance that takes hours: a learner is a rare
//! thing, what voters have not synced is a tenth of a second old, and their losses of power have to
//! overlap. Here they do, at a moment when it would show.

use super::disk::Survival;
use super::nemesis::Fault;
use super::subject::Subject;
use super::world::World;
use crate::ids::GroupId;

impl<S: Subject> World<S> {
    /// Whoever votes in some group of which a learner has committed what none of them has synced loses
    /// power, and all that it has not synced. `false`: there is no such group now.
    pub(super) fn black_out(&mut self, at: usize) -> bool {
        let groups = 0..self.lives.len();
        let voters = { groups }.find_map(|group| self.voters_behind_a_learner(group));
        let Some(voters) = voters else { return false };
        for &node in &voters {
            self.cut_power_leaving(node, Survival::None);
            self.nodes[node].holds += 1;
        }
        // Whose power is to come back: those, whoever may vote by then.
        self.shape.plan[at].amount = voters.iter().fold(0, |nodes, node| nodes | 1 << node);
        true
    }

    pub(super) fn end_blackout(&mut self, fault: &Fault) {
        (0..self.nodes.len())
            .filter(|node| fault.amount >> node & 1 == 1)
            .for_each(|node| self.release(node));
    }

    /// The voters of a group, all of them running, if a learner has committed an entry that is on the
    /// disk of none of them.
    fn voters_behind_a_learner(&self, group: usize) -> Option<Vec<usize>> {
        let id = GroupId(group as u32);
        if self.shape.syncs(id) || !self.lives[group].lives() {
            return None;
        }
        let mut alive = self.configurations[group].alive();
        // A change under way is left alone: the voters are these.
        let (settled, None) = (alive.next()?, alive.next()) else { return None };
        let running = |node: &usize| self.nodes[*node].up && !self.nodes[*node].may_rot;
        let voters: Vec<usize> = settled.voters.iter().map(|node| node.0 as usize - 1).collect();
        let whole = settled.outgoing.is_empty() && voters.iter().all(running);
        let shards = self.shape.shards as usize;
        let is_ahead = |node: usize| {
            let Some(view) = self.view(node, group).filter(|_| running(&node)) else {
                return false;
            };
            let index = view.raft().commit();
            let term = view.raft().log().term_at(index).unwrap_or_default();
            let has = |voter: &usize| {
                let shadow = &self.hosts[voter * shards + group % shards].shadow;
                shadow.is_durable(id, index, term)
            };
            !voters.iter().any(has)
        };
        let mut learners = settled.learners.iter().map(|node| node.0 as usize - 1);
        (whole && learners.any(is_ahead)).then_some(voters)
    }
}
