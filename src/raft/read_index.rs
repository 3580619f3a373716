//! Linearizable reads that do not go through the log (dissertation §6.4).
//!
//! A read may be answered from the state machine once that has applied what was committed when the
//! read arrived. Only a leader knows that index, only after an entry of its own term has committed,
//! and only if it still leads: a quorum must say so after the read has arrived.
//!
//! ```text
//!   reads 1..3 arrive             round 7 begins: a heartbeat with context 7 to all, index = commit
//!   reads 4..9 arrive             they wait; round 7 was sent before they came and proves nothing
//!   two answers with context 7    a quorum followed this leader after 1..3 had come: 1..3 -> index
//!                                 round 8 begins at once, for 4..9
//! ```
//!
//! Rounds follow each other without a timer; under load each takes along what came during the one
//! before. The heartbeats of the timer carry the context too, so that a lost round is repeated.
//!
//! Reads are numbers that grow, so that any number of them is two integers: the highest of the round
//! under way, and the highest that waits. A follower asks its leader on behalf of its own and gets
//! the index back.
//!
//! A RECOVERING voter's answer counts here, unlike its vote. A later leader was elected by a quorum
//! of voters whose terms had risen, durably, in either mode (durability.md R1, R6); that quorum and
//! the round's have a voter in common. If it answered the round in this leader's term, then its term
//! rose later. What it may have forgotten are entries, and none of them is asked for.

use std::hash::{Hash, Hasher};

use super::{Body, Mutant, Raft, ReadIndex, Ready, Role, mutants};
use crate::ids::{Index, NodeId, Seq, Term, Tick};

/// What one asker waits for: numbers of reads, 0 = none.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(super) struct Waits {
    /// Highest one that is being confirmed.
    flying: u64,
    /// Highest one that came too late for that.
    next: u64,
}

impl Waits {
    fn want(&mut self, number: u64) {
        if number > self.flying {
            self.next = self.next.max(number);
        }
    }

    fn take_off(&mut self) -> u64 {
        if self.next > 0 {
            self.flying = std::mem::take(&mut self.next);
        }
        self.flying
    }

    fn land(&mut self) -> u64 {
        std::mem::take(&mut self.flying)
    }

    /// What was under way did not arrive and is to be asked again.
    fn turn_back(&mut self) {
        self.next = self.next.max(self.land());
    }
}

/// A round of heartbeats under way.
#[derive(Clone, Copy, Debug, Hash)]
struct Round {
    context: u64,
    /// The commit index when it began.
    index: Index,
    /// When it began: from here on the lease counts.
    began: Tick,
}

/// The reads of one group, as leader and as follower.
#[derive(Clone, Debug, Default)]
pub(super) struct Reads {
    local: Waits,
    round: Option<Round>,
    /// Followers whose reads wait for the next round.
    askers: bool,
    /// Whom the local reads under way were asked of, as a follower, and when.
    asked: Option<(NodeId, Term)>,
    asked_at: Tick,
    /// The leader's answer to those under way, which waits for an entry of its term to be here.
    told: Option<Index>,
    /// Until when no other leader can be, by this node's clock; `ZERO` = unknown.
    lease_until: Tick,
    /// In this term it has told somebody to campaign at once: no lease in it any more.
    waived: Term,
}

impl Reads {
    /// Whether there is nothing to look after.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.round.is_none() && self.local.flying == 0 && self.local.next == 0 && !self.askers
    }

    pub(super) fn fingerprint(&self, state: &mut impl Hasher) {
        (self.local, self.askers, self.asked, self.told).hash(state);
        self.round.map(|round| (round.context, round.index)).hash(state);
        (self.lease_until > Tick::ZERO, self.waived).hash(state);
    }

    pub(super) fn forget_time(&mut self) {
        self.asked_at = Tick::ZERO;
        self.lease_until = Tick::ZERO;
        if let Some(round) = &mut self.round {
            round.began = Tick::ZERO;
        }
    }
}

impl Raft {
    /// Takes note of local reads up to `number`; [`Raft::drive_reads`] looks after them.
    pub(super) fn on_read_index(&mut self, number: u64) {
        self.reads.local.want(number);
    }

    /// A follower's reads.
    pub(super) fn on_follower_reads(&mut self, i: usize, number: u64) {
        self.peers[i].reads.want(number);
        self.reads.askers = true;
    }

    /// The leader's answer to this follower's reads. It lies at or behind an entry of the leader's own
    /// term, and counts only once this log has one: a replica that had committed more than a leader
    /// chosen after a loss has applied that index long ago, and something else there.
    pub(super) fn on_read_reply(&mut self, i: usize, number: u64, index: Index) {
        let asked = self.reads.asked == Some((self.peers[i].id, self.term));
        if asked && self.reads.local.flying > 0 && number == self.reads.local.flying {
            self.reads.told = Some(index);
        }
    }

    /// A follower has answered a heartbeat of this term that was sent with `context`.
    pub(super) fn on_heartbeat_reply(&mut self, now: Tick, i: usize, context: u64) {
        let peer = &mut self.peers[i];
        peer.progress.contact(now);
        if context <= self.context {
            peer.context = peer.context.max(context);
        }
    }

    /// Rounds of another leadership prove nothing in this one; local reads are asked for again.
    pub(super) fn abandon_rounds(&mut self) {
        self.reads.local.turn_back();
        self.reads.told = None;
        self.reads.round = None;
        self.reads.askers = false;
        self.reads.lease_until = Tick::ZERO;
        for peer in &mut self.peers {
            peer.reads = Waits::default();
            peer.context = 0;
        }
    }

