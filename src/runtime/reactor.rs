//! A shard's loop: wait, hand completions to the shard, take a turn, submit what it asks for.
//! Nothing is decided here but which bytes go where.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{error, info, warn};

use super::cold::{Cold, ColdReplies, ColdReply, FileJob, Job, PrepareJob};
use super::disk::{Disk, DiskEvent, segment_path};
use super::files::snapshot_dir;
use super::lines::LogLines;
use super::links::{Link, Links};
use super::net::{ConnId, Net, NetEvent};
use super::ring::{Completion, Ring};
use super::routing::ShardPort;
use super::scrape::{ShardReport, Want};
use crate::ids::{Lsn, Tick};
use crate::machine::StateMachine;
use crate::metrics::Histogram;
use crate::shard::{Output, Shard};
use crate::wal::{DiskDone, DiskOp, Space, WalError};
use crate::wire::frame::{Frame, write_close};

/// How long a stopping shard waits for what is in flight.
const DRAIN_US: u64 = 2_000_000;
/// How often connections that do not move are looked at.
const CHORES_US: u64 = 50_000;

/// Everything of one shard that touches the kernel.
pub struct Reactor<M> {
    pub(super) ring: Ring,
    pub(super) net: Net,
    disk: Disk,
    pub(super) shard: Shard<M>,
    pub(super) links: Links,
    pub(super) lines: LogLines,
    port: Arc<ShardPort>,
    cold: Arc<Cold>,
    /// For the files of snapshots.
    files: Arc<Cold>,
    snapshot_dir: Arc<Path>,
    cold_replies: Arc<ColdReplies>,
    segment_bytes: u64,
    segment_dir: std::path::PathBuf,
    pub(super) out: Output,
    completions: Vec<Completion>,
    net_events: Vec<NetEvent>,
    disk_events: Vec<DiskEvent>,
    dirty: Vec<u64>,
    /// Sent buffers, to be filled again.
    pub(super) buffers: Vec<Vec<u8>>,
    next_chores: Tick,
    draining_until: Option<Tick>,
    spin_us: u64,
    name: String,
    recovered: Option<Box<dyn FnOnce() + Send>>,
    turns: Histogram,
}

/// What a reactor is made of; see the fields of the same name.
pub struct ReactorParts<M> {
    pub ring: Ring,
    pub shard: Shard<M>,
    pub links: Links,
    pub port: Arc<ShardPort>,
    pub cold: Arc<Cold>,
    pub files: Arc<Cold>,
    pub segment_dir: std::path::PathBuf,
    pub segment_bytes: u64,
    pub fail_write_in: Option<u64>,
    /// Time to look for completions before sleeping.
    pub spin_us: u64,
    pub name: String,
    /// Called once, when no group of the shard is RECOVERING any more.
    pub recovered: Box<dyn FnOnce() + Send>,
}

impl<M: StateMachine> Reactor<M> {
    pub fn new(parts: ReactorParts<M>) -> Self {
        let ReactorParts { ring, shard, links, port, cold, files, segment_dir, .. } = parts;
        let cold_replies = ColdReplies::new(ring.waker());
        Self {
            net: Net::default(),
            disk: Disk::new(segment_dir.clone(), parts.fail_write_in),
            shard,
            links,
            lines: LogLines::default(),
            port,
            cold,
            files,
            snapshot_dir: snapshot_dir(&segment_dir).into(),
            cold_replies,
            segment_bytes: parts.segment_bytes,
            segment_dir,
            out: Output::default(),
            completions: Vec::new(),
            net_events: Vec::new(),
            disk_events: Vec::new(),
            dirty: Vec::new(),
            buffers: Vec::new(),
            next_chores: Tick::ZERO,
            draining_until: None,
            spin_us: parts.spin_us,
            name: parts.name,
            recovered: Some(parts.recovered),
            turns: Histogram::default(),
            ring,
        }
    }

