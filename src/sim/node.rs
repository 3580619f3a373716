//! Nodes: how they take their turns and end. How they start is told in [`super::start`].

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
use crate::machine::StateMachine;
use crate::raft;
use crate::shard::sessions::SessionLimits;
use crate::shard::snapshots::{FileName, FileOp};
use crate::shard::{GroupView, Output, Shard, ShardConfig};
use crate::wal::{BootRecord, BootState, Suspect, WalConfig};

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
    /// It has lost power and was not started since.
    pub is_dark: bool,
    /// Counts starts and ends; an event that carries an older number is void.
    pub attempt: u32,
    pub paused: bool,
    /// What arrived while it was paused.
    pub(super) backlog: Vec<Packet>,
    /// Faults that keep it down or paused now.
    pub holds: u32,
    /// Turns take this much longer, microseconds.
    pub slow_us: u64,
    /// Its directory was lost: the others refuse it as the node it was.
    pub is_stranger: bool,
    /// The next start is tried with this many shards more.
    pub wrong_shards: u32,
    /// An error of the disk may stop the process: a fault was put there, and no start since then has
    /// found the disk well.
    pub may_fail: bool,
    /// Synced bytes were damaged or landed elsewhere, and no start since then has found all whole.
    pub may_rot: bool,
    /// Counts against what the protocol promises to bear: its memory may have gaps, and the boot
    /// record does not say yet that they are filled.
    pub forgot: bool,
    /// A write went astray: if nothing shows it, the disk is replaced.
    pub is_misdirected: bool,
    /// Snapshots that a start found damaged. They are removed, but a loss of power may bring a name
    /// back that was removed a moment ago.
    pub damaged_snapshots: Vec<FileName>,
    /// Damage was found at this start, and is not in the boot record yet.
    pub found_rot: bool,
    /// The recovery epoch that an operator has begun with this start; 0 = none.
    pub accepted: u32,
    /// The boot record as written last.
    pub record: Option<BootRecord>,
    /// It is being stopped in good order.
    pub is_stopping: bool,
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
    pub dirty: bool,
    /// By client: the connection that is open.
    pub conns: Vec<u32>,
    /// By group of this shard.
    pub seen: Vec<Seen>,
    dirty_clients: Vec<u64>,
}

impl Node {
    pub fn new(node: usize, base: &Rng) -> Self {
        let mut rng = base.fork(1000 + node as u64);
        Self {
            clock: Clock::new(1 + rng.below(1_000_000)),
            boot: BootFile::new(),
            machine: u128::from(rng.next()),
            disk_id: u128::from(rng.next()) << 1 | 1,
            incarnation: 0,
            up: false,
            is_dark: false,
            attempt: 0,
            paused: false,
            backlog: Vec::new(),
            holds: 0,
            slow_us: 0,
            is_stranger: false,
            wrong_shards: 0,
            may_fail: false,
            may_rot: false,
            forgot: false,
            is_misdirected: false,
            damaged_snapshots: Vec::new(),
            found_rot: false,
            accepted: 0,
            record: None,
            is_stopping: false,
        }
    }
}

impl Node {
    /// The boot record says that groups may be RECOVERING.
    pub fn is_recovering(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.recovering > Suspect::Nothing)
    }

    /// What it is known to have forgotten, or may turn out to have.
    pub fn has_gaps(&self) -> bool {
        self.is_recovering() || self.is_stranger || self.is_misdirected
    }

    /// Writes the boot record with a change; it is not synced yet.
    pub fn rewrite(&mut self, change: impl FnOnce(&mut BootRecord)) {
        let Some(record) = &mut self.record else { return };
        *record = record.next_write();
        change(record);
        let (slot, bytes) = record.encode().expect("a few shards");
        self.boot.write(slot, &bytes);
    }

    /// Whether another node may come with this disk: the first one is noted, durably (bug 31).
    pub fn pin(&mut self, node: NodeId, disk: u128) -> bool {
        let pinned = self.record.as_ref().and_then(|record| record.clone().pin_disk(node, disk));
        if pinned == Some(true) {
            self.rewrite(|record| record.pin_disk(node, disk).map_or((), |_| ()));
            self.boot.sync();
        }
        pinned.is_some()
    }

    /// Whether it would know the other one's disk from another.
    pub fn has_pinned(&self, node: NodeId) -> bool {
        let voters = self.record.iter().flat_map(|record| &record.voters);
        voters.into_iter().any(|known| known.node == node && known.disk.is_some())
    }

    /// How far the boot record knows a shard's log to have been durable.
    pub fn mark(&self, shard: u32) -> Lsn {
        let marks = self.record.as_ref().map(|record| &record.durable);
        marks.and_then(|marks| marks.get(shard as usize).copied()).unwrap_or(Lsn::ZERO)
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
        sync_lag_bytes: SYNC_LAG_BYTES,
        staged_bytes_max: STAGED_MAX,
        ..WalConfig::default()
    }
}

