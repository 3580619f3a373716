//! Chance drives a cluster: messages are lost, doubled, reordered and late, nodes crash between any
//! two writes or lose power (without `wal_sync` a minority at a time) and come back. The world checks the paper's properties at each step; afterwards the
//! faults end and the cluster must make progress.

use super::super::*;
use super::world::World;
use crate::membership::Step;

/// What a run may do, out of 1000 steps each.
struct Faults {
    lose: u64,
    double: u64,
    crash: u64,
    power: u64,
    cut: u64,
    change: u64,
}

struct Run {
    world: World,
    rng: Rng,
    faults: Faults,
    power_losses: u64,
    changes: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let nodes = [1, 2, 3, 3, 3, 5][rng.between(0, 5) as usize];
        let small = rng.between(0, 1) == 1;
        // Half of the runs change their members, of up to seven nodes.
        let changing = rng.between(0, 1) == 1;
        let spares = if changing { rng.between(1, 2) as u32 } else { 0 };
        let leases = rng.between(0, 3) == 0;
        let mut world = World::with_spares(nodes, spares, |config| {
            config.seed = config.seed.wrapping_mul(31).wrapping_add(seed);
            if small {
                config.append_bytes_max = 200;
                config.inflight_count_max = 2;
                config.uncommitted_bytes_max = 1000;
                config.cache_bytes_max = 0;
            }
            config.lease_reads = leases;
        });
        if leases {
            // Within the 20 % that the configuration allows for.
            world.nodes.iter_mut().for_each(|node| node.rate = rng.between(92, 109));
        }
        let mut pick = |max| rng.between(0, max);
        let (lose, double, crash, cut) = (pick(200), pick(100), pick(10), pick(10));
        let change = if changing { 25 } else { 0 };
        let faults = Faults { lose, double, crash, cut, power: pick(10), change };
        let wal_sync = pick(2) == 0;
        world.nodes.iter_mut().for_each(|node| node.wal_sync = wal_sync);
        Self { world, rng, faults, power_losses: 0, changes: 0 }
    }

    fn happens(&mut self, per_mille: u64) -> bool {
        self.rng.between(0, 999) < per_mille
    }

    fn any_node(&mut self) -> NodeId {
        NodeId(self.rng.between(1, self.world.nodes.len() as u64) as u32)
    }

    fn step(&mut self) {
        let id = self.any_node();
        if self.world.node(id).raft.is_none() {
            if self.happens(100) {
                self.world.start(id);
                self.introduce(id);
            }
            return;
        }
        if self.happens(self.faults.crash) {
            let done = self.rng.between(0, self.world.writes_under_way(id) as u64) as usize;
            return self.world.crash(id, done);
        }
        if self.happens(self.faults.power) && self.may_lose_power(id) {
            let keep = self.rng.between(0, 5) as usize;
            self.power_losses += 1;
            return self.world.cut_power(id, keep);
        }
        if self.happens(self.faults.cut) {
            self.change_cuts(id);
        }
        if self.happens(self.faults.change) {
            self.change();
        }
        match self.rng.between(0, 10) {
            0 => self.propose(id),
            10 if self.happens(20) => {
                let to = self.any_node();
                self.world.transfer(id, to);
            }
            10 => self.world.read(id),
            1 | 2 => {
                let count = self.rng.between(1, 3) as usize;
                self.world.persist(id, count);
            }
            3 => self.tick(),
            4 => {
                let succeeds = self.happens(900);
                self.world.fetch(id, succeeds);
            }
            _ => self.network(),
        }
    }

    /// What the contract allows: any number of nodes that sync, or a minority of those that do not,
    /// counting who lost power before and is not yet back.
    fn may_lose_power(&self, id: NodeId) -> bool {
        let bears = |membership: &Membership| self.bears(membership, Some(id));
        self.world.node(id).wal_sync || self.world.alive().iter().all(bears)
    }

    /// Whether those that have lost power are a minority of each half, also when all that join have
    /// their seats.
    fn bears(&self, membership: &Membership, and: Option<NodeId>) -> bool {
        let lost = |voter: &&NodeId| Some(**voter) == and || self.world.node(**voter).recovering;
        let mut seated = membership.voters.clone();
        for joining in &membership.joining {
            seated.push(joining.node);
            seated.retain(|&node| Some(node) != joining.replaces);
        }
        [&membership.voters, &membership.outgoing, &seated]
            .into_iter()
            .all(|half| half.is_empty() || half.iter().filter(lost).count() <= (half.len() - 1) / 2)
    }

    /// One or two steps of any kind, asked of whoever leads, sensible or not.
    fn change(&mut self) {
        let leads = |node: &&super::world::Node| {
            node.raft.as_ref().is_some_and(|raft| raft.role() == Role::Leader)
        };
        let Some(leader) = self.world.nodes.iter().find(leads).map(|node| node.id) else { return };
        let mut steps = Vec::new();
        for _ in 0..self.rng.between(1, 2) {
            let (node, other) = (self.any_node(), self.any_node());
            steps.push(match self.rng.between(0, 5) {
                0 | 1 => Step::Add { node, votes: self.happens(700), address: None },
                2 => Step::Remove(node),
                3 => Step::Promote(node),
                4 => Step::Demote(node),
                _ => Step::Replace { old: node, new: other, address: None },
            });
        }
        let now = self.world.node(leader).raft().membership();
        let target = if now.is_joint() { None } else { now.change(&steps).ok() };
        // Nor makes an operator those that have lost power a majority.
        if target.is_none_or(|target| self.bears(&target, None)) {
            self.changes += u64::from(self.world.change(leader, &steps, false).is_ok());
        }
    }

    /// Some of the others are told of a node's new start; the rest learn it from messages.
    fn introduce(&mut self, id: NodeId) {
        let incarnation = self.world.node(id).config.incarnation;
        for peer in self.world.nodes.iter().map(|n| n.id).collect::<Vec<_>>() {
            if peer != id && self.happens(500) {
                self.world.handle(peer, Event::PeerDisconnected { peer: id });
                self.world.handle(peer, Event::PeerConnected { peer: id, incarnation });
            }
        }
    }

    fn propose(&mut self, id: NodeId) {
        let counts: Vec<u32> =
            (0..self.rng.between(1, 4)).map(|_| self.rng.between(1, 4) as u32).collect();
        self.world.propose(id, &counts);
    }

    fn tick(&mut self) {
        self.world.now = self.world.now.plus(self.rng.between(0, 20_000));
        for id in (1..=self.world.nodes.len() as u32).map(NodeId) {
            self.world.handle(id, Event::Timeout);
        }
    }

    fn network(&mut self) {
        if self.world.net.is_empty() {
            return;
        }
        let at = self.rng.between(0, self.world.net.len() as u64 - 1) as usize;
        if self.happens(self.faults.lose) {
            self.world.net.remove(at);
            return;
        }
        if self.happens(self.faults.double) {
            let copy = self.world.net[at].clone();
            self.world.net.push(copy);
        }
        self.world.deliver(at);
    }

    fn change_cuts(&mut self, id: NodeId) {
        let other = self.any_node();
        if self.happens(500) {
            self.world.cut.clear();
        } else if other != id {
            self.world.cut.insert((id, other));
        }
    }

    /// Everything works again. A leader must emerge and commit a proposal on all nodes.
    fn heal(&mut self) {
        self.world.cut.clear();
        for id in (1..=self.world.nodes.len() as u32).map(NodeId) {
            if self.world.node(id).raft.is_none() {
                self.world.start(id);
            }
        }
        for _ in 0..200 {
            self.world.now = self.world.now.plus(10_000);
            for id in (1..=self.world.nodes.len() as u32).map(NodeId) {
                self.world.handle(id, Event::Timeout);
            }
            self.world.settle();
        }
        let leader = self.leader().expect("a healthy cluster has a leader");
        self.world.propose(leader, &[3]);
        self.world.settle();
        for _ in 0..2 {
            self.world.timeout(leader);
            self.world.settle();
        }
        self.world.read(leader);
        self.world.settle();
        let last = self.world.node(leader).raft().last_index();
        let members = self.world.node(leader).raft().membership().clone();
        assert!(!members.is_joint(), "a joint configuration is left");
        assert!(members.joining.is_empty(), "who is to vote and works gets there: {members:?}");
        for node in self.world.nodes.iter().filter(|node| members.is_member(node.id)) {
            let raft = node.raft();
            assert_eq!((raft.commit(), raft.last_index()), (last, last), "{:?}", node.id);
            assert!(!raft.is_recovering() && raft.epoch() == 0, "{:?}", node.id);
        }
    }

    fn leader(&self) -> Option<NodeId> {
        let leads = |r: &Raft| r.role() == Role::Leader;
        let mut leaders = self.world.nodes.iter().filter(|n| leads(n.raft()));
        let leader = leaders.next().map(|n| n.id);
        assert!(leaders.next().is_none(), "a healthy cluster has one leader");
        leader
    }
}

