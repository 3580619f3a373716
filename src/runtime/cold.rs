//! The cold paths of a node on executors of their own: segments are made and pre-written on one, the
//! files of snapshots written and read on another, so that the shards' loops never wait for an
//! allocation, a rename or a directory, and segments not for snapshots.
//!
//! Jobs come by a bounded queue and an eventfd; what became of them goes back the same way, by the
//! shard's queue and its ring's wake-up.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;
use glommio::io::BufferedFile;
use glommio::{ExecutorJoinHandle, GlommioError, LocalExecutorBuilder, Placement};

use super::disk::disk_error;
use super::files;
use super::ring::Waker;
use crate::shard::snapshots::{FileDone, FileOp, FileOpId};
use crate::wal::{AlignedBuf, DiskError, OpId};

/// Zeros are written in pieces of this size, one after the other: never-written blocks would make
/// every later sync 60 % slower, and a larger piece would delay the flushes beside it.
const PIECE_BYTES: usize = 1 << 20;
const JOBS_MAX: usize = 1024;
/// Memory that the executor registers with the kernel.
const EXECUTOR_BYTES: usize = 256 << 10;

/// A segment to make.
pub struct PrepareJob {
    pub op: OpId,
    pub path: PathBuf,
    pub bytes: u64,
    /// A file whose content is no longer needed, to be renamed instead of writing a new one.
    pub recycle: Option<PathBuf>,
    pub reply: Arc<ColdReplies>,
}

/// Something to do with a file of a snapshot.
pub struct FileJob {
    pub dir: Arc<Path>,
    pub op: FileOp,
    pub reply: Arc<ColdReplies>,
}

/// What a cold executor does.
pub enum Job {
    Prepare(PrepareJob),
    File(FileJob),
}

/// What became of a job.
pub enum ColdReply {
    Prepared(OpId, Result<(), DiskError>),
    File(FileOpId, Result<FileDone, DiskError>),
}

/// Where a shard finds what became of its jobs.
pub struct ColdReplies {
    queue: ArrayQueue<ColdReply>,
    waker: Waker,
}

impl ColdReplies {
    pub fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Self { queue: ArrayQueue::new(JOBS_MAX), waker })
    }

    pub fn pop(&self) -> Option<ColdReply> {
        self.queue.pop()
    }

    fn push(&self, reply: ColdReply) {
        assert!(self.queue.push(reply).is_ok(), "a reply for each job fits");
        self.waker.wake();
    }
}

struct Shared {
    jobs: ArrayQueue<Job>,
    stop: AtomicBool,
    waker: Waker,
}

/// The executor's handle; stopped and joined when it is dropped.
pub struct Cold {
    shared: Arc<Shared>,
    thread: Option<ExecutorJoinHandle<()>>,
}

impl Cold {
    /// Starts the executor's thread.
    pub fn start(name: &str) -> io::Result<Self> {
        let jobs = ArrayQueue::new(JOBS_MAX);
        let shared = Arc::new(Shared { jobs, stop: AtomicBool::new(false), waker: Waker::new()? });
        let theirs = shared.clone();
        let thread = LocalExecutorBuilder::new(Placement::Unbound)
            .name(name)
            .io_memory(EXECUTOR_BYTES)
            .ring_depth(16)
            .spawn(move || run(theirs))
            .map_err(to_io)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues a job. Shards ask for so few at a time that the queue cannot be full.
    pub fn submit(&self, job: Job) {
        assert!(self.shared.jobs.push(job).is_ok(), "more than {JOBS_MAX} jobs asked for");
        self.shared.waker.wake();
    }
}

impl Drop for Cold {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(shared: Arc<Shared>) {
    let duplicate = shared.waker.descriptor().expect("a descriptor for the executor's own use");
    let raw = std::os::fd::IntoRawFd::into_raw_fd(duplicate);
    // SAFETY: the descriptor was just duplicated and given up; the file owns it from here on.
    let events = unsafe { BufferedFile::from_raw_fd(raw) };
    while !shared.stop.load(Ordering::Acquire) {
        while let Some(job) = shared.jobs.pop() {
            glommio::executor().spawn_blocking(move || carry_out(&job)).await;
            if shared.stop.load(Ordering::Acquire) {
                break;
            }
        }
        if events.read_at(0, 8).await.is_err() {
            break;
        }
    }
    let _ = events.close().await;
}

fn carry_out(job: &Job) {
    match job {
        Job::Prepare(job) => prepare(job),
        Job::File(FileJob { dir, op, reply }) => {
            reply.push(ColdReply::File(op.id(), files::carry_out(dir, op)));
        }
    }
}

fn prepare(job: &PrepareJob) {
    let made = make_segment(&job.path, job.bytes, job.recycle.as_deref());
    let result = made.map_err(|error| disk_error(&error));
    if result.is_err() {
        let _ = fs::remove_file(temporary(&job.path));
    }
    job.reply.push(ColdReply::Prepared(job.op, result));
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("making")
}

/// Makes the file exist under its name for good: content first, then the name, then the directory.
/// Blocking calls on a thread of the executor's pool: through the executor's own `DmaFile` the
/// writes are polled for, which costs a fifth of a core for each node that grows its log.
pub(super) fn make_segment(path: &Path, bytes: u64, recycle: Option<&Path>) -> io::Result<()> {
    let from = match recycle {
        Some(old) => {
            fit(old, bytes)?;
            old.to_owned()
        }
        None => {
            let path = temporary(path);
            write_zeros(&path, bytes)?;
            path
        }
    };
    fs::rename(&from, path)?;
    // A killed process may have left writes to a file that is used again in the disk's cache.
    File::open(path)?.sync_all()?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// A file that a crash cut short gets its full size before it is used again.
fn fit(path: &Path, bytes: u64) -> io::Result<()> {
    if fs::metadata(path)?.len() == bytes {
        return Ok(());
    }
    write_zeros(path, bytes)
}

fn write_zeros(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
        .open(path)?;
    // SAFETY: no pointers; the descriptor is open. A full disk is found out here, before a byte is
    // written.
    let reserved = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) };
    if reserved != 0 {
        return Err(io::Error::from_raw_os_error(reserved));
    }
    let mut zeros = AlignedBuf::with_capacity(PIECE_BYTES);
    zeros.pad_to(PIECE_BYTES);
    let mut at = 0;
    while at < bytes {
        let piece = (bytes - at).min(PIECE_BYTES as u64) as usize;
        file.write_all_at(&zeros.as_slice()[..piece], at)?;
        at += piece as u64;
    }
    file.sync_all()
}

/// Keeps the system's error number, which tells a full disk from a broken one.
fn to_io<T>(error: GlommioError<T>) -> io::Error {
    match error {
        GlommioError::EnhancedIoError { source, .. } => source,
        other => other.into(),
    }
}
