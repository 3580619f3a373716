//! Wires and what may happen to frames on them.
//!
//! Every shard has a link to its counterpart on each other node, as in the runtime: who dials only
//! sends. A link carries the bytes of whole frames; a reset loses what is under way and may cut the
//! last frame in half. Loss, doubling, overtaking and replay happen to frames: worse than what TCP
//! does, and still within what the protocol promises to bear.

use bytes::{Bytes, BytesMut};
use zerocopy::FromBytes;

use super::oracle::{LOSSES, Violation};
use super::queue::Event;
use super::rng::Rng;
use super::subject::Subject;
use super::trace::What;
use super::world::{Packet, World};
use crate::ids::{GroupId, Incarnation, Index, NodeId, Term};
use crate::machine::hash::mix;
use crate::raft::ready::Role;
use crate::raft::{Body, Message, Raft};
use crate::wire::frame::{FRAME_HEADER_BYTES, Frame};
use crate::wire::peer::{PEER_ENTRY_BYTES, PeerEntry};

/// Bytes that a socket holds under way.
const SOCKET_BYTES: usize = 256 << 10;
/// Frames of a link that may come again.
const RECENT: usize = 8;
/// A link that is down is dialled again after this long, microseconds.
const DIAL_AGAIN: (u64, u64) = (5_000, 100_000);
/// The same after a refusal.
const REFUSED_AGAIN: u64 = 1_000_000;

/// From one node to another, all shards.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// Faults that cut it now.
    pub cuts: u32,
    pub stuck: u32,
    /// Percent of frames.
    pub loss: u64,
    pub duplicate: u64,
    pub reorder: u64,
    pub replay: u64,
    /// More microseconds, at most; one frame in twenty takes ten times as long.
    pub delay: u64,
    /// Bytes a second; 0 = as many as there are.
    pub bandwidth: u64,
}

/// From one shard to its counterpart on another node.
#[derive(Debug, Default)]
pub struct Link {
    pub up: bool,
    /// Counts connections and their ends; what carries an older number is void.
    pub life: u32,
    /// The connection from which the receiver takes bytes.
    accepts: u32,
    /// Received and not yet a whole frame.
    inbox: BytesMut,
    last_arrival: u64,
    /// When a narrow wire is free again.
    free_at: u64,
    in_flight: usize,
    recent: Vec<Bytes>,
    next_recent: usize,
}

impl Link {
    fn remember(&mut self, frame: &Bytes) {
        if self.recent.len() < RECENT {
            self.recent.push(frame.clone());
        } else {
            self.recent[self.next_recent % RECENT] = frame.clone();
        }
        self.next_recent += 1;
    }
}

/// A typical wait between `low` and `high`, with a tail of rare long ones.
pub fn delay(rng: &mut Rng, (low, high): (u64, u64)) -> u64 {
    let base = rng.between(low, high);
    if rng.below(200) == 0 { base * rng.between(2, 20) } else { base }
}

/// Links.
impl<S: Subject> World<S> {
    pub(super) fn link_at(&self, host: usize, to: usize) -> usize {
        host * self.nodes.len() + to
    }

    /// The shard that dials, and the node at the other end.
    fn ends(&self, link: usize) -> (usize, usize) {
        (link / self.nodes.len(), link % self.nodes.len())
    }

    /// The counterpart of `host` on node `to`.
    fn counterpart(&self, host: usize, to: usize) -> usize {
        to * self.shape.shards as usize + host % self.shape.shards as usize
    }

    pub(super) fn wire(&mut self, from: usize, to: usize) -> &mut Wire {
        let at = from * self.nodes.len() + to;
        &mut self.wires[at]
    }

    pub(super) fn dial_soon(&mut self, link: usize) {
        let wait = self.net_rng.between(DIAL_AGAIN.0, DIAL_AGAIN.1);
        self.dial_in(link, wait);
    }

    fn dial_in(&mut self, link: usize, wait: u64) {
        let life = self.links[link].life;
        self.queue.push(self.now + wait, Event::Dial(link as u32, life));
    }

    fn is_path_open(&self, link: usize) -> bool {
        let (host, to) = self.ends(link);
        let from = self.node_of(host);
        let open = |a: usize, b: usize| self.wires[a * self.nodes.len() + b].cuts == 0;
        let there = self.hosts[self.counterpart(host, to)].serving;
        there && !self.nodes[to].paused && open(from, to) && open(to, from)
    }

    pub(super) fn on_dial(&mut self, link: usize, life: u32) {
        let (host, _) = self.ends(link);
        if self.links[link].up || self.links[link].life != life || !self.hosts[host].serving {
            return;
        }
        let paused = self.nodes[self.node_of(host)].paused;
        if paused || !self.is_path_open(link) {
            return self.dial_soon(link);
        }
        let round_trip = 2 * delay(&mut self.net_rng, self.shape.net_us);
        self.queue.push(self.now + round_trip, Event::Shake(link as u32, life));
    }

