//! What an operator's recovery writes at the end of each group's log, when nobody can give back what
//! is missing (durability.md R6, last sentence): one entry of a term that nobody has had, in a new
//! recovery epoch.
//!
//! ```text
//! a node alone, damaged     … i117 │ lost: i118 … i341, e0 │ →   … i117, i118 no-op of e1
//! n1 of three, two disks    … i117 │ what n2 and n3 had    │ →   … i117, i118 membership {n1} of e1
//! are gone for good
//! ```
//!
//! From there on it is Raft again: the node campaigns with a log whose last term is the highest, wins
//! among those whom the entry names, and commits it. A reader of the old epoch is told where its
//! indices end (R9). What was lost stays lost.

use crate::block::{Block, BlockKind};
use crate::ids::{GroupId, HardState, Index, NodeId, Term};
use crate::membership::Membership;
use crate::mutants::{self, Mutant};
use crate::wal::{RecoveredGroup, Wal};

/// Nodes that are gone may have led, and others that remain may have voted, in terms that this node
/// has not heard of. No cluster counts so far while one of its nodes looks away: pre-vote keeps terms
/// from growing without a majority.
const TERM_LEAP: u64 = 1 << 20;
/// Damage may have taken every trace of the terms that a group had. The new term is above so many for
/// each recovery epoch, which the boot record remembers: what was lost under a term is never followed
/// by something else under it.
const TERMS_PER_EPOCH: u64 = 1 << 16;

/// Where a group begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forced {
    pub group: GroupId,
    /// Of the entry; what follows a lost suffix has these indices a second time.
    pub index: Index,
    pub term: Term,
    /// The recovery epoch from there on.
    pub epoch: u32,
}

/// Stages the entry of one group, to be synced before anybody relies on it. `known_epoch`: the new one
/// is above it and above all that the log names, see [`known_epoch`]. `survivors`: those who make up
/// the group from here on; `None` for a node that is alone.
pub fn begin_anew(
    wal: &mut Wal,
    node: NodeId,
    group: GroupId,
    found: &RecoveredGroup,
    known_epoch: u32,
    survivors: Option<&Membership>,
) -> Forced {
    let before = found.hard_state.term.max(found.last_term());
    let above = before.plus(if survivors.is_some() { TERM_LEAP } else { 1 });
    let next_epoch = found.epoch.max(known_epoch).saturating_add(1);
    let term = above.max(Term(u64::from(next_epoch) * TERMS_PER_EPOCH));
    let commit = found.hard_state.commit.min(found.last);
    wal.hard_state(group, HardState { term, vote: Some(node), commit });
    let grows = !mutants::is(Mutant::RecoverWithoutEpoch);
    let epoch = if grows { next_epoch } else { found.epoch };
    let index = found.last.next();
    let mut block = match survivors {
        None => Block::noop(group),
        Some(membership) => {
            let mut body = Vec::new();
            Membership { index: Index::ZERO, ..membership.clone() }.encode(&mut body);
            Block::special(group, BlockKind::Membership, body.into())
        }
    };
    block.stamp(term, index, epoch);
    wal.append(group, &[block], false, true);
    Forced { group, index, term, epoch }
}

/// An epoch that no entry of the group can have been above. What is whole says so itself, and the boot
/// record remembers the `recorded` one of an operator. Damage may have taken epochs that elections
/// began, if the group does not sync and `may_be_gone`: those are few.
pub fn known_epoch(found: &RecoveredGroup, recorded: u32, may_be_gone: bool) -> u32 {
    let known = found.epoch.max(recorded);
    if may_be_gone { known | 0xff } else { known }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{LogIdentity, TermStart, WalConfig};

    fn wal() -> Wal {
        let identity = LogIdentity { cluster: 1, node: 1, disk: 1 };
        Wal::create(WalConfig::default(), identity, 1)
    }

    fn found(term: u64, epoch: u32) -> RecoveredGroup {
        let hard_state = HardState { term: Term(term), vote: None, commit: Index(0) };
        let terms = vec![TermStart { first: Index(1), term: Term(term - 1), epoch }];
        RecoveredGroup { hard_state, terms, epoch, ..RecoveredGroup::default() }
    }

    #[test]
    fn a_group_begins_anew_above_all_terms_and_epochs_that_are_left() {
        let (me, group) = (NodeId(1), GroupId(3));
        let forced = begin_anew(&mut wal(), me, group, &found(7, 2), 0, None);
        let term = Term(3 * TERMS_PER_EPOCH);
        assert_eq!(forced, Forced { group, index: Index(1), term, epoch: 3 });
        let old = begin_anew(&mut wal(), me, group, &found(1 << 40, 2), 0, None);
        assert_eq!(old.term, Term((1 << 40) + 1));
        let survivors = Membership::of_voters(vec![me]);
        let forced = begin_anew(&mut wal(), me, group, &found(7, 2), 5, Some(&survivors));
        assert_eq!((forced.term, forced.epoch), (Term(7 + TERM_LEAP), 6));
    }

    #[test]
    fn an_epoch_that_damage_may_have_taken_is_left_out() {
        assert_eq!(known_epoch(&found(7, 2), 0, false), 2);
        assert_eq!(known_epoch(&found(7, 2), 4, false), 4, "the boot record remembers it");
        assert_eq!(known_epoch(&found(7, 2), 4, true), 255);
    }
}