    /// Runs until it is told to stop or the log fails. `Ok(Some(end))`: everything is on
    /// stable storage, up to there.
    pub fn run(mut self) -> Result<Option<Lsn>, WalError> {
        self.finish_recovery();
        self.links.listen(&mut self.ring, &mut self.net);
        let result = loop {
            let now = self.collect();
            self.chores(now);
            self.shard.turn(now, &mut self.out);
            if let Some(error) = self.out.fatal.take() {
                error!(shard = %self.name, "{error}");
                break Err(error);
            }
            self.report_transitions(now);
            self.report_recovery(now);
            self.lines.tell_left_out(now, &self.name);
            self.change_links();
            self.start_disk();
            self.send_to_peers();
            if self.shard.has_work_to_apply() && self.ring.has_queued() {
                // Flushes and messages are on their way before anything is applied.
                let _ = self.ring.submit();
            }
            self.shard.apply(now);
            self.send_to_clients();
            let end = self.ring.now();
            self.shard.answered(end);
            self.turns.observe(end.since(now));
            if self.is_drained(now) {
                break Ok(self.shard.is_quiet().then(|| self.shard.wal().durable()));
            }
            if let Err(error) = self.sleep(end) {
                panic!("io_uring refuses to work: {error}");
            }
        };
        self.wind_up();
        result
    }

    /// Syncs what recovery found, before anybody can ask for it.
    fn finish_recovery(&mut self) {
        let mut told = false;
        while self.shard.is_starting(self.ring.now(), &mut self.out) {
            self.start_disk();
            if let (false, Space::NoSpace { message, .. }) = (told, self.shard.wal().space()) {
                warn!(shard = %self.name, reason = message, "no space for the log to go on in: \
                    this shard starts when there is some");
                told = true;
            }
            let until = self.ring.now().plus(CHORES_US);
            if let Err(error) = self.ring.wait(until) {
                panic!("io_uring refuses to work: {error}");
            }
            self.collect();
        }
        self.start_disk();
    }

    /// Hands everything that has happened to the shard. The clock is read after it has happened:
    /// a process that was stopped in between must not date a leader's word back, nor a question.
    fn collect(&mut self) -> Tick {
        self.ring.reap(&mut self.completions);
        let now = self.ring.now();
        for completion in self.completions.drain(..) {
            let net = self.net.complete(&mut self.ring, &completion, &mut self.net_events);
            if !net {
                self.disk.complete(&mut self.ring, &completion, &mut self.disk_events);
            }
        }
        self.disk.drain_failed(&mut self.disk_events);
        for (op, result) in self.disk_events.drain(..) {
            self.shard.disk_done(now, op, result);
        }
        while let Some(reply) = self.cold_replies.pop() {
            match reply {
                ColdReply::Prepared(op, result) => {
                    self.shard.disk_done(now, op, result.map(|()| DiskDone::Prepared));
                }
                ColdReply::File(op, result) => self.shard.file_done(now, op, result),
            }
        }
        self.net.drain_closed(&mut self.net_events);
        let mut events = std::mem::take(&mut self.net_events);
        for event in events.drain(..) {
            self.on_net(now, event);
        }
        self.net_events = events;
        while let Some(arrival) = self.port.arrivals.pop() {
            self.welcome_arrival(arrival);
        }
        while let Some(question) = self.port.questions.pop() {
            // Who asked may have gone: then nobody hears the answer.
            let _ = question.reply.try_send(self.report(now, question.want));
        }
        now
    }

    fn report(&self, now: Tick, want: Want) -> ShardReport {
        ShardReport {
            shard: self.links.shard(),
            figures: self.shard.figures(now, want.per_group),
            disk: self.disk.figures().clone(),
            net: self.net.figures(),
            turns: self.turns.clone(),
            status: want.status.then(|| self.shard.status()),
        }
    }

    fn on_net(&mut self, now: Tick, event: NetEvent) {
        match event {
            NetEvent::Accepted { listener, socket } => self.accepted(now, listener, socket),
            NetEvent::Opened(conn) => self.opened(conn),
            NetEvent::Received(conn) => self.received(now, conn),
            NetEvent::Sent(conn, buffer) => self.sent(conn, buffer),
            NetEvent::Closed(conn, reason) => self.closed(now, conn, &reason),
        }
    }

    fn received(&mut self, now: Tick, conn: ConnId) {
        match self.links.get(conn) {
            Link::Client => self.client_bytes(now, conn),
            Link::PeerIn { node } => {
                let node = *node;
                self.frames(now, conn, |shard, frame| shard.peer_frame(now, node, frame));
            }
            Link::Greeting { .. } | Link::Dialling { .. } => self.greeting_bytes(now, conn),
            Link::PeerOut { .. } => {
                self.complain(conn, "a peer that was dialled has nothing to say on that link");
            }
            Link::Refused | Link::None => {}
        }
    }

