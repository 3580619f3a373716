//! Opens a shard's log: finds its segments, reads them, and makes it ready to go on.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use tracing::{info, warn};

use super::StartError;
use crate::ids::{GroupId, Lsn};
use crate::runtime::disk::{disk_error, segment_of, segment_path};
use crate::runtime::entropy::random;
use crate::shard;
use crate::wal::{
    DiskError, LogIdentity, SegmentNo, SegmentSource, Verdict, Wal, WalConfig, WalError,
    recover_from,
};

/// The log, and what its groups start from.
pub fn open(
    config: WalConfig,
    identity: LogIdentity,
    dir: &Path,
    mark: Lsn,
    belongs: impl Fn(GroupId) -> bool,
) -> Result<(Wal, shard::Recovered), StartError> {
    let shard = config.shard;
    let mut files = Files::list(dir).map_err(StartError::Kernel)?;
    let bad = |error| StartError::Log { shard, error };
    let mut recovered = recover_from(config, identity, &mut files, mark).map_err(bad)?;
    match &recovered.verdict {
        Verdict::Empty => {}
        Verdict::Rot { valid, durable, .. } => {
            return Err(StartError::Rot { shard, valid: valid.0, durable: durable.0 });
        }
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
    Ok((Wal::resume(config, identity, epoch, &mut recovered), groups))
}

/// The segment files of a directory, read with plain reads: this happens once, before the loop.
struct Files {
    dir: PathBuf,
    paths: BTreeMap<SegmentNo, PathBuf>,
    open: Option<(SegmentNo, File)>,
}

impl Files {
    /// Leftovers of a file that was being made are removed: nothing names them.
    fn list(dir: &Path) -> std::io::Result<Self> {
        let mut paths = BTreeMap::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ext| ext == "making") {
                warn!(path = %path.display(), "removing an unfinished segment");
                std::fs::remove_file(&path)?;
            } else if let Some(segment) = segment_of(&path) {
                paths.insert(segment, path);
            }
        }
        Ok(Self { dir: dir.into(), paths, open: None })
    }

    fn file(&mut self, segment: SegmentNo) -> std::io::Result<&File> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            self.open = Some((segment, File::open(segment_path(&self.dir, segment))?));
        }
        Ok(&self.open.as_ref().expect("opened above").1)
    }
}

impl SegmentSource for Files {
    fn segments(&self) -> Vec<SegmentNo> {
        self.paths.keys().copied().collect()
    }

    fn read(&mut self, segment: SegmentNo, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        let file = self.file(segment).map_err(|error| disk_error(&error))?;
        let mut buffer = BytesMut::zeroed(len);
        let mut done = 0;
        while done < len {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) => return Err(disk_error(&error)),
            }
        }
        buffer.truncate(done);
        Ok(buffer.freeze())
    }
}
