//! The report for people: aligned text of at most 140 columns.

use std::fmt::Write;

use super::report::{BenchReport, RunReport};
use crate::runtime::calibrate::Calibration;
use crate::runtime::machine::MachineFacts;

/// Columns a terminal is taken to have.
pub const WIDTH_MAX: usize = 140;

/// Two lines of heading and a figure: one column. The first is aligned left, the others right.
type Column = (&'static str, &'static str, fn(&RunReport) -> String);

/// In groups that belong together; a wider gap parts the groups.
const GROUPS: [&[Column]; 5] = [
    &[
        ("", "profile", |run| run.profile.clone()),
        ("", "sync", |run| if run.wal_sync { "yes" } else { "no" }.into()),
        ("", "batch", |run| run.batch_size.to_string()),
        ("in", "flight", |run| run.in_flight.to_string()),
        ("", "groups", |run| run.groups.to_string()),
    ],
    &[
        ("commands", "/s", |run| grouped(run.commands_per_s)),
        ("MB", "/s", |run| grouped(run.mb_per_s)),
    ],
    &[
        ("p50", "µs", |run| micros(run.latency_us.p50)),
        ("p90", "µs", |run| micros(run.latency_us.p90)),
        ("p99", "µs", |run| micros(run.latency_us.p99)),
        ("p99.9", "µs", |run| micros(run.latency_us.p999)),
        ("max", "µs", |run| micros(run.latency_us.max)),
        ("p50/", "floor", |run| run.p50_over_floor.map_or_else(unknown, times)),
    ],
    &[
        ("blocks", "/s", |run| grouped(run.blocks_per_s)),
        ("flushes", "/s", |run| run.flushes_per_s.map_or_else(unknown, grouped)),
        ("cmds", "/flush", |run| decimals(run.commands_per_flush, 1)),
    ],
    &[
        ("CPU", "nodes", |run| decimals(run.cpu_nodes, 2)),
        ("CPU", "load", |run| decimals(run.cpu_load, 2)),
        ("", "errors", |run| run.errors.to_string()),
    ],
];

/// The whole report.
pub fn render(report: &BenchReport) -> String {
    let mut out = render_machine(&report.machine);
    out.push_str(&render_calibration(&report.calibration));
    out.push('\n');
    out.push_str(&render_runs(&report.runs));
    out
}

/// On what the figures were taken: one line.
pub fn render_machine(machine: &MachineFacts) -> String {
    let gib = machine.memory_bytes as f64 / f64::from(1 << 30);
    let MachineFacts { cpu, cores, kernel, filesystem, .. } = machine;
    format!("machine      {cores} × {cpu}, {gib:.0} GiB, Linux {kernel}, {filesystem}\n")
}

/// What the machine itself costs: one line.
pub fn render_calibration(calibration: &Calibration) -> String {
    let c = calibration;
    format!(
        "calibration  medians: 4 KiB write {} µs, durable write {} µs (p99 {} µs), loopback round \
         trip {} µs; floor {} µs, unsynced {} µs\n",
        micros(c.write_us_p50),
        micros(c.dsync_write_us_p50),
        micros(c.dsync_write_us_p99),
        micros(c.rtt_us_p50),
        micros(c.floor_us(true)),
        micros(c.floor_us(false)),
    )
}

/// One line a run below two lines of headings. Latencies of an open loop are from when a command
/// was due; what they would be from when it was sent follows below.
pub fn render_runs(runs: &[RunReport]) -> String {
    let mut lines = vec![String::new(); 2 + runs.len()];
    for (g, group) in GROUPS.iter().enumerate() {
        for (c, column) in group.iter().enumerate() {
            let gap = [" ", "  "][usize::from(c == 0 && g > 0)];
            add_column(&mut lines, column, runs, if g + c == 0 { None } else { Some(gap) });
        }
    }
    let mut out = lines.iter().map(|line| format!("{}\n", line.trim_end())).collect::<String>();
    for run in runs {
        if let Some(sent) = run.latency_us_uncorrected {
            let rate = grouped(run.rate.unwrap_or(0) as f64);
            let [p50, p99, max] = [sent.p50, sent.p99, sent.max].map(micros);
            let name = &run.profile;
            writeln!(out, "{name}: {rate} commands/s offered; from sending: p50 {p50} µs, p99 {p99} µs, max {max} µs")
                .expect("a String takes everything");
        }
    }
    out
}

