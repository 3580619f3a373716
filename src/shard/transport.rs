//! Peers: one frame a turn to each, with the messages of all groups in it.
//!
//! Worked example: three nodes, 10,000 groups led by n1 that are awake. Each heartbeat interval (50 ms) n1's
//! groups come due in one turn, because their deadlines are multiples of the interval. Each peer
//! gets 10,000 entries x 64 bytes = 640 KB in one frame and one send, and answers with as many:
//! 20 turns and 40 sends a second instead of 400,000 packets. Groups with nothing to do cost none of
//! that: see `hibernation`.

use bytes::Bytes;
use zerocopy::FromBytes;

use super::Shard;
use crate::block::{Block, BlockKind};
use crate::ids::{GroupId, Incarnation, NodeId, Term, Tick};
use crate::machine::StateMachine;
use crate::membership::NodeAddress;
use crate::mutants::{self, Mutant};
use crate::raft::Event;
use crate::raft::message::{Body, Message};
use crate::raft::ready::{BlockRange, Ready};
use crate::wire::frame::{
    FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameError, FrameKind, FrameWriter,
};
use crate::wire::peer::{PEER_ENTRY_BYTES, PeerEntry, expect_peer};

/// A message on its way into a frame.
pub(super) struct Outgoing {
    pub group: GroupId,
    pub message: Message,
    pub blocks: BlockRange,
}

impl Outgoing {
    pub fn small(group: GroupId, message: Message) -> Self {
        Self { group, message, blocks: 0..0 }
    }
}

/// Another node's shard of the same number.
pub(super) struct Peer {
    pub node: NodeId,
    pub connected: bool,
    /// Since when, or when it was lost.
    since: Tick,
    /// A link with it is wanted.
    pub is_wanted: bool,
    /// It was a member of some group here since the start.
    pub was_member: bool,
    /// Where a membership says that it is.
    pub address: Option<NodeAddress>,
    /// Whole frames that the socket has not taken yet.
    pub egress: Vec<u8>,
}

impl Peer {
    /// One that nobody has asked to be linked with yet.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            connected: false,
            since: Tick::ZERO,
            is_wanted: false,
            was_member: false,
            address: None,
            egress: Vec::new(),
        }
    }

    /// One that the configuration file names.
    pub fn named(node: NodeId) -> Self {
        Self { is_wanted: true, ..Self::new(node) }
    }

    /// Connected for so long, microseconds.
    pub fn is_stable(&self, now: Tick, for_us: u64) -> bool {
        self.connected && now.since(self.since) >= for_us
    }

    /// Bytes that wait for the socket.
    pub fn egress_bytes(&self) -> u64 {
        self.egress.len() as u64
    }
}

/// Sorts a message under its peer.
pub(super) fn queue(peers: &[Peer], outgoing: &mut [Vec<Outgoing>], to: NodeId, message: Outgoing) {
    if let Some(slot) = peers.iter().position(|peer| peer.node == to) {
        outgoing[slot].push(message);
    }
}

impl<M: StateMachine> Shard<M> {
    /// The link to a peer is up: what we send from now on arrives, in order, until it is lost.
    pub fn peer_connected(&mut self, now: Tick, node: NodeId, incarnation: Incarnation) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.node == node) else { return };
        (peer.connected, peer.since) = (true, now);
        peer.egress.clear();
        self.hear_of_link(now, node, incarnation);
        self.tell_soon(now);
    }

    /// The link is lost, and whatever was on it.
    pub fn peer_disconnected(&mut self, now: Tick, node: NodeId) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.node == node) else { return };
        (peer.connected, peer.since) = (false, now);
        peer.egress.clear();
        self.keep_sending_to(node);
        self.hear_of_loss(now, node);
    }

    /// Bytes for a peer's socket; take them whenever it is free.
    pub fn peer_egress(&mut self, node: NodeId) -> Option<&mut Vec<u8>> {
        self.peers.iter_mut().find(|peer| peer.node == node).map(|peer| &mut peer.egress)
    }

    /// A frame from a peer whose identity is bound to the connection. An error means that the
    /// connection must be closed.
    pub fn peer_frame(
        &mut self,
        now: Tick,
        from: NodeId,
        mut frame: Frame,
    ) -> Result<(), FrameError> {
        expect_peer(&frame)?;
        if frame.control.len() != frame.count as usize * PEER_ENTRY_BYTES {
            return Err(FrameError::BadCount { count: frame.count });
        }
        let control: Bytes = frame.control.clone();
        for (i, raw) in control.chunks_exact(PEER_ENTRY_BYTES).enumerate() {
            let bad = FrameError::BadEntry(i as u32);
            let entry = PeerEntry::read_from_bytes(raw).expect("chunks have the exact size");
            if let Some(sign) = entry.as_keep_alive() {
                self.keep_alive(now, from, &sign);
                continue;
            }
            if let Some(ended) = entry.as_ended() {
                self.hear_of_ends(now, &ended);
                continue;
            }
            let (group, message, count) = entry.decode().ok_or(bad)?;
            let mut blocks = std::mem::take(&mut self.incoming);
            blocks.clear();
            frame.take_blocks(count, &mut blocks)?;
            if !continues(group, &message, &blocks) {
                return Err(bad);
            }
            self.receive(now, from, group, message, &mut blocks);
            self.incoming = blocks;
        }
        if frame.blocks.is_empty() { Ok(()) } else { Err(FrameError::Leftover) }
    }

    fn receive(
        &mut self,
        now: Tick,
        from: NodeId,
        group: GroupId,
        message: Message,
        blocks: &mut Vec<Block>,
    ) {
        let Some(local) = self.local(group) else { return };
        let bytes: u64 = blocks.iter().map(|block| block.size() as u64).sum();
        // What is not for the log does not wait for it.
        let bytes = if matches!(message.body, Body::Append { .. }) { bytes } else { 0 };
        if bytes > 0 && !self.log_takes(bytes) {
            // Not acknowledged, so sent again when the log has room.
            self.stats.appends_held_back += 1;
            return;
        }
        self.claimed += bytes;
        self.step(now, local, Event::Receive { from, message, blocks });
    }

    fn log_takes(&self, bytes: u64) -> bool {
        self.wal.room() > 2 * bytes + self.claimed && self.wal.capacity() > self.claimed
    }

    /// Turns this turn's messages into frames.
    pub(super) fn write_peer_frames(&mut self) {
        for (peer, messages) in self.peers.iter_mut().zip(&mut self.outgoing) {
            if peer.connected {
                let limit = self.config.peer_egress_bytes_max;
                let held = write_frames(&mut peer.egress, messages, &self.ready, limit);
                self.stats.appends_held_back += held;
            }
            messages.clear();
        }
    }
}

