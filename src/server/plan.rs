//! From configuration to a shard's running thread.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use super::error::StartError;
use super::keeper::Keeper;
use super::recovery::{self, Helpers, Opened, States};
use crate::block::BLOCK_BYTES_MAX;
use crate::config::{GROUPS_MAX, NodeConfig};
use crate::ids::{GroupId, Incarnation, Lsn, NodeId};
use crate::machine::events::EventStore;
use crate::machine::hash::mix;
use crate::raft;
use crate::runtime::cold::Cold;
use crate::runtime::links::{Identity, Links, Place};
use crate::runtime::placement::pin_to_core;
use crate::runtime::reactor::{Reactor, ReactorParts};
use crate::runtime::ring::Ring;
use crate::runtime::routing::{Routes, ShardPort};
use crate::shard::{Recovered, Shard, ShardConfig};
use crate::wal::{LogIdentity, Suspect, WalConfig, WalError};
use crate::wire::hello::Role;

/// Submission queue of a shard's ring.
const RING_ENTRIES: u32 = 1024;
/// Least share of the in-memory tail for one of very many groups.
const CACHE_BYTES_MIN: u64 = 64 << 10;

/// How a shard's thread ended: `Ok(the log's end, if all of it is on stable storage)`, the log's error, or
/// `None` for a panic.
pub struct ShardEnd {
    pub shard: u32,
    pub outcome: Option<Result<Option<Lsn>, WalError>>,
}

/// What a shard's thread is built from.
pub struct ShardPlan {
    pub shard: u32,
    pub config: NodeConfig,
    pub identity: LogIdentity,
    pub incarnation: Incarnation,
    /// Durable position that the boot record remembers.
    pub mark: Lsn,
    /// Whose groups start RECOVERING; after rot all of this shard's do.
    pub suspect: Suspect,
    pub keeper: Arc<Keeper>,
    pub dir: PathBuf,
    /// Of the data directory: held until the last write of the shard's ring has ended.
    pub lock: File,
    pub peers: Vec<Place>,
    pub sockets: Vec<(OwnedFd, Role)>,
    pub routes: Arc<Routes>,
    pub port: Arc<ShardPort>,
    pub cold: Arc<Cold>,
    pub files: Arc<Cold>,
}

/// A thread that has read its log and waits for the word to go on.
pub struct Started {
    pub thread: JoinHandle<()>,
    /// Bytes that were durable are damaged.
    pub rot: bool,
    /// Who takes part in its groups, as far as their logs say.
    pub members: Vec<NodeId>,
    /// Those of them whose addresses the logs have.
    pub placed: Vec<NodeId>,
}

/// What [`ShardPlan::build`] found besides.
struct Found {
    rot: bool,
    members: Vec<NodeId>,
    placed: Vec<NodeId>,
}

/// Tells the end of the thread however it comes.
struct EndReport {
    shard: u32,
    end: mpsc::Sender<ShardEnd>,
    outcome: Option<Result<Option<Lsn>, WalError>>,
}

impl Drop for EndReport {
    fn drop(&mut self) {
        let _ = self.end.send(ShardEnd { shard: self.shard, outcome: self.outcome.take() });
    }
}

impl ShardPlan {
    /// Starts the thread and waits until its log is read. The thread goes on when `go` says so.
    pub fn spawn(
        self,
        end: mpsc::Sender<ShardEnd>,
        go: mpsc::Receiver<()>,
    ) -> Result<Started, StartError> {
        let name = format!("node-{}-s{}", self.config.id, self.shard);
        let shard = self.shard;
        let (ready, is_ready) = mpsc::channel();
        let builder = std::thread::Builder::new().name(name.clone());
        let body = move || {
            let (reactor, found) = match self.build(name) {
                Err(error) => return drop(ready.send(Err(error))),
                Ok(built) => built,
            };
            let mut report = EndReport { shard, end, outcome: None };
            let _ = ready.send(Ok(found));
            report.outcome = Some(if go.recv().is_ok() { reactor.run() } else { Ok(None) });
        };
        let thread = builder.spawn(body).map_err(StartError::Kernel)?;
        let Found { rot, members, placed } =
            is_ready.recv().unwrap_or(Err(StartError::ThreadDied(shard)))?;
        Ok(Started { thread, rot, members, placed })
    }

    fn build(self, name: String) -> Result<(Reactor<EventStore>, Found), StartError> {
        if self.config.runtime.pin_cores {
            pin_to_core(self.shard as usize);
        }
        let waker = self.port.waker.clone();
        let ring = Ring::new(RING_ENTRIES, Instant::now(), waker).map_err(StartError::Kernel)?;
        ring.hold(&self.lock).map_err(StartError::Kernel)?;
        let wal_config = self.wal_config();
        let (shards, shard) = (self.config.cluster.shards, self.shard);
        // Groups are made while the cluster runs: the log may name more than the configuration.
        let ours = |group: GroupId| group.0 < GROUPS_MAX && group.0 % shards == shard;
        let helpers = Helpers {
            me: NodeId(self.config.id),
            known: self.keeper.with(|directory| directory.other_nodes()),
            listed: self.config.cluster.nodes.iter().any(|node| node.id != self.config.id),
        };
        let limits = self.config.cluster.store.limits();
        let machine = move |_: GroupId| EventStore::new(limits);
        let sessions = self.config.cluster.store.session_limits();
        let states = States { machine, sessions, config_hash: self.config_hash() };
        let (identity, mark) = (self.identity, self.mark);
        let opened = recovery::open(wal_config, identity, &self.dir, mark, &helpers, ours, states)?;
        let Opened { wal, groups, snapshots, rot, lost } = opened;
        let found = self.members(rot || lost, &groups);
        let config = self.shard_config(rot);
        let now = ring.now();
        let shard = Shard::with_snapshots(config, wal, groups, snapshots, machine, now);
        let (identity, connections) = (self.link_identity(), self.config.limits.client_connections);
        let fault = self.config.fault.wal_write_error_at;
        let (keeper, number) = (self.keeper, self.shard);
        let reactor = Reactor::new(ReactorParts {
            ring,
            shard,
            links: Links::new(
                identity,
                self.peers,
                self.sockets,
                self.routes,
                connections as usize,
            ),
            port: self.port,
            cold: self.cold,
            files: self.files,
            segment_dir: self.dir,
            segment_bytes: wal_config.segment_bytes,
            fail_write_in: (fault > 0).then_some(fault),
            spin_us: self.config.runtime.spin_us,
            name,
            recovered: Box::new(move || keeper.shard_recovered(number)),
        });
        Ok((reactor, found))
    }

