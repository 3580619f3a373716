//! Logs: to standard error, filtered by `RINGRAFT_LOG`, as text or as JSON.

use std::env::{self, VarError};
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::Failure;

/// What is logged, in the syntax of tracing's directives, for example
/// `info,ringraft::raft=debug`.
const FILTER: &str = "RINGRAFT_LOG";
/// `text` (default) or `json`.
const FORMAT: &str = "RINGRAFT_LOG_FORMAT";

/// Installs the process's subscriber: warnings as text, unless the environment says otherwise.
pub(super) fn start() -> Result<(), Failure> {
    start_with("warn", false)
}

/// The same with other defaults.
pub(super) fn start_with(level: &str, json: bool) -> Result<(), Failure> {
    let directives = variable(FILTER)?;
    let filter = filter(if directives.is_empty() { level } else { &directives })?;
    let format = variable(FORMAT)?;
    let json = if format.is_empty() { json } else { is_json(&format)? };
    let colour = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(std::io::stderr);
    let installed = if json { builder.json().try_init() } else { builder.try_init() };
    installed.map_err(|e| Failure::Run(format!("cannot start logging: {e}")))
}

fn variable(name: &str) -> Result<String, Failure> {
    match env::var(name) {
        Ok(value) => Ok(value),
        Err(VarError::NotPresent) => Ok(String::new()),
        Err(VarError::NotUnicode(_)) => Err(Failure::Usage(format!("{name} is not valid UTF-8"))),
    }
}

fn filter(directives: &str) -> Result<EnvFilter, Failure> {
    let directives = if directives.is_empty() { "warn" } else { directives };
    EnvFilter::try_new(directives)
        .map_err(|e| Failure::Usage(format!("{FILTER}={directives}: {e}; try {FILTER}=info")))
}

fn is_json(format: &str) -> Result<bool, Failure> {
    match format {
        "" | "text" => Ok(false),
        "json" => Ok(true),
        other => Err(Failure::Usage(format!("{FORMAT}={other}: expected text or json"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_logged_unless_more_is_asked_for() {
        assert_eq!(filter("").unwrap().to_string(), "warn");
        assert!(filter("info,ringraft::raft=debug").is_ok());
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let Err(Failure::Usage(message)) = filter("ringraft=loud") else { panic!() };
        assert!(message.contains("RINGRAFT_LOG=ringraft=loud"), "{message}");
        let Err(Failure::Usage(message)) = is_json("xml") else { panic!() };
        assert!(message.contains("RINGRAFT_LOG_FORMAT=xml"), "{message}");
    }

    #[test]
    fn json_is_asked_for_by_name() {
        assert_eq!(
            (is_json("json"), is_json("text"), is_json("")),
            (Ok(true), Ok(false), Ok(false))
        );
    }
}
