//! What one node needs to run: `node.toml`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::cluster::check_address;
use super::{Checker, ClusterConfig, ConfigError, NodeAddress};
use crate::shard::snapshots;

const EXAMPLE: &str = "tuning/node.toml";

/// One node's configuration. Every key has a default except identity, directory and members.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Which of `cluster.nodes` this is.
    pub id: u32,
    /// This node is to be taken into groups that run (`ringraft member add`), and waits for that.
    /// Only its first start asks.
    #[serde(default)]
    pub join: bool,
    /// Where the log and the identity live. Made on the first start; its parent must exist.
    pub data_dir: PathBuf,
    pub cluster: ClusterConfig,
    #[serde(default)]
    pub limits: LimitsConfig,
    #[serde(default)]
    pub wal: WalConfig,
    #[serde(default)]
    pub snapshot: SnapshotConfig,
    #[serde(default)]
    pub runtime: RuntimeConfig,
    #[serde(default)]
    pub fault: FaultConfig,
    #[serde(default)]
    pub log: LogConfig,
    /// Where operators reach this node by HTTP, `host:port`; absent = nowhere.
    #[serde(default)]
    pub admin: Option<String>,
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// Where it was read from, for errors.
    #[serde(skip)]
    pub origin: String,
}

/// `[limits]`: flow control is by bytes at each hop; over a limit the answer is `Busy`, at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Proposed and not committed, per group.
    pub uncommitted_mib: u32,
    /// Client connections per node.
    pub client_connections: u32,
    /// Append messages under way to one follower of one group.
    pub inflight_appends: u32,
    /// Their bytes.
    pub inflight_mib: u32,
    /// The log's tail in memory, per group.
    pub cache_mib: u32,
    /// The same over all groups of a shard.
    pub cache_shard_mib: u32,
    /// Waiting for the write-ahead log, per shard.
    pub staged_mib: u32,
    /// Groups of the cluster at a time, those of `cluster.groups` included; more are not made.
    pub groups: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            uncommitted_mib: 32,
            client_connections: 4096,
            inflight_appends: 256,
            inflight_mib: 16,
            cache_mib: 32,
            cache_shard_mib: 256,
            staged_mib: 64,
            groups: 16_384,
        }
    }
}

/// `[wal]`: one log a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WalConfig {
    /// Flushes in flight at once.
    pub depth: u32,
    /// Flushes are padded to this; at least the disk's logical block.
    pub block_bytes: u32,
    /// Waits this long for more before a flush. I/O in flight already gathers batches.
    pub linger_us: u64,
    /// `wal_sync = false`: what is acknowledged is at most this old and this much before it is synced.
    pub sync_lag_ms: u64,
    pub sync_lag_bytes: u64,
    /// Size of a segment.
    pub segment_mib: u32,
    /// Written segments kept ready, so that zeroing never waits on the commit path.
    pub spare_segments: u32,
    /// The log of one shard stops here with a clear error.
    pub log_max_gib: u32,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            depth: 6,
            block_bytes: 4096,
            linger_us: 0,
            sync_lag_ms: 100,
            sync_lag_bytes: 1 << 20,
            segment_mib: 64,
            spare_segments: 2,
            log_max_gib: 64,
        }
    }
}

impl WalConfig {
    /// Most segments of one shard's log.
    pub fn segments_max(&self) -> u32 {
        (u64::from(self.log_max_gib) * 1024 / u64::from(self.segment_mib)) as u32
    }

    /// Bytes of a segment.
    pub fn segment_bytes(&self) -> u64 {
        u64::from(self.segment_mib) << 20
    }
}

/// `[snapshot]`: when a group's state is written out, so that its log can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnapshotConfig {
    /// A group is snapshotted after so many entries, if these take more room than its last snapshot;
    /// 0 = never by entries.
    pub entries: u64,
    /// And at most so often.
    pub interval_s: u32,
    /// A shard's log above this makes the groups that hold its oldest entries give them up; at most
    /// half of `wal.log_max_gib`.
    pub log_mib: u32,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self { entries: 10_000, interval_s: 5, log_mib: 1024 }
    }
}

