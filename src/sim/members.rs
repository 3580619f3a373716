//! An operator who changes the members while everything else goes wrong, and what the world knows of
//! configurations: by its own books, not by what the nodes believe.
//!
//! Spare nodes run from the start and belong to nothing. Every few seconds the operator asks the leader
//! of some group for a change of one or two steps, sensible or not. It keeps within what the protocol
//! promises to bear: no change that makes those that have forgotten a majority.

use std::collections::BTreeMap;

use super::network::node_id;
use super::queue::Event;
use super::subject::Subject;
use super::trace::What;
use super::world::World;
use crate::ids::{GroupId, Index, NodeId, Term};
use crate::membership::{Membership, NodeAddress, Step};
use crate::raft::Raft;
use crate::raft::ready::Role;

/// Between two changes, microseconds.
const PAUSE_US: (u64, u64) = (300_000, 4_000_000);
/// When nobody could be asked, or what was thought of made no sense.
const AGAIN_US: (u64, u64) = (50_000, 300_000);

/// The configurations of one group that some log has, or had.
#[derive(Debug)]
pub struct Configurations {
    first: Membership,
    /// By index and term of the entry.
    known: BTreeMap<(Index, Term), Membership>,
    /// The newest committed one.
    committed: (Index, Term),
}

impl Configurations {
    pub fn new(voters: u32) -> Self {
        Self::of(Membership::of_voters((1..=voters).map(NodeId).collect()))
    }

    /// Of a group that begins with this one.
    pub fn of(first: Membership) -> Self {
        Self { first, known: BTreeMap::new(), committed: (Index::ZERO, Term::ZERO) }
    }

    /// A node uses this one.
    pub fn note(&mut self, term: Term, membership: &Membership) {
        let key = (membership.index, term);
        if membership.index > Index::ZERO && !self.known.contains_key(&key) {
            self.known.insert(key, membership.clone());
        }
    }

    /// What a node's core knows.
    fn note_books(&mut self, raft: &Raft) {
        for membership in raft.memberships() {
            let term = raft.log().term_at(membership.index).unwrap_or_default();
            self.note(term, membership);
            if membership.index <= raft.commit() {
                self.note_committed(membership.index, term);
            }
        }
    }

    /// The entry at `index` is committed with `term`.
    pub fn note_committed(&mut self, index: Index, term: Term) {
        if index > self.committed.0 && self.known.contains_key(&(index, term)) {
            self.committed = (index, term);
        }
    }

    /// Entries behind `keep` are lost, as was told.
    pub fn lose(&mut self, keep: Index) {
        if self.committed.0 > keep {
            let before = self.known.range(..(keep.next(), Term::ZERO)).next_back();
            self.committed = before.map_or((Index::ZERO, Term::ZERO), |(key, _)| *key);
        }
    }

    /// The newest committed one.
    pub fn settled(&self) -> &Membership {
        self.known.get(&self.committed).unwrap_or(&self.first)
    }

    /// Those that may decide something: the newest committed one and all behind it.
    pub fn alive(&self) -> impl Iterator<Item = &Membership> {
        let later = self.known.iter().filter(|((index, _), _)| *index > self.committed.0);
        std::iter::once(self.settled()).chain(later.map(|(_, membership)| membership))
    }
}

/// Whether a quorum of the configuration is among those for whom `holds` is true: counted here by
/// another hand than the one that is tested.
pub fn is_quorum(membership: &Membership, holds: &impl Fn(usize) -> bool) -> bool {
    [&membership.voters, &membership.outgoing].into_iter().all(|half| {
        let count = half.iter().filter(|node| holds(node.0 as usize - 1)).count();
        half.is_empty() || 2 * count > half.len()
    })
}

/// Whether those for whom `lacks` is true are a minority of each half, whoever of those that join
/// have their seats.
fn bears(membership: &Membership, lacks: &impl Fn(NodeId) -> bool) -> bool {
    let is_borne = |half: &[NodeId]| {
        let count = half.iter().filter(|&&node| lacks(node)).count();
        half.is_empty() || count <= (half.len() - 1) / 2
    };
    let seated = (0..1 << membership.joining.len()).map(|some: u32| {
        let mut voters = membership.voters.clone();
        let chosen = membership.joining.iter().enumerate().filter(|(i, _)| some >> i & 1 == 1);
        for (_, joining) in chosen {
            voters.push(joining.node);
            voters.retain(|&node| Some(node) != joining.replaces);
        }
        voters
    });
    is_borne(&membership.outgoing) && { seated }.all(|voters| is_borne(&voters))
}

