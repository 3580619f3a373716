//! `ringraft bench`.

use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::runner::{BenchError, bench, bench_reads};
use super::{Failure, OutputArg, parse_address};
use crate::block::{BLOCK_BYTES_MAX, BLOCK_COUNT_MAX};
use crate::load::options::{BenchOptions, DEFAULT_PROFILES, Output, ProfileOverrides};
use crate::load::{reads, table};
use crate::runtime::calibrate::Calibration;
use crate::runtime::machine::MachineFacts;

/// Measure a cluster: an embedded one of three nodes, or a running one
///
/// Starts the nodes in this process, each with its own threads, data directory, log and TCP
/// connections; prints what the machine itself costs (raw write, raw durable write, loopback round
/// trip); runs the profiles one after the other; prints one table.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Measured seconds for each profile
    #[arg(long, default_value = "6", value_name = "S", value_parser = parse_seconds)]
    seconds: f64,

    /// Profile to run, by name or as a TOML file; repeatable [default: financial, iot, logging,
    /// durable-logging]
    #[arg(long = "profile", value_name = "NAME|FILE")]
    profiles: Vec<String>,

    /// Blocks unanswered at one time, instead of the profile's
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    in_flight: Option<u32>,

    /// Bytes of each event, instead of the profile's
    #[arg(long, value_name = "BYTES",
          value_parser = RangedU64ValueParser::<u32>::new().range(..BLOCK_BYTES_MAX as u64))]
    value_size: Option<u32>,

    /// Raft groups, instead of the profile's
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..=100_000))]
    groups: Option<u32>,

    /// Commands in a block, instead of the profile's
    #[arg(long, value_name = "N",
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=BLOCK_COUNT_MAX as u64))]
    batch_size: Option<u32>,

    /// Whether an acknowledgement waits for the disk, instead of the profile's
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    wal_sync: Option<bool>,

    /// Nodes of the embedded cluster: 1, 3, 5 or 7 [default: 3]
    #[arg(long, value_name = "N", value_parser = parse_nodes, conflicts_with = "cluster")]
    nodes: Option<u32>,

    /// Shards (threads, each with its own log) of each embedded node [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "cluster",
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=256))]
    shards: Option<u32>,

    /// Offer this many commands a second whatever the answers do (open loop); latency then counts
    /// from when a command was due [default: as many as the window allows]
    #[arg(long, value_name = "COMMANDS/S")]
    rate: Option<NonZeroU64>,

    /// Measure reads instead: linearizable, follower, lease and stale ones beside blocks of one
    /// command, one and --in-flight [default: 1000] of them at a time, on the first profile's cluster
    #[arg(long)]
    reads: bool,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    output: OutputArg,

    /// Where the embedded nodes make their data directories, which are removed afterwards
    /// [default: ./target]
    #[arg(long, value_name = "DIR", conflicts_with = "cluster")]
    dir: Option<PathBuf>,

    /// Instead of a load: what so many groups cost that have nothing to do, CPU of each node and
    /// memory of each group, measured for --seconds
    #[arg(long, value_name = "N", conflicts_with_all = ["cluster", "profiles"],
          value_parser = RangedU64ValueParser::<u32>::new().range(2..=100_000))]
    idle_groups: Option<u32>,

    /// With --idle-groups: groups do not hibernate
    #[arg(long, requires = "idle_groups")]
    awake: bool,

    /// Measure this running cluster: client addresses of its nodes
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', value_parser = parse_address)]
    cluster: Vec<String>,
}

impl BenchArgs {
    /// With the defaults filled in.
    pub(super) fn into_options(self) -> BenchOptions {
        let mut profiles = self.profiles;
        if profiles.is_empty() {
            profiles = DEFAULT_PROFILES.map(str::to_owned).to_vec();
        }
        BenchOptions {
            seconds: self.seconds,
            profiles,
            overrides: ProfileOverrides {
                in_flight: self.in_flight,
                value_bytes: self.value_size,
                groups: self.groups,
                batch_size: self.batch_size,
                wal_sync: self.wal_sync,
            },
            nodes: self.nodes.unwrap_or(3),
            shards: self.shards.unwrap_or(1),
            rate: self.rate,
            output: self.output.into(),
            dir: self.dir,
            cluster: self.cluster,
        }
    }
}

pub(super) fn run(args: BenchArgs) -> Result<(), Failure> {
    let (idle_groups, awake, reads) = (args.idle_groups, args.awake, args.reads);
    let options = args.into_options();
    if let Some(groups) = idle_groups {
        return super::idle::run(&options, groups, awake);
    }
    if reads {
        return run_reads(&options);
    }
    let report = bench(&options, head_of(&options)).map_err(failure)?;
    match options.output {
        Output::Table => super::print(&table::render_runs(&report.runs)),
        Output::Json => super::print(&(report.to_json() + "\n")),
    }
}

fn run_reads(options: &BenchOptions) -> Result<(), Failure> {
    let report = bench_reads(options, head_of(options)).map_err(failure)?;
    match options.output {
        Output::Table => super::print(&reads::render(&report.rows, report.calibration.rtt_us_p50)),
        Output::Json => {
            let json = serde_json::to_string(&report).expect("plain structs serialize");
            super::print(&(json + "\n"))
        }
    }
}

/// For people the machine and its costs come first: a run takes a while.
fn head_of(options: &BenchOptions) -> impl FnOnce(&MachineFacts, &Calibration) + use<> {
    let people = options.output == Output::Table;
    move |machine, calibration| {
        if people {
            let head = table::render_machine(machine) + &table::render_calibration(calibration);
            let _ = super::print(&head);
        }
    }
}

fn failure(error: BenchError) -> Failure {
    match error.is_usage() {
        true => Failure::Usage(error.to_string()),
        false => Failure::Run(error.to_string()),
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("expected seconds, more than 0 and at most 86400".into()),
    }
}

/// An even number of voters survives no more failures than one fewer does.
fn parse_nodes(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(nodes @ (1 | 3 | 5 | 7)) => Ok(nodes),
        _ => Err("expected 1, 3, 5 or 7 nodes".into()),
    }
}
