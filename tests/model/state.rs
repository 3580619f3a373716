//! The whole model in one moment, and what may happen next.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ringraft::ids::NodeId;
use ringraft::membership::Step;
use ringraft::raft::progress::State as Sending;
use ringraft::raft::{Body, Event, Progress, Role};

use super::node::{Envelope, FAR, NODES, NOW, Node, OVERDUE, Output, nodes_of, proposal};
use super::truth::Truth;
use super::world::{Disks, World};

/// What has happened so often that it is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Spent {
    pub campaigns: u8,
    /// Nodes that have campaigned: the first so many, see `campaigns`.
    pub candidates: u8,
    pub proposals: u8,
    pub changes: u8,
    pub beats: u8,
    pub step_downs: u8,
    pub repeats: u8,
    pub crashes: u8,
    pub power_losses: u8,
    pub reads: u8,
    pub compactions: u8,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct State {
    pub nodes: [Arc<Node>; NODES],
    /// Messages under way, by fingerprint; equal ones are one.
    pub net: Vec<Arc<Envelope>>,
    pub truth: Arc<Truth>,
    pub spent: Spent,
    /// An assertion of the core, or of the disk, that failed on the way here.
    pub broken: Option<Arc<str>>,
}

thread_local! {
    static STEPPING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a step of the model, where a panic is a verdict.
pub fn is_stepping() -> bool {
    STEPPING.get()
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nodes.iter().for_each(|node| state.write_u64(node.print));
        self.net.iter().for_each(|envelope| state.write_u64(envelope.print));
        self.truth.hash(state);
        (self.spent, self.broken.is_some()).hash(state);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let prints = |s: &Self| s.nodes.each_ref().map(|node| node.print);
        prints(self) == prints(other)
            && self.net == other.net
            && self.truth == other.truth
            && self.spent == other.spent
            && self.broken == other.broken
    }
}

/// One thing that happens. `node` and `peer` count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The election timeout. `ask`: whose pre-vote is asked and heard at once (bit per node); 0 = the
    /// requests go over the network like all others.
    Campaign { node: usize, ask: u8 },
    /// The leader's heartbeats are due, and its appends overdue.
    Beat { node: usize },
    /// The leader has not heard of a quorum (check-quorum).
    StepDown { node: usize },
    /// A client's block.
    Propose { node: usize },
    /// The message at this place arrives; `again`: and a copy of it stays under way.
    Deliver { at: usize, again: bool },
    /// An operator's change to these voters (bit per node).
    Change { node: usize, to: u8 },
    /// The oldest write that is not done is done (and synced, where its rule wants that).
    Write { node: usize },
    /// What is written becomes durable.
    Sync { node: usize },
    /// A connection to a restarted peer stands, and the handshake named its incarnation.
    Connect { node: usize, peer: usize },
    /// The process ends and starts again. The last `lost` writes, none of them done, are gone.
    Crash { node: usize, lost: usize },
    /// A client's question; a follower asks its leader.
    Read { node: usize },
    /// All that is committed becomes a snapshot, and the log begins behind it.
    Compact { node: usize },
    /// The snapshot that has come is installed.
    Install { node: usize },
    /// The machine loses power and starts again. The last `lost` writes, none of them synced, are gone.
    PowerLoss { node: usize, lost: usize },
}

impl State {
    pub fn new(world: &World) -> Self {
        let mut nodes: Vec<_> = (1..=NODES as u32)
            .map(|id| Node::new(NodeId(id), world.sync, nodes_of(world.voters)))
            .collect();
        let mut out = Output::default();
        for at in 0..NODES {
            for peer in (0..NODES).filter(|peer| *peer != at) {
                connect(&mut nodes, at, peer, &mut out);
            }
            nodes[at].seal();
        }
        assert!(out.sent.is_empty());
        let nodes: Vec<_> = nodes.into_iter().map(Arc::new).collect();
        let state = Self {
            nodes: nodes.try_into().expect("as many as there are"),
            net: Vec::new(),
            truth: Arc::default(),
            spent: Spent::default(),
            broken: None,
        };
        if world.led { state.led(world) } else { state }
    }

