//! `ringraft sim`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::{Failure, print};
use crate::machine::hash::mix_bytes;
use crate::sim::control;
use crate::sim::nemesis::Kinds;
use crate::sim::options::Options;
use crate::sim::run::{self, Outcome};
use crate::sim::shrink;
use crate::sim::stats::Stats;

/// One seed in so many is run twice, and must do the same both times.
const REPLAY_ONE_IN: u64 = 50;

/// Run clusters in a simulated world in which everything goes wrong
///
/// Each seed is a cluster of the shards, logs and codecs that ship, on simulated disks, wires and
/// clocks: some seconds of trouble, then everything heals. Rules are checked after every event. A
/// seed replays to the bit.
#[derive(Debug, Args)]
pub(super) struct SimArgs {
    /// Seeds to run
    #[arg(long, default_value = "1", value_name = "N")]
    seeds: u64,

    /// The first seed; a text (a commit's hash) is turned into a number
    #[arg(long, default_value = "1", value_name = "S")]
    seed: String,

    /// Go on for so long instead, with a line every minute
    #[arg(long, value_name = "M", conflicts_with = "seeds")]
    minutes: Option<u64>,

    /// Faults to use: kinds and groups of kinds (node, network, disk, all, none)
    #[arg(long, default_value = "all", value_name = "LIST", value_parser = Kinds::parse)]
    nemesis: Kinds,

    /// Nodes, 1 to 7 [default: the seed chooses, 3 to 5]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..=7))]
    nodes: Option<u32>,

    /// Shards of each node, 1 to 4 [default: the seed chooses]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..=4))]
    shards: Option<u32>,

    /// Groups, 1 to 64 [default: the seed chooses]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..=64))]
    groups: Option<u32>,

    /// Simulated seconds of trouble
    #[arg(long, default_value = "20", value_name = "T", value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    seconds: u32,

    /// Faults planned in a seed, at least
    #[arg(long, default_value = "50", value_name = "N")]
    faults: u32,

    /// Only these faults of the plan, by number
    #[arg(long, value_name = "NUMBERS", value_parser = parse_numbers)]
    only: Option<Numbers>,

    /// Disks that ignore what they are told to sync: the control, which must fail
    #[arg(long)]
    lying_disks: bool,

    /// Print everything that happened, heartbeats too
    #[arg(long)]
    trace: bool,

    /// After a failure, drop faults while it stays, and show the smallest plan
    #[arg(long)]
    shrink: bool,

    /// Seeds side by side [default: the machine's cores]
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,

    /// The planted bug that is live
    #[cfg(feature = "mutants")]
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,

    /// Fail when fewer faults than this took place
    #[arg(long, default_value = "0", value_name = "N")]
    min_faults: u64,

    /// Fail when fewer faults than this took place in any seed
    #[arg(long, default_value = "0", value_name = "N")]
    min_faults_per_seed: u64,

    /// Fail when power was lost less often than this
    #[arg(long, default_value = "0", value_name = "N")]
    min_power_losses: u64,
}

#[derive(Clone, Debug)]
struct Numbers(Vec<u32>);

fn parse_numbers(text: &str) -> Result<Numbers, String> {
    if text == "none" {
        return Ok(Numbers(Vec::new()));
    }
    let numbers = text.split(',').map(|n| n.parse::<u32>().map_err(|e| format!("{n:?}: {e}")));
    Ok(Numbers(numbers.collect::<Result<_, _>>()?))
}

impl SimArgs {
    fn options(&self) -> Options {
        Options {
            nodes: self.nodes,
            shards: self.shards,
            groups: self.groups,
            seconds: self.seconds,
            nemesis: self.nemesis,
            faults: self.faults,
            only: self.only.clone().map(|numbers| numbers.0),
            lying_disks: self.lying_disks,
            trace: self.trace,
        }
    }

    /// A number is itself; any other text is mixed into one.
    fn first_seed(&self) -> u64 {
        self.seed.parse().unwrap_or_else(|_| mix_bytes(0, self.seed.as_bytes()) >> 8)
    }

    fn jobs(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.jobs.unwrap_or_else(cores).max(1)
    }
}

/// What all threads work on.
struct Campaign<'a> {
    options: &'a Options,
    next: AtomicU64,
    end: u64,
    until: Option<Instant>,
    sum: Mutex<Sum>,
}

#[derive(Default)]
struct Sum {
    stats: Stats,
    failures: Vec<Outcome>,
    next_line: u64,
}

pub(super) fn run(args: &SimArgs) -> Result<(), Failure> {
    set_mutant(args)?;
    quiet_panics();
    if !args.lying_disks {
        run_control(args)?;
    }
    let options = args.options();
    let first = args.first_seed();
    let began = Instant::now();
    let until = args.minutes.map(|minutes| began + Duration::from_secs(60 * minutes));
    let end = if until.is_some() { u64::MAX } else { first.saturating_add(args.seeds) };
    let campaign = Campaign {
        options: &options,
        next: AtomicU64::new(first),
        end,
        until,
        sum: Mutex::default(),
    };
    let jobs = args.jobs().min(args.seeds.max(u64::from(until.is_some()) * 1024) as usize);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| campaign.work(began, jobs));
        }
    });
    let Sum { stats, failures, .. } = campaign.sum.into_inner().expect("no thread panics");
    conclude(args, &stats, &failures, began, jobs)
}

/// A panic in a run is one more broken rule, and shown as such.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

