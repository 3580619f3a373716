//! Faults take place: how each kind of the plan begins and ends.
//!
//! A fault stays within what durability.md promises to bear. Where it would not (too many nodes
//! without power, a node that is down already) it becomes a smaller one or does not take place.

use super::clock::RATE_TRUE;
use super::disk::{BootFile, Disk, OpClass, Times};
use super::nemesis::{Fault, Kind};
use super::network::node_id;
use super::node::wal_config;
use super::queue::Event;
use super::shadow::Shadow;
use super::subject::Subject;
use super::trace::What;
use super::world::World;
use crate::ids::{Lsn, Tick};
use crate::machine::hash::mix;
use crate::wal::recover_from;

/// What nobody would feel now is tried again after this long, microseconds.
const TRY_AGAIN_US: (u64, u64) = (10_000, 60_000);
/// How often a node that stops is looked at, microseconds.
const STOP_US: u64 = 5_000;

impl<S: Subject> World<S> {
    pub(super) fn on_fault(&mut self, at: usize) {
        if self.healed_at.is_some() {
            return;
        }
        let waited = std::mem::replace(&mut self.waiting[at], true);
        // What had to wait lasts as long as if it had not.
        self.shape.plan[at].at = self.now;
        let fault = self.shape.plan[at];
        self.hash = mix(self.hash, self.now << 8 | 2);
        if self.is_felt(&fault) && self.begin_fault(&fault, at) {
            self.note_fault(&fault, "begins");
            self.stats.faults += 1;
            self.queue.push(self.now + fault.lasts, Event::End(at as u32));
            return;
        }
        if !waited {
            self.note_fault(&fault, "not now");
        }
        let wait = self.fault_rng.between(TRY_AGAIN_US.0, TRY_AGAIN_US.1);
        self.queue.push(self.now + wait, Event::Begin(at as u32));
    }

    /// Whether there is anybody whom it hits: a fault that nobody feels is none.
    fn is_felt(&self, fault: &Fault) -> bool {
        let up = |node: usize| self.nodes[node].up;
        let mut pairs = self.pairs(fault).into_iter();
        match fault.kind.group() {
            // A machine without a process can still lose power.
            "node" => matches!(fault.kind, Kind::Power | Kind::Blackout) || up(fault.node),
            "disk" => up(fault.node),
            _ if fault.kind == Kind::Reset => pairs.any(|(from, to)| {
                self.hosts_of(from).any(|host| self.links[self.link_at(host, to)].up)
            }),
            _ => pairs.any(|(from, to)| {
                let whole = self.wires[from * self.nodes.len() + to].cuts == 0;
                up(from) && up(to) && whole
            }),
        }
    }

    fn note_fault(&mut self, fault: &Fault, note: &'static str) {
        let (number, kind) = (fault.number, fault.kind.name());
        let (node, other) = (fault.node as u32 + 1, fault.other as u32 + 1);
        self.trace.note(self.now, What::Fault { number, kind, node, other, note });
    }

    fn begin_fault(&mut self, fault: &Fault, at: usize) -> bool {
        let (node, amount) = (fault.node, fault.amount);
        match fault.kind {
            Kind::Members | Kind::Groups => return false,
            Kind::Kill => return self.kill_for_a_while(node),
            Kind::Power => return self.lose_power(node),
            Kind::Blackout => return self.black_out(at),
            Kind::Shards => {
                let killed = self.kill_for_a_while(node);
                self.nodes[node].wrong_shards |= u32::from(killed);
                return killed;
            }
            Kind::Wipe => return self.wipe(node),
            Kind::Pause => {
                if !self.nodes[node].up || self.nodes[node].paused {
                    return false;
                }
                self.pause(node);
            }
            Kind::Clock => self.disturb_clock(node, amount),
            Kind::Transfer => return self.transfer(node, fault.other, amount),
            Kind::Slow => self.nodes[node].slow_us = 1000 + amount % 20_000,
            Kind::Partition | Kind::OneWay | Kind::Bridge | Kind::Flap => {
                self.cut(fault, amount >> 40 & 1 == 1);
                if fault.kind == Kind::Flap {
                    self.flapping.insert(fault.number);
                    self.queue.push(self.now + 20_000, Event::Again(at as u32));
                }
            }
            Kind::Reset => {
                for (from, to) in self.pairs(fault) {
                    self.reset_links(from, to);
                }
            }
            Kind::Loss
            | Kind::Duplicate
            | Kind::Reorder
            | Kind::Replay
            | Kind::Delay
            | Kind::Narrow
            | Kind::Stuck => self.set_wires(fault, true),
            Kind::Latency | Kind::Stall | Kind::Full | Kind::Io => {
                self.disturb_disks(fault);
            }
            Kind::Rot => return self.rot(fault),
            Kind::Misdirect => return self.misdirect(fault),
            Kind::Stop => {
                if !self.nodes[node].up || self.nodes[node].paused || self.nodes[node].is_stopping {
                    return false;
                }
                self.stop(node);
                self.nodes[node].holds += 1;
                self.queue.push(self.now + STOP_US, Event::Again(at as u32));
            }
        }
        true
    }

