//! Whether a node works, and whether it can serve.

use super::http::Answer;
use crate::runtime::scrape::ShardReport;

/// What is known of a node when somebody asks.
pub struct State {
    /// All shards have recovered and accept connections.
    pub started: bool,
    pub stopping: bool,
    /// By shard; `None` = no answer.
    pub shards: Vec<Option<ShardReport>>,
}

impl State {
    /// Shards that were asked and said nothing.
    pub fn silent(&self) -> Vec<usize> {
        let silent = self.shards.iter().enumerate().filter(|(_, report)| report.is_none());
        silent.map(|(shard, _)| shard).collect()
    }
}

/// A node that starts (which may take long: it reads its log) or stops is alive. One whose shard
/// says nothing for a second is not: a shard never waits for a disk or a socket.
pub fn live(state: &State) -> Answer {
    match state.silent().first() {
        Some(shard) if state.started && !state.stopping => {
            Answer::text(503, format!("not live: shard {shard} does not answer"))
        }
        _ => Answer::text(200, "live"),
    }
}

/// Ready: every group of this node has a leader that this node knows, so that a client is served
/// here or sent to the right place, and this node keeps up with it, so that another one may stop: a
/// majority that counts this node commits at once.
pub fn ready(state: &State) -> Answer {
    match reason(state) {
        None => Answer::text(200, "ready"),
        Some(reason) => Answer::text(503, format!("not ready: {reason}")),
    }
}

fn reason(state: &State) -> Option<String> {
    if state.stopping {
        return Some("the node is stopping".into());
    }
    if !state.started {
        return Some("the node is starting: its shards read their logs".into());
    }
    if let Some(shard) = state.silent().first() {
        return Some(format!("shard {shard} does not answer"));
    }
    let reports = state.shards.iter().flatten();
    let reasons = [not_recovered, leaderless, behind];
    reasons.iter().find_map(|reason| reports.clone().find_map(reason))
}

fn not_recovered(report: &ShardReport) -> Option<String> {
    let shard = report.shard;
    (!report.figures.recovered).then(|| format!("shard {shard} is syncing what it recovered"))
}

fn leaderless(report: &ShardReport) -> Option<String> {
    let figures = &report.figures;
    some_groups(report, figures.leaderless, "know no leader", &figures.leaderless_groups)
}

fn behind(report: &ShardReport) -> Option<String> {
    let figures = &report.figures;
    some_groups(report, figures.behind, "do not keep up with their leader", &figures.behind_groups)
}

fn some_groups(report: &ShardReport, count: u32, what: &str, first: &[u32]) -> Option<String> {
    let (shard, all) = (report.shard, report.figures.groups);
    let named: Vec<_> = first.iter().map(u32::to_string).collect();
    let more = if count as usize > named.len() { ", ..." } else { "" };
    let named = named.join(", ");
    (count > 0).then(|| format!("{count} of {all} groups of shard {shard} {what}: {named}{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Histogram;
    use crate::runtime::scrape::{DiskFigures, NetFigures};
    use crate::shard::figures::Figures;

    fn shard(shard: u32, leaderless_groups: &[u32]) -> Option<ShardReport> {
        let figures = Figures {
            groups: 10,
            recovered: true,
            leaderless: leaderless_groups.len() as u32,
            leaderless_groups: leaderless_groups.iter().copied().take(2).collect(),
            ..Figures::default()
        };
        let (disk, net) = (DiskFigures::default(), NetFigures::default());
        Some(ShardReport { shard, figures, disk, net, turns: Histogram::default(), status: None })
    }

    fn state(shards: Vec<Option<ShardReport>>) -> State {
        State { started: true, stopping: false, shards }
    }

    fn told(state: &State) -> (u16, u16, String) {
        let (live, ready) = (live(state), ready(state));
        (live.status, ready.status, ready.body.trim_end().to_owned())
    }

    #[test]
    fn ready_needs_a_leader_for_every_group_and_live_does_not() {
        assert_eq!(told(&state(vec![shard(0, &[]), shard(1, &[])])), (200, 200, "ready".into()));
        let without = state(vec![shard(0, &[]), shard(1, &[3, 5, 7])]);
        let why = "not ready: 3 of 10 groups of shard 1 know no leader: 3, 5, ...";
        assert_eq!(told(&without), (200, 503, why.into()));
        let mut late = state(vec![shard(0, &[])]);
        let figures = &mut late.shards[0].as_mut().unwrap().figures;
        (figures.behind, figures.behind_groups) = (1, vec![4]);
        let why = "not ready: 1 of 10 groups of shard 0 do not keep up with their leader: 4";
        assert_eq!(told(&late), (200, 503, why.into()));
        let mut unsynced = state(vec![shard(0, &[])]);
        unsynced.shards[0].as_mut().unwrap().figures.recovered = false;
        let why = "not ready: shard 0 is syncing what it recovered";
        assert_eq!(told(&unsynced), (200, 503, why.into()));
    }

    #[test]
    fn a_shard_that_says_nothing_is_dead_unless_the_node_starts_or_stops() {
        let mut silent = state(vec![shard(0, &[]), None]);
        assert_eq!(told(&silent), (503, 503, "not ready: shard 1 does not answer".into()));
        silent.stopping = true;
        assert_eq!(told(&silent), (200, 503, "not ready: the node is stopping".into()));
        let starting = State { started: false, ..state(vec![None]) };
        let why = "not ready: the node is starting: its shards read their logs";
        assert_eq!(told(&starting), (200, 503, why.into()));
    }
}
