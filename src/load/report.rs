//! The result of a benchmark as values. Their serde form is the JSON that `--output json` prints:
//! field names and order are an interface, pinned by a test.

use serde::Serialize;

use super::histogram::{Latency, Percentiles};
use super::sample::CpuUse;
use crate::runtime::calibrate::Calibration;
use crate::runtime::machine::MachineFacts;

/// What the driver of one run knows when it ends.
#[derive(Clone, Debug)]
pub struct Measured<'a> {
    pub profile: &'a str,
    pub wal_sync: bool,
    pub batch_size: u32,
    pub in_flight: u32,
    pub groups: u32,
    pub value_bytes: u32,
    /// Commands a second offered; `None` for a closed loop.
    pub rate: Option<u64>,
    /// The commands carry event ids, looked up in the dedup set.
    pub dedup: bool,
    pub nodes: u32,
    pub shards: u32,
    /// Length of the measured time.
    pub elapsed_ns: u64,
    /// Commands acknowledged in the measured time.
    pub commands: u64,
    /// Blocks acknowledged in the measured time.
    pub blocks: u64,
    /// Commands refused or given up in the measured time.
    pub errors: u64,
    pub latency: &'a Latency,
    /// Log writes completed by the leaders' shards; `None` where the nodes do not tell.
    pub flushes: Option<u64>,
    /// CPU time; `None` for a cluster in other processes.
    pub cpu: Option<CpuUse>,
    /// What the machine costs without any of this; `None` for a cluster elsewhere.
    pub calibration: Option<Calibration>,
}

/// One line of the table. Figures are rounded to three decimals; `null` = not known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    pub profile: String,
    pub wal_sync: bool,
    pub batch_size: u32,
    pub in_flight: u32,
    pub groups: u32,
    pub value_bytes: u32,
    pub seconds: f64,
    /// Commands acknowledged.
    pub commands: u64,
    pub commands_per_s: f64,
    /// 10^6 bytes of values acknowledged a second: keys, headers and copies do not count.
    pub mb_per_s: f64,
    /// From due to acknowledged.
    pub latency_us: Percentiles,
    pub flushes_per_s: Option<f64>,
    pub commands_per_flush: Option<f64>,
    /// Commands refused or given up.
    pub errors: u64,
    pub blocks_per_s: f64,
    /// Cores that the nodes kept busy.
    pub cpu_nodes: Option<f64>,
    /// Cores that the load generator kept busy.
    pub cpu_load: Option<f64>,
    /// Median latency over [`Calibration::floor_us`].
    pub p50_over_floor: Option<f64>,
    pub nodes: u32,
    pub shards: u32,
    pub dedup: bool,
    /// Commands a second offered (only with `--rate`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// From sent to acknowledged (only with `--rate`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us_uncorrected: Option<Percentiles>,
}

impl RunReport {
    /// Works out the ratios.
    pub fn new(measured: &Measured<'_>) -> Self {
        let m = measured;
        let seconds = m.elapsed_ns as f64 / 1e9;
        let per_s = |count: u64| rounded(ratio(count as f64, seconds));
        let latency_us = m.latency.percentiles();
        let floor_us = m.calibration.map(|c| c.floor_us(m.wal_sync));
        let cores = |ns: u64| rounded(ratio(ns as f64, m.elapsed_ns as f64));
        Self {
            profile: m.profile.to_owned(),
            wal_sync: m.wal_sync,
            batch_size: m.batch_size,
            in_flight: m.in_flight,
            groups: m.groups,
            value_bytes: m.value_bytes,
            seconds: rounded(seconds),
            commands: m.commands,
            commands_per_s: per_s(m.commands),
            mb_per_s: rounded(ratio(m.commands as f64 * f64::from(m.value_bytes) / 1e6, seconds)),
            latency_us,
            flushes_per_s: m.flushes.map(per_s),
            commands_per_flush: m.flushes.map(|n| rounded(ratio(m.commands as f64, n as f64))),
            errors: m.errors,
            blocks_per_s: per_s(m.blocks),
            cpu_nodes: m.cpu.map(|cpu| cores(cpu.nodes_ns)),
            cpu_load: m.cpu.map(|cpu| cores(cpu.load_ns)),
            p50_over_floor: floor_us.map(|floor| rounded(ratio(latency_us.p50, floor))),
            nodes: m.nodes,
            shards: m.shards,
            dedup: m.dedup,
            rate: m.rate,
            latency_us_uncorrected: m.latency.uncorrected_percentiles(),
        }
    }
}

/// A whole call of `bench`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchReport {
    pub calibration: Calibration,
    pub machine: MachineFacts,
    pub runs: Vec<RunReport>,
}

impl BenchReport {
    /// One object on one line, without the line's end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain structs with string keys always serialize")
    }
}

/// `a / b`, and 0 where nothing was counted: JSON has no infinity.
fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