    pub(super) fn on_fault_end(&mut self, at: usize) {
        if self.healed_at.is_some() {
            return;
        }
        let fault = self.shape.plan[at];
        self.note_fault(&fault, "ends");
        let node = fault.node;
        match fault.kind {
            Kind::Kill | Kind::Power | Kind::Shards | Kind::Wipe | Kind::Rot => self.release(node),
            Kind::Stop => {
                // It takes too long: whoever stops it loses patience.
                if self.nodes[node].is_stopping {
                    self.kill(node);
                }
                self.release(node);
            }
            Kind::Blackout => self.end_blackout(&fault),
            Kind::Pause => self.resume(node),
            Kind::Clock => self.set_rate(node, RATE_TRUE),
            Kind::Slow => self.nodes[node].slow_us = 0,
            Kind::Partition | Kind::OneWay | Kind::Bridge => self.join(&fault),
            Kind::Flap => {
                if self.flapping.remove(&fault.number) {
                    self.join(&fault);
                }
            }
            Kind::Loss
            | Kind::Duplicate
            | Kind::Reorder
            | Kind::Replay
            | Kind::Delay
            | Kind::Narrow
            | Kind::Stuck => self.set_wires(&fault, false),
            Kind::Latency | Kind::Full | Kind::Io => self.calm_disks(&fault),
            Kind::Stall | Kind::Reset | Kind::Misdirect => {}
            Kind::Transfer | Kind::Members | Kind::Groups => {}
        }
    }

    /// Everything that was wrong with a node is right again.
    pub(super) fn heal_node(&mut self, node: usize) {
        self.nodes[node].holds = 0;
        self.nodes[node].slow_us = 0;
        self.set_rate(node, RATE_TRUE);
        let latency = self.shape.disk_us;
        for host in self.hosts_of(node) {
            let disk = &mut self.hosts[host].disk;
            disk.heal();
            disk.set_latency(latency.0, latency.1);
        }
        // What has failed and was not heard of yet, and damage that no start has found, are left.
        let mut hosts = self.hosts[self.hosts_of(node)].iter();
        let failing = hosts.any(|host| host.disk.is_failing());
        let state = &mut self.nodes[node];
        state.may_fail &= failing || state.may_rot || !state.up;
        self.resume(node);
        if self.nodes[node].is_stopping {
            self.kill(node);
        }
        if self.nodes[node].up {
            self.hosts_of(node).for_each(|host| self.poke(host));
        } else {
            self.start_in(node, 1000);
        }
    }
}

/// Nodes.
impl<S: Subject> World<S> {
    fn kill_for_a_while(&mut self, node: usize) -> bool {
        let killed = self.kill(node);
        if killed {
            self.nodes[node].holds += 1;
        }
        killed
    }

    /// Without `wal_sync` only a minority may be without its unsynced bytes at a time, but in runs
    /// that are about more.
    fn lose_power(&mut self, node: usize) -> bool {
        if self.options.lying_disks {
            return self.lose_all_power();
        }
        let state = &self.nodes[node];
        // Damage to the last durable bytes, and then the loss of the unsynced ones that name them as
        // durable, before a start has read both: no log can tell that from a torn tail
        // (durability.md §5).
        let mut hosts = self.hosts[self.hosts_of(node)].iter();
        let is_rotting = state.may_rot && hosts.any(|host| host.shard.is_none());
        if state.is_dark || is_rotting {
            return false;
        }
        let promised = self.shape.all_sync() || self.shape.majority || self.may_forget(node);
        if !promised {
            return self.kill_for_a_while(node);
        }
        self.cut_power(node);
        self.nodes[node].holds += 1;
        true
    }

