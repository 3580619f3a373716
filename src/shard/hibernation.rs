//! Who is alive, once for each pair of shards, for all groups that sleep.
//!
//! A group with nothing to do neither beats nor waits for heartbeats (`raft/hibernation.rs`). In
//! their place each shard gives each other one a sign of life every heartbeat interval, one entry of
//! 64 bytes however many groups there are. It says nothing about any group: what it stands for is
//! what each follower has confirmed before it fell asleep, and only as long as the sender's start is
//! the one that it confirmed it to.
//!
//! ```text
//! what is seen of a node                            what sleeping groups hear
//!   no sign of life for an election timeout           PeerSilent
//!   a sign of life after that                         PeerHeard
//!   the connection to it is lost                      PeerDisconnected
//!   it is connected, or speaks as a new incarnation   PeerConnected
//! ```
//!
//! Worked example: three nodes, 10,000 groups asleep, 3,333 led by n1. Each second n1 sends 20 entries
//! to each of n2 and n3, instead of 66,660. n1 is killed: n2 and n3 see their connections end and wake
//! the 3,333 groups, [`SWEEP_GROUPS`] a turn, each with a timeout of its own, and pre-votes go as ever.

use std::collections::VecDeque;

use super::Shard;
use super::transport::Peer;
use crate::ids::{Incarnation, NodeId, Tick};
use crate::machine::StateMachine;
use crate::mutants::{self, Mutant};
use crate::raft::Event;
use crate::raft::ready::Role;
use crate::wire::frame::{FrameKind, FrameWriter};
use crate::wire::peer::{KeepAlive, PeerEntry};

/// Groups that are told of a change in one turn.
const SWEEP_GROUPS: usize = 512;
/// Changes that wait to be told to all groups; more are told at once.
const SWEEPS_MAX: usize = 8;

/// What is told to all groups, a slice of them at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Connected(Incarnation),
    Disconnected,
    Silent,
    Heard,
}

struct Sweep {
    peer: NodeId,
    news: News,
    /// The next group to be told.
    next: usize,
}

/// What is known of another shard's life.
#[derive(Debug)]
struct Life {
    node: NodeId,
    incarnation: Incarnation,
    /// Of its last sign of life; a number comes once.
    number: u64,
    heard_at: Tick,
    is_silent: bool,
}

/// See the module.
pub(super) struct Liveness {
    /// Off: this shard's groups do not sleep.
    enabled: bool,
    interval_us: u64,
    patience_us: u64,
    beat_at: Tick,
    beats: u64,
    lives: Vec<Life>,
    /// By node: when it was last heard. Lent to groups that wake.
    heard: Vec<(NodeId, Tick)>,
    sweeps: VecDeque<Sweep>,
    /// Groups that sleep.
    pub asleep: usize,
}

impl Liveness {
    /// Of nodes that are met as they are linked with.
    pub fn new(config: &crate::raft::Config) -> Self {
        Self {
            enabled: config.hibernate_after_us > 0,
            interval_us: config.heartbeat_us,
            patience_us: config.election_timeout_min_us,
            beat_at: Tick::ZERO,
            beats: 0,
            lives: Vec::new(),
            heard: Vec::new(),
            sweeps: VecDeque::new(),
            asleep: 0,
        }
    }

    /// The newest start of a node that is known; `ZERO`: none.
    pub fn incarnation(&self, node: NodeId) -> Incarnation {
        let life = self.lives.iter().find(|life| life.node == node);
        life.map_or(Incarnation::ZERO, |life| life.incarnation)
    }

    /// When the next sign of life is due, or somebody becomes silent.
    pub fn deadline(&self) -> Tick {
        if !self.enabled || self.lives.is_empty() {
            return Tick(u64::MAX);
        }
        let heard = self.lives.iter().filter(|life| !life.is_silent);
        let silence = heard.map(|life| life.heard_at.plus(self.patience_us)).min();
        self.beat_at.min(silence.unwrap_or(Tick(u64::MAX)))
    }

    /// News that not all groups have been told.
    pub fn has_news(&self) -> bool {
        !self.sweeps.is_empty()
    }

    fn life(&mut self, node: NodeId) -> &mut Life {
        let at = self.lives.iter().position(|life| life.node == node).unwrap_or_else(|| {
            let (incarnation, heard_at) = (Incarnation::ZERO, Tick::ZERO);
            self.lives.push(Life { node, incarnation, number: 0, heard_at, is_silent: true });
            self.lives.len() - 1
        });
        &mut self.lives[at]
    }

    fn note_heard(&mut self, node: NodeId, now: Tick) {
        match self.heard.iter_mut().find(|(known, _)| *known == node) {
            Some((_, at)) => *at = now,
            None => self.heard.push((node, now)),
        }
    }
}

impl<M: StateMachine> Shard<M> {
    /// Groups that hibernate.
    pub fn hibernating(&self) -> usize {
        self.liveness.asleep
    }

    /// Tells the groups that the link to a node stands.
    pub(super) fn hear_of_link(&mut self, now: Tick, node: NodeId, incarnation: Incarnation) {
        let life = self.liveness.life(node);
        if incarnation > life.incarnation {
            (life.incarnation, life.number) = (incarnation, 0);
        }
        self.tell(now, node, News::Connected(incarnation));
    }

