//! One measured run: sessions in a closed or open loop against a cluster, on the calling thread.

use std::time::{Duration, Instant};

use super::histogram::Latency;
use super::progress::Progress;
use super::schedule::{Next, Pacer, Schedule};
use super::workload::{Workload, WorkloadError, WorkloadOptions};
use crate::client::driver::Driver;
use crate::client::{ClientConfig, ClientError, Done};
use crate::ids::{GroupId, Tick};
use crate::runtime::ring::Waker;
use crate::shard::ShardStatus;
use thiserror::Error;

/// A cluster that does not answer within this is not there.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// What to offer, to whom, for how long.
#[derive(Clone, Debug)]
pub struct RunPlan {
    pub name: String,
    /// Client addresses of the nodes.
    pub addresses: Vec<String>,
    /// Sessions; each has a connection to every leader.
    pub sessions: u32,
    /// First session number; random.
    pub client: u64,
    pub groups: u32,
    pub value_bytes: u32,
    pub schedule: Schedule,
    pub warm_up: Duration,
    pub measured: Duration,
    pub show_progress: bool,
}

/// What was counted in the measured time.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    pub latency: Latency,
    pub elapsed: Duration,
    pub commands: u64,
    pub blocks: u64,
    pub errors: u64,
    /// The first error, for people.
    pub first_error: Option<ClientError>,
    /// Log writes of the shards that lead a group; `None` when a node did not tell.
    pub flushes: Option<u64>,
}

/// Why a run cannot be made.
#[derive(Debug, Error)]
pub enum DriveError {
    #[error("no node answers at {addresses}: {reason}; is the cluster running?")]
    Unreachable { addresses: String, reason: String },
    #[error("the cluster has {have} groups, the run wants {want}; lower --groups")]
    Groups { have: u32, want: u32 },
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    #[error("the kernel refuses what a client needs: {0}; run `ringraft doctor`")]
    Kernel(#[from] std::io::Error),
}

/// What is submitted leaves at the latest when it is this much.
const SEND_EARLY_BYTES: usize = 32 << 10;

/// A block in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    due_ns: u64,
    sent_ns: u64,
}

/// What a session needs to go on.
struct Offer {
    workload: Workload,
    next_group: u32,
}

/// Load on a cluster, ready to run.
pub struct Load {
    plan: RunPlan,
    driver: Driver,
    offers: Vec<Offer>,
    /// By tag; tags are reused.
    sent: Vec<Sent>,
    free: Vec<u32>,
    pacer: Pacer,
    next_seat: usize,
    start: Instant,
    /// The driver's clock at `start`: one reading serves both.
    driver_start: Tick,
    unix_us: u64,
    outcome: RunOutcome,
}

impl Load {
    /// Connects and waits until every group has answered a block.
    pub fn connect(plan: RunPlan) -> Result<Self, DriveError> {
        let session = |i: u32| {
            let mut config =
                ClientConfig::new(plan.addresses.clone(), plan.client.wrapping_add(u64::from(i)));
            config.in_flight_max = plan.schedule.in_flight_max.min(4096);
            config
        };
        let driver = Driver::new((0..plan.sessions).map(session).collect(), Waker::new()?)?;
        let workload = |i: u32| {
            Workload::new(WorkloadOptions {
                value_bytes: plan.value_bytes as usize,
                batch_size: plan.schedule.batch_size as usize,
                event_ids: false,
                client: plan.client.wrapping_add(u64::from(i)),
            })
        };
        let offers = (0..plan.sessions)
            .map(|i| Ok(Offer { workload: workload(i)?, next_group: i % plan.groups }))
            .collect::<Result<_, WorkloadError>>()?;
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let mut load = Self {
            driver_start: driver.now(),
            driver,
            offers,
            sent: Vec::new(),
            free: Vec::new(),
            pacer: Pacer::new(plan.schedule),
            next_seat: 0,
            start: Instant::now(),
            unix_us: unix.map_or(0, |since| since.as_micros() as u64),
            outcome: RunOutcome::new(&plan.schedule),
            plan,
        };
        load.wait_for_cluster()?;
        load.touch_groups()?;
        Ok(load)
    }

