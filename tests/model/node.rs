//! One node of the model: the real `Raft` and a log on disk of which a suffix may be lost.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use ringraft::block::{Block, BlockKind};
use ringraft::ids::{GroupId, HardState, Incarnation, Index, LogStart, NodeId, Seq, Term, Tick};
use ringraft::membership::Membership;
use ringraft::raft::message::Offer;
use ringraft::raft::{
    Body, Config, Event, InstallStep, Message, Persist, PersistOp, Raft, Ready, Restored, Role,
    TermRun,
};

pub const GROUP: GroupId = GroupId(0);
pub const NODES: usize = 3;

/// "Just now": nothing has run out, but every deadline is reached.
pub const NOW: Tick = Tick(0);
/// Appends without an answer are overdue, nobody has lost patience with a leader yet.
pub const OVERDUE: Tick = Tick(1_000);
/// Everybody has lost patience with everybody.
pub const FAR: Tick = Tick(1_000_000_000);

/// One command of the log; its index is its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub term: u8,
    pub epoch: u8,
    /// Number of the proposal; 0 = the no-op of a leader; from [`MEMBERS`] on a configuration.
    pub payload: u8,
    /// Of a no-op that begins an epoch: where that begins; else 0.
    pub since: u8,
}

/// A configuration as an entry: this, the voters' bits, and those of the outgoing half.
const MEMBERS: u8 = 1 << 7;

/// The nodes whose bits are set.
pub fn nodes_of(bits: u8) -> Vec<NodeId> {
    (0..NODES as u32).filter(|node| bits >> node & 1 == 1).map(|node| NodeId(node + 1)).collect()
}

fn bits_of(nodes: &[NodeId]) -> u8 {
    nodes.iter().fold(0, |bits, node| bits | 1 << (node.0 - 1))
}

fn membership(payload: u8) -> Membership {
    let outgoing = nodes_of(payload >> NODES & 0b111);
    Membership { outgoing, ..Membership::of_voters(nodes_of(payload & 0b111)) }
}

impl Entry {
    pub fn of(block: &Block) -> Self {
        let header = block.header();
        assert_eq!(block.count(), 1);
        let (mut payload, mut since) = (header.seq as u8, 0);
        if block.kind() == BlockKind::Noop {
            (payload, since) = (0, payload);
        }
        if block.kind() == BlockKind::Membership {
            let found = Membership::decode(block.body()).expect("the core made it");
            assert!(found.learners.is_empty(), "members here vote");
            payload = MEMBERS | bits_of(&found.voters) | bits_of(&found.outgoing) << NODES;
        }
        Self { term: header.term as u8, epoch: header.epoch as u8, payload, since }
    }

    pub fn block(self, index: usize) -> Block {
        let mut block = proposal(self.payload);
        if self.since > 0 {
            block = block.begins_epoch(Index(self.since.into()));
        }
        block.stamp(Term(self.term.into()), Index(index as u64), self.epoch.into());
        block
    }
}

/// A block of one command, not yet placed; 0 = a no-op.
pub fn proposal(payload: u8) -> Block {
    match payload {
        0 => Block::noop(GROUP),
        MEMBERS.. => {
            let mut body = Vec::new();
            membership(payload).encode(&mut body);
            Block::special(GROUP, BlockKind::Membership, body.into())
        }
        n => Block::from_body(GROUP, 1, 1, n.into(), 0, Bytes::new()),
    }
}

/// What a node finds again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Disk {
    pub hard_state: HardState,
    /// All entries from the first on. The first `start` of them are a snapshot: what a state machine
    /// has become is what was applied to it.
    pub log: Vec<Entry>,
    pub start: usize,
}

