//! The world: nodes, wires, disks and clients in one thread, from event to event.
//!
//! ```text
//!   queue ──▶ event ──▶ shard.peer_frame / client_frame / disk_done ──▶ shard.turn
//!                                                                        │
//!     ▲      disk.issue · frames into packets · answers into packets ◀───┘
//!     └──────────────────────┘                  │
//!                                    oracle: after each turn, each message, each answer
//! ```

use std::collections::BTreeSet;

use bytes::Bytes;

use super::members::Configurations;
use super::network::{Link, Wire};
use super::node::{BLOCK_MAX, Host, Node, UNCOMMITTED_MAX};
use super::options::{CLIENTS, DISKS, FAULTS, MEMBERS, NETWORK, Options, ROSTER, Shape};
use super::oracle::{Oracle, Violation};
use super::queue::{Event, Queue};
use super::rng::Rng;
use super::roster::Life;
use super::stats::Stats;
use super::subject::Subject;
use super::trace::{Trace, What};
use super::workload::Client;
use crate::ids::{GroupId, Tick};
use crate::machine::hash::mix;
use crate::raft::ready::PossibleLoss;

/// After the trouble every group must make progress within this time, microseconds (issue and
/// `durability.md`).
pub const PROGRESS_US: u64 = 10_000_000;
/// And all replicas must hold the same within this.
const CONVERGE_US: u64 = 20_000_000;
/// How often it is looked whether they do.
const LOOK_US: u64 = 20_000;
/// More events than this at one instant are a loop that never sleeps.
const EVENTS_AT_ONCE_MAX: u32 = 100_000;

/// Bytes under way.
#[derive(Debug)]
pub(super) enum Packet {
    Peer {
        link: u32,
        life: u32,
        piece: bool,
        bytes: Bytes,
    },
    /// A frame of an earlier time.
    Old {
        link: u32,
        bytes: Bytes,
    },
    ToNode {
        client: u32,
        host: u32,
        life: u32,
        bytes: Bytes,
    },
    ToClient {
        client: u32,
        host: u32,
        life: u32,
        bytes: Bytes,
    },
}

/// See the module.
pub struct World<S: Subject> {
    pub seed: u64,
    pub options: Options,
    pub shape: Shape,
    pub(super) subject: S,
    pub(super) now: u64,
    pub(super) queue: Queue,
    pub(super) nodes: Vec<Node>,
    /// By node, then by shard.
    pub(super) hosts: Vec<Host<S::Machine>>,
    /// By sender, then by receiver.
    pub(super) wires: Vec<Wire>,
    /// By host that dials, then by node at the other end.
    pub(super) links: Vec<Link>,
    packets: Vec<Option<Packet>>,
    free_packets: Vec<u32>,
    pub(super) clients: Vec<Client>,
    pub(super) oracle: Oracle,
    pub(super) trace: Trace,
    pub stats: Stats,
    /// Of everything that happened, in order.
    pub(super) hash: u64,
    pub(super) violation: Option<Violation>,
    pub(super) net_rng: Rng,
    pub(super) client_rng: Rng,
    pub(super) node_rng: Rng,
    pub(super) fault_rng: Rng,
    pub(super) members_rng: Rng,
    pub(super) roster_rng: Rng,
    /// By group: what the operator knows of it.
    pub(super) lives: Vec<Life>,
    /// By group: who decided and decides.
    pub(super) configurations: Vec<Configurations>,
    /// When the trouble ended; `None` while it lasts.
    pub(super) healed_at: Option<u64>,
    /// By group: when a leader last showed that committed entries are lost.
    pub(super) lost_at: Vec<u64>,
    /// Losses that were told of in this turn.
    pub(super) losses: Vec<PossibleLoss>,
    /// By group: a block asked for after the trouble was acknowledged.
    pub(super) progressed: Vec<bool>,
    /// The same for a linearizable read.
    pub(super) read_since: Vec<bool>,
    /// Flapping wires that are cut now, by the number of their fault.
    pub(super) flapping: BTreeSet<u32>,
    /// By fault of the plan: it was tried, and nobody would have felt it.
    pub(super) waiting: Vec<bool>,
    over: bool,
}

