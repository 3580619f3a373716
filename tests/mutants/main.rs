//! Every planted bug (`src/mutants.rs`) must be found, each within a budget stated here, and without
//! one the same searches must find nothing.
//!
//! ```text
//! cargo test --features mutants --test mutants                  ten of them, by the hash "0"
//! MUTANTS=sample:10:$COMMIT ...                                 ten, by the hash of a commit
//! MUTANTS=all ...                                               all
//! MUTANTS=vote-twice,recycle-early ...                          these
//! ```

mod epochs;
mod installs;
mod log;
mod members;
mod plan;
mod reads;
mod shards;
mod snapshots;
mod stories;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ringraft::mutants::{self, Mutant};
use ringraft::sim::run::run;

use plan::{Way, way};

/// Seeds that each search runs without a planted bug first.
const CONTROL_SEEDS: u64 = 6;

/// One seed of a search; the error says what it found.
type One<'a> = dyn Fn(u64) -> Result<(), String> + Sync + 'a;

/// What gave a mutant away.
struct Found {
    seed: u64,
    how: String,
}

/// Searches by `way` within its budget, those of its seeds that lie in `only`.
fn search(way: &Way, only: Range<u64>) -> Option<Found> {
    let (seeds, one): (u64, Box<One<'_>>) = match way {
        Way::Sim { options, seeds } => {
            let one = |seed| match run(seed, options).failure {
                Some(failure) => {
                    Err(failure.violation.rule.to_owned() + ": " + &failure.violation.what)
                }
                None => Ok(()),
            };
            (*seeds, Box::new(one))
        }
        Way::Log { seeds } => (*seeds, Box::new(log::lives)),
        Way::Story(story) => (
            1,
            Box::new(|_| {
                story();
                Ok(())
            }),
        ),
    };
    over(only.start..only.end.min(seeds), &*one)
}

/// Runs seeds on all cores until one fails.
fn over(seeds: Range<u64>, one: &One<'_>) -> Option<Found> {
    let (next, found) = (AtomicU64::new(seeds.start), Mutex::new(None::<Found>));
    let worker = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || found.lock().expect("no panic holds it").is_some() {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(|| one(seed)));
            if let Err(how) = result.unwrap_or_else(|panic| Err(text(&*panic))) {
                let mut found = found.lock().expect("no panic holds it");
                if found.as_ref().is_none_or(|known| seed < known.seed) {
                    *found = Some(Found { seed, how });
                }
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(worker))));
    found.into_inner().expect("no panic holds it")
}

fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// The mutants that the environment asks for.
fn chosen() -> Vec<Mutant> {
    let asked = std::env::var("MUTANTS").unwrap_or_else(|_| "sample:10:0".to_owned());
    if asked == "all" {
        return Mutant::ALL.to_vec();
    }
    if let Some(sample) = asked.strip_prefix("sample:") {
        let (count, hash) = sample.split_once(':').expect("MUTANTS=sample:COUNT:HASH");
        return sample_of(count.parse().expect("a number"), hash);
    }
    let named = |name: &str| Mutant::ALL.iter().find(|m| m.name() == name).copied();
    asked.split(',').map(|n| named(n).unwrap_or_else(|| panic!("no mutant {n:?}"))).collect()
}

/// `count` mutants; another hash gives other ones, so that all come round.
fn sample_of(count: usize, hash: &str) -> Vec<Mutant> {
    let rank = |mutant: &Mutant| {
        // FNV-1a: stable for ever, and good enough to shuffle with.
        let bytes = hash.bytes().chain(mutant.name().bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    };
    // Those that the model check and the real power cuts find are tried there, all at each run.
    let mut all: Vec<_> = Mutant::ALL.iter().copied().filter(|m| way(*m).is_some()).collect();
    all.sort_by_key(rank);
    all.truncate(count);
    all
}

/// Finds a mutant, and makes sure that it was the mutant that was found.
fn try_one(mutant: Mutant) -> Result<(), String> {
    let Some(way) = way(mutant) else { return Ok(()) };
    let name = mutant.name();
    mutants::set(None);
    if let Some(Found { seed, how }) = search(&way, 0..CONTROL_SEEDS) {
        return Err(format!("{name}: seed {seed} fails without it: {how}"));
    }
    mutants::set(Some(mutant));
    let began = Instant::now();
    let found = search(&way, 0..u64::MAX);
    let took = began.elapsed().as_secs_f32();
    mutants::set(None);
    let Some(Found { seed, how }) = found else {
        return Err(format!("{name}: not found in {took:.1} s"));
    };
    if search(&way, seed..seed + 1).is_some() {
        return Err(format!("{name}: seed {seed} fails without it too: {how}"));
    }
    let how: String = how.replace('\n', " ").chars().take(120).collect();
    eprintln!("{name:29} seed {seed:4}  {took:5.1} s  {how}");
    Ok(())
}

/// One test, because the live mutant is one for the whole process.
#[test]
fn every_planted_bug_is_found_and_nothing_is_found_without_one() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let missed: Vec<_> = chosen().into_iter().filter_map(|mutant| try_one(mutant).err()).collect();
    mutants::set(None);
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "\n{}\n", missed.join("\n"));
}

#[test]
fn every_mutant_comes_round() {
    assert!(Mutant::ALL.len() >= 30);
    let mut seen = Vec::new();
    for commit in 0..200 {
        let sample = sample_of(10, &format!("commit {commit}"));
        assert_eq!(sample.len(), 10);
        seen.extend(sample.iter().map(|mutant| mutant.name()));
    }
    let here = |mutant: &&Mutant| way(**mutant).is_some();
    assert!(Mutant::ALL.iter().filter(here).count() >= 40);
    assert!(Mutant::ALL.iter().filter(here).all(|mutant| seen.contains(&mutant.name())));
}
