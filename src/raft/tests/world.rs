//! Nodes with disks that remember and a network that holds each message until it is told what to do
//! with it. The properties of figure 3 of the paper, and what durability.md says of replies, are
//! checked at each step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::*;
use crate::block::BlockKind;
use crate::ids::{GroupId, LogStart};
use crate::membership::Step;
use crate::raft::harness::sample_block;
use crate::raft::message::Offer;

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub from: NodeId,
    pub to: NodeId,
    pub message: Message,
    pub blocks: Vec<Block>,
}

#[derive(Debug)]
enum Write {
    HardState(HardState),
    Append {
        blocks: Vec<Block>,
        truncates: bool,
    },
    /// A snapshot was installed; these are the blocks it stands for.
    Begin(LogStart, Vec<Block>),
}

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub hard_state: HardState,
    /// Where the log begins. The blocks before stay here: they are what the snapshot holds.
    pub start: LogStart,
    pub blocks: Vec<Block>,
    /// So many of the blocks survive a loss of power, too; the rest are in a volatile cache.
    pub stable: usize,
}

pub struct Node {
    pub id: NodeId,
    pub config: Config,
    pub raft: Option<Raft>,
    pub disk: Disk,
    /// The log with what is still being written.
    pub log: Vec<Block>,
    writes: VecDeque<(Seq, Write)>,
    pub persisted: Seq,
    held: Vec<(Seq, Envelope)>,
    pub fetches: VecDeque<Fetch>,
    /// The snapshot it was offered last.
    pub offered: Option<LogStart>,
    /// `settle` does not complete its writes.
    pub disk_hangs: bool,
    /// Acknowledgements wait for stable storage.
    pub wal_sync: bool,
    /// The boot record's word: the group may be RECOVERING (durability.md R3).
    pub recovering: bool,
    /// Its clock advances so much while the world's advances 100.
    pub rate: u64,
    /// Reads asked of this start, and what was committed anywhere when they were asked.
    reads: u64,
    floors: BTreeMap<u64, Index>,
}

#[derive(Default)]
pub struct World {
    pub now: Tick,
    pub nodes: Vec<Node>,
    pub net: Vec<Envelope>,
    /// Directions in which messages vanish.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    pub trace: Vec<String>,
    /// Answers are made up: nobody need hold what they say.
    pub forged: bool,
    /// The configuration that nobody's log has to name.
    pub first: Membership,
    ready: Ready,
    leaders: BTreeMap<Term, NodeId>,
    /// By first index: what some node has committed.
    committed: BTreeMap<Index, Block>,
    /// Reads that were answered.
    pub reads_done: u64,
}

impl Node {
    pub fn raft(&self) -> &Raft {
        self.raft.as_ref().expect("the node runs")
    }

    fn restored(&self) -> Restored {
        let mut terms: Vec<TermRun> = Vec::new();
        let start = self.disk.start;
        for block in self.disk.blocks.iter().filter(|b| b.first() > start.index) {
            if terms.last().is_none_or(|run| run.term < block.term()) {
                let (term, epoch) = (block.term(), block.header().epoch);
                let since = block.header().since();
                terms.push(TermRun { first: block.first(), term, epoch, since });
            }
        }
        let last = self.disk.blocks.last().map_or(Index::ZERO, Block::last);
        Restored {
            hard_state: self.disk.hard_state,
            terms,
            start,
            last,
            applied: start.index,
            recovering: self.recovering,
            damaged: false,
            memberships: memberships(&self.disk.blocks).collect(),
        }
    }
}

impl World {
    pub fn new(n: u32, adjust: impl Fn(&mut Config)) -> Self {
        Self::with_spares(n, 0, adjust)
    }