impl Disk {
    fn write(&mut self, write: &Write) {
        match write {
            Write::HardState(state) => {
                let before = (self.hard_state.term, self.hard_state.vote);
                let free = before.0 < state.term || before.1.is_none() || before.1 == state.vote;
                assert!(before.0 <= state.term && free, "(term, vote) on disk never regresses");
                self.hard_state = *state;
            }
            Write::Append { first, entries, truncates } => {
                assert!(*first <= self.log.len() + 1, "the log on disk has no holes");
                assert!(*truncates || *first == self.log.len() + 1, "a truncation is named");
                assert!(*first > self.start, "a snapshot is not truncated");
                self.log.truncate(first - 1);
                self.log.extend(entries);
            }
            Write::Begin(snapshot) => {
                self.log.clone_from(snapshot);
                self.start = snapshot.len();
            }
        }
    }

    fn restored(&self, recovering: bool, voters: &[NodeId]) -> Restored {
        let mut terms: Vec<TermRun> = Vec::new();
        for (i, entry) in self.log.iter().enumerate().skip(self.start) {
            let term = Term(entry.term.into());
            if terms.last().is_none_or(|run| run.term < term) {
                let (epoch, first) = (entry.epoch.into(), Index(i as u64 + 1));
                let since = entry.block(i + 1).header().since();
                terms.push(TermRun { first, term, epoch, since });
            }
        }
        let last = Index(self.log.len() as u64);
        let start = start_of(&self.log[..self.start]);
        let mut hard_state = self.hard_state;
        hard_state.commit = hard_state.commit.max(start.index);
        // Worlds with snapshots are worlds without changes.
        let first = (self.start > 0).then(|| Membership::of_voters(voters.to_vec()));
        let changes = (1..).zip(&self.log).filter(|(_, entry)| entry.payload >= MEMBERS);
        let changes = changes
            .map(|(index, entry)| Membership { index: Index(index), ..membership(entry.payload) });
        let (memberships, applied) = (first.into_iter().chain(changes).collect(), start.index);
        let rest = Restored::default();
        Restored { hard_state, terms, start, last, applied, recovering, memberships, ..rest }
    }
}

/// What a snapshot of these entries stands for.
fn start_of(snapshot: &[Entry]) -> LogStart {
    snapshot.last().map_or(LogStart::default(), |last| LogStart {
        index: Index(snapshot.len() as u64),
        term: Term(last.term.into()),
        epoch: last.epoch.into(),
    })
}

/// Whether `log` holds this entry at this index, which starts at 1.
pub fn holds(log: &[Entry], index: usize, term: u8, payload: u8) -> bool {
    log.get(index - 1).is_some_and(|e| e.term == term && e.payload == payload)
}

#[derive(Clone, Debug, Hash)]
enum Write {
    HardState(HardState),
    Append {
        first: usize,
        entries: Vec<Entry>,
        truncates: bool,
    },
    /// The log begins anew behind this snapshot.
    Begin(Vec<Entry>),
}

#[derive(Clone, Debug)]
struct Pending {
    seq: Seq,
    write: Write,
    /// Its flush is synced before it counts (durability.md R1).
    sync: bool,
}

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub from: NodeId,
    pub to: NodeId,
    pub message: Message,
    /// Of an append; of an offer: all of the snapshot.
    pub entries: Vec<Entry>,
    /// Fingerprint; also its place in the network.
    pub print: u64,
}

impl Envelope {
    fn new(from: NodeId, to: NodeId, message: Message, entries: Vec<Entry>) -> Self {
        let print = fingerprint(&(from, to, message, &entries));
        Self { from, to, message, entries, print }
    }

    fn blocks(&self) -> Vec<Block> {
        let Body::Append { prev_index, .. } = self.message.body else { return Vec::new() };
        let first = prev_index.get() as usize + 1;
        self.entries.iter().enumerate().map(|(i, e)| e.block(first + i)).collect()
    }
}

