//! Nodes: how they start, take their turns and end.

use super::clock::Clock;
use super::disk::{BootFile, Disk, Survival};
use super::options::{Options, Shape};
use super::oracle::Seen;
use super::queue::Event;
use super::rng::Rng;
use super::shadow::Shadow;
use super::subject::{Observed, Subject};
use super::trace::What;
use super::world::{Packet, World};
use crate::ids::{GroupId, Incarnation, Lsn, NodeId, Tick};
use crate::raft;
use crate::shard::sessions::SessionLimits;
use crate::shard::{GroupView, Output, Recovered, Shard, ShardConfig, restored};
use crate::wal::Recovered as FoundLog;
use crate::wal::{
    BootRecord, LogIdentity, Suspect, Verdict, Wal, WalConfig, next_start, recover_from,
};

/// The cluster's id.
const CLUSTER: u128 = 7;
/// A turn takes this long, microseconds: what arrives meanwhile waits for the next one.
const TURN_US: (u64, u64) = (1, 20);

/// A machine with one process on it, or none.
pub struct Node {
    pub clock: Clock,
    pub boot: BootFile,
    /// The kernel's boot id: another one after each loss of power.
    pub machine: u128,
    pub disk_id: u128,
    pub incarnation: u32,
    /// A process runs (it may still be starting).
    pub up: bool,
    /// Counts starts and ends; an event that carries an older number is void.
    pub attempt: u32,
    pub paused: bool,
    /// What arrived while it was paused.
    pub(super) backlog: Vec<Packet>,
    /// Faults that keep it down or paused now.
    pub holds: u32,
    /// Turns take this much longer, microseconds.
    pub slow_us: u64,
    /// Disk ids that it has known the others by.
    pub pins: Vec<Option<u128>>,
    /// Its directory was lost: the others refuse it as the node it was.
    pub is_stranger: bool,
    /// The next start is tried with this many shards more.
    pub wrong_shards: u32,
    /// An error of the disk may stop the process, since a fault was put there.
    pub may_fail: bool,
    /// Synced bytes were damaged or landed elsewhere.
    pub may_rot: bool,
    /// Counts against what the protocol promises to bear: its memory may have gaps, and the boot
    /// record does not say yet that they are filled.
    pub forgot: bool,
    /// The boot record as written last.
    record: Option<BootRecord>,
}

/// One shard of a node.
pub struct Host<M> {
    /// `None` while the process is down.
    pub shard: Option<Shard<Observed<M>>>,
    /// What recovery found is safe, so that connections are taken.
    pub serving: bool,
    pub disk: Disk,
    /// Knows what the log may say.
    pub shadow: Shadow,
    pub out: Output,
    /// The time of its entry in the queue.
    pub wake_at: u64,
    /// Its thread is busy with a turn until then.
    busy_until: u64,
    /// Something was handed in since the last turn.
    dirty: bool,
    /// By client: the connection that is open.
    pub conns: Vec<u32>,
    /// By group of this shard.
    seen: Vec<Seen>,
    dirty_clients: Vec<u64>,
}

impl Node {
    pub fn new(node: usize, nodes: usize, base: &Rng) -> Self {
        let mut rng = base.fork(1000 + node as u64);
        Self {
            clock: Clock::new(1 + rng.below(1_000_000)),
            boot: BootFile::new(),
            machine: u128::from(rng.next()),
            disk_id: u128::from(rng.next()) << 1 | 1,
            incarnation: 0,
            up: false,
            attempt: 0,
            paused: false,
            backlog: Vec::new(),
            holds: 0,
            slow_us: 0,
            pins: vec![None; nodes],
            is_stranger: false,
            wrong_shards: 0,
            may_fail: false,
            may_rot: false,
            forgot: false,
            record: None,
        }
    }
}

impl<M> Host<M> {
    pub fn new(host: usize, shape: &Shape, options: &Options, base: &Rng) -> Self {
        let config = wal_config(shape, host as u32 % shape.shards);
        let mut disk = Disk::new(config, base.fork(host as u64).next());
        disk.set_latency(shape.disk_us.0, shape.disk_us.1);
        disk.set_honest(!options.lying_disks);
        Self {
            shard: None,
            serving: false,
            disk,
            shadow: Shadow::new(config),
            out: Output::default(),
            wake_at: u64::MAX,
            busy_until: 0,
            dirty: false,
            conns: vec![0; shape.clients as usize],
            seen: Vec::new(),
            dirty_clients: Vec::new(),
        }
    }
}