impl<S: Subject> World<S> {
    /// A world whose nodes are about to start for the first time.
    pub fn new(seed: u64, options: Options, subject: S) -> Self {
        let shape = Shape::new(seed, &options);
        let base = Rng::new(seed);
        let (n, shards) = (shape.nodes as usize, shape.shards as usize);
        let disks = base.fork(DISKS);
        let mut world = Self {
            seed,
            subject,
            now: 0,
            queue: Queue::default(),
            nodes: (0..n).map(|i| Node::new(i, &disks)).collect(),
            hosts: (0..n * shards).map(|h| Host::new(h, &shape, &options, &disks)).collect(),
            wires: vec![Wire::default(); n * n],
            links: (0..n * shards * n).map(|_| Link::default()).collect(),
            packets: Vec::new(),
            free_packets: Vec::new(),
            clients: (0..shape.clients).map(|id| Client::new(id, &shape)).collect(),
            oracle: Oracle::new(
                shape.nodes,
                shape.groups_all,
                UNCOMMITTED_MAX + u64::from(BLOCK_MAX),
            ),
            trace: Trace::new(options.trace),
            stats: Stats::default(),
            hash: seed,
            violation: None,
            net_rng: base.fork(NETWORK),
            client_rng: base.fork(CLIENTS),
            node_rng: base.fork(DISKS + 100),
            fault_rng: base.fork(FAULTS),
            members_rng: base.fork(MEMBERS + 1),
            roster_rng: base.fork(ROSTER + 1),
            lives: (0..shape.groups_all)
                .map(|group| Life::new(shape.nodes, group < shape.groups))
                .collect(),
            configurations: (0..shape.groups_all)
                .map(|group| {
                    Configurations::new(if group < shape.groups { shape.voters } else { 0 })
                })
                .collect(),
            healed_at: None,
            lost_at: vec![0; shape.groups_all as usize],
            losses: Vec::new(),
            progressed: vec![false; shape.groups_all as usize],
            read_since: vec![false; shape.groups_all as usize],
            flapping: BTreeSet::new(),
            waiting: vec![false; shape.plan.len()],
            over: false,
            shape,
            options,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for node in 0..self.nodes.len() {
            let at = self.node_rng.below(50_000);
            self.queue.push(at, Event::Start(node as u32, 0));
        }
        for client in 0..self.clients.len() {
            self.queue.push(200_000 + client as u64 * 1000, Event::Client(client as u32));
        }
        for (i, fault) in self.shape.plan.iter().enumerate() {
            self.queue.push(fault.at, Event::Begin(i as u32));
        }
        self.begin_members();
        self.begin_roster();
        let end = u64::from(self.options.seconds) * 1_000_000;
        self.queue.push(end, Event::Heal);
    }

    /// Runs to the end: trouble, healing, the last checks. The first broken rule ends it.
    pub fn run(&mut self) -> Result<(), Violation> {
        let mut at_once = 0;
        while !self.over && self.violation.is_none() {
            let (at, event) = self.queue.pop().expect("something is always to come");
            at_once = if at > self.now { 0 } else { at_once + 1 };
            assert!(at_once < EVENTS_AT_ONCE_MAX, "events follow each other without a pause");
            self.now = at;
            self.stats.events += 1;
            self.happen(event);
        }
        self.stats.simulated_us = self.now;
        self.stats.elections = self.oracle.elections;
        self.stats.returned = self.oracle.returned;
        match self.violation.clone() {
            Some(violation) => Err(violation),
            None => Ok(()),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Host(host) => {
                let host = host as usize;
                if self.hosts[host].wake_at == self.now {
                    self.hosts[host].wake_at = u64::MAX;
                    self.wake(host);
                }
            }
            Event::Packet(at) => self.on_packet(at),
            Event::Dial(link, life) => self.on_dial(link as usize, life),
            Event::Shake(link, life) => self.on_shake(link as usize, life),
            Event::Lost(link, life) => self.on_lost(link as usize, life),
            Event::Client(client) => self.on_client(client as usize),
            Event::Begin(fault) => self.on_fault(fault as usize),
            Event::Again(fault) => self.on_fault_again(fault as usize),
            Event::End(fault) => self.on_fault_end(fault as usize),
            Event::Start(node, attempt) => self.on_start(node as usize, attempt),
            Event::Started(node, attempt) => self.on_started(node as usize, attempt),
            Event::Recorded(node, attempt) => self.on_recorded(node as usize, attempt),
            Event::Change => self.on_change(),
            Event::Wish => self.on_wish(),
            Event::Heal => self.on_heal(),
            Event::Look => self.on_look(),
        }
    }

    /// Lets a packet arrive at `at`.
    pub(super) fn post(&mut self, at: u64, packet: Packet) {
        let slot = match self.free_packets.pop() {
            Some(slot) => slot,
            None => {
                self.packets.push(None);
                self.packets.len() as u32 - 1
            }
        };
        self.packets[slot as usize] = Some(packet);
        self.queue.push(at, Event::Packet(slot));
    }

    fn on_packet(&mut self, slot: u32) {
        let packet = self.packets[slot as usize].take().expect("posted once, arrives once");
        self.free_packets.push(slot);
        self.hash = mix(self.hash, self.now << 8 | 1);
        self.deliver(packet);
    }

    pub(super) fn deliver(&mut self, packet: Packet) {
        let to = match packet {
            Packet::Peer { link, .. } | Packet::Old { link, .. } => {
                link as usize % self.nodes.len()
            }
            Packet::ToNode { host, .. } => self.node_of(host as usize),
            Packet::ToClient { client, host, life, bytes } => {
                return self.on_answers(client as usize, host as usize, life, bytes);
            }
        };
        if self.nodes[to].paused {
            return self.nodes[to].backlog.push(packet);
        }
        match packet {
            Packet::Peer { link, life, piece, bytes } => {
                self.on_peer(link as usize, life, piece, bytes);
            }
            Packet::Old { link, bytes } => self.on_old(link as usize, bytes),
            Packet::ToNode { client, host, life, bytes } => {
                self.on_request(client as usize, host as usize, life, bytes);
            }
            Packet::ToClient { .. } => {}
        }
    }

    pub(super) fn node_of(&self, host: usize) -> usize {
        host / self.shape.shards as usize
    }

    pub(super) fn hosts_of(&self, node: usize) -> std::ops::Range<usize> {
        let shards = self.shape.shards as usize;
        node * shards..(node + 1) * shards
    }

    /// A node's own time.
    pub(super) fn local(&self, node: usize) -> Tick {
        self.nodes[node].clock.local(self.now)
    }
}

/// The end.
impl<S: Subject> World<S> {
    /// All trouble ends: what is cut is whole again, who is down starts, disks are well.
    fn on_heal(&mut self) {
        self.healed_at = Some(self.now);
        self.trace.note(self.now, What::World { note: "---- all trouble ends ----" });
        self.wires.iter_mut().for_each(|wire| *wire = Wire::default());
        for node in 0..self.nodes.len() {
            if self.is_superfluous(node) {
                self.note_node(node, "is switched off for good in incarnation", 0);
                self.switch_off(node);
            } else {
                self.heal_node(node);
            }
        }
        self.queue.push(self.now + LOOK_US, Event::Look);
    }

