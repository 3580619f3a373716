//! How a node starts: boot record, logs, shards, and its way out of RECOVERING.

use std::collections::BTreeMap;

use super::network::node_id;
use super::node::{Host, session_limits, shard_config, wal_config};
use super::oracle::Seen;
use super::queue::Event;
use super::subject::{Observed, Subject};
use super::trace::What;
use super::world::World;
use crate::ids::{GroupId, Incarnation, NodeId};
use crate::shard::forced::{begin_anew, known_epoch};
use crate::shard::snapshots::Found;
use crate::shard::snapshots::gather::{Gathered, Gathering};
use crate::shard::snapshots::start::{Start, log_starts};
use crate::shard::{Output, Recovered, Shard};
use crate::wal::Recovered as FoundLog;
use crate::wal::{
    BootError, BootRecord, LogIdentity, Opening, Suspect, Verdict, Wal, recover_from,
};

/// The cluster's id.
const CLUSTER: u128 = 7;

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
        state.is_dark = false;
        let previous = match BootRecord::decode(state.boot.bytes()) {
            Ok(previous) => previous,
            Err(error) => {
                let what = format!("n{}: {error}", node + 1);
                return self.fail("a torn boot record leaves the other slot", what);
            }
        };
        // An empty directory would be made with the wrong number, and keep to it.
        let wrong = std::mem::take(&mut state.wrong_shards);
        let shards = self.shape.shards + if previous.is_some() { wrong } else { 0 };
        state.disk_id = previous.as_ref().map_or(state.disk_id, |last| last.identity.disk);
        let opening = Opening {
            identity: identity(node, state.disk_id),
            boot: state.machine,
            shards,
            voters: (1..=self.shape.nodes).map(NodeId).collect(),
            others: Vec::new(),
            unsynced: u64::from(!self.shape.all_sync()),
        };
        let (record, verdict) = match BootRecord::open(previous.as_ref(), &opening) {
            Ok(opened) => opened,
            Err(BootError::ShardCount { .. }) if shards != self.shape.shards => {
                self.note_node(node, "refuses to start with shards:", u64::from(shards));
                return self.start_in(node, 10_000);
            }
            Err(error) => {
                let what = format!("n{}: {error}", node + 1);
                return self.fail("a node starts in its own directory", what);
            }
        };
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
        self.record_rot(node);
        for host in self.hosts_of(node) {
            self.poke(host);
        }
    }

    /// Damage makes groups RECOVERING that the boot record does not know of: it is to say so before
    /// anybody hears of this start. What recovery found whole is forgiven.
    fn record_rot(&mut self, node: usize) {
        let hosts = self.hosts_of(node);
        let disks = &mut self.hosts[hosts];
        let armed = disks.iter().any(|host| host.disk.is_armed());
        let volatile = disks.iter().any(|host| host.disk.is_volatile());
        let landed =
            disks.iter_mut().fold(false, |any, host| any | host.disk.take_misdirected().is_some());
        let state = &mut self.nodes[node];
        // What is wrong from here on, with nothing left to go wrong, is nobody's fault but its own.
        // A log that is whole thanks to what only a cache holds may turn out not to be.
        let astray = state.is_misdirected && !landed;
        state.may_rot &= state.found_rot || astray || volatile;
        state.may_fail &= armed || state.may_rot;
        let accepted = std::mem::take(&mut state.accepted);
        let found_rot = std::mem::take(&mut state.found_rot);
        if found_rot || accepted > 0 {
            // An operator's word ends the suspicion once what it forced is durable.
            state.rewrite(|record| {
                let suspect = if found_rot { Suspect::Everything } else { Suspect::Nothing };
                record.recovering = record.recovering.max(suspect);
                record.epoch = record.epoch.max(accepted);
            });
            state.boot.sync();
        }
        if landed {
            // Every log was read whole, or its damage was found.
            state.is_misdirected = false;
        }
        state.forgot = state.has_gaps();
    }

    /// The last group of the last shard has its memory back: the boot record is to say so.
    pub(super) fn note_recovered(&mut self, node: usize) {
        let hosts = self.hosts_of(node);
        let done = |host: &Host<S::Machine>| {
            host.serving && host.shard.as_ref().is_some_and(|shard| shard.recovering() == 0)
        };
        if !self.hosts[hosts].iter().all(done) {
            return;
        }
        let state = &mut self.nodes[node];
        state.rewrite(|record| record.recovering = Suspect::Nothing);
        let wait = self.node_rng.between(self.shape.disk_us.0, self.shape.disk_us.1);
        self.queue.push(self.now + wait, Event::Recorded(node as u32, state.attempt));
    }

    /// That record is safe.
    pub(super) fn on_recorded(&mut self, node: usize, attempt: u32) {
        let state = &mut self.nodes[node];
        if state.up && state.attempt == attempt {
            state.boot.sync();
            state.forgot = state.has_gaps();
            self.note_node(node, "has its memory back in incarnation", self.incarnation(node));
        }
    }

    /// Reads a shard's log and starts it. `false`: the node does not come up.
    fn open(&mut self, node: usize, at: usize) -> bool {
        let shard = at as u32 % self.shape.shards;
        let (config, mine) = (wal_config(&self.shape, shard), self.identity(node));
        let incarnation = Incarnation(self.nodes[node].incarnation);
        let now = self.local(node);
        let epoch = self.node_rng.next();
        let mark = self.nodes[node].mark(shard);
        let host = &mut self.hosts[at];
        let mut found = match recover_from(config, mine, &mut host.disk.source(), mark) {
            Ok(found) => found,
            Err(error) => {
                self.fatal(node, at, &error.to_string());
                return false;
            }
        };
        let Some(snapshots) = self.restore(node, at) else { return false };
        let is_headless = !found.drop_headless(|group| snapshots.newest(group)).is_empty();
        let suspect = match self.judge_log(node, at, &found, is_headless) {
            Some(suspect) => suspect,
            None => return false,
        };
        let host = &mut self.hosts[at];
        host.shadow = host.shadow.restarted(&found);
        let mut wal = Wal::resume(wal_config(&self.shape, shard), mine, epoch, &mut found);
        let starts = snapshots.starts(&found.groups);
        if !self.judge_starts(node, &starts) {
            return false;
        }
        let mut machines = self.subject.machines();
        let machine = move |group: GroupId| Observed::new(machines(group));
        let is_lost = starts.values().any(|start| start.is_lost);
        let mut groups = log_starts(&mut wal, starts);
        let mut suspect = suspect;
        if self.shape.nodes == 1 && (is_lost || suspect == Suspect::Everything) {
            self.accept_loss(node, shard, &mut wal, &found, &mut groups);
            suspect = Suspect::Nothing;
        }
        let config = shard_config(&self.shape, node, incarnation, shard, suspect);
        let started = Shard::with_snapshots(config, wal, groups, snapshots, machine, now);
        let host = &mut self.hosts[at];
        host.seen = vec![Seen::default(); started.places()];
        for view in started.groups() {
            let place = view.raft().group().0 / self.shape.shards;
            let seen = &mut host.seen[place as usize];
            let judged = self.oracle.started(node, &view, seen);
            if let Err((rule, what)) = judged
                && !self.options.lying_disks
            {
                self.fail(rule, what);
                return false;
            }
        }
        host.shard = Some(started);
        host.out = Output::default();
        // What was sent to the process before this one is lost with its connections.
        for (conn, client) in host.conns.iter_mut().zip(&mut self.clients) {
            *conn = client.next_life();
        }
        (host.serving, host.dirty) = (false, true);
        self.note_groups(node, at);
        self.violation.is_none()
    }

    /// Reads the snapshots. `None`: the node does not come up.
    fn restore(&mut self, node: usize, at: usize) -> Option<Found<Observed<S::Machine>>> {
        let mut machines = self.subject.machines();
        let gathering = Gathering {
            machine: |group| Observed::new(machines(group)),
            sessions: session_limits(&self.shape),
            config_hash: self.shape.snapshots.config_hash,
        };
        let Gathered { mut found, damaged } = match gathering.run(&mut self.hosts[at].disk) {
            Ok(gathered) => gathered,
            Err(error) => {
                self.fail("a node's snapshots are its own", format!("n{}: {error}", node + 1));
                return None;
            }
        };
        let may_rot = self.nodes[node].may_rot || self.options.lying_disks;
        let known = &self.nodes[node].damaged_snapshots;
        let fresh = damaged.iter().find(|(file, _)| !may_rot && !known.contains(file));
        if let Some((file, error)) = fresh {
            let what = format!("n{} {file}: {error}", node + 1);
            self.fail("a published snapshot is whole", what);
            return None;
        }
        for (file, _) in damaged {
            self.note_node(node, "finds a damaged snapshot of group", u64::from(file.group().0));
            self.nodes[node].damaged_snapshots.push(file);
            found.useless.push(file);
        }
        self.stats.restored += found.loaded.len() as u64;
        Some(found)
    }

    /// What a log has given up must be in a snapshot. `false`: the node does not come up.
    fn judge_starts(&mut self, node: usize, starts: &BTreeMap<GroupId, Start>) -> bool {
        let may_rot = self.nodes[node].may_rot || self.options.lying_disks;
        if let Some((group, _)) = starts.iter().find(|(_, start)| start.is_lost) {
            if !may_rot {
                let what = format!("n{} {group:?}", node + 1);
                self.fail("what the log gives up is in a snapshot", what);
                return false;
            }
            self.note_node(node, "has lost the front of group", u64::from(group.0));
            self.nodes[node].found_rot = true;
        }
        true
    }

    /// Nobody can give back what a node that is alone has lost: an operator goes on without it. The
    /// shard does not speak before that is durable, like all that recovery found.
    fn accept_loss(
        &mut self,
        node: usize,
        shard: u32,
        wal: &mut Wal,
        found: &FoundLog,
        groups: &mut Recovered,
    ) {
        self.note_node(node, "goes on by an operator's word, shard", u64::from(shard));
        let mut highest = 0;
        for group in (shard..self.shape.groups).step_by(self.shape.shards as usize).map(GroupId) {
            let seen = found.groups.get(&group).map_or(0, |known| known.epoch);
            let recorded = self.nodes[node].record.as_ref().map_or(0, |record| record.epoch);
            let least = known_epoch(seen, recorded, !self.shape.syncs(group));
            let left = groups.entry(group).or_default();
            let forced = begin_anew(wal, node_id(node), group, left, least, None);
            highest = highest.max(forced.epoch);
            if let Err((rule, what)) = self.oracle.forced(&forced) {
                self.fail(rule, what);
            }
        }
        self.nodes[node].accepted = self.nodes[node].accepted.max(highest);
    }

    /// What recovery found, against what was known: which groups are suspect; `None` if the node
    /// cannot start.
    fn judge_log(
        &mut self,
        node: usize,
        at: usize,
        found: &FoundLog,
        is_headless: bool,
    ) -> Option<Suspect> {
        let state = &self.nodes[node];
        let suspect = state.record.as_ref().map(|record| record.recovering).unwrap_or_default();
        let (may_rot, is_misdirected) = (state.may_rot, state.is_misdirected);
        let place = format!("n{} s{}", node + 1, at as u32 % self.shape.shards);
        if is_headless || matches!(found.verdict, Verdict::Rot { .. }) {
            if !may_rot {
                let (verdict, end) = (&found.verdict, found.end);
                let what = format!("{place}: {verdict:?} at {end}, headless: {is_headless}");
                self.fail("an honest disk shows no rot", what);
                return None;
            }
            self.note_node(node, "finds rot at", found.end.0);
            self.stats.rot_found += 1;
            self.oracle.forget(node);
            self.forget_ends(node);
            self.nodes[node].found_rot = true;
            return Some(Suspect::Everything);
        }
        // Gone is also what was written and not yet synced, which a killed process leaves behind.
        let written = self.hosts[at].shadow.written();
        if is_misdirected && found.end < written {
            self.replace_directory(node);
            return None;
        }
        if let Some(what) = self.hosts[at].shadow.lost(found)
            && !self.options.lying_disks
        {
            // A write that went astray and was never named as durable cannot be told from a torn
            // tail: such a disk is replaced.
            if is_misdirected {
                self.replace_directory(node);
            } else {
                let (verdict, durable) = (&found.verdict, found.durable);
                let what = format!("{place}: {what}; it seems {verdict:?}, durable {durable}");
                self.fail("what is durable stays", what);
            }
            return None;
        }
        Some(suspect)
    }

    pub(super) fn note_node(&mut self, node: usize, note: &'static str, number: u64) {
        self.trace.note(self.now, What::Node { node: node as u32 + 1, note, number });
    }
}

impl<S: Subject> World<S> {
    pub(super) fn identity(&self, node: usize) -> LogIdentity {
        identity(node, self.nodes[node].disk_id)
    }
}

fn identity(node: usize, disk: u128) -> LogIdentity {
    LogIdentity { cluster: CLUSTER, node: node as u32 + 1, disk }
}