    /// Begins, confirms and asks as far as that is possible now. At the end of every `handle`.
    #[inline]
    pub(super) fn drive_reads(&mut self, now: Tick, ready: &mut Ready) {
        if !self.reads.is_idle() {
            match self.role {
                Role::Leader => self.drive_rounds(now, ready),
                _ => self.ask_leader(now, ready),
            }
        }
    }

    fn drive_rounds(&mut self, now: Tick, ready: &mut Ready) {
        loop {
            if let Some(round) = self.reads.round {
                if !self.is_confirmed(round.context) {
                    return;
                }
                self.finish_round(round, ready);
            }
            let waiting = self.reads.local.next > 0 || self.reads.askers;
            if !waiting || !self.may_answer_reads() {
                return;
            }
            self.begin_round(now, ready);
        }
    }

    /// A new leader does not know how far its predecessors had committed until an entry of its own
    /// term has (bug 24).
    fn may_answer_reads(&self) -> bool {
        self.log.term_at(self.log.commit()) == Some(self.term)
            || mutants::is(Mutant::ReadBeforeCommitInTerm)
    }

    fn is_confirmed(&self, context: u64) -> bool {
        if mutants::is(Mutant::ReadWithoutRound) {
            return true;
        }
        let wanted = if mutants::is(Mutant::OldContextCounts) { 1 } else { context };
        let confirmed = self.voters.reached(|id| match self.peer(id) {
            Some(i) => self.peers[i].context,
            None => context,
        });
        confirmed >= wanted
    }

    /// Asks all whether they still follow. Also what the timer does to renew a lease.
    pub(super) fn begin_round(&mut self, now: Tick, ready: &mut Ready) {
        self.context += 1;
        let (context, index) = (self.context, self.log.commit());
        self.reads.round = Some(Round { context, index, began: now });
        self.reads.askers = false;
        self.reads.local.take_off();
        for i in 0..self.members {
            self.peers[i].reads.take_off();
            self.send_heartbeat(i, ready);
        }
    }

    fn finish_round(&mut self, round: Round, ready: &mut Ready) {
        self.reads.round = None;
        self.extend_lease(round.began);
        if self.reads.local.flying > 0 {
            self.confirm_local(round.index, ready);
        }
        for i in 0..self.members {
            let number = self.peers[i].reads.land();
            if number > 0 {
                let body = Body::ReadReply { number, index: round.index };
                self.send(i, Seq::ZERO, body, 0..0, ready);
            }
        }
    }

    fn confirm_local(&mut self, index: Index, ready: &mut Ready) {
        let through = self.reads.local.land();
        ready.reads.push(ReadIndex { group: self.config.group, through, index });
    }

    /// As a follower: one request under way, the next one when it is answered. A request that is
    /// lost is sent again after an rpc timeout, when the leader is next heard.
    fn ask_leader(&mut self, now: Tick, ready: &mut Ready) {
        let asked = self.leader.map(|leader| (leader, self.term));
        if self.reads.asked != asked {
            self.reads.local.turn_back();
            (self.reads.asked, self.reads.told) = (asked, None);
        }
        let follows = self.log.last_term() == self.term;
        if let Some(index) = self.reads.told.take_if(|_| follows) {
            self.confirm_local(index, ready);
        }
        let Some(i) = self.leader.and_then(|leader| self.peer(leader)) else { return };
        let waited = now.since(self.reads.asked_at);
        let under_way = self.reads.local.flying > 0;
        if under_way && waited < self.config.rpc_timeout_us {
            return;
        }
        let number = self.reads.local.take_off();
        if number > 0 {
            (self.reads.asked_at, self.reads.told) = (now, None);
            self.send(i, Seq::ZERO, Body::ReadIndex { number }, 0..0, ready);
        }
    }
}

/// Leases (dissertation §6.4.1), only with [`Config::lease_reads`](super::Config::lease_reads).
///
/// A quorum that answered a round begun at `t` elects nobody else before `t` + the shortest election
/// timeout, by its members' clocks: they ignore requests for votes for so long after hearing the
/// leader, do not campaign themselves, and after a start stay silent for as long. By this node's
/// clock that time is shorter by what the clocks may drift apart meanwhile.
impl Raft {
    fn extend_lease(&mut self, began: Tick) {
        let drift = if mutants::is(Mutant::LeaseIgnoresDrift) {
            0
        } else {
            u64::from(self.config.clock_drift_percent_max)
        };
        let lasts = self.config.election_timeout_min_us / 100 * (100 - drift);
        self.reads.lease_until = self.reads.lease_until.max(began.plus(lasts));
    }

    /// The index that a read may be answered at without asking anybody, if this leader's lease
    /// still runs. `now` must have been read from the clock after the read had arrived.
    pub fn lease_index(&self, now: Tick) -> Option<Index> {
        let until = self.reads.lease_until;
        let by_timer = until > Tick::ZERO && mutants::is(Mutant::LeaseEndsByTimer);
        let holds = self.config.lease_reads
            && self.role == Role::Leader
            && (self.votes_alone() || now < until || by_timer)
            && (self.reads.waived < self.term || mutants::is(Mutant::LeaseOutlivesTransfer))
            && self.may_answer_reads();
        holds.then(|| self.log.commit())
    }

    /// Other voters decide from now on: what the ones before have promised is not theirs.
    pub(super) fn end_lease(&mut self) {
        self.reads.lease_until = Tick::ZERO;
    }

    /// Somebody was told to campaign without regard to this leader.
    pub(super) fn waive_lease(&mut self) {
        self.reads.waived = self.term;
    }

    /// With each beat of the timer, so that a lease does not run out while nobody reads.
    pub(super) fn renew_lease(&mut self, now: Tick, ready: &mut Ready) -> bool {
        let renews =
            self.config.lease_reads && self.reads.round.is_none() && self.may_answer_reads();
        if renews {
            self.begin_round(now, ready);
        }
        renews
    }
}
