//! Where the groups are: the nodes, what the first handshake taught, and for each group a guess of
//! its leader that answers correct.

use super::{ClientConfig, GROUPS_MAX, LEARNED_MAX, SHARDS_MAX};
use crate::ids::{NodeId, Tick};
use crate::wire::admin::AdminReply;
use crate::wire::hello::{HelloReply, Refusal};

/// One node of the list.
#[derive(Debug)]
pub(super) struct Node {
    pub address: String,
    /// Configured, or learned from its handshake.
    pub id: Option<NodeId>,
    /// The id was configured: whoever else answers at the address is refused.
    fixed: bool,
    /// It does not take this client, or the client not it. It is never asked again.
    pub refused: Option<Refusal>,
}

/// Size of the cluster, the same on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub shards: u32,
    pub groups: u32,
}

/// The nodes and what is known of the cluster.
#[derive(Debug)]
pub(super) struct Map {
    pub nodes: Vec<Node>,
    /// Nodes that there is room for: those that are learned of come behind the others.
    pub stride: usize,
    /// Not before then is somebody asked for the members again.
    pub learn_at: Tick,
    /// 0 until configured or learned. Once known, no node of another cluster is talked to: a
    /// session's blocks must never spread over two clusters.
    pub cluster: u128,
    pub extent: Option<Extent>,
}

impl Map {
    /// Nodes that have not refused this client.
    pub fn takers(&self) -> usize {
        self.nodes.iter().filter(|node| node.refused.is_none()).count()
    }

    pub fn new(config: &ClientConfig) -> Self {
        let node = |n: &super::NodeAddress| Node {
            address: n.address.clone(),
            id: n.id,
            fixed: n.id.is_some(),
            refused: None,
        };
        Self {
            nodes: config.nodes.iter().map(node).collect(),
            stride: config.nodes.len() + LEARNED_MAX,
            learn_at: Tick::ZERO,
            cluster: config.cluster,
            extent: None,
        }
    }

    /// Takes in nodes that a group's members name with their addresses: they joined later, and the
    /// list did not know them. Anything else is passed over.
    pub fn add_members(&mut self, json: &[u8]) {
        let Ok(reply) = AdminReply::from_json(json) else { return };
        for row in reply.data["members"].as_array().into_iter().flatten() {
            let id = row["node"].as_u64().and_then(|id| u32::try_from(id).ok()).map(NodeId);
            let (Some(id), Some(address)) = (id, row["client"].as_str()) else { continue };
            let known = self.nodes.iter().any(|n| n.id == Some(id) || n.address == address);
            if !known && self.nodes.len() < self.stride {
                let (id, address) = (Some(id), address.to_owned());
                self.nodes.push(Node { address, id, fixed: true, refused: None });
            }
        }
    }

    /// Learns from a welcome; an error is the client's own refusal of this node.
    pub fn learn(&mut self, node: usize, shard: u32, reply: &HelloReply) -> Result<(), Refusal> {
        let extent = Extent { shards: reply.shards, groups: reply.groups };
        if self.cluster != 0 && reply.cluster != self.cluster {
            return Err(Refusal::Cluster);
        }
        if extent.shards > SHARDS_MAX
            || extent.groups > GROUPS_MAX
            || self.extent.is_some_and(|known| known != extent)
        {
            return Err(Refusal::Config);
        }
        if reply.shard != shard {
            return Err(Refusal::Shard);
        }
        let known = &mut self.nodes[node];
        if known.fixed && known.id != Some(reply.node) {
            return Err(Refusal::Node);
        }
        known.id = Some(reply.node);
        self.cluster = reply.cluster;
        self.extent = Some(extent);
        Ok(())
    }

    /// Position of the node with this id, if it is known and takes us.
    pub fn find(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|n| n.id == Some(id) && n.refused.is_none())
    }

    /// The id that the node at this position must have, if one was configured.
    pub fn expected(&self, node: usize) -> Option<NodeId> {
        self.nodes[node].id.filter(|_| self.nodes[node].fixed)
    }

    /// The reason once no node is left that takes this client.
    pub fn dead_end(&self) -> Option<Refusal> {
        let mut reason = None;
        for node in &self.nodes {
            reason = reason.or(Some(node.refused?));
        }
        reason
    }
}

/// One group's guess of its leader, and how patient to be with it.
#[derive(Debug)]
pub(super) struct Route {
    /// Position in the node list.
    pub target: usize,
    /// The node that was last turned to without a hint.
    turn: usize,
    /// Hints followed at once since the last success or pause: two nodes that point at each other
    /// must not keep a block flying between them.
    hops: usize,
    attempts: u32,
    /// Nothing of the group is sent before.
    pub hold: Tick,
}

impl Route {
    pub fn new(target: usize) -> Self {
        Self { target, turn: target, hops: 0, attempts: 0, hold: Tick::ZERO }
    }

    /// An answer came: trust this route again.
    #[inline]
    pub fn settle(&mut self) {
        self.hops = 0;
        self.attempts = 0;
    }

    /// It has paused and nothing has succeeded since: one block asks the way for all.
    #[inline]
    pub fn is_unsure(&self) -> bool {
        self.attempts > 0
    }

    /// Follows a hint at once, at most `hops_max` times in a row. False: pause instead.
    pub fn chase(&mut self, to: usize, hops_max: usize) -> bool {
        if self.hops >= hops_max || to == self.target {
            return false;
        }
        self.hops += 1;
        self.target = to;
        true
    }

    /// Turns away from `node`, if it is still the target: after a pause the next in turn is asked.
    /// In turn, not next to `node`: where hints lead round and round, each node still has its turn
    /// to be asked first.
    pub fn leave(&mut self, node: usize, nodes: usize, now: Tick, backoff: &mut Backoff) {
        if self.target != node {
            return;
        }
        self.turn = (self.turn + 1) % nodes;
        if self.turn == node {
            self.turn = (self.turn + 1) % nodes;
        }
        self.target = self.turn;
        self.pause(now, backoff);
    }

    /// Pauses, longer each time in a row. A pause that still lasts is not extended: one burst of
    /// refusals counts once.
    pub fn pause(&mut self, now: Tick, backoff: &mut Backoff) {
        if self.hold <= now {
            self.hold = now.plus(backoff.delay(self.attempts));
            self.attempts = self.attempts.saturating_add(1);
            self.hops = 0;
        }
    }
}

/// Exponential backoff with jitter, from a seed: the same run gives the same delays.
#[derive(Debug)]
pub(super) struct Backoff {
    min_us: u64,
    max_us: u64,
    state: u64,
}

impl Backoff {
    pub fn new(min_us: u64, max_us: u64, seed: u64) -> Self {
        let min_us = min_us.max(1);
        Self { min_us, max_us: max_us.max(min_us), state: seed }
    }

    /// Between half and all of `min · 2^attempts`, at most `max`; µs, never 0.
    pub fn delay(&mut self, attempts: u32) -> u64 {
        let whole = self.min_us.saturating_mul(1 << attempts.min(20)).min(self.max_us);
        let half = whole / 2;
        whole - self.random() % (half + 1)
    }

    /// A step of splitmix64: enough to keep clients from marching in step.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
