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
use crate::raft::{Restored, TermRun};
use crate::wal::Wal;

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

/// Stages the entry of one group, to be synced before anybody relies on it, and adds it to what the
/// group starts from. `known_epoch`: the new one is above it, see [`known_epoch`]. `survivors`: those
/// who make up the group from here on; `None` for a node that is alone.
pub fn begin_anew(
    wal: &mut Wal,
    node: NodeId,
    group: GroupId,
    left: &mut Restored,
    known_epoch: u32,
    survivors: Option<&Membership>,
) -> Forced {
    let run = left.terms.last();
    let (last_term, last_epoch) = run.map_or((Term::ZERO, 0), |run| (run.term, run.epoch));
    let known_term = left.hard_state.term.max(last_term).max(left.start.term);
    let above = known_term.plus(if survivors.is_some() { TERM_LEAP } else { 1 });
    let found_epoch = last_epoch.max(left.start.epoch);
    let next_epoch = found_epoch.max(known_epoch).saturating_add(1);
    let term = above.max(Term(u64::from(next_epoch) * TERMS_PER_EPOCH));
    let grows = !mutants::is(Mutant::RecoverWithoutEpoch);
    let epoch = if grows { next_epoch } else { found_epoch };
    let index = left.last.next();
    let commit = left.hard_state.commit.min(left.last);
    left.hard_state = HardState { term, vote: Some(node), commit };
    wal.hard_state(group, left.hard_state);
    let mut block = match survivors {
        None => Block::noop(group),
        Some(membership) => {
            let mut body = Vec::new();
            Membership { index: Index::ZERO, ..membership.clone() }.encode(&mut body);
            left.memberships.push(Membership { index, ..membership.clone() });
            Block::special(group, BlockKind::Membership, body.into())
        }
    };
    // What it knew to be committed; of terms in between it has no word.
    let since = commit.max(left.start.index).next();
    block = block.begins_epoch(since);
    block.stamp(term, index, epoch);
    wal.append(group, &[block], false, true);
    left.terms.push(TermRun { first: index, term, epoch, since });
    left.last = index;
    (left.recovering, left.damaged) = (false, false);
    Forced { group, index, term, epoch }
}

/// An epoch that no entry of the group can have been above: `found` in its log, whole or behind damage,
/// or `recorded` in the boot record. Damage may have taken epochs that elections began, or those who are
/// given up may have begun some, if the group does not sync and `may_be_gone`: those are few.
pub fn known_epoch(found: u32, recorded: u32, may_be_gone: bool) -> u32 {
    let known = found.max(recorded);
    if may_be_gone { known | 0xff } else { known }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LogStart;
    use crate::wal::{LogIdentity, WalConfig};

    fn wal() -> Wal {
        let identity = LogIdentity { cluster: 1, node: 1, disk: 1 };
        Wal::create(WalConfig::default(), identity, 1)
    }

    fn left(term: u64, epoch: u32) -> Restored {
        let hard_state = HardState { term: Term(term), vote: None, commit: Index(0) };
        let start = LogStart { index: Index(0), term: Term(0), epoch };
        Restored { hard_state, start, ..Restored::default() }
    }

    #[test]
    fn a_group_begins_anew_above_all_terms_and_epochs_that_are_left() {
        let (me, group) = (NodeId(1), GroupId(3));
        let mut found = left(7, 2);
        let forced = begin_anew(&mut wal(), me, group, &mut found, 0, None);
        let term = Term(3 * TERMS_PER_EPOCH);
        assert_eq!(forced, Forced { group, index: Index(1), term, epoch: 3 });
        assert_eq!((found.last, found.hard_state.term), (Index(1), term));
        let old = begin_anew(&mut wal(), me, group, &mut left(1 << 40, 2), 0, None);
        assert_eq!(old.term, Term((1 << 40) + 1));
        let survivors = Membership::of_voters(vec![me]);
        let mut found = left(7, 2);
        let forced = begin_anew(&mut wal(), me, group, &mut found, 5, Some(&survivors));
        assert_eq!((forced.term, forced.epoch), (Term(7 + TERM_LEAP), 6));
        assert_eq!(found.memberships[0].index, Index(1));
    }

    #[test]
    fn an_epoch_that_damage_may_have_taken_is_left_out() {
        assert_eq!(known_epoch(2, 0, false), 2);
        assert_eq!(known_epoch(2, 4, false), 4, "the boot record remembers it");
        assert_eq!(known_epoch(2, 4, true), 255);
    }
}
