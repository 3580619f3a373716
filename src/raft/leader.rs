//! What a leader does: takes proposals on, replicates, commits, and makes sure that it still leads.

use super::pace::Pace;
use super::progress::State;
use super::{BlockRange, Body, Fetch, InstallStep, Mutant, Raft, Ready, Role, mutants};
use crate::block::Block;
use crate::ids::{Index, NodeId, Seq, Term, Tick};

impl Raft {
    /// `loss`: won by voters who may all have forgotten the same acknowledged commands.
    pub(super) fn become_leader(&mut self, now: Tick, loss: bool, ready: &mut Ready) {
        self.role = Role::Leader;
        self.leader = Some(self.config.id);
        self.pace = Pace::Level;
        self.transition("won the election", ready);
        let since = self.begin_epoch(loss, ready);
        self.abandon_rounds();
        let next = self.log.last_index().next();
        for peer in &mut self.peers {
            peer.progress.reset(next);
            peer.progress.contact(now);
        }
        self.begin_membership(now);
        self.set_heartbeat_deadline(now);
        self.note_activity(now);
        // §5.4.2 and dissertation §6.4: an entry of its own term, so that earlier ones can commit.
        let from = ready.blocks.len();
        self.take_on(Block::noop(self.config.group).begins_epoch(since), ready);
        self.issue_append(from, false, ready);
        for i in 0..self.members {
            self.replicate(now, i, ready);
        }
    }

    pub(super) fn on_propose(&mut self, now: Tick, blocks: &mut Vec<Block>, ready: &mut Ready) {
        if self.role != Role::Leader || self.is_transferring() {
            if self.is_transferring() && mutants::is(Mutant::TransferDropsProposals) {
                blocks.clear();
            }
            return;
        }
        let (admitted, bytes) = self.admitted(blocks);
        if admitted == 0 {
            return;
        }
        let from = ready.blocks.len();
        let first = self.log.last_index().next();
        for block in blocks.drain(..admitted) {
            self.take_on(block, ready);
        }
        let range = self.issue_append(from, false, ready);
        self.note_activity(now);
        self.replicate_new(now, range, first, bytes, ready);
    }

    /// How many proposals fit the cap on uncommitted bytes, and their bytes. When nothing is
    /// uncommitted the first one always fits, however large it is.
    fn admitted(&self, blocks: &[Block]) -> (usize, u64) {
        let before = self.log.uncommitted_bytes();
        let (mut count, mut bytes) = (0, 0);
        for block in blocks {
            assert_eq!(block.group(), self.config.group, "routed to the wrong group");
            let size = block.size() as u64;
            let fits = before + bytes + size <= self.config.uncommitted_bytes_max
                || mutants::is(Mutant::UncommittedWithoutBound);
            if !fits && before + bytes > 0 {
                break;
            }
            count += 1;
            bytes += size;
        }
        (count, bytes)
    }

    /// Gives a block its place in the log and in the turn's arena.
    #[inline]
    pub(super) fn take_on(&mut self, mut block: Block, ready: &mut Ready) {
        block.stamp(self.term, self.log.last_index().next(), self.epoch);
        ready.blocks.push(block.clone());
        self.log.append(block);
    }

    /// Sends the blocks just taken on. Followers that are up to date share the arena's copy; the
    /// others, and turns larger than one message, go the general way.
    fn replicate_new(
        &mut self,
        now: Tick,
        range: BlockRange,
        first: Index,
        bytes: u64,
        ready: &mut Ready,
    ) {
        for i in 0..self.members {
            let progress = &self.peers[i].progress;
            let shares = progress.state() == State::Replicate
                && progress.next() == first
                && bytes <= u64::from(self.config.append_bytes_max)
                && progress.may_send(now, &self.config);
            if shares {
                self.send_append(now, i, first, range.clone(), bytes, ready);
            } else {
                self.replicate(now, i, ready);
            }
        }
    }

    /// Sends peer `i` what it lacks, as far as its window allows.
    pub(super) fn replicate(&mut self, now: Tick, i: usize, ready: &mut Ready) {
        let bytes_max = u64::from(self.config.append_bytes_max);
        while self.peers[i].progress.may_send(now, &self.config) {
            let progress = &self.peers[i].progress;
            let next = progress.next();
            if next < self.log.first_index() {
                return self.needs_snapshot(now, i, ready);
            }
            if next > self.log.last_index() {
                // A probe is sent even if there is nothing to send.
                if progress.state() != State::Replicate {
                    self.send_append(now, i, next, 0..0, 0, ready);
                }
                return;
            }
            let from = ready.blocks.len();
            match self.log.copy_blocks(next, bytes_max, &mut ready.blocks) {
                Some(bytes) => self.send_copied(now, i, from, bytes, ready),
                None => return self.fetch(i, next, ready),
            }
        }
    }

