//! `ringraft status`.

use clap::Args;

use super::{Failure, OutputArg, parse_address};
use crate::client::status::cluster_status;
use crate::load::options::Output;

/// Whose status is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusOptions {
    /// Client addresses `host:port` of the nodes; never empty.
    pub cluster: Vec<String>,
    pub output: Output,
}

/// Show a cluster's nodes and groups: leaders, terms, commit and apply indices
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Client addresses of the nodes
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', required = true,
          value_parser = parse_address)]
    cluster: Vec<String>,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    output: OutputArg,
}

pub(super) fn run(args: StatusArgs) -> Result<(), Failure> {
    let options = StatusOptions { cluster: args.cluster, output: args.output.into() };
    let report = cluster_status(&options.cluster).map_err(|e| Failure::Run(e.to_string()))?;
    match options.output {
        Output::Table => super::print(&report.render())?,
        Output::Json => super::print(&(report.to_json() + "\n"))?,
    }
    if report.is_complete() { Ok(()) } else { Err(Failure::Told) }
}
