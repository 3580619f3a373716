//! What a shard's groups start from: its log and its snapshots brought together.

use std::collections::BTreeMap;
use std::path::Path;

use tracing::{error, info, warn};

use super::StartError;
use crate::ids::GroupId;
use crate::machine::StateMachine;
use crate::runtime::files::SnapshotFiles;
use crate::shard::snapshots::Found;
use crate::shard::snapshots::gather::{Gathered, Gathering};
use crate::shard::snapshots::start::Start;

/// Reads the snapshots in a shard's directory. A damaged one is set aside, what nobody needs goes.
pub fn open<M: StateMachine, F: FnMut(GroupId) -> M>(
    shard: u32,
    dir: &Path,
    gathering: Gathering<F>,
) -> Result<Found<M>, StartError> {
    let mut files = SnapshotFiles::create(dir).map_err(StartError::Kernel)?;
    let gathered = gathering.run(&mut files);
    let Gathered { mut found, damaged } =
        gathered.map_err(|error| StartError::Snapshot { shard, error })?;
    for (file, error) in damaged {
        let aside = files.set_aside(file).map_err(StartError::Kernel)?;
        warn!(shard, aside = %aside.display(), %error, "a damaged snapshot was set aside");
    }
    for file in found.useless.drain(..) {
        // One that stays is found again by the next start.
        if let Err(error) = files.remove(file) {
            warn!(shard, %file, %error, "a useless file was not removed");
        }
    }
    if !found.loaded.is_empty() {
        let bytes: u64 = found.loaded.iter().map(|loaded| loaded.offer.size).sum();
        info!(shard, snapshots = found.loaded.len(), bytes, "snapshots restored");
    }
    Ok(found)
}

/// Whether a group has lost what its snapshot held, and has to get it back from the others.
pub fn look_for_lost(shard: u32, starts: &BTreeMap<GroupId, Start>) -> bool {
    let mut lost = false;
    for (group, _) in starts.iter().filter(|(_, start)| start.is_lost) {
        error!(
            shard,
            group = group.0,
            "the group's snapshot is damaged or gone, and its log begins behind it: it is \
             RECOVERING until its leader has sent it another one"
        );
        lost = true;
    }
    lost
}
