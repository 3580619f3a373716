//! An operator's recovery of a stopped node: what its logs still hold, what would be lost, and, if
//! that is accepted, a new beginning in a new recovery epoch (durability.md R6).
//!
//! ```text
//! Stopped::open     lock, boot record                    a running node is refused here
//! Stopped::report   reads every log                      nothing is written
//! Stopped::accept   1 each log: one entry a group, synced   (shard::forced)
//!                   2 the boot record: clean end, memory accepted, lost disks fenced
//! ```
//!
//! Step 2 comes last: a crash before it leaves a node that is as suspicious as it was, and the
//! recovery is begun again; groups that had their entry get another one, which costs an epoch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::choice::{Choice, choose};
use super::directory::{DataDir, DirectoryError};
use super::owner;
use crate::config::NodeConfig;
use crate::ids::{GroupId, Incarnation, Index, Lsn, NodeId, Term};
use crate::machine::events::EventStore;
use crate::membership::Membership;
use crate::raft::Restored;
use crate::runtime::entropy::random;
use crate::runtime::files::SnapshotFiles;
use crate::runtime::offline;
use crate::runtime::segments::SegmentFiles;
use crate::shard::forced::{Forced, begin_anew, known_epoch};
use crate::shard::snapshots::gather::{GatherError, Gathering};
use crate::shard::snapshots::start::{Start, log_starts};
use crate::wal::{
    Content, Damage, LogShape, Place, Recovered, Suspect, Verdict, Wal, WalConfig, WalError,
    inspect, recover_from,
};

/// Why nothing was changed.
#[derive(Debug, Error)]
pub enum RecoverError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("shard {shard}: {error}")]
    Log { shard: u32, error: WalError },
    #[error("shard {shard}: {error}")]
    Snapshot { shard: u32, error: GatherError },
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
    #[error("nothing is lost on this node: start it")]
    NothingLost,
    #[error(
        "the other nodes ({others}) can give back what this one lacks: start it, it recovers by \
         itself. Name those that are gone for good by --lost"
    )]
    PeersHaveIt { others: String },
    #[error("node {0} is not a voter of any group, and this node has never known it")]
    Unknown(u32),
    #[error(
        "group {group}: what is damaged may be what says that node {nodes} is a member. If it is, \
         start this node with it in cluster.nodes, and it gives back what is missing; if it is gone \
         for good or was removed, name it by --lost as well"
    )]
    MayBeMembers { group: u32, nodes: String },
    #[error("this node does not vote in group {0}: take a survivor that does")]
    NotAVoter(u32),
    #[error("node {0} is the one that is to go on")]
    Itself(u32),
    #[error(
        "group {group}: {left} of {voters} voters remain, which is a majority: nothing is lost. \
         Start them, and remove or replace the others with `ringraft member`"
    )]
    StillAMajority { group: u32, left: usize, voters: usize },
}

/// One group of a stopped node.
#[derive(Clone, Debug)]
pub struct GroupReport {
    pub group: GroupId,
    /// The end of what the log holds.
    pub last: Index,
    pub last_term: Term,
    /// Highest term heard of.
    pub term: Term,
    /// Known to be committed; more may have been.
    pub commit: Index,
    /// Recovery epoch.
    pub epoch: u32,
    /// Would start RECOVERING.
    pub recovering: bool,
    /// And not for unsynced writes alone: what was durable is damaged, also who the members are.
    pub damaged: bool,
    /// Highest index that is found behind damage: what lies between is lost if nobody else has it.
    pub behind: Index,
    pub membership: Membership,
}

impl GroupReport {
    /// Those of both halves, while the group was changing its members.
    pub fn voters(&self) -> Vec<NodeId> {
        voters(&self.membership)
    }
}

fn voters(membership: &Membership) -> Vec<NodeId> {
    let mut voters = [&membership.voters[..], &membership.outgoing].concat();
    voters.sort_unstable();
    voters.dedup();
    voters
}

/// One log of a stopped node.
#[derive(Clone, Debug)]
pub struct ShardReport {
    pub shard: u32,
    pub verdict: Verdict,
    /// The unbroken log ends here, and was durable up to there.
    pub valid: Lsn,
    pub durable: Lsn,
    pub damage: Option<Damage>,
    pub groups: Vec<GroupReport>,
}

impl ShardReport {
    pub fn is_rotten(&self) -> bool {
        matches!(self.verdict, Verdict::Rot { .. })
    }
}

/// Groups that are left alone, and why.
pub type Left = BTreeMap<GroupId, RecoverError>;

/// What was done.
pub struct Accepted {
    pub forced: Vec<Forced>,
    pub left: Left,
}

/// A node that does not run; nobody can start it while this is held.
pub struct Stopped {
    config: NodeConfig,
    directory: DataDir,
    suspect: Suspect,
}

impl Stopped {
    /// Locks the node's directory.
    pub fn open(config: &NodeConfig) -> Result<Self, RecoverError> {
        let (directory, suspect) = DataDir::open_stopped(&config.data_dir, &owner(config))?;
        Ok(Self { config: config.clone(), directory, suspect })
    }

