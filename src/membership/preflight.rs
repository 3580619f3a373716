//! What a change would mean for the failures that a group survives, before it is made.

use std::fmt;

use super::Membership;
use crate::ids::NodeId;

/// One set of voters, and who of them answers now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voters {
    pub voters: Vec<NodeId>,
    /// Those that have not answered lately.
    pub silent: Vec<NodeId>,
}

impl Voters {
    fn new(voters: &[NodeId], live: &impl Fn(NodeId) -> bool) -> Self {
        let silent = voters.iter().copied().filter(|&node| !live(node)).collect();
        Self { voters: voters.to_vec(), silent }
    }

    /// How many must agree.
    pub fn quorum(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// Failures that are survived when all work.
    pub fn tolerates(&self) -> usize {
        self.voters.len() - self.quorum()
    }

    /// Failures that are survived beside those that have happened; `None`: no quorum answers.
    pub fn spare(&self) -> Option<usize> {
        (self.voters.len() - self.silent.len()).checked_sub(self.quorum())
    }
}

/// What [`preflight`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preflight {
    pub before: Voters,
    pub after: Voters,
}

/// Looks at a change from `current` to `target`; `live`: who has answered the leader lately, itself
/// among them.
pub fn preflight(
    current: &Membership,
    target: &Membership,
    live: impl Fn(NodeId) -> bool,
) -> Preflight {
    let of = |membership: &Membership| Voters::new(&membership.voters, &live);
    Preflight { before: of(current), after: of(target) }
}

impl Preflight {
    /// Both halves must agree while the change is under way, and the new one afterwards: without a
    /// quorum that answers in each, the group would stand still.
    pub fn is_safe(&self) -> bool {
        self.before.spare().is_some() && self.after.spare().is_some()
    }
}

/// For people.
impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (&self.before, &self.after);
        write!(
            f,
            "{} voters (survive {} failures) become {} (survive {})",
            before.voters.len(),
            before.tolerates(),
            after.voters.len(),
            after.tolerates()
        )?;
        for (voters, name) in [(before, "old"), (after, "new")] {
            let Some(first) = voters.silent.first() else { continue };
            write!(f, "; of the {name} ones node {first}")?;
            voters.silent[1..].iter().try_for_each(|node| write!(f, ", {node}"))?;
            match voters.spare() {
                Some(0) => write!(f, " does not answer: the next failure stops the group")?,
                Some(n) => write!(f, " does not answer: {n} more may fail")?,
                None => write!(f, " does not answer: no quorum, the group would stand still")?,
            }
        }
        if after.voters.len().is_multiple_of(2) {
            write!(f, "; an even number survives no more than one voter less")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Step;
    use super::*;

    fn three() -> Membership {
        Membership::of_voters([1, 2, 3].map(NodeId).to_vec())
    }

    #[test]
    fn removing_a_voter_while_another_is_silent_leaves_no_quorum() {
        let target = three().change(&[Step::Remove(NodeId(3))]).unwrap();
        let found = preflight(&three(), &target, |node| node != NodeId(2));
        assert!(!found.is_safe());
        assert_eq!((found.before.spare(), found.after.spare()), (Some(0), None));
        assert_eq!(
            found.to_string(),
            "3 voters (survive 1 failures) become 2 (survive 0); of the old ones node 2 does not \
             answer: the next failure stops the group; of the new ones node 2 does not answer: no \
             quorum, the group would stand still; an even number survives no more than one voter \
             less"
        );
    }

    #[test]
    fn removing_the_silent_one_is_what_the_change_is_for() {
        let target = three().change(&[Step::Remove(NodeId(2))]).unwrap();
        let found = preflight(&three(), &target, |node| node != NodeId(2));
        assert!(found.is_safe());
        assert_eq!((found.after.tolerates(), found.after.spare()), (0, Some(0)));
    }
}
