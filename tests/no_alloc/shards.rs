//! Three shards in one thread over disks and wires that never fail. Counts what the shards allocate;
//! buffers of the wires and of the client are the runtime's.

use bytes::BytesMut;
use ringraft::ids::{GroupId, Incarnation, NodeId, Tick};
use ringraft::machine::events::query::Query;
use ringraft::machine::events::{EventLimits, EventStore};
use ringraft::raft;
use ringraft::shard::sessions::SessionLimits;
use ringraft::shard::snapshots::SnapshotConfig;
use ringraft::shard::{Output, Shard, ShardConfig};
use ringraft::wal::{DiskDone, DiskOp, LogIdentity, Suspect, Wal, WalConfig};
use ringraft::wire::client::{AnswerEntry, Consistency, read_query, write_query};
use ringraft::wire::frame::{Frame, FrameKind, FrameWriter};

use super::allocations;

/// Commands of a block.
pub const COMMANDS: u32 = 20;
const CLIENT: u64 = 1 << 32;

struct Node {
    shard: Shard<EventStore>,
    out: Output,
    dirty: Vec<u64>,
}

pub struct Shards {
    nodes: Vec<Node>,
    groups: u32,
    now: Tick,
    pub allocations: u64,
    /// Blocks that were committed and answered.
    pub answered: u64,
    /// Questions that were answered.
    pub read: u64,
}

impl Shards {
    /// `n` nodes with `groups` groups, elected; a client is connected to each node.
    pub fn new(n: u32, groups: u32) -> Self {
        let nodes = (1..=n).map(|id| Node::new(id, n, groups)).collect();
        let mut shards = Self { nodes, groups, now: Tick(1), allocations: 0, answered: 0, read: 0 };
        for i in 0..n {
            for other in (0..n).filter(|&other| other != i) {
                let shard = &mut shards.nodes[i as usize].shard;
                shard.peer_connected(Tick(1), NodeId(other + 1), Incarnation(1));
                shard.client_opened(CLIENT);
            }
        }
        while (0..groups).any(|g| shards.leader(g).is_none()) {
            shards.now = shards.now.plus(10_000);
            shards.settle();
        }
        shards
    }

    fn leader(&self, group: u32) -> Option<usize> {
        let leads = |node: &Node| node.shard.status().groups[group as usize].role == "leader";
        self.nodes.iter().position(leads)
    }

    /// One block for each group, all the way to its answer, and 2 ms of time for heartbeats.
    pub fn round(&mut self, seq: u64) {
        for group in 0..self.groups {
            let leader = (group % self.nodes.len() as u32) as usize;
            let mut bytes = Vec::new();
            let mut writer = FrameWriter::begin(&mut bytes);
            let block = raft::harness::sample_block(GroupId(group), COMMANDS, 64);
            let body = block.body().clone();
            writer.block(&ringraft::block::Block::from_body(
                GroupId(group),
                COMMANDS,
                u64::from(group) + 1,
                seq,
                0,
                body,
            ));
            writer.finish(FrameKind::Submit, 1, 0);
            let frame = Frame::take(&mut BytesMut::from(&bytes[..])).unwrap().expect("whole");
            let shard = &mut self.nodes[leader].shard;
            let taken = || shard.client_frame(CLIENT, frame).expect("well formed");
            self.allocations += allocations(taken);
        }
        self.now = self.now.plus(2000);
        self.settle();
    }

    /// A question of each kind to each group, all the way to its answer.
    pub fn read(&mut self) {
        for group in 0..self.groups {
            for consistency in Consistency::ALL {
                let anywhere = matches!(consistency, Consistency::Follower | Consistency::Stale);
                let node = (group + u32::from(anywhere)) as usize % self.nodes.len();
                let mut bytes = Vec::new();
                let question = Query::Digest.encode();
                write_query(&mut bytes, 1, GroupId(group), consistency, &question);
                let frame = Frame::take(&mut BytesMut::from(&bytes[..])).unwrap().expect("whole");
                let shard = &mut self.nodes[node].shard;
                let taken = || shard.client_frame(CLIENT, frame).expect("well formed");
                self.allocations += allocations(taken);
            }
        }
        self.now = self.now.plus(2000);
        self.settle();
    }

    /// Turns until nothing more is under way.
    fn settle(&mut self) {
        let mut busy = true;
        while busy {
            busy = false;
            for i in 0..self.nodes.len() {
                busy |= self.turn(i);
            }
        }
    }