    fn on_look(&mut self) {
        let since = self.now - self.healed_at.expect("only after the trouble");
        if self.options.lying_disks && since > PROGRESS_US / 2 {
            self.look_for_losses();
        }
        let stuck = (0..self.lives.len()).find(|&group| {
            self.lives[group].lives() && !(self.progressed[group] && self.read_since[group])
        });
        if let Some(group) = stuck {
            if since > PROGRESS_US {
                let stuck = if self.progressed[group] {
                    "answered no read"
                } else {
                    "acknowledged nothing"
                };
                let what = format!("g{group} {stuck}: {}", self.describe(group));
                self.fail("every group makes progress within 10 s after the trouble", what);
                self.over = true;
            }
        } else if self.is_settled() {
            return self.finish();
        } else if since > CONVERGE_US {
            let groups: Vec<_> = (0..self.lives.len())
                .filter(|&group| !self.has_converged(group))
                .map(|group| format!("g{group}: {}", self.describe(group)))
                .collect();
            let open: usize = self.clients.iter().map(Client::open).sum();
            let what = format!("{open} blocks open; {}", groups.join("; "));
            self.fail("every block is answered and replicas converge after the trouble", what);
            self.over = true;
        }
        self.queue.push(self.now + LOOK_US, Event::Look);
    }

