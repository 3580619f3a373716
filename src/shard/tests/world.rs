//! Nodes, wires, disks and clients in one thread. Time moves from event to event; what is random
//! comes from one seed, so that a seed replays to the bit.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

pub use super::bytes::{block, block_of, frames, submit_frame};
use super::files::Files;
use super::machine::Ledger;
use crate::block::Block;
use crate::ids::{GroupId, Incarnation, NodeId, Tick};
use crate::machine::StateMachine;
use crate::raft;
use crate::raft::ready::{PossibleLoss, Role, Transition};
use crate::shard::sessions::SessionLimits;
use crate::shard::snapshots::SnapshotConfig;
use crate::shard::{Output, Shard, ShardConfig};
use crate::wal::tests::disk::{Disk, Image, Rng};
use crate::wal::{DiskErrorKind, DiskOp, OpId, Suspect, WalConfig, WalError};
use crate::wire::client::{Answer, AnswerEntry, read_query, read_status_reply};
use crate::wire::frame::{Frame, FrameError, FrameKind};

pub const MS: u64 = 1000;
/// More turns than this without the clock moving are a loop that never sleeps.
const TURNS_AT_ONCE_MAX: u32 = 20_000;

/// What a cluster is made of. Change it before [`Cluster::start`].
pub struct Setup {
    pub nodes: u32,
    pub shard: ShardConfig,
    pub wal: WalConfig,
    /// A frame is under way for this long at least, and at most twice as long.
    pub net_us: u64,
    /// The same of an operation of the disk.
    pub disk_us: u64,
    pub seed: u64,
}

impl Setup {
    /// Three quick nodes with `groups` groups and small segments.
    pub fn new(groups: u32) -> Self {
        let voters: Vec<_> = (1..=3).map(NodeId).collect();
        let raft = raft::Config::new(NodeId(1), GroupId(0), voters.clone(), Incarnation(1));
        let shard = ShardConfig {
            node: NodeId(1),
            incarnation: Incarnation(1),
            voters,
            peers: Vec::new(),
            shard: 0,
            shards: 1,
            groups,
            groups_max: 64,
            wal_sync: true,
            wal_sync_except: Vec::new(),
            suspect: Suspect::Nothing,
            sessions: SessionLimits::default(),
            snapshots: SnapshotConfig::default(),
            raft,
            block_bytes_max: 64 << 10,
            apply_bytes_per_turn: 1 << 20,
            peer_egress_bytes_max: 1 << 20,
            client_egress_bytes_max: 1 << 20,
            client_blocks_max: 1024,
            leaders: Default::default(),
        };
        let wal = WalConfig {
            segment_bytes: 512 << 10,
            block_bytes: 512,
            flush_bytes_max: 128 << 10,
            ..WalConfig::default()
        };
        Self { nodes: 3, shard, wal, net_us: 100, disk_us: 100, seed: 1 }
    }

    pub fn start(self) -> Cluster<Ledger> {
        self.start_with(|_| Ledger::default())
    }

    pub fn start_with<M: StateMachine + 'static>(
        mut self,
        machine: fn(GroupId) -> M,
    ) -> Cluster<M> {
        self.shard.voters = (1..=self.nodes).map(NodeId).collect();
        let count = self.nodes as usize;
        let nodes = (0..count).map(|_| Node::new(self.wal)).collect();
        let wires = (0..count).map(|_| (0..count).map(|_| Wire::default()).collect()).collect();
        let rng = Rng::new(self.seed);
        let mut cluster = Cluster {
            setup: self,
            machine,
            nodes,
            wires,
            clients: Vec::new(),
            now: Tick(1),
            rng,
            traffic: Traffic::default(),
        };
        (0..count).for_each(|i| cluster.boot(i));
        cluster
    }
}

/// What went over the wires.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub frames: u64,
    pub messages: u64,
    pub bytes: u64,
    /// Most frames that one turn gave to one peer.
    pub frames_a_turn_max: u64,
}

