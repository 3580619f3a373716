//! Opens a shard's log and its snapshots: finds the files, reads them, and makes the log ready to go
//! on.

use std::path::Path;

use tracing::{error, info};

use super::{StartError, snapshots};
use crate::ids::{GroupId, Lsn};
use crate::machine::StateMachine;
use crate::runtime::entropy::random;
use crate::runtime::segments::SegmentFiles;
use crate::shard;
use crate::shard::sessions::SessionLimits;
use crate::shard::snapshots::Found;
use crate::shard::snapshots::gather::Gathering;
use crate::wal::{LogIdentity, Verdict, Wal, WalConfig, WalError, recover_from};

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

/// Reads log and snapshots. A node that is `alone` has nobody to get back from what is damaged, and
/// does not start.
pub fn open<M: StateMachine, F: FnMut(GroupId) -> M>(
    config: WalConfig,
    identity: LogIdentity,
    dir: &Path,
    mark: Lsn,
    alone: bool,
    belongs: impl Fn(GroupId) -> bool,
    states: States<F>,
) -> Result<Opened<M>, StartError> {
    let shard = config.shard;
    let mut files = SegmentFiles::list(dir).map_err(StartError::Kernel)?;
    files.remove_unfinished().map_err(StartError::Kernel)?;
    let bad = |error| StartError::Log { shard, error };
    let mut recovered = recover_from(config, identity, &mut files, mark).map_err(bad)?;
    match &recovered.verdict {
        Verdict::Empty => {}
        Verdict::Rot { valid, durable, .. } if alone => {
            return Err(StartError::Rot { shard, valid: valid.0, durable: durable.0 });
        }
        Verdict::Rot { valid, durable, .. } => error!(
            shard,
            valid = valid.0,
            durable = durable.0,
            "the log is damaged below its durable mark: all groups of this shard are RECOVERING \
             until the other nodes have given back what is missing; check this disk"
        ),
        verdict => info!(
            shard,
            ?verdict,
            end = recovered.end.0,
            flushes = recovered.flushes,
            records = recovered.records,
            groups = recovered.groups.len(),
            "log recovered"
        ),
    }
    let States { machine, sessions, config_hash } = states;
    let gathering = Gathering { machine, sessions, config_hash };
    let snapshots = snapshots::open(shard, dir, gathering)?;
    let headless = recovered.drop_headless(|group| snapshots.newest(group));
    if !headless.is_empty() {
        let (valid, durable) = (recovered.end.0, recovered.durable.0);
        if alone {
            return Err(StartError::Rot { shard, valid, durable });
        }
        error!(
            shard,
            ?headless,
            "the front of the log is gone: all groups of this shard are RECOVERING until the other \
             nodes have given back what is missing; check this disk"
        );
    }
    let starts = snapshots.starts(&recovered.groups);
    let lost = snapshots::look_for_lost(shard, alone, &starts)?;
    if let Some(group) = starts.keys().find(|group| !belongs(**group)) {
        return Err(StartError::ForeignGroup { shard, group: group.0 });
    }
    let lsn = recovered.end;
    for start in starts.values() {
        start.restored.check().map_err(|what| bad(WalError::Format { lsn, what }))?;
    }
    let epoch = random().map_err(StartError::Kernel)? as u64;
    let rot = matches!(recovered.verdict, Verdict::Rot { .. }) || !headless.is_empty();
    let mut wal = Wal::resume(config, identity, epoch, &mut recovered);
    let groups = shard::snapshots::start::log_starts(&mut wal, starts);
    Ok(Opened { wal, groups, snapshots, rot, lost })
}
