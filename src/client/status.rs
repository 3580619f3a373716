//! What all shards of a cluster tell about themselves, for people and programs.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::driver::Driver;
use super::{ClientConfig, ClientError};
use crate::runtime::ring::Waker;
use crate::shard::ShardStatus;

/// How long the nodes have to answer.
const LIMIT: Duration = Duration::from_secs(3);

/// One address and what came from it.
#[derive(Clone, Debug, Serialize)]
pub struct NodeReport {
    pub address: String,
    /// In the order of their numbers; empty if the node does not answer.
    pub shards: Vec<ShardStatus>,
    /// Why there is none, or not all.
    pub error: Option<String>,
}

/// The cluster at one moment, as far as its nodes answer.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterReport {
    pub nodes: Vec<NodeReport>,
}

/// Asks every shard of every node.
pub fn cluster_status(addresses: &[String]) -> std::io::Result<ClusterReport> {
    let mut config = ClientConfig::new(addresses.iter().cloned(), session());
    config.deadline_us = LIMIT.as_micros() as u64;
    let mut driver = Driver::new(vec![config], Waker::new()?)?;
    let until = Instant::now() + LIMIT;
    while driver.core(0).shards().is_none()
        && driver.core(0).fault().is_none()
        && Instant::now() < until
    {
        driver.turn()?;
        let pause = driver.now().plus(20_000);
        driver.wait(pause)?;
    }
    let blank = |address: &String| NodeReport {
        address: address.clone(),
        shards: Vec::new(),
        error: Some("no answer".into()),
    };
    let mut report = ClusterReport { nodes: addresses.iter().map(blank).collect() };
    report.ask_all(&mut driver, until)?;
    Ok(report)
}

/// Only names this short-lived session; nothing is proposed under it.
fn session() -> u64 {
    u64::from(std::process::id()) << 32 | 1
}

impl ClusterReport {
    fn ask_all(&mut self, driver: &mut Driver, until: Instant) -> std::io::Result<()> {
        let Some(shards) = driver.core(0).shards() else { return Ok(()) };
        let now = driver.now();
        let mut left = 0;
        for node in 0..self.nodes.len() {
            for shard in 0..shards {
                let tag = node as u64 * u64::from(shards) + u64::from(shard);
                left += u32::from(driver.core(0).status(now, node, shard, tag).is_ok());
            }
        }
        while left > 0 && Instant::now() < until + Duration::from_secs(1) {
            driver.turn()?;
            for (_, reply) in driver.take_replies() {
                left -= 1;
                let node = &mut self.nodes[(reply.tag / u64::from(shards)) as usize];
                node.take(reply.result);
            }
            let pause = driver.now().plus(20_000);
            driver.wait(pause)?;
        }
        self.nodes.iter_mut().for_each(|node| node.shards.sort_by_key(|shard| shard.shard));
        Ok(())
    }

    /// True when every node answered.
    pub fn is_complete(&self) -> bool {
        self.nodes.iter().all(|node| node.error.is_none())
    }

    /// One object.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain structs serialize")
    }

    /// A table of nodes and a table of groups.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{:<22} {:>4} {:>5} {:>5} {:>7} {:>10} {:>12} {:>9}  space",
            "address", "node", "start", "shard", "groups", "recovering", "applied", "flushes"
        );
        for node in &self.nodes {
            for s in &node.shards {
                let _ = writeln!(
                    text,
                    "{:<22} {:>4} {:>5} {:>5} {:>7} {:>10} {:>12} {:>9}  {}{}",
                    node.address,
                    s.node,
                    s.incarnation,
                    s.shard,
                    s.groups.len(),
                    s.recovering,
                    s.commands_applied,
                    s.flushes,
                    s.space,
                    possible_loss(s.possible_data_loss)
                );
            }
            if let Some(error) = &node.error {
                let _ = writeln!(text, "{:<22} {error}", node.address);
            }
        }
        let _ = writeln!(
            text,
            "\n{:>6} {:>4} {:<13} {:>6} {:>6} {:>12} {:>12} {:>12}  digest",
            "group", "node", "role", "leader", "term", "commit", "applied", "last"
        );
        for (node, g) in self.groups() {
            let _ = writeln!(
                text,
                "{:>6} {:>4} {:<13} {:>6} {:>6} {:>12} {:>12} {:>12}  {}{}",
                g.group,
                node,
                g.role,
                g.leader,
                g.term,
                g.commit,
                g.applied,
                g.last,
                g.digest,
                if g.parted { "  PARTED from its leader" } else { "" }
            );
        }
        text
    }

    /// Every group of every node, by group.
    pub fn groups(&self) -> Vec<(u32, &crate::shard::GroupStatus)> {
        let shards = self.nodes.iter().flat_map(|node| &node.shards);
        let mut all: Vec<_> =
            shards.flat_map(|s| s.groups.iter().map(|group| (s.node, group))).collect();
        all.sort_by_key(|(node, group)| (group.group, *node));
        all
    }
}

impl NodeReport {
    fn take(&mut self, answer: Result<bytes::Bytes, ClientError>) {
        match answer.map(|json| ShardStatus::from_json(&json)) {
            Ok(Ok(status)) => {
                self.shards.push(status);
                self.error = None;
            }
            Ok(Err(error)) => self.error = Some(format!("unreadable answer: {error}")),
            Err(error) => self.error = Some(error.to_string()),
        }
    }
}
/// What an operator must not overlook.
fn possible_loss(elections: u64) -> String {
    match elections {
        0 => String::new(),
        n => format!("; POSSIBLE DATA LOSS in {n} elections won here"),
    }
}
