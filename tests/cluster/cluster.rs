//! A cluster of processes: files, ports, starts and stops, and what its status says.

use std::fmt::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use ringraft::client::status::{ClusterReport, cluster_status};
use ringraft::client::{ClientConfig, NodeAddress};
use ringraft::config::NodeConfig;
use ringraft::ids::NodeId;
use ringraft::shard::{GroupStatus, ShardStatus};
use tempfile::TempDir;

use crate::process::{PATIENCE, Process, eventually, ringraft, serve};

/// One cluster at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Timers of a node, ms.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat: u64,
    pub election: (u64, u64),
}

/// The timers of the defaults.
pub const DEFAULT: Timing = Timing { heartbeat: 50, election: (150, 300) };
/// For stories in which a busy machine must not look like a dead leader.
pub const PATIENT: Timing = Timing { heartbeat: 50, election: (1000, 2000) };

/// What a cluster is started with.
#[derive(Clone, Debug)]
pub struct Spec {
    pub wal_sync: bool,
    pub shards: u32,
    pub groups: u32,
    pub timing: Timing,
    /// How far the background sync may be behind: milliseconds, bytes.
    pub sync_lag: (u64, u64),
    /// Of each queue.
    pub retention_bytes: u64,
    pub snapshot_entries: u64,
    pub snapshot_interval_s: u32,
    pub snapshot_log_mib: u32,
    /// Nodes of the first configuration.
    pub voters: usize,
    /// A bug to plant in the nodes; only in a build with the feature `mutants`.
    pub mutant: Option<&'static str>,
    /// Where the data directories are made; else beside the configuration.
    pub disks: [Option<PathBuf>; 3],
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            wal_sync: true,
            shards: 1,
            groups: 1,
            timing: DEFAULT,
            sync_lag: (100, 1 << 20),
            retention_bytes: 4 << 30,
            snapshot_entries: 10_000,
            snapshot_interval_s: 5,
            snapshot_log_mib: 1024,
            voters: 3,
            mutant: None,
            disks: [const { None }; 3],
        }
    }
}

/// A directory on the disk of the build, gone with the value.
pub fn scratch() -> TempDir {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(root).unwrap();
    tempfile::Builder::new().prefix("cluster-").tempdir_in(root).unwrap()
}

/// A port on which nobody listens, below those that the kernel gives to outgoing connections: a
/// node that is down keeps its ports.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 10_000 + (std::process::id() % 1000) as u16 * 20;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The file of one node. `ports` are (peer, client) of all.
pub fn node_toml(
    id: u32,
    data_dir: &Path,
    spec: &Spec,
    timing: Timing,
    ports: &[(u16, u16)],
) -> String {
    let Timing { heartbeat, election: (min, max) } = timing;
    let Spec { wal_sync, shards, groups, sync_lag: (lag_ms, lag_bytes), .. } = spec;
    let Spec { retention_bytes, snapshot_entries, snapshot_interval_s, snapshot_log_mib, .. } =
        spec;
    let join = if id as usize > spec.voters { "join = true\n" } else { "" };
    let even = if spec.voters.is_multiple_of(2) { "allow_even_voters = true\n" } else { "" };
    let mut text = format!(
        "id = {id}\n\
         {join}\
         data_dir = {data_dir:?}\n\
         [cluster]\n\
         id = \"stories\"\n\
         shards = {shards}\n\
         groups = {groups}\n\
         wal_sync = {wal_sync}\n\
         {even}\
         [cluster.timing]\n\
         heartbeat_ms = {heartbeat}\n\
         election_timeout_min_ms = {min}\n\
         election_timeout_max_ms = {max}\n\
         [cluster.store]\n\
         retention_events = 100000000\n\
         retention_bytes = {retention_bytes}\n\
         bytes_max = 8589934592\n\
         [wal]\n\
         segment_mib = 4\n\
         spare_segments = 1\n\
         sync_lag_ms = {lag_ms}\n\
         sync_lag_bytes = {lag_bytes}\n\
         [snapshot]\n\
         entries = {snapshot_entries}\n\
         interval_s = {snapshot_interval_s}\n\
         log_mib = {snapshot_log_mib}\n"
    );
    for (i, (peer, client)) in ports.iter().enumerate() {
        let _ = write!(
            text,
            "[[cluster.nodes]]\n\
             id = {}\n\
             peer = \"127.0.0.1:{peer}\"\n\
             client = \"127.0.0.1:{client}\"\n",
            i + 1
        );
    }
    text
}

