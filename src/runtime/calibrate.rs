//! What the machine itself costs, measured in the minute and on the disk of the run: the floor under
//! every latency that is reported.
//!
//! A durable commit with three nodes cannot beat one durable write plus two round trips (client to
//! leader, leader to follower). Shared machines wander by a factor of two, so a latency means
//! something only as a ratio to the floor of the same run.
//!
//! ```text
//! floor = D + 2R   D one 4 KiB O_DIRECT|O_DSYNC write (O_DIRECT alone for wal_sync = false)
//!                  R one loopback round trip of 64 bytes
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use serde::Serialize;
use thiserror::Error;

/// Bytes of one measured write: the block of the WAL.
const WRITE_BYTES: usize = 4096;
/// Bytes of the file that is written over and over. Large enough that no two neighbouring writes
/// fall on one block, small enough to be zeroed in milliseconds.
const FILE_BYTES: usize = 1 << 20;
/// Bytes of a ping and of its answer.
const PING_BYTES: usize = 64;
/// Operations done before any is counted: the first ones find cold caches and parked threads.
const WARM_UP: usize = 16;
/// A median of fewer operations says nothing, however small the budget.
const SAMPLES_MIN: usize = 32;

/// Medians of the raw operations, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Calibration {
    /// One 4 KiB `O_DIRECT` write on blocks written before.
    pub write_us_p50: f64,
    /// One 4 KiB `O_DIRECT|O_DSYNC` write on blocks written before.
    pub dsync_write_us_p50: f64,
    /// The same, 99th percentile. Printed beside the table; not part of the JSON object.
    #[serde(skip)]
    pub dsync_write_us_p99: f64,
    /// 64 bytes to another thread over loopback TCP and back.
    pub rtt_us_p50: f64,
}

impl Calibration {
    /// The least a commit can cost with the given `wal_sync`: one write and two round trips.
    pub fn floor_us(&self, wal_sync: bool) -> f64 {
        let write = if wal_sync { self.dsync_write_us_p50 } else { self.write_us_p50 };
        write + 2.0 * self.rtt_us_p50
    }
}

/// Why the machine could not be measured.
#[derive(Debug, Error)]
pub enum CalibrateError {
    #[error("cannot open {path} for direct I/O: {source} (choose a directory on ext4 or xfs)")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source} (is the disk full or failing?)")]
    Disk { path: PathBuf, source: io::Error },
    #[error("io_uring is not available: {0} (run `ringraft doctor`)")]
    Ring(io::Error),
    #[error("loopback TCP failed: {0}")]
    Loopback(io::Error),
}

/// Measures raw writes in `dir` and the loopback round trip, in about `budget` altogether. Leaves
/// nothing behind in `dir`.
pub fn calibrate(dir: &Path, budget: Duration) -> Result<Calibration, CalibrateError> {
    let share = budget / 3;
    let scratch = Scratch::create(dir)?;
    let mut plain = time_writes(&scratch, 0, share)?;
    let mut synced = time_writes(&scratch, libc::O_DSYNC, share)?;
    let mut pings = time_pings(share).map_err(CalibrateError::Loopback)?;
    Ok(Calibration {
        write_us_p50: percentile_us(&mut plain, 50),
        dsync_write_us_p50: percentile_us(&mut synced, 50),
        dsync_write_us_p99: percentile_us(&mut synced, 99),
        rtt_us_p50: percentile_us(&mut pings, 50),
    })
}

/// A block in memory, aligned as `O_DIRECT` wants it.
#[repr(C, align(4096))]
struct Page([u8; WRITE_BYTES]);

/// A file full of zeros that vanishes with this value.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn create(dir: &Path) -> Result<Self, CalibrateError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!(".calibrate-{}-{serial}", std::process::id()));
        let scratch = Self { path };
        let disk = |source| CalibrateError::Disk { path: scratch.path.clone(), source };
        let mut file = scratch.open(0)?;
        // Blocks that were never written cost 60 % more, because their first write changes the
        // file's extents: the WAL never does that on its hot path, so neither does its measure.
        let page = Box::new(Page([0; WRITE_BYTES]));
        for _ in 0..FILE_BYTES / WRITE_BYTES {
            file.write_all(&page.0).map_err(disk)?;
        }
        file.sync_all().map_err(disk)?;
        Ok(scratch)
    }

    fn open(&self, flags: i32) -> Result<File, CalibrateError> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_DIRECT | flags)
            .open(&self.path)
            .map_err(|source| CalibrateError::Open { path: self.path.clone(), source })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing to be done about a failure: the next run uses another name.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Nanoseconds of each write of one block, one at a time.