    pub fn incarnation(&self) -> Incarnation {
        self.directory.incarnation()
    }

    /// What every log holds.
    pub fn report(&self) -> Result<Vec<ShardReport>, RecoverError> {
        (0..self.config.cluster.shards).map(|shard| self.report_shard(shard)).collect()
    }

    fn report_shard(&self, shard: u32) -> Result<ShardReport, RecoverError> {
        let (config, identity) = (self.wal_config(shard), self.directory.identity());
        let (dir, mut files) = self.files(shard)?;
        let mut behind = BTreeMap::<GroupId, Index>::new();
        let mark = self.directory.durable_mark(shard);
        let shape = LogShape { config, identity };
        let (mut found, damage) = inspect(&shape, &mut files, mark, |flush| {
            for record in flush.records.iter().filter(|_| flush.place == Place::Behind) {
                if let Content::Blocks { last, .. } = record.content {
                    let highest = behind.entry(record.group).or_default();
                    *highest = last.max(*highest);
                }
            }
        })
        .map_err(|error| RecoverError::Log { shard, error })?;
        let rot = matches!(found.verdict, Verdict::Rot { .. });
        let (starts, is_lost) = self.starts(shard, &dir, &mut found)?;
        let report = |group: GroupId| {
            let known = starts.get(&group).map(|start| start.restored.clone()).unwrap_or_default();
            let run = known.terms.last();
            GroupReport {
                group,
                last: known.last,
                last_term: run.map_or(known.start.term, |run| run.term),
                term: known.hard_state.term,
                commit: known.hard_state.commit.min(known.last),
                epoch: run.map_or(known.start.epoch, |run| run.epoch),
                recovering: rot || is_lost || self.is_suspect(),
                damaged: rot || is_lost || self.suspect == Suspect::Everything,
                behind: if rot {
                    behind.get(&group).copied().unwrap_or_default()
                } else {
                    Index(0)
                },
                membership: self.membership(&known),
            }
        };
        let groups = self.groups_of(shard, &starts).into_iter().map(report).collect();
        let Recovered { verdict, end: valid, durable, .. } = found;
        Ok(ShardReport { shard, verdict, valid, durable, damage, groups })
    }

    /// Goes on without what is missing: without what the logs have lost, and without the nodes in
    /// `lost`, whose disks are gone for good. What is refused has changed nothing.
    pub fn accept(mut self, lost: &[NodeId]) -> Result<Accepted, RecoverError> {
        let report = self.report()?;
        let left = self.check(&report, lost)?;
        let (mut forced, mut durable) = (Vec::new(), Vec::new());
        for shard in 0..self.config.cluster.shards {
            durable.push(self.force_shard(shard, lost, &left, &mut forced)?);
        }
        let path = self.config.data_dir.join("boot");
        let epoch = forced.iter().map(|forced| forced.epoch).max().unwrap_or(0);
        // Who is left alone has the others to remember what it may have forgotten.
        let groups = report.iter().flat_map(|shard| &shard.groups);
        let mut still = groups.filter(|group| left.contains_key(&group.group) && group.recovering);
        let suspect = still.next().map_or(Suspect::Nothing, |_| Suspect::Unsynced);
        let written = self.directory.mark_accepted(durable, epoch, lost, suspect);
        written.map_err(|error| RecoverError::Io { path, error })?;
        Ok(Accepted { forced, left })
    }

    /// Whether there is anything to accept; the groups that would be left alone, and why.
    pub fn check(&self, report: &[ShardReport], lost: &[NodeId]) -> Result<Left, RecoverError> {
        let (me, known) = (NodeId(self.config.id), self.directory.other_nodes());
        if lost.contains(&me) {
            return Err(RecoverError::Itself(me.0));
        }
        let groups = || report.iter().flat_map(|shard| &shard.groups);
        let is_voter = |node: &NodeId| groups().any(|group| group.membership.is_voter(*node));
        let stranger = |node: &&NodeId| !known.contains(node) && !is_voter(node);
        if let Some(stranger) = lost.iter().find(stranger) {
            return Err(RecoverError::Unknown(stranger.0));
        }
        let (mut left, mut any) = (Left::new(), false);
        for group in groups() {
            match choose(me, group, lost, &known)? {
                Choice::Force => any = true,
                Choice::Leave(why) => drop(left.insert(group.group, why)),
            }
        }
        if any {
            return Ok(left);
        }
        let of_use = |why: &RecoverError| !matches!(why, RecoverError::NothingLost);
        let why = left.into_values().find(of_use);
        Err(why.unwrap_or(RecoverError::NothingLost))
    }