    fn turn(&mut self, i: usize) -> bool {
        let now = self.now;
        let Node { shard, out, .. } = &mut self.nodes[i];
        self.allocations += allocations(|| {
            shard.turn(now, out);
            shard.apply(now);
            shard.answered(now);
        });
        assert!(out.fatal.is_none());
        out.transitions.clear();
        let wrote = self.complete_disk(i);
        let sent = (0..self.nodes.len()).fold(false, |any, to| self.send(i, to) | any);
        self.hear(i);
        wrote || sent || self.nodes[i].shard.deadline(now) <= now
    }

    fn complete_disk(&mut self, i: usize) -> bool {
        let now = self.now;
        let Node { shard, out, .. } = &mut self.nodes[i];
        let any = !out.disk.is_empty();
        for op in out.disk.drain(..) {
            let (op, done) = match op {
                DiskOp::Write { op, buffer, .. } => (op, DiskDone::Written { buffer }),
                DiskOp::Prepare { op, .. } => (op, DiskDone::Prepared),
                DiskOp::Sync { op, .. } => (op, DiskDone::Synced),
                DiskOp::Read { .. } => unreachable!("everything is in memory"),
            };
            self.allocations += allocations(|| shard.disk_done(now, op, Ok(done)));
        }
        any
    }

    fn send(&mut self, from: usize, to: usize) -> bool {
        let (now, name) = (self.now, NodeId(from as u32 + 1));
        let Some(egress) = self.nodes[from].shard.peer_egress(NodeId(to as u32 + 1)) else {
            return false;
        };
        let mut inbox = BytesMut::from(&egress[..]);
        egress.clear();
        let mut any = false;
        while let Some(frame) = Frame::take(&mut inbox).expect("whole frames") {
            let shard = &mut self.nodes[to].shard;
            let taken = || shard.peer_frame(now, name, frame).expect("well formed");
            self.allocations += allocations(taken);
            any = true;
        }
        any
    }

    fn hear(&mut self, i: usize) {
        let Node { shard, dirty, .. } = &mut self.nodes[i];
        shard.take_dirty_clients(dirty);
        for conn in dirty.drain(..) {
            let Some(egress) = shard.client_egress(conn) else { continue };
            let mut inbox = BytesMut::from(&egress[..]);
            egress.clear();
            while let Some(frame) = Frame::take(&mut inbox).expect("whole frames") {
                if frame.kind == FrameKind::QueryReply {
                    let reply = read_query(&frame).expect("well formed");
                    assert!(reply.result.is_ok(), "{reply:?}");
                    self.read += 1;
                    continue;
                }
                for entry in frame.entries::<AnswerEntry>().expect("answers") {
                    let answer = entry.decode().expect("well formed");
                    assert!(answer.result.is_ok(), "{answer:?}");
                    self.answered += 1;
                }
            }
        }
    }
}

impl Node {
    fn new(id: u32, n: u32, groups: u32) -> Self {
        let voters: Vec<_> = (1..=n).map(NodeId).collect();
        let mut raft = raft::Config::new(NodeId(id), GroupId(0), voters.clone(), Incarnation(1));
        raft.cache_bytes_max = 1 << 20;
        let config = ShardConfig {
            node: NodeId(id),
            incarnation: Incarnation(1),
            voters,
            peers: Vec::new(),
            shard: 0,
            shards: 1,
            groups,
            groups_max: groups,
            wal_sync: true,
            wal_sync_except: Vec::new(),
            suspect: Suspect::Nothing,
            sessions: SessionLimits::default(),
            snapshots: SnapshotConfig { entries: 0, ..SnapshotConfig::default() },
            raft,
            block_bytes_max: 64 << 10,
            apply_bytes_per_turn: 1 << 20,
            peer_egress_bytes_max: 1 << 20,
            client_egress_bytes_max: 1 << 20,
            client_blocks_max: 1024,
            leaders: Default::default(),
        };
        let identity = LogIdentity { cluster: 1, node: id, disk: u128::from(id) };
        let wal = Wal::create(WalConfig::default(), identity, 7);
        let limits = EventLimits { retention_bytes: 1 << 20, ..EventLimits::default() };
        let machine = move |_| EventStore::new(limits);
        let shard = Shard::new(config, wal, Default::default(), machine, Tick(0));
        Self { shard, out: Output::default(), dirty: Vec::new() }
    }
}