/// Whether the blocks beside an append follow its previous entry without a gap, in this group and
/// with terms that a leader of the message's term can have, one recovery epoch to a term.
fn continues(group: GroupId, message: &Message, blocks: &[Block]) -> bool {
    if let Body::SnapshotChunk { .. } = message.body {
        return blocks.len() == 1
            && blocks[0].kind() == BlockKind::Chunk
            && blocks[0].group() == group;
    }
    let Body::Append { prev_index, prev_term, .. } = message.body else { return true };
    if blocks.iter().any(|block| block.kind() == BlockKind::Chunk) {
        return false;
    }
    // Numbers from outside: checked, because the sum may leave the range.
    let (mut last, mut term, mut epoch) = (prev_index.get(), prev_term, None);
    for block in blocks {
        let follows = last.checked_add(1) == Some(block.first().get());
        let Some(end) = last.checked_add(block.count()) else { return false };
        if block.group() != group || !follows || block.term() < term {
            return false;
        }
        if block.term() > message.term || block.term() == Term::ZERO {
            return false;
        }
        // Raft compares the first one with what it has before it.
        let now = block.header().epoch;
        if epoch.is_some_and(|e| now < e || (now != e && block.term() == term)) {
            return false;
        }
        (last, term, epoch) = (end, block.term(), Some(now));
    }
    true
}

/// Writes messages as few frames. Over the limit, appends with blocks are left out (Raft finds out
/// by its own timeout and probes), and over twice the limit everything is: that socket has been
/// stuck for long, and messages may be lost. Returns how many were left out.
fn write_frames(out: &mut Vec<u8>, messages: &[Outgoing], ready: &Ready, limit: usize) -> u64 {
    let limit = if mutants::is(Mutant::EgressWithoutBound) { usize::MAX / 2 } else { limit };
    if out.len() > 2 * limit {
        return messages.len() as u64;
    }
    let full = out.len() > limit;
    let small = |m: &Outgoing| m.blocks.is_empty() && !mutants::is(Mutant::HeartbeatsBehindBulk);
    let wanted = |m: &&Outgoing| !full || small(m);
    let mut held = 0;
    let mut rest = messages;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(fits(rest, ready));
        rest = after;
        if !part.iter().any(|m| wanted(&m)) {
            held += part.len() as u64;
            continue;
        }
        let mut writer = FrameWriter::begin(out);
        let mut count = 0;
        for m in part.iter().filter(wanted) {
            writer.entry(&PeerEntry::encode(m.group, &m.message, m.blocks.len() as u32));
            count += 1;
        }
        for m in part.iter().filter(wanted) {
            ready.slice(&m.blocks).iter().for_each(|block| writer.block(block));
        }
        writer.finish(FrameKind::Peer, count, 0);
        held += part.len() as u64 - u64::from(count);
    }
    held
}

/// How many messages from the front fit one frame; at least one.
fn fits(messages: &[Outgoing], ready: &Ready) -> usize {
    let mut bytes = FRAME_HEADER_BYTES;
    for (i, m) in messages.iter().enumerate() {
        let blocks: usize = ready.slice(&m.blocks).iter().map(Block::size).sum();
        bytes += PEER_ENTRY_BYTES + blocks;
        if bytes > FRAME_BYTES_MAX {
            return i.max(1);
        }
    }
    messages.len()
}