pub fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What came out of a step of one node.
#[derive(Debug, Default)]
pub struct Output {
    /// Messages that may leave.
    pub sent: Vec<Arc<Envelope>>,
    /// Its commit index moved.
    pub committed: bool,
    /// `possible_data_loss` was raised.
    pub reported: bool,
    /// It left RECOVERING.
    pub recovered: bool,
    /// A snapshot that it was offered is wanted.
    offered: bool,
    /// Its log began anew behind a snapshot.
    pub installed: bool,
    /// Reads through this number may be answered at this index.
    pub read: Option<(u64, Index)>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Node {
    pub raft: Raft,
    /// `wal_sync`: a reply waits for the sync, not only for the write.
    sync: bool,
    /// Survives a power loss.
    pub durable: Disk,
    /// Survives the process.
    pub written: Disk,
    /// The log with all that was asked to be written.
    pub log: Vec<Entry>,
    /// The first so many of it are a snapshot.
    start: usize,
    /// A snapshot that has come, whole.
    received: Option<Vec<Entry>>,
    /// Not yet durable; the first `written_count` are written.
    writes: VecDeque<Pending>,
    written_count: usize,
    /// All persists through it are where their rule wants them.
    settled: Seq,
    /// Messages that wait for a persist.
    held: Vec<(Seq, Arc<Envelope>)>,
    /// Of all of the above.
    pub print: u64,
}

thread_local! {
    /// Filled and emptied by each step, so that its memory is used again.
    static READY: RefCell<Ready> = RefCell::default();
}

impl Node {
    /// A node that has never run.
    pub fn new(id: NodeId, sync: bool, voters: Vec<NodeId>) -> Self {
        let known = if voters.contains(&id) { voters } else { Vec::new() };
        Self::start(id, known, sync, Incarnation(1), Disk::default(), false)
    }

    fn start(
        id: NodeId,
        voters: Vec<NodeId>,
        sync: bool,
        incarnation: Incarnation,
        disk: Disk,
        lost: bool,
    ) -> Self {
        let restored = disk.restored(lost, &voters);
        let mut config = Config::new(id, GROUP, voters, incarnation);
        config.heartbeat_us = 10;
        config.rpc_timeout_us = OVERDUE.get();
        config.election_timeout_min_us = 1_000_000;
        config.election_timeout_max_us = 1_000_000;
        // One block a message, so that a follower may hold each prefix of what it is sent.
        config.append_bytes_max = 1;
        let mut raft = Raft::new(config, restored, NOW);
        raft.forget_time();
        let mut node = Self {
            raft,
            sync,
            log: disk.log.clone(),
            start: disk.start,
            received: None,
            written: disk.clone(),
            durable: disk,
            writes: VecDeque::new(),
            written_count: 0,
            settled: Seq::ZERO,
            held: Vec::new(),
            print: 0,
        };
        node.seal();
        node
    }

    /// The next start of this node, with all but the last `lost` of the writes that were not durable.
    /// What it finds is synced before it says anything. `power`: the boot record shows that the
    /// machine went down, not only the process.
    pub fn restart(&self, lost: usize, power: bool) -> Self {
        let mut disk = self.durable.clone();
        let kept = self.writes.len() - lost;
        self.writes.iter().take(kept).for_each(|pending| disk.write(&pending.write));
        let incarnation = Incarnation(self.raft.config().incarnation.0 + 1);
        let recovering = self.is_recovering() || (power && !self.sync);
        let voters = self.raft.config().voters.clone();
        Self::start(self.raft.id(), voters, self.sync, incarnation, disk, recovering)
    }

    /// Most writes that a loss of the process, or of power, may take.
    pub fn losable(&self, power: bool) -> usize {
        self.writes.len() - if power { 0 } else { self.written_count }
    }

    pub fn is_recovering(&self) -> bool {
        self.raft.is_recovering()
    }

    pub fn has_unwritten(&self) -> bool {
        self.written_count < self.writes.len()
    }

    pub fn has_unsynced(&self) -> bool {
        self.written_count > 0
    }

    pub fn incarnation(&self) -> Incarnation {
        self.raft.config().incarnation
    }

