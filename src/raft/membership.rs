//! Changes of who takes part (§6; dissertation §4.2, §4.3).
//!
//! A configuration is in use from the moment its entry is *in the log*, committed or not; cut off
//! again, the one before it is. Why not from the commit: a leader may commit C(new) by the new
//! majority while a voter that has not heard of the commit still elects by the old one.
//!
//! ```text
//! n1 leads 1 2 3, removes itself
//! i7 joint 2 3 | 1 2 3   appended: both halves decide from here on
//! i7 committed           n1 proposes C(new): 2 3. It no longer counts itself, and still leads
//! i8 committed by 2 3    n1 tells the others and steps down; it never campaigns again
//! ```
//!
//! *Who campaigns.* A voter of the newest configuration here, or of any one from the newest
//! committed on (dissertation §4.2.2). Story: of two voters n1 leads and removes itself; C(new) is
//! only in its own log when it crashes. n2 has the joint entry and needs n1's vote, which n1's longer
//! log refuses. n1, though not in C(new), must campaign, or the group stands still for ever.
//!
//! *Who is answered.* Anybody: who asks may be right about a configuration that this node has not
//! heard of. A learner that has become a voter and does not know votes when it is asked (bugs.md 20).
//! A node that was removed is kept off by pre-vote and stickiness, not by a list.
//!
//! *Who is sent to.* The members, and for a while those that a change has taken out: until they have
//! heard that it is committed, so that they fall silent.

use super::quorum::JointConfig;
use super::ready::GroupMembership;
use super::{Body, ChangeRefused, Mutant, Peer, Raft, Ready, Role, mutants};
use crate::block::{Block, BlockKind};
use crate::ids::{Index, NodeId, Seq, Tick};
use crate::membership::{ChangeError, Membership, Preflight, Step, preflight};

/// For how many election timeouts a node that was taken out is told of it.
const FAREWELL_TIMEOUTS: u64 = 20;

/// How a peer stands to the configuration in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    Member,
    /// Taken out by a change; gets the log until it knows, or until then.
    Leaving {
        until: Option<Tick>,
        farewell: Farewell,
    },
    /// Not in the configuration. Answered, and never sent to.
    Stranger,
}

/// How far a node that was taken out has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Farewell {
    Due,
    /// It was sent the commit of the change.
    Said,
    /// It has answered something since.
    Answered,
}

/// The configurations that are in use or may come back, by index.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct History {
    /// From the newest one that is applied on. Never empty.
    kept: Vec<Membership>,
}

impl History {
    pub(super) fn new(first: Membership, later: Vec<Membership>) -> Self {
        let mut kept = vec![first];
        kept.extend(later);
        assert!(kept.windows(2).all(|pair| pair[0].index < pair[1].index));
        Self { kept }
    }

    /// `memberships` are those that recovery found; one without an index is the group's first one, by
    /// the word of a snapshot, and takes the place of `first`.
    pub(super) fn restored(first: Membership, mut memberships: Vec<Membership>) -> Self {
        if memberships.first().is_some_and(|known| known.index == Index::ZERO) {
            let known = memberships.remove(0);
            return Self::new(known, memberships);
        }
        Self::new(first, memberships)
    }

    /// The newest, committed or not.
    pub(super) fn current(&self) -> &Membership {
        self.kept.last().expect("never empty")
    }

    /// The one that held at `index`, which is not below what is applied.
    pub(super) fn at(&self, index: Index) -> &Membership {
        let after = self.kept.partition_point(|kept| kept.index <= index);
        &self.kept[after.saturating_sub(1)]
    }

    /// Those that may be in use somewhere: from the newest committed one on.
    fn alive(&self, commit: Index) -> &[Membership] {
        let after = self.kept.partition_point(|kept| kept.index <= commit);
        &self.kept[after.saturating_sub(1)..]
    }

    fn push(&mut self, membership: Membership) {
        assert!(membership.index > self.current().index, "in the order of the log");
        self.kept.push(membership);
    }

    /// Entries from `from` on are gone. True when a configuration was among them.
    fn truncate(&mut self, from: Index) -> bool {
        let keep = self.kept.partition_point(|kept| kept.index < from);
        if keep == self.kept.len() {
            return false;
        }
        assert!(keep > 0, "what is committed stays");
        if mutants::is(Mutant::KeepCutConfiguration) {
            let mut stays = self.current().clone();
            stays.index = from.prev().max(self.kept[keep - 1].index);
            self.kept[keep - 1] = stays;
        }
        self.kept.truncate(keep);
        true
    }

