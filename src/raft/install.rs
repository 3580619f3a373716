//! Snapshots in place of entries (§7): who needs one, when one may be taken over, and what that does
//! to the log. The bytes are the shard's business; here is decided what they may do.
//!
//! ```text
//! leader                                   follower
//! next < first index of the log
//!   Snapshot state, Send  ── Offer ──────▶ commit >= index, or the log has (index, term):
//!                                            AppendReply { index }, nothing is sent (bug 16),
//!                                            and nothing committed by it;
//!                                            silence if it has another term there
//!                                          else  ◀── Reply { offset }: so many bytes are held
//!   Held { offset }  ─────── Chunk … ────▶ written, synced ── Reply { offset } …
//!                                          whole, verified, published: Installed
//!                                            again the two questions; else the log is dropped
//!                                            (bug 15) and begins behind the snapshot
//!   Replicate from index + 1 ◀──────────── AppendReply { index }, once that beginning is durable
//! ```
//!
//! Why a log that has (index, term) is kept: it agrees with the leader's through there (§5.3), so all
//! it has may be committed later, and was perhaps counted. Why the other is dropped whole: it is too
//! short, or has something else at `index`, and what follows that was never committed.

use super::message::{Body, CANNOT_USE, Offer};
use super::pace::Pace;
use super::{Install, InstallStep, Mutant, PersistOp, Raft, Ready, mutants};
use crate::block::Block;
use crate::ids::{Index, LogStart, NodeId, Tick};
use crate::membership::Membership;

impl Raft {
    /// The peer needs entries that this leader's log no longer has.
    pub(super) fn needs_snapshot(&mut self, now: Tick, i: usize, ready: &mut Ready) {
        let first = self.log.first_index();
        self.peers[i].progress.become_snapshot(now, first);
        self.install_step(i, InstallStep::Send, ready);
    }

    pub(super) fn install_step(&self, i: usize, step: InstallStep, ready: &mut Ready) {
        let (group, peer) = (self.config.group, self.peers[i].id);
        ready.installs.push(Install { group, peer, step });
    }

    /// The shard has nothing to send: the next heartbeat asks again.
    pub(super) fn on_snapshot_failed(&mut self, to: NodeId) {
        let Some(i) = self.peer(to) else { return };
        let progress = &mut self.peers[i].progress;
        let next = progress.next();
        progress.become_probe(next);
    }

    /// Whether a snapshot that stands for the log through `start` would bring this log further.
    pub fn wants_snapshot(&self, start: &LogStart) -> bool {
        let conflicts_kept = mutants::is(Mutant::InstallKeepsConflict);
        let drops_newer = mutants::is(Mutant::InstallDropsNewer);
        let has = match conflicts_kept {
            true => self.log.last_index() >= start.index,
            false => self.log.term_at(start.index) == Some(start.term),
        };
        start.index > self.log.commit() && (!has || drops_newer)
    }

    pub(super) fn on_snapshot_offer(
        &mut self,
        now: Tick,
        i: usize,
        offer: Offer,
        ready: &mut Ready,
    ) {
        self.heard_leader(now, self.peers[i].id, ready);
        // No leader has committed an entry of a later term than its own.
        if offer.start.term > self.term || offer.start.index == Index::ZERO {
            return;
        }
        if self.wants_snapshot(&offer.start) {
            self.pace = Pace::Unknown;
            self.install_step(i, InstallStep::Offered(offer), ready);
        } else if self.is_parted() {
            // It has to reach further.
        } else if self.agrees_with(&offer.start) {
            self.has_already(i, offer.start.index, ready);
        } else {
            self.part(ready);
        }
    }

    /// Whether this log, which reaches beyond `start`, is the one that a snapshot stands for. Where it
    /// begins later nothing is left to compare but the epoch: each loss begins one, so that a
    /// snapshot from behind a parting has a higher one.
    fn agrees_with(&self, start: &LogStart) -> bool {
        match self.log.term_at(start.index) {
            Some(term) => term == start.term || mutants::is(Mutant::InstallKeepsConflict),
            None => start.epoch <= self.log.start().epoch,
        }
    }

    /// The log agrees with the leader's through `index`. That this is committed the leader says when it
    /// has the answer: behind it may lie the entry of an epoch that begins before it, and what such an
    /// epoch renames is committed with its entry only ([`super::Log::commit_within`]).
    fn has_already(&mut self, i: usize, index: Index, ready: &mut Ready) {
        if !self.log.is_edge(index) {
            return;
        }
        self.note_match(index);
        let after = self.log.written_by(index);
        self.send(i, after, Body::AppendReply { matched: index }, 0..0, ready);
    }

    pub(super) fn on_snapshot_chunk(
        &mut self,
        now: Tick,
        i: usize,
        body: &Body,
        blocks: &mut Vec<Block>,
        ready: &mut Ready,
    ) {
        self.heard_leader(now, self.peers[i].id, ready);
        let Body::SnapshotChunk { index, offset, size, checksum } = *body else { return };
        let Some(piece) = blocks.pop().filter(|_| blocks.is_empty()) else { return };
        let block = ready.blocks.len() as u32;
        ready.blocks.push(piece);
        let step = InstallStep::Chunk { index, offset, size, checksum, block };
        self.install_step(i, step, ready);
    }

    pub(super) fn on_snapshot_reply(
        &mut self,
        now: Tick,
        i: usize,
        index: Index,
        offset: u64,
        ready: &mut Ready,
    ) {
        self.peers[i].progress.contact(now);
        if let super::progress::State::Snapshot { .. } = self.peers[i].progress.state() {
            let step = match offset {
                CANNOT_USE => InstallStep::Refused { index },
                _ => InstallStep::Held { index, offset },
            };
            self.install_step(i, step, ready);
        }
    }

    /// See [`super::Event::Installed`].
    pub(super) fn on_installed(
        &mut self,
        now: Tick,
        start: LogStart,
        membership: Membership,
        ready: &mut Ready,
    ) {
        assert!(self.wants_snapshot(&start), "the shard has asked");
        self.save_hard_state(ready);
        let seq = self.issue(PersistOp::Begin(start), ready);
        self.log.install(start, seq);
        // All of it is the leader's from here on.
        self.parted = None;
        self.restore_membership(now, membership, ready);
        // The state machine has it: nothing is left to be announced.
        self.announced = start.index;
        self.note_match(start.index);
        let leader = self.leader.and_then(|leader| self.peer(leader));
        if let Some(i) = leader {
            let matched = start.index;
            self.send(i, seq, Body::AppendReply { matched }, 0..0, ready);
        }
    }

    /// Term and vote are persisted as they are.
    pub fn is_settled(&self) -> bool {
        let saved = (self.hard_state.term, self.hard_state.vote) == (self.term, self.vote);
        saved && self.hard_state_seq <= self.persisted
    }

    /// A message about a snapshot to or from a peer, with what every message carries. `None`: there
    /// is nobody to send it to, or this node must not speak yet.
    pub fn address(&self, to: NodeId, body: Body) -> Option<super::Message> {
        let i = self.peer(to)?;
        self.is_settled().then_some(super::Message {
            term: self.term,
            incarnation: self.config.incarnation,
            echo: self.peers[i].incarnation,
            body,
        })
    }
}