fn rounded(figure: f64) -> f64 {
    (figure * 1e3).round() / 1e3
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::Value;

    const CALIBRATION: Calibration = Calibration {
        write_us_p50: 30.0,
        dsync_write_us_p50: 90.0,
        dsync_write_us_p99: 210.0,
        rtt_us_p50: 35.0,
    };

    pub fn measured(latency: &Latency) -> Measured<'_> {
        Measured {
            profile: "durable-logging",
            wal_sync: true,
            batch_size: 1000,
            in_flight: 16,
            groups: 4,
            value_bytes: 128,
            rate: None,
            dedup: false,
            nodes: 3,
            shards: 1,
            elapsed_ns: 2_000_000_000,
            commands: 5_000_000,
            blocks: 5000,
            errors: 3,
            latency,
            flushes: Some(2500),
            cpu: Some(CpuUse {
                nodes_ns: 2_500_000_000,
                load_ns: 600_000_000,
                other_ns: 1_000_000,
            }),
            calibration: Some(CALIBRATION),
        }
    }

    pub fn bench_report(runs: Vec<RunReport>) -> BenchReport {
        let machine = MachineFacts {
            cpu: "Fast CPU".into(),
            cores: 2,
            memory_bytes: 24 << 30,
            kernel: "6.18.0".into(),
            filesystem: "ext4".into(),
            locked_memory_bytes: Some(8 << 20),
            open_files: None,
        };
        BenchReport { calibration: CALIBRATION, machine, runs }
    }

    /// Keys of the object at `pointer`, sorted.
    fn keys<'a>(json: &'a Value, pointer: &str) -> Vec<&'a str> {
        let object = json.pointer(pointer).and_then(Value::as_object).expect(pointer);
        let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    fn sorted<const N: usize>(mut keys: [&str; N]) -> [&str; N] {
        keys.sort_unstable();
        keys
    }

    const RUN_KEYS: [&str; 21] = [
        "profile",
        "wal_sync",
        "batch_size",
        "in_flight",
        "groups",
        "value_bytes",
        "seconds",
        "commands",
        "commands_per_s",
        "mb_per_s",
        "latency_us",
        "flushes_per_s",
        "commands_per_flush",
        "errors",
        "blocks_per_s",
        "cpu_nodes",
        "cpu_load",
        "p50_over_floor",
        "nodes",
        "shards",
        "dedup",
    ];

    #[test]
    fn the_json_has_the_keys_that_scripts_rely_on() {
        let latency = Latency::new(false);
        let report = bench_report(vec![RunReport::new(&measured(&latency))]);
        let text = report.to_json();
        assert!(!text.contains('\n'));
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(keys(&json, ""), ["calibration", "machine", "runs"]);
        assert_eq!(
            keys(&json, "/calibration"),
            ["dsync_write_us_p50", "rtt_us_p50", "write_us_p50"]
        );
        assert_eq!(keys(&json, "/runs/0"), sorted(RUN_KEYS));
        let run = &text[text.find("\"runs\"").unwrap()..];
        let places = RUN_KEYS.map(|key| run.find(&format!("\"{key}\":")).unwrap());
        assert!(places.is_sorted(), "the documented keys come in the documented order");
        assert_eq!(keys(&json, "/runs/0/latency_us"), ["max", "p50", "p90", "p99", "p999"]);
    }

    #[test]
    fn a_rate_adds_the_uncorrected_figures() {
        let mut latency = Latency::new(true);
        latency.record(0, 400_000, 500_000, 1);
        let report = RunReport::new(&Measured { rate: Some(1000), ..measured(&latency) });
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rate"], 1000);
        assert!(json["latency_us"]["p50"].as_f64() > Some(490.0));
        assert!(json["latency_us_uncorrected"]["p50"].as_f64() < Some(110.0));
    }

    #[test]
    fn the_ratios_follow_from_the_counts() {
        let mut latency = Latency::new(false);
        latency.record(0, 0, 320_000, 1000);
        let run = RunReport::new(&measured(&latency));
        assert_eq!((run.commands_per_s, run.blocks_per_s), (2_500_000.0, 2500.0));
        assert_eq!(run.mb_per_s, 320.0);
        assert_eq!((run.flushes_per_s, run.commands_per_flush), (Some(1250.0), Some(2000.0)));
        assert_eq!((run.cpu_nodes, run.cpu_load), (Some(1.25), Some(0.3)));
        let over = run.p50_over_floor.unwrap();
        assert!((over - 2.0).abs() < 0.01, "{over}: 320 us over 90 + 2 x 35");
    }

    #[test]
    fn a_run_in_which_nothing_happened_is_all_zeros_and_valid_json() {
        let latency = Latency::new(false);
        let nothing = Measured {
            elapsed_ns: 0,
            commands: 0,
            blocks: 0,
            flushes: Some(0),
            calibration: Some(Calibration::default()),
            ..measured(&latency)
        };
        let run = RunReport::new(&nothing);
        assert_eq!((run.commands_per_s, run.cpu_nodes), (0.0, Some(0.0)));
        assert_eq!((run.commands_per_flush, run.p50_over_floor), (Some(0.0), Some(0.0)));
    }

    #[test]
    fn what_another_process_does_not_tell_is_null() {
        let latency = Latency::new(false);
        let m = Measured { flushes: None, cpu: None, calibration: None, ..measured(&latency) };
        let json = serde_json::to_value(RunReport::new(&m)).unwrap();
        for key in ["flushes_per_s", "commands_per_flush", "cpu_nodes", "p50_over_floor"] {
            assert!(json[key].is_null(), "{key}");
        }
    }
}