    /// Forgets what no snapshot will need.
    fn forget_before(&mut self, applied: Index) {
        let after = self.kept.partition_point(|kept| kept.index <= applied);
        self.kept.drain(..after.saturating_sub(1));
    }
}

impl Raft {
    /// The configuration in use.
    pub fn membership(&self) -> &Membership {
        self.history.current()
    }

    /// The configurations from the newest applied one on, ascending.
    pub fn memberships(&self) -> &[Membership] {
        &self.history.kept
    }

    /// The configuration that held at `index`, which must not lie below what is applied: for a
    /// snapshot there.
    pub fn membership_at(&self, index: Index) -> &Membership {
        self.history.at(index)
    }

    /// A snapshot took the place of the whole log: its configuration is in use.
    pub fn restore_membership(&mut self, now: Tick, membership: Membership, ready: &mut Ready) {
        self.history = History::new(membership, Vec::new());
        self.adopt(now, ready);
    }

    /// Whether a node may still have to hear from this one, or this one from it: it is in a
    /// configuration that may decide something, or is being told that it is not.
    pub fn may_need(&self, node: NodeId) -> bool {
        let told =
            |peer: &Peer| peer.id == node && matches!(peer.standing, Standing::Leaving { .. });
        self.history.alive(self.log.commit()).iter().any(|alive| alive.is_member(node))
            || (self.role == Role::Leader && self.peers[..self.members].iter().any(told))
    }

    /// What a change would mean, without making it.
    pub fn preflight_change(&self, now: Tick, steps: &[Step]) -> Result<Preflight, ChangeRefused> {
        self.may_change()?;
        let current = self.history.current();
        let target = current.change(steps).map_err(ChangeRefused::Invalid)?.seated();
        // Who joins gets a vote only when it answers.
        let joins = |node| target.is_voter(node) && !current.is_voter(node);
        Ok(preflight(current, &target, |node| joins(node) || self.is_live(now, node)))
    }

    /// Whether this node may stand for election.
    #[inline]
    pub(super) fn may_campaign(&self) -> bool {
        let me = self.config.id;
        if self.voters.contains(me) {
            return true;
        }
        if mutants::is(Mutant::LearnerCampaigns) {
            return self.membership().is_member(me);
        }
        self.history.alive(self.log.commit()).iter().any(|alive| alive.is_voter(me))
    }

    /// Nobody else votes.
    pub(super) fn votes_alone(&self) -> bool {
        self.voters.is_only(self.config.id)
    }

    /// Position of a peer, who is met now if it was not known.
    pub(super) fn meet(&mut self, id: NodeId) -> usize {
        if let Some(i) = self.peer(id) {
            return i;
        }
        let mut peer = Peer::new(id);
        peer.standing = Standing::Stranger;
        self.peers.push(peer);
        self.peers.len() - 1
    }

    /// Blocks were appended: takes the configurations among them into use.
    pub(super) fn note_appended(&mut self, now: Tick, from: usize, ready: &mut Ready) {
        let mut found = false;
        for block in &ready.blocks[from..] {
            if block.kind() != BlockKind::Membership {
                continue;
            }
            let membership = decode(block).expect("checked when it was received");
            self.history.push(membership);
            found = true;
        }
        if found {
            self.adopt(now, ready);
        }
    }

    /// The log was cut: the configuration before it is in use again.
    pub(super) fn note_truncated(&mut self, now: Tick, from: Index, ready: &mut Ready) {
        if self.history.truncate(from) {
            self.adopt(now, ready);
        }
    }

    /// The configuration that decides, `mutants` apart the newest one.
    fn in_use(&self) -> &Membership {
        if mutants::is(Mutant::ConfigurationAtCommit) {
            return &self.history.alive(self.log.commit())[0];
        }
        self.history.current()
    }

    /// Makes the newest configuration decide.
    fn adopt(&mut self, now: Tick, ready: &mut Ready) {
        let membership = self.in_use().clone();
        self.voters = JointConfig::of(&membership);
        if mutants::is(Mutant::RemovedLeaderCountsItself) && self.role == Role::Leader {
            self.voters.include(self.config.id);
        }
        self.sort_peers(now, &membership);
        self.follow_learners(now);
        self.end_lease();
        let group = self.config.group;
        ready.memberships.push(GroupMembership { group, membership });
    }

