//! `ringraft recover`: goes on without what nobody can give back.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::config::NodeConfig;
use crate::ids::NodeId;
use crate::server::DirectoryError;
use crate::server::recover::{Accepted, GroupReport, Left, RecoverError, ShardReport, Stopped};
use crate::shard::forced::Forced;
use crate::wal::Verdict;

/// Show what a stopped node has lost; with --accept-loss, go on without it
///
/// For a node that is alone and whose log is damaged, and for a cluster that has lost the disks of a
/// majority for good. Everything else recovers by itself. Acknowledged commands may be gone
/// afterwards: the groups begin a new recovery epoch, and sessions and readers of the old one are
/// told. Of several survivors take the one whose groups have the highest epoch, last term and last
/// index, stop all others, and never start a lost node on its old disk again.
#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    /// Configuration of the node, which must not be running
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Nodes whose disks are gone for good. After damage all that this node has ever known and that
    /// are not among the members it shows: damage may have taken what made them members
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    lost: Vec<u32>,

    /// Go on without what is missing; without this nothing is changed
    #[arg(long)]
    accept_loss: bool,
}

pub(super) fn run(args: &RecoverArgs) -> Result<(), Failure> {
    let config = NodeConfig::load(&args.config).map_err(|e| Failure::Usage(e.to_string()))?;
    let node = Stopped::open(&config).map_err(failure)?;
    let report = node.report().map_err(failure)?;
    let mut text = format!(
        "node {} in {}: stopped, start {}\n",
        config.id,
        config.data_dir.display(),
        node.incarnation()
    );
    report.iter().for_each(|shard| describe(shard, &mut text));
    super::print(&text)?;
    let lost: Vec<_> = args.lost.iter().copied().map(NodeId).collect();
    if !args.accept_loss {
        let left = node.check(&report, &lost).map_err(failure)?;
        return super::print(&format!(
            "\nnothing was changed. What is shown above is what is left; everything else would be \
             given up:\nrun it again with --accept-loss\n{}",
            left_alone(&left)
        ));
    }
    let accepted = node.accept(&lost).map_err(failure)?;
    super::print(&conclude(&accepted, &lost))
}

fn failure(error: RecoverError) -> Failure {
    match error {
        RecoverError::Directory(DirectoryError::InUse { path }) => Failure::Usage(format!(
            "{} is in use: a running node recovers by itself or has nothing to recover; stop it \
             first",
            path.display()
        )),
        RecoverError::Unknown(_) | RecoverError::Itself(_) | RecoverError::NotAVoter(_) => {
            Failure::Usage(error.to_string())
        }
        _ => Failure::Run(error.to_string()),
    }
}

fn describe(report: &ShardReport, text: &mut String) {
    let ShardReport { shard, verdict, valid, durable, damage, groups } = report;
    let verdict = match verdict {
        Verdict::Empty => "empty",
        Verdict::Clean => "whole",
        Verdict::TornTail => "whole, with the torn end of a write that nobody was told of",
        Verdict::Rot { .. } => "DAMAGED below its durable mark",
    };
    let _ = writeln!(
        text,
        "shard {shard}: the log is {verdict}; unbroken through {valid}, durable through {durable}"
    );
    if let Some(damage) = damage.as_ref().filter(|damage| damage.was_durable) {
        let _ = writeln!(
            text,
            "  damaged at segment {:012}.wal offset {}",
            damage.segment.0, damage.offset
        );
    }
    let _ = writeln!(
        text,
        "  {:>8} {:>12} {:>8} {:>8} {:>6} {:>12}  voters",
        "group", "last", "of term", "term", "epoch", "committed"
    );
    groups.iter().for_each(|group| describe_group(group, text));
}

fn describe_group(report: &GroupReport, text: &mut String) {
    let GroupReport { group, last, last_term, term, commit, epoch, recovering, behind, .. } =
        report;
    let voters: Vec<_> = report.voters().iter().map(ToString::to_string).collect();
    let _ = write!(
        text,
        "  {:>8} {:>12} {:>8} {:>8} {epoch:>6} {:>12}  {}",
        group.0,
        last.0,
        last_term.0,
        term.0,
        commit.0,
        voters.join(",")
    );
    if *behind > *last {
        let _ = write!(text, "; {} entries lie behind the damage", behind.since(*last));
    }
    text.push_str(if *recovering { "; RECOVERING\n" } else { "\n" });
}

fn left_alone(left: &Left) -> String {
    left.iter().map(|(group, why)| format!("  group {group} is left alone: {why}\n")).collect()
}

fn conclude(accepted: &Accepted, lost: &[NodeId]) -> String {
    let Accepted { forced, left } = accepted;
    let mut text = String::from("\nPOSSIBLE DATA LOSS accepted\n");
    for Forced { group, index, term, epoch } in forced {
        let _ = writeln!(text, "  group {group}: epoch {epoch} begins at {index} in term {term}");
    }
    text.push_str(&left_alone(left));
    if !lost.is_empty() {
        let names: Vec<_> = lost.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            text,
            "without node {}, whose disks are refused from now on; start this node, then the other \
             survivors",
            names.join(", ")
        );
    } else {
        text.push_str("start the node\n");
    }
    text
}
