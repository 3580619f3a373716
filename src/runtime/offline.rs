//! Carries out a log's operations one after the other, with plain blocking calls: for a tool that
//! writes into the log of a node that does not run.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::cold::make_segment;
use super::disk::{disk_error, segment_path};
use crate::ids::{Lsn, Tick};
use crate::wal::{DiskDone, DiskError, DiskErrorKind, DiskOp, Space, Wal, WalError};

/// Writes and syncs everything that is staged; the end of the log. `segment_bytes`: of its files.
pub fn settle(wal: &mut Wal, dir: &Path, segment_bytes: u64) -> Result<Lsn, WalError> {
    let mut ops = Vec::new();
    let mut now = Tick(1);
    let end = wal.sync();
    while wal.durable() < end {
        wal.flush(now, &mut ops);
        if ops.is_empty() {
            return Err(stuck(wal));
        }
        for op in ops.drain(..) {
            let id = op.id();
            let result = carry_out(dir, segment_bytes, op).map_err(|error| disk_error(&error));
            let _ = wal.complete(now, id, result)?;
        }
        now = now.next();
    }
    Ok(end)
}

/// Nothing is to be done and not all is done: there is no room for another segment.
fn stuck(wal: &Wal) -> WalError {
    let message = match wal.space() {
        Space::NoSpace { message, .. } => message,
        Space::LimitReached | Space::Ok => "the log is at its limit".into(),
    };
    let error = DiskError { kind: DiskErrorKind::NoSpace, errno: 0, message };
    WalError::Poisoned { what: "preparing a segment", error }
}

fn carry_out(dir: &Path, segment_bytes: u64, op: DiskOp) -> io::Result<DiskDone> {
    match op {
        DiskOp::Prepare { segment, recycle, .. } => {
            let recycle = recycle.map(|old| segment_path(dir, old));
            make_segment(&segment_path(dir, segment), segment_bytes, recycle.as_deref())?;
            Ok(DiskDone::Prepared)
        }
        DiskOp::Write { segment, offset, buffer, len, .. } => {
            let file = OpenOptions::new().write(true).open(segment_path(dir, segment))?;
            file.write_all_at(&buffer.as_slice()[..len], offset)?;
            // Here every write is on stable storage when it is done.
            file.sync_all()?;
            Ok(DiskDone::Written { buffer })
        }
        DiskOp::Sync { segment, .. } => {
            File::open(segment_path(dir, segment))?.sync_all()?;
            Ok(DiskDone::Synced)
        }
        DiskOp::Read { segment, offset, len, .. } => {
            let mut bytes = vec![0; len];
            File::open(segment_path(dir, segment))?.read_exact_at(&mut bytes, offset)?;
            Ok(DiskDone::Read { bytes: bytes.into() })
        }
    }
}