pub(super) fn wal_config(shape: &Shape, shard: u32) -> WalConfig {
    WalConfig {
        shard,
        segment_bytes: shape.segment_bytes,
        block_bytes: 512,
        depth: shape.wal_depth,
        flush_bytes_max: 8 << 10,
        segments_max: 2000,
        spare_segments: 1,
        sync_lag_us: 100_000,
        sync_lag_bytes: 16 << 10,
        staged_bytes_max: 256 << 10,
        ..WalConfig::default()
    }
}

/// The largest number of bytes that a leader takes on beyond its commit index.
const UNCOMMITTED_MAX: u64 = 256 << 10;
/// The largest block.
const BLOCK_MAX: u32 = 16 << 10;

fn shard_config(
    shape: &Shape,
    node: usize,
    incarnation: Incarnation,
    shard: u32,
    suspect: Suspect,
) -> ShardConfig {
    let id = NodeId(node as u32 + 1);
    let voters: Vec<_> = (1..=shape.nodes).map(NodeId).collect();
    let mut raft = raft::Config::new(id, GroupId(0), voters.clone(), incarnation);
    raft.cache_bytes_max = shape.cache_bytes;
    raft.inflight_count_max = shape.inflight;
    raft.uncommitted_bytes_max = UNCOMMITTED_MAX;
    ShardConfig {
        node: id,
        incarnation,
        voters,
        shard,
        shards: shape.shards,
        groups: shape.groups,
        wal_sync: shape.wal_sync,
        wal_sync_except: shape.wal_sync_except.clone(),
        suspect,
        sessions: SessionLimits::default(),
        raft,
        block_bytes_max: BLOCK_MAX,
        apply_bytes_per_turn: shape.apply_bytes,
        peer_egress_bytes_max: 256 << 10,
        client_egress_bytes_max: 256 << 10,
        client_blocks_max: 1024,
    }
}

/// Starts.
impl<S: Subject> World<S> {
    pub(super) fn start_in(&mut self, node: usize, wait: u64) {
        self.queue.push(self.now + wait, Event::Start(node as u32, self.nodes[node].attempt));
    }

    /// The process begins: it reads the boot record and writes the new one.
    pub(super) fn on_start(&mut self, node: usize, attempt: u32) {
        let state = &mut self.nodes[node];
        if state.up || state.attempt != attempt {
            return;
        }
        let previous = match BootRecord::decode(state.boot.bytes()) {
            Ok(previous) => previous,
            Err(error) => {
                let what = format!("n{}: {error}", node + 1);
                return self.fail("a torn boot record leaves the other slot", what);
            }
        };
        let shards = self.shape.shards + std::mem::take(&mut state.wrong_shards);
        if previous.as_ref().is_some_and(|last| last.durable.len() != shards as usize) {
            self.note_node(node, "refuses to start with shards:", u64::from(shards));
            return self.start_in(node, 10_000);
        }
        let disk = previous.as_ref().map_or(state.disk_id, |last| last.identity.disk);
        state.disk_id = disk;
        let (mut record, verdict) =
            next_start(previous.as_ref(), identity(node, disk), state.machine);
        record.durable.resize(shards as usize, Lsn::ZERO);
        state.up = true;
        state.attempt += 1;
        state.incarnation = record.incarnation.0;
        let (slot, bytes) = record.encode().expect("a few shards");
        state.boot.write(slot, &bytes);
        state.record = Some(record);
        let attempt = state.attempt;
        self.note_node(node, "starts, boot record says", verdict as u64);
        let wait = self.node_rng.between(self.shape.disk_us.0, 2 * self.shape.disk_us.1);
        self.queue.push(self.now + wait, Event::Started(node as u32, attempt));
    }

    /// The boot record is safe: the logs are read, and the shards start.
    pub(super) fn on_started(&mut self, node: usize, attempt: u32) {
        let state = &mut self.nodes[node];
        if !state.up || state.attempt != attempt {
            return;
        }
        if state.paused {
            return self.queue.push(self.now + 1000, Event::Started(node as u32, attempt));
        }
        state.boot.sync();
        self.stats.starts += 1;
        for host in self.hosts_of(node) {
            if !self.open(node, host) {
                return;
            }
        }
        for host in self.hosts_of(node) {
            self.poke(host);
        }
    }

