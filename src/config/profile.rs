//! One benchmark run: how the log is written and how the load is made.

use std::path::Path;

use serde::Deserialize;

use super::{Checker, ConfigError};
use crate::block::{BLOCK_BYTES_MAX, BLOCK_COUNT_MAX, COMMAND_HEADER_BYTES, HEADER_BYTES};
use crate::shard::sessions::WINDOW_MAX;

/// Names of the profiles that are compiled in.
pub const BUILTIN_PROFILES: [&str; 4] = ["financial", "iot", "logging", "durable-logging"];

const EXAMPLE: &str = "tuning/financial.toml";
/// Room for a topic in the estimate whether a batch fits a block.
const TOPIC_BYTES: u64 = 64;

/// A load profile. `name`, `wal_sync` and `batch_size` must be given; the rest has defaults.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    pub name: String,
    /// Acknowledge only what is synced on a majority.
    pub wal_sync: bool,
    /// Commands per block, as the client gathers them.
    pub batch_size: u32,
    /// The log waits this long for more before a flush.
    #[serde(default)]
    pub linger_us: u64,
    /// Blocks without an answer, over all connections.
    #[serde(default = "default_in_flight")]
    pub in_flight: u32,
    /// Connections that share them.
    #[serde(default = "default_connections")]
    pub connections: u32,
    /// Bytes of an event.
    #[serde(default = "default_value_bytes")]
    pub value_bytes: u32,
    /// Raft groups that take part.
    #[serde(default = "one")]
    pub groups: u32,
    /// Nodes of the embedded cluster.
    #[serde(default = "three")]
    pub nodes: u32,
    /// Reactors per node.
    #[serde(default = "one")]
    pub shards: u32,
    /// Flushes of a shard's log in flight at once.
    #[serde(default = "default_wal_depth")]
    pub wal_depth: u32,
    /// `wal_sync = false`: what is acknowledged is at most this old and this much before it is synced.
    #[serde(default = "default_sync_lag_ms")]
    pub sync_lag_ms: u64,
    #[serde(default = "default_sync_lag_bytes")]
    pub sync_lag_bytes: u64,
    /// Log space of each shard that is written before the run begins. A log that recycles its
    /// segments has it; a growing one zeroes each segment first, at the price of half the disk.
    #[serde(default = "default_prepared_mib")]
    pub prepared_mib: u32,
    /// Leaders may answer reads by a lease.
    #[serde(default)]
    pub lease_reads: bool,
    /// Encoded bytes of events kept, over all groups.
    #[serde(default = "default_retention_bytes")]
    pub retention_bytes: u64,
}

fn one() -> u32 {
    1
}

fn three() -> u32 {
    3
}

fn default_in_flight() -> u32 {
    64
}

fn default_connections() -> u32 {
    1
}

fn default_value_bytes() -> u32 {
    128
}

fn default_wal_depth() -> u32 {
    6
}

fn default_sync_lag_ms() -> u64 {
    100
}

fn default_sync_lag_bytes() -> u64 {
    1 << 20
}

fn default_prepared_mib() -> u32 {
    256
}

fn default_retention_bytes() -> u64 {
    16 << 20
}

impl Profile {
    /// The text of a profile that is compiled in, with its comments.
    pub fn builtin_text(name: &str) -> Option<&'static str> {
        Some(match name {
            "financial" => include_str!("../../tuning/financial.toml"),
            "iot" => include_str!("../../tuning/iot.toml"),
            "logging" => include_str!("../../tuning/logging.toml"),
            "durable-logging" => include_str!("../../tuning/durable-logging.toml"),
            _ => return None,
        })
    }

    /// One of [`BUILTIN_PROFILES`].
    pub fn builtin(name: &str) -> Result<Self, ConfigError> {
        let text = Self::builtin_text(name);
        let text = text.ok_or_else(|| ConfigError::UnknownProfile(name.to_owned()))?;
        Self::parse(text, &format!("tuning/{name}.toml (built in)"))
    }

    /// Reads, parses and validates a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&super::read(path)?, &path.display().to_string())
    }

    /// A built-in name, or the path of a file: what `--profile` takes.
    pub fn named_or_file(name: &str) -> Result<Self, ConfigError> {
        if Self::builtin_text(name).is_some() {
            return Self::builtin(name);
        }
        if name.ends_with(".toml") || name.contains('/') {
            return Self::load(Path::new(name));
        }
        Err(ConfigError::UnknownProfile(name.to_owned()))
    }

    /// Parses and validates; `origin` names the text in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let profile: Self = super::parse(text, origin, EXAMPLE)?;
        profile.validate(origin)?;
        Ok(profile)
    }

    /// Checks ranges, also after the command line has changed something.
    pub fn validate(&self, origin: &str) -> Result<(), ConfigError> {
        let check = Checker { origin };
        check.ensure(
            !self.name.is_empty(),
            "name",
            "\"\"",
            "the profile has no name",
            "give it one",
        )?;
        let batch = u64::from(self.batch_size);
        check.within("batch_size", batch, 1..=BLOCK_COUNT_MAX as u64, "use 1 to 8192")?;
        check.within("value_bytes", self.value_bytes.into(), 1..=1 << 19, "use 1 to 524288")?;
        let command = COMMAND_HEADER_BYTES as u64 + TOPIC_BYTES + u64::from(self.value_bytes);
        check.ensure(
            HEADER_BYTES as u64 + batch * command.next_multiple_of(8) <= BLOCK_BYTES_MAX as u64,
            "batch_size",
            batch,
            "batch_size times value_bytes does not fit a block of 1 MiB",
            "lower one of them",
        )?;
        let in_flight = u64::from(self.in_flight);
        check.within("in_flight", in_flight, 1..=1 << 20, "use 1 to 1048576")?;
        check.within("connections", self.connections.into(), 1..=4096, "use 1 to 4096")?;
        check.ensure(
            in_flight.div_ceil(self.connections.into()) <= WINDOW_MAX,
            "in_flight",
            in_flight,
            "more than 8192 for each connection, the window of a session",
            "lower it or raise connections",
        )?;
        check.within("groups", self.groups.into(), 1..=100_000, "use 1 to 100000")?;
        check.within("nodes", self.nodes.into(), 1..=9, "use 1, 3, 5, 7 or 9")?;
        check.ensure(
            self.nodes % 2 == 1,
            "nodes",
            self.nodes,
            "an even number of voters tolerates no more failures than one less",
            "use 1, 3, 5, 7 or 9",
        )?;
        check.within("shards", self.shards.into(), 1..=64, "use 1 to 64")?;
        check.within("wal_depth", self.wal_depth.into(), 1..=64, "use 1 to 64")?;
        check.within("linger_us", self.linger_us, 0..=1_000_000, "use 0 to 1000000")?;
        check.within("sync_lag_ms", self.sync_lag_ms, 1..=60_000, "use 1 to 60000")?;
        check.within("sync_lag_bytes", self.sync_lag_bytes, 1..=1 << 40, "use 1 to 2^40")?;
        check.within("prepared_mib", self.prepared_mib.into(), 64..=4096, "use 64 to 4096")?;
        check.within("retention_bytes", self.retention_bytes, 1..=1 << 40, "use 1 to 2^40")
    }
}
