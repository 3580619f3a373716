//! `ringraft serve`.

use std::path::PathBuf;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::info;

use super::Failure;
use crate::config::{LogFormat, NodeConfig};
use crate::server::Node;

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
    #[cfg(feature = "mutants")]
    plant()?;
    let options = ServeOptions { config: args.config };
    let config = NodeConfig::load(&options.config).map_err(|e| Failure::Usage(e.to_string()))?;
    super::logging::start_with(config.log.level.as_str(), config.log.format == LogFormat::Json)?;
    let mut signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|e| Failure::Run(format!("cannot wait for signals: {e}")))?;
    let node = Node::start(&config).map_err(|error| match error.is_configuration() {
        true => Failure::Usage(error.to_string()),
        false => Failure::Run(error.to_string()),
    })?;
    let (stop, handle) = (node.stopper(), signals.handle());
    let waiter = std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            info!("asked to stop: draining");
            stop();
        }
    });
    let result = node.wait();
    handle.close();
    let _ = waiter.join();
    result.map_err(|failure| Failure::Run(failure.to_string()))
}

/// Makes the mutant live that `RINGRAFT_MUTANT` names.
#[cfg(feature = "mutants")]
fn plant() -> Result<(), Failure> {
    use crate::mutants::{Mutant, set};
    let Ok(name) = std::env::var("RINGRAFT_MUTANT") else { return Ok(()) };
    let unknown = || Failure::Usage(format!("RINGRAFT_MUTANT: there is no mutant {name}"));
    set(Some(Mutant::by_name(&name).ok_or_else(unknown)?));
    Ok(())
}
