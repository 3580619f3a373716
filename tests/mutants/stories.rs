//! Bugs that the simulator's small load does not reach, each with its own story.

use ringraft::block::{Block, BlockBuilder, Command, CommandKind, EVENT_ID_BYTES};
use ringraft::ids::{GroupId, HardState, Incarnation, Index, NodeId, Term, Tick};
use ringraft::machine::StateMachine;
use ringraft::machine::events::{EventLimits, EventStore};
use ringraft::raft::harness::sample_block;
use ringraft::raft::ready::{Ready, Role};
use ringraft::raft::{Body, Config, Event, Message, Raft, Restored, TermRun};
use ringraft::wal::{DiskDone, DiskOp, LogIdentity, Wal, WalConfig};

use super::shards::{LIMIT, Trio};

/// A leader whose disk does nothing takes on what its bound allows (bug 26).
pub fn a_leader_alone_takes_on_so_much() {
    const BOUND: u64 = 20_000;
    let me = NodeId(1);
    let mut config = Config::new(me, GroupId(0), vec![me], Incarnation(1));
    config.uncommitted_bytes_max = BOUND;
    let mut raft = Raft::new(config, Restored::default(), Tick::ZERO);
    let mut ready = Ready::default();
    for _ in 0..4 {
        raft.handle(raft.deadline(), Event::Timeout, &mut ready);
        let seq = ready.persists.last().map(|persist| persist.seq);
        ready.clear();
        if let Some(seq) = seq {
            raft.handle(Tick(1), Event::Persisted { seq }, &mut ready);
        }
        if raft.role() == Role::Leader {
            break;
        }
    }
    assert_eq!(raft.role(), Role::Leader);
    for _ in 0..100 {
        let mut blocks = vec![sample_block(GroupId(0), 1, 1000)];
        raft.handle(Tick(2), Event::Propose { blocks: &mut blocks }, &mut ready);
        ready.clear();
    }
    assert!(raft.uncommitted_bytes() > BOUND / 2, "it was offered enough");
    assert!(raft.uncommitted_bytes() <= BOUND, "{} bytes", raft.uncommitted_bytes());
}

/// Two of three voters, one message after another.
struct Pair {
    rafts: [Raft; 2],
    ready: Ready,
    /// Persists settle at once, messages wait to be carried.
    under_way: Vec<(usize, Message, Vec<Block>)>,
}

impl Pair {
    fn new() -> Self {
        let voters: Vec<_> = (1..=3).map(NodeId).collect();
        let raft = |n: u32| {
            let config = Config::new(NodeId(n), GroupId(0), voters.clone(), Incarnation(1));
            Raft::new(config, Restored::default(), Tick::ZERO)
        };
        Self { rafts: [raft(1), raft(2)], ready: Ready::default(), under_way: Vec::new() }
    }

    fn step(&mut self, i: usize, event: Event<'_>) {
        let now = Tick(1_000_000);
        self.rafts[i].handle(now, event, &mut self.ready);
        for sent in self.ready.messages.drain(..).filter(|sent| sent.to != NodeId(3)) {
            let blocks =
                self.ready.blocks[sent.blocks.start as usize..sent.blocks.end as usize].to_vec();
            self.under_way.push((1 - i, sent.message, blocks));
        }
        let seq = self.ready.persists.last().map(|persist| persist.seq);
        self.ready.clear();
        if let Some(seq) = seq {
            self.step(i, Event::Persisted { seq });
        }
    }

    fn carry(&mut self, (to, message, mut blocks): (usize, Message, Vec<Block>)) {
        let from = NodeId(2 - to as u32);
        self.step(to, Event::Receive { from, message, blocks: &mut blocks });
    }

    fn carry_all(&mut self) {
        while !self.under_way.is_empty() {
            let first = self.under_way.remove(0);
            self.carry(first);
        }
    }
}

/// What a follower acknowledged before it lost its memory does not make an entry committed
/// (durability.md R5).
pub fn an_earlier_starts_word_does_not_count() {
    let mut pair = Pair::new();
    pair.step(0, Event::Timeout);
    pair.carry_all();
    assert_eq!(pair.rafts[0].role(), Role::Leader);
    pair.step(0, Event::Propose { blocks: &mut vec![sample_block(GroupId(0), 1, 8)] });
    let append = pair.under_way.remove(0);
    pair.carry(append);
    let commit = pair.rafts[0].commit();
    let word = pair.under_way.pop().expect("the follower has acknowledged");
    assert!(matches!(word.1.body, Body::AppendReply { matched } if matched > commit));
    pair.step(0, Event::PeerConnected { peer: NodeId(2), incarnation: Incarnation(2) });
    pair.carry(word);
    assert_eq!(pair.rafts[0].commit(), commit, "nobody but the leader has it for certain");
}

/// A peer that takes no bytes fills its bound and no more (bug 27).
pub fn a_stuck_peer_costs_so_much_memory() {
    let mut trio = Trio::new(|_| {});
    trio.cuts.push((0, 2));
    (1..=200).for_each(|seq| drop(trio.submit(seq)));
    assert!(trio.waiting() > LIMIT / 2, "it was offered enough");
    assert!(trio.waiting() <= 2 * LIMIT + (16 << 10), "{} bytes", trio.waiting());
}

/// Over a full link appends are left out and heartbeats are not (bug 36).
pub fn a_full_link_still_gets_heartbeats() {
    let mut trio = Trio::new(|_| {});
    trio.cuts.push((0, 2));
    let mut seq = 0;
    while trio.waiting() <= LIMIT {
        seq += 1;
        assert!(seq < 500, "the link fills");
        trio.submit(seq);
    }
    let full = trio.waiting();
    trio.run(400);
    assert!(trio.leads() && trio.waiting() > full, "nothing more was said in 400 ms");
}

