//! The files of our log as the runtime keeps them: open for direct, synced writes; new ones made by
//! a thread of their own, so that zeroing never lies on the way of a commit.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use ringraft::wal::{AlignedBuf, OpId, SegmentNo};

/// Zeros are written in pieces of this size.
const ZEROS_BYTES: usize = 1 << 20;

/// A segment to be made, by renaming `recycle` if there is one.
struct Order {
    op: OpId,
    segment: SegmentNo,
    recycle: Option<SegmentNo>,
}

/// A segment that is ready.
struct Made {
    op: OpId,
    segment: SegmentNo,
    recycled: Option<SegmentNo>,
    file: io::Result<File>,
}

/// Open segments, and the thread that makes more.
pub struct Segments {
    open: BTreeMap<SegmentNo, File>,
    orders: Option<Sender<Order>>,
    made: Receiver<Made>,
    under_way: usize,
    maker: Option<JoinHandle<()>>,
}

impl Segments {
    /// No files yet, in `dir`.
    pub fn new(dir: &Path, segment_bytes: u64) -> Self {
        let (orders, incoming) = channel::<Order>();
        let (outgoing, made) = channel();
        let dir = dir.to_path_buf();
        let maker = std::thread::spawn(move || {
            for Order { op, segment, recycle } in incoming {
                let file = make(&dir, segment_bytes, segment, recycle);
                if outgoing.send(Made { op, segment, recycled: recycle, file }).is_err() {
                    break;
                }
            }
        });
        Self { open: BTreeMap::new(), orders: Some(orders), made, under_way: 0, maker: Some(maker) }
    }

    /// Has a segment made; [`Segments::poll`] or [`Segments::wait`] tells when it is there.
    pub fn prepare(&mut self, op: OpId, segment: SegmentNo, recycle: Option<SegmentNo>) {
        self.under_way += 1;
        let orders = self.orders.as_ref().expect("taken only by drop");
        orders.send(Order { op, segment, recycle }).expect("the maker lives as long as this");
    }

    /// A segment that has become ready, if any. Costs a look at a number when none is being made.
    pub fn poll(&mut self) -> Option<OpId> {
        if self.under_way == 0 {
            return None;
        }
        let made = self.made.try_recv().ok()?;
        Some(self.take_in(made))
    }

    /// Blocks until the next segment is ready. None when none is being made.
    pub fn wait(&mut self) -> Option<OpId> {
        if self.under_way == 0 {
            return None;
        }
        let made = self.made.recv().expect("the maker lives as long as this");
        Some(self.take_in(made))
    }

    fn take_in(&mut self, made: Made) -> OpId {
        self.under_way -= 1;
        if let Some(old) = made.recycled {
            self.open.remove(&old);
        }
        self.open.insert(made.segment, made.file.expect("the scratch disk has room"));
        made.op
    }

    /// Writes through to the medium and returns when it is there.
    pub fn write(&self, segment: SegmentNo, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.open[&segment].write_all_at(bytes, offset)
    }

    /// The descriptor, valid until the segment is recycled.
    pub fn descriptor(&self, segment: SegmentNo) -> RawFd {
        self.open[&segment].as_raw_fd()
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(maker) = self.maker.take() {
            maker.join().expect("the maker does not panic");
        }
    }
}

/// Full size on the disk and under its name when this returns.
fn make(
    dir: &Path,
    bytes: u64,
    segment: SegmentNo,
    recycle: Option<SegmentNo>,
) -> io::Result<File> {
    let path = path(dir, segment);
    match recycle {
        Some(old) => fs::rename(self::path(dir, old), &path)?,
        None => zeros(&path, bytes)?,
    }
    File::open(dir)?.sync_all()?;
    open(&path, libc::O_DIRECT | libc::O_DSYNC)
}

fn zeros(path: &Path, bytes: u64) -> io::Result<()> {
    let file = open(path, libc::O_DIRECT)?;
    let mut zeros = AlignedBuf::with_capacity(ZEROS_BYTES);
    zeros.pad_to(ZEROS_BYTES);
    for at in (0..bytes).step_by(ZEROS_BYTES) {
        let len = (bytes - at).min(ZEROS_BYTES as u64) as usize;
        file.write_all_at(&zeros.as_slice()[..len], at)?;
    }
    file.sync_all()
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path)
}

fn path(dir: &Path, segment: SegmentNo) -> PathBuf {
    dir.join(format!("{:016x}.wal", segment.0))
}
