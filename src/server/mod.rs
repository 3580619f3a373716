//! One node: checks, directory, recovery, threads; and its orderly end.
//!
//! The order of a start matters: everything that can be refused without a trace is checked first
//! (configuration, locked memory, ports), then the directory is locked, the boot record written and
//! synced, the logs recovered, and only then does a thread accept a connection.

mod admin;
mod choice;
pub mod directory;
pub mod embedded;
mod error;
mod keeper;
mod plan;
pub mod recover;
mod recovery;
mod snapshots;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use self::admin::Admin;
pub use self::directory::DirectoryError;
use self::directory::{DataDir, Owner};
pub use self::error::{NodeFailure, StartError};
use self::keeper::Keeper;
use self::plan::{ShardEnd, ShardPlan};
use crate::config::NodeConfig;
use crate::ids::NodeId;
use crate::runtime::cold::Cold;
use crate::runtime::links::Place;
use crate::runtime::machine::{locked_memory_limit, raise_open_files};
use crate::runtime::routing::{Routes, ShardPort};
use crate::wal::{ReadError, StartVerdict, Suspect, WalError};
use crate::wire::hello::Role;

/// Locked memory below which a node does not start, bytes: the executor of the cold paths registers
/// its buffers with the kernel.
const LOCKED_MEMORY_MIN: u64 = 4 << 20;

/// How long a port may be in use before that is an error, and the pause between two attempts.
const PORT_PATIENCE: Duration = Duration::from_secs(2);
const PORT_PAUSE: Duration = Duration::from_millis(5);

/// A running node with the event store as its state machine.
pub struct Node {
    ports: Vec<Arc<ShardPort>>,
    threads: Vec<JoinHandle<()>>,
    ends: mpsc::Receiver<ShardEnd>,
    keeper: Arc<Keeper>,
    client_address: SocketAddr,
    /// For operators; ends with the node.
    admin: Option<Admin>,
}

/// Listening sockets, bound before anything is written.
pub struct Listeners {
    pub client: TcpListener,
    pub peer: TcpListener,
}

impl Listeners {
    /// Binds both ports of a node.
    pub fn bind(client: &str, peer: &str) -> Result<Self, StartError> {
        Ok(Self { client: bind(client, "clients")?, peer: bind(peer, "peers")? })
    }
}

/// Tries again for a while: after kill -9 the kernel takes the old process's ring apart in the
/// background, and until then that ring holds the ports, although the process is gone.
fn bind(address: &str, role: &'static str) -> Result<TcpListener, StartError> {
    let until = Instant::now() + PORT_PATIENCE;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(PORT_PAUSE);
            }
            result => {
                return result.map_err(|error| StartError::Port {
                    address: address.into(),
                    role,
                    reason: error.to_string(),
                });
            }
        }
    }
}

impl Node {
    /// Starts a node. When it returns, the node accepts connections.
    pub fn start(config: &NodeConfig) -> Result<Self, StartError> {
        config.validate()?;
        let address = config.address();
        let listeners = Listeners::bind(&address.client, &address.peer)?;
        Self::start_on(config, listeners)
    }

    /// Starts a node on sockets that are bound already, as embedded clusters do.
    pub fn start_on(config: &NodeConfig, listeners: Listeners) -> Result<Self, StartError> {
        config.validate()?;
        check_locked_memory()?;
        raise_open_files();
        let peers = resolve_peers(config)?;
        let admin = config.admin.as_deref().map(|address| bind(address, "operators"));
        let admin = admin.transpose()?;
        let client_address = listeners.client.local_addr().map_err(StartError::Kernel)?;
        let cluster = &config.cluster;
        let directory = DataDir::open(&config.data_dir, &owner(config))?;
        report_verdict(config, directory.verdict(), directory.suspect());
        let incarnation = directory.incarnation();
        let ports = (0..cluster.shards).map(|_| ShardPort::new()).collect::<Result<Vec<_>, _>>();
        let (end, ends) = mpsc::channel();
        let mut node = Self {
            ports: ports.map_err(StartError::Kernel)?,
            threads: Vec::new(),
            ends,
            keeper: Keeper::new(directory, cluster.shards),
            client_address,
            admin: None,
        };
        if let Some(listener) = admin {
            // Before the logs are read: who asks meanwhile hears that the node is starting.
            node.admin = Some(Admin::start(listener, config, node.ports.clone())?);
        }
        let started = node.start_shards(config, listeners, &peers, &end);
        if let Err(error) = started {
            node.stop();
            node.threads.drain(..).for_each(|thread| drop(thread.join()));
            return Err(error);
        }
        node.admin.iter().for_each(Admin::started);
        info!(node = config.id, incarnation = incarnation.0,
            clients = %client_address, "node started");
        Ok(node)
    }

