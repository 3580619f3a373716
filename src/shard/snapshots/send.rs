//! Sending the newest snapshot of a group to a follower: chunk by chunk, from where the follower says
//! that it is, and no more under way than a window.
//!
//! The follower's word rules: it names the offset that it holds durably, for this very snapshot, so
//! that neither a restart there nor a lost message begins it again (bugs.md 40). What is lost shows
//! as a pause; then the snapshot is offered once more, which asks for that word.
//!
//! ```text
//!            offered again: n3 is back                 n3 needs none, or says nothing for 10 s
//!          ┌───────────────────────────┐             ┌───────────────────────────────────────▶ gone
//!          ▼                           │             │
//! ──▶ Asked ── "I hold 300 of 900" ─▶ Goes ── link lost ─▶ Kept
//!       └── link lost, nothing is held ─▶ gone   (newer ones are published meanwhile, and not offered)
//! ```
//!
//! The log stays as it is behind a snapshot that is sent, so that the follower can go on from there:
//! as long as it has a part of it and its last word is no older than [`KEPT_US`], whatever became of
//! the link, for half a snapshot is worth nothing without the other half. Not for one that cannot use
//! it, and less long for one that says nothing of it: nobody knows for how long.

use bytes::{Bytes, BytesMut};

use super::super::Shard;
use super::super::transport::{self, Outgoing};
use super::{FileDone, FileName, FileOp, FileOpId, TRANSFERS_MAX, Trouble};
use crate::block::{Block, BlockKind};
use crate::ids::{GroupId, Index, NodeId, Tick};
use crate::machine::StateMachine;
use crate::mutants::{self, Mutant};
use crate::raft::Event;
use crate::raft::message::{Body, Offer};
use crate::raft::progress::State;
use crate::wal::DiskError;

/// A pause of so many rpc timeouts, and the snapshot is offered again.
const PAUSE_RPC_TIMEOUTS: u64 = 4;

/// After so many pauses without a word from the follower its place goes to another one that waits.
const STUCK_PAUSES: u64 = 8;

/// A snapshot that a follower has a part of, and the log behind it, are kept for it so long after its
/// last word, microseconds. Long enough for a process to begin anew; by a link that breaks more often
/// than a whole snapshot takes the follower still gets one, however many newer ones are published.
const KEPT_US: u64 = 10_000_000;

/// A follower that could not use what it was sent is left alone for so long, microseconds. Then it is
/// offered what is the newest by then.
const REFUSED_PAUSE_US: u64 = 10_000_000;

/// A follower that could not use a snapshot of this group.
pub(super) struct Refuser {
    pub group: GroupId,
    to: NodeId,
    until: Tick,
}

/// One snapshot on its way to one follower.
pub(super) struct Sending {
    pub group: GroupId,
    local: u32,
    pub to: NodeId,
    pub offer: Offer,
    stage: Stage,
    /// What the follower holds, by its last word.
    held: u64,
    /// Through here chunks were sent.
    sent: u64,
    /// A read that is under way, and the offset of what it brings. By then `sent` may be another.
    reading: Option<(FileOpId, u64)>,
    /// When it last got further, or began.
    moved_at: Tick,
    /// When it was last offered again.
    offered_at: Tick,
    /// When the follower last said how far it is, or it began.
    heard_at: Tick,
}

/// See the drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It was offered, and the follower has not said yet where it begins or goes on.
    Asked,
    /// Chunks are on their way.
    Goes,
    /// The link is lost. The follower has a part.
    Kept,
}

impl Sending {
    pub fn waits_for(&self, op: FileOpId) -> bool {
        self.reading.is_some_and(|(reading, _)| reading == op)
    }

    /// When a follower that is away has lost its claim.
    pub fn kept_until(&self) -> Tick {
        let ends = self.stage == Stage::Kept && !mutants::is(Mutant::KeptForEver);
        if ends { self.heard_at.plus(KEPT_US) } else { Tick(u64::MAX) }
    }
}

