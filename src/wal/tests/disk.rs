//! A disk of 512-byte sectors. A write is safe once it was written through O_DSYNC or a later sync
//! has completed; before that each of its sectors may or may not be there after a power cut.

use std::collections::BTreeMap;

use bytes::Bytes;

pub use crate::rng::Rng;
use crate::wal::{AlignedBuf, DiskDone, DiskError, DiskErrorKind, DiskOp, OpId, SegmentNo};
use crate::wal::{SegmentSource, WalConfig};

pub const SECTOR: usize = 512;
/// Names of writes whose process is gone begin here.
const LEFT_BEHIND: OpId = OpId(u64::MAX / 2);

/// The files after a crash.
#[derive(Clone, Default)]
pub struct Image(pub BTreeMap<SegmentNo, Vec<u8>>);

impl SegmentSource for Image {
    fn segments(&self) -> Vec<SegmentNo> {
        self.0.keys().copied().collect()
    }

    fn read(&mut self, segment: SegmentNo, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        let file = &self.0[&segment];
        let start = (offset as usize).min(file.len());
        let end = (start + len).min(file.len());
        Ok(Bytes::copy_from_slice(&file[start..end]))
    }
}

/// A write that a power cut may still undo, wholly or by sectors.
pub struct Unsafe {
    op: OpId,
    segment: SegmentNo,
    offset: usize,
    pub data: Vec<u8>,
    pub completed: bool,
    sync: bool,
}

pub struct Disk {
    config: WalConfig,
    safe: BTreeMap<SegmentNo, Vec<u8>>,
    pub at_risk: Vec<Unsafe>,
    /// Issued and not completed.
    pub ops: Vec<DiskOp>,
    /// What each sync in flight covers.
    covers: BTreeMap<OpId, Vec<OpId>>,
    /// False: a disk that forgets what O_DSYNC and fdatasync mean (the negative control).
    pub honest: bool,
    pub syncs: u64,
}

impl Disk {
    pub fn new(config: WalConfig) -> Self {
        Self::from_image(config, Image::default())
    }

    /// A disk that starts with `image`, all of it safe.
    pub fn from_image(config: WalConfig, image: Image) -> Self {
        let (at_risk, ops, covers) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { config, safe: image.0, at_risk, ops, covers, honest: true, syncs: 0 }
    }

