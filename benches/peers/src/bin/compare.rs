//! `compare [raft|wal] [--seconds N] [--rounds N] [--dir PATH]`: one table, sides interleaved.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ringraft_peers::raft_engine::{Files, Log};
use ringraft_peers::raft_rs::{Cluster, Shape};
use ringraft_peers::scratch::default_parent;
use ringraft_peers::side::{Side, race};
use ringraft_peers::table;
use ringraft_peers::workload::{BATCHES, GROUPS};

const USAGE: &str = "usage: compare [raft|wal] [--seconds N] [--rounds N] [--dir PATH]
  raft       the consensus core alone, three replicas in memory
  wal        the write-ahead log alone, a sync per append; neither: both
  --seconds  time measured for each table, default 60
  --rounds   turns that each side takes, default 7
  --dir      where logs are written, default the crate's target directory";

struct Options {
    raft: bool,
    wal: bool,
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
        Options { raft: false, wal: false, seconds: 60.0, rounds: 7, dir: default_parent() };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "raft" => options.raft = true,
            "wal" => options.wal = true,
            "--seconds" => options.seconds = positive(&arg, &value()?)?,
            "--rounds" => options.rounds = positive(&arg, &value()?)?.ceil() as usize,
            "--dir" => options.dir = value()?.into(),
            _ => return Err(format!("unknown argument {arg}")),
        }
    }
    if !options.raft && !options.wal {
        (options.raft, options.wal) = (true, true);
    }
    Ok(options)
}

fn positive(name: &str, text: &str) -> Result<f64, String> {
    let wrong = || format!("{name} wants a number above 0, not {text}");
    text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0).ok_or_else(wrong)
}

fn run(options: &Options) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if options.raft {
        out.write_all(table::heading("raft core, batch").as_bytes())?;
        for batch in BATCHES {
            let mut sides = raft_sides(batch);
            let slice = slice(options, BATCHES.len(), sides.len());
            write_cell(&mut out, options, &batch.to_string(), &mut sides, slice)?;
        }
    }
    if options.wal {
        out.write_all(table::heading("log, groups x batch").as_bytes())?;
        for groups in GROUPS {
            for batch in BATCHES {
                let mut sides = wal_sides(&options.dir, groups, batch)?;
                let slice = slice(options, GROUPS.len() * BATCHES.len(), sides.len());
                write_cell(&mut out, options, &format!("{groups} x {batch}"), &mut sides, slice)?;
            }
        }
    }
    Ok(())
}

/// Time of one slice, so that all cells, sides and rounds (and one to warm up) fill the seconds.
fn slice(options: &Options, cells: usize, sides: usize) -> Duration {
    Duration::from_secs_f64(options.seconds / (cells * sides * (options.rounds + 1)) as f64)
}

fn write_cell(
    out: &mut impl Write,
    options: &Options,
    title: &str,
    sides: &mut [Box<dyn Side>],
    slice: Duration,
) -> io::Result<()> {
    let mut records = race(sides, options.rounds, slice);
    let ours = records.iter().position(|r| r.name.starts_with("ringraft"));
    out.write_all(table::cell(title, &mut records, ours).as_bytes())?;
    out.flush()
}

fn raft_sides(batch: usize) -> Vec<Box<dyn Side>> {
    let mut sides: Vec<Box<dyn Side>> = vec![Box::new(Cluster::new(batch, Shape::EntryPerCommand))];
    if batch > 1 {
        sides.push(Box::new(Cluster::new(batch, Shape::Fused)));
    }
    sides
}

fn wal_sides(dir: &Path, groups: usize, batch: usize) -> io::Result<Vec<Box<dyn Side>>> {
    let engine = |files| Log::new(dir, groups, batch, files);
    Ok(vec![Box::new(engine(Files::Recycled)?), Box::new(engine(Files::Prefilled)?)])
}