impl SnapshotConfig {
    /// As the shards are told.
    pub fn config(&self, wal: &WalConfig, config_hash: u64) -> snapshots::SnapshotConfig {
        let half = u64::from(wal.segments_max()) * wal.segment_bytes() / 2;
        snapshots::SnapshotConfig {
            entries: self.entries,
            interval_us: u64::from(self.interval_s) * 1_000_000,
            log_bytes_max: (u64::from(self.log_mib) << 20).min(half),
            config_hash,
            ..snapshots::SnapshotConfig::default()
        }
    }

    fn validate(&self, check: Checker<'_>) -> Result<(), ConfigError> {
        let mend = "use 0 (never) or 100 to 100000000; 1000 to 50000 are sensible";
        let entries = self.entries;
        let fits = entries == 0 || (100..=100_000_000).contains(&entries);
        check.ensure(fits, "snapshot.entries", entries, "out of range", mend)?;
        check.within(
            "snapshot.interval_s",
            self.interval_s.into(),
            0..=86_400,
            "use 0 to 86400",
        )?;
        check.within("snapshot.log_mib", self.log_mib.into(), 64..=1 << 20, "use 64 to 1048576")
    }
}

/// `[runtime]`: threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Binds shard s to the s-th core.
    pub pin_cores: bool,
    /// Looks for work this long before it sleeps.
    pub spin_us: u64,
}

/// `[fault]`: for drills only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultConfig {
    /// The n-th flush of shard 0 fails with an I/O error; 0 = never.
    pub wal_write_error_at: u64,
}

/// `[log]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    pub level: LogLevel,
    pub format: LogFormat,
}

/// `[metrics]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Series for each group beside the sums: five times as many as there are groups.
    pub per_group: bool,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// As a filter directive.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// For people or for machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl NodeConfig {
    /// A node with every default.
    pub fn new(id: u32, data_dir: impl Into<PathBuf>, cluster: ClusterConfig) -> Self {
        Self {
            id,
            join: false,
            data_dir: data_dir.into(),
            cluster,
            limits: LimitsConfig::default(),
            wal: WalConfig::default(),
            snapshot: SnapshotConfig::default(),
            runtime: RuntimeConfig::default(),
            fault: FaultConfig::default(),
            log: LogConfig::default(),
            admin: None,
            metrics: MetricsConfig::default(),
            origin: "node".to_owned(),
        }
    }

    /// Reads, parses and validates a file. Writes nothing.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config = Self::parse(&super::read(path)?, &path.display().to_string())?;
        config.validate()?;
        Ok(config)
    }

    /// Parses without validating; `origin` names the text in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let config: Self = super::parse(text, origin, EXAMPLE)?;
        Ok(Self { origin: origin.to_owned(), ..config })
    }

    /// This node's entry in the cluster.
    ///
    /// # Panics
    /// When the configuration was not validated.
    pub fn address(&self) -> &NodeAddress {
        self.cluster.node(self.id).expect("validate() found this node in cluster.nodes")
    }

    /// Checks everything that can be checked without opening a socket or writing a file.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = Checker { origin: &self.origin };
        self.validate_cluster(check)?;
        check.ensure(
            self.cluster.node(self.id).is_some(),
            "id",
            self.id,
            "no node of cluster.nodes has this id",
            "set id to that of this machine's entry, or add one",
        )?;
        self.limits.validate(check)?;
        self.wal.validate(check)?;
        self.snapshot.validate(check)?;
        check.within("runtime.spin_us", self.runtime.spin_us, 0..=10_000, "use 0 to 10000")?;
        self.validate_admin(check)?;
        self.validate_directory()
    }

    /// A node that joins lists itself beside the others: no voter yet, and no list of voters.
    fn validate_cluster(&self, check: Checker<'_>) -> Result<(), ConfigError> {
        if !self.join {
            return self.cluster.validate(&self.origin);
        }
        check.ensure(
            self.cluster.nodes.iter().any(|node| node.id != self.id),
            "join",
            true,
            "cluster.nodes names no other node",
            "list the nodes that run, and this one",
        )?;
        ClusterConfig { allow_even_voters: true, ..self.cluster.clone() }.validate(&self.origin)
    }

    fn validate_admin(&self, check: Checker<'_>) -> Result<(), ConfigError> {
        let Some(admin) = &self.admin else { return Ok(()) };
        check_address(check, "admin", admin)?;
        let mut others = self.cluster.nodes.iter().flat_map(|node| [&node.peer, &node.client]);
        check.ensure(
            !others.any(|other| other == admin),
            "admin",
            admin,
            "this address is used for peers or clients",
            "give the admin port one of its own",
        )
    }

    fn validate_directory(&self) -> Result<(), ConfigError> {
        let path = &self.data_dir;
        if path.is_dir() {
            return Ok(());
        }
        let check = Checker { origin: &self.origin };
        check.ensure(
            !path.exists() && !path.as_os_str().is_empty(),
            "data_dir",
            path.display(),
            "not a directory",
            "name a directory; the last part of its path is made on the first start",
        )?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if parent.is_dir() {
            return Ok(());
        }
        let (origin, path, parent) = (self.origin.clone(), path.clone(), parent.to_owned());
        Err(ConfigError::MissingDirectory { origin, path, parent })
    }
}

