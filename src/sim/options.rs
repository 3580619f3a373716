//! What a run is told, and what its seed makes of the rest.

use super::nemesis::{Fault, Kind, Kinds, blackouts, plan};
use super::rng::Rng;
use crate::ids::{GroupId, NodeId};
use crate::shard::LeaderConfig;
use crate::shard::snapshots::SnapshotConfig;

/// Labels of the streams of random numbers that a seed gives.
pub(super) const SHAPE: u64 = 1;
pub(super) const PLAN: u64 = 2;
pub(super) const NETWORK: u64 = 3;
pub(super) const CLIENTS: u64 = 4;
pub(super) const DISKS: u64 = 5;
pub(super) const FAULTS: u64 = 6;
pub(super) const SLEEP: u64 = 14;
pub(super) const RESTS: u64 = 20;
pub(super) const MEMBERS: u64 = 7;
pub(super) const SNAPSHOTS: u64 = 8;
pub(super) const ROSTER: u64 = 30;
pub(super) const BLACKOUTS: u64 = 31;

/// Groups that an operator makes on a shard, at most.
const NUMBERS: u32 = 6;

/// A run of the simulator. What is `None` the seed decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Voters of the first configuration, 1 to 7.
    pub nodes: Option<u32>,
    /// 1 to 4.
    pub shards: Option<u32>,
    /// 1 to 64.
    pub groups: Option<u32>,
    /// Simulated seconds of trouble before everything heals.
    pub seconds: u32,
    pub nemesis: Kinds,
    /// Faults planned at least.
    pub faults: u32,
    /// Only these faults of the plan, by number.
    pub only: Option<Vec<u32>>,
    /// The control: disks that forget what they were told to sync.
    pub lying_disks: bool,
    /// Keep the whole trace, heartbeats too.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: None,
            shards: None,
            groups: None,
            seconds: 20,
            nemesis: Kinds::all(),
            faults: 50,
            only: None,
            lying_disks: false,
            trace: false,
        }
    }
}

impl Options {
    /// The command line that runs `seed` with these options again.
    pub fn command_line(&self, seed: u64) -> String {
        let mut line = format!("ringraft sim --seed {seed} --seconds {}", self.seconds);
        for (name, value) in
            [("nodes", self.nodes), ("shards", self.shards), ("groups", self.groups)]
        {
            if let Some(value) = value {
                line += &format!(" --{name} {value}");
            }
        }
        if self.nemesis != Kinds::all() {
            line += &format!(" --nemesis {}", self.nemesis.names());
        }
        if self.faults != Self::default().faults {
            line += &format!(" --faults {}", self.faults);
        }
        if let Some(only) = &self.only {
            let numbers: Vec<_> = only.iter().map(u32::to_string).collect();
            line += &format!(
                " --only {}",
                if numbers.is_empty() { "none".into() } else { numbers.join(",") }
            );
        }
        if self.lying_disks {
            line += " --lying-disks";
        }
        line
    }
}

/// What a run is made of: the options, and the seed's choice of everything else.
#[derive(Clone, Debug)]
pub struct Shape {
    /// All nodes, spare ones too.
    pub nodes: u32,
    /// The first of them, which vote from the start.
    pub voters: u32,
    /// An operator changes the members.
    pub changes: bool,
    pub shards: u32,
    /// Of the configuration.
    pub groups: u32,
    /// Numbers end here; more than there are groups at first where an operator makes and ends some.
    pub groups_all: u32,
    /// Whether acknowledgements wait for stable storage ...
    pub wal_sync: bool,
    /// ... but not those of these groups, which do the opposite.
    pub wal_sync_except: Vec<GroupId>,
    /// A majority may lose power without having been synced: what remains must be a prefix.
    pub majority: bool,
    pub clients: u32,
    /// A client thinks for this long at most between two blocks, microseconds.
    pub think_us: u64,
    /// Blocks of one client under way in one group.
    pub window: usize,
    /// Commands in a block at most.
    pub batch: u32,
    /// One way of a frame, microseconds.
    pub net_us: (u64, u64),
    /// One operation of a disk, microseconds.
    pub disk_us: (u64, u64),
    pub wal_depth: u32,
    pub segment_bytes: u64,
    pub cache_bytes: u64,
    pub inflight: u32,
    pub apply_bytes: u64,
    /// A group with nothing to do sleeps after this long, microseconds; 0 = never.
    pub hibernate_us: u64,
    pub snapshots: SnapshotConfig,
    /// Most sessions in a group's table, and how long they may rest (microseconds, 0 = for ever).
    pub sessions_max: u32,
    pub session_idle_us: u64,
    /// Leaders may answer by a lease; clocks then keep the bound that it relies on.
    pub lease_reads: bool,
    pub leaders: LeaderConfig,
    pub plan: Vec<Fault>,
}

impl Shape {
    /// Whether acknowledgements of this group wait for stable storage.
    pub fn syncs(&self, group: GroupId) -> bool {
        self.wal_sync != self.wal_sync_except.binary_search(&group).is_ok()
    }

    /// Whether no group speaks for what a loss of power may take.
    pub fn all_sync(&self) -> bool {
        self.wal_sync && self.wal_sync_except.is_empty()
    }

