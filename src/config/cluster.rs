//! What all nodes of a cluster must agree on.

use serde::Deserialize;

use super::{Checker, ConfigError};
use crate::ids::NodeId;
use crate::machine::events::EventLimits;
use crate::machine::hash::{mix, mix_bytes};
use crate::raft::config::CLOCK_DRIFT_PERCENT;
use crate::shard::LeaderConfig;
use crate::shard::sessions::{SessionLimits, WINDOW_MAX};

/// Largest number of shards: the wire and the directories name them by small numbers.
pub const SHARDS_MAX: u32 = 64;
/// Election timeouts between two looks at who leads what.
const BALANCE_EVERY: u64 = 4;
/// Largest number of groups.
pub const GROUPS_MAX: u32 = 1 << 20;

/// `[cluster]`: equal on every node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// Name of the cluster, or 32 hex digits. Nodes of different clusters refuse each other.
    pub id: String,
    /// Raft groups. A command's group is chosen by the client.
    #[serde(default = "one")]
    pub groups: u32,
    /// Reactors (threads) on each node; group g lives on shard g % shards.
    #[serde(default = "one")]
    pub shards: u32,
    /// Acknowledge only what is synced on a majority (src/docs: what an acknowledgement means).
    #[serde(default = "yes")]
    pub wal_sync: bool,
    /// Permits an even number of voters, which tolerates no more failures than one voter less.
    #[serde(default)]
    pub allow_even_voters: bool,
    /// Moves leadership by itself to the nodes that it belongs to: those of the highest priority, the
    /// groups by turns. Else only on command, and at the first start.
    #[serde(default)]
    pub balance_leaders: bool,
    #[serde(default)]
    pub timing: TimingConfig,
    #[serde(default)]
    pub reads: ReadConfig,
    #[serde(default)]
    pub store: StoreConfig,
    /// The members. All of them vote.
    pub nodes: Vec<NodeAddress>,
}

/// One member and where it listens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeAddress {
    /// From 1, unique, never given to another machine or disk.
    pub id: u32,
    /// `host:port` for the other nodes.
    pub peer: String,
    /// `host:port` for clients.
    pub client: String,
    /// Nodes with the highest one lead where they can. 0: only where nobody else can.
    #[serde(default = "one")]
    pub priority: u32,
}

/// `[cluster.reads]`: reads by a lease of the leader, without a round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadConfig {
    /// Safe only while the clocks keep the bound below: CLOCK_MONOTONIC of machines that are neither
    /// suspended nor moved.
    pub lease: bool,
    /// While the slowest of the nodes' clocks advances 100, the fastest advances at most 100 + this.
    pub clock_drift_percent_max: u32,
}

impl Default for ReadConfig {
    fn default() -> Self {
        Self { lease: false, clock_drift_percent_max: CLOCK_DRIFT_PERCENT }
    }
}

/// `[cluster.timing]`, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimingConfig {
    pub heartbeat_ms: u64,
    pub election_timeout_min_ms: u64,
    pub election_timeout_max_ms: u64,
    /// An append without an answer for this long is taken for lost.
    pub rpc_timeout_ms: u64,
    /// A group with nothing to do for this long sleeps: no heartbeats, no timers; 0 = never.
    pub hibernate_after_ms: u64,
}

impl Default for TimingConfig {
    fn default() -> Self {
        Self {
            heartbeat_ms: 50,
            election_timeout_min_ms: 150,
            election_timeout_max_ms: 300,
            rpc_timeout_ms: 100,
            hibernate_after_ms: 500,
        }
    }
}

/// `[cluster.store]`: limits of each group's event store before any `CONFIG_UPDATE`, and of its
/// table of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Events kept per queue.
    pub retention_events: u64,
    /// Encoded bytes kept per queue.
    pub retention_bytes: u64,
    /// Encoded bytes kept per group, all queues together.
    pub bytes_max: u64,
    /// Queues per group.
    pub queues_max: u64,
    /// Event ids remembered per group.
    pub dedup_ids_max: u64,
    /// Client sessions remembered per group, for exactly-once.
    pub sessions_max: u32,
    /// Answers remembered per group, over all sessions; 40 bytes each.
    pub session_answers_max: u64,
    /// A session that was not used for this long is forgotten; 0 = only to make room. May differ
    /// between nodes: the leader proposes, and what it proposes is in the log.
    pub session_idle_ms: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        let (limits, sessions) = (EventLimits::default(), SessionLimits::default());
        Self {
            retention_events: limits.retention_events,
            retention_bytes: limits.retention_bytes,
            bytes_max: limits.bytes,
            queues_max: limits.queues,
            dedup_ids_max: limits.dedup_ids,
            sessions_max: sessions.sessions_max,
            session_answers_max: sessions.answers_max,
            session_idle_ms: sessions.idle_us / 1000,
        }
    }
}

