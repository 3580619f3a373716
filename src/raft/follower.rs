//! What a follower does with its leader's messages (§5.3).

use super::{Body, Mutant, Raft, Ready, membership, mutants};
use crate::block::{Block, BlockKind};
use crate::ids::{Index, LogStart, Seq, Term, Tick};

/// Why a replica cannot follow, as it is told.
pub const PARTED: &str = "what it has committed is not in its leader's log";

impl Raft {
    pub(super) fn on_heartbeat(
        &mut self,
        now: Tick,
        i: usize,
        commit: Index,
        context: u64,
        ready: &mut Ready,
    ) {
        self.heard_leader(now, self.peers[i].id, ready);
        // The leader tells at most what this node has acknowledged to it in this incarnation.
        if commit <= self.log.last_index() && self.log.is_edge(commit) {
            self.log.commit_to(commit);
        }
        self.send(i, Seq::ZERO, Body::HeartbeatReply { context }, 0..0, ready);
    }

    pub(super) fn on_append(
        &mut self,
        now: Tick,
        i: usize,
        (prev_index, prev_term): (Index, Term),
        (commit, last): (Index, Index),
        blocks: &mut Vec<Block>,
        ready: &mut Ready,
    ) {
        let from = self.peers[i].id;
        self.heard_leader(now, from, ready);
        // Only a snapshot ends that within a term. An answer to what the logs still share would make
        // the leader send all that follows, with every heartbeat, for nothing.
        if self.is_parted() {
            return;
        }
        if self.is_parted_from((prev_index, prev_term), last, blocks) {
            return self.part(ready);
        }
        if prev_index < self.log.start().index {
            return self.answer_before_start(i, prev_index, blocks, ready);
        }
        if self.log.term_at(prev_index) != Some(prev_term) {
            let (hint_index, hint_term) = self.log.highest_with_term_at_most(prev_index, prev_term);
            let body = Body::AppendReject { prev_index, hint_index, hint_term };
            return self.send(i, Seq::ZERO, body, 0..0, ready);
        }
        if !self.is_well_formed(prev_index, prev_term, blocks) {
            return;
        }
        // What this message proves, and no more: later entries here may be of another leader.
        let matched = blocks.last().map_or(prev_index, Block::last);
        if !self.take_new(now, blocks, ready) {
            return;
        }
        // What was taken may have brought a configuration, and the peers another order.
        let i = self.meet(from);
        self.note_match(matched);
        let commit = commit.min(matched);
        if self.log.is_edge(commit) {
            self.log.commit_to(commit);
        }
        let after = self.log.written_by(matched);
        self.send(i, after, Body::AppendReply { matched }, 0..0, ready);
    }

    /// An old message, or a leader that does not know where this log begins. What it sent was compared
    /// with what is known of that place; where it sent less, it is told where to ask.
    fn answer_before_start(
        &mut self,
        i: usize,
        prev_index: Index,
        blocks: &[Block],
        ready: &mut Ready,
    ) {
        let LogStart { index, term, .. } = self.log.start();
        if across(prev_index, index, blocks).is_some() {
            let after = self.log.written_by(index);
            return self.send(i, after, Body::AppendReply { matched: index }, 0..0, ready);
        }
        let body = Body::AppendReject { prev_index, hint_index: index, hint_term: term };
        self.send(i, Seq::ZERO, body, 0..0, ready);
    }

    /// Whether this shows that what is committed here is not in the leader's log. No leader lacks it,
    /// except behind a loss: voters who had forgotten it, or an operator who gave it up, chose one
    /// without asking this node (decision 19). What the leader sends is compared at what it stands
    /// on, where this log begins, and in [`Raft::take_new`]; and a log that was shorter than what
    /// was committed here before its term never had it.
    fn is_parted_from(
        &self,
        (prev_index, prev_term): (Index, Term),
        last: Index,
        blocks: &[Block],
    ) -> bool {
        let (start, commit) = (self.log.start(), self.log.commit());
        let lacks = last < commit && self.log.term_at(commit) < Some(self.term);
        let stands_elsewhere = (start.index..=commit).contains(&prev_index)
            && self.log.term_at(prev_index) != Some(prev_term);
        let same = |b: &Block| {
            (b.last(), b.term(), b.header().epoch) == (start.index, start.term, start.epoch)
        };
        let begins_elsewhere = prev_index < start.index
            && across(prev_index, start.index, blocks).is_some_and(|block| !same(block));
        lacks || stands_elsewhere || begins_elsewhere
    }

