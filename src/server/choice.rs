//! What an operator's recovery does with each group of the node: goes on without what is missing,
//! leaves it alone, or refuses the whole.
//!
//! ```text
//!                 nobody is named as lost            some are lost
//! damaged         another member: refused            a majority is left: refused
//!                 a node unaccounted for: refused    a node unaccounted for: refused
//!                 alone: forced                      no majority, or alone: forced
//! not damaged     forgot what was not synced, and    no majority: forced; with one, or if this
//!                 is alone: forced; else left alone  node does not vote: left alone
//! ```
//!
//! *Unaccounted for*: damage may have taken the entry that made a node a member. Story: n1 was alone,
//! then took n2 and n3 in; its log rots back to before that. By its own word it is everybody, while n2
//! and n3 go on as a majority: two clusters in one. Its boot record has seen them; so each node that it
//! has ever known is a member of what is left, or is given up by name.

use super::recover::{GroupReport, RecoverError};
use crate::ids::NodeId;
use crate::membership::Membership;

/// See the module.
#[derive(Debug)]
pub enum Choice {
    /// It goes on without what is missing.
    Force,
    /// Nothing is done, and why.
    Leave(RecoverError),
}

/// What is done with `group` on node `me`, which has ever known the nodes `known`. An error refuses
/// all of the recovery: the group must start as suspicious as it is.
pub fn choose(
    me: NodeId,
    group: &GroupReport,
    lost: &[NodeId],
    known: &[NodeId],
) -> Result<Choice, RecoverError> {
    let left = leave(me, group, lost);
    if !group.damaged {
        return Ok(left.map_or(Choice::Force, Choice::Leave));
    }
    if let Some(why) = left {
        return Err(why);
    }
    let members = group.membership.members();
    let unseen = |node: &&NodeId| **node != me && !members.contains(node) && !lost.contains(node);
    let unseen: Vec<_> = known.iter().filter(unseen).map(ToString::to_string).collect();
    if !unseen.is_empty() {
        return Err(RecoverError::MayBeMembers { group: group.group.0, nodes: unseen.join(",") });
    }
    Ok(Choice::Force)
}

/// Why a group needs no force; `None`: nothing else helps.
fn leave(me: NodeId, report: &GroupReport, lost: &[NodeId]) -> Option<RecoverError> {
    let (group, voters) = (report.group.0, report.voters());
    if !voters.contains(&me) {
        return Some(RecoverError::NotAVoter(group));
    }
    let is_alone = voters == [me];
    if is_alone {
        return (!report.recovering).then_some(RecoverError::NothingLost);
    }
    if lost.is_empty() {
        let others = voters.iter().filter(|voter| **voter != me);
        let others = others.map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Some(RecoverError::PeersHaveIt { others });
    }
    let remain = |half: &[NodeId]| half.iter().filter(|node| !lost.contains(node)).count();
    let has_quorum = |half: &[NodeId]| half.is_empty() || remain(half) > half.len() / 2;
    let Membership { voters: incoming, outgoing, .. } = &report.membership;
    let enough = has_quorum(incoming) && has_quorum(outgoing);
    let (left, voters) = (remain(&voters), voters.len());
    enough.then_some(RecoverError::StillAMajority { group, left, voters })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{GroupId, Index, Term};

    const ME: NodeId = NodeId(1);

    fn nodes(numbers: &[u32]) -> Vec<NodeId> {
        numbers.iter().copied().map(NodeId).collect()
    }

    fn group(voters: &[u32]) -> GroupReport {
        GroupReport {
            group: GroupId(7),
            last: Index(9),
            last_term: Term(2),
            term: Term(2),
            commit: Index(9),
            epoch: 0,
            recovering: false,
            damaged: false,
            behind: Index(0),
            membership: Membership::of_voters(nodes(voters)),
        }
    }

    fn damaged(voters: &[u32]) -> GroupReport {
        GroupReport { recovering: true, damaged: true, ..group(voters) }
    }

    /// "force", or the words of who leaves it or refuses it.
    fn says(group: &GroupReport, lost: &[u32], known: &[u32]) -> String {
        match choose(ME, group, &nodes(lost), &nodes(known)) {
            Ok(Choice::Force) => "force".into(),
            Ok(Choice::Leave(why)) => format!("left: {why}"),
            Err(why) => format!("refused: {why}"),
        }
    }

    fn begins(text: &str, with: &str, word: &str) {
        assert!(text.starts_with(with) && text.contains(word), "{with} ... {word}: {text}");
    }

    /// n1 was alone and took n2 and n3 in; its log rots back to before that.
    #[test]
    fn a_damaged_log_is_not_believed_that_its_node_is_everybody() {
        begins(&says(&damaged(&[1]), &[], &[2, 3]), "refused", "node 2,3");
        begins(&says(&damaged(&[1]), &[3], &[2, 3]), "refused", "node 2 ");
        assert_eq!(says(&damaged(&[1]), &[2, 3], &[2, 3]), "force");
        assert_eq!(says(&damaged(&[1]), &[], &[]), "force");
    }

    /// Three became five, the log says three. 2 and 3 burn; 1, 4 and 5 are a majority in truth.
    #[test]
    fn a_majority_that_a_damaged_log_has_forgotten_is_not_given_up() {
        begins(&says(&damaged(&[1, 2, 3]), &[2, 3], &[2, 3, 4, 5]), "refused", "node 4,5");
        assert_eq!(says(&damaged(&[1, 2, 3]), &[2, 3, 4, 5], &[2, 3, 4, 5]), "force");
        assert_eq!(says(&group(&[1, 2, 3]), &[2, 3], &[2, 3, 4, 5]), "force", "a whole log knows");
    }

    #[test]
    fn what_others_can_give_back_they_give_back() {
        begins(&says(&damaged(&[1, 2, 3]), &[], &[2, 3]), "refused", "start it");
        begins(&says(&damaged(&[1, 2, 3]), &[2], &[2, 3]), "refused", "2 of 3");
        begins(&says(&damaged(&[2, 3]), &[2], &[2, 3]), "refused", "does not vote");
        begins(&says(&group(&[1, 2, 3]), &[], &[2, 3]), "left", "start it");
    }

    #[test]
    fn groups_that_are_well_do_not_keep_one_from_going_on_that_is_not() {
        assert_eq!(says(&group(&[1, 2, 3]), &[2, 3], &[2, 3, 4, 5]), "force");
        begins(&says(&group(&[1, 2, 4, 5, 6]), &[2], &[2, 4, 5, 6]), "left", "4 of 5");
        begins(&says(&group(&[4, 5, 6]), &[2, 3], &[2, 3, 4]), "left", "does not vote");
        begins(&says(&group(&[1]), &[2, 3], &[2, 3]), "left", "nothing is lost");
    }

    #[test]
    fn a_node_alone_that_lost_power_goes_on_without_what_was_not_synced() {
        let forgot = GroupReport { recovering: true, ..group(&[1]) };
        assert_eq!(says(&forgot, &[], &[2]), "force", "memberships are always synced");
    }

    #[test]
    fn a_half_without_its_majority_is_enough_to_be_stuck() {
        let mut joint = group(&[1, 4, 5]);
        joint.membership.outgoing = nodes(&[1, 2, 3]);
        assert_eq!(says(&joint, &[2, 3], &[2, 3, 4, 5]), "force");
        begins(&says(&joint, &[2, 4], &[2, 3, 4, 5]), "left", "3 of 5");
    }
}
