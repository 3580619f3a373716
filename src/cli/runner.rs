//! A call of `bench`: calibration, then each profile against a cluster of its own, then the report.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use crate::config::{ConfigError, Profile};
use crate::load::drive::{DriveError, Load, RunOutcome, RunPlan};
use crate::load::options::{BenchOptions, Output, ProfileOverrides};
use crate::load::reads::{ReadKind, ReadPlan, ReadRow, compare, measure};
use crate::load::report::{BenchReport, Measured, RunReport};
use crate::load::sample::{CpuUse, ThreadCpu};
use crate::load::schedule::Schedule;
use crate::runtime::calibrate::{CalibrateError, Calibration, calibrate};
use crate::runtime::entropy::random;
use crate::runtime::machine::MachineFacts;
use crate::server::embedded::EmbeddedCluster;
use crate::server::{NodeFailure, StartError};

/// Reads in flight in the second half of `bench --reads`, if nothing else is asked for.
const READS_IN_FLIGHT: u32 = 1000;
const CALIBRATION: Duration = Duration::from_millis(1200);

/// Why a benchmark ends without a report.
#[derive(Debug, Error)]
pub enum BenchError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Drive(#[from] DriveError),
    #[error("cannot ask the nodes for their status: {0}")]
    Look(std::io::Error),
    #[error("a node failed during the run: {0}")]
    Node(#[from] NodeFailure),
    #[error("{path}: {reason}; check the directory, or name another with --dir")]
    Directory { path: PathBuf, reason: String },
}

impl BenchError {
    /// Whether what was asked for is at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Config(_) => true,
            Self::Start(error) => error.is_configuration(),
            Self::Drive(DriveError::Workload(_) | DriveError::Groups { .. }) => true,
            _ => false,
        }
    }
}

/// What `bench --reads` found.
#[derive(Clone, Debug, Serialize)]
pub struct ReadReport {
    pub calibration: Calibration,
    pub machine: MachineFacts,
    pub rows: Vec<ReadRow>,
}

/// Runs everything. `calibrated` gets what the machine costs as soon as that is known.
pub fn bench(
    options: &BenchOptions,
    calibrated: impl FnOnce(&MachineFacts, &Calibration),
) -> Result<BenchReport, BenchError> {
    let profiles = profiles(options)?;
    let scratch = Scratch::new(options.dir.as_deref())?;
    let machine = MachineFacts::gather(&scratch.path);
    let calibration = calibrate(&scratch.path, CALIBRATION)?;
    calibrated(&machine, &calibration);
    let mut runs = Vec::new();
    for profile in &profiles {
        let report = if options.cluster.is_empty() {
            run_embedded(options, profile, &scratch.path, calibration)?
        } else {
            run_remote(options, profile)?
        };
        runs.push(report);
    }
    Ok(BenchReport { calibration, machine, runs })
}

/// All profiles are read and checked before the first one runs.
fn profiles(options: &BenchOptions) -> Result<Vec<Profile>, ConfigError> {
    options
        .profiles
        .iter()
        .map(|name| {
            let mut profile = Profile::named_or_file(name)?;
            let ProfileOverrides { in_flight, value_bytes, groups, batch_size, wal_sync } =
                options.overrides;
            profile.in_flight = in_flight.unwrap_or(profile.in_flight);
            profile.value_bytes = value_bytes.unwrap_or(profile.value_bytes);
            profile.groups = groups.unwrap_or(profile.groups);
            profile.batch_size = batch_size.unwrap_or(profile.batch_size);
            profile.wal_sync = wal_sync.unwrap_or(profile.wal_sync);
            profile.nodes = options.nodes;
            profile.shards = options.shards;
            profile.connections = profile.connections.min(profile.in_flight);
            profile.validate(name)?;
            Ok(profile)
        })
        .collect()
}

fn plan(options: &BenchOptions, profile: &Profile, addresses: Vec<String>) -> RunPlan {
    let measured = Duration::from_secs_f64(options.seconds);
    RunPlan {
        name: profile.name.clone(),
        addresses,
        sessions: profile.connections,
        client: random().map_or(1, |bits| bits as u64 | 1 << 63),
        groups: profile.groups,
        value_bytes: profile.value_bytes,
        schedule: Schedule {
            in_flight_max: profile.in_flight,
            rate: options.rate,
            batch_size: profile.batch_size,
        },
        warm_up: measured.div_f64(5.0).min(Duration::from_secs(2)),
        measured,
        show_progress: options.output == Output::Table,
    }
}

fn run_embedded(
    options: &BenchOptions,
    profile: &Profile,
    scratch: &Path,
    calibration: Calibration,
) -> Result<RunReport, BenchError> {
    let dir = scratch.join(&profile.name);
    std::fs::create_dir_all(&dir).map_err(|error| directory_error(&dir, &error))?;
    let cluster = EmbeddedCluster::start(profile, &dir)?;
    let run = drive(plan(options, profile, cluster.addresses()));
    cluster.stop()?;
    let _ = std::fs::remove_dir_all(&dir);
    let (outcome, cpu) = run?;
    Ok(report(options, profile, &outcome, Some(cpu), Some(calibration)))
}