    /// Tells the groups that it does not stand any more.
    pub(super) fn hear_of_loss(&mut self, now: Tick, node: NodeId) {
        self.tell(now, node, News::Disconnected);
    }

    /// A sign of life has arrived.
    pub(super) fn keep_alive(&mut self, now: Tick, from: NodeId, sign: &KeepAlive) {
        let mine = sign.echo == Incarnation::ZERO || sign.echo == self.config.incarnation;
        if self.peers.iter().all(|peer| peer.node != from) {
            return;
        }
        let life = self.liveness.life(from);
        let is_new = sign.incarnation > life.incarnation;
        if is_new {
            (life.incarnation, life.number) = (sign.incarnation, 0);
        }
        // An old one that comes again shows nothing, nor one that was meant for an earlier start.
        if sign.incarnation < life.incarnation || sign.number <= life.number || !mine {
            return;
        }
        (life.number, life.heard_at) = (sign.number, now);
        let was_silent = std::mem::take(&mut life.is_silent);
        self.liveness.note_heard(from, now);
        if is_new && !mutants::is(Mutant::NoWakeOnIncarnationChange) {
            self.tell(now, from, News::Connected(sign.incarnation));
        }
        if was_silent {
            self.tell(now, from, News::Heard);
        }
    }

    /// Signs of life are sent, silence is noticed, and news are passed on.
    pub(super) fn watch(&mut self, now: Tick) {
        self.sweep(now);
        if now < self.liveness.deadline() {
            return;
        }
        self.notice_silence(now);
        if now >= self.liveness.beat_at {
            let interval = self.liveness.interval_us;
            self.liveness.beat_at = Tick((now.get() / interval + 1) * interval);
            self.liveness.beats += 1;
            self.beat();
        }
    }

    fn notice_silence(&mut self, now: Tick) {
        for i in 0..self.liveness.lives.len() {
            let patience = self.liveness.patience_us;
            let life = &mut self.liveness.lives[i];
            if !life.is_silent && now.since(life.heard_at) >= patience {
                life.is_silent = true;
                let node = life.node;
                self.tell(now, node, News::Silent);
            }
        }
    }

    fn beat(&mut self) {
        let limit = self.config.peer_egress_bytes_max;
        let (incarnation, number) = (self.config.incarnation, self.liveness.beats);
        for Peer { node, connected, egress, .. } in &mut self.peers {
            if !*connected || egress.len() > 2 * limit {
                continue;
            }
            let life = self.liveness.lives.iter().find(|life| life.node == *node);
            let echo = life.map_or(Incarnation::ZERO, |life| life.incarnation);
            let mut writer = FrameWriter::begin(egress);
            writer.entry(&PeerEntry::keep_alive(&KeepAlive { incarnation, echo, number }));
            writer.finish(FrameKind::Peer, 1, 0);
        }
    }

    /// News go round in the order in which they came, [`SWEEP_GROUPS`] groups a turn: the first of
    /// them at once.
    fn tell(&mut self, now: Tick, peer: NodeId, news: News) {
        self.liveness.sweeps.push_back(Sweep { peer, news, next: 0 });
        while self.liveness.sweeps.len() > SWEEPS_MAX {
            self.sweep(now);
        }
        if self.liveness.sweeps.len() == 1 {
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: Tick) {
        let Some(Sweep { peer, news, next }) = self.liveness.sweeps.pop_front() else { return };
        let end = self.groups.len().min(next + SWEEP_GROUPS);
        for local in next..end {
            self.tell_group(now, local as u32, peer, news);
        }
        if end < self.groups.len() {
            self.liveness.sweeps.push_front(Sweep { peer, news, next: end });
        }
    }

    fn tell_group(&mut self, now: Tick, local: u32, peer: NodeId, news: News) {
        let raft = &self.groups[local as usize].raft;
        // Who takes no part in the group lacks nothing of it.
        let concerned = raft.role() == Role::Leader && raft.may_need(peer);
        let event = match news {
            News::Connected(incarnation) => Event::PeerConnected { peer, incarnation },
            News::Disconnected => Event::PeerDisconnected { peer },
            News::Silent => Event::PeerSilent { peer },
            News::Heard => Event::PeerHeard { peer },
        };
        if concerned && matches!(news, News::Connected(_) | News::Heard) {
            self.wake(now, local, Some(peer));
        }
        self.step(now, local, event);
    }

    /// A sleeping group is about to hear something: it learns first who is alive.
    #[cold]
    pub(super) fn wake(&mut self, now: Tick, local: u32, by: Option<NodeId>) {
        let raft = &mut self.groups[local as usize].raft;
        if !raft.is_hibernating() {
            return;
        }
        raft.handle(now, Event::Wake { by, heard: &self.liveness.heard }, &mut self.ready);
        debug_assert!(!raft.is_hibernating());
        self.liveness.asleep -= 1;
        // What woke it may be refused, and nothing else be told to it: it is to beat all the same.
        self.reschedule(local);
    }
}
