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
use tracing::{info, warn};

use crate::ids::{Incarnation, Lsn, NodeId};
use crate::runtime::entropy::random;
use crate::wal::{
    BootError, BootRecord, BootState, LogIdentity, Opening, SLOT_BYTES, StartVerdict, Suspect,
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
    #[error("{path}: {error}")]
    Boot { path: PathBuf, error: BootError },
}

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |error| DirectoryError::Io { path: path.clone(), reason: error.to_string() }
}

/// Whose directory it is to be, and how its groups run.
#[derive(Clone, Debug)]
pub struct Owner {
    pub cluster: u128,
    pub node: u32,
    pub shards: u32,
    /// See [`Opening::voters`] and [`Opening::others`].
    pub voters: Vec<NodeId>,
    pub others: Vec<NodeId>,
    /// See [`Opening::unsynced`].
    pub unsynced: u64,
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
    pub fn open(path: &Path, owner: &Owner) -> Result<Self, DirectoryError> {
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
        let opening = opening(owner, disk).map_err(&io)?;
        let (boot, verdict) = BootRecord::open(previous.as_ref(), &opening).map_err(bad)?;
        // For people who wonder which process it is; the lock itself is the kernel's. Not before the
        // directory is known to be ours: one that is refused stays as it is.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        let directory = Self { path: path.into(), lock, boot_file, boot, verdict };
        directory.write().map_err(&io)?;
        sync_dir(path).map_err(&io)?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent).map_err(&io)?;
        }
        Ok(directory)
    }

    /// Locks the directory of a node that does not run, for a tool, and says whose groups its next
    /// start would put under suspicion. Nothing is written.
    pub fn open_stopped(path: &Path, owner: &Owner) -> Result<(Self, Suspect), DirectoryError> {
        let boot_path = path.join("boot");
        let io = io_error(&boot_path);
        let mut boot_file =
            OpenOptions::new().read(true).write(true).open(&boot_path).map_err(&io)?;
        let lock = lock(path)?;
        let mut slots = Vec::new();
        boot_file.read_to_end(&mut slots).map_err(&io)?;
        let bad = |error| DirectoryError::Boot { path: boot_path.clone(), error };
        let none = || io(std::io::ErrorKind::UnexpectedEof.into());
        let boot = BootRecord::decode(&slots).map_err(bad)?.ok_or_else(none)?;
        let opening = opening(owner, boot.identity.disk).map_err(&io)?;
        let (next, verdict) = BootRecord::open(Some(&boot), &opening).map_err(bad)?;
        Ok((Self { path: path.into(), lock, boot_file, boot, verdict }, next.recovering))
    }

    /// Records that an operator goes on without what is missing: the logs end, synced, at `durable`,
    /// what they hold is the truth, and the disks of `lost` never come back. `suspect`: groups that
    /// were left alone and still have to get their memory back.
    pub fn mark_accepted(
        &mut self,
        durable: Vec<Lsn>,
        epoch: u32,
        lost: &[NodeId],
        suspect: Suspect,
    ) -> std::io::Result<()> {
        self.rewrite(|boot| {
            boot.durable = durable;
            boot.epoch = boot.epoch.max(epoch);
            boot.recovering = suspect;
            boot.state = BootState::Clean;
            lost.iter().for_each(|&node| boot.fence_disk(node));
        })
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

    /// Highest recovery epoch that an operator has begun here.
    pub fn epoch(&self) -> u32 {
        self.boot.epoch
    }

    /// The voters of the groups' first configuration, ascending; none if this node joined later.
    pub fn first_voters(&self) -> Vec<NodeId> {
        self.boot.voters.iter().map(|known| known.node).collect()
    }

    /// Every other node that it has ever been told of, ascending, members or not.
    pub fn other_nodes(&self) -> Vec<NodeId> {
        let all = self.boot.voters.iter().chain(&self.boot.others).map(|known| known.node);
        let mut others: Vec<_> = all.filter(|node| node.0 != self.boot.identity.node).collect();
        others.sort_unstable();
        others.dedup();
        others
    }

    /// See [`BootRecord::check_nodes`].
    pub fn check_nodes(
        &self,
        listed: &[NodeId],
        members: &[NodeId],
        placed: &[NodeId],
    ) -> Result<(), DirectoryError> {
        let path = self.path.join("boot");
        let checked = self.boot.check_nodes(listed, members, placed);
        checked.map_err(|error| DirectoryError::Boot { path, error })
    }

    /// Whether it may come at all; whether with that disk, [`DataDir::pin_disk`] says.
    pub fn knows(&self, node: NodeId) -> bool {
        self.boot.knows(node)
    }

    /// A group has taken a node in. It is written down at once, though it may never come: when the
    /// entry that made it a member is damaged, this is what says that there may be one more
    /// (`server/choice.rs`). Its disk is added when it comes.
    pub fn admit(&mut self, node: NodeId) {
        if self.boot.knows(node) {
            return;
        }
        let mut room = true;
        if let Err(error) = self.rewrite(|boot| room = boot.admit(node)) {
            warn!(%error, node = node.0, "a new member was not recorded");
            // It is let in all the same, and recorded with its disk.
            room = self.boot.admit(node);
        }
        if !room {
            warn!(node = node.0, "no room for another node; replace this directory");
        }
    }

    /// How the node ended last time.
    pub fn verdict(&self) -> StartVerdict {
        self.verdict
    }

    /// Whose groups start RECOVERING.
    pub fn suspect(&self) -> Suspect {
        self.boot.recovering
    }

    /// Records that bytes which were durable are damaged, before anybody hears of this start: also
    /// the next one must not trust what the groups remember (durability.md R3).
    pub fn mark_rot(&mut self) -> std::io::Result<()> {
        self.rewrite(|boot| boot.recovering = Suspect::Everything)
    }

    /// Records that every group has its memory back. If that fails they start RECOVERING once more.
    pub fn mark_recovered(&mut self) {
        if self.boot.recovering == Suspect::Nothing {
            return;
        }
        match self.rewrite(|boot| boot.recovering = Suspect::Nothing) {
            Ok(()) => info!("all groups of this node have recovered"),
            Err(error) => warn!(%error, "that all groups have recovered was not recorded"),
        }
    }

    /// Whether a peer may come with this disk: durably the first one it was ever seen with.
    pub fn pin_disk(&mut self, node: NodeId, disk: u128) -> bool {
        let mut boot = self.boot.next_write();
        match boot.pin_disk(node, disk) {
            None => false,
            Some(false) => true,
            Some(true) => {
                let before = std::mem::replace(&mut self.boot, boot);
                let written = self.write();
                if let Err(error) = &written {
                    warn!(%error, node = node.0, "the disk of a peer was not recorded");
                    self.boot = before;
                }
                written.is_ok()
            }
        }
    }

    fn rewrite(&mut self, change: impl FnOnce(&mut BootRecord)) -> std::io::Result<()> {
        let before = self.boot.clone();
        self.boot = self.boot.next_write();
        change(&mut self.boot);
        let written = self.write();
        if written.is_err() {
            // The next attempt goes to the same slot: the other one holds the last good record.
            self.boot = before;
        }
        written
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
        let written = self.rewrite(|boot| {
            boot.durable = durable;
            boot.state = BootState::Clean;
        });
        if let Err(error) = written {
            warn!(%error, "the clean end was not recorded; the next start treats it as a crash");
        }
    }

    fn write(&self) -> std::io::Result<()> {
        let (slot, bytes) = self.boot.encode().map_err(std::io::Error::other)?;
        self.boot_file.write_all_at(&bytes, slot * SLOT_BYTES as u64)?;
        self.boot_file.sync_all()
    }
}

