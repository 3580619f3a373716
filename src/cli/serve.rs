//! `ringraft serve`.

use std::path::PathBuf;

use clap::Args;

use super::Failure;

/// What one node is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// The node's TOML file.
    pub config: PathBuf,
}

/// Run one node until SIGTERM
///
/// Ports, peers, data directory, shards, timing and limits come from the configuration file;
/// tuning/ holds a commented example. SIGTERM or SIGINT drains and stops; a restart recovers.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Configuration of the node
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(args: ServeArgs) -> Result<(), Failure> {
    let options = ServeOptions { config: args.config };
    let config = options.config.display();
    Err(Failure::Run(format!("serve (with {config}) is not available in this build")))
}
