//! A node's data directory: lock, identity, boot record.
//!
//! ```text
//! data_dir/LOCK          held by the running process
//! data_dir/boot          two slots of the boot record (docs/formats.md)
//! data_dir/shard-000/    segments of shard 0's log
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;
use tracing::warn;

use crate::ids::{Incarnation, Lsn};
use crate::runtime::entropy::random;
use crate::wal::{
    BootError, BootRecord, BootState, LogIdentity, SLOT_BYTES, StartVerdict, next_start,
};

/// How long the lock of a process that has just ended may last, and the pause between two attempts.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Why a directory cannot be used.
#[derive(Debug, Error)]
pub enum DirectoryError {
    #[error("{path} is in use by another process; stop it, or use another data_dir")]
    InUse { path: PathBuf },
    #[error("{path}: {reason}; check the directory, its owner and its permissions")]
    Io { path: PathBuf, reason: String },
    #[error(
        "{path} was made with {found} shards, the configuration says {expected}: set \
         cluster.shards back; it is fixed once there is data"
    )]
    Shards { path: PathBuf, found: usize, expected: u32 },
    #[error("{path}: {error}")]
    Boot { path: PathBuf, error: BootError },
}

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |error| DirectoryError::Io { path: path.clone(), reason: error.to_string() }
}

/// An open, locked directory.
pub struct DataDir {
    path: PathBuf,
    /// Held open: the lock ends with it.
    lock: File,
    boot_file: File,
    boot: BootRecord,
    verdict: StartVerdict,
}

impl DataDir {
    /// Locks the directory (made if it is not there), checks that it is this node's, and records
    /// the start durably.
    pub fn open(
        path: &Path,
        cluster: u128,
        node: u32,
        shards: u32,
    ) -> Result<Self, DirectoryError> {
        let io = io_error(path);
        fs::create_dir_all(path).map_err(&io)?;
        let mut lock = lock(path)?;
        let boot_path = path.join("boot");
        let boot_file = open_private(&boot_path).map_err(&io)?;
        let mut slots = Vec::new();
        (&boot_file).read_to_end(&mut slots).map_err(&io)?;
        let bad = |error| DirectoryError::Boot { path: boot_path.clone(), error };
        let previous = BootRecord::decode(&slots).map_err(bad)?;
        let disk = match &previous {
            Some(record) => record.identity.disk,
            None => random().map_err(&io)?,
        };
        let identity = LogIdentity { cluster, node, disk };
        if let Some(record) = &previous {
            record.check_identity(&identity).map_err(bad)?;
        }
        // For people who wonder which process it is; the lock itself is the kernel's. Not before the
        // directory is known to be ours: one that is refused stays as it is.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        let (mut boot, verdict) = next_start(previous.as_ref(), identity, boot_id().map_err(&io)?);
        // No group enters RECOVERING yet, so nothing would ever clear the mark again.
        boot.recovering = false;
        if previous.is_some() && boot.durable.len() != shards as usize {
            let found = boot.durable.len();
            return Err(DirectoryError::Shards { path: path.into(), found, expected: shards });
        }
        boot.durable.resize(shards as usize, Lsn::ZERO);
        let directory = Self { path: path.into(), lock, boot_file, boot, verdict };
        directory.write().map_err(&io)?;
        sync_dir(path).map_err(&io)?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent).map_err(&io)?;
        }
        Ok(directory)
    }

    pub fn identity(&self) -> LogIdentity {
        self.boot.identity
    }

    pub fn incarnation(&self) -> Incarnation {
        self.boot.incarnation
    }

    /// The lock, to be held by whoever writes into the directory for as long as it may do so.
    pub fn lock(&self) -> std::io::Result<File> {
        self.lock.try_clone()
    }

    /// How the node ended last time.
    pub fn verdict(&self) -> StartVerdict {
        self.verdict
    }

    /// What the boot record remembers of a shard's log.
    pub fn durable_mark(&self, shard: u32) -> Lsn {
        self.boot.durable.get(shard as usize).copied().unwrap_or(Lsn::ZERO)
    }

    /// The directory of a shard's segments, made if it is not there.
    pub fn shard_dir(&self, shard: u32) -> Result<PathBuf, DirectoryError> {
        let path = self.path.join(format!("shard-{shard:03}"));
        fs::create_dir_all(&path).map_err(io_error(&path))?;
        sync_dir(&self.path).map_err(io_error(&path))?;
        Ok(path)
    }

    /// Records a clean end: every log is synced up to its end in `durable` (by shard), and nothing
    /// runs any more. Recovery takes a log that is shorter for damaged, not for torn.
    pub fn mark_clean(&mut self, durable: Vec<Lsn>) {
        self.boot = self.boot.next_write();
        self.boot.durable = durable;
        self.boot.state = BootState::Clean;
        if let Err(error) = self.write() {
            warn!(%error, "the clean end was not recorded; the next start treats it as a crash");
        }
    }

    fn write(&self) -> std::io::Result<()> {
        let (slot, bytes) = self.boot.encode().map_err(std::io::Error::other)?;
        self.boot_file.write_all_at(&bytes, slot * SLOT_BYTES as u64)?;
        self.boot_file.sync_all()
    }
}