    /// The control: the lights go out everywhere, and what no disk had really synced is gone.
    fn lose_all_power(&mut self) -> bool {
        for node in 0..self.nodes.len() {
            self.cut_power(node);
            let wait = self.fault_rng.between(1_000, 50_000);
            self.start_in(node, wait);
        }
        true
    }

    /// What kept the node down is over.
    pub(super) fn release(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        state.holds = state.holds.saturating_sub(1);
        if state.holds == 0 && !state.up {
            self.start_in(node, 0);
        }
    }

    /// The directory is lost. At most one node of a run, and only while those that are left can
    /// still be a majority; and only one that all others know, or they would take it for new.
    fn wipe(&mut self, node: usize) -> bool {
        let known =
            (0..self.nodes.len()).all(|i| i == node || self.nodes[i].has_pinned(node_id(node)));
        let already = self.nodes.iter().any(|node| node.is_stranger || node.is_misdirected);
        let known = known && self.may_forget(node) && !self.shape.majority;
        let already = already || self.founds_alone(node);
        if already || !known || !self.kill_for_a_while(node) {
            return false;
        }
        self.lose_directory(node);
        true
    }

    /// A new disk in an empty machine.
    fn lose_directory(&mut self, node: usize) {
        self.note_node(node, "has lost its directory of incarnation", self.incarnation(node));
        let disk_id = u128::from(self.fault_rng.next());
        let state = &mut self.nodes[node];
        (state.is_stranger, state.disk_id, state.incarnation) = (true, disk_id, 0);
        state.forgot = true;
        (state.may_fail, state.may_rot) = (false, false);
        state.boot = BootFile::new();
        (state.record, state.found_rot) = (None, false);
        for host in self.hosts_of(node) {
            let config = wal_config(&self.shape, host as u32 % self.shape.shards);
            self.hosts[host].disk = Disk::new(config, self.fault_rng.next());
            self.hosts[host].shadow = Shadow::new(config);
        }
        self.oracle.forget(node);
        self.forget_ends(node);
    }

    /// A node that is starting turns out to have a disk that cannot be trusted.
    pub(super) fn replace_directory(&mut self, node: usize) {
        self.kill(node);
        self.lose_directory(node);
        if self.nodes[node].holds == 0 {
            self.start_in(node, 1000);
        }
    }

    /// Whatever the node leads is to go to another one.
    fn transfer(&mut self, node: usize, other: usize, amount: u64) -> bool {
        let (to, local) = (node_id(other), self.local(node));
        let mut begun = 0;
        for host in self.hosts_of(node) {
            let serving = self.hosts[host].serving && !self.nodes[node].paused;
            let Some(shard) = self.hosts[host].shard.as_mut().filter(|_| serving) else { continue };
            let groups: Vec<_> = shard.groups().map(|view| view.raft().group()).collect();
            // Sometimes all at once, sometimes one.
            let one = amount as usize % groups.len();
            let all = amount >> 32 & 1 == 1;
            for (i, group) in groups.into_iter().enumerate() {
                begun += u64::from((all || i == one) && shard.transfer(local, group, to).is_ok());
            }
            self.poke(host);
        }
        self.stats.transfers += begun;
        begun > 0
    }

    fn disturb_clock(&mut self, node: usize, amount: u64) {
        if self.shape.lease_reads {
            // The fastest gains less than 20 % on the slowest, and none jumps: that is the bound.
            self.set_rate(node, 915_000 + amount % 180_001);
        } else if amount.is_multiple_of(3) {
            let by = 1000 + amount / 3 % 2_000_000;
            self.nodes[node].clock.jump(self.now, by);
            self.hosts_of(node).for_each(|host| self.schedule(host));
        } else {
            self.set_rate(node, 900_000 + amount % 200_001);
        }
    }

    fn set_rate(&mut self, node: usize, rate: u64) {
        self.nodes[node].clock.set_rate(self.now, rate);
        self.hosts_of(node).for_each(|host| self.schedule(host));
    }
}

