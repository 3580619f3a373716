//! Everything at once, from one seed: crashes, power cuts, partitions, stuck sockets, slow disks,
//! clients that retry. Then everything heals, and what was acknowledged must be there, once.

use super::machine::Ledger;
use super::world::{Cluster, MS, Node, Setup, block_of};
use crate::ids::{GroupId, Tick};
use crate::wal::Suspect;
use crate::wal::tests::disk::Rng;
use crate::wire::client::{Answer, Refused};

const GROUPS: u32 = 4;
const CLIENTS: u64 = 3;
/// Blocks of one client under way in one group.
const WINDOW: u64 = 4;
const RESEND_US: u64 = 700 * MS;

/// A client's dealings with one group.
#[derive(Default)]
struct Session {
    next: u64,
    /// Sequence numbers under way, and when each was sent last.
    open: Vec<(u64, Tick)>,
    acknowledged: Vec<u64>,
}

impl Session {
    fn floor(&self) -> u64 {
        self.open.iter().map(|&(seq, _)| seq).min().unwrap_or(self.next)
    }
}

struct Run {
    c: Cluster<Ledger>,
    rng: Rng,
    /// By client, then by group.
    sessions: Vec<Vec<Session>>,
    /// By client, then by node: the connection there.
    conns: Vec<Vec<Option<usize>>>,
    /// All groups sync: any number of nodes may lose power.
    all_sync: bool,
    power_losses: u64,
    retries_answered: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut setup = Setup::new(GROUPS);
        setup.seed = seed ^ 0x5eed;
        setup.nodes = if rng.chance(30) { 5 } else { 3 };
        setup.shard.wal_sync = rng.chance(40);
        if rng.chance(30) {
            setup.shard.wal_sync_except = vec![GroupId(1), GroupId(2)];
        }
        setup.shard.raft.cache_bytes_max = [1 << 10, 16 << 20][rng.below(2) as usize];
        setup.shard.raft.inflight_count_max = [2, 256][rng.below(2) as usize];
        setup.shard.apply_bytes_per_turn = [200, 1 << 20][rng.below(2) as usize];
        setup.wal.depth = 1 + rng.below(6) as u32;
        setup.wal.segment_bytes = 128 << 10;
        setup.wal.segments_max = 400;
        setup.disk_us = 20 + rng.below(3000);
        setup.net_us = 20 + rng.below(2000);
        let all_sync = (0..GROUPS).all(|group| setup.shard.syncs(GroupId(group)));
        let nodes = setup.nodes as usize;
        let sessions = (0..CLIENTS).map(|_| (0..GROUPS).map(|_| Session::new()).collect());
        let conns = (0..CLIENTS).map(|_| vec![None; nodes]);
        let (sessions, conns) = (sessions.collect(), conns.collect());
        let c = setup.start();
        Self { c, rng, sessions, conns, all_sync, power_losses: 0, retries_answered: 0 }
    }

    fn node(&mut self) -> usize {
        self.rng.below(self.c.nodes.len() as u64) as usize
    }

    /// Something goes wrong, or right again.
    fn disturb(&mut self) {
        let (a, b) = (self.node(), self.node());
        match self.rng.below(12) {
            0 if self.c.is_up(a) => self.c.kill(a),
            1 if self.c.is_up(a) && self.may_lose_power(a) => {
                self.power_losses += 1;
                self.c.cut_power(a);
            }
            2 | 3 if !self.c.is_up(a) => self.c.boot(a),
            4 if a != b => self.c.cut(a, b),
            5 => self.c.isolate(a),
            6 if a != b && self.c.is_up(a) => self.c.stick(a, b, true),
            7 if self.c.is_up(a) => self.c.hold_disk(a),
            8 if self.c.is_up(a) => self.c.release_disk(a),
            9 | 10 => self.heal(),
            _ => {}
        }
    }

    /// What the contract allows: without `wal_sync` a minority, counting those that lost power
    /// before and are not yet back.
    fn may_lose_power(&self, i: usize) -> bool {
        let nodes = &self.c.nodes;
        let lost = (0..nodes.len()).filter(|&n| n == i || is_recovering(&nodes[n])).count();
        self.all_sync || lost <= (nodes.len() - 1) / 2
    }

    fn heal(&mut self) {
        for i in 0..self.c.nodes.len() {
            if !self.c.is_up(i) {
                self.c.boot(i);
            }
        }
        self.c.heal();
    }

    /// Each client goes on: opens new blocks, sends old ones again.
    fn act(&mut self, fresh: bool) {
        for client in 0..CLIENTS as usize {
            for group in 0..GROUPS {
                self.hear(client);
                let session = &mut self.sessions[client][group as usize];
                if fresh && (session.open.len() as u64) < WINDOW && self.rng.chance(50) {
                    session.open.push((session.next, Tick(0)));
                    session.next += 1;
                }
                self.send_due(client, group);
            }
        }
    }

    fn send_due(&mut self, client: usize, group: u32) {
        let now = self.c.now;
        let session = &mut self.sessions[client][group as usize];
        let floor = session.floor();
        let due = |&&mut (_, at): &&mut (u64, Tick)| at == Tick(0) || now.since(at) > RESEND_US;
        let mut blocks = Vec::new();
        for (seq, at) in session.open.iter_mut().filter(due) {
            *at = now;
            let pending = (*seq - floor) as u32;
            let bytes = 1 + (*seq * 37 % 900) as usize;
            let count = 1 + (*seq % 3) as u32;
            blocks.push(block_of(group, client as u64 + 1, *seq, pending, count, bytes));
        }
        let guess = if self.rng.chance(80) { self.c.leader(group) } else { None };
        let node = guess.unwrap_or_else(|| self.node());
        if blocks.is_empty() || !self.c.is_up(node) {
            return;
        }
        let conn = self.conn(client, node);
        self.c.submit(conn, &blocks);
    }

    fn conn(&mut self, client: usize, node: usize) -> usize {
        match self.conns[client][node] {
            Some(conn) if self.c.clients[conn].open => conn,
            _ => {
                let conn = self.c.client(node);
                self.conns[client][node] = Some(conn);
                conn
            }
        }
    }

    fn hear(&mut self, client: usize) {
        for node in 0..self.c.nodes.len() {
            let Some(conn) = self.conns[client][node] else { continue };
            for answer in self.c.answers(conn) {
                self.heard(client, answer);
            }
        }
    }

    fn heard(&mut self, client: usize, answer: Answer) {
        let session = &mut self.sessions[client][answer.group.0 as usize];
        let open = session.open.iter().position(|&(seq, _)| seq == answer.seq);
        match (answer.result, open) {
            (Ok(done), Some(at)) => {
                session.open.swap_remove(at);
                session.acknowledged.push(answer.seq);
                self.retries_answered += u64::from(done.retry);
            }
            // The first copy was answered; this speaks of a second one.
            (_, None) => {}
            (Err(Refused::NotLeader(_) | Refused::Busy), Some(at)) => {
                session.open[at].1 = Tick(0);
            }
            (Err(other), Some(_)) => panic!("{other} for {}", answer.seq),
        }
    }

    /// What was acknowledged is there once, and nothing is there twice.
    fn check(&self) {
        for (client, sessions) in self.sessions.iter().enumerate() {
            for (group, session) in sessions.iter().enumerate() {
                for i in 0..self.c.nodes.len() {
                    let ledger = self.c.machine(i, group as u32);
                    for seq in 1..session.next {
                        let times = ledger.times(client as u64 + 1, seq);
                        assert!(times <= 1, "client {client} group {group} seq {seq}: {times}");
                        let told = session.acknowledged.contains(&seq);
                        assert!(times == 1 || !told, "lost: {client} {group} {seq} on {i}");
                    }
                }
            }
        }
    }
}