impl StoreConfig {
    /// As the event store takes them.
    pub fn limits(&self) -> EventLimits {
        EventLimits {
            retention_events: self.retention_events,
            retention_bytes: self.retention_bytes,
            queues: self.queues_max,
            dedup_ids: self.dedup_ids_max,
            bytes: self.bytes_max,
        }
    }

    /// As the table of sessions takes them.
    pub fn session_limits(&self) -> SessionLimits {
        SessionLimits {
            sessions_max: self.sessions_max,
            answers_max: self.session_answers_max,
            idle_us: self.session_idle_ms * 1000,
        }
    }
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

impl ClusterConfig {
    /// A cluster of these nodes with every default.
    pub fn new(id: &str, nodes: Vec<NodeAddress>) -> Self {
        Self {
            id: id.to_owned(),
            groups: 1,
            shards: 1,
            wal_sync: true,
            allow_even_voters: false,
            balance_leaders: false,
            reads: ReadConfig::default(),
            timing: TimingConfig::default(),
            store: StoreConfig::default(),
            nodes,
        }
    }

    /// The cluster's identity on the wire and on disk: 32 hex digits as they are, any other name by
    /// a fixed hash.
    pub fn cluster_id(&self) -> u128 {
        if self.id.len() == 32
            && let Ok(id) = u128::from_str_radix(&self.id, 16)
        {
            return id;
        }
        let half = |seed| u128::from(mix_bytes(seed, self.id.as_bytes()));
        half(1) << 64 | half(2)
    }

    /// Two nodes whose hashes differ must not talk: they would put a command into different groups,
    /// or make different states of the same log.
    ///
    /// Nodes and timing are left out on purpose. Who votes first is compared by itself, and who
    /// votes later is in the groups' logs; timing must be changeable one node at a time.
    pub fn hash(&self) -> u64 {
        let id = self.cluster_id();
        let store = &self.store;
        let numbers = [
            (id >> 64) as u64,
            id as u64,
            u64::from(self.groups),
            u64::from(self.shards),
            u64::from(self.wal_sync),
            store.retention_events,
            store.retention_bytes,
            store.bytes_max,
            store.queues_max,
            store.dedup_ids_max,
            u64::from(store.sessions_max),
            store.session_answers_max,
        ];
        let hash = numbers.into_iter().fold(0, mix);
        // A lease rests on what the others have promised for how long.
        let ReadConfig { lease, clock_drift_percent_max: drift } = self.reads;
        if lease { mix(mix(hash, self.timing.election_timeout_min_ms), drift.into()) } else { hash }
    }

    /// Who is to lead.
    pub fn leaders(&self) -> LeaderConfig {
        let differ = self.nodes.iter().filter(|node| node.priority != 1);
        let balance_us = self.timing.election_timeout_max_ms * BALANCE_EVERY * 1000;
        LeaderConfig {
            priorities: differ.map(|node| (NodeId(node.id), node.priority)).collect(),
            balance_us: if self.balance_leaders { balance_us } else { 0 },
        }
    }

    /// The member with this id.
    pub fn node(&self, id: u32) -> Option<&NodeAddress> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Checks everything that can be checked without the other nodes. `origin` names the file.
    pub fn validate(&self, origin: &str) -> Result<(), ConfigError> {
        let check = Checker { origin };
        check.ensure(
            !self.id.trim().is_empty(),
            "cluster.id",
            "\"\"",
            "the cluster has no name",
            "choose one, the same on all nodes",
        )?;
        check.within(
            "cluster.groups",
            self.groups.into(),
            1..=GROUPS_MAX.into(),
            "use 1 to 1048576",
        )?;
        check.within("cluster.shards", self.shards.into(), 1..=SHARDS_MAX.into(), "use 1 to 64")?;
        self.validate_nodes(check)?;
        check.within(
            "cluster.reads.clock_drift_percent_max",
            self.reads.clock_drift_percent_max.into(),
            0..=90,
            "use 0 to 90; 20 is far more than quartz clocks drift",
        )?;
        self.timing.validate(check)?;
        self.store.validate(check)
    }