/// From one node to another; each direction has its own, as in the runtime.
#[derive(Default)]
struct Wire {
    up: bool,
    /// Not to be connected until it is healed.
    cut: bool,
    /// The socket takes nothing for now.
    stuck: bool,
    queue: VecDeque<(Tick, Frame)>,
}

pub struct Node<M> {
    /// `None` while the process is down.
    pub shard: Option<Shard<M>>,
    pub incarnation: u32,
    /// The boot record's word (durability.md R3).
    pub recovering: Suspect,
    /// Bytes that were durable were damaged on purpose.
    pub(super) rotten: bool,
    pub disk: Disk,
    pub files: Files,
    /// When each operation under way completes.
    due: BTreeMap<OpId, Tick>,
    /// Nothing completes but what the story completes by hand.
    pub disk_held: bool,
    /// Preparing a segment fails for want of space.
    pub disk_full: bool,
    pub transitions: Vec<Transition>,
    pub losses: Vec<PossibleLoss>,
    pub fatal: Option<WalError>,
    pub turns: u64,
    /// Messages that it gave to the wires.
    pub sent: u64,
    pub(super) out: Output,
    pub woken: bool,
}

impl<M> Node<M> {
    fn new(wal: WalConfig) -> Self {
        Self {
            shard: None,
            incarnation: 0,
            recovering: Suspect::Nothing,
            rotten: false,
            disk: Disk::new(wal),
            files: Files::default(),
            due: BTreeMap::new(),
            disk_held: false,
            disk_full: false,
            transitions: Vec::new(),
            losses: Vec::new(),
            fatal: None,
            turns: 0,
            sent: 0,
            out: Output::default(),
            woken: false,
        }
    }
}

/// A client's connection to one node.
pub struct Client {
    pub node: usize,
    conn: u64,
    /// False once either side has closed it.
    pub open: bool,
    /// Leaves its answers unread.
    pub deaf: bool,
    pub answers: Vec<Answer>,
    pub replies: Vec<crate::wire::client::Query>,
    pub statuses: Vec<Bytes>,
}

pub struct Cluster<M> {
    pub setup: Setup,
    pub(super) machine: fn(GroupId) -> M,
    pub nodes: Vec<Node<M>>,
    wires: Vec<Vec<Wire>>,
    pub clients: Vec<Client>,
    pub now: Tick,
    pub rng: Rng,
    pub traffic: Traffic,
}

