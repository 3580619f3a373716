//! A whole cluster in this process, each node with its own threads, directory, identity, sockets
//! and log: what `bench` measures when it is not given another one.

use std::net::SocketAddr;
use std::path::Path;

use tracing::error;

use crate::config::{ClusterConfig, NodeAddress, NodeConfig, Profile};
use crate::server::{Listeners, Node, NodeFailure, StartError};

/// Nodes that live in this process.
pub struct EmbeddedCluster {
    nodes: Vec<Node>,
}

impl EmbeddedCluster {
    /// Starts `profile.nodes` nodes with their directories under `dir`.
    pub fn start(profile: &Profile, dir: &Path) -> Result<Self, StartError> {
        let listeners = (0..profile.nodes)
            .map(|_| Listeners::bind("127.0.0.1:0", "127.0.0.1:0"))
            .collect::<Result<Vec<_>, _>>()?;
        let cluster = cluster_config(profile, &listeners)?;
        let mut nodes = Vec::new();
        for (i, listeners) in listeners.into_iter().enumerate() {
            let id = i as u32 + 1;
            let mut config = NodeConfig::new(id, dir.join(format!("node-{id}")), cluster.clone());
            config.wal.depth = profile.wal_depth;
            config.wal.sync_lag_ms = profile.sync_lag_ms;
            config.wal.sync_lag_bytes = profile.sync_lag_bytes;
            nodes.push(Node::start_on(&config, listeners)?);
        }
        Ok(Self { nodes })
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
        });
    }
    let mut cluster = ClusterConfig::new("bench", nodes);
    cluster.groups = profile.groups;
    cluster.shards = profile.shards;
    cluster.wal_sync = profile.wal_sync;
    cluster.store.retention_bytes = profile.retention_bytes;
    Ok(cluster)
}