    /// n1 campaigns, and every message arrives.
    fn led(mut self, world: &World) -> Self {
        assert!(self.act(world, Action::Campaign { node: 0, ask: 0b110 }));
        while !self.net.is_empty() {
            // One that changes nothing is gone, too.
            self.act(world, Action::Deliver { at: 0, again: false });
        }
        assert!(self.nodes.iter().all(|node| node.log.len() == 1));
        assert_eq!(self.nodes[0].raft.role(), Role::Leader);
        self.spent = Spent { candidates: 1, ..Spent::default() };
        self
    }

    /// Everything that may happen next within the bounds of the world.
    pub fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if self.broken.is_some() {
            return;
        }
        for node in 0..NODES {
            self.node_actions(world, node, actions);
        }
        for at in 0..self.net.len() {
            actions.push(Action::Deliver { at, again: false });
            if self.spent.repeats < world.repeats {
                actions.push(Action::Deliver { at, again: true });
            }
        }
    }

    fn node_actions(&self, world: &World, node: usize, actions: &mut Vec<Action>) {
        let it = &self.nodes[node];
        let leads = it.raft.role() == Role::Leader;
        if it.has_unwritten() {
            actions.push(Action::Write { node });
        }
        if it.has_received() {
            actions.push(Action::Install { node });
        }
        if self.spent.compactions < world.compactions && it.may_compact() {
            actions.push(Action::Compact { node });
        }
        if self.spent.reads < world.reads && it.raft.leader().is_some() {
            actions.push(Action::Read { node });
        }
        if it.has_unsynced() && world.disks == Disks::Free {
            actions.push(Action::Sync { node });
        }
        if leads {
            self.leader_actions(world, node, actions);
        } else {
            self.campaigns(world, node, actions);
        }
        if self.spent.crashes < world.crashes {
            actions.extend((0..=it.losable(false)).map(|lost| Action::Crash { node, lost }));
        }
        if self.spent.power_losses < world.power_losses {
            actions.extend((0..=it.losable(true)).map(|lost| Action::PowerLoss { node, lost }));
        }
    }

    fn leader_actions(&self, world: &World, node: usize, actions: &mut Vec<Action>) {
        let raft = &self.nodes[node].raft;
        if self.spent.proposals < world.proposals {
            actions.push(Action::Propose { node });
        }
        if self.spent.changes < world.changes {
            actions.extend(world.targets.iter().map(|&to| Action::Change { node, to }));
        }
        if self.spent.beats < world.beats {
            actions.push(Action::Beat { node });
        }
        if self.spent.step_downs < world.step_downs {
            actions.push(Action::StepDown { node });
        }
        for peer in (0..NODES).filter(|peer| *peer != node) {
            if raft.known_incarnation(id(peer)) < self.nodes[peer].incarnation() {
                actions.push(Action::Connect { node, peer });
            }
        }
    }

    fn campaigns(&self, world: &World, node: usize, actions: &mut Vec<Action>) {
        let spent = self.spent.campaigns;
        let term = self.nodes[node].raft.term().get();
        if spent >= world.campaigns || term >= world.terms {
            return;
        }
        // The nodes are alike: whoever campaigns first is called n1, who joins it n2.
        if world.changes == 0 && node > self.spent.candidates.into() {
            return;
        }
        if world.candidates.get(usize::from(spent)).is_some_and(|next| *next != node) {
            return;
        }
        if world.pre_votes {
            return actions.push(Action::Campaign { node, ask: 0 });
        }
        let others = 0b111 & !(1 << node);
        let asks = (1..=others).filter(|ask| ask & !others == 0);
        actions.extend(asks.map(|ask| Action::Campaign { node, ask }));
    }

    /// What comes of an action; `None` if nothing.
    pub fn after(&self, world: &World, action: Action) -> Option<Self> {
        let mut next = self.clone();
        STEPPING.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| next.act(world, action)));
        STEPPING.set(false);
        match outcome {
            Ok(true) => Some(next),
            Ok(false) => None,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                let broken = Some(text.unwrap_or("a panic without words").into());
                Some(Self { broken, ..self.clone() })
            }
        }
    }

    /// False when nothing has changed.
    fn act(&mut self, world: &World, action: Action) -> bool {
        let mut out = Output::default();
        let spent = &mut self.spent;
        let at = match action {
            Action::Campaign { node, ask } => {
                spent.campaigns += 1;
                spent.candidates = spent.candidates.max(node as u8 + 1);
                if !self.campaign(node, ask, &mut out) {
                    return false;
                }
                node
            }
            Action::Beat { node } => {
                spent.beats += 1;
                self.node(node).handle(OVERDUE, Event::Timeout, &mut out);
                node
            }
            Action::StepDown { node } => {
                spent.step_downs += 1;
                self.node(node).handle(FAR, Event::Timeout, &mut out);
                node
            }
            Action::Propose { node } => {
                spent.proposals += 1;
                let mut blocks = vec![proposal(spent.proposals)];
                self.node(node).handle(NOW, Event::Propose { blocks: &mut blocks }, &mut out);
                node
            }
            Action::Change { node, to } => {
                spent.changes += 1;
                if !self.change(node, to, &mut out) {
                    return false;
                }
                node
            }
            Action::Deliver { at, again } => {
                spent.repeats += u8::from(again);
                let envelope = if again { Arc::clone(&self.net[at]) } else { self.net.remove(at) };
                if !self.deliver(&envelope, &mut out) {
                    return false;
                }
                index(envelope.to)
            }
            Action::Read { node } => {
                spent.reads += 1;
                let number = spent.reads.into();
                Arc::make_mut(&mut self.truth).asked(node, number);
                self.node(node).handle(NOW, Event::ReadIndex { number }, &mut out);
                node
            }
            Action::Compact { node } => {
                spent.compactions += 1;
                self.node(node).compact(&mut out);
                node
            }
            Action::Install { node } => {
                self.node(node).install(&mut out);
                node
            }
            Action::Write { node } => {
                self.node(node).complete_write(&mut out);
                node
            }
            Action::Sync { node } => {
                self.node(node).sync_written();
                node
            }
            Action::Connect { node, peer } => {
                let (peer, incarnation) = (id(peer), self.nodes[peer].incarnation());
                self.node(node).handle(NOW, Event::PeerConnected { peer, incarnation }, &mut out);
                node
            }
            Action::Crash { node, lost } => {
                spent.crashes += 1;
                Arc::make_mut(&mut self.truth).forget_reads(node);
                self.nodes[node] = Arc::new(self.nodes[node].restart(lost, false));
                node
            }
            Action::PowerLoss { node, lost } => {
                spent.power_losses += 1;
                Arc::make_mut(&mut self.truth).forget_reads(node);
                self.nodes[node] = Arc::new(self.nodes[node].restart(lost, true));
                node
            }
        };
        self.settle(world, at, out);
        true
    }

    fn node(&mut self, at: usize) -> &mut Node {
        Arc::make_mut(&mut self.nodes[at])
    }

    /// False when the leader refuses.
    fn change(&mut self, node: usize, to: u8, out: &mut Output) -> bool {
        let membership = self.nodes[node].raft.membership();
        let target = nodes_of(to);
        let joins = target.iter().filter(|id| !membership.is_member(**id));
        let joins = joins
            .flat_map(|&node| [Step::Add { node, votes: false, address: None }, Step::Seat(node)]);
        let leaves = membership.voters.iter().filter(|id| !target.contains(id));
        let steps: Vec<_> = joins.chain(leaves.map(|&node| Step::Remove(node))).collect();
        let mut answer = None;
        let change = Event::ProposeMembership { steps: &steps, force: true, answer: &mut answer };
        self.node(node).handle(NOW, change, out);
        matches!(answer, Some(Ok(_)))
    }

    /// The election timeout with a whole pre-vote in one step. False when it does not lead to a
    /// candidate nor to a higher term.
    fn campaign(&mut self, node: usize, ask: u8, out: &mut Output) -> bool {
        let before = self.nodes[node].raft.term();
        self.node(node).handle(NOW, Event::Timeout, out);
        if ask == 0 {
            return true;
        }
        let is_pre =
            |e: &Arc<Envelope>| matches!(e.message.body, Body::VoteRequest { pre: true, .. });
        let (requests, rest) = std::mem::take(&mut out.sent).into_iter().partition(is_pre);
        out.sent = rest;
        let requests: Vec<Arc<Envelope>> = requests;
        for request in requests.iter().filter(|e| ask & 1 << index(e.to) != 0) {
            let mut answers = Output::default();
            self.node(index(request.to)).receive(FAR, request, &mut answers);
            self.node(index(request.to)).seal();
            for answer in answers.sent {
                self.node(node).receive(NOW, &answer, out);
            }
        }
        let raft = &self.nodes[node].raft;
        raft.role() != Role::PreCandidate || raft.term() > before
    }

    /// False when the message changes nothing and is not answered: that is as if it never arrived.
    fn deliver(&mut self, envelope: &Envelope, out: &mut Output) -> bool {
        let to = index(envelope.to);
        let before = self.nodes[to].print;
        // No leader is thought alive, so that votes are never refused for its sake.
        let is_request = matches!(envelope.message.body, Body::VoteRequest { .. });
        let now = if is_request { FAR } else { NOW };
        self.node(to).receive(now, envelope, out);
        self.node(to).seal();
        self.nodes[to].print != before || !out.sent.is_empty()
    }

    /// After a step of the node `at`: its messages are under way, the truth is brought up to date.
    fn settle(&mut self, world: &World, at: usize, mut out: Output) {
        while world.disks != Disks::Free && self.nodes[at].has_unwritten() {
            self.node(at).complete_write(&mut out);
        }
        if world.disks == Disks::Synced && self.nodes[at].has_unsynced() {
            self.node(at).sync_written();
        }
        self.node(at).seal();
        let truth = Arc::make_mut(&mut self.truth);
        truth.update(&self.nodes, at, &out);
        for envelope in out.sent {
            if let Err(place) = self.net.binary_search_by_key(&envelope.print, |e| e.print) {
                self.net.insert(place, envelope);
            }
        }
        if !world.dead_letters {
            let (nodes, reads) = (&self.nodes, world.reads > 0);
            self.net.retain(|envelope| !is_dead_letter(nodes, envelope, reads));
        }
        // A full network loses something; which, does not matter to what may follow without it.
        self.net.truncate(world.messages);
    }
}

