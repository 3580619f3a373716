//! Configuration: what a cluster agrees on, what one node needs, and load profiles.
//!
//! | type | from | decides |
//! |---|---|---|
//! | [`ClusterConfig`] | `[cluster]` of every node's file, equal on all | identity, members, groups, limits of the replicated state; hashed into the handshake |
//! | [`NodeConfig`] | `node.toml` | one process: its directory, memory, log and runtime |
//! | [`Profile`] | `tuning/*.toml`, compiled in | one benchmark run |
//!
//! Reading never writes anything and opens no socket. Every error is one line: where, what is wrong,
//! and how to mend it. Unknown keys are refused by name.

mod cluster;
mod node;
mod profile;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

pub use cluster::{ClusterConfig, GROUPS_MAX, NodeAddress, StoreConfig, TimingConfig};
pub use node::{
    FaultConfig, LimitsConfig, LogConfig, LogFormat, LogLevel, MetricsConfig, NodeConfig,
    RuntimeConfig, SnapshotConfig, WalConfig,
};
pub use profile::{BUILTIN_PROFILES, Profile};

/// Why a configuration is not usable. The text is one line and says how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    #[error("{path}: cannot be read: {reason}; check the path and its permissions")]
    Read { path: PathBuf, reason: String },
    #[error("{origin}:{line}: {problem}; mend the line, {example} shows every key")]
    Syntax { origin: String, line: usize, problem: String, example: &'static str },
    #[error("{origin}:{line}: unknown key `{key}`; {hint}")]
    UnknownKey { origin: String, line: usize, key: String, hint: String },
    #[error("{origin}: {key} = {value}: {problem}; {mend}")]
    Invalid {
        origin: String,
        key: &'static str,
        value: String,
        problem: &'static str,
        mend: &'static str,
    },
    #[error(
        "{origin}: data_dir = {path}: missing directory {parent}; create it (mkdir -p) or correct data_dir"
    )]
    MissingDirectory { origin: String, path: PathBuf, parent: PathBuf },
    #[error("unknown profile `{0}`; built in are {list}; give the path of a .toml file for one of your own", list = BUILTIN_PROFILES.join(", "))]
    UnknownProfile(String),
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|e| ConfigError::Read { path: path.to_owned(), reason: e.to_string() })
}

/// Parses `text`; `origin` names it in errors, `example` the file that shows every key.
fn parse<T: DeserializeOwned>(
    text: &str,
    origin: &str,
    example: &'static str,
) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count();
        let origin = origin.to_owned();
        match unknown_key(error.message()) {
            Some((key, hint)) => ConfigError::UnknownKey { origin, line, key, hint },
            None => {
                let problem = error.message().lines().collect::<Vec<_>>().join(", ");
                ConfigError::Syntax { origin, line, problem, example }
            }
        }
    })
}

/// Takes serde's "unknown field `a`, expected one of `b`, `c`" apart.
fn unknown_key(message: &str) -> Option<(String, String)> {
    let mut names = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let key = names.next()?.to_owned();
    let known: Vec<&str> = names.collect();
    let nearest = known.iter().min_by_key(|name| distance(name, &key));
    let hint = match nearest {
        Some(name) if distance(name, &key) <= 1 + key.len() / 3 => {
            format!("did you mean `{name}`?")
        }
        Some(_) => format!("known here are {}", known.join(", ")),
        None => "remove it, nothing can be set here".to_owned(),
    };
    Some((key, hint))
}

/// Edits (insert, delete, replace) from one name to the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Collects nothing: the first thing wrong is the one reported. `origin` names the file.
#[derive(Clone, Copy)]
struct Checker<'a> {
    origin: &'a str,
}

impl Checker<'_> {
    fn ensure(
        &self,
        holds: bool,
        key: &'static str,
        value: impl Display,
        problem: &'static str,
        mend: &'static str,
    ) -> Result<(), ConfigError> {
        if holds {
            return Ok(());
        }
        let (origin, value) = (self.origin.to_owned(), value.to_string());
        Err(ConfigError::Invalid { origin, key, value, problem, mend })
    }

    fn within(
        &self,
        key: &'static str,
        value: u64,
        range: std::ops::RangeInclusive<u64>,
        mend: &'static str,
    ) -> Result<(), ConfigError> {
        self.ensure(range.contains(&value), key, value, "out of range", mend)
    }
}

#[cfg(test)]
mod tests;