/// `bench --reads`: every kind of read, alone and with as many in flight as asked for, against one
/// cluster, in turns.
pub fn bench_reads(
    options: &BenchOptions,
    calibrated: impl FnOnce(&MachineFacts, &Calibration),
) -> Result<ReadReport, BenchError> {
    let mut profile = profiles(options)?.swap_remove(0);
    profile.lease_reads = true;
    let scratch = Scratch::new(options.dir.as_deref())?;
    let machine = MachineFacts::gather(&scratch.path);
    let calibration = calibrate(&scratch.path, CALIBRATION)?;
    calibrated(&machine, &calibration);
    let dir = scratch.path.join("reads");
    std::fs::create_dir_all(&dir).map_err(|error| directory_error(&dir, &error))?;
    let own = match options.cluster.is_empty() {
        true => Some(EmbeddedCluster::start(&profile, &dir)?),
        false => None,
    };
    let addresses = own.as_ref().map_or(options.cluster.clone(), EmbeddedCluster::addresses);
    let rows = read_rows(options, &profile, &addresses);
    if let Some(cluster) = own {
        cluster.stop()?;
    }
    Ok(ReadReport { calibration, machine, rows: rows? })
}

fn read_rows(
    options: &BenchOptions,
    profile: &Profile,
    addresses: &[String],
) -> Result<Vec<ReadRow>, DriveError> {
    let measured = Duration::from_secs_f64(options.seconds);
    let many = options.overrides.in_flight.unwrap_or(READS_IN_FLIGHT);
    let mut rows = Vec::new();
    for in_flight in [1, many] {
        for kind in ReadKind::ALL {
            let plan = ReadPlan {
                addresses: addresses.to_vec(),
                client: random().map_or(1, |bits| bits as u64 | 1 << 63),
                kind,
                in_flight,
                value_bytes: profile.value_bytes,
                warm_up: measured.div_f64(5.0).min(Duration::from_secs(1)),
                measured,
            };
            let thread = std::thread::Builder::new().name("load-0".into());
            let thread = thread.spawn(move || measure(plan))?;
            rows.push(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
    }
    compare(&mut rows);
    Ok(rows)
}

fn run_remote(options: &BenchOptions, profile: &Profile) -> Result<RunReport, BenchError> {
    let (outcome, _) = drive(plan(options, profile, options.cluster.clone()))?;
    Ok(report(options, profile, &outcome, None, None))
}

/// Runs the load on a thread of its own, whose name tells its CPU time from the nodes'.
fn drive(plan: RunPlan) -> Result<(RunOutcome, CpuUse), DriveError> {
    let body = move || -> Result<(RunOutcome, CpuUse), DriveError> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let load = Load::connect(plan)?;
        let outcome = load.run(
            || before = ThreadCpu::sample().unwrap_or_default(),
            || after = ThreadCpu::sample().unwrap_or_default(),
        )?;
        Ok((outcome, CpuUse::between(&before, &after)))
    };
    let thread = std::thread::Builder::new().name("load-0".into()).spawn(body)?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn report(
    options: &BenchOptions,
    profile: &Profile,
    outcome: &RunOutcome,
    cpu: Option<CpuUse>,
    calibration: Option<Calibration>,
) -> RunReport {
    if let Some(error) = &outcome.first_error {
        tracing::warn!(profile = profile.name, %error, "commands failed; the first error");
    }
    RunReport::new(&Measured {
        profile: &profile.name,
        wal_sync: profile.wal_sync,
        batch_size: profile.batch_size,
        in_flight: profile.in_flight,
        groups: profile.groups,
        value_bytes: profile.value_bytes,
        rate: options.rate.map(u64::from),
        dedup: false,
        nodes: profile.nodes,
        shards: profile.shards,
        elapsed_ns: outcome.elapsed.as_nanos() as u64,
        commands: outcome.commands,
        blocks: outcome.blocks,
        errors: outcome.errors,
        latency: &outcome.latency,
        flushes: outcome.flushes,
        cpu,
        calibration,
    })
}

/// A directory that vanishes with this value.
pub(super) struct Scratch {
    pub path: PathBuf,
}

impl Scratch {
    pub fn new(under: Option<&Path>) -> Result<Self, BenchError> {
        let parent = under.map_or_else(|| PathBuf::from("target"), Path::to_path_buf);
        let path = parent.join(format!("ringraft-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| directory_error(&path, &error))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn directory_error(path: &Path, error: &std::io::Error) -> BenchError {
    BenchError::Directory { path: path.into(), reason: error.to_string() }
}