/// Starting, ending and connecting nodes.
impl<M: StateMachine + 'static> Cluster<M> {
    pub(super) fn id(i: usize) -> NodeId {
        NodeId(i as u32 + 1)
    }

    pub fn is_up(&self, i: usize) -> bool {
        self.nodes[i].shard.is_some()
    }

    /// kill -9: what was written stays, what was under way is lost with the process.
    pub fn kill(&mut self, i: usize) {
        self.down(i);
        self.nodes[i].disk.kill();
    }

    /// Power fails: of what was not yet safe each sector survives by chance.
    pub fn cut_power(&mut self, i: usize) {
        let percent = [0, 50, 100][self.rng.below(3) as usize];
        self.cut_power_keeping(i, percent);
    }

    /// Power fails, and so many percent of the sectors at risk survive.
    pub fn cut_power_keeping(&mut self, i: usize, percent: u64) {
        let (node, rng) = (&mut self.nodes[i], &mut self.rng);
        let image: Image = node.disk.image(|_, _| rng.chance(percent));
        node.disk = Disk::from_image(self.setup.wal, image);
        node.recovering = node.recovering.max(Suspect::Unsynced);
        self.down(i);
    }

    /// A bit turns round in the middle of what a node that is down has logged.
    pub fn rot(&mut self, i: usize) {
        assert!(!self.is_up(i));
        let node = &mut self.nodes[i];
        node.rotten = true;
        let mut image = node.disk.after_kill();
        let file = image.0.values_mut().next().expect("a log has a segment");
        let used = file.iter().rposition(|byte| *byte != 0).expect("it is not empty");
        let at = (used / 2..).find(|&at| file[at] != 0).expect("up to its end");
        file[at] ^= 8;
        node.disk = Disk::from_image(self.setup.wal, image);
    }

    fn down(&mut self, i: usize) {
        assert!(self.is_up(i));
        self.nodes[i].shard = None;
        self.nodes[i].due.clear();
        for client in self.clients.iter_mut().filter(|client| client.node == i) {
            client.open = false;
        }
        for other in 0..self.nodes.len() {
            self.disconnect(i, other);
            self.disconnect(other, i);
        }
    }

    pub(super) fn connect_all(&mut self) {
        for from in 0..self.nodes.len() {
            for to in (0..self.nodes.len()).filter(|&to| to != from) {
                self.connect(from, to);
            }
        }
    }

    fn connect(&mut self, from: usize, to: usize) {
        let there = self.is_up(to);
        let wire = &mut self.wires[from][to];
        if wire.up || wire.cut || !there {
            return;
        }
        let incarnation = Incarnation(self.nodes[to].incarnation);
        let Some(shard) = self.nodes[from].shard.as_mut() else { return };
        wire.up = true;
        shard.peer_connected(self.now, Self::id(to), incarnation);
        self.nodes[from].woken = true;
    }

    fn disconnect(&mut self, from: usize, to: usize) {
        let wire = &mut self.wires[from][to];
        wire.queue.clear();
        wire.stuck = false;
        if !std::mem::take(&mut wire.up) {
            return;
        }
        if let Some(shard) = self.nodes[from].shard.as_mut() {
            shard.peer_disconnected(self.now, Self::id(to));
            self.nodes[from].woken = true;
        }
    }

    /// Resets the connections between two nodes and lets none come up.
    pub fn cut(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            self.wires[from][to].cut = true;
            self.disconnect(from, to);
        }
    }

    /// Cuts a node off from all others.
    pub fn isolate(&mut self, i: usize) {
        (0..self.nodes.len()).filter(|&other| other != i).for_each(|other| self.cut(i, other));
    }

    /// The socket from `from` to `to` takes no more bytes, or does again.
    pub fn stick(&mut self, from: usize, to: usize, stuck: bool) {
        self.wires[from][to].stuck = stuck;
        self.nodes[from].woken = true;
    }

    /// All wires work again, all disks are well.
    pub fn heal(&mut self) {
        for wire in self.wires.iter_mut().flatten() {
            (wire.cut, wire.stuck) = (false, false);
        }
        for node in &mut self.nodes {
            (node.disk_held, node.disk_full, node.woken) = (false, false, true);
        }
        self.connect_all();
        self.schedule_disks();
    }
}