/// Some groups of the node may not have their memory back.
fn is_recovering(node: &Node<Ledger>) -> bool {
    node.recovering > Suspect::Nothing
}

impl Session {
    fn new() -> Self {
        Self { next: 1, ..Self::default() }
    }
}

/// Trouble for some seconds of virtual time, then calm. Returns what was acknowledged, how much of it
/// by a retry, and how often power was lost.
fn play(seed: u64) -> (usize, u64, u64) {
    let mut run = Run::new(seed);
    for _ in 0..400 {
        let pause = 1 + run.rng.below(20 * MS);
        run.c.run(pause);
        run.act(true);
        if run.rng.chance(20) {
            run.disturb();
        }
    }
    run.heal();
    for _ in 0..2000 {
        run.c.run(5 * MS);
        run.act(false);
        let open = run.sessions.iter().flatten().map(|s| s.open.len()).sum::<usize>();
        if open == 0 {
            break;
        }
    }
    let open = run.sessions.iter().flatten().map(|s| s.open.len()).sum::<usize>();
    assert_eq!(open, 0, "after the trouble every block is answered");
    run.c.converge();
    run.check();
    run.c.run(200 * MS);
    for node in &run.c.nodes {
        assert!(!is_recovering(node), "every group has its memory back");
        assert_eq!(node.losses, [], "a minority never loses what was acknowledged");
    }
    let told = run.sessions.iter().flatten().map(|s| s.acknowledged.len()).sum();
    (told, run.retries_answered, run.power_losses)
}

/// `MUTANT=hard-state-not-synced cargo test --features mutants --lib under_trouble` must fail.
fn plant() {
    #[cfg(feature = "mutants")]
    if let Ok(name) = std::env::var("MUTANT") {
        let mutant = crate::mutants::Mutant::ALL.iter().find(|mutant| mutant.name() == name);
        crate::mutants::set(Some(*mutant.expect("a mutant's name")));
    }
}

/// Seeds tried (more with `SEEDS=3000` in the environment); a failure names its own.
fn seeds(count: u64) {
    plant();
    let (mut told, mut retried, mut cut) = (0, 0, 0);
    for seed in 0..count {
        let result = std::panic::catch_unwind(|| play(seed));
        let (t, r, c) = result.unwrap_or_else(|_| panic!("seed {seed}: play({seed}) replays it"));
        (told, retried, cut) = (told + t, retried + r, cut + c);
    }
    assert!(told > 10_000, "{told} acknowledged");
    assert!(retried > 10, "{retried} by a retry");
    assert!(cut > count / 2, "{cut} losses of power");
}

#[test]
fn under_trouble_nothing_acknowledged_is_lost_or_applied_twice() {
    let more = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok());
    seeds(more.unwrap_or(40));
}

#[test]
fn a_seed_replays_to_the_bit() {
    assert_eq!(play(7), play(7));
}
