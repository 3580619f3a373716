//! Majorities. Votes, commits and contact all ask here, so that joint consensus has one place to be
//! right in.

use crate::ids::NodeId;
use crate::membership::Membership;
pub use crate::membership::VOTERS_MAX;
use crate::mutants::{self, Mutant};

/// One voter's answer to a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ballot {
    Refused,
    Granted,
    /// Granted by a RECOVERING voter: it may have forgotten what it acknowledged.
    Marked,
}

/// How an election stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    Won,
    /// Won by the grants of all voters, so many of them RECOVERING that what a majority once held
    /// may be gone: nobody who remembers it was left to refuse.
    WonWithLoss,
    /// Too many refused: this round cannot be won any more.
    Lost,
    Pending,
}

/// The answers of one set of voters, counted.
#[derive(Clone, Copy, Debug)]
struct Tally {
    voters: usize,
    majority: usize,
    granted: usize,
    marked: usize,
    refused: usize,
}

impl Tally {
    fn has_majority(&self) -> bool {
        self.voters == 0 || self.granted >= self.majority
    }

    /// Every open answer may still become a grant without a mark.
    fn may_get_majority(&self) -> bool {
        self.voters == 0 || self.voters - self.refused - self.marked >= self.majority
    }

    fn is_unanimous(&self) -> bool {
        self.granted + self.marked == self.voters
    }

    /// Each acknowledged command was on a majority. Marked voters that are fewer leave one member of
    /// it that remembers, and without its grant there is no unanimity.
    fn may_have_forgotten(&self) -> bool {
        self.voters > 0 && self.marked >= self.majority
    }
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

    /// Counts the answers; `None` = not there yet.
    fn tally(&self, answer: impl Fn(NodeId) -> Option<Ballot>) -> Tally {
        let count = |wanted| self.ids.iter().filter(|id| answer(**id) == Some(wanted)).count();
        let marked_counts = mutants::is(Mutant::CountRecoveringInMajority);
        let (granted, marked) = (count(Ballot::Granted), count(Ballot::Marked));
        Tally {
            voters: self.ids.len(),
            majority: self.majority(),
            granted: if marked_counts { granted + marked } else { granted },
            marked: if marked_counts { 0 } else { marked },
            refused: count(Ballot::Refused),
        }
    }
}

