//! What a start makes of the files it finds: the newest whole snapshot of each group becomes its
//! state, a part of another one is kept to be gone on with, and the rest goes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::sessions::SessionLimits;
use super::start::{LoadError, Loaded, Loading, Start, meet};
use super::{FileName, Found};
use crate::ids::{GroupId, Index};
use crate::machine::StateMachine;
use crate::raft::message::Offer;
use crate::snapshot::SnapshotReader;
use crate::wal::{DiskError, RecoveredGroup};

/// Read at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// The directory of a shard's snapshots, as a start reads it.
pub trait FileSource {
    /// Files with names of ours, and their sizes in bytes.
    fn files(&mut self) -> Vec<(FileName, u64)>;
    /// Bytes of a file; fewer only at its end.
    fn read(&mut self, file: FileName, offset: u64, len: u64) -> Result<Bytes, DiskError>;
    /// Syncs the directory: a killed process may have renamed a file and not come to this. Until then
    /// a loss of power could take the name of a snapshot for which a log has given up its front.
    fn sync(&mut self) -> Result<(), DiskError>;
}

/// Why a start ends here. The file is whole, or cannot be read at all: other nodes cannot help.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GatherError {
    #[error("snapshot {file} cannot be read: {error}")]
    Unreadable { file: FileName, error: DiskError },
    #[error("the directory of the snapshots cannot be synced: {0}")]
    Directory(DiskError),
    #[error("snapshot {file} cannot be used: {error}")]
    Refused { file: FileName, error: LoadError },
}

/// See the module.
pub struct Gathered<M> {
    pub found: Found<M>,
    /// Files that are no snapshots any more, and why. They are left as they are.
    pub damaged: Vec<(FileName, LoadError)>,
}

/// Who reads.
pub struct Gathering<F> {
    pub machine: F,
    pub sessions: SessionLimits,
    pub config_hash: u64,
}

impl<M: StateMachine, F: FnMut(GroupId) -> M> Gathering<F> {
    /// Reads everything that is needed.
    pub fn run(mut self, source: &mut dyn FileSource) -> Result<Gathered<M>, GatherError> {
        source.sync().map_err(GatherError::Directory)?;
        let mut files = source.files();
        // The newest first.
        files.sort_by_key(|(file, _)| match *file {
            FileName::Snapshot(group, index) => (group, 0, u64::MAX - index.0),
            FileName::Part(group, offer) => (group, 1, u64::MAX - offer.start.index.0),
            FileName::Making(group) => (group, 2, 0),
        });
        let (mut found, mut damaged) = (Found::default(), Vec::new());
        for (file, size) in files {
            let group = file.group();
            let newest = found.loaded.last().filter(|l: &&Loaded<M>| l.header.group == group);
            let newest = newest.map_or(Index::ZERO, |loaded| loaded.offer.start.index);
            match file {
                FileName::Snapshot(_, index) if newest == Index::ZERO => {
                    match self.load(source, file, size)? {
                        Ok(loaded) if loaded.offer.start.index == index => {
                            found.loaded.push(loaded);
                        }
                        Ok(_) => damaged.push((file, LoadError::Foreign)),
                        Err(error) => damaged.push((file, error)),
                    }
                }
                FileName::Part(_, offer) if offer.start.index > newest => {
                    let held = verified(source, file, offer, size)?;
                    let first = found.parts.last().is_none_or(|(of, ..)| *of != group);
                    match first && held > 0 {
                        true => found.parts.push((group, offer, held)),
                        false => found.useless.push(file),
                    }
                }
                _ => found.useless.push(file),
            }
        }
        Ok(Gathered { found, damaged })
    }

    #[allow(clippy::type_complexity)]
    fn load(
        &mut self,
        source: &mut dyn FileSource,
        file: FileName,
        size: u64,
    ) -> Result<Result<Loaded<M>, LoadError>, GatherError> {
        let group = file.group();
        let loaded = Loading::new((self.machine)(group), self.sessions).map(|mut loading| {
            for_each_piece(source, file, size, |bytes| loading.feed(bytes))?
                .and_then(|()| loading.finish(group, self.config_hash))
                .map_or_else(|error| Ok(Err(error)), |loaded| Ok(Ok(loaded)))
        });
        let loaded = loaded.unwrap_or_else(|error| Ok(Err(error)))?;
        match loaded {
            Err(error) if error.is_refusal() => Err(GatherError::Refused { file, error }),
            other => Ok(other),
        }
    }
}

impl<M> Found<M> {
    /// Of a group's newest snapshot; 0: there is none.
    pub fn newest(&self, group: GroupId) -> Index {
        let mut all = self.loaded.iter();
        let newest = all.find(|loaded| loaded.header.group == group);
        newest.map_or(Index::ZERO, |loaded| loaded.header.index)
    }

    /// What the groups start from that the log or a snapshot names.
    pub fn starts(&self, log: &BTreeMap<GroupId, RecoveredGroup>) -> BTreeMap<GroupId, Start> {
        let headers = self.loaded.iter().map(|loaded| (loaded.header.group, &loaded.header));
        let headers: BTreeMap<_, _> = headers.collect();
        let named = log.keys().chain(headers.keys());
        let empty = RecoveredGroup::default();
        let start = |group: &GroupId| {
            let found = log.get(group).unwrap_or(&empty);
            (*group, meet(found, headers.get(group).copied()))
        };
        named.map(start).collect()
    }
}

/// How much of a part is whole.
fn verified(
    source: &mut dyn FileSource,
    file: FileName,
    offer: Offer,
    size: u64,
) -> Result<u64, GatherError> {
    let mut reader = SnapshotReader::new();
    let _ = for_each_piece(source, file, size.min(offer.size), |mut bytes| {
        while reader.next(&mut bytes)?.is_some() {}
        Ok(())
    })?;
    Ok(reader.verified())
}

fn for_each_piece(
    source: &mut dyn FileSource,
    file: FileName,
    size: u64,
    mut see: impl FnMut(&[u8]) -> Result<(), LoadError>,
) -> Result<Result<(), LoadError>, GatherError> {
    let mut at = 0;
    while at < size {
        let bytes = source
            .read(file, at, PIECE_BYTES.min(size - at))
            .map_err(|error| GatherError::Unreadable { file, error })?;
        at += bytes.len() as u64;
        if bytes.is_empty() {
            break;
        }
        if let Err(error) = see(&bytes) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}