/// Books.
impl<S: Subject> World<S> {
    /// Whether those that have gaps in their memory, or none at all, stay a minority with `node`, in
    /// every configuration that may decide something.
    pub(super) fn may_forget(&mut self, node: usize) -> bool {
        self.look_at_configurations();
        let lacks = |id: NodeId| id == node_id(node) || self.nodes[id.0 as usize - 1].forgot;
        let groups = self.configurations.iter();
        groups.flat_map(Configurations::alive).all(|alive| bears(alive, &lacks))
    }

    /// Whether from an empty directory the node would begin a cluster of its own: it alone is the
    /// group's first configuration, so that it needs nobody who would refuse its new disk
    /// (durability.md §3). Nothing in it can tell; who replaces its disk has to say that it joins.
    pub(super) fn founds_alone(&self, node: usize) -> bool {
        self.configurations.iter().any(|known| known.first.voters == [node_id(node)])
    }

    /// What has happened since the nodes' last turns counts, too.
    fn look_at_configurations(&mut self) {
        for node in 0..self.nodes.len() {
            for host in self.hosts_of(node) {
                let Some(shard) = &self.hosts[host].shard else { continue };
                for view in shard.groups() {
                    let group = view.raft().group().0 as usize;
                    if !self.lives[group].is_over() {
                        self.configurations[group].note_books(view.raft());
                    }
                }
            }
        }
    }

    /// Whether some configuration has a half of which a majority may have forgotten.
    pub(super) fn may_have_lost(&self, group: GroupId) -> bool {
        let lacks = |id: NodeId| self.nodes[id.0 as usize - 1].forgot;
        let mut alive = self.configurations[group.0 as usize].alive();
        alive.any(|alive| !bears(alive, &lacks))
    }

    /// Whether a node is a member of the group, as far as is committed, and works.
    pub(super) fn takes_part(&self, node: usize, group: usize) -> bool {
        let settled = self.configurations[group].settled();
        settled.is_member(node_id(node)) && !self.nodes[node].is_stranger
    }

    /// Configurations that are news, and what was committed of them.
    pub(super) fn note_configurations(&mut self, node: usize, host: usize, group: GroupId) {
        let shard = self.hosts[host].shard.as_ref().expect("it has just had its turn");
        let Some(view) = shard.group(group) else { return };
        if !self.lives[group.0 as usize].is_over() {
            self.configurations[group.0 as usize].note_books(view.raft());
        }
        let index = view.raft().membership().index;
        let what = What::Members { node: node as u32 + 1, group, index };
        self.trace.note(self.now, what);
    }
}

/// The operator.
impl<S: Subject> World<S> {
    pub(super) fn begin_members(&mut self) {
        if self.shape.changes {
            self.plan_change(PAUSE_US);
        }
    }

    fn plan_change(&mut self, pause: (u64, u64)) {
        let wait = self.members_rng.between(pause.0, pause.1);
        self.queue.push(self.now + wait, Event::Change);
    }

    pub(super) fn on_change(&mut self) {
        if self.healed_at.is_none() {
            let begun = self.try_change().is_some();
            self.plan_change(if begun { PAUSE_US } else { AGAIN_US });
        }
    }

    /// Asks the leader of a group for a change.
    fn try_change(&mut self) -> Option<()> {
        let group = self.members_rng.below(u64::from(self.shape.groups_all)) as usize;
        let leads = |node: &usize| {
            let view = self.view(*node, group);
            view.is_some_and(|view| view.raft().role() == Role::Leader)
        };
        let leader = (0..self.nodes.len()).find(leads)?;
        let raft = self.view(leader, group).expect("it leads").raft();
        // While a change is under way it must be refused.
        let membership = raft.membership();
        let membership =
            if membership.is_joint() { membership.leave() } else { membership.clone() };
        let mut steps = vec![self.any_step(leader, &membership)];
        if self.members_rng.chance(40) {
            // Whoever goes in the first may come back in the second.
            let then = membership.change(&steps).unwrap_or_else(|_| membership.clone());
            steps.push(self.any_step(leader, &then));
        }
        let target = membership.change(&steps).ok()?;
        self.look_at_configurations();
        let lacks = |id: NodeId| self.nodes[id.0 as usize - 1].forgot;
        if !bears(&target, &lacks) || self.nodes[leader].paused {
            return None;
        }
        let (now, shards) = (self.local(leader), self.shape.shards as usize);
        let host = leader * shards + group % shards;
        let shard = self.hosts[host].shard.as_mut()?;
        let begun = shard.change_group(now, GroupId(group as u32), &steps);
        self.poke(host);
        begun.ok()?;
        self.stats.changes += 1;
        self.note_node(leader, "begins a change of members in group", group as u64);
        Some(())
    }