    /// The last group of the last shard has its memory back: the boot record is to say so.
    fn note_recovered(&mut self, node: usize) {
        let hosts = self.hosts_of(node);
        let done = |host: &Host<S::Machine>| {
            host.serving && host.shard.as_ref().is_some_and(|shard| shard.recovering() == 0)
        };
        if !self.hosts[hosts].iter().all(done) {
            return;
        }
        let state = &mut self.nodes[node];
        let Some(record) = &mut state.record else { return };
        *record = record.next_write();
        record.recovering = false;
        let (slot, bytes) = record.encode().expect("a few shards");
        state.boot.write(slot, &bytes);
        let wait = self.node_rng.between(self.shape.disk_us.0, self.shape.disk_us.1);
        self.queue.push(self.now + wait, Event::Recorded(node as u32, state.attempt));
    }

    /// That record is safe.
    pub(super) fn on_recorded(&mut self, node: usize, attempt: u32) {
        let state = &mut self.nodes[node];
        if state.up && state.attempt == attempt {
            state.boot.sync();
            state.forgot = state.is_stranger;
            self.note_node(node, "has its memory back in incarnation", self.incarnation(node));
        }
    }

    /// Reads a shard's log and starts it. `false`: the node does not come up.
    fn open(&mut self, node: usize, at: usize) -> bool {
        let shard = at as u32 % self.shape.shards;
        let (config, mine) =
            (wal_config(&self.shape, shard), identity(node, self.nodes[node].disk_id));
        let incarnation = Incarnation(self.nodes[node].incarnation);
        let now = self.local(node);
        let epoch = self.node_rng.next();
        let host = &mut self.hosts[at];
        let mut found = match recover_from(config, mine, &mut host.disk.source(), Lsn::ZERO) {
            Ok(found) => found,
            Err(error) => {
                self.fatal(node, at, &error.to_string());
                return false;
            }
        };
        let suspect = match self.judge_log(node, at, &found) {
            Some(suspect) => suspect,
            None => return false,
        };
        let host = &mut self.hosts[at];
        host.shadow = host.shadow.restarted(&found);
        let groups: Recovered = found.groups.iter().map(|(&id, g)| (id, restored(g))).collect();
        let wal = Wal::resume(config, mine, epoch, &mut found);
        let config = shard_config(&self.shape, node, incarnation, shard, suspect);
        let subject = &self.subject;
        let machine = |group: GroupId| Observed::new(subject.machine(group));
        let started = Shard::new(config, wal, groups, machine, now);
        host.seen.clear();
        for view in started.groups() {
            let mut seen = Seen::default();
            if let Err((rule, what)) = self.oracle.started(node, &view, &mut seen) {
                self.fail(rule, what);
                return false;
            }
            host.seen.push(seen);
        }
        host.shard = Some(started);
        host.out = Output::default();
        host.conns.fill(0);
        (host.serving, host.dirty) = (false, true);
        true
    }

    /// What recovery found, against what was known: which groups are suspect; `None` if the node
    /// cannot start.
    fn judge_log(&mut self, node: usize, at: usize, found: &FoundLog) -> Option<Suspect> {
        let shard = at as u32 % self.shape.shards;
        let unsynced = self.nodes[node].record.as_ref().is_some_and(|record| record.recovering);
        if let Verdict::Rot { valid, durable, .. } = found.verdict {
            if !self.nodes[node].may_rot {
                let what = format!("n{} s{shard}: V {valid}, D {durable}", node + 1);
                self.fail("an honest disk shows no rot", what);
                return None;
            }
            self.note_node(node, "finds rot at", valid.0);
            self.stats.rot_found += 1;
            self.oracle.forget(node);
            return Some(Suspect::Everything);
        }
        if let Some(what) = self.hosts[at].shadow.lost(found) {
            let what = format!("n{} s{shard}: {what}", node + 1);
            self.fail("what is durable stays", what);
            return None;
        }
        Some(if unsynced { Suspect::Unsynced } else { Suspect::Nothing })
    }

    pub(super) fn note_node(&mut self, node: usize, note: &'static str, number: u64) {
        self.trace.note(self.now, What::Node { node: node as u32 + 1, note, number });
    }
}

fn identity(node: usize, disk: u128) -> LogIdentity {
    LogIdentity { cluster: CLUSTER, node: node as u32 + 1, disk }
}

/// Turns.
impl<S: Subject> World<S> {
    /// Something was handed to a shard: it takes its turn as soon as its thread is free.
    pub(super) fn poke(&mut self, host: usize) {
        self.hosts[host].dirty = true;
        if self.now >= self.hosts[host].busy_until {
            self.wake(host);
        } else {
            self.schedule(host);
        }
    }