impl<M: StateMachine> Shard<M> {
    /// The follower needs a snapshot: it is offered the newest, unless one is on its way or kept.
    pub(super) fn send_snapshot(&mut self, now: Tick, local: u32, to: NodeId) {
        let group = &self.groups[local as usize];
        let (id, offer, begins) = (group.raft.group(), group.snapshot, group.raft.log().start());
        let mine = |s: &Sending| s.group == id && s.to == to;
        // One that ends before the log begins would not be enough.
        self.stop_sending(|s| mine(s) && s.offer.start.index < begins.index);
        if let Some(at) = self.snapshots.sending.iter().position(mine) {
            return self.offer_again(now, at);
        }
        let left_alone = |r: &Refuser| r.group == id && r.to == to && now < r.until;
        if self.snapshots.refusers.iter().any(left_alone) {
            return;
        }
        if offer.start.index < begins.index || offer.size == 0 {
            return self.want_snapshot(local);
        }
        // Who cannot be reached takes no place from those who can: four of them would otherwise keep
        // everybody else waiting for ever.
        if !self.is_linked_with(to) || !self.finds_place(now) {
            return;
        }
        let (stage, held, sent, reading) = (Stage::Asked, 0, 0, None);
        let (moved_at, offered_at, heard_at) = (now, now, now);
        self.snapshots.sending.push(Sending {
            group: id,
            local,
            to,
            offer,
            stage,
            held,
            sent,
            reading,
            moved_at,
            offered_at,
            heard_at,
        });
        self.say(local, to, Body::SnapshotOffer(offer));
    }

    /// The very same one: after a pause, or because the follower is back.
    fn offer_again(&mut self, now: Tick, at: usize) {
        let pause = self.offer_pause_us();
        let Sending { local, to, offer, stage, moved_at, offered_at, .. } =
            self.snapshots.sending[at];
        let is_back = stage == Stage::Kept && self.is_linked_with(to);
        let paused = stage != Stage::Kept && now.since(moved_at.max(offered_at)) >= pause;
        if !is_back && !paused {
            return;
        }
        let sending = &mut self.snapshots.sending[at];
        if is_back {
            (sending.stage, sending.moved_at) = (Stage::Asked, now);
        }
        sending.offered_at = now;
        sending.sent = sending.held;
        self.say(local, to, Body::SnapshotOffer(offer));
    }

    fn is_linked_with(&self, node: NodeId) -> bool {
        self.peers.iter().any(|peer| peer.node == node && peer.connected)
    }

    /// Whether one more may begin; one that is stuck gives its place up. A kept one has none, until its
    /// follower is back: so there are never more than [`TRANSFERS_MAX`] to one node, kept or not.
    fn finds_place(&mut self, now: Tick) -> bool {
        let has_place = |s: &&Sending| s.stage != Stage::Kept || self.is_linked_with(s.to);
        if self.snapshots.sending.iter().filter(has_place).count() < TRANSFERS_MAX {
            return true;
        }
        let patience = STUCK_PAUSES * self.offer_pause_us();
        let stuck = |s: &Sending| s.stage != Stage::Kept && now.since(s.moved_at) >= patience;
        let Some(at) = self.snapshots.sending.iter().position(stuck) else { return false };
        self.snapshots.sending.swap_remove(at);
        self.snapshots.remove_superseded();
        true
    }

    /// A small message about a snapshot, if this node may speak.
    pub(super) fn say(&mut self, local: u32, to: NodeId, body: Body) {
        let raft = &self.groups[local as usize].raft;
        let id = raft.group();
        if let Some(message) = raft.address(to, body) {
            transport::queue(&self.peers, &mut self.outgoing, to, Outgoing::small(id, message));
        }
    }

    /// What the follower says that it holds.
    pub(super) fn peer_holds(
        &mut self,
        now: Tick,
        group: GroupId,
        peer: NodeId,
        index: Index,
        offset: u64,
    ) {
        let mine = |s: &super::Sending| s.group == group && s.to == peer;
        let Some(at) = self.snapshots.sending.iter().position(mine) else { return };
        let sending = &mut self.snapshots.sending[at];
        let Offer { start, size, .. } = sending.offer;
        if start.index != index || offset > size || sending.stage == Stage::Kept {
            return;
        }
        if sending.stage == Stage::Asked {
            (sending.stage, sending.sent) = (Stage::Goes, offset);
            self.snapshots.stats.resumed += u64::from(offset > 0);
            self.snapshots.stats.resumed_bytes += offset;
        } else if offset < sending.held && sending.held == size {
            // It had all of it and threw it away: what lies here may be damaged. A new one is taken.
            let local = sending.local;
            self.stop_sending(mine);
            return self.replace_snapshot(local);
        }
        if offset != sending.held {
            sending.moved_at = now;
        }
        sending.heard_at = now;
        sending.held = offset;
        sending.sent = sending.sent.max(offset);
        self.send_on(at);
    }

