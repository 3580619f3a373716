//! `ringraft leader`: who leads, moved by hand.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::{Failure, parse_address};
use crate::client::operator::Operator;
use crate::client::status::{ClusterReport, cluster_status};
use crate::ids::GroupId;
use crate::wire::admin::AdminRequest;

/// How long a transfer that has begun is waited for.
const LIMIT: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Move leadership between nodes
#[derive(Debug, Args)]
pub(super) struct LeaderArgs {
    #[command(subcommand)]
    command: LeaderCommand,
}

#[derive(Debug, Subcommand)]
enum LeaderCommand {
    /// Hand groups over to one node, for example before another one is taken down
    Transfer(TransferArgs),
    /// Hand every group over to the node it belongs to: by priority, and evenly
    Balance(BalanceArgs),
}

#[derive(Debug, Args)]
struct TransferArgs {
    /// Client addresses of the nodes
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', required = true,
          value_parser = parse_address)]
    cluster: Vec<String>,

    /// The node that is to lead
    #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u32).range(1..))]
    to: u32,

    /// Groups to hand over [default: all]
    #[arg(long = "group", value_name = "G,...", value_delimiter = ',')]
    groups: Vec<u32>,
}

#[derive(Debug, Args)]
struct BalanceArgs {
    /// Client addresses of the nodes
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', required = true,
          value_parser = parse_address)]
    cluster: Vec<String>,
}

pub(super) fn run(args: LeaderArgs) -> Result<(), Failure> {
    let (cluster, to, groups) = match args.command {
        LeaderCommand::Transfer(args) => (args.cluster, Some(args.to), args.groups),
        LeaderCommand::Balance(args) => (args.cluster, None, Vec::new()),
    };
    let status = || cluster_status(&cluster).map_err(|e| Failure::Run(e.to_string()));
    let before = leaders(&status()?);
    let operator = Operator::connect(cluster.clone())
        .map_err(|error| Failure::Run(format!("cannot start a client: {error}")))?;
    let mut refused = 0;
    let mut waiting = Vec::new();
    for &(group, leader) in &before {
        let wanted = groups.is_empty() || groups.contains(&group);
        if !wanted || to.is_some_and(|to| to == leader) {
            continue;
        }
        let request = AdminRequest::Transfer { to };
        match operator.tell(GroupId(group), None, request) {
            Ok(reply) if reply.done => {
                if let Some(to) = reply.data["to"].as_u64() {
                    waiting.push((group, to as u32));
                }
            }
            Ok(reply) => {
                refused += 1;
                super::print(&format!("group {group}: {}\n", reply.text))?;
            }
            Err(error) => {
                refused += 1;
                super::print(&format!("group {group}: {error}\n"))?;
            }
        }
    }
    let late = wait_for(&operator, &waiting);
    for group in &late {
        super::print(&format!("group {group}: the transfer was given up; try again\n"))?;
    }
    let moved = waiting.len() - late.len();
    let after = leaders(&status()?);
    super::print(&format!("{moved} groups handed over; {}\n", counts(&after)))?;
    if refused == 0 && late.is_empty() { Ok(()) } else { Err(Failure::Told) }
}

/// Groups whose new leader does not lead in time.
fn wait_for(operator: &Operator, waiting: &[(u32, u32)]) -> Vec<u32> {
    let end = Instant::now() + LIMIT;
    // Whoever answers: the new leader need not be in the list of this command.
    let leads = |group: u32, node: u32| {
        let show = operator.tell(GroupId(group), None, AdminRequest::Show);
        show.is_ok_and(|reply| reply.data["leader"] == node)
    };
    let mut late = Vec::new();
    for &(group, node) in waiting {
        while !leads(group, node) {
            if Instant::now() >= end {
                late.push(group);
                break;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    late
}

/// Group and leader, where one is known; of two that say so, the one of the later term.
fn leaders(report: &ClusterReport) -> Vec<(u32, u32)> {
    let mut all: Vec<(u32, u64, u32)> = report
        .groups()
        .into_iter()
        .map(|(node, g)| (g.group, g.term, if g.role == "leader" { node } else { g.leader }))
        .filter(|(_, _, leader)| *leader > 0)
        .collect();
    all.sort_by_key(|&(group, term, _)| (group, std::cmp::Reverse(term)));
    all.dedup_by_key(|(group, _, _)| *group);
    all.into_iter().map(|(group, _, leader)| (group, leader)).collect()
}

/// "node 1 leads 5 groups, node 2 leads 4"
fn counts(leaders: &[(u32, u32)]) -> String {
    let mut by_node = std::collections::BTreeMap::new();
    for (_, leader) in leaders {
        *by_node.entry(leader).or_insert(0) += 1;
    }
    let texts: Vec<_> =
        by_node.iter().map(|(node, count)| format!("node {node} leads {count}")).collect();
    if texts.is_empty() { "nobody leads".into() } else { texts.join(", ") }
}
