//! The figures of a node as a page of OpenMetrics text. Shards are added up here, when somebody
//! asks; `src/docs/operations.md` explains each name, and a test holds it to this list.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::{Registry, Unit};

use super::page::Page;
use crate::metrics::Histogram;
use crate::runtime::process::ProcessFigures;
use crate::runtime::scrape::ShardReport;
use crate::shard::figures::{Figures, PeerFigures};
use crate::shard::snapshots::SnapshotStats;
use crate::wire::client::Refused;

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One number, or one histogram, of a shard.
type Number = fn(&Figures) -> u64;
type Cells = fn(&ShardReport) -> &Histogram;

/// The page. While not all shards answer it has no sums, and `ringraft_shards_answering` says so.
pub fn render(
    shards: Vec<Option<ShardReport>>,
    start_unix_seconds: u64,
    process: ProcessFigures,
) -> Result<String, Error> {
    let mut registry = Registry::default();
    let configured = shards.len();
    let shards: Vec<ShardReport> = shards.into_iter().flatten().collect();
    registry.register_collector(Box::new(Snapshot {
        configured,
        shards,
        start_unix_seconds,
        process,
    }));
    let mut text = String::with_capacity(32 << 10);
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot {
    configured: usize,
    shards: Vec<ShardReport>,
    start_unix_seconds: u64,
    process: ProcessFigures,
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        let page = &mut Page { encoder };
        self.node(page)?;
        self.process(page)?;
        // A sum without one of its shards would look like a counter that was set back.
        if self.shards.len() < self.configured {
            return Ok(());
        }
        self.groups(page)?;
        self.per_group(page)?;
        self.peers(page)?;
        self.commands(page)?;
        self.log(page)?;
        self.log_space(page)?;
        self.snapshots(page)?;
        self.shards(page)?;
        self.network(page)
    }
}

impl Snapshot {
    fn figures(&self) -> impl Iterator<Item = &Figures> {
        self.shards.iter().map(|shard| &shard.figures)
    }

    fn sum(&self, of: impl Fn(&Figures) -> u64) -> u64 {
        self.figures().map(of).sum()
    }

    fn max(&self, of: impl Fn(&Figures) -> u64) -> u64 {
        self.figures().map(of).max().unwrap_or(0)
    }

    fn merged(&self, of: impl Fn(&ShardReport) -> &Histogram) -> Histogram {
        let mut all = Histogram::default();
        self.shards.iter().for_each(|shard| all.merge(of(shard)));
        all
    }

    fn node(&self, page: &mut Page) -> Result<(), Error> {
        let version = [("version", env!("CARGO_PKG_VERSION").to_owned())];
        page.info("ringraft_build", "Version of the program", &version)?;
        let shards = self.configured as u64;
        page.gauge("ringraft_shards", "Shards of this node", None, shards)?;
        let help = "Shards whose figures are in this page";
        page.gauge("ringraft_shards_answering", help, None, self.shards.len() as u64)
    }

    fn groups(&self, page: &mut Page) -> Result<(), Error> {
        let roles: [(&str, Number); 4] = [
            ("leader", |f| f.leaders.into()),
            ("follower", |f| f.followers.into()),
            ("pre_candidate", |f| f.pre_candidates.into()),
            ("candidate", |f| f.candidates.into()),
        ];
        let roles = roles.map(|(role, of)| ([("role", role.to_owned())], self.sum(of)));
        page.gauges("raft_groups", "Groups on this node by its role in them", None, &roles)?;
        let leaderless = self.sum(|f| f.leaderless.into());
        let help = "Groups of which this node knows no leader";
        page.gauge("raft_groups_without_leader", help, None, leaderless)?;
        let behind = self.sum(|f| f.behind.into());
        let help = "Groups in which this node does not keep up with their leader";
        page.gauge("raft_groups_behind", help, None, behind)?;
        let recovering = self.sum(|f| f.recovering.into());
        let help = "Groups that re-sync after a loss and do not vote plainly";
        page.gauge("raft_groups_recovering", help, None, recovering)?;
        let help = "Groups whose committed entries are not their leader's, after a loss";
        let parted = self.sum(|f| f.parted.into());
        page.gauge("raft_groups_parted", help, None, parted)?;
        let help = "Groups with nothing to do, which neither send nor await heartbeats.";
        let hibernating = self.sum(|f| f.hibernating.into());
        page.gauge("raft_groups_hibernating", help, None, hibernating)?;
        let help = "Groups that were here and have ended for good";
        page.gauge("raft_groups_ended", help, None, self.sum(|f| f.ended.into()))?;
        let help = "Highest term of any group";
        page.gauge("raft_term", help, None, self.max(|f| f.term_max))?;
        let sums: [(&str, &str, Number); 3] = [
            ("raft_commit_index", "Commit indices of all groups, summed", |f| f.commit_sum),
            ("raft_applied_index", "Applied indices of all groups, summed", |f| f.applied_sum),
            ("raft_last_index", "Last log indices of all groups, summed", |f| f.last_sum),
        ];
        for (name, help, of) in sums {
            page.gauge(name, help, None, self.sum(of))?;
        }
        let campaigns = self.sum(|f| f.stats.campaigns);
        page.counter("raft_campaigns", "Elections this node stood in", None, campaigns)?;
        let won = self.sum(|f| f.stats.elections_won);
        page.counter("raft_leader_elections", "Elections this node won", None, won)
    }