    /// Computes the fingerprint. After it the node is not changed any more.
    pub fn seal(&mut self) {
        let mut hasher = DefaultHasher::new();
        self.raft.fingerprint(&mut hasher);
        self.durable.hash(&mut hasher);
        (self.start, &self.received).hash(&mut hasher);
        (self.written_count, self.writes.len()).hash(&mut hasher);
        for Pending { seq, write, sync } in &self.writes {
            (seq.since(self.settled), write, sync).hash(&mut hasher);
        }
        for (after, envelope) in &self.held {
            (after.since(self.settled), envelope.print).hash(&mut hasher);
        }
        self.print = hasher.finish();
    }

    pub fn receive(&mut self, now: Tick, envelope: &Envelope, out: &mut Output) {
        let (from, message) = (envelope.from, envelope.message);
        let mut blocks = envelope.blocks();
        self.handle(now, Event::Receive { from, message, blocks: &mut blocks }, out);
        if std::mem::take(&mut out.offered) {
            self.received = Some(envelope.entries.clone());
        }
    }

    /// Whether a snapshot of all that is committed could take the place of entries: never ahead of
    /// what is durable (durability.md R8).
    pub fn may_compact(&self) -> bool {
        let commit = self.raft.commit();
        commit > Index(self.start as u64) && commit <= self.raft.durable_index()
    }

    /// Everything committed is applied, snapshotted and published, and the log begins behind it.
    pub fn compact(&mut self, out: &mut Output) {
        let through = self.raft.commit();
        self.handle(NOW, Event::Applied { index: through }, out);
        self.handle(NOW, Event::Compacted { through }, out);
        self.start = through.get() as usize;
        (self.durable.start, self.written.start) = (self.start, self.start);
    }

    /// A snapshot has come and waits to be installed.
    pub fn has_received(&self) -> bool {
        self.received.is_some()
    }

    /// As `Shard::install`: the log may have got further meanwhile.
    pub fn install(&mut self, out: &mut Output) {
        let snapshot = self.received.take().expect("it has come");
        let start = start_of(&snapshot);
        if !self.raft.wants_snapshot(&start) || self.raft.role() == Role::Leader {
            return;
        }
        (self.start, self.log) = (snapshot.len(), snapshot);
        let membership = Membership::of_voters(self.raft.config().voters.clone());
        self.handle(NOW, Event::Installed { start, membership }, out);
        (out.installed, out.committed) = (true, true);
    }

    /// The newest snapshot, offered and sent in one message.
    fn offer(&self, to: NodeId, out: &mut Output) {
        let snapshot = self.log[..self.start].to_vec();
        let offer = Offer { start: start_of(&snapshot), size: 1, checksum: 0 };
        if let Some(message) = self.raft.address(to, Body::SnapshotOffer(offer)) {
            self.leave(Envelope::new(self.raft.id(), to, message, snapshot).into(), out);
        }
    }

    /// Steps the core and carries out what it asks for, but for its writes. Reads of the log are
    /// answered at once.
    pub fn handle(&mut self, now: Tick, event: Event<'_>, out: &mut Output) {
        let before = self.is_recovering();
        READY.with_borrow_mut(|ready| {
            ready.clear();
            self.raft.handle(now, event, ready);
            self.raft.check_invariants();
            let mut reads = VecDeque::new();
            self.absorb(ready, &mut reads, out);
            while let Some((to, from)) = reads.pop_front() {
                ready.clear();
                let mut blocks = self.read(from);
                self.raft.handle(now, Event::Fetched { to, from, blocks: &mut blocks }, ready);
                self.absorb(ready, &mut reads, out);
            }
        });
        out.recovered |= before && !self.is_recovering();
        self.raft.forget_time();
    }

    fn read(&self, from: Index) -> Vec<Block> {
        let at = from.get() as usize;
        assert!(at > self.start, "the front of the log is gone");
        self.log.get(at - 1).map(|entry| entry.block(at)).into_iter().collect()
    }

