//! What a shard tells about itself.

use serde::{Deserialize, Serialize};

use super::Shard;
use crate::machine::StateMachine;
use crate::raft::ready::Role;
use crate::wal::Space;
use crate::wire::client::Refused;

/// Counters since the start, for reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardStats {
    pub commands_applied: u64,
    pub blocks_applied: u64,
    /// By the reason's [`Refused::kind`].
    pub refused: [u64; Refused::REASONS.len()],
    pub appends_held_back: u64,
    pub turns: u64,
    /// Elections on this node after which acknowledged commands may be missing.
    pub possible_data_loss: u64,
    /// Elections that this node stood in, and those it won: once for each group and term that it
    /// came to lead, by whatever way.
    pub campaigns: u64,
    pub elections_won: u64,
    /// Questions answered, by their [`Consistency`](crate::wire::client::Consistency).
    pub reads: [u64; 4],
}

impl ShardStats {
    /// Proposals refused, whatever the reason.
    pub fn proposals_refused(&self) -> u64 {
        self.refused.iter().sum()
    }
}

/// One group on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    pub group: u32,
    /// "leader", "follower", "candidate" or "pre-candidate".
    pub role: String,
    /// Node id; 0 = unknown.
    pub leader: u32,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    pub last: u64,
    /// Lowest index still in the log.
    #[serde(default)]
    pub first: u64,
    /// Index of the newest snapshot; 0: none.
    #[serde(default)]
    pub snapshot: u64,
    /// The group has lost its memory of what it acknowledged and is getting it back.
    #[serde(default)]
    pub recovering: bool,
    /// What it has committed is not in its leader's log: see "Lost quorum" in the operations guide.
    #[serde(default)]
    pub parted: bool,
    /// Recovery epoch at `last`: elections after which acknowledged commands may be missing.
    #[serde(default)]
    pub epoch: u32,
    /// Of the state machine and the sessions at `applied`; equal on all replicas at equal indices.
    pub digest: String,
    /// Idle: it neither sends nor awaits heartbeats until something happens.
    #[serde(default)]
    pub hibernating: bool,
}

/// One shard of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    pub node: u32,
    pub incarnation: u32,
    pub shard: u32,
    pub shards: u32,
    pub groups: Vec<GroupStatus>,
    /// Groups that have ended here, and those of them whose record of it is not durable yet.
    #[serde(default)]
    pub groups_ended: u32,
    #[serde(default)]
    pub groups_ending: u32,
    /// Groups that are RECOVERING.
    #[serde(default)]
    pub recovering: u32,
    /// Elections of this start, won here, after which acknowledged commands may be missing.
    #[serde(default)]
    pub possible_data_loss: u64,
    pub peers_connected: u32,
    pub commands_applied: u64,
    pub blocks_applied: u64,
    pub proposals_refused: u64,
    pub flushes: u64,
    pub wal_bytes: u64,
    /// Bytes of the files that hold the log now.
    #[serde(default)]
    pub log_bytes: u64,
    /// Of this start: snapshots taken, and installed in place of a log.
    #[serde(default)]
    pub snapshots_taken: u64,
    #[serde(default)]
    pub snapshots_installed: u64,
    /// "ok", or why the shard takes no more proposals.
    pub space: String,
}

impl ShardStatus {
    /// As it goes over the wire.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data has no map keys or values that JSON lacks")
    }

    /// Back from the wire.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }
}

impl<M: StateMachine> Shard<M> {
    /// Everything at this moment.
    pub fn status(&self) -> ShardStatus {
        let wal = self.wal.stats();
        ShardStatus {
            node: self.config.node.0,
            incarnation: self.config.incarnation.0,
            shard: self.config.shard,
            shards: self.config.shards,
            groups: self.living().map(|local| self.group_status(local)).collect(),
            groups_ended: self.ends().0 as u32,
            groups_ending: self.ends().1 as u32,
            recovering: self.recovering() as u32,
            possible_data_loss: self.stats.possible_data_loss,
            peers_connected: self.peers.iter().filter(|peer| peer.connected).count() as u32,
            commands_applied: self.stats.commands_applied,
            blocks_applied: self.stats.blocks_applied,
            proposals_refused: self.stats.proposals_refused(),
            flushes: wal.flushes,
            wal_bytes: wal.bytes,
            log_bytes: self.wal.log_bytes(),
            snapshots_taken: self.snapshots.stats.taken,
            snapshots_installed: self.snapshots.stats.installed,
            space: self.space(),
        }
    }

    /// Small proposals may still be taken when the largest are refused.
    fn space(&self) -> String {
        let nearly_full = self.wal.room() < 4 * u64::from(self.config.block_bytes_max);
        match self.wal.space() {
            Space::NoSpace { message, .. } => format!("disk full: {message}"),
            Space::Ok if !nearly_full => "ok".into(),
            Space::Ok | Space::LimitReached => "log limit reached: raise wal.log_max_gib".into(),
        }
    }

    pub(super) fn group_status(&self, local: usize) -> GroupStatus {
        let group = &self.groups[local];
        let raft = &group.raft;
        let role = match raft.role() {
            Role::Follower => "follower",
            Role::PreCandidate => "pre-candidate",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
        };
        let digest = group.machine.digest() ^ group.sessions.digest().rotate_left(32);
        GroupStatus {
            group: raft.group().0,
            role: role.into(),
            leader: raft.leader().map_or(0, |node| node.0),
            term: raft.term().0,
            commit: raft.commit().0,
            applied: group.applied.0,
            last: raft.last_index().0,
            first: raft.log().first_index().0,
            snapshot: group.snapshot.start.index.0,
            recovering: raft.is_recovering(),
            parted: raft.is_parted(),
            epoch: raft.epoch(),
            digest: format!("{digest:016x}"),
            hibernating: raft.is_hibernating(),
        }
    }
}