/// Appends a column to the lines. `gap`: what parts it from the one before; the first has none and
/// is aligned left.
fn add_column(lines: &mut [String], column: &Column, runs: &[RunReport], gap: Option<&str>) {
    let (above, name, figure) = column;
    let mut cells = vec![(*above).to_owned(), (*name).to_owned()];
    cells.extend(runs.iter().map(figure));
    let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
    for (line, cell) in lines.iter_mut().zip(cells) {
        match gap {
            None => *line += &format!("{cell:<width$}"),
            Some(gap) => *line += &format!("{gap}{cell:>width$}"),
        }
    }
}

fn unknown() -> String {
    "-".into()
}

fn decimals(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(unknown, |figure| format!("{figure:.digits$}"))
}

/// Microseconds: three digits are enough where the figure has them.
fn micros(us: f64) -> String {
    if us < 99.95 { format!("{us:.1}") } else { format!("{us:.0}") }
}

/// A factor: two decimals near 1, none where it is absurd.
fn times(factor: f64) -> String {
    if factor < 99.995 { format!("{factor:.2}") } else { format!("{factor:.0}") }
}

/// A whole number with its thousands parted: 1,234,567.
fn grouped(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut out = String::with_capacity(digits.len() + 4);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::histogram::Latency;
    use super::super::report::tests::{bench_report, measured};
    use super::super::report::{Measured, RunReport};
    use super::*;

    fn latency(open_loop: bool) -> Latency {
        let mut latency = Latency::new(open_loop);
        latency.record(0, 0, 96_000, 900);
        latency.record(0, 0, 320_000, 99);
        latency.record(0, 900_000, 1_000_000, 1);
        latency
    }

    #[test]
    fn the_table_looks_like_this() {
        let latency = latency(false);
        let durable = RunReport::new(&measured(&latency));
        let financial = RunReport::new(&Measured {
            profile: "financial",
            batch_size: 1,
            in_flight: 1024,
            commands: 750_000,
            blocks: 750_000,
            flushes: None,
            cpu: None,
            ..measured(&latency)
        });
        let text = render(&bench_report(vec![durable, financial]));
        assert_eq!(text, GOLDEN, "\n{text}");
    }

    const GOLDEN: &str = "\
machine      2 × Fast CPU, 24 GiB, Linux 6.18.0, ext4
calibration  medians: 4 KiB write 30.0 µs, durable write 90.0 µs (p99 210 µs), loopback round trip 35.0 µs; floor 160 µs, unsynced 100 µs

                               in          commands  MB   p50  p90 p99 p99.9  max  p50/   blocks flushes   cmds    CPU  CPU
profile         sync batch flight groups         /s  /s    µs   µs  µs    µs   µs floor       /s      /s /flush  nodes load errors
durable-logging  yes  1000     16      4  2,500,000 320  96.1 96.1 320   320 1000  0.60    2,500   1,250 2000.0   1.25 0.30      3
financial        yes     1   1024      4    375,000  48  96.1 96.1 320   320 1000  0.60  375,000       -      -      -    -      3
";

    #[test]
    fn large_figures_still_fit_the_terminal() {
        let mut slow = Latency::new(false);
        slow.record(0, 0, 200_000_000, 10);
        let run = RunReport::new(&Measured {
            batch_size: 8192,
            in_flight: 1024,
            groups: 1000,
            commands: 14_000_000,
            blocks: 300_000,
            flushes: Some(160_000),
            ..measured(&slow)
        });
        for line in render(&bench_report(vec![run])).lines() {
            assert!(line.chars().count() <= WIDTH_MAX, "{} columns: {line}", line.chars().count());
        }
    }

    #[test]
    fn an_open_loop_shows_what_coordinated_omission_would_hide() {
        let latency = latency(true);
        let run = RunReport::new(&Measured { rate: Some(25_000), ..measured(&latency) });
        let text = render_runs(&[run]);
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("durable-logging: 25,000 commands/s offered"), "{last}");
        assert!(
            last.contains("from sending: p50 96.1 µs") && last.contains("max 320 µs"),
            "{last}"
        );
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(
            [0.0, 999.0, 1000.0, 1234567.4].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!([9.04, 99.94, 99.96, 1234.5].map(micros), ["9.0", "99.9", "100", "1234"]);
    }
}