    /// The follower cannot use this snapshot; the like of it would do it no good either.
    pub(super) fn peer_refuses(&mut self, now: Tick, group: GroupId, peer: NodeId, index: Index) {
        let mine = |s: &Sending| s.group == group && s.to == peer && s.offer.start.index == index;
        let Some(at) = self.snapshots.sending.iter().position(mine) else { return };
        if mutants::is(Mutant::RefusedHoldsLog) {
            self.snapshots.sending[at].heard_at = now;
            return;
        }
        self.stop_sending(mine);
        let until = now.plus(REFUSED_PAUSE_US);
        let refusers = &mut self.snapshots.refusers;
        refusers.retain(|r| r.group != group || r.to != peer);
        refusers.push(Refuser { group, to: peer, until });
        self.snapshots.stats.refused += 1;
        let what = "a follower cannot use the snapshot that it needs; start the build and the \
                    configuration there that go with it";
        let reason = format!("node {peer} refuses the one through {index}");
        self.snapshots.troubles.push(Trouble { group, what, reason });
    }

    /// The lowest index of a snapshot of the group that somebody speaks of, or has a part of.
    pub(super) fn least_sent(&self, now: Tick, group: GroupId) -> Option<Index> {
        let stuck = STUCK_PAUSES * self.offer_pause_us();
        let patience = |s: &Sending| if s.held > 0 { KEPT_US } else { stuck };
        let for_ever = |s: &Sending| s.stage == Stage::Kept && mutants::is(Mutant::KeptForEver);
        let speaks =
            |s: &&Sending| s.group == group && (now.since(s.heard_at) < patience(s) || for_ever(s));
        self.snapshots.sending.iter().filter(speaks).map(|s| s.offer.start.index).min()
    }

    fn offer_pause_us(&self) -> u64 {
        PAUSE_RPC_TIMEOUTS * self.config.raft.rpc_timeout_us
    }

    /// Goes on with what is sent to this one's follower, in turn: all of that shares one window, behind
    /// which that follower's heartbeats have to wait.
    fn send_on(&mut self, at: usize) {
        let (to, count) = (self.snapshots.sending[at].to, self.snapshots.sending.len());
        for next in (1..=count).map(|step| (at + step) % count) {
            if self.snapshots.sending[next].to == to {
                self.read_chunk(next);
            }
        }
    }

    /// Reads the next chunk, one at a time, while the window has room and the link is not behind.
    fn read_chunk(&mut self, at: usize) {
        let config = &self.config.snapshots;
        let Sending { group, to, offer, stage, sent, reading, .. } = self.snapshots.sending[at];
        let peer = self.peers.iter().find(|peer| peer.node == to);
        let busy = peer.is_none_or(|peer| {
            !peer.connected || peer.egress_bytes() > self.config.peer_egress_bytes_max as u64 / 2
        });
        let len = u64::from(config.chunk_bytes).min(offer.size - sent);
        let under_way = self.under_way_to(to);
        let room = under_way == 0 || under_way + len <= config.window_bytes;
        if stage != Stage::Goes || reading.is_some() || len == 0 || busy || !room {
            return;
        }
        let (file, len) = (FileName::Snapshot(group, offer.start.index), len as u32);
        let op = self.snapshots.op();
        self.snapshots.sending[at].reading = Some((op, sent));
        self.snapshots.ops.push(FileOp::Read { op, file, offset: sent, len });
    }

    /// Bytes of snapshots that a node has not acknowledged, and those that are read for it.
    pub(in super::super) fn under_way_to(&self, node: NodeId) -> u64 {
        let chunk = u64::from(self.config.snapshots.chunk_bytes);
        let read = |s: &Sending| if s.reading.is_some() { chunk } else { 0 };
        let to_it = self.snapshots.sending.iter().filter(|s| s.to == node);
        to_it.map(|s| s.sent - s.held + read(s)).sum()
    }

