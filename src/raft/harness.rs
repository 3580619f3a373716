//! A few replicas of one group in one thread, over memory that never fails: for benchmarks and for
//! counting allocations. Each replica takes turns as a shard does; a write is done as soon as it is
//! asked for.

use super::{Config, Event, Raft, Ready, Restored, Role};
use crate::block::{Block, BlockBuilder, Command};
use crate::ids::{GroupId, Incarnation, Index, NodeId, Tick};

/// One replica with the `Ready` it fills.
#[derive(Debug)]
struct Replica {
    raft: Raft,
    ready: Box<Ready>,
    commands: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    replicas: Vec<Replica>,
    leader: usize,
    now: Tick,
    /// The `Ready` that is being carried out changes places with the one being filled.
    spare: Option<Box<Ready>>,
    /// Lent to `Receive`.
    blocks: Vec<Block>,
    /// `handle` calls so far.
    events: u64,
}

impl Cluster {
    /// `n` replicas, of which the first has been elected.
    pub fn new(n: u32) -> Self {
        let voters: Vec<_> = (1..=n).map(NodeId).collect();
        let replica = |&id: &NodeId| {
            let mut config = Config::new(id, GroupId(0), voters.clone(), Incarnation(1));
            config.preferred = id == NodeId(1);
            let raft = Raft::new(config, Restored::default(), Tick::ZERO);
            Replica { raft, ready: Box::default(), commands: 0 }
        };
        let replicas = voters.iter().map(replica).collect();
        let mut cluster = Self {
            replicas,
            leader: 0,
            now: Tick::ZERO,
            spare: Some(Box::default()),
            blocks: Vec::new(),
            events: 0,
        };
        cluster.now = cluster.replicas[0].raft.deadline();
        cluster.handle(0, Event::Timeout);
        cluster.settle();
        assert_eq!(cluster.replicas[0].raft.role(), Role::Leader);
        cluster
    }

    /// Proposes all of `blocks` in one turn and hands them over without waiting for the outcome.
    pub fn propose(&mut self, blocks: &mut Vec<Block>) {
        let leader = self.leader;
        let Replica { raft, ready, .. } = &mut self.replicas[leader];
        raft.handle(self.now, Event::Propose { blocks }, ready);
        self.events += 1;
    }

    /// Takes turns until nobody wants anything more.
    pub fn settle(&mut self) {
        let mut quiet = false;
        while !quiet {
            quiet = true;
            for i in 0..self.replicas.len() {
                quiet &= !self.turn(i);
            }
        }
    }

    /// Lets the leader's heartbeat tell the followers what is committed, and settles.
    pub fn heartbeat(&mut self) {
        self.now = self.replicas[self.leader].raft.deadline();
        self.handle(self.leader, Event::Timeout);
        self.settle();
    }

    /// The lowest commit index of all replicas.
    pub fn committed_everywhere(&self) -> Index {
        self.replicas.iter().map(|r| r.raft.commit()).min().unwrap_or_default()
    }

    /// Commands that the leader has applied.
    pub fn applied_commands(&self) -> u64 {
        self.replicas[self.leader].commands
    }

    /// Calls of `Raft::handle` so far, over all replicas.
    pub fn events(&self) -> u64 {
        self.events
    }

    pub fn leader(&self) -> &Raft {
        &self.replicas[self.leader].raft
    }

    fn handle(&mut self, i: usize, event: Event<'_>) {
        let Replica { raft, ready, .. } = &mut self.replicas[i];
        raft.handle(self.now, event, ready);
        self.events += 1;
    }

    /// Carries out what replica `i` asked for. False when that was nothing.
    fn turn(&mut self, i: usize) -> bool {
        let replica = &mut self.replicas[i];
        if replica.ready.is_empty() {
            return false;
        }
        let mut work = self.spare.take().expect("put back after each turn");
        std::mem::swap(&mut replica.ready, &mut work);
        if let Some(last) = work.persists.last() {
            self.handle(i, Event::Persisted { seq: last.seq });
        }
        self.deliver(i, &work);
        self.apply(i, &work);
        work.clear();
        self.spare = Some(work);
        true
    }

    fn deliver(&mut self, i: usize, work: &Ready) {
        let from = self.replicas[i].raft.id();
        let mut blocks = std::mem::take(&mut self.blocks);
        for outbound in &work.messages {
            blocks.extend_from_slice(work.slice(&outbound.blocks));
            let to = outbound.to.get() as usize - 1;
            let message = outbound.message;
            self.handle(to, Event::Receive { from, message, blocks: &mut blocks });
        }
        self.blocks = blocks;
    }

    fn apply(&mut self, i: usize, work: &Ready) {
        let Some(index) = work.committed.last().map(|c| c.index) else { return };
        let Replica { raft, commands, .. } = &mut self.replicas[i];
        let from = raft.log().applied().next();
        let blocks = raft.log().blocks_from(from).expect("nothing was evicted unapplied");
        *commands += blocks.take_while(|b| b.last() <= index).map(Block::count).sum::<u64>();
        self.handle(i, Event::Applied { index });
    }
}

/// A block of `count` commands with values of `value_bytes`, as a client would build it.
pub fn sample_block(group: GroupId, count: u32, value_bytes: usize) -> Block {
    let value = vec![7; value_bytes];
    let mut builder = BlockBuilder::default();
    for i in 0..u64::from(count) {
        let command = Command { kind: 1, flags: 0, timestamp: i, key: b"topic", value: &value };
        builder.push(&command).expect("within the limits of a block");
    }
    builder.finish(group, 0, 0, 0)
}