/// Time.
impl<M: StateMachine + 'static> Cluster<M> {
    /// Lets `us` microseconds pass.
    pub fn run(&mut self, us: u64) {
        self.run_to(self.now.plus(us));
    }

    fn run_to(&mut self, until: Tick) {
        let mut here = 0;
        while let Some(at) = self.next_event(until) {
            here = if at > self.now { 0 } else { here + 1 };
            assert!(here < TURNS_AT_ONCE_MAX, "turns follow each other without a pause");
            self.now = self.now.max(at);
            (0..self.nodes.len()).for_each(|i| self.wake(i));
        }
        self.now = until;
    }

    /// Runs until `done`, at most `us` microseconds.
    pub fn run_until(&mut self, what: &str, us: u64, mut done: impl FnMut(&mut Self) -> bool) {
        let until = self.now.plus(us);
        while !done(self) {
            assert!(self.now < until, "within {us} us: {what}");
            let next = self.next_event(until).unwrap_or(until);
            self.run_to(next.max(self.now.next()));
        }
    }

    /// When something happens next, if that is not after `until`.
    fn next_event(&self, until: Tick) -> Option<Tick> {
        let wires = self.wires.iter().flatten().filter_map(|w| w.queue.front().map(|f| f.0));
        let nodes = self.nodes.iter().map(|node| self.node_event(node));
        wires.chain(nodes).min().filter(|&at| at <= until)
    }

    fn node_event(&self, node: &Node<M>) -> Tick {
        let Some(shard) = node.shard.as_ref().filter(|_| node.fatal.is_none()) else {
            return Tick(u64::MAX);
        };
        let disk = node.due.values().min().copied().unwrap_or(Tick(u64::MAX));
        if node.woken { self.now } else { shard.deadline(self.now).min(disk) }
    }

    /// Hands a node what is due and lets it take its turn.
    fn wake(&mut self, i: usize) {
        let mut due = std::mem::take(&mut self.nodes[i].woken);
        due |= self.deliver(i);
        due |= self.complete_due(i);
        let node = &mut self.nodes[i];
        let Some(shard) = node.shard.as_mut().filter(|_| node.fatal.is_none()) else { return };
        let done = node.files.take_done().into_iter();
        done.for_each(|(op, done)| shard.file_done(self.now, op, Ok(done)));
        if due || shard.deadline(self.now) <= self.now {
            self.turn(i);
        }
    }

    /// One turn, as the runtime takes it.
    pub fn turn(&mut self, i: usize) {
        let now = self.now;
        let node = &mut self.nodes[i];
        let Some(shard) = node.shard.as_mut() else { return };
        node.turns += 1;
        shard.turn(now, &mut node.out);
        if let Some(error) = node.out.fatal.take() {
            assert!(node.out.disk.is_empty(), "nothing is written after the first error");
            node.fatal = Some(error);
        }
        if shard.recovering() == 0 {
            node.recovering = Suspect::Nothing;
        }
        node.transitions.append(&mut node.out.transitions);
        node.losses.append(&mut node.out.losses);
        node.disk.issue(&mut node.out.disk);
        node.woken |= node.files.carry_out(&mut node.out.files);
        self.schedule_disk(i);
        self.send_to_peers(i);
        let shard = self.nodes[i].shard.as_mut().expect("up");
        shard.apply(now);
        shard.answered(now);
        self.send_to_clients(i);
    }

    fn deliver(&mut self, to: usize) -> bool {
        let mut any = false;
        for from in 0..self.nodes.len() {
            while let Some(&(at, _)) = self.wires[from][to].queue.front()
                && at <= self.now
            {
                let (_, frame) = self.wires[from][to].queue.pop_front().expect("looked at");
                any = true;
                let shard = self.nodes[to].shard.as_mut().expect("wires end at living nodes");
                let taken = shard.peer_frame(self.now, Self::id(from), frame);
                assert_eq!(taken, Ok(()), "peers understand each other");
            }
        }
        any
    }

    fn send_to_peers(&mut self, from: usize) {
        for to in (0..self.nodes.len()).filter(|&to| to != from) {
            let wire = &self.wires[from][to];
            if !wire.up || wire.stuck {
                continue;
            }
            let shard = self.nodes[from].shard.as_mut().expect("up");
            let bytes = std::mem::take(shard.peer_egress(Self::id(to)).expect("a peer"));
            let sent = frames(&bytes);
            self.traffic.bytes += bytes.len() as u64;
            self.traffic.frames += sent.len() as u64;
            self.traffic.frames_a_turn_max = self.traffic.frames_a_turn_max.max(sent.len() as u64);
            for frame in sent {
                self.traffic.messages += u64::from(frame.count);
                self.nodes[from].sent += u64::from(frame.count);
                let delay = self.setup.net_us + self.rng.below(self.setup.net_us + 1);
                let wire = &mut self.wires[from][to];
                let before = wire.queue.back().map_or(Tick::ZERO, |f| f.0);
                wire.queue.push_back((self.now.plus(delay).max(before), frame));
            }
        }
    }
}

