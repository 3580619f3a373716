//! From one configuration to the next, pure: what an operator asks for becomes a checked target, the
//! target is entered through the joint configuration and left behind it (§6).
//!
//! ```text
//! voters 1 2 3          change: replace 3 by 4
//! + learner 4, joining  one entry: nobody's vote changes          4 gets the log
//! 1 2 4 | 1 2 3         4 has caught up: joint, both must agree
//! 1 2 4                 the joint entry is committed: left
//! ```
//!
//! A change that leaves the voters as they are is one entry: all quorums are the same before and
//! after. Every other one goes through the joint configuration, also when a single voter changes: the
//! short cut for one voter at a time was unsafe as first published (bugs.md 19).

use thiserror::Error;

use super::{ADDRESS_BYTES_MAX, Joining, MEMBERS_MAX, Membership, NodeAddress, contains};
use crate::ids::{Index, NodeId};

/// Most voters of one half of a configuration.
pub const VOTERS_MAX: usize = 15;

/// One step of a change. Several make one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new member. `votes`: it becomes a voter as soon as it has caught up, else it stays a learner.
    Add { node: NodeId, votes: bool, address: Option<NodeAddress> },
    /// Out, whatever it is.
    Remove(NodeId),
    /// A learner becomes a voter as soon as it has caught up.
    Promote(NodeId),
    /// A voter becomes a learner.
    Demote(NodeId),
    /// `new` joins, and when it has caught up takes the place of `old`.
    Replace { old: NodeId, new: NodeId, address: Option<NodeAddress> },
    /// A learner becomes a voter now. The leader's own step, for one that has caught up.
    Seat(NodeId),
}

/// Why a change cannot be made of this configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChangeError {
    #[error("node {0} is a member already")]
    Member(NodeId),
    #[error("node {0} is not a member")]
    NoMember(NodeId),
    #[error("node {0} is not a voter")]
    NoVoter(NodeId),
    #[error("node {0} is not a learner")]
    NoLearner(NodeId),
    #[error("nobody would be left to vote")]
    NoVoters,
    #[error("more than {VOTERS_MAX} voters")]
    TooManyVoters,
    #[error("more than {MEMBERS_MAX} members")]
    TooManyMembers,
    #[error("node ids start at 1")]
    NodeZero,
    #[error("the address of node {0} is empty, too long, or of another node")]
    Address(NodeId),
    #[error("this is how it is already")]
    Nothing,
}

impl Membership {
    /// The configuration that `steps` lead to; not joint, and without an index.
    ///
    /// # Panics
    /// When this one is joint: one change at a time.
    pub fn change(&self, steps: &[Step]) -> Result<Self, ChangeError> {
        assert!(!self.is_joint(), "one change at a time");
        let mut target = Self { index: Index::ZERO, ..self.clone() };
        steps.iter().try_for_each(|step| target.step(step))?;
        target.forget_strangers();
        target.check()?;
        if (Self { index: self.index, ..target.clone() }) == *self {
            return Err(ChangeError::Nothing);
        }
        // Both are encoded for the log, and whoever asks for a change is not trusted with that: the
        // joint one has the addresses of those that go, too.
        let fits = target.is_well_formed() && self.enter(target.clone()).is_well_formed();
        if fits { Ok(target) } else { Err(ChangeError::TooManyMembers) }
    }

    fn step(&mut self, step: &Step) -> Result<(), ChangeError> {
        match *step {
            Step::Add { node, votes, ref address } => {
                self.join(node, address.as_ref())?;
                if votes { self.promote(node, None) } else { Ok(()) }
            }
            Step::Replace { old, new, ref address } => {
                self.expect_member(old)?;
                self.join(new, address.as_ref())?;
                self.promote(new, Some(old))
            }
            Step::Promote(node) => self.promote(node, None),
            Step::Seat(node) => self.seat(node),
            Step::Demote(node) => {
                if !remove(&mut self.voters, node) {
                    return Err(ChangeError::NoVoter(node));
                }
                insert(&mut self.learners, node);
                Ok(())
            }
            Step::Remove(node) => {
                self.expect_member(node)?;
                self.expel(node);
                Ok(())
            }
        }
    }