/// Wires.
impl<S: Subject> World<S> {
    /// The directed pairs of nodes that a fault of the network is about.
    fn pairs(&self, fault: &Fault) -> Vec<(usize, usize)> {
        let n = self.nodes.len();
        let Fault { node, other, amount, .. } = *fault;
        let all = (0..n).flat_map(|a| (0..n).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let side = |i: usize| amount >> i & 1;
        let mixed = (1..n).any(|i| side(i) != side(0));
        let between: Box<dyn Fn(usize, usize) -> bool> = match fault.kind {
            Kind::Partition if mixed => Box::new(|a, b| side(a) != side(b)),
            Kind::Partition => Box::new(|a, b| a == node || b == node),
            Kind::Bridge => {
                // Of those that are left, every other one stands on the other side.
                let side = move |i: usize| (i - usize::from(i > node)) % 2;
                Box::new(move |a, b| a != node && b != node && side(a) != side(b))
            }
            Kind::OneWay => Box::new(|a, b| (a, b) == (node, other)),
            Kind::Flap | Kind::Stuck => {
                Box::new(|a, b| (a, b) == (node, other) || (b, a) == (node, other))
            }
            _ if amount >> 41 & 1 == 1 => Box::new(|_, _| true),
            _ => Box::new(|a, b| a == node || b == node),
        };
        all.filter(|&(a, b)| between(a, b)).collect()
    }

    fn reset_links(&mut self, from: usize, to: usize) {
        for host in self.hosts_of(from) {
            let link = self.link_at(host, to);
            self.reset(link);
        }
    }

    fn cut(&mut self, fault: &Fault, reset: bool) {
        for (from, to) in self.pairs(fault) {
            self.wire(from, to).cuts += 1;
            if reset {
                self.reset_links(from, to);
            }
        }
    }

    fn join(&mut self, fault: &Fault) {
        for (from, to) in self.pairs(fault) {
            let wire = self.wire(from, to);
            wire.cuts = wire.cuts.saturating_sub(1);
        }
    }

    pub(super) fn on_fault_again(&mut self, at: usize) {
        let fault = self.shape.plan[at];
        if self.healed_at.is_some() || self.now >= fault.at + fault.lasts {
            return;
        }
        if fault.kind == Kind::Stop {
            if self.nodes[fault.node].is_stopping && !self.finish_stop(fault.node) {
                self.queue.push(self.now + STOP_US, Event::Again(at as u32));
            }
            return;
        }
        if self.flapping.remove(&fault.number) {
            self.join(&fault);
        } else {
            self.flapping.insert(fault.number);
            self.cut(&fault, fault.amount >> 42 & 1 == 1);
        }
        self.queue.push(self.now + flap_period(&fault), Event::Again(at as u32));
    }

    fn set_wires(&mut self, fault: &Fault, on: bool) {
        let amount = fault.amount;
        for (from, to) in self.pairs(fault) {
            let wire = self.wire(from, to);
            let or_none = |value: u64| if on { value } else { 0 };
            match fault.kind {
                Kind::Loss => wire.loss = or_none(1 + amount % 30),
                Kind::Duplicate => wire.duplicate = or_none(1 + amount % 50),
                Kind::Reorder => wire.reorder = or_none(1 + amount % 50),
                Kind::Replay => wire.replay = or_none(1 + amount % 20),
                Kind::Delay => wire.delay = or_none(1000 + amount % 100_000),
                Kind::Narrow => wire.bandwidth = or_none(10_000 + amount % 500_000),
                Kind::Stuck if on => wire.stuck += 1,
                Kind::Stuck => wire.stuck = wire.stuck.saturating_sub(1),
                _ => {}
            }
        }
    }
}

fn flap_period(fault: &Fault) -> u64 {
    20_000 + fault.amount % 80_000
}

/// Disks.
impl<S: Subject> World<S> {
    /// The hosts whose disk a fault is about: one of the node's, or all of them.
    fn disks(&self, fault: &Fault) -> std::ops::Range<usize> {
        let hosts = self.hosts_of(fault.node);
        if fault.amount >> 43 & 1 == 1 {
            return hosts;
        }
        let one = hosts.start + (fault.amount >> 32) as usize % hosts.len();
        one..one + 1
    }