    /// What is committed here is not in the log of this term's leader. This replica cannot follow, nor
    /// say how far the logs agree: it stays as it is, tells of it, and answers no reads.
    pub(super) fn part(&mut self, ready: &mut Ready) {
        if self.parted != Some(self.term) {
            self.parted = Some(self.term);
            self.transition(PARTED, ready);
        }
    }

    /// Appends the blocks that are not here yet, cutting off what contradicts them. `false`, and
    /// nothing taken, if they contradict what is committed (§5.4; see [`Raft::part`]) or cut a block in
    /// two (logs that agree on (term, index) agree on the block: no leader of ours sends that).
    fn take_new(&mut self, now: Tick, blocks: &mut Vec<Block>, ready: &mut Ready) -> bool {
        let mut known = 0;
        if blocks.first().is_some_and(|b| b.first() <= self.log.last_index()) {
            let has = |b: &&Block| {
                self.log.term_at(b.last()) == Some(b.term())
                    && self.log.epoch_at(b.last()) == b.header().epoch
            };
            known = blocks.iter().take_while(has).count();
            known *= usize::from(!mutants::is(Mutant::TruncateOnAnyAppend));
        }
        let Some(first) = blocks.get(known).map(Block::first) else { return true };
        let truncates = first <= self.log.last_index();
        if first <= self.log.commit() {
            self.part(ready);
            return false;
        }
        if truncates && !self.log.is_edge(first.prev()) {
            return false;
        }
        if truncates {
            self.log.truncate(first);
            self.note_truncated(now, first, ready);
        }
        let from = ready.blocks.len();
        for block in blocks.drain(known..) {
            ready.blocks.push(block.clone());
            self.log.append(block);
        }
        self.note_appended(now, from, ready);
        self.issue_append(from, truncates, ready);
        true
    }

    /// Bytes from outside: blocks must be of this group, follow each other and `prev` (which this
    /// log holds, so that no index is near the end of its range), and have terms that do not fall
    /// and are not above the leader's, with one epoch a term that does not fall either. Anything
    /// else is dropped whole.
    fn is_well_formed(&self, prev_index: Index, prev_term: Term, blocks: &[Block]) -> bool {
        let (mut last, mut term) = (prev_index, prev_term);
        let mut epoch = self.log.epoch_at(prev_index);
        for block in blocks {
            let follows = block.first().get().checked_sub(last.get()) == Some(1);
            let ordered = term <= block.term() && block.term() <= self.term;
            let now = block.header().epoch;
            let aged = if term == block.term() { epoch == now } else { epoch <= now };
            if !follows || !ordered || !aged || block.group() != self.config.group {
                return false;
            }
            if block.kind() == BlockKind::Membership && membership::decode(block).is_none() {
                return false;
            }
            (last, term, epoch) = (block.last(), block.term(), now);
        }
        true
    }

    /// A second leader in this term cannot be (§5.2); a peer that claims to be one is not believed.
    pub(super) fn refuses_second_leader(&self, i: usize) -> bool {
        self.leader.is_some_and(|leader| leader != self.peers[i].id)
    }
}

/// The block with the entry at `index`, of blocks that follow `prev` without a gap.
fn across(prev: Index, index: Index, blocks: &[Block]) -> Option<&Block> {
    let mut last = prev;
    for block in blocks {
        if block.first().get().checked_sub(last.get()) != Some(1) {
            return None;
        }
        last = block.last();
        if last >= index {
            return Some(block);
        }
    }
    None
}
