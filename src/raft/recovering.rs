//! The way out of RECOVERING (durability.md R4-R6).
//!
//! A member that lost power without `wal_sync` may have forgotten entries that it acknowledged. Until
//! it has them back its grant is marked, and counts only where all voters have granted. Two ways out:
//!
//! ```text
//! n3 restarts as incarnation 5, log through 7; n1 leads, log through 12, 9 of them committed
//!   n3 -> n1   any message                 n1 learns incarnation 5, forgets n3's match, probes
//!   n1 -> n3   echo 5, last 12             from here on nothing that n3 forgot can still be counted:
//!                                          target = 12. Not 9: what n3 acknowledged before it lost
//!                                          power may be committed later (n1 held its word already)
//!   n1 -> n3   appends .. 12               matched = 12
//!   n3's disk  synced through 12           n3 leaves
//! ```
//!
//! or it wins an election in which everybody grants: then no log is longer than its own.
//!
//! *Everybody* is who votes by its newest configuration, which power cannot take: memberships are
//! always synced. Damage can. Story: n1 was alone, then took four others in; its log rots back to
//! before that, and by its own word n1 is everybody. So a member whose synced bytes were damaged does
//! not win where a majority may have forgotten. Where fewer have, one of its old configuration
//! remembers any later one (C(old,new) is on a majority of it), has the longer log, and refuses.

use super::{Message, Mutant, PossibleLoss, Raft, Ready, Role, mutants};
use crate::ids::{Index, Term};

/// How far a RECOVERING member has come under the leader of `term`; a new term begins anew.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(super) struct Recovery {
    term: Term,
    /// The leader's last index when it first answered this incarnation.
    target: Option<Index>,
    /// Through here the log is known to be that leader's.
    matched: Index,
}

impl Recovery {
    fn under(&mut self, term: Term) -> &mut Self {
        if self.term != term {
            *self = Self { term, target: None, matched: Index::ZERO };
        }
        self
    }
}

impl Raft {
    /// An Append or Heartbeat of this term's leader: the first one that was sent in answer to the
    /// present incarnation says how far its log reaches. One meant for an earlier start proves
    /// nothing: what that start acknowledged may still be on its way to be counted.
    #[inline]
    pub(super) fn note_answer(&mut self, message: &Message, commit: Index, last: Index) {
        let Some(recovery) = &mut self.recovery else { return };
        let answers = message.echo == self.config.incarnation;
        if !answers && !mutants::is(Mutant::LeaveWithoutNonce) {
            return;
        }
        let target = if mutants::is(Mutant::LeaveAtCommitIndex) { commit } else { last };
        recovery.under(message.term).target.get_or_insert(target);
    }

    /// An append of this term's leader was taken: the logs agree through `matched`. What agrees with
    /// the leader of a term is not cut within that term.
    #[inline]
    pub(super) fn note_match(&mut self, matched: Index) {
        let term = self.term;
        let Some(recovery) = &mut self.recovery else { return };
        let recovery = recovery.under(term);
        recovery.matched = recovery.matched.max(matched);
    }

    /// While it is RECOVERING the group's writes are synced in either mode, so `durable` means it.
    #[inline]
    pub(super) fn leave_recovery_if_synced(&mut self, ready: &mut Ready) {
        let Some(recovery) = self.recovery.filter(|r| r.term == self.term) else { return };
        let reached = recovery.matched.min(self.log.durable());
        let is_back = recovery.target.is_some_and(|target| reached >= target);
        let any_append = recovery.matched > Index::ZERO;
        if is_back || (any_append && mutants::is(Mutant::VoteAfterAnyAppend)) {
            self.recovery = None;
            self.transition("recovered from its leader", ready);
        }
    }

    /// The winner's log is the group's. If what a majority held may be gone with it, that is told,
    /// and indices that may be used a second time get a new epoch (durability.md R6, R9). From where
    /// on: that of its first entry, or lower.
    pub(super) fn begin_epoch(&mut self, loss: bool, ready: &mut Ready) -> Index {
        assert_eq!(self.role, Role::Leader);
        let before = self.log.last_epoch();
        let grows = loss && !mutants::is(Mutant::NoEpochBump);
        self.epoch = if grows { before.saturating_add(1) } else { before };
        if loss {
            let (group, term, epoch) = (self.config.group, self.term, self.epoch);
            ready.losses.push(PossibleLoss { group, term, epoch });
        }
        if self.recovery.take().is_some() {
            // Its own vote is behind all of its log, and is durable.
            assert_eq!(self.log.durable(), self.log.last_index());
            self.transition("recovered by the vote of all", ready);
        }
        if loss { self.new_names_from() } else { Index::ZERO }
    }

    /// Where the winner's log stands, others may have been committed that are lost: under leaders
    /// whom its last entries did not reach, in terms between those and its own.
    ///
    /// ```text
    /// n1   … i7 t3   i8 t3                      in the minority from here on, then without power
    /// n2   … i7 t3   i8 t4   i9 t4              committed with n3; both forget what is behind i7
    /// n1   … i7 t3   i8 t3   i9 t5, e1, since 8     wins with everybody's vote
    /// ```
    ///
    /// What it knew to be committed is the same everywhere. And if its term is the next one there was
    /// no such leader: what was committed before or in the term of its last entry is in its log.
    fn new_names_from(&self) -> Index {
        let next = self.log.last_index().next();
        let was_none_between = self.term == self.log.last_term().next();
        if was_none_between || mutants::is(Mutant::EpochFromItsEntry) {
            return next;
        }
        self.log.known_committed().next()
    }
}