/// Three nodes, some of which may be down.
pub struct Cluster {
    pub dir: TempDir,
    spec: Spec,
    ports: Vec<(u16, u16)>,
    nodes: Vec<Option<Process>>,
    /// Boot ids of the machines; `None`: that of this one.
    boots: [Option<u128>; 3],
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Writes the files and starts nothing.
    pub fn prepare(spec: Spec) -> Self {
        let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let cluster = Self {
            dir: scratch(),
            ports: (0..spec.voters).map(|_| (free_port(), free_port())).collect(),
            nodes: (0..spec.voters).map(|_| None).collect(),
            boots: [None; 3],
            spec,
            _turn: turn,
        };
        (0..cluster.ports.len()).for_each(|node| cluster.configure(node, cluster.spec.timing, ""));
        cluster
    }

    /// The file of one more node, which is to join; it is not started yet.
    pub fn plan_node(&mut self) -> usize {
        self.ports.push((free_port(), free_port()));
        self.nodes.push(None);
        let node = self.ports.len() - 1;
        self.configure(node, self.spec.timing, "");
        node
    }

    /// Three running nodes with leaders.
    pub fn start(spec: Spec) -> Self {
        let mut cluster = Self::prepare(spec);
        (0..cluster.nodes.len()).for_each(|node| cluster.start_node(node));
        cluster.wait_for_leaders();
        cluster
    }

    /// Writes a node's file anew; `extra` comes at its end.
    pub fn configure(&self, node: usize, timing: Timing, extra: &str) {
        let text =
            node_toml(node as u32 + 1, &self.data_dir(node), &self.spec, timing, &self.ports);
        std::fs::write(self.config_path(node), text + extra).unwrap();
    }