/// The configuration that decides (§6). While a change is under way both halves must agree.
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

    /// Who decides by this membership. Learners do not.
    pub fn of(membership: &Membership) -> Self {
        let mut incoming = membership.voters.clone();
        if mutants::is(Mutant::LearnersCount) {
            incoming.extend_from_slice(&membership.learners);
            incoming.truncate(VOTERS_MAX);
        }
        let new_only = mutants::is(Mutant::JointByNewMajority);
        let outgoing = if new_only { Vec::new() } else { membership.outgoing.clone() };
        Self::joint(incoming, outgoing)
    }

    pub fn incoming(&self) -> &Voters {
        &self.incoming
    }

    /// Nobody but this node decides.
    pub fn is_only(&self, id: NodeId) -> bool {
        self.incoming.ids == [id] && (self.outgoing.ids.is_empty() || self.outgoing.ids == [id])
    }

    /// Lets one more node decide; a planted bug needs it.
    pub(super) fn include(&mut self, id: NodeId) {
        if !self.incoming.contains(id) {
            self.incoming.ids.push(id);
            self.incoming.ids.sort_unstable();
        }
    }

    pub fn contains(&self, id: NodeId) -> bool {
        self.incoming.contains(id) || self.outgoing.contains(id)
    }

    /// The highest value that a quorum has reached.
    #[inline]
    pub fn reached(&self, value: impl Fn(NodeId) -> u64) -> u64 {
        self.incoming.reached(&value).min(self.outgoing.reached(&value))
    }

    /// The election quorum (durability.md R6), of both halves: a majority of grants without a mark,
    /// which a candidate that is itself `recovering` cannot use; or the grants of all, marked or not.
    pub fn votes(&self, recovering: bool, answer: impl Fn(NodeId) -> Option<Ballot>) -> VoteResult {
        let halves = [self.incoming.tally(&answer), self.outgoing.tally(&answer)];
        let plain = !recovering || mutants::is(Mutant::CountRecoveringInMajority);
        if plain && halves.iter().all(Tally::has_majority) {
            return VoteResult::Won;
        }
        if halves.iter().all(Tally::is_unanimous) {
            let loss = halves.iter().any(Tally::may_have_forgotten);
            return if loss { VoteResult::WonWithLoss } else { VoteResult::Won };
        }
        let by_majority = plain && halves.iter().all(Tally::may_get_majority);
        let by_all = halves.iter().all(|half| half.refused == 0);
        if by_majority || by_all { VoteResult::Pending } else { VoteResult::Lost }
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

    const YES: Option<Ballot> = Some(Ballot::Granted);
    const NO: Option<Ballot> = Some(Ballot::Refused);
    const MARKED: Option<Ballot> = Some(Ballot::Marked);

    fn election(recovering: bool, answers: &[Option<Ballot>]) -> VoteResult {
        let voters = JointConfig::simple(nodes(answers.len() as u32));
        voters.votes(recovering, |id| answers[id.0 as usize - 1])
    }

    #[test]
    fn an_election_is_won_lost_or_open() {
        let result = |answers: &[Option<Ballot>]| election(false, answers);
        assert_eq!(result(&[YES]), VoteResult::Won);
        assert_eq!(result(&[YES, None]), VoteResult::Pending);
        assert_eq!(result(&[YES, NO]), VoteResult::Lost);
        assert_eq!(result(&[YES, NO, None]), VoteResult::Pending);
        assert_eq!(result(&[YES, NO, NO]), VoteResult::Lost);
        assert_eq!(result(&[YES, YES, NO, NO, None]), VoteResult::Pending);
        assert_eq!(result(&[YES, YES, YES, NO, NO]), VoteResult::Won);
    }

    #[test]
    fn marked_grants_count_only_when_all_have_granted() {
        let result = |answers: &[Option<Ballot>]| election(false, answers);
        assert_eq!(result(&[YES, MARKED, None]), VoteResult::Pending);
        assert_eq!(result(&[YES, MARKED, NO]), VoteResult::Lost);
        assert_eq!(result(&[YES, MARKED, YES]), VoteResult::Won);
        // One of two that remember must be in every majority of four.
        assert_eq!(result(&[YES, YES, MARKED, MARKED]), VoteResult::Won);
        assert_eq!(result(&[YES, MARKED, MARKED]), VoteResult::WonWithLoss);
        assert_eq!(result(&[YES, MARKED, MARKED, None, NO]), VoteResult::Lost);
    }

    #[test]
    fn a_recovering_candidate_needs_everybody() {
        let result = |answers: &[Option<Ballot>]| election(true, answers);
        assert_eq!(result(&[MARKED, YES, None]), VoteResult::Pending);
        assert_eq!(result(&[MARKED, YES, YES, YES, None]), VoteResult::Pending);
        assert_eq!(result(&[MARKED, YES, NO]), VoteResult::Lost);
        assert_eq!(result(&[MARKED, YES, YES]), VoteResult::Won);
        assert_eq!(result(&[MARKED, MARKED, YES]), VoteResult::WonWithLoss);
        assert_eq!(result(&[MARKED]), VoteResult::WonWithLoss, "alone, it was its own majority");
    }

    #[test]
    fn a_joint_configuration_needs_both_halves() {
        let joint = JointConfig::joint(nodes(3), vec![NodeId(3), NodeId(4), NodeId(5)]);
        // Nodes 1 and 2 have 9, which is a majority of the new half only.
        assert_eq!(joint.reached(|id| if id.0 <= 2 { 9 } else { 4 }), 4);
        let votes =
            |yes: &[u32]| joint.votes(false, |id| if yes.contains(&id.0) { YES } else { None });
        assert_eq!(votes(&[1, 2]), VoteResult::Pending);
        assert_eq!(votes(&[1, 3, 4]), VoteResult::Won);
        let lost = joint.votes(false, |id| if id.0 <= 3 { YES } else { NO });
        assert_eq!(lost, VoteResult::Lost);
        // The old half has lost its memory; the new one has not.
        let forgot = |id: NodeId| if id.0 >= 4 { MARKED } else { YES };
        assert_eq!(joint.votes(false, forgot), VoteResult::WonWithLoss);
        let open = |id: NodeId| if id.0 == 2 { None } else { forgot(id) };
        assert_eq!(joint.votes(false, open), VoteResult::Pending);
    }
}
