//! `ringraft wal`: looks into the logs of a stopped node. Nothing is written, not even a lock.

mod directory;
mod dump;
mod report;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use self::directory::{LogDir, logs};
use self::report::LogReport;
use super::{Failure, LookArgs, OutputArg};

/// Look into the logs of a node: reads only
///
/// DIR is a node's data directory, or one shard's directory in it. The figures of a running node are
/// of no moment in particular: stop it first.
#[derive(Debug, Args)]
pub(super) struct WalArgs {
    #[command(subcommand)]
    command: WalCommand,
}

#[derive(Debug, Subcommand)]
enum WalCommand {
    /// Print every flush and record
    Dump(DumpArgs),
    /// Check every log; name damage, its groups, and whether it was durable. Exit code 1 on rot
    Verify(LookArgs),
    /// Sum up segments, flushes, records and groups
    Stats(LookArgs),
}

#[derive(Debug, Args)]
struct DumpArgs {
    /// Data directory of a node, or of one shard
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Only records of this group
    #[arg(long, value_name = "ID")]
    group: Option<u32>,

    /// Only flushes from this position of the log on
    #[arg(long, value_name = "LSN", default_value_t = 0)]
    from: u64,

    /// Text, or one JSON object a line
    #[arg(long, value_enum, default_value_t)]
    output: OutputArg,
}

pub(super) fn run(args: &WalArgs) -> Result<(), Failure> {
    match &args.command {
        WalCommand::Dump(args) => dump::run(args),
        WalCommand::Verify(args) => verify(args),
        WalCommand::Stats(args) => stats(args),
    }
}

fn reports(dir: &std::path::Path) -> Result<Vec<LogReport>, Failure> {
    let mut reports = Vec::new();
    for mut log in logs(dir)? {
        reports.push(LogReport::of(&mut log)?);
    }
    Ok(reports)
}

fn verify(args: &LookArgs) -> Result<(), Failure> {
    let reports = reports(&args.dir)?;
    let text = match args.output {
        OutputArg::Table => reports.iter().map(LogReport::verdict).collect(),
        OutputArg::Json => report::json(&reports),
    };
    super::print(&text)?;
    if reports.iter().any(LogReport::is_rotten) { Err(Failure::Told) } else { Ok(()) }
}

fn stats(args: &LookArgs) -> Result<(), Failure> {
    let reports = reports(&args.dir)?;
    let text = match args.output {
        OutputArg::Table => reports.iter().map(LogReport::table).collect(),
        OutputArg::Json => report::json(&reports),
    };
    super::print(&text)
}

/// One line for people about a log that cannot be read.
fn unreadable(log: &LogDir, error: impl std::fmt::Display) -> Failure {
    Failure::Run(format!("{}: {error}", log.path.display()))
}

#[cfg(test)]
mod tests;