    /// Takes over what one step asked for; the reads of the log are still to be answered.
    fn absorb(&mut self, ready: &Ready, reads: &mut VecDeque<(NodeId, Index)>, out: &mut Output) {
        for persist in &ready.persists {
            self.stage(persist, ready);
        }
        for outbound in &ready.messages {
            let entries = ready.slice(&outbound.blocks).iter().map(Entry::of).collect();
            let envelope =
                Envelope::new(self.raft.id(), outbound.to, outbound.message, entries).into();
            if outbound.after <= self.settled {
                self.leave(envelope, out);
            } else {
                self.held.push((outbound.after, envelope));
            }
        }
        out.reported |= !ready.losses.is_empty();
        out.committed |= !ready.committed.is_empty();
        for install in &ready.installs {
            match install.step {
                InstallStep::Send => self.offer(install.peer, out),
                InstallStep::Offered(_) => out.offered = true,
                InstallStep::Stop => {}
                InstallStep::Held { .. } | InstallStep::Chunk { .. } => {
                    unreachable!("in one piece")
                }
                InstallStep::Refused { .. } => unreachable!("all are of one build"),
            }
        }
        if let Some(read) = ready.reads.last() {
            out.read = Some((read.through, read.index));
        }
        reads.extend(ready.fetches.iter().map(|fetch| (fetch.to, fetch.from)));
    }

    fn stage(&mut self, persist: &Persist, ready: &Ready) {
        let (write, sync) = match &persist.op {
            PersistOp::HardState(state) => (Write::HardState(*state), true),
            PersistOp::Begin(_) => (Write::Begin(self.log.clone()), true),
            PersistOp::Append { blocks, truncates } => {
                let blocks = ready.slice(blocks);
                let first = blocks[0].first().get() as usize;
                let entries: Vec<_> = blocks.iter().map(Entry::of).collect();
                self.log.truncate(first - 1);
                self.log.extend(&entries);
                let members = entries.iter().any(|entry| entry.payload >= MEMBERS);
                let sync = self.sync || *truncates || members || self.is_recovering();
                (Write::Append { first, entries, truncates: *truncates }, sync)
            }
        };
        self.writes.push_back(Pending { seq: persist.seq, write, sync });
    }

    /// The next write is done, and synced if its rule wants that.
    pub fn complete_write(&mut self, out: &mut Output) {
        let Pending { seq, write, sync } = self.writes[self.written_count].clone();
        self.written.write(&write);
        self.written_count += 1;
        if sync {
            self.sync_written();
        }
        self.settled = seq;
        self.handle(NOW, Event::Persisted { seq }, out);
        let (free, held) = self.held.drain(..).partition(|(after, _)| *after <= seq);
        self.held = held;
        let free: Vec<(Seq, Arc<Envelope>)> = free;
        free.into_iter().for_each(|(_, envelope)| self.leave(envelope, out));
    }

    /// All that is written becomes durable.
    pub fn sync_written(&mut self) {
        for Pending { write, .. } in self.writes.drain(..self.written_count) {
            self.durable.write(&write);
        }
        self.written_count = 0;
    }

    /// A message leaves: what it promises must be where its rule wants it.
    fn leave(&self, envelope: Arc<Envelope>, out: &mut Output) {
        let (message, state) = (&envelope.message, self.durable.hard_state);
        let pre = matches!(message.body, Body::VoteRequest { pre: true, .. });
        let revealed = if pre { message.term.prev() } else { message.term };
        assert!(revealed <= state.term, "a term was revealed before it was durable");
        if message.term == state.term {
            match message.body {
                Body::VoteReply { pre: false, granted: true, .. } => {
                    assert_eq!(state.vote, Some(envelope.to), "a vote left before it was durable");
                }
                Body::AppendReply { matched } => {
                    let held = if self.sync { &self.durable } else { &self.written };
                    let is_held = matched.get() as usize <= held.log.len();
                    assert!(is_held, "an acknowledgement left before its write was done");
                }
                _ => {}
            }
        }
        out.sent.push(envelope);
    }
}