    /// Only where the configuration asks for it: as many series as there are groups, four times.
    fn per_group(&self, page: &mut Page) -> Result<(), Error> {
        if self.figures().all(|figures| figures.per_group.is_empty()) {
            return Ok(());
        }
        type Of = fn(&crate::shard::figures::GroupFigures) -> u64;
        let families: [(&str, &str, Of); 5] = [
            ("raft_group_leads", "1 where this node leads the group", |g| u64::from(g.leads)),
            ("raft_group_term", "Term of the group", |g| g.term),
            ("raft_group_commit_index", "Commit index of the group", |g| g.commit),
            ("raft_group_applied_index", "Applied index of the group", |g| g.applied),
            ("raft_group_last_index", "Last log index of the group", |g| g.last),
        ];
        for (name, help, of) in families {
            let groups = self.figures().flat_map(|figures| &figures.per_group);
            let series: Vec<_> =
                groups.map(|group| ([("group", group.group.to_string())], of(group))).collect();
            page.gauges(name, help, None, &series)?;
        }
        Ok(())
    }

    /// The other nodes, each over all shards: connected only if every shard's link is up.
    fn merged_peers(&self) -> Vec<PeerFigures> {
        let mut peers: Vec<PeerFigures> = Vec::new();
        for seen in self.figures().flat_map(|figures| &figures.peers) {
            match peers.iter_mut().find(|peer| peer.node == seen.node) {
                None => peers.push(*seen),
                Some(peer) => {
                    peer.connected &= seen.connected;
                    peer.lag_entries = peer.lag_entries.max(seen.lag_entries);
                    peer.egress_bytes += seen.egress_bytes;
                }
            }
        }
        peers
    }

    fn peers(&self, page: &mut Page) -> Result<(), Error> {
        let peers = self.merged_peers();
        let connected = peers.iter().filter(|peer| peer.connected).count() as u64;
        page.gauge("raft_peers", "Other nodes of the cluster", None, peers.len() as u64)?;
        let help = "Other nodes to which every shard has its link";
        page.gauge("raft_peers_connected", help, None, connected)?;
        let lags: Vec<_> = peers
            .iter()
            .map(|peer| ([("peer", peer.node.to_string())], peer.lag_entries))
            .collect();
        let help = "Entries a node is not known to hold, in the led group it is furthest behind in";
        page.gauges("raft_replication_lag_entries", help, None, &lags)
    }

    fn commands(&self, page: &mut Page) -> Result<(), Error> {
        let stages: [(&str, Cells); 3] = [
            ("logged", |s| &s.figures.stages.logged),
            ("committed", |s| &s.figures.stages.committed),
            ("applied", |s| &s.figures.stages.applied),
        ];
        let stages = stages.map(|(stage, of)| ([("stage", stage.to_owned())], self.merged(of)));
        let help = "Proposals of a group and turn: proposed to logged here, proposed to committed, \
                    committed to answered";
        page.times("raft_commit_stage", help, &stages)?;
        let commands = self.sum(|f| f.stats.commands_applied);
        page.counter("raft_commands_applied", "Commands applied", None, commands)?;
        let blocks = self.sum(|f| f.stats.blocks_applied);
        page.counter("raft_blocks_applied", "Blocks applied", None, blocks)?;
        let refused: Vec<_> = Refused::REASONS
            .iter()
            .enumerate()
            .map(|(kind, reason)| {
                ([("reason", (*reason).to_owned())], self.sum(|f| f.stats.refused[kind]))
            })
            .collect();
        page.counters("proposals_refused", "Blocks refused by reason", &refused)?;
        let help = "Appends left out because a socket or the log was full; they are sent again";
        page.counter(
            "raft_appends_held_back",
            help,
            None,
            self.sum(|f| f.stats.appends_held_back),
        )?;
        let help = "Elections after which acknowledged commands may be missing";
        let losses = self.sum(|f| f.stats.possible_data_loss);
        page.counter("possible_data_loss", help, None, losses)?;
        let bytes = Some(Unit::Bytes);
        let uncommitted = self.sum(|f| f.uncommitted_bytes);
        page.gauge(
            "raft_uncommitted",
            "Blocks beyond the commit index",
            bytes.clone(),
            uncommitted,
        )?;
        let help = "Blocks of the log's tail in memory";
        page.gauge("raft_log_cache", help, bytes, self.sum(|f| f.cached_bytes))
    }