    fn send_copied(&mut self, now: Tick, i: usize, from: usize, bytes: u64, ready: &mut Ready) {
        let first = ready.blocks[from].first();
        debug_assert!(first >= self.log.first_index(), "the log begins on a block's edge");
        let range = from as u32..ready.blocks.len() as u32;
        self.send_append(now, i, first, range, bytes, ready);
    }

    /// One Append of blocks that start at `first`; an empty range asks whether the logs agree there.
    fn send_append(
        &mut self,
        now: Tick,
        i: usize,
        first: Index,
        range: BlockRange,
        bytes: u64,
        ready: &mut Ready,
    ) {
        let prev_index = first.prev();
        let prev_term = self.log.term_at(prev_index).expect("a leader's log has what it sends");
        let last = ready.slice(&range).last().map_or(prev_index, Block::last);
        self.peers[i].progress.sent(now, first, last, bytes);
        let commit = self.log.commit_within(last);
        self.note_told(i, commit);
        let body = Body::Append { prev_index, prev_term, commit, last: self.log.last_index() };
        self.send(i, Seq::ZERO, body, range, ready);
    }

    /// Asks for blocks that are no longer in memory, up to where the memory begins.
    fn fetch(&mut self, i: usize, from: Index, ready: &mut Ready) {
        let peer = &mut self.peers[i];
        peer.progress.fetch_started(from);
        ready.fetches.push(Fetch {
            group: self.config.group,
            to: peer.id,
            from,
            through: self.log.first_cached().prev(),
            bytes_max: self.config.append_bytes_max,
        });
    }

    pub(super) fn on_fetched(
        &mut self,
        now: Tick,
        to: NodeId,
        from: Index,
        blocks: &mut Vec<Block>,
        ready: &mut Ready,
    ) {
        let Some(i) = self.peer(to) else { return };
        if !self.peers[i].progress.fetch_ended(from) || self.role != Role::Leader {
            return;
        }
        let usable = self.usable(i, from, blocks);
        if usable == 0 {
            let again = now.plus(self.config.rpc_timeout_us);
            return self.peers[i].progress.fetch_again_at(again);
        }
        let at = ready.blocks.len();
        let bytes = blocks[..usable].iter().map(|b| b.size() as u64).sum();
        ready.blocks.extend(blocks.drain(..usable));
        self.send_copied(now, i, at, bytes, ready);
        self.replicate(now, i, ready);
    }

    /// How many fetched blocks are this log's own and continue what the peer was sent.
    fn usable(&self, i: usize, from: Index, blocks: &[Block]) -> usize {
        let progress = &self.peers[i].progress;
        let Some(first) = blocks.first().map(Block::first) else { return 0 };
        let starts = match progress.state() {
            State::Replicate => first == from,
            State::Probe { .. } => progress.matched() < first && first <= from,
            State::Snapshot { .. } => false,
        };
        // The log may have been cut while the read was under way.
        let starts = starts && first >= self.log.first_index();
        if !starts || blocks[0].last() < from {
            return 0;
        }
        let mut next = first;
        let ours = |block: &&Block| {
            let own = block.first() == next && self.log.term_at(block.last()) == Some(block.term());
            next = block.last().next();
            own
        };
        blocks.iter().take_while(ours).count()
    }

    pub(super) fn on_append_reply(
        &mut self,
        now: Tick,
        i: usize,
        matched: Index,
        ready: &mut Ready,
    ) {
        // More than this leader ever had: no follower of ours says so; never a reason to panic.
        if matched > self.log.last_index() || !self.log.is_edge(matched) {
            return;
        }
        self.note_leave(i);
        let progress = &mut self.peers[i].progress;
        progress.contact(now);
        if matched > progress.reach() && !self.is_of_snapshot(i, matched) {
            return self.ask_behind(now, i, matched, ready);
        }
        let progress = &mut self.peers[i].progress;
        let was_behind = matches!(progress.state(), State::Snapshot { .. });
        if progress.acknowledged(now, matched) && matched > self.log.commit() {
            self.advance_commit();
        }
        if was_behind && self.peers[i].progress.state() == State::Replicate {
            self.install_step(i, InstallStep::Stop, ready);
        }
        self.note_round(now, i, matched);
        self.replicate(now, i, ready);
    }

    /// The answer to a snapshot speaks of what is committed.
    fn is_of_snapshot(&self, i: usize, matched: Index) -> bool {
        let installs = matches!(self.peers[i].progress.state(), State::Snapshot { .. });
        installs && matched <= self.log.commit()
    }

    /// The peer may hold the log through `index`, but nobody has compared: after a loss it may have
    /// something else there, committed by leaders of whom this one does not know. It is asked.
    fn ask_behind(&mut self, now: Tick, i: usize, index: Index, ready: &mut Ready) {
        if index.next() < self.log.first_index() {
            return;
        }
        if let State::Snapshot { .. } = self.peers[i].progress.state() {
            self.install_step(i, InstallStep::Stop, ready);
        }
        self.peers[i].progress.become_probe(index.next());
        self.replicate(now, i, ready);
    }