    /// Takes operations in; nothing completes by itself.
    pub fn issue(&mut self, ops: &mut Vec<DiskOp>) {
        for op in ops.drain(..) {
            match &op {
                DiskOp::Write { op, segment, offset, buffer, len, sync } => {
                    let (offset, len, sync) = (*offset as usize, *len, *sync);
                    let file = &self.safe[segment];
                    assert!(offset + len <= file.len(), "writes stay inside the segment");
                    assert!(offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR));
                    let data = buffer.as_slice()[..len].to_vec();
                    let (op, segment, completed) = (*op, *segment, false);
                    self.at_risk.push(Unsafe { op, segment, offset, data, completed, sync });
                }
                DiskOp::Sync { op, segment } => {
                    let covered = |w: &&Unsafe| w.segment == *segment && w.completed;
                    let covered = self.at_risk.iter().filter(covered).map(|w| w.op).collect();
                    self.covers.insert(*op, covered);
                    self.syncs += 1;
                }
                DiskOp::Prepare { segment, recycle, .. } => {
                    assert!(!self.safe.contains_key(segment), "a number is used once");
                    assert!(recycle.is_none_or(|old| self.safe.contains_key(&old)));
                }
                DiskOp::Read { .. } => {}
            }
            self.ops.push(op);
        }
    }

    /// Finishes the `at`-th operation in flight.
    pub fn complete(&mut self, at: usize) -> (OpId, DiskDone) {
        let op = self.ops.swap_remove(at);
        let id = op.id();
        let done = match op {
            DiskOp::Write { op, buffer, .. } => self.finish_write(op, buffer),
            DiskOp::Sync { op, .. } => {
                let covered = self.covers.remove(&op).expect("noted when it was issued");
                self.make_safe(|w| covered.contains(&w.op));
                DiskDone::Synced
            }
            DiskOp::Prepare { segment, recycle, .. } => {
                // A killed process may leave completed writes behind a hole, in a file that is not
                // part of the log any more: preparing it syncs them. The log's own never are there.
                self.make_safe(|w| recycle == Some(w.segment) && w.op >= LEFT_BEHIND);
                rename(&mut self.safe, segment, recycle, self.config.segment_bytes as usize);
                DiskDone::Prepared
            }
            DiskOp::Read { segment, offset, len, .. } => {
                let bytes = self.after_kill().0[&segment][offset as usize..][..len].to_vec();
                DiskDone::Read { bytes: Bytes::from(bytes) }
            }
        };
        (id, done)
    }

    /// Fails the `at`-th operation in flight. What a failed write did to the medium is unknown.
    pub fn fail(&mut self, at: usize, kind: DiskErrorKind) -> (OpId, DiskError) {
        let op = self.ops.swap_remove(at);
        let errno = if kind == DiskErrorKind::NoSpace { 28 } else { 5 };
        (op.id(), DiskError { kind, errno, message: "injected".to_owned() })
    }

    fn finish_write(&mut self, op: OpId, buffer: AlignedBuf) -> DiskDone {
        self.at_risk.iter_mut().find(|w| w.op == op).expect("issued").completed = true;
        self.make_safe(|w| w.op == op && w.sync);
        DiskDone::Written { buffer }
    }

    fn make_safe(&mut self, chosen: impl Fn(&Unsafe) -> bool) {
        if !self.honest {
            return;
        }
        for write in self.at_risk.iter().filter(|w| chosen(w)) {
            let file = self.safe.get_mut(&write.segment).expect("written to a file that is there");
            file[write.offset..][..write.data.len()].copy_from_slice(&write.data);
        }
        self.at_risk.retain(|w| !chosen(w));
    }

    /// Files after a power cut: of what is at risk, `survives(write, sector)` decides.
    pub fn image(&self, mut survives: impl FnMut(&Unsafe, usize) -> bool) -> Image {
        let mut files = self.safe.clone();
        for write in &self.at_risk {
            let Some(file) = files.get_mut(&write.segment) else {
                assert!(!self.honest, "a file with unsynced writes was recycled");
                continue;
            };
            for (n, sector) in write.data.chunks(SECTOR).enumerate() {
                if survives(write, n) {
                    file[write.offset + n * SECTOR..][..SECTOR].copy_from_slice(sector);
                }
            }
        }
        Image(files)
    }

    /// Files after the process was killed: completed writes are there, others are not.
    pub fn after_kill(&self) -> Image {
        self.image(|write, _| write.completed)
    }

    /// The process is gone: operations in flight are forgotten, completed writes stay at risk.
    pub fn kill(&mut self) {
        self.ops.clear();
        self.covers.clear();
        self.at_risk.retain(|write| write.completed);
        for (n, write) in self.at_risk.iter_mut().enumerate() {
            write.op = OpId(u64::MAX - n as u64);
        }
    }

    /// The image with the outcome of a prepare in flight: renamed already, or a new file cut short.
    pub fn with_prepare(&self, mut image: Image, rng: &mut Rng) -> Image {
        let prepare = self.ops.iter().find_map(|op| match op {
            DiskOp::Prepare { segment, recycle, .. } => Some((*segment, *recycle)),
            _ => None,
        });
        let Some((segment, recycle)) = prepare else { return image };
        let size = self.config.segment_bytes as usize;
        match (recycle, rng.below(3)) {
            (_, 0) => {}
            (Some(_), _) => rename(&mut image.0, segment, recycle, size),
            (None, 1) => drop(image.0.insert(segment, Vec::new())),
            (None, _) => {
                let cut = rng.below(size as u64 / SECTOR as u64 + 1) as usize * SECTOR;
                image.0.insert(segment, vec![0; cut]);
            }
        }
        image
    }
}

fn rename(
    files: &mut BTreeMap<SegmentNo, Vec<u8>>,
    to: SegmentNo,
    from: Option<SegmentNo>,
    size: usize,
) {
    let mut bytes = from.map_or_else(Vec::new, |old| files.remove(&old).expect("to recycle"));
    // The runtime brings a file that a crash cut short to its full size.
    bytes.resize(size, 0);
    files.insert(to, bytes);
}