    fn log(&self, page: &mut Page) -> Result<(), Error> {
        let syncs = [
            ([("op", "write".to_owned())], self.merged(|s| &s.disk.synced_writes)),
            ([("op", "fdatasync".to_owned())], self.merged(|s| &s.disk.syncs)),
        ];
        let help = "Time of a write through O_DSYNC, and of an fdatasync, submission to completion";
        page.times("wal_sync", help, &syncs)?;
        let help = "Time of a write without sync, submission to completion";
        page.time("wal_write", help, self.merged(|s| &s.disk.plain_writes))?;
        let help = "Time of a read of the log, submission to completion";
        page.time("wal_read", help, self.merged(|s| &s.disk.reads))?;
        let commands = self.merged(|s| &s.figures.flush_commands);
        page.histogram("wal_flush_commands", "Commands in one flush", None, 1, &commands)?;
        page.counter("wal_flushes", "Flushes issued", None, self.sum(|f| f.wal.flushes))?;
        let bytes = self.sum(|f| f.wal.bytes);
        let help = "Bytes of flushes, with headers and padding";
        page.counter("wal_written", help, Some(Unit::Bytes), bytes)?;
        let records = self.sum(|f| f.wal.record_bytes);
        let help = "Bytes of records in the flushes";
        page.counter("wal_record", help, Some(Unit::Bytes), records)?;
        let errors = self.shards.iter().map(|shard| shard.disk.errors).sum();
        page.counter("wal_io_errors", "Operations of the log that failed", None, errors)
    }

    fn log_space(&self, page: &mut Page) -> Result<(), Error> {
        let bytes = || Some(Unit::Bytes);
        let help =
            "Written and not yet synced: what is acknowledged and not synced is at most this";
        page.gauge("wal_unsynced_acked", help, bytes(), self.sum(|f| f.wal.unsynced_bytes))?;
        let oldest = self.max(|f| f.unsynced_us) as f64 / 1e6;
        let help = "Age of the oldest byte that is written and not synced";
        page.gauge_f64("wal_unsynced_age", help, Some(Unit::Seconds), oldest)?;
        let flushes = self.sum(|f| f.wal.in_flight);
        page.gauge("wal_flushes_in_flight", "Flushes under way", None, flushes)?;
        let segments = self.sum(|f| f.wal.segments);
        page.gauge("wal_segments", "Segments that hold the log", None, segments)?;
        let spares = self.sum(|f| f.wal.spares);
        page.gauge("wal_spare_segments", "Segments prepared ahead", None, spares)?;
        let recycled = self.sum(|f| f.wal.recycled);
        page.counter("wal_segments_recycled", "Segments used again", None, recycled)?;
        let room = self.figures().map(|f| f.wal_room_bytes).min().unwrap_or(0);
        let help = "Bytes the log of the fullest shard still takes; 0 is read-only";
        page.gauge("wal_room", help, bytes(), room)
    }

    fn snapshots(&self, page: &mut Page) -> Result<(), Error> {
        let mut count = |name: &str, help: &str, unit, of: fn(&SnapshotStats) -> u64| {
            page.counter(name, help, unit, self.sum(|f| of(&f.snapshots)))
        };
        let bytes = || Some(Unit::Bytes);
        count("snapshots_taken", "Snapshots published", None, |s| s.taken)?;
        count("snapshots_written", "Bytes of snapshots taken", bytes(), |s| s.taken_bytes)?;
        count("snapshots_installed", "Installed in place of a log", None, |s| s.installed)?;
        count("snapshots_sent", "Bytes sent to followers", bytes(), |s| s.sent_bytes)?;
        count("snapshots_resumed", "Transfers gone on with", None, |s| s.resumed)?;
        let help = "Bytes that these found at the follower already";
        count("snapshots_resumed", help, bytes(), |s| s.resumed_bytes)?;
        count("snapshots_received", "Bytes from leaders", bytes(), |s| s.received_bytes)?;
        count("snapshots_failed", "Files that failed or did not verify", None, |s| s.failed)?;
        count("snapshots_refused", "Told by followers that cannot use one", None, |s| s.refused)
    }