/// Disks.
impl<M: StateMachine + 'static> Cluster<M> {
    fn schedule_disk(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        if node.disk_held {
            return;
        }
        for op in &node.disk.ops {
            let delay = self.setup.disk_us + self.rng.below(self.setup.disk_us + 1);
            node.due.entry(op.id()).or_insert(self.now.plus(delay));
        }
    }

    fn schedule_disks(&mut self) {
        (0..self.nodes.len()).for_each(|i| self.schedule_disk(i));
    }

    /// Nothing that the disk was asked for completes any more.
    pub fn hold_disk(&mut self, i: usize) {
        self.nodes[i].disk_held = true;
        self.nodes[i].due.clear();
    }

    pub fn release_disk(&mut self, i: usize) {
        self.nodes[i].disk_held = false;
        self.schedule_disk(i);
    }

    fn complete_due(&mut self, i: usize) -> bool {
        let mut any = false;
        loop {
            let node = &mut self.nodes[i];
            let due = node.due.iter().find(|&(_, &at)| at <= self.now).map(|(&op, _)| op);
            let Some(op) = due else { return any };
            node.due.remove(&op);
            let at = node.disk.ops.iter().position(|o| o.id() == op).expect("under way");
            let full = node.disk_full && matches!(node.disk.ops[at], DiskOp::Prepare { .. });
            if full {
                self.fail_op(i, at, DiskErrorKind::NoSpace);
            } else {
                let (op, done) = self.nodes[i].disk.complete(at);
                self.nodes[i].shard.as_mut().expect("up").disk_done(self.now, op, Ok(done));
            }
            any = true;
        }
    }

    /// Fails the `at`-th operation that the disk has under way.
    pub fn fail_op(&mut self, i: usize, at: usize, kind: DiskErrorKind) {
        let node = &mut self.nodes[i];
        let (op, error) = node.disk.fail(at, kind);
        node.due.remove(&op);
        node.woken = true;
        node.shard.as_mut().expect("up").disk_done(self.now, op, Err(error));
    }

    /// Position of an operation under way.
    pub fn find_op(&self, i: usize, wanted: fn(&DiskOp) -> bool) -> Option<usize> {
        self.nodes[i].disk.ops.iter().position(wanted)
    }
}

/// Clients.
impl<M: StateMachine + 'static> Cluster<M> {
    /// Connects a client to a node; its position in `clients`.
    pub fn client(&mut self, node: usize) -> usize {
        let slot = self.clients.len();
        let conn = 1 << 32 | slot as u64;
        let (open, deaf) = (true, false);
        let (answers, replies, statuses) = (Vec::new(), Vec::new(), Vec::new());
        self.clients.push(Client { node, conn, open, deaf, answers, replies, statuses });
        self.nodes[node].shard.as_mut().expect("up").client_opened(conn);
        slot
    }

    /// The client hangs up.
    pub fn hang_up(&mut self, client: usize) {
        let Client { node, conn, ref mut open, .. } = self.clients[client];
        *open = false;
        self.nodes[node].shard.as_mut().expect("up").client_closed(conn);
    }

    /// Gives a frame to the node that the client is connected to.
    pub fn give(&mut self, client: usize, frame: Frame) -> Result<(), FrameError> {
        let Client { node, conn, open, .. } = self.clients[client];
        assert!(open, "the client is connected");
        self.nodes[node].woken = true;
        self.nodes[node].shard.as_mut().expect("up").client_frame(conn, frame)
    }

    pub fn submit(&mut self, client: usize, blocks: &[Block]) {
        assert_eq!(self.give(client, submit_frame(blocks)), Ok(()));
    }

    fn send_to_clients(&mut self, node: usize) {
        let shard = self.nodes[node].shard.as_mut().expect("up");
        let mut dirty = Vec::new();
        shard.take_dirty_clients(&mut dirty);
        for conn in dirty {
            let client = &mut self.clients[conn as u32 as usize];
            let Some(egress) = shard.client_egress(conn) else { continue };
            if !client.deaf {
                let bytes = std::mem::take(egress);
                frames(&bytes).iter().for_each(|frame| client.hear(frame));
            }
        }
    }

    /// Takes the answers heard so far.
    pub fn answers(&mut self, client: usize) -> Vec<Answer> {
        std::mem::take(&mut self.clients[client].answers)
    }

    /// Waits for the answer to the only block that is under way.
    pub fn answer(&mut self, client: usize) -> Answer {
        self.run_until("an answer", 5000 * MS, |c| !c.clients[client].answers.is_empty());
        let answers = self.answers(client);
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers[0]
    }
}

