//! `compare [raft|wal|stream] [--seconds N] [--rounds N] [--dir PATH]`: tables, sides interleaved.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ringraft_peers::calibration::dsync_write_us;
use ringraft_peers::our_stream::{Fill, Stream};
use ringraft_peers::raft_engine::{Files, Log};
use ringraft_peers::raft_rs::{Cluster, Shape};
use ringraft_peers::scratch::default_parent;
use ringraft_peers::side::{Side, race};
use ringraft_peers::workload::{BATCHES, GROUPS};
use ringraft_peers::{our_raft, our_wal, table};

const USAGE: &str = "usage: compare [raft|wal|stream] [--seconds N] [--rounds N] [--dir PATH]
  raft       the consensus core alone, three replicas in memory
  wal        the write-ahead log alone, one writer, a sync per append
  stream     the write-ahead log alone, appends in flight without limit
             none of them: all three
  --seconds  time measured for each table, default 60
  --rounds   turns that each side takes, default 7
  --dir      where logs are written, default the crate's target directory
Run it on an idle machine: beside busy neighbours a disk's completion waits for the next scheduler
tick (4 ms), for whichever side sleeps more often.";

/// Measures and prints one table.
type Table = fn(&Options, &mut dyn Write) -> io::Result<()>;

struct Options {
    tables: Vec<Table>,
    seconds: f64,
    rounds: usize,
    dir: PathBuf,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("{reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options =
        Options { tables: Vec::new(), seconds: 60.0, rounds: 7, dir: default_parent() };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "raft" => options.tables.push(raft),
            "wal" => options.tables.push(wal),
            "stream" => options.tables.push(stream),
            "--seconds" => options.seconds = positive(&arg, &value()?)?,
            "--rounds" => options.rounds = positive(&arg, &value()?)?.ceil() as usize,
            "--dir" => options.dir = value()?.into(),
            _ => return Err(format!("unknown argument {arg}")),
        }
    }
    if options.tables.is_empty() {
        options.tables = vec![raft, wal, stream];
    }
    Ok(options)
}

fn positive(name: &str, text: &str) -> Result<f64, String> {
    let wrong = || format!("{name} wants a number above 0, not {text}");
    text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0).ok_or_else(wrong)
}

fn run(options: &Options) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let floor = dsync_write_us(&options.dir)?;
    writeln!(
        out,
        "one O_DIRECT|O_DSYNC write of 4 KiB: p50 {:.0} us, p99 {:.0} us",
        floor.0, floor.1
    )?;
    options.tables.iter().try_for_each(|table| table(options, &mut out))
}

fn raft(options: &Options, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(table::heading("raft core, batch").as_bytes())?;
    for batch in BATCHES {
        let mut sides: Vec<Box<dyn Side>> = vec![
            Box::new(our_raft::Cluster::new(batch)),
            Box::new(Cluster::new(batch, Shape::EntryPerCommand)),
        ];
        if batch > 1 {
            sides.push(Box::new(Cluster::new(batch, Shape::Fused)));
        }
        cell(out, options, &batch.to_string(), BATCHES.len(), &mut sides)?;
    }
    Ok(())
}

fn wal(options: &Options, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(table::heading("log, groups x batch").as_bytes())?;
    for groups in GROUPS {
        for batch in BATCHES {
            let engine = |files| Log::new(&options.dir, groups, batch, files);
            let mut sides: Vec<Box<dyn Side>> = vec![
                Box::new(our_wal::Log::new(&options.dir, groups, batch)?),
                Box::new(engine(Files::Recycled)?),
                Box::new(engine(Files::Prefilled)?),
            ];
            let title = format!("{groups} x {batch}");
            cell(out, options, &title, GROUPS.len() * BATCHES.len(), &mut sides)?;
        }
    }
    Ok(())
}

fn stream(options: &Options, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(table::heading("log, groups x batch").as_bytes())?;
    let cells = [
        (1, 1, Fill::One, [4, 8]),
        (1000, 1, Fill::Full, [2, 4]),
        (1000, 100, Fill::Full, [2, 4]),
        (1, 1000, Fill::Full, [2, 4]),
    ];
    for (groups, batch, fill, depths) in cells {
        let mut sides: Vec<Box<dyn Side>> = Vec::new();
        for depth in depths {
            sides.push(Box::new(Stream::new(&options.dir, groups, batch, depth, fill)?));
        }
        cell(out, options, &format!("{groups} x {batch}"), cells.len(), &mut sides)?;
    }
    Ok(())
}

/// Runs one of a table's `cells` and prints it.
fn cell(
    out: &mut dyn Write,
    options: &Options,
    title: &str,
    cells: usize,
    sides: &mut [Box<dyn Side>],
) -> io::Result<()> {
    // All cells, sides and rounds, and one round to warm up, fill the seconds.
    let slices = cells * sides.len() * (options.rounds + 1);
    let slice = Duration::from_secs_f64(options.seconds / slices as f64);
    let mut records = race(sides, options.rounds, slice);
    let ours = records.iter().position(|r| r.name == "ringraft");
    out.write_all(table::cell(title, &mut records, ours).as_bytes())?;
    out.flush()
}
