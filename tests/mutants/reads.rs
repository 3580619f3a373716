//! Reads and transfers, message by message, on clocks of their own.

use ringraft::block::Block;
use ringraft::ids::{GroupId, Incarnation, Index, NodeId, Tick};
use ringraft::raft::harness::sample_block;
use ringraft::raft::ready::{ReadIndex, Ready, Role};
use ringraft::raft::{Body, Config, Event, Message, Raft, Restored};

const MS: u64 = 1000;

struct Sent {
    from: usize,
    to: usize,
    message: Message,
    blocks: Vec<Block>,
}

/// Three voters; persists are done at once, messages wait to be carried.
struct Trio {
    rafts: [Raft; 3],
    /// Percent of the true speed, by node.
    rates: [u64; 3],
    ready: Ready,
    under_way: Vec<Sent>,
    reads: Vec<(usize, ReadIndex)>,
    now: u64,
}

impl Trio {
    fn new(adjust: impl Fn(&mut Config)) -> Self {
        let voters: Vec<_> = (1..=3).map(NodeId).collect();
        let raft = |n: u32| {
            let mut config = Config::new(NodeId(n), GroupId(0), voters.clone(), Incarnation(1));
            adjust(&mut config);
            Raft::new(config, Restored::default(), Tick::ZERO)
        };
        Self {
            rafts: [raft(1), raft(2), raft(3)],
            rates: [100; 3],
            ready: Ready::default(),
            under_way: Vec::new(),
            reads: Vec::new(),
            now: 0,
        }
    }

    fn local(&self, i: usize) -> Tick {
        Tick(self.now * self.rates[i] / 100)
    }

    fn step(&mut self, i: usize, event: Event<'_>) {
        self.rafts[i].handle(self.local(i), event, &mut self.ready);
        for sent in self.ready.messages.drain(..) {
            let range = sent.blocks.start as usize..sent.blocks.end as usize;
            let (to, message) = (sent.to.0 as usize - 1, sent.message);
            let blocks = self.ready.blocks[range].to_vec();
            self.under_way.push(Sent { from: i, to, message, blocks });
        }
        self.reads.extend(self.ready.reads.drain(..).map(|read| (i, read)));
        let seq = self.ready.persists.last().map(|persist| persist.seq);
        self.ready.clear();
        if let Some(seq) = seq {
            self.step(i, Event::Persisted { seq });
        }
    }

    fn carry(&mut self, mut sent: Sent) {
        let from = NodeId(sent.from as u32 + 1);
        let (message, blocks) = (sent.message, &mut sent.blocks);
        self.step(sent.to, Event::Receive { from, message, blocks });
    }

    /// Carries what is for and from `whom`, and loses the rest.
    fn carry_among(&mut self, whom: &[usize]) {
        while !self.under_way.is_empty() {
            let sent = self.under_way.remove(0);
            if whom.contains(&sent.from) && whom.contains(&sent.to) {
                self.carry(sent);
            }
        }
    }

    /// Lets a node's deadline come, if it is not past.
    fn timeout(&mut self, i: usize) {
        let due = self.rafts[i].deadline().0;
        self.now = self.now.max((due * 100).div_ceil(self.rates[i]));
        self.step(i, Event::Timeout);
    }

    fn elect(&mut self, i: usize, among: &[usize]) {
        self.timeout(i);
        self.carry_among(among);
        assert_eq!(self.rafts[i].role(), Role::Leader);
    }

    fn propose(&mut self, i: usize) {
        self.step(i, Event::Propose { blocks: &mut vec![sample_block(GroupId(0), 1, 8)] });
    }

    fn commit(&mut self, i: usize, among: &[usize]) -> Index {
        self.propose(i);
        self.carry_among(among);
        assert_eq!(self.rafts[i].commit(), self.rafts[i].last_index());
        self.rafts[i].commit()
    }
}

/// A leader that was deposed without hearing of it, after having answered a read in its time.
fn deposed() -> Trio {
    let mut trio = Trio::new(|_| {});
    trio.elect(0, &[0, 1, 2]);
    trio.step(0, Event::ReadIndex { number: 1 });
    trio.carry_among(&[0, 1, 2]);
    assert_eq!(trio.reads.len(), 1, "in time it answers");
    trio.now += 400 * MS;
    trio.elect(1, &[1, 2]);
    trio.commit(1, &[1, 2]);
    assert_eq!(trio.rafts[0].role(), Role::Leader, "it has not heard of it");
    trio
}

/// Whoever was cut off does not answer from the past: neither alone nor by answers that were given
/// to it before the read came.
pub fn a_deposed_leader_answers_nothing() {
    let mut trio = deposed();
    trio.step(0, Event::ReadIndex { number: 2 });
    assert_eq!(trio.reads.len(), 1, "nobody has confirmed it");
}