    fn expect_member(&self, node: NodeId) -> Result<(), ChangeError> {
        if self.is_member(node) { Ok(()) } else { Err(ChangeError::NoMember(node)) }
    }

    fn join(&mut self, node: NodeId, address: Option<&NodeAddress>) -> Result<(), ChangeError> {
        if node == NodeId::ZERO {
            return Err(ChangeError::NodeZero);
        }
        if self.is_member(node) {
            return Err(ChangeError::Member(node));
        }
        insert(&mut self.learners, node);
        let Some(address) = address else { return Ok(()) };
        let fits = |text: &str| !text.is_empty() && text.len() <= ADDRESS_BYTES_MAX;
        if address.node != node || !fits(&address.peer) || !fits(&address.client) {
            return Err(ChangeError::Address(node));
        }
        self.forget_address(node);
        let at = self.addresses.partition_point(|known| known.node < node);
        self.addresses.insert(at, address.clone());
        Ok(())
    }

    fn promote(&mut self, node: NodeId, replaces: Option<NodeId>) -> Result<(), ChangeError> {
        if !self.is_learner(node) {
            return Err(ChangeError::NoLearner(node));
        }
        self.joining.retain(|joining| joining.node != node);
        let at = self.joining.partition_point(|joining| joining.node < node);
        self.joining.insert(at, Joining { node, replaces });
        Ok(())
    }

    fn seat(&mut self, node: NodeId) -> Result<(), ChangeError> {
        if !remove(&mut self.learners, node) {
            return Err(ChangeError::NoLearner(node));
        }
        insert(&mut self.voters, node);
        let replaces = self.joining.iter().find(|j| j.node == node).and_then(|j| j.replaces);
        self.joining.retain(|joining| joining.node != node);
        if let Some(old) = replaces {
            self.expel(old);
        }
        Ok(())
    }

    /// What it comes to when all that join have caught up.
    #[must_use]
    pub fn seated(&self) -> Self {
        let mut seated = self.clone();
        for joining in &self.joining {
            // Who was replaced by one before it is gone.
            let _ = seated.seat(joining.node);
        }
        seated
    }

    /// While its vote still counts, [`Membership::enter`] keeps the address that it had.
    fn expel(&mut self, node: NodeId) {
        self.forget_address(node);
        remove(&mut self.voters, node);
        remove(&mut self.learners, node);
        self.joining.retain(|joining| joining.node != node);
        for joining in &mut self.joining {
            joining.replaces = joining.replaces.filter(|&old| old != node);
        }
    }

    fn forget_address(&mut self, node: NodeId) {
        self.addresses.retain(|address| address.node != node);
    }

    /// Addresses are kept for members only.
    fn forget_strangers(&mut self) {
        let members = self.members();
        self.addresses.retain(|address| contains(&members, address.node));
    }

    fn check(&self) -> Result<(), ChangeError> {
        if self.voters.is_empty() {
            return Err(ChangeError::NoVoters);
        }
        // Who joins has to find a seat when it has caught up.
        if self.seated().voters.len() > VOTERS_MAX {
            return Err(ChangeError::TooManyVoters);
        }
        if self.members().len() > MEMBERS_MAX {
            return Err(ChangeError::TooManyMembers);
        }
        Ok(())
    }

    /// The entry that brings `target` about: C(old,new), or `target` itself where nobody's vote
    /// changes.
    #[must_use]
    pub fn enter(&self, target: Self) -> Self {
        if target.voters == self.voters {
            return target;
        }
        let goes = |node: &NodeId| contains(&self.voters, *node);
        let (learners_next, learners) = target.learners.iter().copied().partition(goes);
        let mut joint = Self { outgoing: self.voters.clone(), learners, learners_next, ..target };
        for address in &self.addresses {
            if joint.is_member(address.node) && joint.address(address.node).is_none() {
                let at = joint.addresses.partition_point(|known| known.node < address.node);
                joint.addresses.insert(at, address.clone());
            }
        }
        joint
    }

