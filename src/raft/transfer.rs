//! Handing leadership over (dissertation §3.10), because somebody asks for it or because this
//! leader's disk stands still.
//!
//! ```text
//!   n1 leads, log through 9         asked to hand over to n2: takes no more proposals
//!   n1 -> n2   append .. 9
//!   n2 -> n1   matched = 9          n2 has all that n1 has
//!   n1 -> n2   campaign now         in this term; from here on n1 has no lease
//!   n2                              next term, asks for votes without a pre-vote; voters know by the
//!                                   request's mark that the leader itself wants it, and answer
//! ```
//!
//! A transfer that takes longer than an election timeout is given up, and the leader goes on as
//! before (bug 39). Nothing is unsafe about it: the target wins an ordinary election.

use thiserror::Error;

use super::{Body, Mutant, Raft, Ready, Role, mutants};
use crate::ids::{NodeId, Seq, Tick};

/// Why leadership is not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TransferRefused {
    /// Ask the leader, if one is known.
    #[error("this node does not lead the group (leader: {0:?})")]
    NotLeader(Option<NodeId>),
    #[error("node {0} has no vote in this group")]
    NotAVoter(NodeId),
    #[error("node {0} leads already")]
    Already(NodeId),
    #[error("leadership is being handed over to node {0}; try again in a moment")]
    UnderWay(NodeId),
    /// It has not answered for an election timeout.
    #[error("node {0} does not answer; choose another node")]
    Silent(NodeId),
    /// Further behind than an election timeout can make up for.
    #[error("node {0} is too far behind; wait until it has caught up")]
    Behind(NodeId),
    /// The leader has not committed in its term.
    #[error("this leader has just been elected; try again in a moment")]
    NotSettled,
}

/// A transfer under way.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Transfer {
    to: NodeId,
    deadline: Tick,
    told: bool,
}

impl Transfer {
    pub(super) fn deadline(transfer: &Option<Self>) -> Tick {
        transfer.as_ref().map_or(Tick(u64::MAX), |transfer| transfer.deadline)
    }

    /// For `Raft::forget_time`: it has not run out, and may next.
    pub(super) fn forget_time(&mut self) {
        self.deadline = Tick(1);
    }
}

/// Since when the disk has not completed anything although something waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DiskWatch {
    waiting: Option<(Seq, Tick)>,
}

impl Raft {
    /// Whether this leader could hand over to `to` now.
    pub fn may_transfer(&self, now: Tick, to: NodeId) -> Result<(), TransferRefused> {
        if self.role != Role::Leader {
            return Err(TransferRefused::NotLeader(self.leader));
        }
        if to == self.config.id {
            return Err(TransferRefused::Already(to));
        }
        let Some(i) = self.peer(to).filter(|_| self.voters.contains(to)) else {
            return Err(TransferRefused::NotAVoter(to));
        };
        if let Some(transfer) = &self.transfer {
            return Err(TransferRefused::UnderWay(transfer.to));
        }
        if self.log.term_at(self.log.commit()) != Some(self.term) {
            return Err(TransferRefused::NotSettled);
        }
        let progress = &self.peers[i].progress;
        if now.since(progress.contact_at()) >= self.config.election_timeout_min_us {
            return Err(TransferRefused::Silent(to));
        }
        // What is under way to it arrives within a round trip; what is not does not count on that.
        if !progress.is_close(&self.config) && !mutants::is(Mutant::TransferToLagging) {
            return Err(TransferRefused::Behind(to));
        }
        Ok(())
    }

    /// The voter best placed to lead: in contact, and with the most of the log.
    pub fn successor(&self, now: Tick) -> Option<NodeId> {
        let able = |peer: &&super::Peer| self.may_transfer(now, peer.id).is_ok();
        let best = self.peers.iter().filter(able).max_by_key(|peer| peer.progress.matched());
        best.map(|peer| peer.id)
    }

    pub(super) fn on_transfer(&mut self, now: Tick, to: NodeId, ready: &mut Ready) {
        if self.may_transfer(now, to).is_err() {
            return;
        }
        let deadline = now.plus(self.config.election_timeout_max_us);
        self.transfer = Some(Transfer { to, deadline, told: false });
        self.transition("hands over", ready);
    }

    /// The node is about to stop: it does not campaign any more, unless it is the only voter.
    pub fn retire(&mut self) {
        self.retired = true;
    }

    /// Nobody else votes.
    pub fn is_alone(&self) -> bool {
        self.votes_alone()
    }