/// Written and unsynced bytes from which on a log syncs without being asked to.
pub(super) const SYNC_LAG_BYTES: u64 = 16 << 10;
/// The largest number of bytes that a leader takes on beyond its commit index.
pub(super) const UNCOMMITTED_MAX: u64 = 6 << 10;
/// Bytes of blocks to one follower that wait for their answer.
const INFLIGHT_MAX: u64 = 16 << 10;
/// The largest block.
pub(super) const BLOCK_MAX: u32 = 4 << 10;
/// Bytes that wait for one peer's socket, from which on appends are held back.
pub(super) const PEER_EGRESS_MAX: usize = 2 << 10;
/// Blocks of one connection that may wait for their answer.
pub(super) const CLIENT_BLOCKS_MAX: u32 = 1024;
/// Bytes that wait for the log.
pub(super) const STAGED_MAX: u64 = 128 << 10;

pub(super) fn shard_config(
    shape: &Shape,
    node: usize,
    incarnation: Incarnation,
    shard: u32,
    suspect: Suspect,
) -> ShardConfig {
    let id = NodeId(node as u32 + 1);
    // Spare nodes wait to be taken in.
    let first: Vec<_> = (1..=shape.voters).map(NodeId).collect();
    let voters = if id.0 <= shape.voters { first } else { Vec::new() };
    let mut raft = raft::Config::new(id, GroupId(0), voters.clone(), incarnation);
    raft.cache_bytes_max = shape.cache_bytes;
    raft.inflight_count_max = shape.inflight;
    raft.inflight_bytes_max = INFLIGHT_MAX;
    raft.uncommitted_bytes_max = UNCOMMITTED_MAX;
    raft.hibernate_after_us = shape.hibernate_us;
    raft.lease_reads = shape.lease_reads;
    ShardConfig {
        node: id,
        incarnation,
        voters,
        peers: (1..=shape.nodes).map(NodeId).collect(),
        shard,
        shards: shape.shards,
        groups: shape.groups,
        groups_max: shape.groups_all,
        wal_sync: shape.wal_sync,
        wal_sync_except: shape.wal_sync_except.clone(),
        suspect,
        sessions: session_limits(shape),
        snapshots: shape.snapshots,
        raft,
        block_bytes_max: BLOCK_MAX,
        apply_bytes_per_turn: shape.apply_bytes,
        peer_egress_bytes_max: PEER_EGRESS_MAX,
        client_egress_bytes_max: 256 << 10,
        client_blocks_max: CLIENT_BLOCKS_MAX,
        leaders: shape.leaders.clone(),
    }
}

/// What a group's table of sessions may hold.
pub(super) fn session_limits(shape: &Shape) -> SessionLimits {
    let (sessions_max, idle_us) = (shape.sessions_max, shape.session_idle_us);
    SessionLimits { sessions_max, idle_us, ..SessionLimits::default() }
}