    pub(super) fn on_append_reject(
        &mut self,
        now: Tick,
        i: usize,
        prev: Index,
        (hint_index, hint_term): (Index, Term),
        ready: &mut Ready,
    ) {
        // About an entry that this leader never had: not from a follower of ours.
        if prev > self.log.last_index() {
            return;
        }
        let (agree, _) = self.log.highest_with_term_at_most(hint_index, hint_term);
        let last = self.log.last_index();
        let progress = &mut self.peers[i].progress;
        progress.contact(now);
        if hint_index > prev {
            if hint_index <= last && progress.begins_behind(prev, hint_index) {
                self.replicate(now, i, ready);
            }
        } else if progress.rejected(prev, agree.next()) {
            self.replicate(now, i, ready);
        }
    }

    /// Commits what a quorum has durable, the leader counting itself like anyone else. Only entries
    /// of the own term commit by counting; earlier ones commit with them (§5.4.2, figure 8).
    ///
    /// Followers are not told at once: the next append or heartbeat carries it.
    pub(super) fn advance_commit(&mut self) {
        let reached = self.voters.reached(|id| match self.peer(id) {
            Some(i) => self.peers[i].progress.matched().get(),
            None if mutants::is(Mutant::LeaderCountsUndurable) => self.log.last_index().get(),
            None => self.log.durable().get(),
        });
        let index = Index(reached);
        let own = self.log.term_at(index) == Some(self.term);
        if index > self.log.commit() && (own || mutants::is(Mutant::CommitOlderTerm)) {
            self.log.commit_to(index);
        }
    }

    /// Rounded up to a multiple of the interval, so that all groups of a shard beat in one turn.
    fn set_heartbeat_deadline(&mut self, now: Tick) {
        let interval = self.config.heartbeat_us;
        self.heartbeat_deadline = Tick((now.get() / interval + 1) * interval);
    }

    pub(super) fn on_heartbeat_due(&mut self, now: Tick, ready: &mut Ready) {
        if now.since(self.quorum_contact(now)) >= self.config.election_timeout_max_us {
            let reason = "no quorum for an election timeout";
            return self.become_follower(now, self.term, None, reason, ready);
        }
        if self.quit_if_stalled(now, ready) {
            return;
        }
        self.set_heartbeat_deadline(now);
        self.repeat_transfer();
        self.part_from_leaving(now);
        if self.offers_sleep(now, ready) {
            return;
        }
        let sent = self.renew_lease(now, ready);
        for i in 0..self.members {
            if !sent {
                self.send_heartbeat(i, ready);
            }
            self.look_after(now, i, ready);
        }
    }

    /// A heartbeat with the context of the last round, so that it repeats a round that was lost.
    pub(super) fn send_heartbeat(&mut self, i: usize, ready: &mut Ready) {
        let known = if mutants::is(Mutant::CommitPastMatched) {
            self.log.last_index()
        } else {
            self.peers[i].progress.matched()
        };
        let commit = self.log.commit_within(known);
        let last = self.log.last_index();
        self.note_told(i, commit);
        let body = Body::Heartbeat { commit, context: self.context, last };
        self.send(i, Seq::ZERO, body, 0..0, ready);
    }

    /// Without an answer for an rpc timeout, one empty append asks how far the follower is: a lost
    /// message shows as a rejection with its last index, a slow disk as silence. Neither makes the
    /// leader send megabytes again.
    fn look_after(&mut self, now: Tick, i: usize, ready: &mut Ready) {
        let progress = &mut self.peers[i].progress;
        if let State::Snapshot { .. } = progress.state() {
            self.install_step(i, InstallStep::Send, ready);
        } else if progress.is_overdue(now, self.config.rpc_timeout_us) {
            let next = progress.next();
            progress.become_probe(next);
            if next < self.log.first_index() {
                return self.needs_snapshot(now, i, ready);
            }
            self.send_append(now, i, next, 0..0, 0, ready);
        } else {
            self.replicate(now, i, ready);
        }
    }

    /// Up to when a quorum was in contact (check-quorum, dissertation §6.2).
    pub(super) fn quorum_contact(&self, now: Tick) -> Tick {
        Tick(self.voters.reached(|id| match self.peer(id) {
            Some(i) => self.peers[i].progress.contact_at().get(),
            None => now.get(),
        }))
    }

    /// Highest index that all followers in contact hold: what lies below need not stay in memory.
    pub(super) fn shared(&self, now: Tick) -> Index {
        let patience = self.config.election_timeout_max_us;
        let active = |p: &&super::Peer| now.since(p.progress.contact_at()) < patience;
        let members = &self.peers[..self.members];
        let matched = members.iter().filter(active).map(|p| p.progress.matched());
        matched.min().unwrap_or(Index(u64::MAX))
    }
}
