//! The numbers of a shard at one moment, for metrics and for whoever asks whether the node is ready.
//! Made when somebody asks: a walk over the groups, and no work between two questions.

use super::snapshots::SnapshotStats;
use super::stages::StageTimes;
use super::{Shard, ShardStats};
use crate::ids::{NodeId, Tick};
use crate::machine::StateMachine;
use crate::metrics::Histogram;
use crate::raft::ready::Role;
use crate::wal::WalStats;

/// Groups without a leader that are named; the others are only counted.
const NAMED_MAX: usize = 8;

/// Another node as this shard sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFigures {
    pub node: NodeId,
    /// The link that this shard sends on is up.
    pub connected: bool,
    /// Entries that the node is not known to hold, of the group led here that it is furthest behind
    /// in. Between two answers that is what is under way.
    pub lag_entries: u64,
    /// Bytes that wait for its socket.
    pub egress_bytes: u64,
}

/// One group, where these were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupFigures {
    pub group: u32,
    pub leads: bool,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    pub last: u64,
}

/// See the module. Sums are over the groups of the shard.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Those that have not ended.
    pub groups: u32,
    pub ended: u32,
    pub leaders: u32,
    pub followers: u32,
    pub pre_candidates: u32,
    pub candidates: u32,
    /// Groups in which this node takes part and of which it knows no leader, and the first few of
    /// them.
    pub leaderless: u32,
    pub leaderless_groups: Vec<u32>,
    /// Groups in which this node takes part and does not keep up with their leader, and the first few.
    pub behind: u32,
    pub behind_groups: Vec<u32>,
    /// Groups that re-sync after a loss (durability.md R4).
    pub recovering: u32,
    /// Groups whose committed entries are not their leader's.
    pub parted: u32,
    /// Groups with nothing to do, which neither send nor await heartbeats.
    pub hibernating: u32,
    /// What recovery found is on stable storage, and groups have begun to work.
    pub recovered: bool,
    pub draining: bool,
    pub term_max: u64,
    pub commit_sum: u64,
    pub applied_sum: u64,
    pub last_sum: u64,
    /// Blocks proposed here and not committed, bytes.
    pub uncommitted_bytes: u64,
    /// Blocks held in memory, bytes.
    pub cached_bytes: u64,
    pub peers: Vec<PeerFigures>,
    pub per_group: Vec<GroupFigures>,
    pub clients: u32,
    /// Bytes of answers that wait for their clients' sockets.
    pub client_egress_bytes: u64,
    pub stats: ShardStats,
    pub stages: StageTimes,
    pub wal: WalStats,
    pub snapshots: SnapshotStats,
    /// Age of the oldest written and unsynced byte, µs.
    pub unsynced_us: u64,
    /// Commands in each flush.
    pub flush_commands: Histogram,
    /// Bytes that the log still takes; 0 is read-only.
    pub wal_room_bytes: u64,
}

impl<M: StateMachine> Shard<M> {
    /// Everything at this moment. `per_group`: each group by itself as well.
    pub fn figures(&self, now: Tick, per_group: bool) -> Figures {
        let wal = self.wal.stats();
        let mut figures = Figures {
            groups: self.living().count() as u32,
            ended: self.ends().0 as u32,
            recovered: self.is_recovered(),
            recovering: self.recovering() as u32,
            hibernating: self.hibernating() as u32,
            draining: self.handover.draining,
            peers: self.peer_figures(),
            stats: self.stats,
            stages: self.stages.clone(),
            wal,
            snapshots: self.snapshots.stats,
            unsynced_us: wal.unsynced_since.map_or(0, |since| now.since(since)),
            flush_commands: self.wal.flush_commands().clone(),
            wal_room_bytes: self.wal.room(),
            ..Figures::default()
        };
        (figures.clients, figures.client_egress_bytes) = self.clients.figures();
        for local in self.living() {
            self.add_group(now, local, per_group, &mut figures);
        }
        figures
    }

    /// Nodes that this shard is to be linked with: one that has left is missed by nobody.
    fn peer_figures(&self) -> Vec<PeerFigures> {
        let wanted = self.peers.iter().filter(|peer| peer.is_wanted);
        let figures = wanted.map(|peer| PeerFigures {
            node: peer.node,
            connected: peer.connected,
            lag_entries: 0,
            egress_bytes: peer.egress_bytes(),
        });
        figures.collect()
    }

    fn add_group(&self, now: Tick, local: usize, per_group: bool, figures: &mut Figures) {
        let group = &self.groups[local];
        let raft = &group.raft;
        match raft.role() {
            Role::Leader => figures.leaders += 1,
            Role::Follower => figures.followers += 1,
            Role::PreCandidate => figures.pre_candidates += 1,
            Role::Candidate => figures.candidates += 1,
        }
        // Whoever takes no part in a group any more, or not yet, hears of no leader.
        let takes_part = raft.membership().is_member(raft.id());
        let id = raft.group().0;
        if takes_part && raft.leader().is_none() {
            name(id, &mut figures.leaderless, &mut figures.leaderless_groups);
        }
        if takes_part && !raft.keeps_up(now) {
            name(id, &mut figures.behind, &mut figures.behind_groups);
        }
        figures.parted += u32::from(raft.is_parted());
        let (commit, last) = (raft.commit().0, raft.last_index().0);
        figures.term_max = figures.term_max.max(raft.term().0);
        figures.commit_sum += commit;
        figures.applied_sum += group.applied.0;
        figures.last_sum += last;
        figures.uncommitted_bytes += raft.uncommitted_bytes();
        figures.cached_bytes += raft.cached_bytes();
        for (node, progress) in raft.progress() {
            let lag = last.saturating_sub(progress.matched().0);
            let peer = figures.peers.iter_mut().find(|peer| peer.node == node);
            if let Some(peer) = peer {
                peer.lag_entries = peer.lag_entries.max(lag);
            }
        }
        if per_group {
            figures.per_group.push(GroupFigures {
                group: raft.group().0,
                leads: raft.role() == Role::Leader,
                term: raft.term().0,
                commit,
                applied: group.applied.0,
                last,
            });
        }
    }
}

/// Counts a group, and keeps the first few.
fn name(group: u32, count: &mut u32, names: &mut Vec<u32>) {
    *count += 1;
    if names.len() < NAMED_MAX {
        names.push(group);
    }
}
