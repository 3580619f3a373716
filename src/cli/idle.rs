//! `ringraft bench --idle-groups`: what many groups cost that have nothing to do.

use std::fmt::Write as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Failure;
use super::runner::{BenchError, Scratch};
use crate::client::status::{ClusterReport, cluster_status};
use crate::config::Profile;
use crate::load::options::{BenchOptions, Output};
use crate::load::sample::ThreadCpu;
use crate::server::embedded::EmbeddedCluster;

/// Groups that have found no leader, or are not at rest, after so long will not get there.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a cluster that comes to rest; each look costs it CPU.
const LOOK: Duration = Duration::from_millis(500);

/// A cluster of three at rest.
struct Rest {
    /// Of each node, parts of a core.
    cpu: Vec<f64>,
    rss_bytes: u64,
    /// Of all replicas of all groups.
    led: usize,
    hibernating: usize,
}

/// Measures `groups` idle groups against one.
pub(super) fn run(options: &BenchOptions, groups: u32, awake: bool) -> Result<(), Failure> {
    let (one, many) =
        measure(options, groups, awake).map_err(|error| Failure::Run(error.to_string()))?;
    let replicas = f64::from(groups - 1) * f64::from(options.nodes);
    let each = many.rss_bytes.saturating_sub(one.rss_bytes) as f64 / replicas;
    match options.output {
        Output::Table => super::print(&table(&one, &many, groups, each)),
        Output::Json => {
            let cpu: Vec<_> = many.cpu.iter().map(|cores| format!("{cores:.5}")).collect();
            super::print(&format!(
                "{{\"idle_groups\":{groups},\"cores_a_node\":[{}],\"bytes_a_group\":{each:.0},\
                 \"led\":{},\"hibernating\":{}}}\n",
                cpu.join(","),
                many.led,
                many.hibernating
            ))
        }
    }
}

fn table(one: &Rest, many: &Rest, groups: u32, each: f64) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:>8}  {:>24}  {:>9}  {:>11}",
        "groups", "CPU of each node", "RSS", "asleep"
    );
    for (count, rest) in [(1, one), (groups, many)] {
        let cpu: Vec<_> = rest.cpu.iter().map(|cores| format!("{:.2} %", cores * 100.0)).collect();
        let rss = rest.rss_bytes as f64 / f64::from(1 << 20);
        let _ = writeln!(
            text,
            "{count:>8}  {:>24}  {rss:>5.1} MiB  {:>11}",
            cpu.join("  "),
            rest.hibernating
        );
    }
    let _ = writeln!(text, "\nmemory of one more group on one node: {each:.0} bytes");
    text
}

fn measure(options: &BenchOptions, groups: u32, awake: bool) -> Result<(Rest, Rest), BenchError> {
    let scratch = Scratch::new(options.dir.as_deref())?;
    let one = at_rest(options, 1, awake, &scratch.path.join("one"))?;
    let many = at_rest(options, groups, awake, &scratch.path.join("many"))?;
    Ok((one, many))
}

fn at_rest(
    options: &BenchOptions,
    groups: u32,
    awake: bool,
    dir: &Path,
) -> Result<Rest, BenchError> {
    let mut profile = Profile::named_or_file("financial")?;
    (profile.groups, profile.nodes, profile.shards) = (groups, options.nodes, options.shards);
    profile.prepared_mib = 64;
    std::fs::create_dir_all(dir)
        .map_err(|error| BenchError::Directory { path: dir.into(), reason: error.to_string() })?;
    let cluster = EmbeddedCluster::start_with(&profile, dir, |cluster| {
        if awake {
            cluster.timing.hibernate_after_ms = 0;
        }
    })?;
    let wanted = groups as usize * options.nodes as usize;
    let begin = Instant::now();
    let report = loop {
        let report = cluster_status(&cluster.addresses()).map_err(BenchError::Look)?;
        let (led, hibernating) = count(&report);
        let rests = led == wanted && (awake || hibernating == wanted);
        if rests || begin.elapsed() > PATIENCE {
            break report;
        }
        sleep(LOOK);
    };
    sleep(2 * LOOK);
    let before = ThreadCpu::sample().unwrap_or_default();
    let since = Instant::now();
    sleep(Duration::from_secs_f64(options.seconds));
    let after = ThreadCpu::sample().unwrap_or_default();
    let took = since.elapsed();
    let node = |id: u32| cores(&before, &after, &format!("node-{id}-"), took);
    let cpu = (1..=options.nodes).map(node).collect();
    let rss_bytes = resident_bytes();
    cluster.stop()?;
    let (led, hibernating) = count(&report);
    Ok(Rest { cpu, rss_bytes, led, hibernating })
}

/// Replicas that know a leader, and those that sleep.
fn count(report: &ClusterReport) -> (usize, usize) {
    let groups = report.groups();
    let led = groups.iter().filter(|(_, group)| group.leader != 0).count();
    (led, groups.iter().filter(|(_, group)| group.hibernating).count())
}

fn cores(before: &[ThreadCpu], after: &[ThreadCpu], prefix: &str, took: Duration) -> f64 {
    let of = |samples: &[ThreadCpu]| -> u64 {
        samples.iter().filter(|t| t.name.starts_with(prefix)).map(|t| t.cpu_ns).sum()
    };
    of(after).saturating_sub(of(before)) as f64 / took.as_nanos() as f64
}

/// Of this process, from `/proc/self/status`; 0 where there is none.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
