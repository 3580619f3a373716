//! Three whole shards of one group on quick disks, a millisecond a turn.

use bytes::BytesMut;

use ringraft::block::{BlockBuilder, Command};
use ringraft::ids::{GroupId, Incarnation, NodeId, Tick};
use ringraft::machine::StateMachine;
use ringraft::machine::register::RegisterMap;
use ringraft::raft::Config;
use ringraft::raft::ready::Role;
use ringraft::shard::sessions::SessionLimits;
use ringraft::shard::snapshots::{SnapshotConfig, SnapshotStats};
use ringraft::shard::{LeaderConfig, Output, Recovered, Shard, ShardConfig};
use ringraft::sim::disk::Disk;
use ringraft::wal::{LogIdentity, Suspect, Wal, WalConfig};
use ringraft::wire::client::{Answer, AnswerEntry};
use ringraft::wire::frame::{Frame, FrameKind, FrameWriter};

/// Bytes that may wait for a peer.
pub const LIMIT: usize = 64 << 10;
const MS: u64 = 1000;
const G: GroupId = GroupId(0);

/// See the module. The first one leads.
pub struct Trio {
    pub shards: Vec<Shard<RegisterMap>>,
    pub disks: Vec<Disk>,
    pub now: Tick,
    /// What the one sends to the other stays in its memory.
    pub cuts: Vec<(usize, usize)>,
    /// What is said arrives so many times.
    pub times: usize,
    out: Output,
}

fn start(n: u32, now: Tick, snapshots: SnapshotConfig) -> Shard<RegisterMap> {
    let voters: Vec<_> = (1..=3).map(NodeId).collect();
    let mut raft = Config::new(NodeId(n), G, voters.clone(), Incarnation(1));
    raft.uncommitted_bytes_max = 64 << 20;
    raft.inflight_bytes_max = 64 << 20;
    let config = ShardConfig {
        node: NodeId(n),
        incarnation: Incarnation(1),
        voters,
        peers: Vec::new(),
        shard: 0,
        shards: 1,
        groups: 1,
        groups_max: 16,
        wal_sync: true,
        wal_sync_except: Vec::new(),
        suspect: Suspect::Nothing,
        sessions: SessionLimits::default(),
        snapshots,
        raft,
        block_bytes_max: 64 << 10,
        apply_bytes_per_turn: 1 << 20,
        peer_egress_bytes_max: LIMIT,
        client_egress_bytes_max: 1 << 20,
        client_blocks_max: 1024,
        leaders: LeaderConfig::default(),
    };
    let identity = LogIdentity { cluster: 7, node: n, disk: u128::from(n) };
    let wal = Wal::create(wal_config(), identity, u64::from(n));
    Shard::new(config, wal, Recovered::new(), |_| RegisterMap::new(), now)
}

fn wal_config() -> WalConfig {
    WalConfig { segment_bytes: 512 << 10, block_bytes: 512, ..WalConfig::default() }
}

impl Trio {
    pub fn new(adjust: impl Fn(&mut SnapshotConfig)) -> Self {
        Self::of(|_, snapshots| adjust(snapshots))
    }

    /// The same with nodes, 1 to 3, that differ.
    pub fn of(adjust: impl Fn(u32, &mut SnapshotConfig)) -> Self {
        let now = Tick(1);
        let one = |n| {
            let mut snapshots = SnapshotConfig::default();
            adjust(n, &mut snapshots);
            start(n, now, snapshots)
        };
        let mut shards: Vec<_> = (1..=3).map(one).collect();
        for (n, shard) in (1..=3).zip(&mut shards) {
            for other in (1..=3).filter(|other| *other != n) {
                shard.peer_connected(now, NodeId(other), Incarnation(1));
            }
        }
        let disks = (0..3).map(|n| Disk::new(wal_config(), n)).collect();
        let (cuts, times, out) = (Vec::new(), 1, Output::default());
        let mut trio = Self { shards, disks, now, cuts, times, out };
        trio.run(2000);
        assert!(trio.leads(), "the preferred node has won");
        trio.shards[0].client_opened(1);
        trio
    }