    /// What is due is done.
    pub(super) fn wake(&mut self, host: usize) {
        let node = self.node_of(host);
        if self.nodes[node].paused || self.hosts[host].shard.is_none() {
            return;
        }
        if self.now < self.hosts[host].busy_until {
            return self.schedule(host);
        }
        let local = self.local(node);
        let state = &mut self.hosts[host];
        let shard = state.shard.as_mut().expect("looked at");
        while let Some((op, result)) = state.disk.take_due(Tick(self.now)) {
            state.dirty = true;
            state.shadow.completed(op, result.is_ok());
            shard.disk_done(local, op, result);
        }
        if std::mem::take(&mut state.dirty) || shard.deadline(local) <= local {
            self.turn(host, local);
        }
        self.schedule(host);
    }

    /// One turn, as the runtime takes it.
    fn turn(&mut self, host: usize, local: Tick) {
        let node = self.node_of(host);
        self.stats.turns += 1;
        let state = &mut self.hosts[host];
        let shard = state.shard.as_mut().expect("up");
        if !state.serving && !shard.is_starting(local, &mut state.out) {
            state.serving = true;
            self.dial_all(host);
        }
        let state = &mut self.hosts[host];
        let shard = state.shard.as_mut().expect("up");
        shard.turn(local, &mut state.out);
        if let Some(error) = state.out.fatal.take() {
            return self.fatal(node, host, &error.to_string());
        }
        for op in &state.out.disk {
            if let Err(what) = state.shadow.issued(op) {
                let what = format!("n{} {what}", node + 1);
                return self.fail("the log writes what recovery can read", what);
            }
        }
        state.disk.issue(Tick(self.now), &mut state.out.disk);
        self.losses.append(&mut state.out.losses);
        for transition in state.out.transitions.drain(..) {
            let what = What::Role { node: node as u32 + 1, transition };
            self.trace.note(self.now, what);
        }
        self.note_losses(node);
        self.send_to_peers(host);
        let state = &mut self.hosts[host];
        state.shard.as_mut().expect("up").apply(local);
        self.send_to_clients(host);
        self.check(node, host);
        if self.nodes[node].record.as_ref().is_some_and(|record| record.recovering) {
            self.note_recovered(node);
        }
        let slow = self.nodes[node].slow_us;
        let took = self.node_rng.between(TURN_US.0, TURN_US.1 + slow);
        self.hosts[host].busy_until = self.now + took;
    }

    /// A possible loss is told of if, and only if, a majority may have forgotten.
    fn note_losses(&mut self, node: usize) {
        while let Some(loss) = self.losses.pop() {
            self.stats.losses += 1;
            self.oracle.note_loss(&loss);
            self.trace.note(self.now, What::Loss { node: node as u32 + 1, loss });
            let forgot = self.nodes.iter().filter(|node| node.forgot).count();
            if forgot <= self.nodes.len() / 2 {
                let what = format!("n{} {loss:?}, {forgot} nodes had forgotten", node + 1);
                self.fail("a loss is told of only where there can be one", what);
            }
        }
    }

    fn check(&mut self, node: usize, host: usize) {
        let state = &mut self.hosts[host];
        let shard = state.shard.as_ref().expect("up");
        for (view, seen) in shard.groups().zip(&mut state.seen) {
            match self.oracle.look(node, &view, seen) {
                Ok(false) => {}
                Ok(true) => {
                    let (group, index) = (view.raft().group(), view.raft().commit());
                    let term = view.raft().log().term_at(index).unwrap_or_default();
                    let node = node as u32 + 1;
                    self.trace.note(self.now, What::Commit { node, group, index, term });
                }
                Err((rule, what)) => {
                    let at = self.now;
                    let violation = super::oracle::Violation { rule, what, at };
                    self.violation.get_or_insert(violation);
                }
            }
        }
    }

    /// The queue gets an entry for when the shard is next to be called.
    pub(super) fn schedule(&mut self, host: usize) {
        let node = self.node_of(host);
        let state = &mut self.hosts[host];
        let Some(shard) = state.shard.as_ref().filter(|_| !self.nodes[node].paused) else { return };
        let clock = &self.nodes[node].clock;
        let mut at = state.disk.next_due().0;
        if state.dirty {
            at = self.now;
        } else if let Some(due) = clock.world(self.now, shard.deadline(clock.local(self.now))) {
            at = at.min(due);
        }
        let at = at.max(state.busy_until).max(self.now);
        if at < state.wake_at {
            state.wake_at = at;
            self.queue.push(at, Event::Host(host as u32));
        }
    }