    fn wait_for_cluster(&mut self) -> Result<(), DriveError> {
        let until = Instant::now() + CONNECT_LIMIT;
        loop {
            self.driver.turn()?;
            let known = (0..self.driver.sessions()).all(|i| self.driver.core(i).groups().is_some());
            if known {
                break;
            }
            let fault = self.driver.core(0).fault();
            if fault.is_some() || Instant::now() > until {
                let addresses = self.plan.addresses.join(", ");
                let reason = fault.map_or("no answer in time".into(), |fault| fault.to_string());
                return Err(DriveError::Unreachable { addresses, reason });
            }
            let pause = self.driver.now().plus(50_000);
            self.driver.wait(pause)?;
        }
        match self.driver.core(0).groups() {
            Some(have) if have < self.plan.groups => {
                Err(DriveError::Groups { have, want: self.plan.groups })
            }
            _ => Ok(()),
        }
    }

    /// One block to every group: each has a leader, and every route is known.
    fn touch_groups(&mut self) -> Result<(), DriveError> {
        let until = Instant::now() + CONNECT_LIMIT;
        let mut left = 0;
        for seat in 0..self.offers.len() {
            for group in 0..self.plan.groups {
                let now_ns = self.now_ns();
                self.submit(seat, GroupId(group), now_ns, now_ns);
                left += 1;
            }
        }
        while left > 0 {
            self.driver.turn()?;
            let done: Vec<(usize, Done)> = self.driver.take_done().collect();
            left -= done.len();
            for (_, done) in done {
                self.free.push(done.tag as u32);
                if let Err(error) = done.result {
                    let addresses = self.plan.addresses.join(", ");
                    let reason = error.to_string();
                    return Err(DriveError::Unreachable { addresses, reason });
                }
            }
            if Instant::now() > until {
                let reason = format!("{left} groups without a leader");
                let addresses = self.plan.addresses.join(", ");
                return Err(DriveError::Unreachable { addresses, reason });
            }
            let pause = self.driver.now().plus(50_000);
            self.driver.wait(pause)?;
        }
        Ok(())
    }

    /// Warms up, measures, and lets what is in flight come home. `at_start` and `at_end` are called
    /// at the edges of the measured time.
    pub fn run(
        mut self,
        mut at_start: impl FnMut(),
        mut at_end: impl FnMut(),
    ) -> Result<RunOutcome, DriveError> {
        let progress = self
            .plan
            .show_progress
            .then(|| Progress::new(&self.plan.name, self.plan.warm_up + self.plan.measured));
        self.restart_clock();
        self.run_until(self.plan.warm_up, progress.as_ref())?;
        let flushes_before = self.flushes()?;
        self.outcome = RunOutcome::new(&self.plan.schedule);
        at_start();
        let begin = self.start.elapsed();
        self.run_until(begin + self.plan.measured, progress.as_ref())?;
        self.outcome.elapsed = self.start.elapsed() - begin;
        at_end();
        // What comes home from here on is not counted.
        let mut outcome = self.outcome.clone();
        let flushes_after = self.flushes()?;
        outcome.flushes = flushes_before.zip(flushes_after).map(|(a, b)| b.saturating_sub(a));
        self.drain()?;
        if let Some(progress) = progress {
            progress.finish();
        }
        Ok(outcome)
    }