#[cfg(feature = "mutants")]
fn set_mutant(args: &SimArgs) -> Result<(), Failure> {
    use crate::mutants::{Mutant, set};
    let Some(name) = &args.mutant else { return Ok(()) };
    let mutant = Mutant::ALL.iter().find(|mutant| mutant.name() == name);
    set(Some(*mutant.ok_or_else(|| Failure::Usage(format!("no planted bug is called {name:?}")))?));
    Ok(())
}

#[cfg(not(feature = "mutants"))]
fn set_mutant(_: &SimArgs) -> Result<(), Failure> {
    Ok(())
}

/// Without a control that loses something the run would mean nothing.
fn run_control(args: &SimArgs) -> Result<(), Failure> {
    match control::first_loss(args.first_seed()) {
        Some(outcome) => {
            let rule = outcome.failure.map_or("", |failure| failure.violation.rule);
            print(&format!("control: seed {} on lying disks breaks {rule:?}\n", outcome.seed))
        }
        None => Err(Failure::Run(format!(
            "the control is invalid: on lying disks {} seeds from {} on lost nothing",
            control::TRIES,
            args.first_seed()
        ))),
    }
}

impl Campaign<'_> {
    fn work(&self, began: Instant, jobs: usize) {
        loop {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end || self.until.is_some_and(|until| Instant::now() >= until) {
                return;
            }
            let mut outcome = run::run(seed, self.options);
            if seed.is_multiple_of(REPLAY_ONE_IN) {
                replay(self.options, &mut outcome);
            }
            let mut sum = self.sum.lock().expect("no thread panics");
            sum.stats.add(&outcome.stats);
            if self.options.trace && outcome.failure.is_none() {
                let _ = print(&run::trace(seed, self.options));
            }
            if outcome.failure.is_some() {
                let _ = print(&format!("{}\n", outcome.report()));
            }
            if outcome.failure.is_some() {
                sum.failures.push(outcome);
            }
            let minute = began.elapsed().as_secs() / 60;
            if self.until.is_some() && minute > sum.next_line {
                sum.next_line = minute;
                let line = summary(&sum.stats, sum.failures.len(), began, jobs);
                let _ = print(&format!("{minute:>4} min  {line}\n"));
            }
        }
    }
}

/// The same seed again: the same events, to the bit.
fn replay(options: &Options, outcome: &mut Outcome) {
    let again = run::run(outcome.seed, options);
    if again.hash != outcome.hash && outcome.failure.is_none() {
        outcome.failure = Some(run::Failure::no_replay(outcome, &again, options));
    }
}

fn conclude(
    args: &SimArgs,
    stats: &Stats,
    failures: &[Outcome],
    began: Instant,
    jobs: usize,
) -> Result<(), Failure> {
    if let Some(failed) = failures.first().filter(|_| args.shrink) {
        let (_, smallest) = shrink::shrink(failed, &args.options());
        print(&format!("smallest plan found\n{}\n", smallest.report()))?;
    }
    print(&format!("{}\n", summary(stats, failures.len(), began, jobs)))?;
    if !failures.is_empty() {
        let seeds: Vec<_> = failures.iter().take(20).map(|f| f.seed.to_string()).collect();
        return Err(Failure::Run(format!("rules were broken; seeds {}", seeds.join(", "))));
    }
    if stats.faults_least < args.min_faults_per_seed {
        return Err(Failure::Run(format!(
            "a seed had only {} faults of {}",
            stats.faults_least, args.min_faults_per_seed
        )));
    }
    if stats.faults < args.min_faults || stats.power_losses < args.min_power_losses {
        return Err(Failure::Run(format!(
            "too little went wrong to mean anything: {} faults of {}, {} power losses of {}",
            stats.faults, args.min_faults, stats.power_losses, args.min_power_losses
        )));
    }
    Ok(())
}

fn summary(stats: &Stats, violations: usize, began: Instant, jobs: usize) -> String {
    let simulated = stats.simulated_us as f64 / 1e6;
    let wall = began.elapsed().as_secs_f64();
    format!(
        "{} seeds, {:.2} simulated hours, {:.0} simulated s a s and core; {} faults ({} in the \
         quietest seed), {} kills, \
         {} power losses ({} sectors lost), {} damages ({} found), {} possible losses told, \
         {} replicas parted, {} came back, {} starts, {} changes of members, {} groups made, {} ended; \
         {} snapshots, {} restored, {} installed, {} resumed; {} blocks acknowledged of {} asked, {} sent \
         again, {} answered from the table, {} sessions over; {} of {} reads answered (linearizable {}, follower {}, \
         lease {}, stale {}); {} transfers; {} elections, {} groups put to sleep, {} messages; {} violations",
        stats.seeds,
        simulated / 3600.0,
        simulated / (wall * jobs as f64),
        stats.faults,
        stats.faults_least,
        stats.kills,
        stats.power_losses,
        stats.lost_sectors,
        stats.rotten,
        stats.rot_found,
        stats.losses,
        stats.parted,
        stats.returned,
        stats.starts,
        stats.changes,
        stats.groups_made,
        stats.groups_ended,
        stats.snapshots,
        stats.restored,
        stats.installs,
        stats.resumes,
        stats.acknowledged,
        stats.asked,
        stats.retries,
        stats.answered_retries,
        stats.sessions_over,
        stats.answered_questions.iter().sum::<u64>(),
        stats.questions,
        stats.answered_questions[0],
        stats.answered_questions[1],
        stats.answered_questions[2],
        stats.answered_questions[3],
        stats.transfers,
        stats.elections,
        stats.sleeps,
        stats.messages,
        violations
    )
}
