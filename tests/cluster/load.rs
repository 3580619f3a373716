//! A client on a thread of its own that keeps writing and remembers what it was promised.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringraft::block::{Block, BlockBuilder, Command, CommandKind};
use ringraft::client::driver::Driver;
use ringraft::client::{ClientConfig, ClientError, Done};
use ringraft::ids::{GroupId, Index, Term};
use ringraft::runtime::ring::Waker;

use crate::cluster::Cluster;
use crate::process::{PATIENCE, eventually};

/// Topic and queue of everything that is written here.
pub const QUEUE: &[u8] = b"load";
/// Sessions of this run: one for each load.
static SESSION: AtomicU64 = AtomicU64::new(1);

/// How much is written.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Blocks a second over all groups, at most: logs of a test must not grow without need.
    pub blocks_per_s: u64,
    pub in_flight: usize,
    /// Bytes of a value, at least 16: the command's number, the session, and zeros.
    pub value_bytes: usize,
}

pub const STEADY: Pace = Pace { blocks_per_s: 1000, in_flight: 16, value_bytes: 48 };

/// What became of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Open,
    Acked {
        first: Index,
        term: Term,
    },
    /// May be there, once, or not.
    Unknown(ClientError),
}

/// One block: commands `id..id + count`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub group: GroupId,
    pub id: u64,
    pub count: u64,
    pub fate: Fate,
}

/// Everything that one load has written.
#[derive(Debug)]
pub struct Ledger {
    pub session: u64,
    pub entries: Vec<Entry>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acked: AtomicU64,
    /// Highest index acknowledged in group 0.
    newest: Arc<AtomicU64>,
    /// Longest time without an acknowledgement, µs.
    pause_us: AtomicU64,
    /// When the first block of a term was acknowledged, by group and term.
    terms: Mutex<BTreeMap<(u32, u64), Instant>>,
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Ledger>>,
}

impl Load {
    /// Writes to all groups in turn.
    pub fn start(cluster: &Cluster, pace: Pace) -> Self {
        let session = new_session();
        let shared = Arc::new(Shared::default());
        let (config, groups) = (cluster.client(session), cluster.spec().groups);
        let mine = shared.clone();
        let thread = std::thread::spawn(move || Writer::new(config, groups, pace, mine).run());
        Self { shared, thread: Some(thread) }
    }

    /// Blocks acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Acquire)
    }

    /// The highest index acknowledged in group 0.
    pub fn newest(&self) -> Arc<AtomicU64> {
        self.shared.newest.clone()
    }

    /// The longest time without any acknowledgement since the last [`Load::forget_pauses`].
    pub fn longest_pause(&self) -> Duration {
        Duration::from_micros(self.shared.pause_us.load(Ordering::Acquire))
    }

    pub fn forget_pauses(&self) {
        self.shared.pause_us.store(0, Ordering::Release);
    }

    /// Waits for so many more acknowledgements.
    pub fn wait_for(&self, more: u64) {
        let goal = self.acked() + more;
        eventually("acknowledgements go on", PATIENCE, || (self.acked() >= goal).then_some(()));
    }

    /// When the first block of a term above `term` was acknowledged in a group: such a block cannot
    /// be an answer that the old leader had sent before it died.
    pub fn wait_for_newer_term(&self, group: u32, term: u64) -> Instant {
        eventually("a new leader acknowledges", PATIENCE, || {
            let terms = self.shared.terms.lock().unwrap();
            terms.range((group, term + 1)..=(group, u64::MAX)).map(|(_, at)| *at).min()
        })
    }

    /// Writes no more, waits for what is open, and gives the book out of hand.
    pub fn finish(mut self) -> Ledger {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.take().expect("only taken here").join().expect("the writer does not panic")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // A story that failed does not wait for what is open.
        self.shared.stop.store(true, Ordering::Release);
    }
}

/// A session that nobody else has, in this run or another.
pub fn new_session() -> u64 {
    u64::from(std::process::id()) << 32 | SESSION.fetch_add(1, Ordering::Relaxed)
}