    /// One synced step for all groups of a shard; the end of its log.
    fn force_shard(
        &self,
        shard: u32,
        lost: &[NodeId],
        left: &Left,
        forced: &mut Vec<Forced>,
    ) -> Result<Lsn, RecoverError> {
        let (config, identity) = (self.wal_config(shard), self.directory.identity());
        let (dir, mut files) = self.files(shard)?;
        let bad = |error| RecoverError::Log { shard, error };
        let io = |error| RecoverError::Io { path: dir.clone(), error };
        files.remove_unfinished().map_err(io)?;
        let mark = self.directory.durable_mark(shard);
        let mut found = recover_from(config, identity, &mut files, mark).map_err(bad)?;
        let rot = matches!(found.verdict, Verdict::Rot { .. });
        let epoch = random().map_err(io)? as u64;
        let (starts, is_lost) = self.starts(shard, &dir, &mut found)?;
        let mut wal = Wal::resume(config, identity, epoch, &mut found);
        let all = self.groups_of(shard, &starts);
        let mut groups = log_starts(&mut wal, starts);
        for group in all.into_iter().filter(|group| !left.contains_key(group)) {
            let seen = found.groups.get(&group).map_or(0, |known| known.epoch);
            let known = groups.entry(group).or_default();
            let survivors = self.survivors(known, lost);
            // Those who are given up may have begun epochs of which this node has not heard.
            let gone = (rot || is_lost || survivors.is_some()) && !self.config.cluster.wal_sync;
            let epoch = known_epoch(seen, self.directory.epoch(), gone);
            let me = NodeId(self.config.id);
            forced.push(begin_anew(&mut wal, me, group, known, epoch, survivors.as_ref()));
        }
        offline::settle(&mut wal, &dir, config.segment_bytes).map_err(bad)
    }

    /// What the groups start from, snapshots included, and whether the front of some log is gone.
    fn starts(
        &self,
        shard: u32,
        dir: &Path,
        found: &mut Recovered,
    ) -> Result<(BTreeMap<GroupId, Start>, bool), RecoverError> {
        let cluster = &self.config.cluster;
        let limits = cluster.store.limits();
        let gathering = Gathering {
            machine: |_: GroupId| EventStore::new(limits),
            sessions: cluster.store.session_limits(),
            config_hash: self.directory.identity().cluster as u64,
        };
        let io = |error| RecoverError::Io { path: dir.to_owned(), error };
        let mut files = SnapshotFiles::create(dir).map_err(io)?;
        let gathered = gathering.run(&mut files);
        let snapshots = gathered.map_err(|error| RecoverError::Snapshot { shard, error })?.found;
        let headless = !found.drop_headless(|group| snapshots.newest(group)).is_empty();
        let starts = snapshots.starts(&found.groups);
        let is_lost = headless || starts.values().any(|start| start.is_lost);
        Ok((starts, is_lost))
    }

    /// Who makes up a group from here on; `None`: nothing changes there.
    fn survivors(&self, known: &Restored, lost: &[NodeId]) -> Option<Membership> {
        if lost.is_empty() {
            return None;
        }
        let Membership { learners, addresses, .. } = self.membership(known);
        let mut next = Membership::of_voters(voters(&self.membership(known)));
        (next.learners, next.addresses) = (learners, addresses);
        next.voters.retain(|node| !lost.contains(node));
        next.learners.retain(|node| !lost.contains(node) && !next.voters.contains(node));
        next.addresses.retain(|address| !lost.contains(&address.node));
        Some(next)
    }

    /// The newest configuration that the log holds, committed or not.
    fn membership(&self, known: &Restored) -> Membership {
        let first = || Membership::of_voters(self.directory.first_voters());
        known.memberships.last().cloned().unwrap_or_else(first)
    }

    fn is_suspect(&self) -> bool {
        match self.suspect {
            Suspect::Nothing => false,
            Suspect::Unsynced => !self.config.cluster.wal_sync,
            Suspect::Everything => true,
        }
    }

    /// Those of the configuration and those that log or snapshots name, less those that have ended.
    fn groups_of(&self, shard: u32, starts: &BTreeMap<GroupId, Start>) -> Vec<GroupId> {
        let cluster = &self.config.cluster;
        let configured = (shard..cluster.groups).step_by(cluster.shards as usize).map(GroupId);
        let mut all: Vec<_> = configured.chain(starts.keys().copied()).collect();
        all.sort_unstable();
        all.dedup();
        let has_ended = |group: &GroupId| {
            starts.get(group).is_some_and(|start| start.restored.hard_state.is_ended())
        };
        all.retain(|group| !has_ended(group));
        all
    }

    fn files(&self, shard: u32) -> Result<(PathBuf, SegmentFiles), RecoverError> {
        let dir = self.directory.shard_dir(shard)?;
        let files = SegmentFiles::list(&dir);
        let files = files.map_err(|error| RecoverError::Io { path: dir.clone(), error })?;
        Ok((dir, files))
    }

    fn wal_config(&self, shard: u32) -> WalConfig {
        let wal = &self.config.wal;
        WalConfig {
            shard,
            segment_bytes: wal.segment_bytes(),
            block_bytes: wal.block_bytes,
            segments_max: wal.segments_max(),
            spare_segments: 1,
            ..WalConfig::default()
        }
    }
}