    /// `n` voters, and nodes that wait to be taken in.
    pub fn with_spares(n: u32, spares: u32, adjust: impl Fn(&mut Config)) -> Self {
        let mut world = Self::default();
        let voters: Vec<_> = (1..=n).map(NodeId).collect();
        world.first = Membership::of_voters(voters.clone());
        for id in (1..=n + spares).map(NodeId) {
            let known = if id.0 <= n { voters.clone() } else { Vec::new() };
            let mut config = Config::new(id, GroupId(0), known, Incarnation(0));
            adjust(&mut config);
            let node = Node {
                id,
                config,
                raft: None,
                disk: Disk::default(),
                log: Vec::new(),
                writes: VecDeque::new(),
                persisted: Seq::ZERO,
                held: Vec::new(),
                fetches: VecDeque::new(),
                offered: None,
                disk_hangs: false,
                wal_sync: true,
                recovering: false,
                rate: 100,
                reads: 0,
                floors: BTreeMap::new(),
            };
            world.nodes.push(node);
            world.start(id);
        }
        world
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize - 1]
    }

    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize - 1]
    }

    /// (Re)starts a node from its disk, as the next incarnation.
    pub fn start(&mut self, id: NodeId) {
        let now = self.local(id);
        let node = self.node_mut(id);
        node.config.incarnation.0 += 1;
        node.config.seed = node.config.seed.wrapping_add(7919);
        // What recovery found is synced before the node says anything.
        node.disk.stable = node.disk.blocks.len();
        node.log = node.disk.blocks.clone();
        node.persisted = Seq::ZERO;
        node.raft = Some(Raft::new(node.config.clone(), node.restored(), now));
    }

    /// Stops a node; of the writes under way the first `done` are on disk, unreported.
    pub fn crash(&mut self, id: NodeId, done: usize) {
        let node = self.node_mut(id);
        for (_, write) in node.writes.drain(..).take(done) {
            node.disk.complete(write, node.wal_sync || node.recovering);
        }
        node.writes.clear();
        node.held.clear();
        node.fetches.clear();
        node.floors.clear();
        node.raft = None;
    }

    /// What this node's clock shows.
    pub fn local(&self, id: NodeId) -> Tick {
        Tick(self.now.get() * self.node(id).rate / 100)
    }

    /// What was committed anywhere, as far as it was not lost.
    fn watermark(&self) -> Index {
        self.committed.values().last().map_or(Index::ZERO, Block::last)
    }

    /// A read arrives: it must not be answered from before what is committed now.
    pub fn read(&mut self, id: NodeId) {
        let floor = self.watermark();
        let node = self.node_mut(id);
        node.reads += 1;
        let number = node.reads;
        node.floors.insert(number, floor);
        self.handle(id, Event::ReadIndex { number });
        self.check_lease(id);
    }

    /// A lease that runs is as good as a round.
    pub fn check_lease(&self, id: NodeId) {
        let raft = self.node(id).raft.as_ref();
        if let Some(index) = raft.and_then(|raft| raft.lease_index(self.local(id))) {
            let committed = self.watermark();
            assert!(
                index >= committed,
                "{id:?} holds a lease at {index}, {committed} is committed"
            );
        }
    }

    fn check_reads(&mut self, id: NodeId, read: ReadIndex) {
        let node = &mut self.nodes[id.0 as usize - 1];
        let later = node.floors.split_off(&(read.through + 1));
        for (number, floor) in std::mem::replace(&mut node.floors, later) {
            let index = read.index;
            assert!(
                index >= floor,
                "{id:?} answers read {number} at {index}, {floor} was committed"
            );
            self.reads_done += 1;
        }
    }

    pub fn transfer(&mut self, id: NodeId, to: NodeId) {
        let now = self.local(id);
        if let Some(Err(why)) = self.node(id).raft.as_ref().map(|raft| raft.may_transfer(now, to)) {
            self.trace.push(format!("{id:?} refuses: {why}"));
        }
        self.handle(id, Event::Transfer { to });
    }

    /// Power fails: beyond what is stable the first `keep` blocks survive by chance.
    pub fn cut_power(&mut self, id: NodeId, keep: usize) {
        self.crash(id, 0);
        let node = self.node_mut(id);
        node.disk.blocks.truncate(node.disk.stable + keep);
        node.recovering |= !node.wal_sync;
    }

    pub fn is_recovering(&self, id: NodeId) -> bool {
        self.node(id).raft.as_ref().is_some_and(Raft::is_recovering)
    }

    pub fn timeout(&mut self, id: NodeId) {
        let deadline = self.node(id).raft().deadline();
        if deadline < Tick(u64::MAX) {
            let rate = self.node(id).rate;
            self.now = self.now.max(Tick((deadline.get() * 100).div_ceil(rate)));
        }
        self.handle(id, Event::Timeout);
    }

    pub fn propose(&mut self, id: NodeId, counts: &[u32]) -> usize {
        let mut blocks: Vec<_> =
            counts.iter().map(|&count| sample_block(GroupId(0), count, 8)).collect();
        self.handle(id, Event::Propose { blocks: &mut blocks });
        blocks.len()
    }

    /// Asks a node to change the members.
    pub fn change(
        &mut self,
        id: NodeId,
        steps: &[Step],
        force: bool,
    ) -> Result<Index, ChangeRefused> {
        let mut answer = None;
        self.handle(id, Event::ProposeMembership { steps, force, answer: &mut answer });
        answer.unwrap_or(Err(ChangeRefused::NotLeader(None)))
    }

    /// The configuration in use where a log ends so.
    pub fn newest(&self, log: &[Block]) -> Membership {
        memberships(log).last().unwrap_or_else(|| self.first.clone())
    }

    /// The configurations that may still decide something: the newest committed one, and all that
    /// some log has behind it.
    pub fn alive(&self) -> Vec<Membership> {
        let mut committed = self.committed.values().rev().filter_map(membership_of);
        let mut alive = vec![committed.next().unwrap_or_else(|| self.first.clone())];
        for node in &self.nodes {
            let later = memberships(&node.log).filter(|m| m.index > alive[0].index);
            alive.extend(later.collect::<Vec<_>>());
        }
        alive
    }

    /// Completes the oldest `count` writes of a node. False when there was none.
    pub fn persist(&mut self, id: NodeId, count: usize) -> bool {
        let node = self.node_mut(id);
        let count = count.min(node.writes.len());
        if count == 0 {
            return false;
        }
        for (seq, write) in node.writes.drain(..count) {
            node.disk.complete(write, node.wal_sync || node.recovering);
            node.persisted = seq;
        }
        let seq = node.persisted;
        self.handle(id, Event::Persisted { seq });
        self.release(id);
        true
    }

    pub fn writes_under_way(&self, id: NodeId) -> usize {
        self.node(id).writes.len()
    }

    /// Hands over the message at this place in the network, or loses it.
    pub fn deliver(&mut self, at: usize) {
        let Envelope { from, to, message, mut blocks } = self.net.remove(at);
        if self.node(to).raft.is_some() && !self.cut.contains(&(from, to)) {
            self.handle(to, Event::Receive { from, message, blocks: &mut blocks });
        }
    }

    /// A snapshot is published here: the log begins behind it.
    pub fn compact(&mut self, id: NodeId, through: Index) {
        self.handle(id, Event::Compacted { through });
        let start = self.node(id).raft().log().start();
        self.node_mut(id).disk.start = start;
    }

    /// A leader's shard offers what its log gave up.
    pub fn offer(&mut self, from: NodeId, to: NodeId) {
        let raft = self.node(from).raft();
        let offer = Offer { start: raft.log().start(), size: 100, checksum: 7 };
        let message = raft.address(to, Body::SnapshotOffer(offer)).expect("it may speak");
        self.net.push(Envelope { from, to, message, blocks: Vec::new() });
    }

    /// What was offered last has arrived whole, if it is still wanted.
    pub fn install(&mut self, id: NodeId) {
        let start = self.node(id).offered.expect("something was offered");
        if self.node(id).raft().wants_snapshot(&start) {
            let held: Vec<_> = self.committed.values().cloned().collect();
            let held = held.iter().filter(|block| block.first() <= start.index).cloned();
            let membership = self.newest(&held.collect::<Vec<_>>());
            self.handle(id, Event::Installed { start, membership });
        } else {
            self.trace.push(format!("{id:?} needs no snapshot of {}", start.index));
        }
    }

    /// Answers a node's oldest fetch from its own log, or with nothing.
    pub fn fetch(&mut self, id: NodeId, succeeds: bool) {
        let Some(fetch) = self.node_mut(id).fetches.pop_front() else { return };
        let mut blocks = Vec::new();
        let mut bytes = 0;
        let node = self.node(id);
        let wanted = node.log.iter().filter(|b| b.last() >= fetch.from && succeeds);
        for block in wanted.take_while(|b| b.first() <= fetch.through) {
            if bytes > 0 && bytes + block.size() > fetch.bytes_max as usize {
                break;
            }
            bytes += block.size();
            blocks.push(block.clone());
        }
        self.handle(id, Event::Fetched { to: fetch.to, from: fetch.from, blocks: &mut blocks });
    }

    /// Persists, fetches and delivers until nothing is under way.
    pub fn settle(&mut self) {
        loop {
            let mut idle = true;
            for i in 0..self.nodes.len() {
                let id = self.nodes[i].id;
                if !self.nodes[i].disk_hangs {
                    idle &= !self.persist(id, usize::MAX);
                }
                if !self.nodes[i].fetches.is_empty() {
                    self.fetch(id, true);
                    idle = false;
                }
            }
            for _ in 0..self.net.len() {
                self.deliver(0);
                idle = false;
            }
            if idle {
                return;
            }
        }
    }

    pub fn handle(&mut self, id: NodeId, event: Event<'_>) {
        let now = self.local(id);
        let Some(raft) = self.nodes[id.0 as usize - 1].raft.as_mut() else { return };
        let mut ready = std::mem::take(&mut self.ready);
        raft.handle(now, event, &mut ready);
        self.absorb(id, &ready);
        ready.clear();
        self.ready = ready;
        self.release(id);
        let node = &mut self.nodes[id.0 as usize - 1];
        node.recovering &= node.raft().is_recovering();
        self.apply(id);
    }

    fn apply(&mut self, id: NodeId) {
        let node = self.node(id);
        let index = node.raft().commit();
        if index > node.raft().log().applied() {
            self.handle(id, Event::Applied { index });
        }
    }

    fn absorb(&mut self, id: NodeId, ready: &Ready) {
        self.describe(id, ready);
        for loss in &ready.losses {
            assert_eq!(loss.group, GroupId(0));
            self.give_up_what_is_lost(id);
        }
        for transition in &ready.transitions {
            if transition.role == Role::Leader {
                self.check_new_leader(id, transition.term);
            }
        }
        // What is committed now was counted before anything was appended now.
        let decides = self.newest(&self.node(id).log);
        let node = &mut self.nodes[id.0 as usize - 1];
        for install in &ready.installs {
            if let InstallStep::Offered(offer) = install.step {
                node.offered = Some(offer.start);
            }
        }
        for persist in &ready.persists {
            let write = match &persist.op {
                PersistOp::HardState(state) => Write::HardState(*state),
                PersistOp::Append { blocks, truncates } => {
                    let blocks = ready.slice(blocks).to_vec();
                    append(&mut node.log, &blocks, *truncates);
                    Write::Append { blocks, truncates: *truncates }
                }
                PersistOp::Begin(start) => {
                    let held = self.committed.values().filter(|b| b.first() <= start.index);
                    node.log = held.cloned().collect();
                    Write::Begin(*start, node.log.clone())
                }
            };
            node.writes.push_back((persist.seq, write));
        }
        for outbound in &ready.messages {
            let blocks = ready.slice(&outbound.blocks).to_vec();
            let (to, message) = (outbound.to, outbound.message);
            node.held.push((outbound.after, Envelope { from: id, to, message, blocks }));
        }
        node.fetches.extend(&ready.fetches);
        for &read in &ready.reads {
            self.check_reads(id, read);
        }
        for committed in &ready.committed {
            self.check_commit(id, committed.index);
            self.check_quorum(id, &decides, committed.index);
        }
    }

    /// Lets messages go whose persist is done.
    fn release(&mut self, id: NodeId) {
        let node = &mut self.nodes[id.0 as usize - 1];
        let persisted = node.persisted;
        let (free, held) = node.held.drain(..).partition(|(after, _)| *after <= persisted);
        node.held = held;
        for (_, envelope) in free {
            self.check_promise(&envelope);
            self.net.push(envelope);
        }
    }

    /// This new leader says that committed blocks may be gone: those that it lacks are, and they
    /// are a suffix. Without its word nothing ever may be.
    fn give_up_what_is_lost(&mut self, id: NodeId) {
        let log = &self.nodes[id.0 as usize - 1].log;
        let held = |block: &&Block| log.contains(block);
        let kept = self.committed.values().take_while(held).count();
        assert_eq!(self.committed.values().filter(held).count(), kept, "only a suffix is lost");
        let first_lost = self.committed.keys().nth(kept).copied();
        if let Some(first) = first_lost {
            self.committed.split_off(&first);
            let last = self.watermark();
            let floors = self.nodes.iter_mut().flat_map(|node| node.floors.values_mut());
            floors.for_each(|floor| *floor = last.min(*floor));
        }
    }

    /// Election safety and leader completeness (figure 3 of the paper).
    fn check_new_leader(&mut self, id: NodeId, term: Term) {
        let leader = *self.leaders.entry(term).or_insert(id);
        assert_eq!(leader, id, "two leaders in {term:?}");
        let log = &self.node(id).log;
        for (first, block) in &self.committed {
            let held = log.iter().any(|b| b.first() == *first && b == block);
            assert!(held, "{id:?} leads {term:?} without the committed block at {first:?}");
        }
    }

    /// State machine safety: nobody commits anything else at an index.
    fn check_commit(&mut self, id: NodeId, index: Index) {
        let node = &self.nodes[id.0 as usize - 1];
        let mut last = Index::ZERO;
        for block in node.log.iter().take_while(|b| b.first() <= index) {
            let known = self.committed.entry(block.first()).or_insert_with(|| block.clone());
            assert_eq!(known, block, "{id:?} commits another block");
            last = block.last();
        }
        assert_eq!(last, index, "{id:?} commits what it has, to a block's edge");
    }

    /// A leader commits what a majority of each half of its configuration has on disk; counted here
    /// by another hand than the one that is tested.
    fn check_quorum(&self, id: NodeId, decides: &Membership, index: Index) {
        let leader = self.node(id);
        let forgetful = self.nodes.iter().any(|node| !node.wal_sync);
        if leader.raft().role() != Role::Leader || forgetful || self.forged {
            return;
        }
        let own = leader.log.iter().find(|block| block.last() == index).expect("it has it");
        let holds = |voter: &&NodeId| self.node(**voter).disk.blocks.contains(own);
        for half in [&decides.voters, &decides.outgoing] {
            let held = half.iter().filter(holds).count();
            let enough = half.is_empty() || 2 * held > half.len();
            assert!(enough, "{id:?} commits {index:?}, which {held} of {half:?} hold");
        }
    }

    /// What a message promises is on its sender's disk when it leaves.
    fn check_promise(&self, envelope: &Envelope) {
        let disk = &self.node(envelope.from).disk;
        let (message, state) = (&envelope.message, disk.hard_state);
        match message.body {
            Body::VoteRequest { pre: true, .. } => assert!(message.term <= state.term.next()),
            Body::VoteReply { pre: false, granted: true, .. } if message.term == state.term => {
                assert_eq!(state.vote, Some(envelope.to));
            }
            // Of an older term it says what was there before a later leader replaced it.
            Body::AppendReply { matched } if message.term == state.term => {
                assert!(matched <= disk.blocks.last().map_or(Index::ZERO, Block::last));
            }
            _ => {}
        }
        if !matches!(message.body, Body::VoteRequest { pre: true, .. }) {
            assert!(message.term <= state.term, "a term was revealed before it was durable");
        }
    }

    /// Log matching: equal (term, index) means an equal prefix.
    pub fn check_log_matching(&self) {
        for a in &self.nodes {
            for b in &self.nodes {
                let same = |x: &Block, y: &Block| x.first() == y.first() && x.term() == y.term();
                let pairs = a.log.iter().zip(&b.log);
                let agree = pairs.clone().take_while(|(x, y)| x == y).count();
                assert!(!pairs.clone().skip(agree).any(|(x, y)| same(x, y)), "logs fork and join");
            }
        }
    }
}