/// A block of `count` events with the numbers from `id` on.
pub fn block_of(
    group: GroupId,
    session: u64,
    seq: u64,
    pending: u32,
    ids: (u64, u64),
    value_bytes: usize,
) -> Block {
    let mut builder = BlockBuilder::default();
    let mut value = vec![0; value_bytes.max(16)];
    value[8..16].copy_from_slice(&session.to_le_bytes());
    for id in ids.0..ids.0 + ids.1 {
        value[..8].copy_from_slice(&id.to_le_bytes());
        let kind = CommandKind::SetEvent as u8;
        let command = Command { kind, flags: 0, timestamp: id, key: QUEUE, value: &value };
        builder.push(&command).unwrap();
    }
    builder.finish(group, session, seq, pending)
}

struct Writer {
    driver: Driver,
    groups: u32,
    pace: Pace,
    shared: Arc<Shared>,
    ledger: Ledger,
    next_id: u64,
    open: usize,
    began: Instant,
    last: Instant,
}

impl Writer {
    fn new(config: ClientConfig, groups: u32, pace: Pace, shared: Arc<Shared>) -> Self {
        let ledger = Ledger { session: config.session, entries: Vec::new() };
        let driver = Driver::new(vec![config], Waker::new().unwrap()).unwrap();
        Self {
            driver,
            groups,
            pace,
            shared,
            ledger,
            next_id: 0,
            open: 0,
            began: Instant::now(),
            last: Instant::now(),
        }
    }

    fn run(mut self) -> Ledger {
        loop {
            let stopping = self.shared.stop.load(Ordering::Acquire);
            if stopping && self.open == 0 {
                return self.ledger;
            }
            if !stopping {
                self.submit();
            }
            self.driver.turn().unwrap();
            let done: Vec<_> = self.driver.take_done().collect();
            done.into_iter().for_each(|(_, done)| self.take(done));
            let pause = self.driver.now().plus(1000);
            self.driver.wait(pause).unwrap();
        }
    }

    fn submit(&mut self) {
        let due = self.began.elapsed().as_micros() as u64 * self.pace.blocks_per_s / 1_000_000;
        // After a pause the pace goes on; it is not made up for.
        let late = due.saturating_sub(self.ledger.entries.len() as u64);
        if late > self.pace.blocks_per_s {
            self.began += Duration::from_micros((late - 1) * 1_000_000 / self.pace.blocks_per_s);
        }
        while self.open < self.pace.in_flight && (self.ledger.entries.len() as u64) < due {
            let tag = self.ledger.entries.len() as u64;
            let group = GroupId((tag % u64::from(self.groups)) as u32);
            let core = self.driver.core(0);
            if core.room(group) == 0 {
                return;
            }
            let (stamp, count) = (core.stamp(group), 1 + tag % 4);
            let ids = (self.next_id, count);
            let block =
                block_of(group, stamp.client, stamp.seq, stamp.pending, ids, self.pace.value_bytes);
            let now = self.driver.now();
            self.driver.core(0).submit(now, block, tag).unwrap();
            self.ledger.entries.push(Entry { group, id: ids.0, count, fate: Fate::Open });
            self.next_id += count;
            self.open += 1;
        }
    }

    fn take(&mut self, done: Done) {
        self.open -= 1;
        let entry = &mut self.ledger.entries[done.tag as usize];
        assert_eq!(entry.fate, Fate::Open, "block {} is completed twice", done.tag);
        match done.result {
            Ok(committed) => {
                assert_eq!((committed.duplicates, committed.rejected), (0, 0));
                let (first, term) = (committed.first, committed.term);
                entry.fate = Fate::Acked { first, term };
                let pause = std::mem::replace(&mut self.last, Instant::now()).elapsed();
                self.shared.pause_us.fetch_max(pause.as_micros() as u64, Ordering::AcqRel);
                if done.group == GroupId(0) {
                    let last = first.0 + entry.count - 1;
                    self.shared.newest.fetch_max(last, Ordering::AcqRel);
                }
                self.shared.acked.fetch_add(1, Ordering::AcqRel);
                let mut terms = self.shared.terms.lock().unwrap();
                terms.entry((done.group.0, term.0)).or_insert_with(Instant::now);
            }
            Err(error @ ClientError::Timeout) => entry.fate = Fate::Unknown(error),
            Err(error) => panic!("block {} of {:?}: {error}", done.tag, done.group),
        }
    }
}
