//! Sleep of idle groups: no heartbeats, no timers, until something happens.
//!
//! ```text
//! leader                                   follower
//!   idle for `hibernate_after_us`
//!   Hibernate { last 12, round 3 }  ────▶   leads my term, log ends at 12 in this term, all durable:
//!                                           commit 12, timer off
//!   all asleep: no more heartbeats  ◀────   HibernateReply { round 3, asleep }
//! ```
//!
//! Whether the leader's node is alive is watched once for each pair of shards, not by the group: the
//! caller says [`Event::PeerSilent`](super::Event) when nothing was heard of a node for an election
//! timeout, and `PeerHeard` when it is back. Everything else that happens to a sleeping group wakes
//! it, first of all any message and any proposal.
//!
//! Sleep changes nothing that safety rests on: terms, votes, logs and commits move by the same rules,
//! and a sleeper answers at once. Progress needs one argument more. Say a connected majority sleeps,
//! the highest term among its members is t, under leader L, and L does not lead t any more without
//! having restarted (a new start wakes them). L has then stepped down and its timer runs, so that its
//! requests for votes wake those it reaches; or it follows a leader of a higher term. Such a leader
//! was elected by a majority, which has a member in common with the sleepers, and that member's term
//! would be above t. So whoever sleeps either has a living leader or is woken within an election
//! timeout of L's.
//!
//! A member that is away (no connection, or silent) need not confirm: it is not asleep when it comes
//! back, and its coming back wakes the leader.

use super::membership::Standing;
use super::progress::State;
use super::quorum::{Ballot, VoteResult};
use super::{Body, Event, Mutant, Raft, Ready, Role, mutants};
use crate::ids::{Index, NodeId, Seq, Tick};

/// What a group remembers of its sleep.
#[derive(Clone, Debug, Default)]
pub(super) struct Hibernation {
    pub asleep: bool,
    /// Of the offer under way, or the last one; an answer to another one does not count.
    round: u32,
    offered: bool,
    /// When something last happened that a group at rest does not do.
    active_at: Tick,
}

impl Hibernation {
    /// What decides, for `Raft::fingerprint`.
    pub fn fingerprint(&self) -> (bool, u32, bool) {
        (self.asleep, self.round, self.offered)
    }

    pub fn forget_time(&mut self) {
        self.active_at = Tick::ZERO;
    }
}

impl Event<'_> {
    /// Whether a sleeping group wakes before it is told this, and whose message it is.
    pub fn wakes(&self) -> Option<Option<NodeId>> {
        match self {
            Self::Propose { .. }
            | Self::ProposeMembership { .. }
            | Self::ReadIndex { .. }
            | Self::Transfer { .. } => Some(None),
            Self::Receive { from, .. } => Some(Some(*from)),
            _ => None,
        }
    }
}

impl Raft {
    /// Neither beats nor waits for heartbeats: see `raft/hibernation.rs`.
    #[inline]
    pub fn is_hibernating(&self) -> bool {
        self.hibernation.asleep
    }

    /// Who agreed to the last offer to sleep.
    pub fn sleepers(&self) -> impl Iterator<Item = NodeId> {
        self.sent_to().iter().filter(|peer| peer.sleeps).map(|peer| peer.id)
    }

    /// Blocks were taken on, by whatever way: an offer to sleep that is under way is void.
    #[inline]
    pub(super) fn withdraw_offer(&mut self) {
        self.hibernation.offered = false;
    }

    /// Something happened: an offer to sleep that is under way is void.
    #[inline]
    pub(super) fn note_activity(&mut self, now: Tick) {
        self.hibernation.offered = false;
        self.hibernation.active_at = now;
    }

