//! Which logs a directory holds, whose they are, and what the boot record remembers of them.

use std::path::{Path, PathBuf};

use super::Failure;
use crate::ids::Lsn;
use crate::runtime::segments::SegmentFiles;
use crate::wal::{BootRecord, LogShape, SegmentSource};

/// Bytes of a segment's front that hold its header.
const FRONT_BYTES: usize = 512;

/// One shard's log.
pub(super) struct LogDir {
    pub path: PathBuf,
    pub files: SegmentFiles,
    /// `None`: no segment has a sound header, the log is empty or all headers are gone.
    pub shape: Option<LogShape>,
    /// Durable position that the boot record remembers.
    pub mark: Lsn,
}

/// The logs below `dir`, in the order of their shards.
pub(super) fn logs(dir: &Path) -> Result<Vec<LogDir>, Failure> {
    let names = list(dir)?;
    let shards: Vec<_> = names.iter().filter(|path| shard_of(path).is_some()).collect();
    if shards.is_empty() {
        if names.iter().any(|path| path.extension().is_some_and(|ext| ext == "wal")) {
            let boot = dir.parent().map(boot_record).transpose()?.flatten();
            return Ok(vec![log(dir, boot.as_ref())?]);
        }
        let text = "holds no log: name a node's data directory, or a shard's directory in it";
        return Err(Failure::Usage(format!("{} {text}", dir.display())));
    }
    let boot = boot_record(dir)?;
    shards.into_iter().map(|path| log(path, boot.as_ref())).collect()
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let bad = |e: std::io::Error| Failure::Usage(format!("{}: {e}", dir.display()));
    let entries = std::fs::read_dir(dir).map_err(bad)?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(bad)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn shard_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix("shard-")?.parse().ok()
}

/// The node's boot record; `None` if there is no file.
pub(super) fn boot_record(dir: &Path) -> Result<Option<BootRecord>, Failure> {
    let path = dir.join("boot");
    if path.is_dir() {
        return Ok(None);
    }
    let bytes = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|e| Failure::Run(format!("{}: {e}", path.display())))?,
    };
    BootRecord::decode(&bytes).map_err(|e| Failure::Run(format!("{}: {e}", path.display())))
}

fn log(dir: &Path, boot: Option<&BootRecord>) -> Result<LogDir, Failure> {
    let bad = |e: std::io::Error| Failure::Run(format!("{}: {e}", dir.display()));
    let mut files = SegmentFiles::list(dir).map_err(bad)?;
    let mut shape = None;
    for segment in files.segments() {
        let front = files.read(segment, 0, FRONT_BYTES);
        shape = shape.or_else(|| LogShape::read(&front.ok()?));
    }
    let shard = shape.map(|shape| shape.config.shard).or_else(|| shard_of(dir)).unwrap_or(0);
    let mark = boot.and_then(|record| record.durable.get(shard as usize).copied());
    Ok(LogDir { path: dir.into(), files, shape, mark: mark.unwrap_or(Lsn::ZERO) })
}
