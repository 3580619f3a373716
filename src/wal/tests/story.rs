//! A run of a log on a simulated disk, and the model of what must be found again at each position.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;

use super::disk::{Disk, Image, Rng};
use crate::block::{Block, BlockKind, HEADER_BYTES};
use crate::ids::{GroupId, HardState, Index, LogStart, Lsn, NodeId, Term, Tick};
use crate::wal::{
    Completed, DiskErrorKind, LogIdentity, Recovered, Verdict, Wal, WalConfig, WalError, recover,
};

pub const ME: LogIdentity = LogIdentity { cluster: 77, node: 1, disk: 5 };

/// Segments and flushes so small that a short run sees every edge.
pub fn small() -> WalConfig {
    WalConfig {
        segment_bytes: 8 << 10,
        block_bytes: 512,
        depth: 4,
        flush_bytes_max: 2048,
        segments_max: 64,
        spare_segments: 1,
        sync_lag_us: 40,
        sync_lag_bytes: 3000,
        ..WalConfig::default()
    }
}

/// One entry with `size` bytes of body (a multiple of 8), told apart by its first byte.
pub fn block(group: GroupId, term: u64, index: u64, size: usize, mark: u8) -> Block {
    let body = Bytes::from(vec![mark; size]);
    let mut block = Block::special(group, BlockKind::Noop, body);
    block.stamp(Term(term), Index(index), 0);
    assert_eq!(block.size(), HEADER_BYTES + size);
    block
}

#[derive(Clone)]
enum Fact {
    State(GroupId, HardState),
    Blocks(GroupId, Vec<Block>, bool),
    /// A snapshot was installed in place of the log.
    Anew(GroupId, LogStart),
}

/// What one group must show.
#[derive(Clone, Default)]
pub struct GroupModel {
    pub state: HardState,
    /// Where an installed snapshot ends.
    pub start: Index,
    pub entries: BTreeMap<Index, Block>,
}

pub type Model = BTreeMap<GroupId, GroupModel>;

/// A log, its disk, and everything that was ever staged.
pub struct Story {
    pub config: WalConfig,
    pub wal: Wal,
    pub disk: Disk,
    pub now: Tick,
    pub rng: Rng,
    facts: Vec<(Lsn, Fact)>,
    models: BTreeMap<Lsn, Rc<Model>>,
    pub latest: Model,
    pub released: BTreeMap<GroupId, Index>,
    terms: BTreeMap<GroupId, u64>,
    marks: (Lsn, Lsn),
}

impl Story {
    pub fn new(config: WalConfig, seed: u64) -> Self {
        Self {
            config,
            wal: Wal::create(config, ME, seed),
            disk: Disk::new(config),
            now: Tick(1),
            rng: Rng::new(seed),
            facts: Vec::new(),
            models: BTreeMap::new(),
            latest: Model::new(),
            released: BTreeMap::new(),
            terms: BTreeMap::new(),
            marks: (Lsn::ZERO, Lsn::ZERO),
        }
    }

    /// Stages entries from `first` on.
    pub fn append(&mut self, group: GroupId, sizes: &[usize], truncates: bool, sync: bool) -> Lsn {
        let term = *self.terms.entry(group).or_insert(1);
        let last = self.last(group);
        let first = if truncates {
            let kept = self.released.get(&group).copied().unwrap_or_default();
            kept.0 + 1 + self.rng.below(last.since(kept) + 1)
        } else {
            last.0 + 1
        };
        let mark = self.rng.next() as u8;
        let blocks: Vec<_> =
            (first..).zip(sizes).map(|(i, size)| block(group, term, i, *size, mark)).collect();
        let lsn = self.wal.append(group, &blocks, truncates, sync);
        self.note(lsn, Fact::Blocks(group, blocks, truncates));
        lsn
    }

    /// A higher term, with or without a vote.
    pub fn new_term(&mut self, group: GroupId) -> Lsn {
        let term = self.terms.entry(group).or_insert(1);
        *term += 1;
        let vote = NodeId::from_wire(self.rng.below(3) as u32);
        let state = HardState { term: Term(*term), vote, commit: Index(self.rng.below(9)) };
        let lsn = self.wal.hard_state(group, state);
        self.note(lsn, Fact::State(group, state));
        lsn
    }

