//! Opens a shard's log and its snapshots: finds the files, reads them, and makes the log ready to go
//! on.

use std::collections::BTreeMap;
use std::path::Path;

use tracing::{error, info};

use super::{StartError, snapshots};
use crate::ids::{GroupId, Lsn, NodeId};
use crate::machine::StateMachine;
use crate::membership::Membership;
use crate::runtime::entropy::random;
use crate::runtime::segments::SegmentFiles;
use crate::shard;
use crate::shard::sessions::SessionLimits;
use crate::shard::snapshots::Found;
use crate::shard::snapshots::gather::Gathering;
use crate::shard::snapshots::start::Start;
use crate::wal::{LogIdentity, Recovered, Verdict, Wal, WalConfig, WalError, recover_from};

/// What a shard starts from.
pub struct Opened<M> {
    pub wal: Wal,
    pub groups: shard::Recovered,
    pub snapshots: Found<M>,
    /// Bytes of the log that were durable are damaged.
    pub rot: bool,
    /// The snapshot of some group is damaged or gone, and with it the front of its log.
    pub lost: bool,
}

/// Whose state it is.
pub struct States<F> {
    /// Makes a group's empty state machine.
    pub machine: F,
    pub sessions: SessionLimits,
    /// In the header of each snapshot.
    pub config_hash: u64,
}

/// Who could give back what is damaged here.
pub struct Helpers {
    pub me: NodeId,
    /// Other nodes that the boot record knows: they may be members by an entry that is damaged.
    pub known: Vec<NodeId>,
    /// The configuration file says where some other node is.
    pub listed: bool,
}

impl Helpers {
    /// Why a damaged shard must not start, if it must not: nobody has what it lacks, or nothing
    /// says where they are. What is left of a damaged log may be of a time when this node was alone.
    fn refuse(
        &self,
        shard: u32,
        damage: StartError,
        starts: &BTreeMap<GroupId, Start>,
    ) -> Option<StartError> {
        let newest = starts.values().filter_map(|start| start.restored.memberships.last());
        let others = |node: &NodeId| *node != self.me;
        let mut placed = newest.clone().flat_map(|of| of.addresses.iter().map(|at| at.node));
        if self.listed || placed.any(|node| others(&node)) {
            return None;
        }
        let mut nodes: Vec<_> = newest.flat_map(Membership::members).filter(others).collect();
        nodes.extend(&self.known);
        nodes.sort_unstable();
        nodes.dedup();
        if nodes.is_empty() {
            return Some(damage);
        }
        let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
        Some(StartError::Unplaced { shard, nodes: nodes.join(",") })
    }
}

/// Reads log and snapshots. A damaged shard that nobody can give anything back does not start.
pub fn open<M: StateMachine, F: FnMut(GroupId) -> M>(
    config: WalConfig,
    identity: LogIdentity,
    dir: &Path,
    mark: Lsn,
    helpers: &Helpers,
    belongs: impl Fn(GroupId) -> bool,
    states: States<F>,
) -> Result<Opened<M>, StartError> {
    let shard = config.shard;
    let mut files = SegmentFiles::list(dir).map_err(StartError::Kernel)?;
    files.remove_unfinished().map_err(StartError::Kernel)?;
    let bad = |error| StartError::Log { shard, error };
    let mut recovered = recover_from(config, identity, &mut files, mark).map_err(bad)?;
    if !matches!(recovered.verdict, Verdict::Empty | Verdict::Rot { .. }) {
        info!(
            shard,
            verdict = ?recovered.verdict,
            end = recovered.end.0,
            flushes = recovered.flushes,
            records = recovered.records,
            groups = recovered.groups.len(),
            released = recovered.released,
            "log recovered"
        );
    }
    let States { machine, sessions, config_hash } = states;
    let gathering = Gathering { machine, sessions, config_hash };
    let snapshots = snapshots::open(shard, dir, gathering)?;
    let headless = recovered.drop_headless(|group| snapshots.newest(group));
    let starts = snapshots.starts(&recovered.groups);
    let damage = damage_of(shard, &recovered, &headless, &starts);
    if let Some(why) = damage.and_then(|damage| helpers.refuse(shard, damage, &starts)) {
        return Err(why);
    }
    let rot = report_damage(shard, &recovered, &headless);
    let lost = snapshots::look_for_lost(shard, &starts);
    if let Some(group) = starts.keys().find(|group| !belongs(**group)) {
        return Err(StartError::ForeignGroup { shard, group: group.0 });
    }
    let lsn = recovered.end;
    for start in starts.values() {
        start.restored.check().map_err(|what| bad(WalError::Format { lsn, what }))?;
    }
    let epoch = random().map_err(StartError::Kernel)? as u64;
    let mut wal = Wal::resume(config, identity, epoch, &mut recovered);
    let groups = shard::snapshots::start::log_starts(&mut wal, starts);
    Ok(Opened { wal, groups, snapshots, rot, lost })
}

/// What is damaged, as the reason of a start that is refused.
fn damage_of(
    shard: u32,
    recovered: &Recovered,
    headless: &[GroupId],
    starts: &BTreeMap<GroupId, Start>,
) -> Option<StartError> {
    match recovered.verdict {
        Verdict::Rot { valid, durable, .. } => {
            return Some(StartError::Rot { shard, valid: valid.0, durable: durable.0 });
        }
        _ if !headless.is_empty() => {
            let (valid, durable) = (recovered.end.0, recovered.durable.0);
            return Some(StartError::Rot { shard, valid, durable });
        }
        _ => {}
    }
    let lost = starts.iter().find(|(_, start)| start.is_lost);
    lost.map(|(group, _)| StartError::SnapshotLost { shard, group: group.0 })
}

/// Whether bytes of the log that were durable are damaged; tells it.
fn report_damage(shard: u32, recovered: &Recovered, headless: &[GroupId]) -> bool {
    let rot = matches!(recovered.verdict, Verdict::Rot { .. });
    if let Verdict::Rot { valid, durable, .. } = &recovered.verdict {
        error!(
            shard,
            valid = valid.0,
            durable = durable.0,
            "the log is damaged below its durable mark: all groups of this shard are RECOVERING \
             until the other nodes have given back what is missing; check this disk. If no other \
             node is a member any more, stop this one and see `ringraft recover`"
        );
    }
    if !headless.is_empty() {
        error!(
            shard,
            ?headless,
            "the front of the log is gone: all groups of this shard are RECOVERING until the other \
             nodes have given back what is missing; check this disk. If no other node is a member \
             any more, stop this one and see `ringraft recover`"
        );
    }
    rot || !headless.is_empty()
}