    /// Ends the sleep. `by`: whose message does; `heard`: when the shard has last heard of each node,
    /// so that a leader does not mistake the silence of sleepers for the loss of its quorum, nor a
    /// follower the silence of its leader for its death.
    pub(super) fn wake(
        &mut self,
        now: Tick,
        by: Option<NodeId>,
        heard: &[(NodeId, Tick)],
        ready: &mut Ready,
    ) {
        if !std::mem::take(&mut self.hibernation.asleep) {
            return;
        }
        self.note_activity(now);
        self.hibernation.round = self.hibernation.round.wrapping_add(1);
        if self.role == Role::Leader {
            for &(node, at) in heard {
                let Some(i) = self.peer(node) else { continue };
                let progress = &mut self.peers[i].progress;
                progress.contact(progress.contact_at().max(at));
            }
            self.heartbeat_deadline = now;
            return;
        }
        let leader_heard = heard.iter().find(|(node, _)| Some(*node) == self.leader);
        self.heard_at = self.heard_at.max(leader_heard.map(|(_, at)| *at));
        self.reset_election_deadline(now);
        // The leader sleeps, too: it has to beat again before this node loses its patience.
        if let Some(i) = self.leader.filter(|leader| by != Some(*leader)).and_then(|l| self.peer(l))
        {
            let round = self.hibernation.round;
            self.send(i, Seq::ZERO, Body::HibernateReply { round, asleep: false }, 0..0, ready);
        }
    }

    /// The connection to the node that leads is gone, or it has begun anew.
    pub(super) fn wake_from_lost_leader(&mut self, now: Tick) {
        self.hibernation.asleep = false;
        self.note_activity(now);
        self.reset_election_deadline(now);
        self.suspect_leader(now);
    }

    /// Instead of a heartbeat: true when the followers were asked to sleep.
    pub(super) fn offers_sleep(&mut self, now: Tick, ready: &mut Ready) -> bool {
        if self.hibernation.offered {
            // Not all have agreed within a heartbeat; those that sleep are woken by the next one.
            self.note_activity(now);
            return false;
        }
        if !self.may_hibernate(now) {
            return false;
        }
        self.hibernation.round = self.hibernation.round.wrapping_add(1);
        self.hibernation.offered = true;
        let (last, round) = (self.log.last_index(), self.hibernation.round);
        for i in 0..self.members {
            self.peers[i].sleeps = false;
            if !self.peers[i].absent {
                self.send(i, Seq::ZERO, Body::Hibernate { last, round }, 0..0, ready);
            }
        }
        true
    }

    /// Nothing is to do, for anybody who is there.
    fn may_hibernate(&self, now: Tick) -> bool {
        let after = self.config.hibernate_after_us;
        after > 0 && now.since(self.hibernation.active_at) >= after && self.has_nothing_to_do()
    }

    /// Whatever there is to do, also what came after the offer.
    fn has_nothing_to_do(&self) -> bool {
        let last = self.log.last_index();
        self.is_at_rest(last)
            && self.log.applied() == last
            && self.sent_to().iter().all(|peer| peer.absent || self.lacks_nothing(peer, last))
            && self.sent_to().iter().all(|peer| peer.standing == Standing::Member)
            && !self.membership().is_joint()
            && self.membership().joining.is_empty()
            && self.is_quorum_present()
            && self.reads.is_idle()
            && self.transfer.is_none()
    }

    /// Members, and those who are being told that they are none any more.
    fn sent_to(&self) -> &[super::Peer] {
        &self.peers[..self.members]
    }

    fn lacks_nothing(&self, peer: &super::Peer, last: Index) -> bool {
        let progress = &peer.progress;
        let all = progress.state() == State::Replicate
            && progress.matched() == last
            && progress.inflight_count() == 0;
        all || mutants::is(Mutant::HibernateWithLaggingFollower)
    }

    /// The log ends at `last`, in this term, all of it durable here and nothing else to be logged.
    fn is_at_rest(&self, last: Index) -> bool {
        let own =
            self.log.last_term() == self.term || mutants::is(Mutant::HibernateForUnconfirmedTerm);
        let ends =
            self.log.last_index() == last || mutants::is(Mutant::HibernateWithLaggingFollower);
        let done = self.role != Role::Leader || self.log.commit() == last;
        let settled = self.log.durable() == last && self.persisted == self.issued;
        own && ends
            && done
            && (settled || mutants::is(Mutant::HibernateWithLaggingFollower))
            && self.recovery.is_none()
    }