    pub fn last(&self, group: GroupId) -> Index {
        let Some(log) = self.latest.get(&group) else { return Index::ZERO };
        log.entries.last_key_value().map_or(log.start, |(index, _)| *index)
    }

    fn note(&mut self, lsn: Lsn, fact: Fact) {
        apply(&mut self.latest, &fact);
        self.facts.push((lsn, fact));
    }

    pub fn release(&mut self, group: GroupId, through: Index) {
        let released = self.released.entry(group).or_default();
        *released = through.max(*released);
        let term = self.latest.get(&group).and_then(|log| log.entries.get(&through));
        let term = term.map_or(Term(1), Block::term);
        self.wal.begin_at(group, LogStart { index: *released, term, epoch: 0 }, false);
    }

    /// A snapshot from elsewhere takes the place of all the group has logged.
    pub fn install(&mut self, group: GroupId) {
        let index = Index(self.last(group).0 + 1 + self.rng.below(9));
        let term = Term(*self.terms.entry(group).or_insert(1));
        let start = LogStart { index, term, epoch: 0 };
        self.released.insert(group, index);
        let lsn = self.wal.begin_at(group, start, true);
        self.note(lsn, Fact::Anew(group, start));
    }

    /// One turn: flush and hand the operations to the disk.
    pub fn flush(&mut self) {
        let mut ops = Vec::new();
        self.wal.flush(self.now, &mut ops);
        self.disk.issue(&mut ops);
        self.check_marks();
    }

    /// The `at`-th operation in flight completes.
    pub fn complete(&mut self, at: usize) -> Completed {
        let (op, done) = self.disk.complete(at);
        let completed = self.wal.complete(self.now, op, Ok(done)).expect("nothing failed");
        self.check_marks();
        completed
    }

    /// The `at`-th operation in flight fails.
    pub fn fail(&mut self, at: usize, kind: DiskErrorKind) -> Result<Completed, WalError> {
        let (op, error) = self.disk.fail(at, kind);
        self.wal.complete(self.now, op, Err(error))
    }

    /// The log was opened again: what is durable is found out anew.
    pub fn begin_again(&mut self) {
        self.marks = (self.wal.durable(), self.wal.written());
    }

    fn check_marks(&mut self) {
        let marks = (self.wal.durable(), self.wal.written());
        assert!(marks.0 >= self.marks.0 && marks.1 >= self.marks.1, "marks never go back");
        assert!(marks.0 <= marks.1 && marks.1.0 <= self.wal.staged().0 + 512);
        self.marks = marks;
    }

    /// Turns until nothing is left to do; time passes as far as deadlines ask.
    pub fn settle(&mut self) {
        self.wal.sync();
        for _ in 0..10_000 {
            self.flush();
            if self.disk.ops.is_empty() {
                if self.wal.durable() >= self.wal.staged() {
                    return;
                }
                self.now = self.now.plus(1);
            } else {
                let at = self.rng.below(self.disk.ops.len() as u64) as usize;
                let _ = self.complete(at);
            }
        }
        panic!("the log does not settle");
    }

    /// One random step of a busy shard.
    pub fn step(&mut self, groups: u64) {
        self.now = self.now.plus(self.rng.below(4));
        let group = GroupId(self.rng.below(groups) as u32);
        let sync = group.0.is_multiple_of(2);
        match self.rng.below(16) {
            0..=4 if self.wal.room() > 4000 => {
                let count = 1 + self.rng.below(3);
                let sizes: Vec<_> = (0..count).map(|_| 8 * self.rng.below(90) as usize).collect();
                self.append(group, &sizes, false, sync);
            }
            5 if self.wal.room() > 4000 => {
                self.append(group, &[16], true, sync);
            }
            6 => drop(self.new_term(group)),
            7 => {
                let last = self.last(group).0;
                if self.rng.below(4) == 0 && self.wal.room() > 4000 {
                    return self.install(group);
                }
                let through = last.saturating_sub(self.rng.below(4));
                self.release(group, Index(through));
            }
            8..=10 => self.flush(),
            _ if self.disk.ops.is_empty() => self.flush(),
            _ => {
                let at = self.rng.below(self.disk.ops.len() as u64) as usize;
                let _ = self.complete(at);
            }
        }
    }