    /// Who takes part, by the newest configuration of each group's log.
    fn members(&self, rot: bool, groups: &Recovered) -> Found {
        let (mut members, mut placed) = (Vec::new(), Vec::new());
        let newest = groups.values().filter_map(|group| group.memberships.last());
        let NodeConfig { cluster, .. } = &self.config;
        for membership in newest {
            members.extend(membership.members());
            placed.extend(membership.addresses.iter().map(|address| address.node));
        }
        let here = (self.shard..cluster.groups).step_by(cluster.shards as usize);
        let says = |id: u32| {
            groups
                .get(&GroupId(id))
                .is_some_and(|group| !group.memberships.is_empty() || group.hard_state.is_ended())
        };
        if !{ here }.all(says) {
            members.extend(self.first_voters());
        }
        Found { rot, members, placed }
    }

    fn first_voters(&self) -> Vec<NodeId> {
        self.keeper.with(|directory| directory.first_voters())
    }

    fn link_identity(&self) -> Identity {
        let cluster = &self.config.cluster;
        Identity {
            cluster: self.identity.cluster,
            disk: self.identity.disk,
            config_hash: cluster.hash(),
            node: NodeId(self.config.id),
            incarnation: self.incarnation,
            shard: self.shard,
            shards: cluster.shards,
            groups: cluster.groups,
            first: self.first_voters().iter().fold(0, |hash, node| mix(hash, u64::from(node.0))),
        }
    }

    fn shard_config(&self, rot: bool) -> ShardConfig {
        let NodeConfig { id, cluster, limits, .. } = &self.config;
        ShardConfig {
            node: NodeId(*id),
            incarnation: self.incarnation,
            voters: self.first_voters(),
            peers: cluster.nodes.iter().map(|node| NodeId(node.id)).collect(),
            shard: self.shard,
            shards: cluster.shards,
            groups: cluster.groups,
            groups_max: limits.groups.max(cluster.groups).div_ceil(cluster.shards),
            wal_sync: cluster.wal_sync,
            wal_sync_except: Vec::new(),
            suspect: if rot { Suspect::Everything } else { self.suspect },
            sessions: cluster.store.session_limits(),
            snapshots: self.config.snapshot.config(&self.config.wal, self.config_hash()),
            raft: self.raft_config(),
            block_bytes_max: BLOCK_BYTES_MAX as u32,
            apply_bytes_per_turn: 4 << 20,
            peer_egress_bytes_max: (limits.inflight_mib as usize) << 20,
            client_egress_bytes_max: 1 << 20,
            client_blocks_max: 16_384,
            leaders: cluster.leaders(),
        }
    }

    /// A snapshot belongs to its cluster; what else it must agree on, it says by itself.
    fn config_hash(&self) -> u64 {
        self.identity.cluster as u64
    }

    fn raft_config(&self) -> raft::Config {
        let NodeConfig { id, cluster, limits, .. } = &self.config;
        let timing = &cluster.timing;
        let voters = self.first_voters();
        let groups_here = u64::from(cluster.groups.div_ceil(cluster.shards));
        let share = (u64::from(limits.cache_shard_mib) << 20) / groups_here;
        let cache = share.clamp(CACHE_BYTES_MIN, u64::from(limits.cache_mib) << 20);
        raft::Config {
            election_timeout_min_us: timing.election_timeout_min_ms * 1000,
            election_timeout_max_us: timing.election_timeout_max_ms * 1000,
            heartbeat_us: timing.heartbeat_ms * 1000,
            rpc_timeout_us: timing.rpc_timeout_ms * 1000,
            hibernate_after_us: timing.hibernate_after_ms * 1000,
            inflight_count_max: limits.inflight_appends,
            inflight_bytes_max: u64::from(limits.inflight_mib) << 20,
            uncommitted_bytes_max: u64::from(limits.uncommitted_mib) << 20,
            cache_bytes_max: cache,
            lease_reads: cluster.reads.lease,
            clock_drift_percent_max: cluster.reads.clock_drift_percent_max,
            ..raft::Config::new(NodeId(*id), GroupId(0), voters, self.incarnation)
        }
    }

    fn wal_config(&self) -> WalConfig {
        let wal = &self.config.wal;
        WalConfig {
            shard: self.shard,
            segment_bytes: wal.segment_bytes(),
            block_bytes: wal.block_bytes,
            depth: wal.depth,
            linger_us: wal.linger_us,
            segments_max: wal.segments_max(),
            spare_segments: wal.spare_segments,
            sync_lag_us: wal.sync_lag_ms * 1000,
            sync_lag_bytes: wal.sync_lag_bytes,
            staged_bytes_max: u64::from(self.config.limits.staged_mib) << 20,
            staged_age_max_us: self.config.cluster.timing.election_timeout_min_ms * 500,
            ..WalConfig::default()
        }
    }
}
