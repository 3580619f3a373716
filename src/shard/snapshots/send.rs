//! Sending the newest snapshot of a group to a follower: chunk by chunk, from where the follower says
//! that it is, and no more under way than a window.
//!
//! The follower's word rules: it names the offset that it holds durably, for this very snapshot, so
//! that neither a restart there nor a lost message begins it again (bugs.md 40). What is lost shows
//! as a pause; then the snapshot is offered once more, which asks for that word.
//!
//! The log stays as it is behind a snapshot that is sent, so that the follower can go on from there.
//! Not for one that cannot use it, or that says nothing of it: nobody knows for how long.

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
use crate::wal::DiskError;

/// A pause of so many rpc timeouts, and the snapshot is offered again.
const PAUSE_RPC_TIMEOUTS: u64 = 4;

/// After so many pauses without a word from the follower its place goes to another one that waits.
const STUCK_PAUSES: u64 = 8;

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
    /// What the follower holds.
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

impl Sending {
    pub fn waits_for(&self, op: FileOpId) -> bool {
        self.reading.is_some_and(|(reading, _)| reading == op)
    }
}

impl<M: StateMachine> Shard<M> {
    /// The follower needs a snapshot: it is offered the newest, unless one is on its way.
    pub(super) fn send_snapshot(&mut self, now: Tick, local: u32, to: NodeId) {
        let group = &self.groups[local as usize];
        let (id, offer, begins) = (group.raft.group(), group.snapshot, group.raft.log().start());
        let pause = self.offer_pause_us();
        let under_way = self.snapshots.sending.iter().position(|s| s.group == id && s.to == to);
        match under_way {
            // One that ends before the log begins would not be enough.
            Some(at) if self.snapshots.sending[at].offer.start.index < begins.index => {
                self.snapshots.sending.swap_remove(at);
                self.snapshots.remove_superseded();
            }
            Some(at) => {
                let sending = &mut self.snapshots.sending[at];
                if now.since(sending.moved_at.max(sending.offered_at)) >= pause {
                    sending.offered_at = now;
                    sending.sent = sending.held;
                    let offer = sending.offer;
                    self.say(local, to, Body::SnapshotOffer(offer));
                }
                return;
            }
            None => {}
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
        let connected = |node| self.peers.iter().any(|peer| peer.node == node && peer.connected);
        if !connected(to) {
            return;
        }
        if self.snapshots.sending.len() >= TRANSFERS_MAX {
            let stuck = |s: &Sending| now.since(s.moved_at) >= STUCK_PAUSES * pause;
            let Some(at) = self.snapshots.sending.iter().position(stuck) else { return };
            self.snapshots.sending.swap_remove(at);
            self.snapshots.remove_superseded();
        }
        let (held, sent, reading) = (0, 0, None);
        let (moved_at, offered_at, heard_at) = (now, now, now);
        self.snapshots.sending.push(Sending {
            group: id,
            local,
            to,
            offer,
            held,
            sent,
            reading,
            moved_at,
            offered_at,
            heard_at,
        });
        self.say(local, to, Body::SnapshotOffer(offer));
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
        if start.index != index || offset > size {
            return;
        }
        if offset < sending.held && sending.held == size {
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

    /// The lowest index of a snapshot of the group that is on its way to somebody who speaks of it.
    pub(super) fn least_sent(&self, now: Tick, group: GroupId) -> Option<Index> {
        let patience = STUCK_PAUSES * self.offer_pause_us();
        let speaks = |s: &&Sending| s.group == group && now.since(s.heard_at) < patience;
        self.snapshots.sending.iter().filter(speaks).map(|s| s.offer.start.index).min()
    }

    fn offer_pause_us(&self) -> u64 {
        PAUSE_RPC_TIMEOUTS * self.config.raft.rpc_timeout_us
    }

    /// Reads the next chunk, one at a time, while the window has room and the link is not behind.
    fn send_on(&mut self, at: usize) {
        let config = &self.config.snapshots;
        let sending = &self.snapshots.sending[at];
        let Sending { group, to, offer, held, sent, .. } = *sending;
        let peer = self.peers.iter().find(|peer| peer.node == to);
        let busy = peer.is_none_or(|peer| {
            !peer.connected || peer.egress_bytes() > self.config.peer_egress_bytes_max as u64 / 2
        });
        let open = sent < offer.size && sent - held < config.window_bytes;
        if sending.reading.is_some() || busy || !open {
            return;
        }
        let len = u64::from(config.chunk_bytes).min(offer.size - sent) as u32;
        let file = FileName::Snapshot(group, offer.start.index);
        let op = self.snapshots.op();
        self.snapshots.sending[at].reading = Some((op, sent));
        self.snapshots.ops.push(FileOp::Read { op, file, offset: sent, len });
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

    /// The link to a peer is lost: what was on its way to it is, too.
    pub(in super::super) fn stop_sending_to(&mut self, node: NodeId) {
        self.stop_sending(|s| s.to == node);
        // It may come back as another build.
        self.snapshots.refusers.retain(|refuser| refuser.to != node);
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