fn time_writes(
    scratch: &Scratch,
    flags: i32,
    budget: Duration,
) -> Result<Vec<u64>, CalibrateError> {
    let file = scratch.open(flags)?;
    let page = Box::new(Page([0x5a; WRITE_BYTES]));
    let mut ring = IoUring::new(2).map_err(CalibrateError::Ring)?;
    let mut offset = 0;
    sample(budget, || {
        let written = write_block(&mut ring, &file, &page, offset);
        offset = (offset + WRITE_BYTES as u64) % FILE_BYTES as u64;
        written
    })
    .map_err(|source| CalibrateError::Disk { path: scratch.path.clone(), source })
}

/// Writes `page` at `offset` and waits until it is done.
fn write_block(ring: &mut IoUring, file: &File, page: &Page, offset: u64) -> io::Result<()> {
    let fd = types::Fd(file.as_raw_fd());
    let write = opcode::Write::new(fd, page.0.as_ptr(), WRITE_BYTES as u32).offset(offset).build();
    // SAFETY: the kernel reads `page` and `file` only until the completion of this write. Both are
    // borrowed for the whole call, and the call returns (or panics) only after
    // `wait_for_completion` has taken that completion off a ring that carries nothing else.
    unsafe { ring.submission().push(&write) }.expect("the ring is empty between two writes");
    let done = wait_for_completion(ring);
    match done {
        n if n < 0 => Err(io::Error::from_raw_os_error(-n)),
        n if n as usize != WRITE_BYTES => Err(io::ErrorKind::WriteZero.into()),
        _ => Ok(()),
    }
}

/// Result of the one operation in flight. Must not return before there is one: the caller's buffer
/// is lent to the kernel. A wait that a signal interrupts is repeated; any other failure of the
/// wait leaves the buffer's owner unknown and ends the process.
fn wait_for_completion(ring: &mut IoUring) -> i32 {
    loop {
        let waited = ring.submit_and_wait(1);
        if let Some(entry) = ring.completion().next() {
            return entry.result();
        }
        match waited {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => std::process::abort(),
        }
    }
}

/// Nanoseconds of each round trip to a thread that echoes.
fn time_pings(budget: Duration) -> io::Result<Vec<u64>> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let echo = thread::Builder::new().name("calibrate-echo".into()).spawn(move || {
        let (mut peer, _) = listener.accept()?;
        peer.set_nodelay(true)?;
        let mut ping = [0; PING_BYTES];
        while peer.read_exact(&mut ping).is_ok() {
            peer.write_all(&ping)?;
        }
        io::Result::Ok(())
    })?;
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let mut ping = [7; PING_BYTES];
    let times = sample(budget, || {
        socket.write_all(&ping)?;
        socket.read_exact(&mut ping)
    });
    // Closing the socket ends the echo.
    drop(socket);
    let _ = echo.join();
    times
}

/// Runs `operation` until `budget` is used up; the nanoseconds each run took, after a warm-up.
fn sample(budget: Duration, mut operation: impl FnMut() -> io::Result<()>) -> io::Result<Vec<u64>> {
    for _ in 0..WARM_UP {
        operation()?;
    }
    let start = Instant::now();
    let mut times = Vec::with_capacity(1 << 14);
    while times.len() < SAMPLES_MIN || start.elapsed() < budget {
        let before = Instant::now();
        operation()?;
        times.push(before.elapsed().as_nanos() as u64);
    }
    Ok(times)
}

/// The `percent`-th percentile (nearest rank) of nanoseconds, in microseconds.
fn percentile_us(times: &mut [u64], percent: usize) -> f64 {
    assert!(!times.is_empty() && percent <= 100);
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times[rank - 1] as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_budget_still_gives_figures_and_leaves_no_file() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let c = calibrate(dir.path(), Duration::from_millis(3)).unwrap();
        assert!(c.write_us_p50 > 0.0 && c.rtt_us_p50 > 0.0);
        assert!(c.dsync_write_us_p50 > 0.0);
        assert!(c.dsync_write_us_p99 >= c.dsync_write_us_p50);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = calibrate(Path::new("/nonexistent/here"), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/here"), "{error}");
    }

    #[test]
    fn the_floor_takes_the_write_that_the_profile_waits_for() {
        let c = Calibration {
            write_us_p50: 30.0,
            dsync_write_us_p50: 90.0,
            dsync_write_us_p99: 200.0,
            rtt_us_p50: 35.0,
        };
        assert_eq!(c.floor_us(true), 160.0);
        assert_eq!(c.floor_us(false), 100.0);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut times: Vec<u64> = (1..=100).rev().map(|n| n * 1000).collect();
        assert_eq!(percentile_us(&mut times, 50), 50.0);
        assert_eq!(percentile_us(&mut times, 99), 99.0);
        assert_eq!(percentile_us(&mut [7000], 50), 7.0);
    }
}
