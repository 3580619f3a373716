//! Why a node does not start, and how it ends.

use thiserror::Error;

use super::directory::DirectoryError;
use crate::config::ConfigError;
use crate::shard::snapshots::gather::GatherError;
use crate::wal::WalError;

/// Why a node does not start. One line each: what is wrong and how to mend it.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot listen on {address} for {role}: {reason}; free the port or choose another")]
    Port { address: String, role: &'static str, reason: String },
    #[error("cannot resolve {address} of node {node}: {reason}; correct it in cluster.nodes")]
    Address { address: String, node: u32, reason: String },
    #[error(
        "too little locked memory: {have} KiB allowed, {need} KiB needed; raise it with \
         `ulimit -l {need}`, or LimitMEMLOCK= in the service's unit"
    )]
    LockedMemory { have: u64, need: u64 },
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("shard {shard}: {error}")]
    Log { shard: u32, error: WalError },
    #[error(
        "shard {shard}: the log is damaged below its durable mark (valid to {valid}, durable to \
         {durable}), and no other node can give back what is missing: restore this node's directory, or \
         go on without it: `ringraft recover` shows what is left"
    )]
    Rot { shard: u32, valid: u64, durable: u64 },
    #[error(
        "shard {shard}: its log holds group {group}, which the configuration does not put there; \
         set cluster.groups and cluster.shards back, they are fixed once there is data"
    )]
    ForeignGroup { shard: u32, group: u32 },
    #[error(
        "shard {shard}: {error}; start the build and the configuration that wrote it, or move the \
         file away and let the other nodes send another one"
    )]
    Snapshot { shard: u32, error: GatherError },
    #[error(
        "shard {shard}: the snapshot of group {group} is damaged or gone, and its log begins behind \
         it; restore this node's directory, or go on without what is lost: `ringraft recover` shows \
         what is left"
    )]
    SnapshotLost { shard: u32, group: u32 },
    #[error(
        "shard {shard}: its log or a snapshot is damaged, and nothing says where the other nodes are \
         that this one has known ({nodes}): if they are members, add them to cluster.nodes, so that \
         they can give back what is missing; if they are gone for good, say so by `ringraft recover \
         --lost {nodes}`"
    )]
    Unplaced { shard: u32, nodes: String },
    #[error("the kernel refuses what a node needs: {0}; run `ringraft doctor`")]
    Kernel(std::io::Error),
    #[error("shard {0} did not start; see the log above")]
    ThreadDied(u32),
}

impl StartError {
    /// Whether the configuration, or the environment it asks for, is at fault and nothing was
    /// written.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Config(_)
                | Self::Port { .. }
                | Self::Address { .. }
                | Self::LockedMemory { .. }
                | Self::Directory(_)
        )
    }
}

/// How a node ended that was not asked to.
#[derive(Debug, Error)]
pub enum NodeFailure {
    #[error("shard {shard} stopped: {error}")]
    Log { shard: u32, error: WalError },
    #[error("shard {shard} panicked; see the log above")]
    Panic { shard: u32 },
}