    fn is_quorum_present(&self) -> bool {
        let present = |id| match self.peer(id) {
            Some(i) if self.peers[i].absent => Some(Ballot::Refused),
            _ => Some(Ballot::Granted),
        };
        self.voters.votes(false, present) == VoteResult::Won
    }

    /// The leader wants to sleep. Whoever has the last entry of its term at `last` has its whole log
    /// (§5.3), and may take the leader's word that all of it is committed.
    pub(super) fn on_hibernate(
        &mut self,
        now: Tick,
        i: usize,
        (last, round): (Index, u32),
        ready: &mut Ready,
    ) {
        self.heard_leader(now, self.peers[i].id, ready);
        // Reads that wait for an answer ask again by events, of which a sleeper has none.
        let asleep =
            self.config.hibernate_after_us > 0 && self.is_at_rest(last) && self.reads.is_idle();
        if asleep {
            if last == self.log.last_index() {
                self.log.commit_to(last);
            }
            self.note_leader_at(now, last);
            self.hibernation.asleep = true;
        }
        self.send(i, Seq::ZERO, Body::HibernateReply { round, asleep }, 0..0, ready);
    }

    pub(super) fn on_hibernate_reply(&mut self, now: Tick, i: usize, round: u32, asleep: bool) {
        self.peers[i].progress.contact(now);
        if !asleep {
            // It refuses, or it woke and asks for heartbeats.
            self.note_activity(now);
            self.heartbeat_deadline = self.heartbeat_deadline.min(now);
            return;
        }
        if !self.hibernation.offered || round != self.hibernation.round {
            return;
        }
        self.peers[i].sleeps = true;
        let all = self.sent_to().iter().all(|peer| peer.sleeps || peer.absent);
        if all && self.has_nothing_to_do() {
            self.hibernation.offered = false;
            self.hibernation.asleep = true;
        }
    }

    /// Nothing was heard of the node for an election timeout.
    pub(super) fn on_silent(&mut self, now: Tick, peer: NodeId) {
        let Some(i) = self.peer(peer) else { return };
        self.peers[i].absent = true;
        if !self.hibernation.asleep {
            return;
        }
        if self.role == Role::Leader {
            self.wake_without_quorum(now);
        } else if self.leader == Some(peer) {
            self.hibernation.asleep = false;
            self.note_activity(now);
            // As if it had waited for heartbeats all the time: what the leader was promised when it
            // was last heard in this group is kept.
            let (min, max) =
                (self.config.election_timeout_min_us, self.config.election_timeout_max_us);
            let promised = self.heard_at.map_or(now, |at| at.plus(min).max(now));
            self.election_deadline = promised.plus(self.rng.between(0, max - min));
        }
    }

    /// A leader that cannot reach a quorum must find out that it is none any more (check-quorum).
    pub(super) fn wake_without_quorum(&mut self, now: Tick) {
        if !self.is_quorum_present() {
            self.hibernation.asleep = false;
            self.note_activity(now);
            self.heartbeat_deadline = now;
        }
    }

    /// The node is heard again after a silence: it may lack something, or be awake.
    pub(super) fn on_heard(&mut self, now: Tick, peer: NodeId, ready: &mut Ready) {
        let Some(i) = self.peer(peer) else { return };
        self.peers[i].absent = false;
        if self.role == Role::Leader {
            self.wake(now, Some(peer), &[], ready);
        }
    }

    pub(super) fn check_hibernation(&self) {
        if self.hibernation.asleep {
            assert!(matches!(self.role, Role::Leader | Role::Follower), "candidates do not sleep");
            assert!(self.leader.is_some(), "nobody sleeps under nobody");
            assert_eq!(self.log.last_term(), self.term, "the leader's own entry is the last one");
            assert_eq!(self.log.commit(), self.log.last_index(), "nothing waits to be committed");
        }
    }
}
