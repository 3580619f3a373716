//! Peer of the consensus core: crate `raft` 0.7, three replicas and their mail in one thread.
//!
//! As it is quickest here, within what it documents: the proposals of a round go in by one message,
//! entries share their bytes, appends are batched, messages carry up to 1 MiB, and its log is
//! compacted in strides; followers hear of a commit with the next append (`skip_bcast_commit`), as
//! ours do. It keeps its log in the `MemStorage` it ships with.

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};

use crate::side::Side;
use crate::workload::{COMMAND_BYTES, commands};

const NODES: usize = 3;
/// Bytes of log a replica may hold before it drops what all have applied.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// How a batch becomes entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Each command is an entry, as the crate's users propose.
    EntryPerCommand,
    /// The whole batch is the data of one entry: batching done by the application, outside Raft.
    Fused,
}

/// Three replicas of one group, the leader caught up between two steps.
pub struct Cluster {
    nodes: Vec<RawNode<MemStorage>>,
    inboxes: [Vec<Message>; NODES],
    /// Commands applied by each replica.
    applied: [u64; NODES],
    proposal: Vec<Bytes>,
    batch: u64,
    proposed: u64,
    log_bytes: u64,
    shape: Shape,
}

impl Cluster {
    /// Elects replica 1 and leaves the log with its no-op applied everywhere.
    pub fn new(batch: usize, shape: Shape) -> Self {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let all = commands(batch);
        let proposal = match shape {
            Shape::Fused => vec![all],
            Shape::EntryPerCommand => {
                (0..batch).map(|i| all.slice(i * COMMAND_BYTES..(i + 1) * COMMAND_BYTES)).collect()
            }
        };
        let nodes = (1..=NODES as u64).map(|id| node(id, &logger)).collect();
        let inboxes = Default::default();
        let mut cluster = Self {
            nodes,
            inboxes,
            applied: [0; NODES],
            proposal,
            batch: batch as u64,
            proposed: 0,
            log_bytes: 0,
            shape,
        };
        cluster.nodes[0].campaign().expect("a new replica may campaign");
        cluster.settle();
        assert_eq!(cluster.nodes[0].raft.state, StateRole::Leader);
        cluster
    }

    fn propose(&mut self) {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = 1;
        for data in &self.proposal {
            message.mut_entries().push(Entry { data: data.clone(), ..Default::default() });
        }
        self.nodes[0].step(message).expect("the leader accepts proposals");
    }

    /// Carries mail until nobody has anything left to do.
    fn settle(&mut self) {
        let mut busy = true;
        while busy {
            busy = false;
            for i in 0..NODES {
                let mut mail = std::mem::take(&mut self.inboxes[i]);
                for message in mail.drain(..) {
                    self.nodes[i].step(message).expect("replicas understand each other");
                }
                self.inboxes[i] = mail;
                while self.nodes[i].has_ready() {
                    self.carry_out(i);
                    busy = true;
                }
            }
        }
    }

    /// What one replica asks for, in the order its documentation gives.
    fn carry_out(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        let mut ready = node.ready();
        post(&mut self.inboxes, ready.take_messages());
        self.applied[i] += count(&ready.take_committed_entries());
        {
            let mut store = node.mut_store().wl();
            store.append(ready.entries()).expect("entries follow each other");
            if let Some(state) = ready.hs() {
                store.set_hardstate(state.clone());
            }
        }
        post(&mut self.inboxes, ready.take_persisted_messages());
        let mut light = node.advance(ready);
        if let Some(commit) = light.commit_index() {
            node.mut_store().wl().mut_hard_state().set_commit(commit);
        }
        post(&mut self.inboxes, light.take_messages());
        self.applied[i] += count(&light.take_committed_entries());
        node.advance_apply();
    }

    fn compact(&mut self) {
        self.log_bytes = 0;
        for node in &mut self.nodes {
            let applied = node.raft.raft_log.applied;
            node.mut_store().wl().compact(applied).expect("what is applied may go");
        }
    }
}

impl Side for Cluster {
    fn name(&self) -> String {
        match self.shape {
            Shape::EntryPerCommand => "raft 0.7".into(),
            Shape::Fused => "raft 0.7, batch in 1 entry".into(),
        }
    }

    fn step(&mut self) -> u64 {
        let before = self.proposed;
        self.propose();
        self.settle();
        self.proposed += self.batch;
        assert_eq!(self.applied[0], self.proposed, "the leader applied the batch");
        assert!(self.applied.iter().all(|&n| n >= before), "and the others all before it");
        self.log_bytes += self.batch * COMMAND_BYTES as u64;
        if self.log_bytes > LOG_BYTES_MAX {
            self.compact();
        }
        self.batch
    }

    fn stride(&self) -> u32 {
        if self.batch == 1 { 64 } else { 4 }
    }
}

fn node(id: u64, logger: &slog::Logger) -> RawNode<MemStorage> {
    let config = Config {
        id,
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: 1024,
        batch_append: true,
        skip_bcast_commit: true,
        check_quorum: true,
        pre_vote: true,
        ..Config::default()
    };
    let voters: Vec<u64> = (1..=NODES as u64).collect();
    let storage = MemStorage::new_with_conf_state((voters, vec![]));
    RawNode::new(&config, storage, logger).expect("the configuration is valid")
}

fn post(inboxes: &mut [Vec<Message>; NODES], messages: Vec<Message>) {
    for message in messages {
        inboxes[message.to as usize - 1].push(message);
    }
}

/// Commands in committed entries; a no-op has none.
fn count(entries: &[Entry]) -> u64 {
    entries.iter().map(|e| (e.data.len() / COMMAND_BYTES) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_replicates_one_batch_in_either_shape_and_the_next_tells_the_followers() {
        for shape in [Shape::EntryPerCommand, Shape::Fused] {
            let mut cluster = Cluster::new(100, shape);
            assert_eq!(cluster.applied, [0; 3]);
            cluster.step();
            cluster.step();
            assert_eq!(cluster.applied, [200, 100, 100], "{shape:?}");
        }
    }

    #[test]
    fn the_log_is_bounded_by_compaction_and_goes_on() {
        let mut cluster = Cluster::new(1000, Shape::EntryPerCommand);
        for _ in 0..300 {
            cluster.step();
        }
        assert!(cluster.log_bytes <= LOG_BYTES_MAX);
        assert_eq!(cluster.applied, [300_000, 299_000, 299_000]);
    }
}
