//! A whole cluster in this process, each node with its own threads, directory, identity, sockets
//! and log: what `bench` measures when it is not given another one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::error;

use super::{Listeners, Node, NodeFailure, StartError};
use crate::config::{ClusterConfig, NodeAddress, NodeConfig, Profile};
use crate::runtime::disk::segment_of;

/// Least share of the retained bytes for one of very many groups.
const RETENTION_BYTES_MIN: u64 = 64 << 10;
/// A disk that makes no segment within this will not make any.
const PREPARE_PATIENCE: Duration = Duration::from_secs(5);

/// Nodes that live in this process.
pub struct EmbeddedCluster {
    nodes: Vec<Node>,
}

impl EmbeddedCluster {
    /// Starts `profile.nodes` nodes with their directories under `dir`.
    pub fn start(profile: &Profile, dir: &Path) -> Result<Self, StartError> {
        Self::start_with(profile, dir, |_| {})
    }

    /// The same with a change to what the profile says.
    pub fn start_with(
        profile: &Profile,
        dir: &Path,
        change: impl FnOnce(&mut ClusterConfig),
    ) -> Result<Self, StartError> {
        let listeners = (0..profile.nodes)
            .map(|_| Listeners::bind("127.0.0.1:0", "127.0.0.1:0"))
            .collect::<Result<Vec<_>, _>>()?;
        let mut cluster = cluster_config(profile, &listeners)?;
        change(&mut cluster);
        let (mut nodes, mut prepared) = (Vec::new(), Vec::new());
        for (i, listeners) in listeners.into_iter().enumerate() {
            let id = i as u32 + 1;
            let mut config = NodeConfig::new(id, dir.join(format!("node-{id}")), cluster.clone());
            config.wal.depth = profile.wal_depth;
            config.wal.sync_lag_ms = profile.sync_lag_ms;
            config.wal.sync_lag_bytes = profile.sync_lag_bytes;
            config.wal.linger_us = profile.linger_us;
            config.wal.spare_segments = profile.prepared_mib / config.wal.segment_mib;
            prepared.push((config.data_dir.clone(), config.wal.spare_segments));
            nodes.push(Node::start_on(&config, listeners)?);
        }
        let cluster = Self { nodes };
        cluster.wait_for_segments(&prepared, profile.shards);
        Ok(cluster)
    }

    /// Waits until every shard has the segments that it is to have ready, or until none was added
    /// for a while: then the disk is full, and the run says so.
    fn wait_for_segments(&self, prepared: &[(PathBuf, u32)], shards: u32) {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let made = prepared.iter().map(|(dir, _)| count_segments(dir, shards)).sum::<u32>();
            let wanted = prepared.iter().map(|(_, spares)| spares * shards).sum::<u32>();
            if made > seen {
                (seen, since) = (made, Instant::now());
            }
            if made >= wanted || since.elapsed() > PREPARE_PATIENCE {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where clients reach the nodes.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client_address().to_string()).collect()
    }

    /// Stops all nodes and waits for them.
    pub fn stop(self) -> Result<(), NodeFailure> {
        self.nodes.iter().for_each(Node::stop);
        let mut result = Ok(());
        for node in self.nodes {
            if let Err(failure) = node.wait() {
                error!("{failure}");
                result = Err(failure);
            }
        }
        result
    }
}

fn count_segments(dir: &Path, shards: u32) -> u32 {
    let in_shard = |shard| std::fs::read_dir(dir.join(format!("shard-{shard:03}")));
    let files = (0..shards).filter_map(|shard| in_shard(shard).ok()).flatten().flatten();
    files.filter(|file| segment_of(&file.path()).is_some()).count() as u32
}

fn cluster_config(profile: &Profile, sockets: &[Listeners]) -> Result<ClusterConfig, StartError> {
    let name = |address: std::io::Result<SocketAddr>| {
        address.map(|a| a.to_string()).map_err(StartError::Kernel)
    };
    let mut nodes = Vec::new();
    for (i, listeners) in sockets.iter().enumerate() {
        nodes.push(NodeAddress {
            id: i as u32 + 1,
            peer: name(listeners.peer.local_addr())?,
            client: name(listeners.client.local_addr())?,
            priority: 1,
        });
    }
    let mut cluster = ClusterConfig::new("bench", nodes);
    cluster.groups = profile.groups;
    cluster.shards = profile.shards;
    cluster.wal_sync = profile.wal_sync;
    cluster.reads.lease = profile.lease_reads;
    // Shared by the groups, so that more groups do not mean more memory to walk through.
    let share = profile.retention_bytes / u64::from(profile.groups);
    cluster.store.retention_bytes = share.max(RETENTION_BYTES_MIN);
    Ok(cluster)
}