    /// Whether this node would lead if it could: not while its disk stands still (it could not even
    /// vote for itself, bug 28), nor when it is stopping.
    pub(super) fn wants_to_lead(&self, now: Tick) -> bool {
        self.is_alone() || !(self.retired || self.is_disk_stalled(now))
    }

    /// Whether proposals have to wait for the next leader. They are refused, not kept: an entry
    /// taken on now would only make the target lag.
    pub fn is_transferring(&self) -> bool {
        self.transfer.is_some()
    }

    /// With each beat of the timer: the word to the target may be lost, and until the deadline nothing
    /// is proposed. A target that has heard it does not follow any more, and passes over a second one.
    pub(super) fn repeat_transfer(&mut self) {
        if let Some(transfer) = &mut self.transfer {
            transfer.told = false;
        }
    }

    /// At the end of every `handle`.
    #[inline]
    pub(super) fn drive_transfer(&mut self, now: Tick, ready: &mut Ready) {
        if self.transfer.is_some() {
            self.drive(now, ready);
        }
    }

    #[cold]
    fn drive(&mut self, now: Tick, ready: &mut Ready) {
        let Some(transfer) = self.transfer else { return };
        let target = self.peer(transfer.to).filter(|_| self.role == Role::Leader);
        let Some(i) = target else { return self.transfer = None };
        if now >= transfer.deadline {
            self.transfer = None;
            return self.transition("gave up handing over", ready);
        }
        let caught_up = self.peers[i].progress.matched() == self.log.last_index()
            || mutants::is(Mutant::TransferToLagging);
        if caught_up && !transfer.told {
            self.transfer = Some(Transfer { told: true, ..transfer });
            self.waive_lease();
            self.send(i, Seq::ZERO, Body::TimeoutNow, 0..0, ready);
        }
    }

    /// The leader of this term wants this node to take over. A RECOVERING member never campaigns
    /// (durability.md R4), nor does one whose disk stands still.
    pub(super) fn on_timeout_now(&mut self, now: Tick, i: usize, ready: &mut Ready) {
        let from_leader = self.leader == Some(self.peers[i].id) && self.role == Role::Follower;
        let able = !self.is_recovering()
            && self.voters.contains(self.config.id)
            && self.may_campaign()
            && self.wants_to_lead(now);
        if from_leader && able {
            self.leader = None;
            self.become_candidate(now, true, ready);
        }
    }

    /// A `TimeoutNow` of an older term is about a leader that is gone.
    pub(super) fn on_old_timeout_now(&mut self, now: Tick, ready: &mut Ready) {
        if mutants::is(Mutant::OldTimeoutNow) && self.role == Role::Follower {
            self.leader = None;
            self.become_candidate(now, true, ready);
        }
    }
}

/// A disk that stands still (bug 28).
impl Raft {
    /// Notes whether writes wait, at the end of every `handle`.
    #[inline]
    pub(super) fn watch_disk(&mut self, now: Tick) {
        let persisted = self.persisted;
        self.disk_watch.waiting = match self.disk_watch.waiting {
            _ if self.issued == persisted => None,
            Some((seen, at)) if seen == persisted => Some((seen, at)),
            _ => Some((persisted, now)),
        };
    }

    /// For how long writes have waited while none was completed, microseconds.
    fn stalled_us(&self, now: Tick) -> u64 {
        let waited = self.disk_watch.waiting.map_or(0, |(_, at)| now.since(at));
        if mutants::is(Mutant::LeadWithDeadDisk) { 0 } else { waited }
    }

    /// Nothing was completed for two election timeouts.
    pub(super) fn is_disk_stalled(&self, now: Tick) -> bool {
        self.stalled_us(now) >= 2 * self.config.election_timeout_max_us
    }

    /// With each beat of the timer: a leader whose disk stands still is of no use. It hands over to
    /// the voter that has most; if that does not work within an election timeout, or there is none,
    /// it steps down, and hears nothing of its followers until they have chosen. True if it does not
    /// lead any more.
    pub(super) fn quit_if_stalled(&mut self, now: Tick, ready: &mut Ready) -> bool {
        if !self.is_disk_stalled(now) || self.transfer.is_some() {
            return false;
        }
        let first_try = self.stalled_us(now) < 3 * self.config.election_timeout_max_us;
        match self.successor(now) {
            Some(to) if first_try => self.on_transfer(now, to, ready),
            _ => {
                self.become_follower(now, self.term, None, "its disk stands still", ready);
                return true;
            }
        }
        false
    }

    pub(super) fn forget_disk_time(&mut self) {
        self.disk_watch = DiskWatch::default();
    }
}