fn applied(store: &mut EventStore, first: u64, kind: CommandKind, at: u64, key: &[u8]) -> u32 {
    let mut builder = BlockBuilder::default();
    let command = Command { kind: kind as u8, flags: 0, timestamp: at, key, value: b"" };
    builder.push(&command).expect("fits");
    let mut block: Block = builder.finish(GroupId(0), 0, 0, 0);
    block.stamp(Term(1), Index(first), 0);
    store.apply(&block).applied
}

/// An id that was added is a duplicate from then on.
pub fn an_event_id_is_new_once() {
    let mut store = EventStore::new(EventLimits::default());
    let id = [5; EVENT_ID_BYTES];
    assert_eq!(applied(&mut store, 1, CommandKind::DedupAdd, 10, &id), 1);
    assert_eq!(applied(&mut store, 2, CommandKind::DedupAdd, 11, &id), 0);
}

/// What an expiry's cut-off leaves behind it can be added anew, whatever came with it.
pub fn expired_ids_are_new_again() {
    let mut store = EventStore::new(EventLimits::default());
    let (old, young) = ([5; EVENT_ID_BYTES], [6; EVENT_ID_BYTES]);
    applied(&mut store, 1, CommandKind::DedupAdd, 10, &old);
    applied(&mut store, 2, CommandKind::DedupAdd, 99, &young);
    applied(&mut store, 3, CommandKind::DedupExpire, 50, b"");
    assert_eq!(applied(&mut store, 4, CommandKind::DedupAdd, 60, &old), 1);
    assert_eq!(applied(&mut store, 5, CommandKind::DedupAdd, 60, &young), 0);
}

/// A follower of three, whose log holds two entries of term 1, of which the first is committed.
fn follower() -> (Raft, Ready) {
    let voters = (1..=3).map(NodeId).collect();
    let mut config = Config::new(NodeId(2), GroupId(0), voters, Incarnation(1));
    config.hibernate_after_us = 1;
    let (first, last) = (Index(1), Index(2));
    let terms = vec![TermRun { first, term: Term(1), epoch: 0, since: first }];
    let hard_state = HardState { term: Term(1), vote: None, commit: first };
    let restored = Restored { hard_state, terms, last, ..Restored::default() };
    (Raft::new(config, restored, Tick::ZERO), Ready::default())
}

fn told_to_sleep(raft: &mut Raft, ready: &mut Ready, term: u64) {
    let body = Body::Hibernate { last: Index(2), round: 1 };
    let (term, incarnation, echo) = (Term(term), Incarnation(1), Incarnation(1));
    let message = Message { term, incarnation, echo, body };
    let event = Event::Receive { from: NodeId(1), message, blocks: &mut Vec::new() };
    raft.handle(Tick(1000), event, ready);
    let seq = ready.persists.last().map(|persist| persist.seq);
    ready.clear();
    if let Some(seq) = seq {
        raft.handle(Tick(1000), Event::Persisted { seq }, ready);
    }
}

/// The leader of term 2 has an entry of its own at 2, the follower one of term 1 (bug 38).
pub fn who_has_something_else_does_not_sleep() {
    let (mut raft, mut ready) = follower();
    // Once to learn the term, once with nothing left to be written.
    told_to_sleep(&mut raft, &mut ready, 2);
    told_to_sleep(&mut raft, &mut ready, 2);
    assert_eq!(raft.commit(), Index(1), "nobody has confirmed what lies at 2");
    assert!(!raft.is_hibernating());
}

/// Between the end and the new start of the leader's node less than an election timeout passes.
pub fn a_sleeper_notices_that_its_leader_has_begun_anew() {
    let (mut raft, mut ready) = follower();
    told_to_sleep(&mut raft, &mut ready, 1);
    assert!(raft.is_hibernating() && raft.deadline() == Tick(u64::MAX));
    let peer = NodeId(1);
    raft.handle(Tick(2000), Event::PeerConnected { peer, incarnation: Incarnation(2) }, &mut ready);
    assert!(raft.deadline() < Tick(1_000_000), "nobody leads it");
}

/// A disk that writes and never syncs is given four lags of bytes, and what was under way (R7).
pub fn a_log_runs_so_far_ahead_of_its_syncs() {
    let config = WalConfig { sync_lag_bytes: 64 << 10, ..WalConfig::default() };
    let mut wal = Wal::create(config, LogIdentity { cluster: 1, node: 1, disk: 1 }, 1);
    let mut ops = Vec::new();
    for turn in 1..=200 {
        let mut blocks = [sample_block(GroupId(0), 1, 8 << 10)];
        blocks[0].stamp(Term(1), Index(turn), 0);
        wal.append(GroupId(0), &blocks, false, false);
        wal.flush(Tick(turn), &mut ops);
        for op in ops.drain(..) {
            let id = op.id();
            let done = match op {
                DiskOp::Write { buffer, .. } => DiskDone::Written { buffer },
                DiskOp::Prepare { .. } => DiskDone::Prepared,
                DiskOp::Sync { .. } | DiskOp::Read { .. } => continue,
            };
            let _ = wal.complete(Tick(turn), id, Ok(done)).expect("a sound disk");
        }
    }
    let ahead = wal.written().since(wal.durable());
    assert!(ahead > 128 << 10, "it was offered enough: {ahead} bytes");
    assert!(ahead <= (4 * 64 + 16) << 10, "{ahead} bytes are written and not synced");
}