impl Client {
    fn hear(&mut self, frame: &Frame) {
        match frame.kind {
            FrameKind::Answers => {
                let entries = frame.entries::<AnswerEntry>().expect("well formed");
                self.answers.extend(entries.map(|e| e.decode().expect("well formed")));
            }
            FrameKind::QueryReply | FrameKind::AdminReply => {
                self.replies.push(read_query(frame).expect("well formed"))
            }
            FrameKind::StatusReply => self.statuses.push(read_status_reply(frame)),
            other => panic!("a client is not sent {other:?}"),
        }
    }
}

/// Looking.
impl<M: StateMachine + 'static> Cluster<M> {
    pub fn shard(&self, i: usize) -> &Shard<M> {
        self.nodes[i].shard.as_ref().expect("up")
    }

    pub fn raft(&self, i: usize, group: u32) -> &raft::Raft {
        &self.shard(i).groups[group as usize].raft
    }

    pub fn machine(&self, i: usize, group: u32) -> &M {
        &self.shard(i).groups[group as usize].machine
    }

    pub fn applied(&self, i: usize, group: u32) -> u64 {
        self.shard(i).groups[group as usize].applied.0
    }

    /// The node that leads the group in the highest term.
    pub fn leader(&self, group: u32) -> Option<usize> {
        let up = (0..self.nodes.len()).filter(|&i| self.is_up(i) && self.nodes[i].fatal.is_none());
        let leads = up.filter(|&i| self.raft(i, group).role() == Role::Leader);
        leads.max_by_key(|&i| self.raft(i, group).term())
    }

    /// Waits until every group has a leader that has committed in its term.
    pub fn elect(&mut self) {
        let groups = self.setup.shard.groups;
        self.run_until("leaders", 5000 * MS, |c| {
            (0..groups).all(|g| {
                c.leader(g).is_some_and(|i| {
                    let raft = c.raft(i, g);
                    raft.log().term_at(raft.commit()) == Some(raft.term())
                })
            })
        });
    }

    /// Waits until all living nodes have applied the same of every group, and compares what they
    /// hold.
    pub fn converge(&mut self) {
        self.run_until("replicas converge", 20_000 * MS, |c| {
            let up: Vec<_> = (0..c.nodes.len()).filter(|&i| c.is_up(i)).collect();
            (0..c.setup.shard.groups).all(|g| {
                let Some(leader) = c.leader(g) else { return false };
                let last = c.raft(leader, g).last_index().0;
                up.iter().all(|&i| c.applied(i, g) == last)
            })
        });
        let mut seen: Option<Vec<String>> = None;
        for i in (0..self.nodes.len()).filter(|&i| self.is_up(i)) {
            let status = self.shard(i).status();
            let digests: Vec<String> = status.groups.into_iter().map(|g| g.digest).collect();
            assert_eq!(seen.get_or_insert(digests.clone()), &digests, "equal logs, equal digests");
            self.shard(i).check_invariants();
        }
    }
}
