//! Terms, votes and timeouts (§5.2, §5.4.1; pre-vote and check-quorum: dissertation §9.6, §6.2).

use super::pace::Pace;
use super::quorum::{Ballot, VoteResult};
use super::{Body, Mutant, Raft, Ready, Role, mutants};
use crate::ids::{Index, NodeId, Seq, Term, Tick};

impl Raft {
    pub(super) fn first_election_deadline(&mut self, now: Tick) {
        let config = &self.config;
        let (low, high) = if self.votes_alone() {
            (0, 0)
        } else if config.preferred {
            (config.heartbeat_us, 2 * config.heartbeat_us)
        } else {
            (config.election_timeout_min_us, config.election_timeout_max_us)
        };
        self.election_deadline = now.plus(self.rng.between(low, high));
        // Who never took part has promised nobody anything.
        if self.config.lease_reads && self.term > Term::ZERO {
            self.silent_until = now.plus(self.config.election_timeout_min_us);
            self.election_deadline = self.election_deadline.max(self.silent_until);
        }
    }

    pub(super) fn reset_election_deadline(&mut self, now: Tick) {
        let (low, high) =
            (self.config.election_timeout_min_us, self.config.election_timeout_max_us);
        self.election_deadline = now.plus(self.rng.between(low, high));
    }

    /// The leader's connection broke: ask within a heartbeat whether one could win. Only this node
    /// gives up its patience; voters that still hear the leader go on ignoring the question.
    pub(super) fn suspect_leader(&mut self, now: Tick) {
        let soon = now.plus(self.rng.between(0, self.config.heartbeat_us));
        if self.config.lease_reads {
            // The leader may live, and answer by its lease: it was promised an election timeout.
            let promised = |at: Tick| at.plus(self.config.election_timeout_min_us);
            let soon = soon.max(self.heard_at.map_or(now, promised));
            self.election_deadline = self.election_deadline.min(soon);
            return;
        }
        self.heard_at = None;
        self.election_deadline = self.election_deadline.min(soon);
    }

    /// While a vote is on its way to the disk neither the question nor the grant has left: a new round
    /// would give up one that nobody has heard of yet. Where all of three votes were needed and a
    /// write took 300 ms such rounds had no end.
    pub(super) fn on_election_due(&mut self, now: Tick, ready: &mut Ready) {
        self.pace = Pace::Unknown;
        if !self.may_campaign() {
            // It waits to be found; whom it took for the leader is no advice for clients any more.
            return self.become_follower(now, self.term, None, "its leader is silent", ready);
        }
        if self.vote.is_some() && self.hard_state_seq > self.persisted {
            self.election_deadline = now.plus(self.config.election_timeout_min_us);
            return;
        }
        if !self.wants_to_lead(now) {
            return self.reset_election_deadline(now);
        }
        self.role = Role::PreCandidate;
        self.leader = None;
        self.start_round(now);
        self.own_vote = Some(self.own_ballot());
        self.transition("election timeout", ready);
        self.ask_for_votes(true, false, ready);
        self.count_votes(now, ready);
    }

    /// `handed`: at the leader's own wish.
    pub(super) fn become_candidate(&mut self, now: Tick, handed: bool, ready: &mut Ready) {
        self.role = Role::Candidate;
        self.term = self.term.next();
        self.vote = Some(self.config.id);
        self.start_round(now);
        let reason = if handed { "is handed leadership" } else { "won the pre-vote" };
        self.transition(reason, ready);
        // Its own vote counts, and the request leaves, when (term, vote) are durable.
        self.save_hard_state(ready);
        self.ask_for_votes(false, handed, ready);
    }

    fn start_round(&mut self, now: Tick) {
        self.own_vote = None;
        for peer in &mut self.peers {
            peer.vote = None;
        }
        self.reset_election_deadline(now);
    }

    fn ask_for_votes(&mut self, pre: bool, handed: bool, ready: &mut Ready) {
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        for i in 0..self.members {
            if self.voters.contains(self.peers[i].id) {
                let body = Body::VoteRequest { pre, handed, last_index, last_term };
                self.send(i, Seq::ZERO, body, 0..0, ready);
            }
        }
    }

    /// The question, or the grant, leaves only now: the others are given their time from here on.
    pub(super) fn vote_is_durable(&mut self, now: Tick) {
        let patience = now.plus(self.config.election_timeout_min_us);
        self.election_deadline = self.election_deadline.max(patience);
    }

    pub(super) fn count_own_vote(&mut self, now: Tick, ready: &mut Ready) {
        assert_eq!((self.role, self.vote), (Role::Candidate, Some(self.config.id)));
        self.own_vote = Some(self.own_ballot());
        self.count_votes(now, ready);
    }

    fn own_ballot(&self) -> Ballot {
        if self.is_recovering() { Ballot::Marked } else { Ballot::Granted }
    }