    /// C(new): the entry that ends a joint configuration.
    #[must_use]
    pub fn leave(&self) -> Self {
        let mut next = Self { index: Index::ZERO, outgoing: Vec::new(), ..self.clone() };
        for node in std::mem::take(&mut next.learners_next) {
            insert(&mut next.learners, node);
        }
        next.forget_strangers();
        next
    }
}

fn insert(list: &mut Vec<NodeId>, node: NodeId) {
    if let Err(at) = list.binary_search(&node) {
        list.insert(at, node);
    }
}

fn remove(list: &mut Vec<NodeId>, node: NodeId) -> bool {
    let found = list.binary_search(&node);
    found.is_ok_and(|at| list.remove(at) == node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32) -> NodeId {
        NodeId(id)
    }

    fn nodes(ids: &[u32]) -> Vec<NodeId> {
        ids.iter().map(|&id| NodeId(id)).collect()
    }

    fn three() -> Membership {
        Membership { index: Index(7), ..Membership::of_voters(nodes(&[1, 2, 3])) }
    }

    fn at(id: u32) -> NodeAddress {
        let (peer, client) = (format!("h{id}:1"), format!("h{id}:2"));
        NodeAddress { node: node(id), peer, client }
    }

    fn add(id: u32, votes: bool) -> Step {
        Step::Add { node: node(id), votes, address: Some(at(id)) }
    }

    #[test]
    fn a_node_joins_as_a_learner_and_gets_its_seat_through_a_joint_configuration() {
        let joined = three().enter(three().change(&[add(4, true)]).unwrap());
        assert!(!joined.is_joint(), "nobody's vote changes");
        assert_eq!(joined.joining, [Joining { node: node(4), replaces: None }]);
        let joint = joined.enter(joined.change(&[Step::Seat(node(4))]).unwrap());
        assert_eq!(joint.voters, nodes(&[1, 2, 3, 4]));
        assert_eq!(joint.outgoing, nodes(&[1, 2, 3]));
        assert_eq!(joint.address(node(4)), Some(&at(4)));
        let after = joint.leave();
        assert_eq!((&after.voters, after.is_joint()), (&nodes(&[1, 2, 3, 4]), false));
        assert!(after.joining.is_empty() && after.learners.is_empty());
    }

    #[test]
    fn a_replaced_node_leaves_in_the_change_that_seats_the_new_one() {
        let step = Step::Replace { old: node(3), new: node(4), address: Some(at(4)) };
        let joined = three().change(&[step]).unwrap();
        assert_eq!(joined.voters, nodes(&[1, 2, 3]), "until the new one has caught up");
        assert_eq!(joined.seated().voters, nodes(&[1, 2, 4]));
        let joint = joined.enter(joined.change(&[Step::Seat(node(4))]).unwrap());
        assert_eq!((&joint.voters, &joint.outgoing), (&nodes(&[1, 2, 4]), &nodes(&[1, 2, 3])));
        assert_eq!(joint.leave().members(), nodes(&[1, 2, 4]));
    }

    #[test]
    fn a_demoted_voter_is_a_learner_only_behind_the_joint_configuration() {
        let joint = three().enter(three().change(&[Step::Demote(node(2))]).unwrap());
        assert_eq!((&joint.learners, &joint.learners_next), (&vec![], &nodes(&[2])));
        assert!(joint.is_voter(node(2)) && !joint.is_learner(node(2)));
        assert!(joint.leave().is_learner(node(2)));
    }

    #[test]
    fn several_at_once_are_one_change() {
        let mut before = three();
        before.learners = nodes(&[5, 6]);
        let steps = [Step::Remove(node(1)), Step::Seat(node(5)), Step::Seat(node(6))];
        let joint = before.enter(before.change(&steps).unwrap());
        assert_eq!((&joint.voters, &joint.outgoing), (&nodes(&[2, 3, 5, 6]), &nodes(&[1, 2, 3])));
    }

    #[test]
    fn addresses_leave_with_their_nodes_and_not_before() {
        let with = three().change(&[add(4, false)]).unwrap();
        let seated = with.change(&[Step::Seat(node(4))]).unwrap();
        let joint = seated.enter(seated.change(&[Step::Remove(node(4))]).unwrap());
        assert!(joint.address(node(4)).is_some(), "it is still needed");
        assert!(joint.leave().addresses.is_empty());
    }

    fn encodes(membership: &Membership) -> bool {
        let mut bytes = Vec::new();
        membership.encode(&mut bytes);
        Membership::decode(&bytes).as_ref() == Ok(membership)
    }

    /// Story: node 4 lost its disk and comes back at another address, under its old name. One change
    /// with both steps had two addresses of one node, and stopped every leader that was asked for it.
    #[test]
    fn a_node_that_goes_and_comes_back_in_one_change_has_the_address_that_it_came_with() {
        let moved = NodeAddress { peer: "h9:1".into(), ..at(4) };
        let comes = Step::Add { node: node(4), votes: true, address: Some(moved.clone()) };
        let learner = three().change(&[add(4, false)]).unwrap();
        let again = learner.change(&[Step::Remove(node(4)), comes.clone()]).unwrap();
        assert!(encodes(&again) && again.addresses == [moved.clone()]);

        let voter = learner.change(&[Step::Seat(node(4))]).unwrap();
        let joint = voter.enter(voter.change(&[Step::Remove(node(4)), comes]).unwrap());
        assert!(encodes(&joint) && joint.addresses == [moved.clone()]);
        assert!(joint.leave().is_learner(node(4)) && joint.leave().addresses == [moved]);

        let replace = Step::Replace { old: node(3), new: node(4), address: None };
        let quiet = learner.change(&[Step::Remove(node(4)), replace]).unwrap();
        assert!(encodes(&quiet) && quiet.addresses.is_empty());
    }

    #[test]
    fn a_change_whose_joint_configuration_would_not_fit_is_refused() {
        let ids = 4..=61 + 3;
        let learners: Vec<_> = ids.map(|id| add(id, false)).collect();
        let bare = three().change(&learners).unwrap();
        let voters = (1..=3).map(at).chain(bare.addresses.iter().cloned()).collect();
        let full = Membership { addresses: voters, ..bare };
        assert_eq!((full.members().len(), full.addresses.len()), (MEMBERS_MAX, MEMBERS_MAX));
        let steps = [Step::Remove(node(3)), add(65, false)];
        assert_eq!(full.change(&steps), Err(ChangeError::TooManyMembers));
        let goes = full.enter(full.change(&steps[..1]).unwrap());
        assert!(encodes(&goes) && goes.leave().change(&steps[1..]).is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        let full: Vec<_> = (4..=13).map(|id| add(id, false)).collect();
        let mut many = three().change(&full).unwrap();
        for id in 4..=13 {
            many = many.change(&[Step::Seat(node(id))]).unwrap();
        }
        let long = NodeAddress { peer: "h".repeat(300), ..at(4) };
        let odd = Step::Add { node: node(4), votes: true, address: Some(long) };
        let cases = [
            (vec![add(3, true)], ChangeError::Member(node(3))),
            (vec![add(0, true)], ChangeError::NodeZero),
            (vec![odd], ChangeError::Address(node(4))),
            (vec![Step::Remove(node(4))], ChangeError::NoMember(node(4))),
            (vec![Step::Promote(node(3))], ChangeError::NoLearner(node(3))),
            (vec![Step::Demote(node(4))], ChangeError::NoVoter(node(4))),
            (vec![add(4, true), Step::Remove(node(4))], ChangeError::Nothing),
            (
                vec![1, 2, 3].into_iter().map(|id| Step::Remove(node(id))).collect(),
                ChangeError::NoVoters,
            ),
        ];
        for (steps, error) in cases {
            assert_eq!(three().change(&steps), Err(error), "{steps:?}");
        }
        let three_more: Vec<_> =
            (14..=16).flat_map(|id| [add(id, false), Step::Seat(node(id))]).collect();
        assert_eq!(many.change(&three_more), Err(ChangeError::TooManyVoters));
    }
}
