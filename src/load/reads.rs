//! Reads, measured: the same small question asked with each consistency, beside blocks that go
//! through the log, in a closed loop.

use std::fmt::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

use super::drive::DriveError;
use super::histogram::{Latency, Percentiles};
use super::workload::{Workload, WorkloadOptions};
use crate::client::driver::Driver;
use crate::client::{ClientConfig, ClientError, QueryTarget};
use crate::ids::{GroupId, Index, NodeId};
use crate::machine::events::query::Query;
use crate::runtime::ring::Waker;
use crate::wire::client::Consistency;

/// A cluster that does not answer within this is not there.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Questions and blocks of one turn of the generator.
const AT_ONCE: u32 = 256;

/// What one row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadKind {
    /// A block of one command: what a read costs that goes through the log.
    Log,
    /// A question.
    Query(Consistency),
}

impl ReadKind {
    /// In the order of the table.
    pub const ALL: [Self; 5] = [
        Self::Log,
        Self::Query(Consistency::Linearizable),
        Self::Query(Consistency::Follower),
        Self::Query(Consistency::Lease),
        Self::Query(Consistency::Stale),
    ];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "through the log",
            Self::Query(consistency) => Consistency::NAMES[consistency as usize],
        }
    }
}

/// One row to be measured.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    /// Client addresses of the nodes.
    pub addresses: Vec<String>,
    /// Session number; random.
    pub client: u64,
    pub kind: ReadKind,
    pub in_flight: u32,
    pub value_bytes: u32,
    pub warm_up: Duration,
    pub measured: Duration,
}

/// What was counted in the measured time.
#[derive(Clone, Debug, Serialize)]
pub struct ReadRow {
    pub kind: &'static str,
    pub in_flight: u32,
    pub reads_per_s: f64,
    pub us: Percentiles,
    pub errors: u64,
    /// Against the log at as many in flight.
    pub ratio: f64,
}

/// Asks group 0 until the time is up.
struct Asker {
    driver: Driver,
    plan: ReadPlan,
    workload: Workload,
    question: Bytes,
    target: QueryTarget,
    start: Instant,
    sent: Vec<u64>,
    free: Vec<u32>,
    latency: Latency,
    done: u64,
    errors: u64,
    first_error: Option<ClientError>,
}

/// Measures one row.
pub fn measure(plan: ReadPlan) -> Result<ReadRow, DriveError> {
    let mut asker = Asker::connect(plan)?;
    asker.run_for(asker.plan.warm_up)?;
    asker.latency = Latency::new(false);
    (asker.done, asker.errors) = (0, 0);
    let begin = Instant::now();
    asker.run_for(asker.plan.measured)?;
    let elapsed = begin.elapsed().as_secs_f64();
    if let Some(error) = &asker.first_error {
        tracing::warn!(kind = asker.plan.kind.name(), %error, "reads failed; the first error");
    }
    Ok(ReadRow {
        kind: asker.plan.kind.name(),
        in_flight: asker.plan.in_flight,
        reads_per_s: asker.done as f64 / elapsed,
        us: asker.latency.percentiles(),
        errors: asker.errors,
        ratio: 0.0,
    })
}

impl Asker {
    fn connect(plan: ReadPlan) -> Result<Self, DriveError> {
        let mut config = ClientConfig::new(plan.addresses.clone(), plan.client);
        config.in_flight_max = plan.in_flight.min(4096);
        let driver = Driver::new(vec![config], Waker::new()?)?;
        let workload = Workload::new(WorkloadOptions {
            value_bytes: plan.value_bytes as usize,
            batch_size: 1,
            event_ids: false,
            client: plan.client,
        })?;
        // The first event that is still there.
        let question =
            Query::Read { queue: b"bench", from: Index::ZERO, limit: 1, bytes_max: 4096 }.encode();
        let mut asker = Self {
            driver,
            plan,
            workload,
            question: question.into(),
            target: QueryTarget::Leader,
            start: Instant::now(),
            sent: Vec::new(),
            free: Vec::new(),
            latency: Latency::new(false),
            done: 0,
            errors: 0,
            first_error: None,
        };
        asker.wait_for_cluster()?;
        Ok(asker)
    }