    pub fn leads(&self) -> bool {
        self.shards[0].group(G).is_some_and(|view| view.raft().role() == Role::Leader)
    }

    /// Milliseconds pass.
    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now = self.now.plus(MS);
            (0..3).for_each(|i| self.turn(i));
        }
    }

    fn turn(&mut self, i: usize) {
        let (shard, disk, now) = (&mut self.shards[i], &mut self.disks[i], self.now);
        while let Some((op, done)) = disk.take_due(now) {
            shard.disk_done(now, op, done);
        }
        while let Some((op, done)) = disk.take_due_file(now) {
            shard.file_done(now, op, done);
        }
        shard.turn(now, &mut self.out);
        disk.issue(now, &mut self.out.disk);
        disk.issue_files(now, &mut self.out.files);
        self.out = Output::default();
        shard.apply(now);
        for to in (0..3).filter(|&to| to != i) {
            if !self.cuts.contains(&(i, to)) {
                self.carry(i, to);
            }
        }
    }

    fn carry(&mut self, from: usize, to: usize) {
        let egress = self.shards[from].peer_egress(NodeId(to as u32 + 1)).expect("a peer");
        let bytes = std::mem::take(egress);
        let (from, shard) = (NodeId(from as u32 + 1), &mut self.shards[to]);
        for _ in 0..self.times {
            for frame in frames(&bytes) {
                shard.peer_frame(self.now, from, frame).expect("they understand each other");
            }
        }
    }

    /// A block with a value of 8 KB for the leader, and a millisecond. The answers that came by then.
    pub fn submit(&mut self, seq: u64) -> Vec<Answer> {
        let value = vec![seq as u8; 8000];
        let mut builder = BlockBuilder::default();
        let command = Command { kind: 1, flags: 0, timestamp: 0, key: b"x", value: &value };
        builder.push(&command).expect("fits");
        let mut bytes = Vec::new();
        let mut writer = FrameWriter::begin(&mut bytes);
        writer.block(&builder.finish(G, 1, seq, 0));
        writer.finish(FrameKind::Submit, 1, 0);
        let frame = frames(&bytes).pop().expect("one frame");
        self.shards[0].client_frame(1, frame).expect("well formed");
        self.run(1);
        self.answers()
    }

    /// What the leader has told its client since.
    pub fn answers(&mut self) -> Vec<Answer> {
        let Some(egress) = self.shards[0].client_egress(1) else { return Vec::new() };
        let bytes = std::mem::take(egress);
        let of_frame = |frame: &Frame| -> Vec<Answer> {
            assert_eq!(frame.kind, FrameKind::Answers);
            let entries = frame.entries::<AnswerEntry>().expect("whole entries");
            entries.filter_map(|entry| entry.decode()).collect()
        };
        frames(&bytes).iter().flat_map(of_frame).collect()
    }

    pub fn snapshots(&self, i: usize) -> SnapshotStats {
        self.shards[i].snapshot_stats()
    }

    /// Who has applied how far, and what came of it.
    pub fn state(&self, i: usize) -> (u64, u64) {
        let view = self.shards[i].group(G).expect("it has the group");
        (view.applied().get(), view.machine().digest())
    }

    /// How long the leader's log is.
    pub fn log_entries(&self) -> u64 {
        let view = self.shards[0].group(G).expect("it has the group");
        view.raft().last_index().since(view.raft().log().start().index)
    }

    /// Bytes that wait for the third.
    pub fn waiting(&mut self) -> usize {
        self.shards[0].peer_egress(NodeId(3)).expect("a peer").len()
    }
}

fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut buffer = BytesMut::from(bytes);
    std::iter::from_fn(|| Frame::take(&mut buffer).expect("whole frames")).collect()
}