    fn client_bytes(&mut self, now: Tick, conn: ConnId) {
        let id = conn.to_u64();
        if self.frames(now, conn, |shard, frame| shard.client_frame(id, frame))
            && !self.shard.client_may_send(id)
        {
            self.links.pause(conn);
        }
    }

    /// Gives the complete frames of an inbox to the shard and receives on. `false`: closed.
    fn frames(
        &mut self,
        now: Tick,
        conn: ConnId,
        mut give: impl FnMut(&mut Shard<M>, Frame) -> Result<(), crate::wire::frame::FrameError>,
    ) -> bool {
        let Some(inbox) = self.net.inbox(conn) else { return false };
        let outcome = loop {
            match Frame::take(inbox) {
                Ok(Some(frame)) => {
                    if let Err(error) = give(&mut self.shard, frame) {
                        break Err(error);
                    }
                }
                Ok(None) => {
                    let room = Frame::bytes_needed(inbox).saturating_sub(inbox.len());
                    break Ok((room, !inbox.is_empty()));
                }
                Err(error) => break Err(error),
            }
        };
        match outcome {
            Ok((room, unfinished)) => {
                let paused = matches!(self.links.get(conn), Link::Client)
                    && !self.shard.client_may_send(conn.to_u64());
                // Whoever is paused by us is not late.
                self.links.set_unfinished(now, conn, unfinished && !paused);
                if !paused {
                    self.net.receive(&mut self.ring, conn, room);
                }
                true
            }
            Err(error) => {
                self.complain(conn, &error.to_string());
                false
            }
        }
    }

    /// Says why, on the connection and in the log, and closes it.
    pub(super) fn complain(&mut self, conn: ConnId, reason: &str) {
        if self.lines.links.may_log(self.ring.now()) {
            warn!(shard = %self.name, link = %self.links.describe(conn), reason, "connection closed");
        }
        self.forget_link(conn);
        self.links.set(conn, Link::Refused);
        if self.net.can_send(conn) {
            let mut farewell = self.buffers.pop().unwrap_or_default();
            write_close(&mut farewell, reason);
            self.net.send(&mut self.ring, conn, farewell);
        } else {
            self.net.close(conn, reason);
        }
    }

    fn sent(&mut self, conn: ConnId, buffer: Vec<u8>) {
        if self.buffers.len() < 64 && buffer.capacity() <= 8 << 20 {
            self.buffers.push(buffer);
        }
        match self.links.get(conn) {
            Link::Refused => self.net.close(conn, "refused"),
            Link::Client => {
                self.send_to_client(conn.to_u64());
                if self.links.resume(conn) {
                    self.net.receive(&mut self.ring, conn, 0);
                }
            }
            _ => {}
        }
    }

    fn start_disk(&mut self) {
        for op in self.out.disk.drain(..) {
            match op {
                DiskOp::Prepare { op, segment, recycle } => {
                    if let Some(old) = recycle {
                        self.disk.forget(old);
                    }
                    self.cold.submit(Job::Prepare(PrepareJob {
                        op,
                        path: segment_path(&self.segment_dir, segment),
                        bytes: self.segment_bytes,
                        recycle: recycle.map(|old| segment_path(&self.segment_dir, old)),
                        reply: self.cold_replies.clone(),
                    }));
                }
                op => self.disk.start(&mut self.ring, op),
            }
        }
        for op in self.out.files.drain(..) {
            let (dir, reply) = (self.snapshot_dir.clone(), self.cold_replies.clone());
            self.files.submit(Job::File(FileJob { dir, op, reply }));
        }
    }

    fn send_to_peers(&mut self) {
        for i in 0..self.links.peer_count() {
            let Some((node, conn)) = self.links.peer_up(i) else { continue };
            if !self.net.can_send(conn) {
                continue;
            }
            let Some(egress) = self.shard.peer_egress(node) else { continue };
            if !egress.is_empty() {
                let next = self.buffers.pop().unwrap_or_default();
                let full = std::mem::replace(egress, next);
                self.net.send(&mut self.ring, conn, full);
            }
        }
    }

    fn send_to_clients(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        self.shard.take_dirty_clients(&mut dirty);
        for conn in dirty.drain(..) {
            self.send_to_client(conn);
        }
        self.dirty = dirty;
    }