    fn disturb_disks(&mut self, fault: &Fault) {
        let amount = fault.amount;
        for host in self.disks(fault) {
            let disk = &mut self.hosts[host].disk;
            match fault.kind {
                Kind::Latency => disk.set_spikes(50 + amount % 500, 2_000 + amount % 200_000),
                Kind::Stall if amount.is_multiple_of(3) => {
                    disk.stall_syncs_until(Tick(self.now + fault.lasts));
                }
                Kind::Stall => disk.stall_until(Tick(self.now + fault.lasts)),
                Kind::Full => {
                    disk.fill(true);
                    if amount.is_multiple_of(4) {
                        disk.fill_writes(true);
                        self.nodes[fault.node].may_fail = true;
                    }
                }
                Kind::Io => {
                    let (class, times) = failure(amount);
                    disk.fail(class, times);
                    self.nodes[fault.node].may_fail = true;
                }
                _ => {}
            }
        }
    }

    fn calm_disks(&mut self, fault: &Fault) {
        for host in self.disks(fault) {
            let disk = &mut self.hosts[host].disk;
            match fault.kind {
                Kind::Latency => disk.set_spikes(0, 0),
                Kind::Full => {
                    disk.fill(false);
                    disk.fill_writes(false);
                }
                Kind::Io => disk.fail(failure(fault.amount).0, Times::Never),
                _ => {}
            }
        }
    }
}

/// Damage.
impl<S: Subject> World<S> {
    /// The node is killed, and while it is down bits flip in what its log knows to be durable.
    fn rot(&mut self, fault: &Fault) -> bool {
        let node = fault.node;
        // One that is alone goes on without it, by an operator's word.
        let borne = self.nodes.len() == 1 || self.may_forget(node);
        if self.shape.majority || !borne || !self.kill_for_a_while(node) {
            return false;
        }
        let host = self.disks(fault).start;
        let snapshot = self.fault_rng.chance(40);
        if snapshot && self.hosts[host].disk.rot_snapshot(&mut self.fault_rng).is_some() {
            self.stats.rotten += 1;
            let state = &mut self.nodes[node];
            (state.may_rot, state.may_fail, state.forgot) = (true, true, true);
            return true;
        }
        let known = self.durable_by_its_own_word(host);
        let disk = &mut self.hosts[host].disk;
        if known.is_some_and(|end| disk.rot_below(end, &mut self.fault_rng).is_some()) {
            self.stats.rotten += 1;
            let state = &mut self.nodes[node];
            (state.may_rot, state.may_fail, state.forgot) = (true, true, true);
        }
        true
    }

    /// The position that the next start will know to have been durable.
    fn durable_by_its_own_word(&mut self, host: usize) -> Option<Lsn> {
        let node = self.node_of(host);
        let shard = host as u32 % self.shape.shards;
        let config = wal_config(&self.shape, shard);
        let (mine, mark) = (self.identity(node), self.nodes[node].mark(shard));
        let source = &mut self.hosts[host].disk.source();
        recover_from(config, mine, source, mark).ok().map(|found| found.durable)
    }

    /// The next write goes astray. If nothing shows it at the next start the disk counts as lost:
    /// that has to be borne as well.
    fn misdirect(&mut self, fault: &Fault) -> bool {
        let (node, nodes) = (fault.node, &self.nodes);
        let known = (0..nodes.len()).all(|i| i == node || nodes[i].has_pinned(node_id(node)));
        let already = nodes.iter().any(|node| node.is_stranger || node.is_misdirected);
        let already = already || self.founds_alone(node);
        let up = nodes[node].up;
        if already || !known || self.shape.majority || !up || !self.may_forget(node) {
            return false;
        }
        let host = self.disks(fault).start;
        self.hosts[host].disk.misdirect_next_write();
        self.stats.rotten += 1;
        let state = &mut self.nodes[node];
        (state.may_rot, state.may_fail, state.forgot) = (true, true, true);
        state.is_misdirected = true;
        true
    }
}

fn failure(amount: u64) -> (OpClass, Times) {
    let classes = [
        OpClass::Write,
        OpClass::Write,
        OpClass::Sync,
        OpClass::Read,
        OpClass::Prepare,
        OpClass::File,
        OpClass::ReadFile,
    ];
    let times = if amount >> 8 & 1 == 1 { Times::Once } else { Times::ForGood };
    (classes[(amount >> 16) as usize % classes.len()], times)
}