fn opening(owner: &Owner, disk: u128) -> std::io::Result<Opening> {
    Ok(Opening {
        identity: LogIdentity { cluster: owner.cluster, node: owner.node, disk },
        boot: boot_id()?,
        shards: owner.shards,
        voters: owner.voters.clone(),
        others: owner.others.clone(),
        unsynced: owner.unsynced,
    })
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

    fn owner(cluster: u128, node: u32, shards: u32) -> Owner {
        let voters = [1, 2, 3].map(NodeId).to_vec();
        Owner { cluster, node, shards, voters, others: Vec::new(), unsynced: 0 }
    }

    fn open(dir: &tempfile::TempDir) -> DataDir {
        DataDir::open(dir.path(), &owner(1, 1, 1)).unwrap()
    }

    #[test]
    fn a_second_process_on_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(&dir);
        let second = DataDir::open(dir.path(), &owner(1, 1, 1));
        assert!(matches!(second, Err(DirectoryError::InUse { .. })));
        drop(first);
        open(&dir);
    }

    #[test]
    fn each_start_has_its_own_number_and_the_same_disk() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(&dir);
        let (disk, start) = (first.identity().disk, first.incarnation());
        assert_eq!(first.verdict(), StartVerdict::Fresh);
        drop(first);
        let mut second = open(&dir);
        assert_eq!(second.identity().disk, disk);
        assert_eq!(second.incarnation(), Incarnation(start.0 + 1));
        assert_eq!(second.verdict(), StartVerdict::ProcessCrash);
        second.mark_clean(vec![Lsn(7)]);
        drop(second);
        let third = open(&dir);
        assert_eq!(third.verdict(), StartVerdict::Clean);
        assert_eq!(third.durable_mark(0), Lsn(7));
    }

    #[test]
    fn the_directory_of_another_node_is_refused_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(&dir));
        let before = fs::read(dir.path().join("boot")).unwrap();
        for stranger in [owner(1, 2, 1), owner(2, 1, 1), owner(1, 1, 2)] {
            let error = DataDir::open(dir.path(), &stranger).err().unwrap();
            assert!(matches!(error, DirectoryError::Boot { .. }), "{error}");
            assert_eq!(fs::read(dir.path().join("boot")).unwrap(), before);
        }
    }

    /// The list of the file is where nodes are found; who voted first is in the record.
    #[test]
    fn another_list_of_nodes_does_not_change_who_voted_first() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(&dir));
        let others = Owner { voters: [1, 2].map(NodeId).to_vec(), ..owner(1, 1, 1) };
        let mut second = DataDir::open(dir.path(), &others).unwrap();
        assert_eq!(second.first_voters(), [1, 2, 3].map(NodeId));
        assert!(!second.pin_disk(NodeId(4), 5) && !second.knows(NodeId(4)));
        second.admit(NodeId(4));
        assert!(second.pin_disk(NodeId(4), 5) && !second.pin_disk(NodeId(4), 6));
    }

    /// Node 4 was taken in while it could not be reached from here, and then this node is killed.
    #[test]
    fn a_member_that_never_came_is_remembered_and_may_come_later_with_any_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = open(&dir);
        first.admit(NodeId(4));
        first.admit(NodeId(4));
        drop(first);
        let mut second = open(&dir);
        assert_eq!(second.other_nodes(), [2, 3, 4].map(NodeId));
        assert!(second.pin_disk(NodeId(4), 5) && !second.pin_disk(NodeId(4), 6));
    }

    #[test]
    fn suspicion_and_the_disks_of_peers_outlive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = open(&dir);
        first.mark_rot().unwrap();
        assert!(first.pin_disk(NodeId(2), 70));
        first.mark_clean(vec![Lsn(7)]);
        drop(first);
        let mut second = open(&dir);
        assert_eq!(second.suspect(), Suspect::Everything, "a clean stop gives no memory back");
        assert!(second.pin_disk(NodeId(2), 70) && !second.pin_disk(NodeId(2), 71));
        second.mark_recovered();
        drop(second);
        let third = open(&dir);
        assert_eq!(
            (third.suspect(), third.verdict()),
            (Suspect::Nothing, StartVerdict::ProcessCrash)
        );
    }
}