    /// What a log that ends where `found` does must hold: every fact staged before that position.
    /// An append of several blocks may have been split there; its front is part of the log.
    pub fn model_at(&mut self, found: &Recovered) -> Rc<Model> {
        if let Some(model) = self.models.get(&found.end) {
            return model.clone();
        }
        let mut model = Model::new();
        let whole = self.facts.iter().take_while(|(lsn, _)| *lsn <= found.end);
        let count = whole.inspect(|(_, fact)| apply(&mut model, fact)).count();
        if let Some((_, Fact::Blocks(group, blocks, _))) = self.facts.get(count) {
            let last = found.groups.get(group).map_or(Index::ZERO, |group| group.last);
            let front = blocks.iter().filter(|block| block.last() <= last);
            let front: Vec<_> = front.cloned().collect();
            if !front.is_empty() && front.len() < blocks.len() {
                apply(&mut model, &Fact::Blocks(*group, front, false));
            }
        }
        let model = Rc::new(model);
        self.models.insert(found.end, model.clone());
        model
    }

    /// Recovers `image` after a legal crash at which `promised` had been reached; what is found is
    /// exactly the log up to its end.
    pub fn check_image(&mut self, image: &mut Image, promised: Lsn) -> Recovered {
        let recovered = recover(self.config, ME, image).expect("a legal crash recovers");
        let rot = matches!(recovered.verdict, Verdict::Rot { .. });
        assert!(!rot, "a crash is not rot: {:?}", recovered.verdict);
        // A new log begins at its first segment: nothing was promised up to there.
        let promised = if promised.0 <= self.config.segment_bytes { Lsn::ZERO } else { promised };
        assert!(recovered.end >= promised, "acknowledged {promised}, found {}", recovered.end);
        let model = self.model_at(&recovered);
        self.compare(&recovered, &model);
        recovered
    }

    fn compare(&self, recovered: &Recovered, model: &Model) {
        for (group, found) in &recovered.groups {
            assert!(model.contains_key(group), "{group:?} was never logged: {found:?}");
        }
        for (group, expected) in model {
            let found = recovered.groups.get(group).cloned().unwrap_or_default();
            assert_eq!(found.hard_state, expected.state, "{group:?}");
            let released = self.released.get(group).copied().unwrap_or_default();
            let last = expected.entries.last_key_value().map_or(expected.start, |(i, _)| *i);
            if found.last == Index::ZERO {
                assert!(last <= released, "{group:?} lost its entries");
                continue;
            }
            assert_eq!(found.last, last, "{group:?}");
            assert!(found.first <= released.next(), "{group:?} lost the front of its log");
            for (index, block) in expected.entries.range(found.first..) {
                let at = found.terms.partition_point(|run| run.first <= *index);
                assert_eq!(found.terms[at - 1].term, block.term(), "{group:?} {index:?}");
            }
        }
    }
}

fn apply(model: &mut Model, fact: &Fact) {
    match fact {
        Fact::State(group, state) => model.entry(*group).or_default().state = *state,
        Fact::Anew(group, start) => {
            let log = model.entry(*group).or_default();
            log.start = start.index;
            log.entries.clear();
        }
        Fact::Blocks(group, blocks, truncates) => {
            let entries = &mut model.entry(*group).or_default().entries;
            if *truncates {
                entries.split_off(&blocks[0].first());
            }
            entries.extend(blocks.iter().map(|block| (block.first(), block.clone())));
        }
    }
}

/// Reads a group's entries back through the log, as a catch-up does.
pub fn read_back(wal: &mut Wal, disk: &mut Disk, group: GroupId, from: Index) -> Vec<Block> {
    let mut out: Vec<Block> = Vec::new();
    let mut from = from;
    loop {
        let mut ops = Vec::new();
        if wal.read(group, from, Index(u64::MAX), 3000, 9, &mut ops).is_err() {
            return out;
        }
        let read = ops[0].id();
        disk.issue(&mut ops);
        let at = disk.ops.iter().position(|op| op.id() == read).expect("just issued");
        let (op, done) = disk.complete(at);
        match wal.complete(Tick(1), op, Ok(done)) {
            Ok(Completed::Fetched { token: 9, blocks, .. }) => out.extend(blocks),
            other => panic!("{other:?}"),
        }
        from = out.last().expect("at least one block").last().next();
    }
}