/// Messages that are taken for lost: they come from a term that is over at the receiver for good, or
/// tell it nothing that could make it do anything unsafe.
fn is_dead_letter(nodes: &[Arc<Node>; NODES], envelope: &Envelope, reads: bool) -> bool {
    let to = &nodes[index(envelope.to)];
    let message = &envelope.message;
    if let Body::VoteReply { pre: true, .. } = message.body {
        return to.raft.role() != Role::PreCandidate;
    }
    if message.term < to.durable.hard_state.term {
        return true;
    }
    if message.term > to.raft.term() {
        return false;
    }
    let knows = to.raft.known_incarnation(envelope.from) >= message.incarnation;
    match message.body {
        Body::VoteReply { pre: false, granted, .. } => {
            !granted || to.raft.role() != Role::Candidate
        }
        // With reads it may confirm a round.
        Body::HeartbeatReply { .. } => knows && !reads,
        Body::AppendReply { matched } => {
            let is_old = |progress: &Progress| {
                progress.matched() >= matched && progress.state() == Sending::Replicate
            };
            let mut peers = to.raft.progress();
            knows && peers.any(|(peer, progress)| peer == envelope.from && is_old(progress))
        }
        _ => false,
    }
}

fn connect(nodes: &mut [Node], at: usize, peer: usize, out: &mut Output) {
    let incarnation = nodes[peer].incarnation();
    nodes[at].handle(NOW, Event::PeerConnected { peer: id(peer), incarnation }, out);
}

pub fn id(at: usize) -> NodeId {
    NodeId(at as u32 + 1)
}

pub fn index(id: NodeId) -> usize {
    id.0 as usize - 1
}