    /// Members first, then who is being told that it is none any more, then strangers, who are
    /// remembered so that messages of their earlier starts stay known as such.
    pub(super) fn sort_peers(&mut self, now: Tick, membership: &Membership) {
        let members = membership.members();
        let me = self.config.id;
        for &id in members.iter().filter(|&&id| id != me) {
            self.meet(id);
        }
        let next = self.log.last_index().next();
        let leads = self.role == Role::Leader;
        let alive = self.history.alive(self.log.commit());
        for peer in &mut self.peers {
            let before = peer.standing;
            let was = alive.iter().any(|alive| alive.is_member(peer.id));
            peer.standing = match before {
                _ if members.binary_search(&peer.id).is_ok() => Standing::Member,
                Standing::Leaving { .. } => before,
                _ if was => Standing::Leaving { until: None, farewell: Farewell::Due },
                _ => Standing::Stranger,
            };
            let is_new = before == Standing::Stranger && peer.standing != Standing::Stranger;
            if leads && is_new {
                peer.progress.reset(next);
                peer.progress.contact(now);
            }
        }
        let rank = |peer: &Peer| match peer.standing {
            Standing::Member => 0,
            Standing::Leaving { .. } => 1,
            Standing::Stranger => 2,
        };
        self.peers.sort_by_key(|peer| (rank(peer), peer.id));
        self.members = self.peers.iter().filter(|peer| rank(peer) < 2).count();
    }

    /// A new leader's members are those of the newest configuration; whom an open change takes out
    /// is told so by this leader.
    pub(super) fn begin_membership(&mut self, now: Tick) {
        self.peers.iter_mut().for_each(|peer| peer.standing = Standing::Stranger);
        let membership = self.in_use().clone();
        self.sort_peers(now, &membership);
        self.catch_up.clear();
        self.follow_learners(now);
    }

    pub(super) fn on_propose_membership(
        &mut self,
        now: Tick,
        steps: &[Step],
        force: bool,
        ready: &mut Ready,
    ) -> Result<Index, ChangeRefused> {
        self.may_change()?;
        let current = self.history.current();
        let current = if current.is_joint() { current.leave() } else { current.clone() };
        let target = current.change(steps).map_err(ChangeRefused::Invalid)?;
        let found = preflight(&current, &target, |node| self.is_live(now, node));
        if target.voters != current.voters && !found.is_safe() && !force {
            return Err(ChangeRefused::Quorum(found));
        }
        let single = mutants::is(Mutant::SingleStepChange)
            || (mutants::is(Mutant::ChangeBeforeOwnCommit) && differ_by_one(&current, &target));
        let next = if single { target } else { current.enter(target) };
        self.append_membership(now, &next, ready);
        Ok(self.log.last_index())
    }

    /// One change at a time, and only behind a committed entry of the own term. (Changes of one
    /// voter without a joint configuration were unsafe for want of the second rule, bugs.md 19. Here
    /// both halves overlap with whatever an older leader has left; it is kept all the same.)
    fn may_change(&self) -> Result<(), ChangeRefused> {
        if self.role != Role::Leader {
            return Err(ChangeRefused::NotLeader(self.leader));
        }
        let commit = self.log.commit();
        let own = self.log.term_at(commit) == Some(self.term);
        if !own && !mutants::is(Mutant::ChangeBeforeOwnCommit) {
            return Err(ChangeRefused::NotYet);
        }
        let current = self.history.current();
        let open = current.is_joint() || current.index > commit;
        let handed = self.transfer.is_some();
        if handed || (open && !mutants::is(Mutant::TwoChangesAtOnce)) {
            return Err(ChangeRefused::UnderWay);
        }
        Ok(())
    }

    /// Has answered lately, or sleeps and its shard is heard. Only a leader knows.
    pub fn is_live(&self, now: Tick, node: NodeId) -> bool {
        let patience = self.config.election_timeout_max_us;
        match self.peer(node) {
            Some(i) if self.is_hibernating() => !self.peers[i].absent,
            Some(i) => now.since(self.peers[i].progress.contact_at()) < patience,
            None => node == self.config.id,
        }
    }

    fn append_membership(&mut self, now: Tick, membership: &Membership, ready: &mut Ready) {
        let mut body = Vec::new();
        Membership { index: Index::ZERO, ..membership.clone() }.encode(&mut body);
        let block = Block::special(self.config.group, BlockKind::Membership, body.into());
        let from = ready.blocks.len();
        self.take_on(block, ready);
        self.note_appended(now, from, ready);
        self.issue_append(from, false, ready);
        for i in 0..self.members {
            self.replicate(now, i, ready);
        }
    }

