//! Our consensus core: three replicas of one group in one thread, a block a proposal.

use ringraft::block::Block;
use ringraft::ids::Index;
use ringraft::raft::harness;

use crate::side::Side;
use crate::workload::block;

/// The entry that a leader's term begins with.
const NO_OP: u64 = 1;

/// Three replicas, the leader caught up between two steps.
pub struct Cluster {
    inner: harness::Cluster,
    block: Block,
    proposals: Vec<Block>,
    /// Commands proposed so far.
    proposed: u64,
    batch: u64,
}

impl Cluster {
    pub fn new(batch: usize) -> Self {
        Self {
            inner: harness::Cluster::new(3),
            block: block(0, batch),
            proposals: Vec::with_capacity(1),
            proposed: 0,
            batch: batch as u64,
        }
    }
}

impl Side for Cluster {
    fn name(&self) -> String {
        "ringraft".into()
    }

    fn step(&mut self) -> u64 {
        // The followers hear of the commit with the next proposal, as the peer's do.
        let before = self.proposed;
        self.proposals.push(self.block.clone());
        self.inner.propose(&mut self.proposals);
        self.inner.settle();
        assert!(self.proposals.is_empty(), "the proposal was taken on");
        self.proposed += self.batch;
        let applied = self.inner.applied_commands();
        assert_eq!(applied, self.proposed + NO_OP, "the leader applied the batch");
        let everywhere = self.inner.committed_everywhere();
        assert!(everywhere >= Index(before + NO_OP), "and the others all before it");
        self.batch
    }

    fn stride(&self) -> u32 {
        64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_replicates_one_batch_and_a_heartbeat_tells_the_followers() {
        let mut cluster = Cluster::new(100);
        cluster.step();
        cluster.step();
        cluster.inner.heartbeat();
        assert_eq!(cluster.inner.committed_everywhere(), Index(200 + NO_OP));
    }
}