/// R8: what a node publishes of its own is durable in its log.
fn published<M: StateMachine>(host: &Host<M>) -> Result<(), String> {
    let shard = host.shard.as_ref().expect("it has just had its turn");
    for op in &host.out.files {
        let &FileOp::Publish { from: FileName::Making(group), to, .. } = op else { continue };
        let FileName::Snapshot(_, index) = to else { continue };
        // Its group may have ended since; then the file goes again.
        let Some(view) = shard.group(group) else { continue };
        let log = view.raft().log();
        let Some(term) = log.term_at(index) else { continue };
        if !host.shadow.is_durable(group, index, term) {
            return Err(format!("{to} while the log is durable to {}", host.shadow.durable()));
        }
    }
    Ok(())
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
        while let Some((op, result)) = state.disk.take_due_file(Tick(self.now)) {
            state.dirty = true;
            shard.file_done(local, op, result);
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
        if let Err(what) = published(state) {
            return self.fail("a snapshot is published behind the durable log", what);
        }
        let state = &mut self.hosts[host];
        state.disk.issue_files(Tick(self.now), &mut state.out.files);
        self.losses.append(&mut state.out.losses);
        // Every node is linked with every other one: who was taken out may still talk.
        state.out.links.clear();
        for transition in state.out.transitions.drain(..) {
            self.stats.parted += u64::from(transition.reason == raft::PARTED);
            let what = What::Role { node: node as u32 + 1, transition };
            self.trace.note(self.now, what);
        }
        self.note_losses(node);
        self.send_to_peers(host);
        let state = &mut self.hosts[host];
        state.shard.as_mut().expect("up").apply(local);
        self.send_to_clients(host);
        self.check(node, host);
        if self.nodes[node].is_recovering() {
            self.note_recovered(node);
        }
        let slow = self.nodes[node].slow_us;
        let took = self.node_rng.between(TURN_US.0, TURN_US.1 + slow);
        self.hosts[host].busy_until = self.now + took;
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
    pub(super) fn fatal(&mut self, node: usize, host: usize, error: &str) {
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
        let survival = [Survival::None, Survival::Half, Survival::All, Survival::Mixed];
        let survival = match self.options.lying_disks {
            true => Survival::None,
            false => survival[self.fault_rng.below(4) as usize],
        };
        self.cut_power_leaving(node, survival);
    }

    /// The same, and so much of what was not synced stays.
    pub(super) fn cut_power_leaving(&mut self, node: usize, survival: Survival) {
        self.note_node(node, "loses power in incarnation", self.incarnation(node));
        let was_dark = std::mem::replace(&mut self.nodes[node].is_dark, true);
        self.stats.power_losses += u64::from(!was_dark);
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

    /// SIGTERM: no new proposals; what is under way is finished and synced.
    pub(super) fn stop(&mut self, node: usize) {
        self.nodes[node].is_stopping = true;
        self.note_node(node, "is told to stop in incarnation", self.incarnation(node));
        for host in self.hosts_of(node) {
            if let Some(shard) = self.hosts[host].shard.as_mut() {
                shard.drain();
                self.poke(host);
            }
        }
    }

    /// Ends the process if all is quiet, and records the clean end. `false`: not yet.
    pub(super) fn finish_stop(&mut self, node: usize) -> bool {
        let hosts = &self.hosts[self.hosts_of(node)];
        let quiet = |host: &Host<S::Machine>| host.shard.as_ref().is_some_and(Shard::is_quiet);
        if !hosts.iter().all(|host| host.serving && quiet(host)) {
            return false;
        }
        let marks = hosts.iter().filter_map(|host| host.shard.as_ref());
        let marks = marks.map(|shard| shard.wal().durable()).collect();
        self.note_node(node, "stops in good order in incarnation", self.incarnation(node));
        self.end_process(node, true);
        self.hosts_of(node).for_each(|host| self.hosts[host].disk.kill());
        let state = &mut self.nodes[node];
        state.rewrite(|record| (record.durable, record.state) = (marks, BootState::Clean));
        state.boot.sync();
        self.stats.stops += 1;
        true
    }

    fn end_process(&mut self, node: usize, at_once: bool) {
        let state = &mut self.nodes[node];
        (state.up, state.paused, state.is_stopping) = (false, false, false);
        state.attempt += 1;
        state.backlog.clear();
        for host in self.hosts_of(node) {
            self.count_snapshots(host);
            let state = &mut self.hosts[host];
            state.shard = None;
            (state.serving, state.dirty, state.wake_at) = (false, false, u64::MAX);
            state.busy_until = 0;
        }
        self.unplug(node, at_once);
        let (hosts, nodes) = (self.hosts.len(), self.nodes.len());
        self.clients.iter_mut().for_each(|client| client.forget_node(hosts, node, nodes));
    }

    pub(super) fn count_snapshots(&mut self, host: usize) {
        let Some(shard) = &self.hosts[host].shard else { return };
        let snapshots = shard.snapshot_stats();
        self.stats.snapshots += snapshots.taken;
        self.stats.installs += snapshots.installed;
        self.stats.resumes += snapshots.resumed;
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