    fn restart_clock(&mut self) {
        self.start = Instant::now();
        self.driver_start = self.driver.now();
        self.pacer = Pacer::new(self.plan.schedule);
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn run_until(&mut self, end: Duration, progress: Option<&Progress>) -> Result<(), DriveError> {
        let mut next_report = Duration::ZERO;
        loop {
            self.driver.turn()?;
            self.collect();
            let wake = self.offer()?;
            self.driver.turn()?;
            let now = self.start.elapsed();
            if now >= end {
                return Ok(());
            }
            if let Some(progress) = progress
                && now >= next_report
            {
                next_report = now + Duration::from_millis(200);
                progress.update(now, self.outcome.commands as f64 / now.as_secs_f64());
            }
            let left = (end - now).as_micros() as u64;
            let until = wake.map_or(left, |ns| left.min(ns.div_ceil(1000)));
            let until = self.driver.now().plus(until);
            self.driver.wait(until)?;
        }
    }

    fn collect(&mut self) {
        let now_ns = self.start.elapsed().as_nanos() as u64;
        let batch = u64::from(self.plan.schedule.batch_size);
        for (_, done) in self.driver.take_done() {
            self.pacer.done();
            let sent = self.sent[done.tag as usize];
            self.free.push(done.tag as u32);
            match done.result {
                Ok(_) => {
                    self.outcome.commands += batch;
                    self.outcome.blocks += 1;
                    self.outcome.latency.record(sent.due_ns, sent.sent_ns, now_ns, batch);
                }
                Err(error) => {
                    self.outcome.errors += batch;
                    self.outcome.first_error.get_or_insert(error);
                }
            }
        }
    }

    /// Submits what is due. Returns how long nothing more will be, in ns, if that is known.
    fn offer(&mut self) -> Result<Option<u64>, DriveError> {
        let mut unsent = 0;
        loop {
            let Some((seat, group)) = self.next_place() else { return Ok(Some(1_000_000)) };
            let now_ns = self.now_ns();
            match self.pacer.next(now_ns) {
                Next::Send { due_ns } => unsent += self.submit(seat, group, due_ns, now_ns),
                Next::At(due_ns) => return Ok(Some(due_ns - now_ns)),
                Next::Full => return Ok(None),
            }
            if unsent >= SEND_EARLY_BYTES {
                // The cluster begins with these while the next are made.
                self.driver.turn()?;
                unsent = 0;
            }
        }
    }

    /// The next session and group in turn that take a block.
    fn next_place(&mut self) -> Option<(usize, GroupId)> {
        for _ in 0..self.offers.len() {
            let seat = self.next_seat;
            self.next_seat = (seat + 1) % self.offers.len();
            for _ in 0..self.plan.groups {
                let group = GroupId(self.offers[seat].next_group);
                self.offers[seat].next_group = (group.0 + 1) % self.plan.groups;
                if self.driver.core(seat).room(group) > 0 {
                    return Some((seat, group));
                }
            }
        }
        None
    }

    /// Submits one block and returns its bytes.
    fn submit(&mut self, seat: usize, group: GroupId, due_ns: u64, sent_ns: u64) -> usize {
        let tag = self.free.pop().unwrap_or_else(|| {
            self.sent.push(Sent::default());
            (self.sent.len() - 1) as u32
        });
        self.sent[tag as usize] = Sent { due_ns, sent_ns };
        let now = self.driver_start.plus(sent_ns / 1000);
        let core = self.driver.core(seat);
        let stamp = core.stamp(group);
        let timestamp = self.unix_us + sent_ns / 1000;
        let block = self.offers[seat].workload.block(group, stamp.seq, stamp.pending, timestamp);
        let bytes = block.size();
        core.submit(now, block, u64::from(tag)).expect("room was asked for");
        bytes
    }

    /// Waits for what is in flight, without counting it.
    fn drain(&mut self) -> Result<(), DriveError> {
        let until = Instant::now() + Duration::from_secs(12);
        while self.pacer.in_flight() > 0 && Instant::now() < until {
            self.driver.turn()?;
            self.collect();
            let pause = self.driver.now().plus(20_000);
            self.driver.wait(pause)?;
        }
        Ok(())
    }

    /// Log writes so far of the shards that lead a group. The load goes on while it is asked for.
    fn flushes(&mut self) -> Result<Option<u64>, DriveError> {
        let nodes = self.plan.addresses.len();
        let shards = self.driver.core(0).shards().unwrap_or(1);
        let now = self.driver.now();
        let mut asked = 0;
        for node in 0..nodes {
            for shard in 0..shards {
                asked += u32::from(self.driver.core(0).status(now, node, shard, 0).is_ok());
            }
        }
        let until = Instant::now() + Duration::from_secs(2);
        let (mut answered, mut sum) = (0, 0);
        while answered < asked && Instant::now() < until {
            self.driver.turn()?;
            self.collect();
            self.offer()?;
            for (_, reply) in self.driver.take_replies() {
                answered += 1;
                let Ok(json) = reply.result else { return Ok(None) };
                let Ok(status) = ShardStatus::from_json(&json) else { return Ok(None) };
                if status.groups.iter().any(|group| group.leader == status.node) {
                    sum += status.flushes;
                }
            }
            let pause = self.driver.now().plus(1_000);
            self.driver.wait(pause)?;
        }
        Ok((answered == asked && asked > 0).then_some(sum))
    }
}

impl RunOutcome {
    fn new(schedule: &Schedule) -> Self {
        Self {
            latency: Latency::new(schedule.is_open()),
            elapsed: Duration::ZERO,
            commands: 0,
            blocks: 0,
            errors: 0,
            first_error: None,
            flushes: None,
        }
    }
}