    /// What follows from a commit: the way out of a joint configuration, a leader that is no voter
    /// any more, learners that have caught up. Nothing at all while no change is under way.
    pub(super) fn settle_membership(&mut self, now: Tick, ready: &mut Ready) {
        if self.history.kept.len() == 1 && !self.membership().is_joint() && self.catch_up.is_empty()
        {
            return;
        }
        if mutants::is(Mutant::ConfigurationAtCommit) && *self.in_use() != self.deciding {
            self.deciding = self.in_use().clone();
            self.adopt(now, ready);
        }
        self.history.forget_before(self.log.applied());
        let (joint, index) = (self.membership().is_joint(), self.membership().index);
        let early = joint && mutants::is(Mutant::LeaveJointBeforeCommit);
        if index <= self.log.commit() || early {
            self.on_membership_committed(now, joint, ready);
        }
        self.seat_learners(now, ready);
    }

    fn on_membership_committed(&mut self, now: Tick, joint: bool, ready: &mut Ready) {
        let leads = self.role == Role::Leader;
        if joint {
            if leads && self.transfer.is_none() {
                let next = self.membership().leave();
                self.append_membership(now, &next, ready);
            }
            return;
        }
        let me = self.config.id;
        if leads && !self.membership().is_voter(me) {
            self.say_goodbye(now, ready);
            self.become_follower(now, self.term, None, "no voter any more", ready);
        }
        if !self.membership().is_voter(me) && self.hard_state.commit < self.membership().index {
            // A start that does not know the commit would campaign for what it once was.
            self.issue_hard_state(ready);
        }
    }

    /// The last words before stepping down: what is committed, so that the others need not find it
    /// out, and to one of those that have it all that it may campaign at once.
    fn say_goodbye(&mut self, now: Tick, ready: &mut Ready) {
        for i in 0..self.members {
            self.send_heartbeat(i, ready);
        }
        self.waive_lease();
        let last = self.log.last_index();
        let has_all = |peer: &Peer| {
            self.voters.contains(peer.id)
                && peer.progress.matched() == last
                && self.is_live(now, peer.id)
        };
        if let Some(i) = self.peers[..self.members].iter().position(has_all) {
            self.send(i, Seq::ZERO, Body::TimeoutNow, 0..0, ready);
        }
    }

    /// A message of this leader tells peer `i` of a commit.
    #[inline]
    pub(super) fn note_told(&mut self, i: usize, commit: Index) {
        let index = self.history.current().index;
        if let Standing::Leaving { farewell, .. } = &mut self.peers[i].standing
            && commit >= index
            && *farewell == Farewell::Due
        {
            *farewell = Farewell::Said;
        }
    }

    /// Peer `i` has answered this leader.
    #[inline]
    pub(super) fn note_leave(&mut self, i: usize) {
        if let Standing::Leaving { farewell, .. } = &mut self.peers[i].standing
            && *farewell == Farewell::Said
        {
            *farewell = Farewell::Answered;
        }
    }

    /// Lets go of those that know that they are out, or were told for long enough.
    pub(super) fn part_from_leaving(&mut self, now: Tick) {
        let committed = self.membership().index <= self.log.commit();
        let patience = FAREWELL_TIMEOUTS * self.config.election_timeout_max_us;
        let mut gone = false;
        for peer in &mut self.peers[..self.members] {
            let Standing::Leaving { until, farewell } = &mut peer.standing else { continue };
            let last = *until.get_or_insert(now.plus(patience));
            if committed && (*farewell == Farewell::Answered || now > last) {
                peer.standing = Standing::Stranger;
                gone = true;
            }
        }
        if gone {
            let membership = self.membership().clone();
            self.sort_peers(now, &membership);
        }
    }
}

/// The membership that an entry brings, with its index; `None`: no leader of ours wrote that.
pub(super) fn decode(block: &Block) -> Option<Membership> {
    let membership = Membership::decode(block.body()).ok()?;
    let voters = membership.voters.len().max(membership.outgoing.len());
    let sane = block.count() == 1
        && !membership.voters.is_empty()
        && voters <= crate::membership::VOTERS_MAX;
    sane.then_some(Membership { index: block.first(), ..membership })
}

/// What the first published algorithm takes for harmless (bugs.md 19).
fn differ_by_one(a: &Membership, b: &Membership) -> bool {
    let only = |a: &Membership, b: &Membership| {
        a.voters.iter().filter(|&&id| !b.voters.contains(&id)).count()
    };
    only(a, b) + only(b, a) == 1
}

impl From<ChangeError> for ChangeRefused {
    fn from(error: ChangeError) -> Self {
        Self::Invalid(error)
    }
}
