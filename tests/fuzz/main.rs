//! Ten million inputs for the decoders that bytes from outside can reach: none panics, and none
//! takes more memory than its limit.
//!
//! `FUZZ_SEED` (any text, such as a commit's hash) chooses the inputs, so that each change is tried
//! with others; `FUZZ_TIMES=4` makes four times as many. A failure prints what to set to see it
//! again, like `FUZZ_SEED=abc FUZZ_ONLY=peer:1234`. Runs that learn from coverage: docs/testing.md.

mod memory;
mod targets;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use targets::rng::{Rng, mutate};
use targets::{ALL, Target, Tried, find, push_part};

/// A run with fewer inputs has shown too little.
const INPUTS_MIN: u64 = 10_000_000;
/// How many of a target's inputs get past the decoder.
const TAKEN_PERCENT: std::ops::Range<u64> = 10..90;
/// Calls of a target that a thread takes at once.
const BATCH: u64 = 256;

/// Makes the inputs of one target.
struct Maker {
    target: Target,
    samples: Vec<Vec<u8>>,
    seed: u64,
    input: Vec<u8>,
    part: Vec<u8>,
}

impl Maker {
    fn new(target: Target, seed: &str) -> Self {
        let text = format!("{seed} {}", target.name);
        let hash = |h: u64, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let seed = text.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
        let (input, part) = (Vec::new(), Vec::new());
        Self { target, samples: (target.samples)(), seed, input, part }
    }

    /// Input number `n`: the same for the same seed, whatever came before it.
    fn make(&mut self, n: u64) -> &[u8] {
        let mut rng = Rng::new(self.seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.input.clear();
        for _ in 0..self.target.parts {
            self.make_part(&mut rng);
            if self.target.parts == 1 {
                std::mem::swap(&mut self.input, &mut self.part);
            } else {
                push_part(&mut self.input, &self.part);
            }
        }
        &self.input
    }

    /// A sample, mostly with a few changes; sometimes just bytes.
    fn make_part(&mut self, rng: &mut Rng) {
        let Self { samples, part, .. } = self;
        part.clear();
        if samples.is_empty() || rng.below(64) == 0 {
            part.extend((0..rng.below(80)).map(|_| rng.next() as u8));
        } else {
            let (sample, other): (&Vec<u8>, &Vec<u8>) = (rng.pick(samples), rng.pick(samples));
            part.extend_from_slice(sample);
            for _ in 0..rng.below(5) {
                mutate(rng, part, other);
            }
        }
        if self.target.has_mode {
            // Without repairs few inputs come far: most are repaired.
            let mode = rng.next() as u8 | if rng.below(4) > 0 { 3 } else { 0 };
            part.insert(0, mode);
        }
    }
}

/// Inputs and the most memory that one call took, by target.
#[derive(Default)]
struct Tally {
    inputs: AtomicU64,
    taken: AtomicU64,
    memory: AtomicU64,
    next: AtomicU64,
    micros: AtomicU64,
}

/// Calls `from..to` of a target; says what is wrong with the first bad one.
fn try_batch(maker: &mut Maker, calls: std::ops::Range<u64>, tally: &Tally) -> Result<(), String> {
    let target = maker.target;
    let began = Instant::now();
    for n in calls {
        let input = maker.make(n);
        let run = AssertUnwindSafe(|| memory::peak(|| (target.run)(input)));
        let (tried, memory) = match catch_unwind(run) {
            Ok(result) => result,
            Err(_) => return Err(format!("{}:{n} panicked on {}", target.name, hex(input))),
        };
        let limit = (target.memory)(input.len() as u64);
        if memory > limit {
            let (name, size) = (target.name, input.len());
            return Err(format!("{name}:{n} took {memory} bytes for {size}, more than {limit}"));
        }
        tally.inputs.fetch_add(tried.inputs, Ordering::Relaxed);
        tally.taken.fetch_add(tried.taken, Ordering::Relaxed);
        tally.memory.fetch_max(memory, Ordering::Relaxed);
    }
    tally.micros.fetch_add(began.elapsed().as_micros() as u64, Ordering::Relaxed);
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(4096)];
    let digits: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes {digits}", bytes.len())
}