    /// Until a block was committed, so that there is something to read; then picks who answers.
    fn wait_for_cluster(&mut self) -> Result<(), DriveError> {
        let kind = std::mem::replace(&mut self.plan.kind, ReadKind::Log);
        let until = Instant::now() + CONNECT_LIMIT;
        while self.done == 0 {
            self.driver.turn()?;
            if self.driver.core(0).groups().is_some() && self.in_flight() == 0 {
                self.ask();
            }
            let pause = self.driver.now().plus(10_000);
            self.driver.wait(pause)?;
            self.driver.turn()?;
            self.collect();
            if Instant::now() > until {
                let addresses = self.plan.addresses.join(", ");
                let reason = "no answer in time".to_owned();
                return Err(DriveError::Unreachable { addresses, reason });
            }
        }
        self.plan.kind = kind;
        let leader = self.driver.core(0).leader(GroupId(0));
        if matches!(kind, ReadKind::Query(Consistency::Follower | Consistency::Stale)) {
            let follower = (leader + 1) % self.plan.addresses.len();
            let id: Option<NodeId> = self.driver.core(0).node_id(follower);
            self.target = id.map_or(QueryTarget::Any, QueryTarget::Node);
        }
        Ok(())
    }

    fn in_flight(&self) -> u32 {
        (self.sent.len() - self.free.len()) as u32
    }

    fn run_for(&mut self, time: Duration) -> Result<(), DriveError> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.driver.turn()?;
            self.collect();
            let mut asked = 0;
            while self.in_flight() < self.plan.in_flight && asked < AT_ONCE && self.ask() {
                asked += 1;
            }
            self.driver.turn()?;
            let pause = self.driver.now().plus(10_000);
            self.driver.wait(pause)?;
        }
        Ok(())
    }

    /// One more read under way; `false`: no room.
    fn ask(&mut self) -> bool {
        let tag = self.free.pop().unwrap_or_else(|| {
            self.sent.push(0);
            (self.sent.len() - 1) as u32
        });
        self.sent[tag as usize] = self.start.elapsed().as_nanos() as u64;
        let (now, group) = (self.driver.now(), GroupId(0));
        let core = self.driver.core(0);
        let taken = match self.plan.kind {
            ReadKind::Query(consistency) => core
                .query(now, group, self.target, consistency, self.question.clone(), u64::from(tag))
                .is_ok(),
            ReadKind::Log if core.room(group) == 0 => false,
            ReadKind::Log => {
                let stamp = core.stamp(group);
                let block = self.workload.block(group, stamp.seq, stamp.pending, 0);
                core.submit(now, block, u64::from(tag)).is_ok()
            }
        };
        if !taken {
            self.free.push(tag);
        }
        taken
    }

    fn collect(&mut self) {
        let now_ns = self.start.elapsed().as_nanos() as u64;
        let blocks = self.driver.take_done().map(|(_, done)| (done.tag, done.result.err()));
        let mut ended: Vec<(u64, Option<ClientError>)> = blocks.collect();
        ended.extend(self.driver.take_replies().map(|(_, reply)| (reply.tag, reply.result.err())));
        for (tag, error) in ended {
            self.free.push(tag as u32);
            match error {
                None => {
                    self.done += 1;
                    let sent = self.sent[tag as usize];
                    self.latency.record(sent, sent, now_ns, 1);
                }
                Some(error) => {
                    self.errors += 1;
                    self.first_error.get_or_insert(error);
                }
            }
        }
    }
}

/// Fills in the ratios: how many times as many reads as through the log.
pub fn compare(rows: &mut [ReadRow]) {
    let log: Vec<(u32, f64)> = rows
        .iter()
        .filter(|row| row.kind == ReadKind::Log.name())
        .map(|row| (row.in_flight, row.reads_per_s))
        .collect();
    for row in rows {
        let base = log.iter().find(|(in_flight, _)| *in_flight == row.in_flight);
        row.ratio = base.map_or(0.0, |(_, base)| row.reads_per_s / base.max(1.0));
    }
}

/// For people.
pub fn render(rows: &[ReadRow], round_trip_us: f64) -> String {
    let mut text = format!(
        "\n{:<16} {:>9} {:>12} {:>9} {:>9} {:>9} {:>8} {:>7}\n",
        "read", "in flight", "reads/s", "p50 us", "p99 us", "max us", "× log", "errors"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<16} {:>9} {:>12.0} {:>9.1} {:>9.1} {:>9.0} {:>8.2} {:>7}",
            row.kind,
            row.in_flight,
            row.reads_per_s,
            row.us.p50,
            row.us.p99,
            row.us.max,
            row.ratio,
            row.errors
        );
    }
    if let Some(one) = rows.iter().find(|row| {
        row.in_flight == 1 && row.kind == ReadKind::Query(Consistency::Linearizable).name()
    }) {
        let pair = 2.0 * round_trip_us;
        let _ = writeln!(
            text,
            "\nA linearizable read alone takes {:.2} × a pair of loopback round trips ({pair:.1} us).",
            one.us.p50 / pair
        );
    }
    text
}
