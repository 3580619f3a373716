//! Reads never answer from the past, whoever is stopped or cut off (bug 24): thousands of them, and
//! among them those that are put to a leader that was deposed while it stood still.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use ringraft::client::driver::Driver;
use ringraft::client::{ClientConfig, QueryTarget, SubmitError};
use ringraft::ids::{GroupId, Index};
use ringraft::machine::events::query::Query;
use ringraft::runtime::ring::Waker;
use ringraft::wire::client::{Consistency, read_query, write_query};
use ringraft::wire::frame::FrameKind;

use crate::check::verify;
use crate::cluster::{Cluster, DEFAULT, Spec};
use crate::kill9::rounds;
use crate::load::{Load, QUEUE, STEADY, new_session};
use crate::process::{PATIENCE, eventually, tell};
use crate::proxy::Wires;
use crate::raw::RawClient;

const LEASES: &str = "[cluster.reads]\nlease = true\n";
/// Reads of a story, at least.
const READS: u64 = 10_000;
/// Questions put to a deposed leader at a time, of each kind.
const ASTRAY: u64 = 50;

/// Reads that see everything that was acknowledged before.
const FRESH: [Consistency; 3] =
    [Consistency::Linearizable, Consistency::Follower, Consistency::Lease];

fn question() -> Bytes {
    Query::Read { queue: QUEUE, from: Index(1 << 40), limit: 1, bytes_max: 100 }.encode().into()
}

/// Readers of all kinds on a thread of their own.
struct Readers {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Readers {
    fn start(config: ClientConfig, load: &Load) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (end, count, newest) = (stop.clone(), answered.clone(), load.newest());
        let thread = std::thread::spawn(move || {
            let mut driver = Driver::new(vec![config], Waker::new().unwrap()).unwrap();
            // By tag: what was acknowledged when it was asked.
            let mut floors: Vec<u64> = Vec::new();
            let mut open = 0;
            while !end.load(Ordering::Acquire) {
                while open < 16 {
                    let consistency = FRESH[floors.len() % FRESH.len()];
                    let to = match consistency {
                        Consistency::Follower => QueryTarget::Any,
                        _ => QueryTarget::Leader,
                    };
                    let (now, tag) = (driver.now(), floors.len() as u64);
                    let floor = newest.load(Ordering::Acquire);
                    let group = GroupId(0);
                    match driver.core(0).query(now, group, to, consistency, question(), tag) {
                        Err(SubmitError::NotReady) => break,
                        other => other.unwrap(),
                    }
                    floors.push(floor);
                    open += 1;
                }
                driver.turn().unwrap();
                for (_, reply) in driver.take_replies() {
                    open -= 1;
                    let floor = floors[reply.tag as usize];
                    let kind = FRESH[reply.tag as usize % FRESH.len()];
                    if reply.result.is_ok() {
                        let index = reply.place.index;
                        assert!(index >= Index(floor), "{kind:?} at {index}, {floor} was told");
                        count.fetch_add(1, Ordering::AcqRel);
                    }
                }
                let pause = driver.now().plus(1000);
                driver.wait(pause).unwrap();
            }
        });
        Self { stop, answered, thread }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    fn finish(self) -> u64 {
        eventually("so many reads are answered", 4 * PATIENCE, || {
            let enough = self.answered() >= READS || self.thread.is_finished();
            enough.then_some(())
        });
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("no read was stale");
        self.answered.load(Ordering::Acquire)
    }
}

/// Puts questions of all kinds to one node, which may be standing still.
fn ask_astray(client: &mut RawClient) {
    let mut bytes = Vec::new();
    for i in 0..ASTRAY * FRESH.len() as u64 {
        let consistency = FRESH[(i % FRESH.len() as u64) as usize];
        write_query(&mut bytes, i, GroupId(0), consistency, &question());
    }
    std::io::Write::write_all(&mut client.stream, &bytes).unwrap();
}

/// Takes in the answers: refused, or at `floor` at least. How many were answered.
fn hear_astray(client: &mut RawClient, floor: u64) -> u64 {
    let mut fresh = 0;
    for _ in 0..ASTRAY * FRESH.len() as u64 {
        let frame = client.frame();
        assert_eq!(frame.kind, FrameKind::QueryReply);
        let reply = read_query(&frame).unwrap();
        let kind = FRESH[(reply.token % FRESH.len() as u64) as usize];
        if reply.result.is_ok() {
            let index = reply.place.index;
            assert!(index >= Index(floor), "{kind:?} at {index}, but {floor} was told before");
            fresh += 1;
        }
    }
    fresh
}

/// How a leader is deposed without its knowing, and how that ends.
trait Trouble {
    fn begin(&self, cluster: &mut Cluster, leader: usize);
    fn end(&self, cluster: &mut Cluster, leader: usize);
}

struct Stop;

impl Trouble for Stop {
    fn begin(&self, cluster: &mut Cluster, leader: usize) {
        cluster.node(leader).pause();
    }

    fn end(&self, cluster: &mut Cluster, leader: usize) {
        cluster.node(leader).signal(libc::SIGCONT);
    }
}

impl Trouble for Wires {
    fn begin(&self, _: &mut Cluster, leader: usize) {
        self.isolate(leader);
    }

    fn end(&self, _: &mut Cluster, _: usize) {
        self.heal();
    }
}

fn story(mut cluster: Cluster, trouble: &impl Trouble, name: &str) {
    let load = Load::start(&cluster, STEADY);
    load.wait_for(100);
    let readers = Readers::start(cluster.client(new_session()), &load);
    let mut astray = 0;
    for _ in 0..3 * rounds() {
        let (leader, term) = cluster.leader();
        let mut before = RawClient::connect(&cluster, leader);
        let mut after = RawClient::connect(&cluster, leader);
        trouble.begin(&mut cluster, leader);
        // Some come when the others have not lost patience yet, some when they have long chosen.
        let early = load.newest().load(Ordering::Acquire);
        ask_astray(&mut before);
        load.wait_for_newer_term(0, term);
        load.wait_for(50);
        let late = load.newest().load(Ordering::Acquire);
        ask_astray(&mut after);
        trouble.end(&mut cluster, leader);
        astray += hear_astray(&mut before, early) + hear_astray(&mut after, late);
        cluster.wait_for_catch_up(leader);
    }
    let answered = readers.finish();
    tell(&format!(
        "{name}: {answered} reads, none stale; {astray} answered by whoever was deposed"
    ));
    assert!(answered >= READS);
    verify(&cluster, &[&load.finish()]);
}

fn prepare(extra: &str) -> Cluster {
    let cluster = Cluster::prepare(Spec::default());
    (0..3).for_each(|node| cluster.configure(node, DEFAULT, extra));
    cluster
}

fn started(mut cluster: Cluster) -> Cluster {
    (0..3).for_each(|node| cluster.start_node(node));
    cluster.wait_for_leaders();
    cluster
}

#[test]
fn a_leader_that_was_stopped_answers_nothing_stale_when_it_wakes_up() {
    story(started(prepare("")), &Stop, "SIGSTOP");
}

#[test]
fn nor_with_leases() {
    story(started(prepare(LEASES)), &Stop, "SIGSTOP, leases");
}

#[test]
fn a_leader_that_is_cut_off_answers_nothing_stale() {
    let cluster = prepare("");
    let wires = Wires::lay(&cluster);
    story(started(cluster), &wires, "partition");
}

#[test]
fn nor_with_leases_when_it_is_cut_off() {
    let cluster = prepare(LEASES);
    let wires = Wires::lay(&cluster);
    story(started(cluster), &wires, "partition, leases");
}
