//! The command line: parse, call, print, exit code.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the run failed, or `doctor` found something that must be mended |
//! | 2 | bad usage or configuration; nothing was started or written |
//!
//! Results go to standard output; errors, logs and the progress bar to standard error.

mod bench;
mod doctor;
mod group;
mod idle;
mod leader;
mod logging;
mod member;
mod recover;
mod runner;
mod serve;
mod sim;
mod snapshot;
mod status;
mod wal;

pub use serve::ServeOptions;
pub use status::StatusOptions;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::load::options::Output;

/// A batched multi-Raft replication engine for Linux.
#[derive(Debug, Parser)]
#[command(name = "ringraft", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::BenchArgs),
    Serve(serve::ServeArgs),
    Status(status::StatusArgs),
    Leader(leader::LeaderArgs),
    Doctor(doctor::DoctorArgs),
    Member(member::MemberArgs),
    Group(group::GroupArgs),
    Recover(recover::RecoverArgs),
    Sim(sim::SimArgs),
    Snapshot(snapshot::SnapshotArgs),
    Wal(wal::WalArgs),
}

/// Why a command ends without having done what was asked: one line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The command line or a configuration is wrong: exit code 2.
    Usage(String),
    /// It was tried and failed: exit code 1.
    Run(String),
    /// The same, and what there is to say was printed.
    Told,
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    // Usage errors leave here with code 2, --help and --version with 0.
    let cli = Cli::parse();
    exit_code(dispatch(cli.command))
}

fn dispatch(command: Command) -> Result<(), Failure> {
    if let Command::Serve(args) = command {
        // A node's log has its level and format in its configuration.
        return serve::run(args);
    }
    logging::start()?;
    match command {
        Command::Bench(args) => bench::run(args),
        Command::Serve(_) => unreachable!("handled above"),
        Command::Status(args) => status::run(args),
        Command::Leader(args) => leader::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Member(args) => member::run(args),
        Command::Group(args) => group::run(args),
        Command::Recover(args) => recover::run(&args),
        Command::Sim(args) => sim::run(&args),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::Wal(args) => wal::run(&args),
    }
}

fn exit_code(result: Result<(), Failure>) -> ExitCode {
    let (code, message) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => (2, message),
        Err(Failure::Run(message)) => (1, message),
        Err(Failure::Told) => return ExitCode::from(1),
    };
    eprintln!("error: {message}");
    ExitCode::from(code)
}

/// Prints a result. A reader that went away (`ringraft doctor | head -1`) is no failure.
fn print(result: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(result.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Run(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Of commands that look into the files of a stopped node.
#[derive(Debug, Args)]
struct LookArgs {
    /// Data directory of a node, or of one shard
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    output: OutputArg,
}

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum OutputArg {
    /// For people
    #[default]
    Table,
    /// One JSON object and nothing else on standard output
    Json,
}

impl From<OutputArg> for Output {
    fn from(arg: OutputArg) -> Self {
        match arg {
            OutputArg::Table => Self::Table,
            OutputArg::Json => Self::Json,
        }
    }
}

/// `host:port`, also `[v6]:port`; the name is looked up later.
fn parse_address(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("expected host:port")?;
    if host.is_empty() || (host.contains(':') && !host.starts_with('[')) {
        return Err("expected host:port, or [address]:port for IPv6".into());
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(text.to_owned()),
        _ => Err(format!("{port:?} is not a port between 1 and 65535")),
    }
}

#[cfg(test)]
mod tests;