/// Takes batches of all targets until there are none left; a target ends with its first failure.
fn work(seed: &str, times: u64, tallies: &[Tally]) -> Vec<String> {
    let mut failures = Vec::new();
    for (target, tally) in ALL.iter().zip(tallies) {
        let mut maker = Maker::new(*target, seed);
        // What is made once for all inputs is not charged to the first.
        (target.run)(&[]);
        let calls = (times * target.inputs).div_ceil(target.parts as u64);
        loop {
            let from = tally.next.fetch_add(BATCH, Ordering::Relaxed);
            if from >= calls {
                break;
            }
            if let Err(failure) = try_batch(&mut maker, from..calls.min(from + BATCH), tally) {
                failures.push(failure);
                break;
            }
        }
    }
    failures
}

/// Not captured, whether or not the test fails.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

#[test]
fn no_input_panics_or_takes_more_memory_than_its_limit() {
    let seed = variable("FUZZ_SEED").unwrap_or_else(|| "0".into());
    if let Some(only) = variable("FUZZ_ONLY") {
        return again(&seed, &only);
    }
    if let Some(dir) = variable("FUZZ_CORPUS") {
        return write_corpus(&seed, Path::new(&dir));
    }
    let times = variable("FUZZ_TIMES").map_or(1, |text| text.parse().expect("a number"));
    let tallies: Vec<Tally> = ALL.iter().map(|_| Tally::default()).collect();
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(8));
    let failures: Vec<String> = std::thread::scope(|scope| {
        let start = |_| scope.spawn(|| work(&seed, times, &tallies));
        let running: Vec<_> = (0..threads).map(start).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("caught")).collect()
    });
    let (mut total, mut shallow) = (0, false);
    for (target, tally) in ALL.iter().zip(&tallies) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (inputs, seconds) = (load(&tally.inputs), load(&tally.micros) as f64 / 1e6);
        total += inputs;
        let (kib, taken) = (load(&tally.memory) >> 10, 100 * load(&tally.taken) / inputs.max(1));
        let name = target.name;
        tell(&format!(
            "fuzz {name:8} {inputs:9} inputs  {taken:3} % taken  {kib:5} KiB  {seconds:5.1} s"
        ));
        // Neither stuck at the first check nor so tame that nothing is refused.
        shallow |= !(TAKEN_PERCENT.contains(&taken));
    }
    tell(&format!("fuzz seed {seed}: {total} inputs, {} failures", failures.len()));
    let failures = failures.join("\n");
    assert!(failures.is_empty(), "set FUZZ_SEED={seed} and FUZZ_ONLY=<target:number>\n{failures}");
    assert!(total >= INPUTS_MIN, "only {total} inputs");
    assert!(!shallow, "of each target's inputs between {TAKEN_PERCENT:?} percent are to be taken");
}

/// One call again, without the net.
fn again(seed: &str, only: &str) {
    let (name, number) = only.split_once(':').expect("FUZZ_ONLY=target:number");
    let n = number.parse().expect("a number");
    let mut maker = Maker::new(*find(name), seed);
    tell(&hex(maker.make(n)));
    assert_eq!(try_batch(&mut maker, n..n + 1, &Tally::default()), Ok(()));
}

/// Inputs for `cargo fuzz` to begin with: 500 a target.
fn write_corpus(seed: &str, dir: &Path) {
    for target in &ALL {
        let place = dir.join(target.name);
        std::fs::create_dir_all(&place).unwrap();
        let mut maker = Maker::new(*target, seed);
        for n in 0..500 {
            std::fs::write(place.join(format!("{seed}-{n}")), maker.make(n)).unwrap();
        }
    }
}

#[test]
fn a_decoder_that_panics_or_believes_a_length_is_found() {
    fn panics(input: &[u8]) -> Tried {
        assert!(input.first() != Some(&0xaa), "planted");
        Tried::one(true)
    }
    fn believes(input: &[u8]) -> Tried {
        let size = input.first().map_or(0, |&byte| usize::from(byte) << 12);
        drop(std::hint::black_box(Vec::<u8>::with_capacity(size)));
        Tried::one(true)
    }
    for (run, word) in [(panics as fn(&[u8]) -> Tried, "panicked"), (believes, "took")] {
        let target = Target { run, samples: Vec::new, ..ALL[0] };
        let mut maker = Maker::new(target, "planted");
        let error = try_batch(&mut maker, 0..10_000, &Tally::default()).unwrap_err();
        assert!(error.contains(word), "{error}");
        let number: u64 = error[6..].split(' ').next().unwrap().parse().unwrap();
        let alone = try_batch(&mut maker, number..number + 1, &Tally::default());
        assert_eq!(alone, Err(error), "its number alone shows it again");
    }
}