    fn count_votes(&mut self, now: Tick, ready: &mut Ready) {
        let result = self.voters.votes(self.is_recovering(), |id| match self.peer(id) {
            Some(i) => self.peers[i].vote,
            None => self.own_vote,
        });
        match (result, self.role) {
            (VoteResult::WonWithLoss, _) if self.is_recovering() && self.damaged => {
                let reason = "damage may have taken a later configuration";
                self.become_follower(now, self.term, None, reason, ready);
            }
            (VoteResult::Won | VoteResult::WonWithLoss, Role::PreCandidate) => {
                self.become_candidate(now, false, ready);
            }
            (VoteResult::Won, Role::Candidate) => self.become_leader(now, false, ready),
            (VoteResult::WonWithLoss, Role::Candidate) => self.become_leader(now, true, ready),
            (VoteResult::Lost, _) => self.become_follower(now, self.term, None, "lost", ready),
            _ => {}
        }
    }

    /// Follows `term`, under `leader` if it is known. No-op when nothing changes.
    pub(super) fn become_follower(
        &mut self,
        now: Tick,
        term: Term,
        leader: Option<NodeId>,
        reason: &'static str,
        ready: &mut Ready,
    ) {
        assert!(term >= self.term, "terms do not fall (§5.1)");
        let same = term == self.term && self.role == Role::Follower && self.leader == leader;
        if same {
            return;
        }
        if term > self.term {
            self.term = term;
            self.vote = None;
        }
        // A follower keeps its deadline: being told of a term is not hearing from its leader.
        if self.role != Role::Follower {
            self.reset_election_deadline(now);
        }
        if self.role == Role::Leader {
            self.abandon_rounds();
            self.transfer = None;
        }
        self.role = Role::Follower;
        self.leader = leader;
        self.transition(reason, ready);
    }

    /// The leader of this term has spoken.
    pub(super) fn heard_leader(&mut self, now: Tick, leader: NodeId, ready: &mut Ready) {
        assert_ne!(self.role, Role::Leader, "one leader a term (§5.2)");
        self.become_follower(now, self.term, Some(leader), "leader appeared", ready);
        self.heard_at = Some(now);
        self.reset_election_deadline(now);
    }

    /// Leader stickiness (dissertation §4.2.3): while a leader is alive, requests for votes are as
    /// if never received; they do not even raise the term. A leader that has lost its quorum is
    /// found by check-quorum.
    fn is_sticky(&self, now: Tick) -> bool {
        let patience = self.config.election_timeout_min_us;
        let heard = || self.heard_at.is_some_and(|at| now.since(at) < patience);
        match (self.role, self.leader) {
            (Role::Leader, _) => now.since(self.quorum_contact(now)) < patience,
            (_, Some(_)) => heard() || now < self.silent_until,
            // With leases what a leader was promised holds whatever is heard of others.
            (_, None) => self.config.lease_reads && (heard() || now < self.silent_until),
        }
    }

    pub(super) fn on_vote_request(
        &mut self,
        now: Tick,
        i: usize,
        term: Term,
        (pre, handed): (bool, bool),
        (last_index, last_term): (Index, Term),
        ready: &mut Ready,
    ) {
        if self.is_sticky(now) && !handed {
            return;
        }
        // §5.4.1: the later last term wins, then the longer log.
        let own = (self.log.last_term(), self.log.last_index());
        let up_to_date = (last_term, last_index) >= own || mutants::is(Mutant::VoteWithoutLogCheck);
        let granted = if pre {
            // Nothing changes here. The refusal carries this node's term, so that a candidate with
            // the best log but an older term learns it and can win the next round.
            term > self.term && up_to_date
        } else {
            if term > self.term {
                self.become_follower(now, term, None, "higher term", ready);
            }
            let free = self.vote.is_none_or(|vote| vote == self.peers[i].id)
                || mutants::is(Mutant::VoteTwice);
            term == self.term && self.role == Role::Follower && free && up_to_date
        };
        if granted && !pre {
            self.vote = Some(self.peers[i].id);
            self.reset_election_deadline(now);
        }
        let recovering = self.is_recovering();
        self.send(i, Seq::ZERO, Body::VoteReply { pre, granted, recovering }, 0..0, ready);
    }

    /// `term` is the voter's, never above ours here. A granted pre-vote may come from a lower term;
    /// a vote counts only in the term it was given in.
    pub(super) fn on_vote_reply(
        &mut self,
        now: Tick,
        i: usize,
        term: Term,
        pre: bool,
        ballot: Ballot,
        ready: &mut Ready,
    ) {
        let mine = match self.role {
            Role::PreCandidate => pre,
            Role::Candidate => !pre && (term == self.term || mutants::is(Mutant::CountOldVotes)),
            _ => false,
        };
        if mine {
            // The first answer stays: a voter does not change its mind within a term.
            self.peers[i].vote.get_or_insert(ballot);
            self.count_votes(now, ready);
        }
    }

    /// A leader of an older term is told of ours, so that it steps down.
    pub(super) fn on_older_term(&mut self, now: Tick, i: usize, body: &Body, ready: &mut Ready) {
        let reply = match *body {
            Body::Append { prev_index, .. } => {
                Body::AppendReject { prev_index, hint_index: Index::ZERO, hint_term: Term::ZERO }
            }
            Body::Heartbeat { context, .. } => Body::HeartbeatReply { context },
            Body::Hibernate { .. } => Body::HeartbeatReply { context: 0 },
            Body::TimeoutNow => return self.on_old_timeout_now(now, ready),
            _ => return,
        };
        self.send(i, Seq::ZERO, reply, 0..0, ready);
    }
}