    pub fn config_path(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("node-{}.toml", node + 1))
    }

    pub fn config(&self, node: usize) -> NodeConfig {
        NodeConfig::load(&self.config_path(node)).unwrap()
    }

    pub fn data_dir(&self, node: usize) -> PathBuf {
        let disk = self.spec.disks.get(node).cloned().flatten();
        disk.unwrap_or_else(|| self.dir.path().to_owned()).join(format!("data-{}", node + 1))
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    pub fn peer_address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.ports[node].0)
    }

    pub fn client_address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.ports[node].1)
    }

    /// An operator's command to the nodes that run, `ringraft member` or `group`: what it said, or its
    /// exit code, -1 without one, and its complaint.
    pub fn operate(&self, command: &str, arguments: &[&str]) -> Result<String, (i32, String)> {
        let running = self.running().into_iter();
        let addresses: Vec<_> = running.map(|node| self.client_address(node)).collect();
        let mut command = ringraft(&[command]);
        command.args(arguments).arg("--cluster").arg(addresses.join(","));
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => Ok(said),
            code => Err((code.unwrap_or(-1), said + &complained)),
        }
    }

    /// A client of all nodes, running or not, that does not give up early.
    pub fn client(&self, session: u64) -> ClientConfig {
        let mut config = ClientConfig::new(Vec::<String>::new(), session);
        config.nodes = (0..self.ports.len())
            .map(|node| NodeAddress {
                id: Some(NodeId(node as u32 + 1)),
                address: self.client_address(node),
            })
            .collect();
        config.deadline_us = 2 * PATIENCE.as_micros() as u64;
        config
    }

    pub fn start_node(&mut self, node: usize) {
        assert!(self.nodes[node].is_none(), "it runs already");
        let mut command = serve(&self.config_path(node));
        if let Some(boot) = self.boots.get(node).copied().flatten() {
            command.env("RINGRAFT_BOOT_ID", format!("{boot:032x}"));
        }
        if let Some(mutant) = self.spec.mutant {
            if cfg!(not(feature = "mutants")) {
                panic!("nobody would plant {mutant}");
            }
            command.env("RINGRAFT_MUTANT", mutant);
        }
        self.nodes[node] = Some(Process::spawn(command));
    }

    /// The node's machine has started anew: the next start of the node sees another boot id.
    pub fn reboot(&mut self, node: usize) {
        self.boots[node] = Some(self.boots[node].unwrap_or(0) + 1);
    }

    pub fn is_running(&self, node: usize) -> bool {
        self.nodes[node].is_some()
    }

    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&node| self.is_running(node)).collect()
    }

    pub fn node(&mut self, node: usize) -> &mut Process {
        self.nodes[node].as_mut().expect("it runs")
    }

    /// kill -9 of one node.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].take().expect("it runs").kill();
    }

    /// SIGTERM, and what became of it.
    pub fn terminate(&mut self, node: usize) -> Process {
        let mut process = self.nodes[node].take().expect("it runs");
        process.signal(libc::SIGTERM);
        let status = process.wait();
        assert!(status.success(), "{status} after SIGTERM: {:#?}", process.lines());
        process
    }

    /// Waits for a node that ends by itself.
    pub fn wait_for_end(&mut self, node: usize) -> (Process, std::process::ExitStatus) {
        let mut process = self.nodes[node].take().expect("it runs");
        let status = process.wait();
        (process, status)
    }

    /// What these nodes tell; `None` unless all of them answer.
    ///
    /// # Panics
    /// When one of them has ended, which nobody asked it to do.
    pub fn status(&self, nodes: &[usize]) -> Option<ClusterReport> {
        for &node in nodes {
            let process = self.nodes[node].as_ref().expect("it runs");
            assert!(process.is_alive(), "node {} has ended by itself", node + 1);
        }
        let addresses: Vec<_> = nodes.iter().map(|&node| self.client_address(node)).collect();
        let report = cluster_status(&addresses).unwrap();
        let shards = self.spec.shards as usize;
        let whole = report.nodes.iter().all(|node| node.shards.len() == shards);
        whole.then_some(report)
    }

    /// One shard of one node.
    pub fn shard_status(&self, node: usize) -> Option<ShardStatus> {
        Some(self.status(&[node])?.nodes.remove(0).shards.remove(0))
    }

    /// Node (from 0) and term of a group's leader, if the running nodes know one.
    pub fn leader_of(&self, group: u32) -> Option<(usize, u64)> {
        let report = self.status(&self.running())?;
        let leads = |g: &GroupStatus| g.group == group && g.role == "leader";
        let leaders = report.groups().into_iter().filter(|(_, g)| leads(g));
        leaders.map(|(node, g)| (node as usize - 1, g.term)).max_by_key(|(_, term)| *term)
    }

    /// The same of group 0, waiting for it.
    pub fn leader(&self) -> (usize, u64) {
        eventually("group 0 has a leader", PATIENCE, || self.leader_of(0))
    }

    pub fn wait_for_leaders(&self) {
        for group in 0..self.spec.groups {
            eventually("every group has a leader", PATIENCE, || self.leader_of(group));
        }
    }

    /// Until a restarted node has applied what its peers have committed by now.
    pub fn wait_for_catch_up(&self, node: usize) {
        let goal = eventually("somebody leads", PATIENCE, || {
            let report = self.status(&self.running())?;
            (0..self.spec.groups)
                .map(|group| {
                    report.groups().iter().filter(|g| g.1.group == group).map(|g| g.1.commit).max()
                })
                .collect::<Option<Vec<u64>>>()
        });
        eventually("the node has caught up", PATIENCE, || {
            let report = self.status(&[node])?;
            let known = |g: &GroupStatus| goal.get(g.group as usize);
            let done = |g: &GroupStatus| known(g).is_none_or(|goal| g.applied >= *goal);
            report.groups().iter().all(|(_, g)| done(g)).then_some(())
        });
    }

    /// Until the running nodes stand still at the same place, in the same state.
    ///
    /// # Panics
    /// When two nodes have applied the same commands and differ.
    pub fn wait_until_equal(&self) -> ClusterReport {
        eventually("all nodes stand at the same place", Duration::from_secs(60), || {
            let report = self.status(&self.running())?;
            assert_equal_where_equal(&report);
            let groups = report.groups();
            let still = groups.iter().all(|(_, g)| g.applied == g.commit && g.commit == g.last);
            let same = groups.chunk_by(|a, b| a.1.group == b.1.group).all(|replicas| {
                replicas.iter().all(|(_, g)| g.applied == replicas[0].1.applied)
                    && replicas.iter().any(|(_, g)| g.role == "leader")
            });
            (still && same).then_some(report)
        })
    }
}

/// Digests at equal applied indices are equal.
pub fn assert_equal_where_equal(report: &ClusterReport) {
    for replicas in report.groups().chunk_by(|a, b| a.1.group == b.1.group) {
        for (node, g) in replicas {
            for (other, h) in replicas.iter().filter(|(_, h)| h.applied == g.applied) {
                assert_eq!(g.digest, h.digest, "nodes {node} and {other} part: {g:?} {h:?}");
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for (i, node) in self.nodes.iter().enumerate() {
            let lines = node.as_ref().map_or(Vec::new(), Process::lines);
            let tail = &lines[lines.len().saturating_sub(25)..];
            eprintln!("--- node {} said at last:\n{}", i + 1, tail.join("\n"));
        }
    }
}