impl Disk {
    /// A hard state, a truncation and a membership are synced always, and with them all that went before.
    fn complete(&mut self, write: Write, sync: bool) {
        let change = |block: &Block| block.kind() == BlockKind::Membership;
        let sync = sync
            || match &write {
                Write::HardState(_) | Write::Begin(..) => true,
                Write::Append { blocks, truncates } => *truncates || blocks.iter().any(change),
            };
        match write {
            Write::HardState(state) => {
                let before = self.hard_state;
                assert!(state.term >= before.term, "the term fell");
                let free = state.term > before.term || before.vote.is_none();
                assert!(free || state.vote == before.vote, "two votes in {:?}", state.term);
                self.hard_state = state;
            }
            Write::Append { blocks, truncates } => append(&mut self.blocks, &blocks, truncates),
            Write::Begin(start, blocks) => (self.start, self.blocks) = (start, blocks),
        }
        if sync {
            self.stable = self.blocks.len();
        }
    }
}

fn membership_of(block: &Block) -> Option<Membership> {
    let is_one = block.kind() == BlockKind::Membership;
    let membership = is_one.then(|| Membership::decode(block.body()).expect("well formed"));
    membership.map(|membership| Membership { index: block.first(), ..membership })
}

fn memberships(log: &[Block]) -> impl Iterator<Item = Membership> {
    log.iter().filter_map(membership_of)
}

fn append(log: &mut Vec<Block>, blocks: &[Block], truncates: bool) {
    let first = blocks[0].first();
    let last = log.last().map_or(Index::ZERO, Block::last);
    assert_eq!(truncates, first <= last, "a truncation is named as such");
    log.retain(|b| b.last() < first);
    assert_eq!(log.last().map_or(Index::ZERO, Block::last).next(), first, "no holes");
    log.extend_from_slice(blocks);
}