    fn dial_all(&mut self, host: usize) {
        let node = self.node_of(host);
        for to in (0..self.nodes.len()).filter(|&to| to != node) {
            let link = self.link_at(host, to);
            self.dial_soon(link);
        }
    }

    fn send_to_clients(&mut self, host: usize) {
        let state = &mut self.hosts[host];
        let shard = state.shard.as_mut().expect("up");
        let mut dirty = std::mem::take(&mut state.dirty_clients);
        shard.take_dirty_clients(&mut dirty);
        for conn in dirty.drain(..) {
            let shard = self.hosts[host].shard.as_mut().expect("up");
            let Some(egress) = shard.client_egress(conn) else { continue };
            if !egress.is_empty() {
                let bytes = std::mem::take(egress).into();
                self.answer(conn, host, bytes);
            }
        }
        self.hosts[host].dirty_clients = dirty;
    }
}

/// Ends.
impl<S: Subject> World<S> {
    /// The shard says that its log has failed: the process ends, and is started again.
    fn fatal(&mut self, node: usize, host: usize, error: &str) {
        if !self.nodes[node].may_fail {
            let what = format!("n{} s{}: {error}", node + 1, host as u32 % self.shape.shards);
            return self.fail("a log fails only where its disk did", what);
        }
        self.note_node(node, "stops: its log has failed; incarnation", self.incarnation(node));
        self.end_process(node, true);
        self.hosts_of(node).for_each(|host| self.hosts[host].disk.kill());
        if self.nodes[node].holds == 0 {
            let wait = self.node_rng.between(50_000, 500_000);
            self.start_in(node, wait);
        }
    }

    pub(super) fn incarnation(&self, node: usize) -> u64 {
        u64::from(self.nodes[node].incarnation)
    }

    /// kill -9. `false`: nothing was running.
    pub(super) fn kill(&mut self, node: usize) -> bool {
        if !self.nodes[node].up {
            return false;
        }
        self.note_node(node, "killed in incarnation", self.incarnation(node));
        self.stats.kills += 1;
        self.end_process(node, true);
        self.hosts_of(node).for_each(|host| self.hosts[host].disk.kill());
        true
    }

    /// The machine loses power, whether or not a process runs on it.
    pub(super) fn cut_power(&mut self, node: usize) {
        self.note_node(node, "loses power in incarnation", self.incarnation(node));
        self.stats.power_losses += 1;
        let survival = [Survival::None, Survival::Half, Survival::All, Survival::Mixed];
        let survival = survival[self.fault_rng.below(4) as usize];
        if self.nodes[node].up {
            self.end_process(node, false);
        }
        for host in self.hosts_of(node) {
            let cut = self.hosts[host].disk.power_cut(survival);
            self.stats.lost_sectors += cut.lost_sectors;
        }
        self.nodes[node].boot.power_cut(survival, &mut self.fault_rng);
        self.nodes[node].machine += 1;
        self.nodes[node].forgot |= !self.shape.all_sync();
    }

    fn end_process(&mut self, node: usize, at_once: bool) {
        let state = &mut self.nodes[node];
        (state.up, state.paused) = (false, false);
        state.attempt += 1;
        state.backlog.clear();
        for host in self.hosts_of(node) {
            let state = &mut self.hosts[host];
            state.shard = None;
            (state.serving, state.dirty, state.wake_at) = (false, false, u64::MAX);
            state.busy_until = 0;
        }
        self.unplug(node, at_once);
        let (hosts, nodes) = (self.hosts.len(), self.nodes.len());
        self.clients.iter_mut().for_each(|client| client.forget_node(hosts, node, nodes));
    }

    pub(super) fn pause(&mut self, node: usize) {
        self.nodes[node].paused = true;
        self.note_node(node, "is paused in incarnation", self.incarnation(node));
    }

    pub(super) fn resume(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].paused, false) {
            return;
        }
        self.note_node(node, "goes on in incarnation", self.incarnation(node));
        for packet in std::mem::take(&mut self.nodes[node].backlog) {
            self.deliver(packet);
        }
        for host in self.hosts_of(node) {
            self.poke(host);
        }
    }

    /// One group on one node; `None` while the node is down.
    pub(super) fn view(
        &self,
        node: usize,
        group: usize,
    ) -> Option<GroupView<'_, Observed<S::Machine>>> {
        let shards = self.shape.shards as usize;
        let host = &self.hosts[node * shards + group % shards];
        host.shard.as_ref()?.group(GroupId(group as u32))
    }
}
