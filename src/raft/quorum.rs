//! Majorities. Votes, commits and contact all ask here, so that joint consensus has one place to be
//! right in.

use crate::ids::NodeId;

/// Most voters of one half of a configuration.
pub const VOTERS_MAX: usize = 15;

/// How an election stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    Won,
    /// Too many refused: this round cannot be won any more.
    Lost,
    Pending,
}

/// One set of voters and its majority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voters {
    /// Ascending, without duplicates, at most [`VOTERS_MAX`].
    ids: Vec<NodeId>,
}

impl Voters {
    /// Sorts and removes duplicates.
    pub fn new(mut ids: Vec<NodeId>) -> Self {
        ids.sort_unstable();
        ids.dedup();
        assert!(ids.len() <= VOTERS_MAX, "checked by Config::validate");
        Self { ids }
    }

    /// Ascending.
    pub fn ids(&self) -> &[NodeId] {
        &self.ids
    }

    pub fn contains(&self, id: NodeId) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// Smallest number of voters that overlaps any other such number.
    pub fn majority(&self) -> usize {
        self.ids.len() / 2 + 1
    }

    /// The highest value that a majority has reached; `u64::MAX` without voters, so that an empty
    /// half of a joint configuration decides nothing.
    #[inline]
    pub fn reached(&self, value: impl Fn(NodeId) -> u64) -> u64 {
        let n = self.ids.len();
        if n == 0 {
            return u64::MAX;
        }
        let mut values = [0; VOTERS_MAX];
        for (slot, &id) in values.iter_mut().zip(&self.ids) {
            *slot = value(id);
        }
        values[..n].sort_unstable();
        values[n - self.majority()]
    }

    /// Counts the answers; `None` = not there yet. Without voters the half is won.
    pub fn votes(&self, answer: impl Fn(NodeId) -> Option<bool>) -> VoteResult {
        let granted = self.ids.iter().filter(|id| answer(**id) == Some(true)).count();
        let refused = self.ids.iter().filter(|id| answer(**id) == Some(false)).count();
        if self.ids.is_empty() || granted >= self.majority() {
            VoteResult::Won
        } else if self.ids.len() - refused < self.majority() {
            VoteResult::Lost
        } else {
            VoteResult::Pending
        }
    }
}

/// The configuration that decides (§6). While a change is under way both halves must agree; until
/// changes are built the outgoing half is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JointConfig {
    incoming: Voters,
    outgoing: Voters,
}

impl JointConfig {
    /// A configuration that is not changing.
    pub fn simple(voters: Vec<NodeId>) -> Self {
        Self { incoming: Voters::new(voters), outgoing: Voters::new(Vec::new()) }
    }

    /// C(old,new): agreement needs a majority of each.
    pub fn joint(incoming: Vec<NodeId>, outgoing: Vec<NodeId>) -> Self {
        Self { incoming: Voters::new(incoming), outgoing: Voters::new(outgoing) }
    }

    pub fn incoming(&self) -> &Voters {
        &self.incoming
    }

    pub fn contains(&self, id: NodeId) -> bool {
        self.incoming.contains(id) || self.outgoing.contains(id)
    }

    /// The highest value that a quorum has reached.
    #[inline]
    pub fn reached(&self, value: impl Fn(NodeId) -> u64) -> u64 {
        self.incoming.reached(&value).min(self.outgoing.reached(&value))
    }

    /// Won only if both halves are won, lost as soon as one is lost.
    pub fn votes(&self, answer: impl Fn(NodeId) -> Option<bool>) -> VoteResult {
        match (self.incoming.votes(&answer), self.outgoing.votes(&answer)) {
            (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
            (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
            _ => VoteResult::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(n: u32) -> Vec<NodeId> {
        (1..=n).map(NodeId).collect()
    }

    #[test]
    fn what_a_majority_has_reached_for_one_to_five_voters() {
        let values = [50, 10, 40, 20, 30];
        let reached = |n| Voters::new(nodes(n)).reached(|id| values[id.0 as usize - 1]);
        assert_eq!([1, 2, 3, 4, 5].map(reached), [50, 10, 40, 20, 30]);
    }

    #[test]
    fn an_election_is_won_lost_or_open() {
        let result = |answers: &[Option<bool>]| {
            Voters::new(nodes(answers.len() as u32)).votes(|id| answers[id.0 as usize - 1])
        };
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(result(&[yes]), VoteResult::Won);
        assert_eq!(result(&[yes, None]), VoteResult::Pending);
        assert_eq!(result(&[yes, no]), VoteResult::Lost);
        assert_eq!(result(&[yes, no, None]), VoteResult::Pending);
        assert_eq!(result(&[yes, no, no]), VoteResult::Lost);
        assert_eq!(result(&[yes, yes, no, no, None]), VoteResult::Pending);
        assert_eq!(result(&[yes, yes, yes, no, no]), VoteResult::Won);
    }

    #[test]
    fn a_joint_configuration_needs_both_halves() {
        let joint = JointConfig::joint(nodes(3), vec![NodeId(3), NodeId(4), NodeId(5)]);
        // Nodes 1 and 2 have 9, which is a majority of the new half only.
        assert_eq!(joint.reached(|id| if id.0 <= 2 { 9 } else { 4 }), 4);
        let votes = |yes: &[u32]| joint.votes(|id| yes.contains(&id.0).then_some(true));
        assert_eq!(votes(&[1, 2]), VoteResult::Pending);
        assert_eq!(votes(&[1, 3, 4]), VoteResult::Won);
        let lost = joint.votes(|id| Some(id.0 <= 3));
        assert_eq!(lost, VoteResult::Lost);
    }
}