    fn start_shards(
        &mut self,
        config: &NodeConfig,
        listeners: Listeners,
        peers: &[Place],
        end: &mpsc::Sender<ShardEnd>,
    ) -> Result<(), StartError> {
        let routes = Routes::new(self.ports.clone(), self.keeper.clone());
        let name = format!("node-{}-cold", config.id);
        let cold = Arc::new(Cold::start(&name).map_err(StartError::Kernel)?);
        let name = format!("node-{}-files", config.id);
        let files = Arc::new(Cold::start(&name).map_err(StartError::Kernel)?);
        // Shard 0 accepts for all; it starts last, when the others can take what it hands over.
        let mut sockets = vec![
            (OwnedFd::from(listeners.client), Role::Client),
            (OwnedFd::from(listeners.peer), Role::Peer),
        ];
        let (mut go, mut rot) = (Vec::new(), false);
        let (mut members, mut placed) = (Vec::new(), Vec::new());
        for shard in (0..config.cluster.shards).rev() {
            let (dir, lock) = self.keeper.with(|dir| (dir.shard_dir(shard), dir.lock()));
            let plan = ShardPlan {
                shard,
                config: config.clone(),
                identity: self.keeper.with(|dir| dir.identity()),
                incarnation: self.keeper.with(|dir| dir.incarnation()),
                mark: self.keeper.with(|dir| dir.durable_mark(shard)),
                suspect: self.keeper.with(|dir| dir.suspect()),
                keeper: self.keeper.clone(),
                dir: dir?,
                lock: lock.map_err(StartError::Kernel)?,
                peers: peers.to_vec(),
                sockets: if shard == 0 { std::mem::take(&mut sockets) } else { Vec::new() },
                routes: routes.clone(),
                port: self.ports[shard as usize].clone(),
                cold: cold.clone(),
                files: files.clone(),
            };
            let (word, is_word) = mpsc::channel();
            let started = plan.spawn(end.clone(), is_word)?;
            self.threads.push(started.thread);
            rot |= started.rot;
            members.extend(started.members);
            placed.extend(started.placed);
            go.push(word);
        }
        members.sort_unstable();
        members.dedup();
        let listed: Vec<_> = config.cluster.nodes.iter().map(|node| NodeId(node.id)).collect();
        self.keeper.with(|directory| directory.check_nodes(&listed, &members, &placed))?;
        if rot {
            self.keeper.with(DataDir::mark_rot).map_err(StartError::Kernel)?;
        }
        // Nothing has left this node yet; from here on it talks.
        for word in go {
            let _ = word.send(());
        }
        Ok(())
    }

    /// Where clients reach this node.
    pub fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// Asks the node to drain and end; [`Node::wait`] returns when it has.
    pub fn stop(&self) {
        self.ports.iter().for_each(|port| port.stop());
    }

    /// Asks the same from another thread.
    pub fn stopper(&self) -> impl Fn() + Send + use<> {
        let ports = self.ports.clone();
        move || ports.iter().for_each(|port| port.stop())
    }

    /// Waits for the end. After the first failure the other shards are stopped as well: a node with
    /// half its shards is not a node.
    pub fn wait(mut self) -> Result<(), NodeFailure> {
        let mut result = Ok(());
        let mut ends = vec![None; self.threads.len()];
        for _ in 0..self.threads.len() {
            let Ok(ShardEnd { shard, outcome }) = self.ends.recv() else { break };
            match outcome {
                Some(Ok(end)) => ends[shard as usize] = end,
                Some(Err(error)) => {
                    self.record_damage(&error);
                    self.stop();
                    result = result.and(Err(NodeFailure::Log { shard, error }));
                }
                None => {
                    self.stop();
                    result = result.and(Err(NodeFailure::Panic { shard }));
                }
            }
        }
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
        if let (Ok(()), Some(ends)) = (&result, ends.into_iter().collect()) {
            self.keeper.with(|directory| directory.mark_clean(ends));
        }
        result
    }
}

impl Node {
    /// Damage found while the node ran may lie above every durable mark that the log names, and be
    /// taken for a torn tail at the next start: the boot record remembers it.
    fn record_damage(&self, error: &WalError) {
        if !matches!(error, WalError::Lost { error: ReadError::Rot { .. }, .. }) {
            return;
        }
        if let Err(error) = self.keeper.mark_rot() {
            error!(%error, "the damage was not recorded; run `ringraft wal verify` before the next start");
        }
    }
}

fn check_locked_memory() -> Result<(), StartError> {
    match locked_memory_limit() {
        Some(have) if have < LOCKED_MEMORY_MIN => {
            Err(StartError::LockedMemory { have: have >> 10, need: LOCKED_MEMORY_MIN >> 10 })
        }
        _ => Ok(()),
    }
}

fn resolve_peers(config: &NodeConfig) -> Result<Vec<Place>, StartError> {
    let others = config.cluster.nodes.iter().filter(|node| node.id != config.id);
    others
        .map(|node| {
            let bad = |reason: String| StartError::Address {
                address: node.peer.clone(),
                node: node.id,
                reason,
            };
            let mut found = node.peer.to_socket_addrs().map_err(|e| bad(e.to_string()))?;
            let address = found.next().ok_or_else(|| bad("it has no address".into()))?;
            Ok(Place { node: NodeId(node.id), name: node.peer.clone(), address })
        })
        .collect()
}

fn owner(config: &NodeConfig) -> Owner {
    let cluster = &config.cluster;
    let nodes: Vec<_> = cluster.nodes.iter().map(|node| NodeId(node.id)).collect();
    Owner {
        cluster: cluster.cluster_id(),
        node: config.id,
        shards: cluster.shards,
        voters: if config.join { Vec::new() } else { nodes.clone() },
        others: if config.join { nodes } else { Vec::new() },
        unsynced: u64::from(!cluster.wal_sync),
    }
}

fn report_verdict(config: &NodeConfig, verdict: StartVerdict, suspect: Suspect) {
    match suspect {
        Suspect::Nothing => {
            info!(node = config.id, ?verdict, "how this node ended last time");
        }
        suspect => warn!(
            node = config.id,
            ?verdict,
            ?suspect,
            "commands that this node had acknowledged may be missing on it: its groups are \
             RECOVERING and do not vote like the others until they have them back"
        ),
    }
}