    /// The same for the same seed and options, always.
    pub fn new(seed: u64, options: &Options) -> Self {
        let base = Rng::new(seed);
        let mut rng = base.fork(SHAPE);
        let nodes = [3, 3, 3, 3, 5, 5, 4, 3][rng.below(8) as usize];
        let shards = [1, 1, 1, 2, 1, 2, 3, 4][rng.below(8) as usize];
        let groups = [1, 2, 1, 3, 4, 2, 8, 1][rng.below(8) as usize].max(shards);
        let mut sleep = base.fork(SLEEP);
        let groups = if rng.chance(2) || sleep.chance(4) { 64 } else { groups };
        let net = [20, 100, 500, 2000][rng.below(4) as usize];
        let disk = [20, 100, 1000, 4000][rng.below(4) as usize];
        let nodes = options.nodes.unwrap_or(nodes);
        let shards = options.shards.unwrap_or(shards);
        let groups = options.groups.unwrap_or(groups).max(1);
        let voters = nodes;
        let mut members = base.fork(MEMBERS);
        let changes =
            options.nemesis.has(Kind::Members) && !options.lying_disks && members.chance(50);
        let mut roster = base.fork(ROSTER);
        let comes_and_goes = options.nemesis.has(Kind::Groups)
            && !options.lying_disks
            && nodes > 1
            && roster.chance(40);
        let spares = if changes { members.between(1, 2) as u32 } else { 0 };
        let nodes = voters + spares;
        let end = u64::from(options.seconds) * 1_000_000;
        let plan = plan(base.fork(PLAN), options.nemesis, nodes, options.faults, end);
        let mut rests = base.fork(RESTS);
        // The control is about what was promised to be safe.
        let mixed = rng.chance(30) && !options.lying_disks;
        let except = (0..groups).filter(|group| mixed && group % 2 == 1).map(GroupId).collect();
        let mut shape = Self {
            nodes,
            voters,
            changes,
            shards: shards.min(groups),
            groups,
            groups_all: groups + if comes_and_goes { NUMBERS * shards.min(groups) } else { 0 },
            wal_sync: rng.chance(50) || options.lying_disks,
            wal_sync_except: except,
            majority: rng.chance(10),
            clients: rng.between(2, 4) as u32,
            think_us: [100_000, 200_000, 400_000][rng.below(3) as usize],
            window: rng.between(1, 4) as usize,
            batch: [1, 1, 3, 10][rng.below(4) as usize],
            net_us: (net, net * [2, 3, 10][rng.below(3) as usize]),
            disk_us: (disk, disk * [2, 3, 10][rng.below(3) as usize]),
            wal_depth: rng.between(1, 6) as u32,
            segment_bytes: [16, 32, 64, 128][rng.below(4) as usize] << 10,
            cache_bytes: [1 << 10, 64 << 10, 16 << 20][rng.below(3) as usize],
            inflight: [2, 8, 256][rng.below(3) as usize],
            apply_bytes: [200, 4 << 10, 1 << 20][rng.below(3) as usize],
            hibernate_us: [0, 50_000, 50_000, 100_000, 200_000, 500_000][sleep.below(6) as usize],
            snapshots: snapshots(base.fork(SNAPSHOTS)),
            sessions_max: [65_536, 65_536, 65_536, 2][rests.below(4) as usize],
            session_idle_us: [0, 400_000, 1_000_000, 3_000_000][rests.below(4) as usize],
            lease_reads: rng.chance(35),
            leaders: leaders(&mut rng, nodes),
            plan,
        };
        let may_part = shape.majority && shape.changes && !shape.all_sync();
        if may_part && options.nemesis.has(Kind::Blackout) {
            let first = shape.plan.last().map_or(0, |last| last.number + 1);
            shape.plan.extend(blackouts(base.fork(BLACKOUTS), first, end));
        }
        if let Some(only) = &options.only {
            shape.plan.retain(|fault| only.contains(&fault.number));
        }
        shape
    }
}

/// Often, so that a member that was away for long needs one; or only when the log is full; or not at
/// all.
fn snapshots(mut rng: Rng) -> SnapshotConfig {
    let entries = [8, 20, 60, 200, 0][rng.below(5) as usize];
    SnapshotConfig {
        entries,
        interval_us: [0, 0, 200_000][rng.below(3) as usize],
        log_bytes_max: [48 << 10, 200 << 10, 1 << 30][rng.below(3) as usize],
        config_hash: 7,
        chunk_bytes: [64, 256, 1024, 4096][rng.below(4) as usize],
        window_bytes: [64, 2048, 16 << 10][rng.below(3) as usize],
    }
}

/// Some runs move leadership about by themselves, and some nodes want it more than others.
fn leaders(rng: &mut Rng, nodes: u32) -> LeaderConfig {
    let balance_us = [0, 0, 100_000, 1_000_000][rng.below(4) as usize];
    let differ = rng.chance(50);
    let priorities = (1..=nodes).filter(|_| differ).map(|id| (NodeId(id), rng.below(3) as u32));
    LeaderConfig { priorities: priorities.collect(), balance_us }
}