/// A new leader does not know how far the one before it had committed (bug 24).
pub fn a_new_leader_knows_what_is_committed_after_its_own_entry() {
    let mut trio = Trio::new(|_| {});
    trio.elect(0, &[0, 1, 2]);
    let committed = trio.commit(0, &[0, 1, 2]);
    assert!(trio.rafts[1].commit() < committed, "nobody has told the follower yet");
    trio.now += 400 * MS;
    trio.timeout(1);
    // All but the entry of the new term gets through.
    while !trio.under_way.is_empty() {
        let sent = trio.under_way.remove(0);
        if sent.from != 0 && sent.to != 0 && sent.blocks.is_empty() {
            trio.carry(sent);
        }
    }
    assert_eq!(trio.rafts[1].role(), Role::Leader);
    trio.step(1, Event::ReadIndex { number: 1 });
    while !trio.under_way.is_empty() {
        let sent = trio.under_way.remove(0);
        if sent.blocks.is_empty() {
            trio.carry(sent);
        }
    }
    assert!(trio.reads.iter().all(|(_, read)| read.index >= committed), "{:?}", trio.reads);
}

/// The others' clocks run fast, within the bound: they elect somebody while the leader still counts
/// the milliseconds of its lease.
pub fn a_lease_ends_before_the_fastest_clock_allows_an_election() {
    let mut trio = Trio::new(|config| {
        config.lease_reads = true;
        config.election_timeout_max_us = config.election_timeout_min_us + 2 * MS;
    });
    trio.rates = [92, 109, 109];
    trio.elect(0, &[0, 1, 2]);
    trio.timeout(0);
    trio.carry_among(&[0, 1, 2]);
    assert!(trio.rafts[0].lease_index(trio.local(0)).is_some(), "it has one");
    trio.elect(1, &[1, 2]);
    let committed = trio.commit(1, &[1, 2]);
    assert_eq!(trio.rafts[0].role(), Role::Leader, "it has not heard of it");
    let index = trio.rafts[0].lease_index(trio.local(0));
    assert!(index.is_none_or(|index| index >= committed), "{index:?}");
}

/// The leader's clock leaps, because it was stopped or because it is such a clock: the lease is over
/// before any timer says so.
pub fn a_lease_does_not_outlast_a_jump() {
    let mut trio = Trio::new(|config| config.lease_reads = true);
    trio.elect(0, &[0, 1, 2]);
    trio.timeout(0);
    trio.carry_among(&[0, 1, 2]);
    assert!(trio.rafts[0].lease_index(trio.local(0)).is_some(), "it has one");
    trio.now += 400 * MS;
    trio.elect(1, &[1, 2]);
    let committed = trio.commit(1, &[1, 2]);
    assert_eq!(trio.rafts[0].role(), Role::Leader, "it has not heard of it");
    let index = trio.rafts[0].lease_index(trio.local(0));
    assert!(index.is_none_or(|index| index >= committed), "{index:?}");
}

/// Whoever was told to campaign does so without regard to a lease.
pub fn a_leader_that_hands_over_has_no_lease() {
    let mut trio = Trio::new(|config| config.lease_reads = true);
    trio.elect(0, &[0, 1, 2]);
    trio.timeout(0);
    trio.carry_among(&[0, 1, 2]);
    assert!(trio.rafts[0].lease_index(trio.local(0)).is_some(), "it has one");
    trio.step(0, Event::Transfer { to: NodeId(2) });
    let word = trio.under_way.remove(0);
    assert_eq!(word.message.body, Body::TimeoutNow);
    trio.carry(word);
    trio.carry_among(&[1, 2]);
    let committed = trio.commit(1, &[1, 2]);
    let index = trio.rafts[0].lease_index(trio.local(0));
    assert!(index.is_none_or(|index| index >= committed), "{index:?}");
}

/// bug 39: a follower that is behind could not win, and would only end the leader's term.
pub fn only_who_has_everything_is_told_to_campaign() {
    let mut trio = Trio::new(|_| {});
    trio.elect(0, &[0, 1, 2]);
    trio.propose(0);
    // n3 gets nothing of it.
    trio.carry_among(&[0, 1]);
    trio.step(0, Event::Transfer { to: NodeId(3) });
    let told = |sent: &Sent| sent.message.body == Body::TimeoutNow;
    assert!(!trio.under_way.iter().any(told), "n3 lacks an entry");
}

/// A word of the leader of term 1 comes when somebody else has long led.
pub fn a_late_word_starts_no_election() {
    let mut trio = Trio::new(|_| {});
    trio.elect(0, &[0, 1, 2]);
    trio.step(0, Event::Transfer { to: NodeId(3) });
    let word = trio.under_way.remove(0);
    assert_eq!(word.message.body, Body::TimeoutNow);
    trio.now += 400 * MS;
    trio.elect(1, &[1, 2]);
    trio.carry(word);
    trio.carry_among(&[1, 2]);
    assert_eq!(trio.rafts[1].role(), Role::Leader, "n3 is in its term and left it in peace");
}