    pub(super) fn chunk_read(&mut self, now: Tick, at: usize, result: Result<FileDone, DiskError>) {
        let sending = &mut self.snapshots.sending[at];
        let offset = sending.reading.take().map_or(sending.sent, |(_, offset)| offset);
        let (group, local, to) = (sending.group, sending.local, sending.to);
        let bytes = match result {
            Ok(FileDone::Read { bytes }) => bytes,
            Ok(_) => unreachable!("an operation is reported as what it was"),
            Err(error) => return self.chunk_not_read(now, (group, local, to), error),
        };
        let Offer { start, size, checksum } = sending.offer;
        if offset != sending.sent {
            // It was begun again from elsewhere meanwhile; these bytes belong to another place.
            return self.send_on(at);
        }
        sending.sent = (offset + bytes.len() as u64).min(size);
        self.snapshots.stats.sent_bytes += bytes.len() as u64;
        let body = Body::SnapshotChunk { index: start.index, offset, size, checksum };
        let raft = &self.groups[local as usize].raft;
        let Some(message) = raft.address(to, body) else { return };
        let block = self.ready.blocks.len() as u32;
        self.ready.blocks.push(Block::special(group, BlockKind::Chunk, padded(bytes)));
        let outgoing = Outgoing { group, message, blocks: block..block + 1 };
        transport::queue(&self.peers, &mut self.outgoing, to, outgoing);
        self.send_on(at);
    }

    fn chunk_not_read(
        &mut self,
        now: Tick,
        (group, local, to): (GroupId, u32, NodeId),
        error: DiskError,
    ) {
        self.snapshots.failed(now, group, "a snapshot that is sent was not read", error);
        self.stop_sending(|s| s.group == group);
        self.replace_snapshot(local);
        self.step(now, local, Event::SnapshotFailed { to });
    }

    /// The newest snapshot cannot be trusted: another one is taken as soon as it can be another one.
    fn replace_snapshot(&mut self, local: u32) {
        self.snapshots.stats.failed += 1;
        self.groups[local as usize].snapshot_bad = true;
        self.want_snapshot(local);
    }

    pub(super) fn stop_sending(&mut self, which: impl Fn(&Sending) -> bool) {
        self.snapshots.sending.retain(|s| !which(s));
        self.snapshots.remove_superseded();
    }

    /// The link to a peer is lost, and what was on it; what the peer has of a snapshot is not.
    pub(in super::super) fn keep_sending_to(&mut self, node: NodeId) {
        let forgets = mutants::is(Mutant::OfferGoesWithLink);
        self.stop_sending(|s| s.to == node && (s.held == 0 || forgets));
        for kept in self.snapshots.sending.iter_mut().filter(|s| s.to == node) {
            (kept.stage, kept.sent, kept.reading) = (Stage::Kept, kept.held, None);
        }
        // It may come back as another build.
        self.snapshots.refusers.retain(|refuser| refuser.to != node);
    }

    /// What is sent or kept for nobody goes, and the log behind it: its follower has got all it lacks
    /// from the log or is no member any more, or was away for too long.
    pub(super) fn look_after_sending(&mut self, now: Tick) {
        let mut at = 0;
        while let Some(sending) = self.snapshots.sending.get(at) {
            if !self.is_over(now, sending) {
                at += 1;
                continue;
            }
            let local = self.snapshots.sending.swap_remove(at).local;
            self.snapshots.remove_superseded();
            self.cut_log(now, local, false);
        }
    }

    fn is_over(&self, now: Tick, sending: &Sending) -> bool {
        let raft = &self.groups[sending.local as usize].raft;
        let follower = raft.progress().find(|(node, _)| *node == sending.to);
        let lacks = follower.is_some_and(|(_, progress)| progress.state() != State::Replicate);
        // The log had to be cut: there were no files left for it.
        let is_short = sending.offer.start.index < raft.log().start().index;
        let is_kept = sending.stage == Stage::Kept;
        !lacks || now >= sending.kept_until() || (is_kept && is_short)
    }

    /// This node no longer leads the group.
    pub(in super::super) fn stop_sending_of(&mut self, group: GroupId) {
        self.stop_sending(|s| s.group == group);
        self.snapshots.refusers.retain(|refuser| refuser.group != group);
    }
}

/// Blocks have whole words.
fn padded(bytes: Bytes) -> Bytes {
    let size = bytes.len().next_multiple_of(8);
    if size == bytes.len() {
        return bytes;
    }
    let mut whole = BytesMut::zeroed(size);
    whole[..bytes.len()].copy_from_slice(&bytes);
    whole.freeze()
}