    /// The handshake has gone both ways: identities are compared by both sides.
    pub(super) fn on_shake(&mut self, link: usize, life: u32) {
        let (host, to) = self.ends(link);
        let from = self.node_of(host);
        if self.links[link].up || self.links[link].life != life || !self.hosts[host].serving {
            return;
        }
        if self.nodes[from].paused || !self.is_path_open(link) {
            return self.dial_soon(link);
        }
        if !self.knows(from, to) || !self.knows(to, from) {
            self.stats.refused_strangers += 1;
            let (from, to) = (from as u32 + 1, to as u32 + 1);
            let note = "refused: another disk than the one it is known by";
            self.trace.note(self.now, What::Link { from, to, note });
            return self.dial_in(link, REFUSED_AGAIN);
        }
        let incarnation = Incarnation(self.nodes[to].incarnation);
        let state = &mut self.links[link];
        state.up = true;
        state.life += 1;
        state.accepts = state.life;
        state.inbox.clear();
        state.last_arrival = 0;
        let local = self.local(from);
        let id = node_id(to);
        if let Some(shard) = self.hosts[host].shard.as_mut() {
            shard.peer_connected(local, id, incarnation);
        }
        let (from, to) = (from as u32 + 1, to as u32 + 1);
        self.trace.note(self.now, What::Link { from, to, note: "connected" });
        self.poke(host);
    }

    /// Whether `node` takes `other` for the one it has known by that number (bug 31).
    fn knows(&mut self, node: usize, other: usize) -> bool {
        let disk = self.nodes[other].disk_id;
        self.nodes[node].pin(node_id(other), disk)
    }

    /// A link breaks: what is under way is lost, and a piece of the last frame may arrive.
    pub(super) fn reset(&mut self, link: usize) {
        let (host, to) = self.ends(link);
        if !self.links[link].up {
            return;
        }
        let state = &mut self.links[link];
        state.up = false;
        state.life += 1;
        state.accepts = 0;
        state.inbox.clear();
        self.stats.resets += 1;
        let from = self.node_of(host);
        let local = self.local(from);
        if let Some(shard) = self.hosts[host].shard.as_mut() {
            shard.peer_disconnected(local, node_id(to));
            self.poke(host);
        }
        self.dial_soon(link);
    }

    /// The process at one end is gone. Its own links end with it; bytes on their way may still
    /// arrive. Links to it are lost when the other side notices.
    pub(super) fn unplug(&mut self, node: usize, at_once: bool) {
        for host in self.hosts_of(node) {
            for other in (0..self.nodes.len()).filter(|&other| other != node) {
                let out = self.link_at(host, other);
                let link = &mut self.links[out];
                link.up = false;
                link.life += 1;
                let back = self.link_at(self.counterpart(host, other), node);
                let link = &mut self.links[back];
                link.accepts = 0;
                link.inbox.clear();
                if link.up {
                    let longest = if at_once { 5_000 } else { 1_000_000 };
                    let wait = self.net_rng.between(100, longest);
                    let life = self.links[back].life;
                    self.queue.push(self.now + wait, Event::Lost(back as u32, life));
                }
            }
        }
    }

    pub(super) fn on_lost(&mut self, link: usize, life: u32) {
        if self.links[link].up && self.links[link].life == life {
            self.reset(link);
        }
    }
}