    fn send_to_client(&mut self, raw: u64) {
        let conn = ConnId::from_u64(raw);
        let Some(egress) = self.shard.client_egress(raw) else { return };
        if egress.is_empty() || !self.net.can_send(conn) {
            return;
        }
        let next = self.buffers.pop().unwrap_or_default();
        let full = std::mem::replace(egress, next);
        self.net.send(&mut self.ring, conn, full);
    }

    fn report_transitions(&mut self, now: Tick) {
        // What nobody would see is not left out either.
        let shown = tracing::enabled!(tracing::Level::INFO);
        for t in self.out.transitions.drain(..) {
            let leader = t.leader.map_or(0, |node| node.0);
            if shown && self.lines.roles.may_log(now) {
                info!(shard = %self.name, group = t.group.0, term = t.term.0, role = ?t.role,
                    leader, reason = t.reason, "role");
            }
        }
        for t in self.out.troubles.drain(..) {
            if self.lines.snapshots.may_log(now) {
                warn!(shard = %self.name, group = t.group.0, reason = t.reason, "{}", t.what);
            }
        }
    }

    fn report_recovery(&mut self, now: Tick) {
        for loss in self.out.losses.drain(..) {
            if !self.lines.losses.may_log(now) {
                continue;
            }
            error!(shard = %self.name, group = loss.group.0, term = loss.term.0, epoch = loss.epoch,
                "POSSIBLE DATA LOSS: so many voters had lost power without wal_sync that commands \
                 acknowledged before may be missing; what is left is the same on all nodes");
        }
        if self.recovered.is_some() && self.shard.recovering() == 0 {
            let tell = self.recovered.take().expect("looked at");
            tell();
        }
    }

    /// What is not urgent: dialling, connections that never say hello, the stop flag.
    fn chores(&mut self, now: Tick) {
        if self.port.stop.load(Ordering::Acquire) && self.draining_until.is_none() {
            self.shard.drain();
            self.links.drain();
            self.draining_until = Some(now.plus(DRAIN_US));
        }
        if now < self.next_chores {
            return;
        }
        self.next_chores = now.plus(CHORES_US);
        self.net.resume_accepts(&mut self.ring);
        self.close_silent(now);
        self.dial(now);
    }

    fn is_drained(&self, now: Tick) -> bool {
        let quiet = || self.shard.is_quiet() && !self.net.is_sending();
        self.draining_until.is_some_and(|until| now >= until || quiet())
    }

    fn sleep(&mut self, now: Tick) -> std::io::Result<()> {
        let mut until = self.shard.deadline(now).min(self.lines.deadline());
        if self.links.has_chores() || self.net.has_paused() || self.draining_until.is_some() {
            until = until.min(self.next_chores);
        }
        let untold = self.disk.has_failed() || self.net.has_closed();
        let asked = !self.port.arrivals.is_empty() || !self.port.questions.is_empty();
        if until <= now || untold || asked {
            return self.ring.submit();
        }
        if self.spin_us > 0 {
            let spin_until = until.min(now.plus(self.spin_us));
            self.ring.submit()?;
            while self.ring.now() < spin_until {
                if self.ring.has_completions() {
                    return Ok(());
                }
                self.ring.submit()?;
            }
        }
        self.ring.wait(until)
    }

    /// Lets the kernel finish with every buffer before any is freed.
    fn wind_up(mut self) {
        self.lines.tell_left_out(Tick(u64::MAX), &self.name);
        let _ = self.ring.submit();
        self.net.close_all("the node stops");
        let until = self.ring.now().plus(DRAIN_US);
        while (self.net.count() > 0 || self.disk.in_flight() > 0) && self.ring.now() < until {
            let _ = self.ring.wait(self.ring.now().plus(10_000));
            self.ring.reap(&mut self.completions);
            for completion in self.completions.drain(..) {
                if !self.net.complete(&mut self.ring, &completion, &mut self.net_events) {
                    self.disk.complete(&mut self.ring, &completion, &mut self.disk_events);
                }
            }
            self.net.drain_closed(&mut self.net_events);
            self.net_events.clear();
            self.disk_events.clear();
        }
        if self.disk.in_flight() > 0 || self.net.count() > 0 {
            // The kernel may still write to these buffers: better to leak them than to free them.
            std::mem::forget(self);
        }
    }
}