fn open_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}

/// The rings of the process that had the directory hold the lock until their last write has ended,
/// which after kill -9 can be a little later than the process.
fn lock(path: &Path) -> Result<File, DirectoryError> {
    let file_path = path.join("LOCK");
    let file = open_private(&file_path).map_err(io_error(&file_path))?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(DirectoryError::InUse { path: path.into() });
            }
            Err(fs::TryLockError::Error(error)) => return Err(io_error(&file_path)(error)),
        }
    }
}

fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// The kernel's boot id: changes when the machine starts, not when a process does. A drill that
/// cuts power on a loop device sets it by `RINGRAFT_BOOT_ID` (32 hex digits).
fn boot_id() -> std::io::Result<u128> {
    let text = match std::env::var("RINGRAFT_BOOT_ID") {
        Ok(text) => text,
        Err(_) => fs::read_to_string("/proc/sys/kernel/random/boot_id")?,
    };
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_on_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path(), 1, 1, 1).unwrap();
        let second = DataDir::open(dir.path(), 1, 1, 1);
        assert!(matches!(second, Err(DirectoryError::InUse { .. })));
        drop(first);
        DataDir::open(dir.path(), 1, 1, 1).unwrap();
    }

    #[test]
    fn each_start_has_its_own_number_and_the_same_disk() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path(), 1, 1, 1).unwrap();
        let (disk, start) = (first.identity().disk, first.incarnation());
        assert_eq!(first.verdict(), StartVerdict::Fresh);
        drop(first);
        let mut second = DataDir::open(dir.path(), 1, 1, 1).unwrap();
        assert_eq!(second.identity().disk, disk);
        assert_eq!(second.incarnation(), Incarnation(start.0 + 1));
        assert_eq!(second.verdict(), StartVerdict::ProcessCrash);
        second.mark_clean(vec![Lsn(7)]);
        drop(second);
        let third = DataDir::open(dir.path(), 1, 1, 1).unwrap();
        assert_eq!(third.verdict(), StartVerdict::Clean);
        assert_eq!(third.durable_mark(0), Lsn(7));
        drop(third);
        let other = DataDir::open(dir.path(), 1, 1, 2).err().unwrap();
        assert!(matches!(other, DirectoryError::Shards { found: 1, expected: 2, .. }));
    }

    #[test]
    fn the_directory_of_another_node_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path(), 1, 1, 1).unwrap());
        for (cluster, node) in [(1, 2), (2, 1)] {
            let error = DataDir::open(dir.path(), cluster, node, 1).err().unwrap();
            assert!(matches!(error, DirectoryError::Boot { .. }), "{error}");
        }
    }
}