    fn shards(&self, page: &mut Page) -> Result<(), Error> {
        let turns = self.merged(|shard| &shard.turns);
        page.time("shard_turn", "Length of a turn of a shard, without its sleep", turns)?;
        let busy: Vec<_> = self
            .shards
            .iter()
            .map(|shard| ([("shard", shard.shard.to_string())], shard.turns.sum() as f64 / 1e6))
            .collect();
        page.counters_f64("shard_busy", "Time in turns", Unit::Seconds, &busy)
    }

    fn network(&self, page: &mut Page) -> Result<(), Error> {
        let bytes = || Some(Unit::Bytes);
        let open = self.shards.iter().map(|shard| u64::from(shard.net.connections)).sum();
        page.gauge("net_connections", "Connections of peers and clients", None, open)?;
        let clients = self.sum(|f| f.clients.into());
        page.gauge("net_clients", "Clients connected", None, clients)?;
        let received = self.shards.iter().map(|shard| shard.net.received_bytes).sum();
        page.counter("net_received", "Bytes received", bytes(), received)?;
        let sent = self.shards.iter().map(|shard| shard.net.sent_bytes).sum();
        page.counter("net_sent", "Bytes sent", bytes(), sent)?;
        let to_peers = self.sum(|f| f.peers.iter().map(|peer| peer.egress_bytes).sum());
        let to_clients = self.sum(|f| f.client_egress_bytes);
        let waiting = [
            ([("to", "peers".to_owned())], to_peers),
            ([("to", "clients".to_owned())], to_clients),
        ];
        page.gauges("net_egress_waiting", "Bytes that wait for a socket", bytes(), &waiting)
    }

    fn process(&self, page: &mut Page) -> Result<(), Error> {
        let bytes = || Some(Unit::Bytes);
        let used = &self.process;
        let help = "Time on a core, user and system, all threads";
        page.counters_f64("process_cpu", help, Unit::Seconds, &[([], used.cpu_seconds)])?;
        page.gauge("process_resident_memory", "Resident memory", bytes(), used.resident_bytes)?;
        page.gauge("process_virtual_memory", "Address space", bytes(), used.virtual_bytes)?;
        page.gauge("process_open_fds", "Open file descriptors", None, used.open_files)?;
        page.gauge("process_threads", "Threads", None, used.threads)?;
        let start = self.start_unix_seconds as f64;
        let help = "When the node was started, since the epoch";
        page.gauge_f64("process_start_time", help, Some(Unit::Seconds), start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::scrape::{DiskFigures, NetFigures};

    fn shard(shard: u32, busy_us: u64) -> Option<ShardReport> {
        let mut turns = Histogram::default();
        turns.observe(busy_us);
        let figures = Figures { groups: 1, leaders: 1, commit_sum: 100, ..Figures::default() };
        let (disk, net) = (DiskFigures::default(), NetFigures::default());
        Some(ShardReport { shard, figures, disk, net, turns, status: None })
    }

    fn lines(shards: Vec<Option<ShardReport>>, starting_with: &str) -> Vec<String> {
        let page = render(shards, 0, ProcessFigures::default()).unwrap();
        let lines = page.lines().filter(|line| line.starts_with(starting_with));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn shards_are_added_up_and_times_are_seconds() {
        let both = || vec![shard(0, 5), shard(1, 3_000_000)];
        assert_eq!(lines(both(), "raft_commit_index"), ["raft_commit_index 200"]);
        let leaders = "raft_groups{role=\"leader\"}";
        assert_eq!(lines(both(), leaders), [format!("{leaders} 2")]);
        assert_eq!(
            lines(both(), "shard_busy_seconds_total"),
            [
                "shard_busy_seconds_total{shard=\"0\"} 0.000005",
                "shard_busy_seconds_total{shard=\"1\"} 3.0"
            ]
        );
        let turns = lines(both(), "shard_turn_seconds");
        assert_eq!(turns[..2], ["shard_turn_seconds_sum 3.000005", "shard_turn_seconds_count 2"]);
        assert_eq!(turns[2], "shard_turn_seconds_bucket{le=\"0.000008\"} 1", "5 µs are in it");
        assert_eq!(turns.last().unwrap(), "shard_turn_seconds_bucket{le=\"+Inf\"} 2");
    }

    #[test]
    fn a_sum_without_one_of_its_shards_is_not_shown() {
        let one = || vec![shard(0, 5), None];
        assert_eq!(lines(one(), "ringraft_shards_answering"), ["ringraft_shards_answering 1"]);
        assert_eq!(lines(one(), "raft_commit_index"), [""; 0]);
        assert_eq!(lines(one(), "process_threads"), ["process_threads 0"]);
    }
}