    fn validate_nodes(&self, check: Checker<'_>) -> Result<(), ConfigError> {
        let voters = self.nodes.len();
        check.ensure(
            voters > 0,
            "cluster.nodes",
            "[]",
            "zero voters can elect no leader",
            "list 1, 3 or 5 nodes as [[cluster.nodes]]",
        )?;
        check.ensure(
            voters % 2 == 1 || self.allow_even_voters,
            "cluster.nodes",
            voters,
            "an even number of voters tolerates no more failures than one less",
            "add or remove a node, or set cluster.allow_even_voters = true",
        )?;
        for (i, node) in self.nodes.iter().enumerate() {
            let before = &self.nodes[..i];
            check.within(
                "cluster.nodes.id",
                node.id.into(),
                1..=u32::MAX.into(),
                "ids start at 1",
            )?;
            check.ensure(
                before.iter().all(|other| other.id != node.id),
                "cluster.nodes.id",
                node.id,
                "two nodes have this id",
                "give each node its own",
            )?;
            check_address(check, "cluster.nodes.peer", &node.peer)?;
            check_address(check, "cluster.nodes.client", &node.client)?;
            let taken =
                |address: &str| before.iter().any(|o| o.peer == address || o.client == address);
            check.ensure(
                node.peer != node.client && !taken(&node.peer),
                "cluster.nodes.peer",
                &node.peer,
                "this address is used twice",
                "every node needs a peer and a client address of its own",
            )?;
            check.ensure(
                !taken(&node.client),
                "cluster.nodes.client",
                &node.client,
                "this address is used twice",
                "every node needs a peer and a client address of its own",
            )?;
        }
        Ok(())
    }
}

/// `host:port` with a port of at least 1. The host is looked up when it is used, not here.
pub(super) fn check_address(
    check: Checker<'_>,
    key: &'static str,
    address: &str,
) -> Result<(), ConfigError> {
    let parts = address.rsplit_once(':');
    let good = parts.is_some_and(|(host, port)| {
        let bare = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
        !host.is_empty() && bare && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    check.ensure(good, key, address, "not an address", "write host:port, for example 10.0.0.1:7001")
}

impl TimingConfig {
    fn validate(&self, check: Checker<'_>) -> Result<(), ConfigError> {
        let Self {
            heartbeat_ms,
            election_timeout_min_ms,
            election_timeout_max_ms,
            rpc_timeout_ms,
            hibernate_after_ms,
        } = *self;
        check.within("cluster.timing.heartbeat_ms", heartbeat_ms, 1..=60_000, "use 1 to 60000")?;
        check.within(
            "cluster.timing.election_timeout_min_ms",
            election_timeout_min_ms,
            3..=600_000,
            "use 3 to 600000",
        )?;
        // Half, so that one lost heartbeat starts no election.
        check.ensure(
            heartbeat_ms * 2 < election_timeout_min_ms,
            "cluster.timing.heartbeat_ms",
            heartbeat_ms,
            "not below half of election_timeout_min_ms, so one lost heartbeat starts an election",
            "lower it or raise election_timeout_min_ms",
        )?;
        check.ensure(
            election_timeout_max_ms > election_timeout_min_ms
                && election_timeout_max_ms <= 3_600_000,
            "cluster.timing.election_timeout_max_ms",
            election_timeout_max_ms,
            "not above election_timeout_min_ms, so candidates would collide for ever",
            "use about twice the minimum",
        )?;
        check.within(
            "cluster.timing.rpc_timeout_ms",
            rpc_timeout_ms,
            1..=60_000,
            "use 1 to 60000",
        )?;
        check.within(
            "cluster.timing.hibernate_after_ms",
            hibernate_after_ms,
            0..=86_400_000,
            "use 0 (never) to 86400000",
        )
    }
}

impl StoreConfig {
    fn validate(&self, check: Checker<'_>) -> Result<(), ConfigError> {
        let mend = "use at least 1";
        for (key, value) in [
            ("cluster.store.retention_events", self.retention_events),
            ("cluster.store.retention_bytes", self.retention_bytes),
            ("cluster.store.bytes_max", self.bytes_max),
            ("cluster.store.dedup_ids_max", self.dedup_ids_max),
        ] {
            check.within(key, value, 1..=u64::MAX, mend)?;
        }
        let numbers = 1..=u64::from(u32::MAX);
        let mend = "use 1 to 4294967295";
        check.within("cluster.store.queues_max", self.queues_max, numbers.clone(), mend)?;
        check.within("cluster.store.sessions_max", self.sessions_max.into(), numbers, mend)?;
        // One session with a full window must fit.
        check.within(
            "cluster.store.session_answers_max",
            self.session_answers_max,
            WINDOW_MAX..=u64::MAX,
            "use at least 8192, the window of one session",
        )?;
        // Below, a pause of the network would end the session of a client that is well.
        let idle = self.session_idle_ms;
        check.ensure(
            idle == 0 || (60_000..=1 << 40).contains(&idle),
            "cluster.store.session_idle_ms",
            idle,
            "sessions would end while their clients still retry",
            "use 0 for never, or at least 60000",
        )
    }
}