/// Frames.
impl<S: Subject> World<S> {
    /// Takes what a shard has for its peers, as far as the sockets do.
    pub(super) fn send_to_peers(&mut self, host: usize) {
        let node = self.node_of(host);
        for to in (0..self.nodes.len()).filter(|&to| to != node) {
            let at = self.link_at(host, to);
            let link = &self.links[at];
            let wire = &self.wires[node * self.nodes.len() + to];
            let takes = link.up && link.in_flight <= SOCKET_BYTES && wire.stuck == 0;
            let shard = self.hosts[host].shard.as_mut().expect("it has just had its turn");
            let Some(egress) = shard.peer_egress(node_id(to)) else { continue };
            if !takes {
                let waiting = egress.len();
                self.check_egress(host, waiting);
            } else if !egress.is_empty() {
                let bytes = Bytes::from(std::mem::take(egress));
                self.send(node, to, at, bytes);
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, link: usize, mut bytes: Bytes) {
        while !bytes.is_empty() && self.violation.is_none() {
            let frame = bytes.split_to(Frame::bytes_needed(&bytes));
            let arrives = self.fate(from, to, link, frame.len());
            self.note_messages(self.ends(link).0, to, &frame, arrives);
            self.stats.frames += 1;
            let wire = &self.wires[from * self.nodes.len() + to];
            if wire.replay > 0 {
                self.replay(link, wire.replay, &frame);
            }
            let Some(at) = arrives else { continue };
            let twice = self.wires[from * self.nodes.len() + to].duplicate;
            if twice > 0 && self.net_rng.chance(twice) {
                let later = at + delay(&mut self.net_rng, self.shape.net_us);
                self.carry(link, later, frame.clone(), false);
            }
            // Where frames overtake each other, a piece could get between the pieces of another.
            let in_order = self.wires[from * self.nodes.len() + to].reorder == 0;
            if self.net_rng.below(32) == 0 && in_order {
                self.carry_in_pieces(link, at, frame);
            } else {
                self.carry(link, at, frame, false);
            }
        }
    }

    /// Cut anywhere, as streams may be.
    fn carry_in_pieces(&mut self, link: usize, at: u64, mut frame: Bytes) {
        let cut = self.net_rng.below(frame.len() as u64) as usize;
        let head = frame.split_to(cut);
        let then = at + self.net_rng.between(1, 50);
        self.links[link].last_arrival = self.links[link].last_arrival.max(then);
        self.carry(link, at, head, true);
        self.carry(link, then, frame, true);
    }

    /// When a frame arrives, if it does.
    fn fate(&mut self, from: usize, to: usize, link: usize, bytes: usize) -> Option<u64> {
        let wire = &self.wires[from * self.nodes.len() + to];
        let (rng, now) = (&mut self.net_rng, self.now);
        if wire.cuts > 0 || (wire.loss > 0 && rng.chance(wire.loss)) {
            self.stats.frames_lost += 1;
            return None;
        }
        let mut wait = delay(rng, self.shape.net_us);
        if wire.delay > 0 {
            let more = rng.below(wire.delay + 1);
            wait += if rng.below(20) == 0 { 10 * more } else { more };
        }
        let link = &mut self.links[link];
        let mut at = now + wait;
        if let Some(took) = (bytes as u64 * 1_000_000).checked_div(wire.bandwidth) {
            link.free_at = link.free_at.max(now) + took;
            at = at.max(link.free_at + wait);
        }
        if wire.reorder == 0 || !rng.chance(wire.reorder) {
            at = at.max(link.last_arrival);
            link.last_arrival = at;
        }
        Some(at)
    }

    /// An old frame of the link comes again, whatever became of its connection since.
    fn replay(&mut self, link: usize, percent: u64, frame: &Bytes) {
        if self.net_rng.chance(percent) && !self.links[link].recent.is_empty() {
            let count = self.links[link].recent.len() as u64;
            let old = self.links[link].recent[self.net_rng.below(count) as usize].clone();
            let at = self.now + self.net_rng.between(100, 500_000);
            self.stats.replays += 1;
            let packet = Packet::Old { link: link as u32, bytes: old };
            self.post(at, packet);
        }
        self.links[link].remember(frame);
    }

    fn carry(&mut self, link: usize, at: u64, bytes: Bytes, piece: bool) {
        let life = self.links[link].life;
        self.links[link].in_flight += bytes.len();
        self.post(at, Packet::Peer { link: link as u32, life, piece, bytes });
    }

    /// Reads what leaves: the trace shows it, the checks judge it.
    fn note_messages(&mut self, host: usize, to: usize, frame: &Bytes, arrives: Option<u64>) {
        let from = self.node_of(host);
        let control = u32::from_le_bytes(frame[8..12].try_into().expect("4 bytes")) as usize;
        self.hash = mix(self.hash, u64::from_le_bytes(frame[..8].try_into().expect("8 bytes")));
        let (sender, receiver) = (from as u32 + 1, to as u32 + 1);
        let entries = &frame[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + control];
        for raw in entries.chunks_exact(PEER_ENTRY_BYTES) {
            let entry = PeerEntry::read_from_bytes(raw).expect("chunks have the exact size");
            if entry.as_keep_alive().is_some() || entry.as_ended().is_some() {
                continue;
            }
            let Some((group, message, blocks)) = entry.decode() else {
                return self.fail("a shard sends what a shard can read", format!("n{sender}"));
            };
            self.stats.messages += 1;
            let what = What::Sent { from: sender, to: receiver, group, message, blocks, arrives };
            self.trace.note(self.now, what);
            self.oracle.spoke(from, NodeId(receiver), group, &message);
            self.judge(host, NodeId(receiver), group, &message);
        }
    }

    /// No term, vote or acknowledgement without the completion it speaks for (R1, R2).
    fn judge(&mut self, host: usize, to: NodeId, group: GroupId, message: &Message) {
        let state = &self.hosts[host];
        let Some(view) = state.shard.as_ref().and_then(|shard| shard.group(group)) else { return };
        let (shadow, term) = (&state.shadow, message.term);
        let settled = match message.body {
            Body::VoteRequest { pre: true, .. } => true,
            Body::VoteRequest { .. } => shadow.may_say_vote(group, term, view.raft().id()),
            Body::VoteReply { pre: false, granted: true, .. } => {
                self.stats.votes += 1;
                shadow.may_say_vote(group, term, to)
            }
            Body::AppendReply { matched } => {
                // A later leader may have replaced what an old reply speaks of.
                let entry = view.raft().log().term_at(matched).filter(|entry| *entry <= term);
                shadow.may_say_term(group, term)
                    && entry.is_none_or(|entry| {
                        shadow.may_say_matched(group, matched, entry, view.is_synced())
                    })
            }
            _ => shadow.may_say_term(group, term),
        };
        let rule = match message.body {
            _ if !settled => "nothing is said before it is settled",
            Body::AppendReply { matched } if !self.is_match(view.raft(), to, term, matched) => {
                "who acknowledges has what its leader has"
            }
            _ => return,
        };
        let what = format!("{} g{group} to n{to}: {message:?}", view.raft().id());
        self.fail(rule, what);
    }

    /// Whether a follower's log and that of its leader, if it still is, have the same entry at `index`
    /// (§5.3): what parted from each other must not be counted. An old reply proves nothing.
    fn is_match(&self, follower: &Raft, leader: NodeId, term: Term, index: Index) -> bool {
        let (node, group) = (leader.0 as usize - 1, follower.group().0 as usize);
        let leader = self.view(node, group).map(|view| view.raft());
        let leads = |raft: &&Raft| raft.role() == Role::Leader && raft.term() == term;
        let Some(leader) = leader.filter(leads).filter(|_| follower.term() == term) else {
            return true;
        };
        match (follower.log().term_at(index), leader.log().term_at(index)) {
            (Some(one), Some(other)) => one == other,
            // Where one of them begins later, a snapshot stands for it.
            _ => index <= leader.last_index(),
        }
    }

    /// A packet of a link arrives.
    pub(super) fn on_peer(&mut self, link: usize, life: u32, piece: bool, bytes: Bytes) {
        let state = &mut self.links[link];
        state.in_flight = state.in_flight.saturating_sub(bytes.len());
        // What has overtaken a piece of a frame is lost: a stream would never show it.
        let accepted = state.accepts == life && (piece || state.inbox.is_empty());
        let (host, to) = self.ends(link);
        if accepted {
            self.receive(link, bytes);
        }
        // A full socket has room again.
        if self.links[link].up
            && self.hosts[host].shard.is_some()
            && !self.nodes[self.node_of(host)].paused
        {
            let shard = self.hosts[host].shard.as_mut().expect("looked at");
            if shard.peer_egress(node_id(to)).is_some_and(|egress| !egress.is_empty()) {
                self.send_to_peers(host);
            }
        }
    }

    /// A frame from before arrives on whatever connection there is now.
    pub(super) fn on_old(&mut self, link: usize, bytes: Bytes) {
        if self.links[link].accepts != 0 && self.links[link].inbox.is_empty() {
            self.receive(link, bytes);
        }
    }

    fn receive(&mut self, link: usize, bytes: Bytes) {
        let (from_host, to) = self.ends(link);
        let (from, host) = (self.node_of(from_host), self.counterpart(from_host, to));
        if self.hosts[host].shard.is_none() || !self.hosts[host].serving {
            return;
        }
        let inbox = &mut self.links[link].inbox;
        let mut inbox = std::mem::take(inbox);
        if inbox.is_empty() {
            match bytes.try_into_mut() {
                Ok(whole) => inbox = whole,
                Err(shared) => inbox.extend_from_slice(&shared),
            }
        } else {
            inbox.extend_from_slice(&bytes);
        }
        let local = self.local(to);
        let shard = self.hosts[host].shard.as_mut().expect("looked at");
        let outcome = loop {
            match Frame::take(&mut inbox) {
                Ok(Some(frame)) => {
                    if let Err(error) = shard.peer_frame(local, node_id(from), frame) {
                        break Err(error);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.links[link].inbox = inbox;
        if let Err(error) = outcome {
            let what = format!("n{} does not understand n{}: {error}", to + 1, from + 1);
            return self.fail("peers understand each other", what);
        }
        self.poke(host);
    }

    /// A rule is broken. On disks that lie much else breaks, before what the control is about: lost
    /// acknowledgements.
    pub(super) fn fail(&mut self, rule: &'static str, what: String) {
        let at = self.now;
        if self.options.lying_disks && !LOSSES.contains(&rule) {
            return;
        }
        self.violation.get_or_insert(Violation { rule, what, at });
    }
}

/// Nodes have the ids 1, 2, ... in the order of their positions.
pub fn node_id(node: usize) -> NodeId {
    NodeId(node as u32 + 1)
}