impl LimitsConfig {
    fn validate(&self, check: Checker<'_>) -> Result<(), ConfigError> {
        let (some, mend) = (1..=65_536, "use 1 to 65536");
        for (key, value) in [
            ("limits.client_connections", self.client_connections),
            ("limits.inflight_appends", self.inflight_appends),
            ("limits.groups", self.groups),
        ] {
            check.within(key, value.into(), some.clone(), mend)?;
        }
        // Two of the largest blocks, or a group could stand still.
        for (key, value) in [
            ("limits.uncommitted_mib", self.uncommitted_mib),
            ("limits.inflight_mib", self.inflight_mib),
            ("limits.cache_mib", self.cache_mib),
            ("limits.cache_shard_mib", self.cache_shard_mib),
            ("limits.staged_mib", self.staged_mib),
        ] {
            check.within(key, value.into(), 2..=65_536, "use 2 to 65536")?;
        }
        check.ensure(
            self.cache_mib <= self.cache_shard_mib,
            "limits.cache_mib",
            self.cache_mib,
            "more than limits.cache_shard_mib",
            "lower it or raise the shard's limit",
        )
    }
}

impl WalConfig {
    fn validate(&self, check: Checker<'_>) -> Result<(), ConfigError> {
        check.within(
            "wal.depth",
            self.depth.into(),
            1..=64,
            "use 1 to 64; 4 to 8 is where disks saturate",
        )?;
        check.ensure(
            self.block_bytes.is_power_of_two() && (512..=65_536).contains(&self.block_bytes),
            "wal.block_bytes",
            self.block_bytes,
            "not a power of two between 512 and 65536",
            "use 4096 unless the disk asks for more",
        )?;
        // Above the largest flush: a block of the largest size, padded, with its headers.
        check.within(
            "wal.segment_mib",
            self.segment_mib.into(),
            4..=4096,
            "use 4 to 4096, usually 64",
        )?;
        check.within("wal.spare_segments", self.spare_segments.into(), 1..=64, "use 1 to 64")?;
        check.within("wal.log_max_gib", self.log_max_gib.into(), 1..=65_536, "use 1 to 65536")?;
        check.ensure(
            self.segments_max() > self.spare_segments + 1,
            "wal.log_max_gib",
            self.log_max_gib,
            "the spare segments alone would fill the log",
            "raise it, or lower wal.segment_mib or wal.spare_segments",
        )?;
        check.within(
            "wal.linger_us",
            self.linger_us,
            0..=100_000,
            "use 0 to 100000; 0 is best on most disks",
        )?;
        check.within("wal.sync_lag_ms", self.sync_lag_ms, 1..=60_000, "use 1 to 60000")?;
        check.within("wal.sync_lag_bytes", self.sync_lag_bytes, 1..=1 << 40, "use 1 to 2^40")
    }
}
