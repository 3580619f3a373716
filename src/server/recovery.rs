//! Opens a shard's log: finds its segments, reads them, and makes it ready to go on.

use std::path::Path;

use tracing::{error, info};

use super::StartError;
use crate::ids::{GroupId, Index, Lsn};
use crate::runtime::entropy::random;
use crate::runtime::segments::SegmentFiles;
use crate::shard;
use crate::wal::{LogIdentity, Verdict, Wal, WalConfig, WalError, recover_from};

/// The log, what its groups start from, and whether bytes that were durable are damaged. A node that
/// is `alone` has nobody to get them back from, and does not start.
pub fn open(
    config: WalConfig,
    identity: LogIdentity,
    dir: &Path,
    mark: Lsn,
    alone: bool,
    belongs: impl Fn(GroupId) -> bool,
) -> Result<(Wal, shard::Recovered, bool), StartError> {
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
    let headless = recovered.drop_headless(|_| Index::ZERO);
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
    if let Some(group) = recovered.groups.keys().find(|group| !belongs(**group)) {
        return Err(StartError::ForeignGroup { shard, group: group.0 });
    }
    let groups: shard::Recovered =
        recovered.groups.iter().map(|(id, group)| (*id, shard::restored(group))).collect();
    let lsn = recovered.end;
    for group in groups.values() {
        group.check().map_err(|what| bad(WalError::Format { lsn, what }))?;
    }
    let epoch = random().map_err(StartError::Kernel)? as u64;
    let rot = matches!(recovered.verdict, Verdict::Rot { .. }) || !headless.is_empty();
    Ok((Wal::resume(config, identity, epoch, &mut recovered), groups, rot))
}