    fn is_settled(&self) -> bool {
        self.clients.iter().all(|client| client.open() == 0)
            && (0..self.lives.len()).all(|group| self.has_converged(group))
    }

    /// All members have applied all that is committed, but for those with other commits behind a loss.
    fn has_converged(&self, group: usize) -> bool {
        let last = self.oracle.commit(GroupId(group as u32));
        if !self.lives[group].lives() {
            return self.has_settled(group);
        }
        (0..self.nodes.len())
            .filter(|&node| self.takes_part(node, group) && !self.has_not_heard(node, group))
            .all(|node| {
                let view = self.view(node, group);
                view.is_some_and(|v| v.applied().0 == last || self.oracle.strays(v.raft()))
            })
    }

    /// Where everybody stands in a group.
    fn describe(&self, group: usize) -> String {
        let node = |node: usize| match self.view(node, group) {
            None => format!("n{} down", node + 1),
            Some(view) => {
                let raft = view.raft();
                format!(
                    "n{} {:?}{} t{} last i{} commit i{} applied i{}",
                    node + 1,
                    raft.role(),
                    if raft.is_recovering() { " RECOVERING" } else { "" },
                    raft.term(),
                    raft.last_index(),
                    raft.commit(),
                    view.applied()
                )
            }
        };
        (0..self.nodes.len()).map(node).collect::<Vec<_>>().join(", ")
    }

    fn finish(&mut self) {
        self.over = true;
        for host in 0..self.hosts.len() {
            self.count_snapshots(host);
            if let Some(shard) = &self.hosts[host].shard {
                shard.check_invariants();
            }
        }
        self.check_ledgers();
        let oracle = &self.oracle;
        if let Err(what) = self.subject.finish(&|group| oracle.has_lost(group)) {
            self.fail("what clients saw is linearizable", what);
        }
    }

    /// The control: something acknowledged that no node has any more.
    fn look_for_losses(&mut self) {
        for group in 0..self.lives.len() {
            let views: Vec<_> = (0..self.nodes.len()).filter_map(|n| self.view(n, group)).collect();
            let gone = self.clients.iter().find_map(|client| {
                client.acknowledged_where(group, |id, seq| {
                    views.iter().all(|view| !view.machine().ledger.has(id, seq))
                })
            });
            if let Some((client, seq)) = gone.filter(|_| views.len() == self.nodes.len()) {
                let what = format!("no node has #{seq} of c{client} in g{group}");
                return self.fail("what is acknowledged stays", what);
            }
        }
    }

    /// What was acknowledged is there, on every node.
    fn check_ledgers(&mut self) {
        for node in 0..self.nodes.len() {
            for group in 0..self.lives.len() {
                if !self.takes_part(node, group) || !self.lives[group].lives() {
                    continue;
                }
                let Some(view) = self.view(node, group) else { continue };
                if self.oracle.has_lost(GroupId(group as u32)) {
                    continue;
                }
                let ledger = &view.machine().ledger;
                let lost = self.clients.iter().find_map(|client| {
                    client.acknowledged_where(group, |id, seq| !ledger.has(id, seq))
                });
                if let Some((client, seq)) = lost {
                    let what = format!("n{} g{group} lacks #{seq} of c{client}", node + 1);
                    return self.fail("what is acknowledged stays", what);
                }
            }
        }
    }

    /// A shard's own assertion has failed: the panic's text.
    pub(super) fn panicked(&self, text: &str) -> Violation {
        Violation { rule: "no assertion fails", what: text.into(), at: self.now }
    }

    /// The last `count` things that happened, a line each.
    pub fn trace(&self, count: usize) -> String {
        self.trace.last(count)
    }

    /// Two runs of one seed give the same.
    pub fn hash(&self) -> u64 {
        mix(self.hash, self.stats.events)
    }
}