/// How many commands were committed, how often power was lost, how many changes began.
fn run(seed: u64, steps: usize) -> (u64, u64, u64) {
    let mut run = Run::new(seed);
    for step in 0..steps {
        run.step();
        run.world.trace.clear();
        if step % 64 == 0 {
            run.world.check_log_matching();
        }
    }
    run.heal();
    run.world.check_log_matching();
    assert!(run.world.reads_done > 0, "a healthy cluster answers reads");
    let commits = run.world.nodes.iter().map(|node| node.raft().commit().get());
    (commits.max().unwrap(), run.power_losses, run.changes)
}

/// `MUTANT=never-recovering cargo test --features mutants --lib raft::tests::random` must fail.
fn plant() {
    #[cfg(feature = "mutants")]
    if let Ok(name) = std::env::var("MUTANT") {
        let mutant = crate::mutants::Mutant::ALL.iter().find(|mutant| mutant.name() == name);
        crate::mutants::set(Some(*mutant.expect("a mutant's name")));
    }
}

#[test]
fn whatever_happens_the_papers_properties_hold_and_the_cluster_recovers() {
    let seeds = std::env::var("RAFT_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1000);
    plant();
    let (mut committed, mut power_losses, mut changes) = (0, 0, 0);
    for seed in 0..seeds {
        let outcome = std::panic::catch_unwind(|| run(seed, 3000));
        match outcome {
            Ok((commands, losses, changed)) => {
                committed += commands;
                power_losses += losses;
                changes += changed;
            }
            Err(cause) => {
                let text = cause.downcast_ref::<String>().cloned();
                let text = text.or(cause.downcast_ref::<&str>().map(|s| s.to_string()));
                panic!("seed {seed}: {}", text.unwrap_or_default());
            }
        }
    }
    // A run in which nothing ever commits checks nothing.
    assert!(committed > seeds * 20, "only {committed} commands in {seeds} runs");
    assert!(power_losses > seeds * 2, "only {power_losses} losses of power in {seeds} runs");
    assert!(changes > seeds, "only {changes} changes of members in {seeds} runs");
}

/// Prints the end of one run: `RAFT_SEED=40 cargo test --lib one_seed -- --nocapture`.
#[test]
fn one_seed() {
    let Some(seed) = std::env::var("RAFT_SEED").ok().and_then(|s| s.parse().ok()) else { return };
    let mut run = Run::new(seed);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        (0..3000).for_each(|_| run.step());
        run.heal();
    }));
    if outcome.is_err() {
        let from = run.world.trace.len().saturating_sub(400);
        eprintln!("{}", run.world.trace[from..].join("\n"));
        panic!("seed {seed} fails");
    }
}
