//! What a group starts from.

use crate::ids::{GroupId, Incarnation, Index, NodeId};
use crate::mutants::{self, Mutant};
use crate::raft::{Restored, TermRun};
use crate::wal::{RecoveredGroup, TermStart};

/// What a group starts from, out of what its log holds; the shard says whether it is RECOVERING. A log that names the group by a vote alone
/// has no first entry.
pub fn restored(group: &RecoveredGroup) -> Restored {
    let run = |&TermStart { first, term, epoch }: &TermStart| TermRun { first, term, epoch };
    let terms = group.terms.iter().map(run).collect();
    let first = if group.last == Index::ZERO { Index(1) } else { group.first };
    let mut hard_state = group.hard_state;
    if mutants::is(Mutant::ForgetVoteAtStart) {
        hard_state.vote = None;
    }
    let memberships = group.memberships.clone();
    let (recovering, damaged) = (false, false);
    Restored { hard_state, terms, first, last: group.last, recovering, damaged, memberships }
}

/// Spreads the groups' election timeouts; any mixing will do, as long as it is a function of names.
pub(super) fn seed(node: NodeId, incarnation: Incarnation, group: GroupId) -> u64 {
    let mixed = u64::from(node.0) << 48 ^ u64::from(incarnation.0) << 24 ^ u64::from(group.0);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}