    fn any_step(&mut self, leader: usize, membership: &Membership) -> Step {
        let any = NodeId(1 + self.members_rng.below(self.nodes.len() as u64) as u32);
        let spare: Vec<NodeId> = (0..self.nodes.len())
            .filter(|&node| !self.nodes[node].is_stranger)
            .map(node_id)
            .filter(|&node| !membership.is_member(node))
            .collect();
        let spare = match spare.len() as u64 {
            0 => any,
            n => spare[self.members_rng.below(n) as usize],
        };
        let voters = &membership.voters;
        let voter = voters[self.members_rng.below(voters.len() as u64) as usize];
        let learner = membership.learners.first().copied().unwrap_or(any);
        let address = self.any_address(spare);
        match self.members_rng.below(10) {
            0..=2 => Step::Add { node: spare, votes: true, address },
            3 => Step::Add { node: spare, votes: false, address },
            4 => Step::Remove(node_id(leader)),
            5 => Step::Remove(voter),
            6 => Step::Remove(learner),
            7 => Step::Promote(learner),
            8 => Step::Demote(voter),
            _ => Step::Replace { old: voter, new: spare, address },
        }
    }

    /// Where a node is said to be: mostly somewhere, and not always where it was.
    fn any_address(&self, node: NodeId) -> Option<NodeAddress> {
        let at = self.now % 4;
        let [peer, client] = ["peer", "client"].map(|port| format!("n{node}.room{at}:{port}"));
        (at > 0).then_some(NodeAddress { node, peer, client })
    }

    pub(super) fn switch_off(&mut self, node: usize) {
        self.kill(node);
        let state = &mut self.nodes[node];
        // A start that is planned is void.
        state.attempt += 1;
        state.holds = 1;
        state.paused = false;
    }

    /// After the trouble nodes that take part in nothing are switched off in some runs: nobody may
    /// need them. Not where clients ask so many groups that asking them would take their time.
    pub(super) fn is_superfluous(&self, node: usize) -> bool {
        let id = node_id(node);
        let mut alive = self.configurations.iter().flat_map(Configurations::alive);
        let some = self.seed.is_multiple_of(2) && self.shape.groups <= 8;
        self.shape.changes && some && !alive.any(|m| m.is_member(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u32]) -> Vec<NodeId> {
        ids.iter().map(|&id| NodeId(id)).collect()
    }

    #[test]
    fn both_halves_must_hold_and_may_lack() {
        let joint =
            Membership { outgoing: nodes(&[1, 2, 3]), ..Membership::of_voters(nodes(&[3, 4, 5])) };
        assert!(is_quorum(&joint, &|node| [1, 2, 3].contains(&node)));
        assert!(!is_quorum(&joint, &|node| [2, 3, 4].contains(&node)), "1 of the old half");
        assert!(bears(&joint, &|id| id == NodeId(3)));
        assert!(!bears(&joint, &|id| id == NodeId(1) || id == NodeId(2)));
    }

    #[test]
    fn what_is_behind_the_newest_committed_configuration_may_decide() {
        let mut books = Configurations::new(3);
        let entry = |index, ids: &[u32]| {
            let of = Membership::of_voters(nodes(ids));
            Membership { index: Index(index), ..of }
        };
        books.note(Term(1), &entry(5, &[1, 2, 3, 4]));
        books.note(Term(2), &entry(5, &[1, 2]));
        assert_eq!(books.alive().count(), 3);
        books.note_committed(Index(5), Term(2));
        assert_eq!(books.alive().count(), 1);
        assert_eq!(books.settled().voters, nodes(&[1, 2]));
        books.lose(Index(4));
        assert_eq!(books.settled().voters, nodes(&[1, 2, 3]));
    }
}
