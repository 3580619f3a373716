//! What a benchmark run is asked to do, as plain values: the command line fills them in.

use std::num::NonZeroU64;
use std::path::PathBuf;

/// The profiles that run when none is named: the three of the main job and the cross case.
pub const DEFAULT_PROFILES: [&str; 4] = ["financial", "iot", "logging", "durable-logging"];

/// How a result is printed on standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// One JSON object and nothing else.
    Json,
}

/// One call of `ringraft bench`.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchOptions {
    /// Measured seconds per profile, more than 0.
    pub seconds: f64,
    /// Names of built-in profiles or paths of TOML files, in the order to run them. Never empty.
    pub profiles: Vec<String>,
    /// What replaces the profiles' own settings.
    pub overrides: ProfileOverrides,
    /// Nodes of the embedded cluster.
    pub nodes: u32,
    /// Shards of each node of the embedded cluster.
    pub shards: u32,
    /// Commands a second, offered in an open loop; `None`: a closed loop.
    pub rate: Option<NonZeroU64>,
    pub output: Output,
    /// Where the embedded cluster keeps its data; `None`: a temporary directory in `./target`.
    pub dir: Option<PathBuf>,
    /// Client addresses `host:port` of a running cluster; empty: an embedded one.
    pub cluster: Vec<String>,
}

/// Settings that replace those of every profile that runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProfileOverrides {
    /// Blocks unanswered at one time.
    pub in_flight: Option<u32>,
    /// Bytes of each event.
    pub value_bytes: Option<u32>,
    pub groups: Option<u32>,
    /// Commands in a block.
    pub batch_size: Option<u32>,
    pub wal_sync: Option<bool>,
}
