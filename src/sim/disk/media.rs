//! Files in two layers: what is on the medium, and completed writes that only a cache holds.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{PowerCut, Rotten, SECTOR, Survival};
use crate::ids::Lsn;
use crate::sim::rng::Rng;
use crate::wal::{DiskOp, SegmentNo, WalConfig};

/// Buffers kept for the next volatile writes.
const POOL_MAX: usize = 64;

/// A completed write that a loss of power may still undo, wholly or by sectors.
#[derive(Debug)]
struct Volatile {
    at: usize,
    data: Vec<u8>,
    /// Counts completions; a sync covers those before it was issued.
    completed: u64,
    /// A sync has spoken for it: on an honest disk it would not be here any more.
    promised: bool,
    /// A sync of it has failed: later ones do not make it safe.
    doomed: bool,
}

/// Whether a name that a cut short `Prepare` gave survives by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Durable,
    Volatile,
}

#[derive(Debug)]
struct File {
    stable: Vec<u8>,
    /// In the order of completion.
    volatile: Vec<Volatile>,
    /// Its name after a loss of power; `None`: it will not be there.
    durable_name: Option<SegmentNo>,
    /// The log's own synced bytes lie before this offset; behind it may lie older ones.
    synced: usize,
}

impl File {
    /// Writes to the medium. What the cache holds of the same place goes there first.
    fn store(&mut self, at: usize, data: &[u8]) {
        let end = at + data.len();
        let overlaps = |v: &Volatile| v.at < end && at < v.at + v.data.len();
        if self.volatile.iter().any(overlaps) {
            for v in self.volatile.extract_if(.., |v| overlaps(v)) {
                self.stable[v.at..][..v.data.len()].copy_from_slice(&v.data);
            }
        }
        self.stable[at..end].copy_from_slice(data);
        self.synced = self.synced.max(end);
    }
}

#[derive(Debug)]
pub(super) struct Media {
    config: WalConfig,
    files: BTreeMap<SegmentNo, File>,
    completed: u64,
    pub honest: bool,
    pool: Vec<Vec<u8>>,
}

impl Media {
    pub fn new(config: WalConfig) -> Self {
        Self { config, files: BTreeMap::new(), completed: 0, honest: true, pool: Vec::new() }
    }

    pub fn config(&self) -> &WalConfig {
        &self.config
    }

    fn size(&self) -> usize {
        self.config.segment_bytes as usize
    }

    /// Writes completed so far.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// What the log promises about its operations.
    pub fn check(&self, op: &DiskOp) {
        match op {
            DiskOp::Write { segment, offset, buffer, len, .. } => {
                let (offset, size) = (*offset as usize, self.files[segment].stable.len());
                assert!(*len <= buffer.len() && offset + len <= size, "{op:?} leaves its segment");
                assert!(offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR), "{op:?}");
            }
            DiskOp::Prepare { segment, recycle, .. } => {
                assert!(!self.files.contains_key(segment), "{segment:?} is prepared once");
                assert!(recycle.is_none_or(|old| self.files.contains_key(&old)), "{op:?}");
            }
            DiskOp::Sync { segment, .. } | DiskOp::Read { segment, .. } => {
                assert!(self.files.contains_key(segment), "{op:?} of no file");
            }
        }
    }

    /// Is it a file of full size?
    pub fn is_whole(&self, segment: Option<SegmentNo>) -> bool {
        let file = segment.and_then(|no| self.files.get(&no));
        file.is_some_and(|file| file.stable.len() == self.size())
    }

    pub fn segments(&self) -> Vec<SegmentNo> {
        self.files.keys().copied().collect()
    }

    pub fn is_volatile(&self) -> bool {
        self.files.values().any(|file| !file.volatile.is_empty())
    }

    fn file(&mut self, segment: SegmentNo) -> &mut File {
        self.files.get_mut(&segment).expect("checked when it was issued")
    }

    /// A write has completed.
    pub fn write(&mut self, segment: SegmentNo, offset: u64, data: &[u8], sync: bool) {
        self.completed += 1;
        if sync && self.honest {
            self.file(segment).store(offset as usize, data);
        } else {
            self.cache(segment, offset as usize, data, sync);
        }
    }

    fn cache(&mut self, segment: SegmentNo, at: usize, data: &[u8], promised: bool) {
        let mut copy = self.pool.pop().unwrap_or_default();
        copy.extend_from_slice(data);
        let completed = self.completed;
        let write = Volatile { at, data: copy, completed, promised, doomed: false };
        self.file(segment).volatile.push(write);
    }

    /// Some sectors of a write reach the cache, and nobody was told.
    pub fn write_partly(
        &mut self,
        segment: SegmentNo,
        offset: u64,
        data: &[u8],
        survival: Survival,
        rng: &mut Rng,
    ) {
        self.completed += 1;
        for (n, sector) in data.chunks(SECTOR).enumerate() {
            if survival.keeps(rng) {
                self.cache(segment, offset as usize + n * SECTOR, sector, false);
            }
        }
    }

    /// A sync has completed that covers the writes up to completion number `covers`.
    pub fn sync(&mut self, segment: SegmentNo, covers: u64) {
        let (honest, pool) = (self.honest, &mut self.pool);
        let Some(file) = self.files.get_mut(&segment) else { return };
        let File { stable, volatile, synced, .. } = file;
        volatile.retain_mut(|v| {
            let covered = v.completed <= covers && !v.doomed;
            v.promised |= covered;
            let safe = covered && honest;
            if safe {
                stable[v.at..][..v.data.len()].copy_from_slice(&v.data);
                *synced = (*synced).max(v.at + v.data.len());
                give_back(pool, std::mem::take(&mut v.data));
            }
            !safe
        });
    }

    /// A sync has failed.
    pub fn doom(&mut self, segment: SegmentNo, covers: u64) {
        let volatile = &mut self.file(segment).volatile;
        volatile.iter_mut().filter(|v| v.completed <= covers).for_each(|v| v.doomed = true);
    }

    /// The process that saw a sync fail is gone. The next one reads what is there and syncs it
    /// again, and the disk may be taken at its word then.
    pub fn calm(&mut self) {
        let all = self.files.values_mut().flat_map(|file| &mut file.volatile);
        all.for_each(|v| v.doomed = false);
    }

    /// The file is there under its name, for good, and so are all other names.
    pub fn prepare(&mut self, segment: SegmentNo, recycle: Option<SegmentNo>) {
        if let Some(old) = recycle {
            self.sync(old, u64::MAX);
        }
        self.rename(segment, recycle, self.size());
        if self.honest {
            self.files.iter_mut().for_each(|(no, file)| file.durable_name = Some(*no));
        }
    }

    /// A new or renamed file; a file that is not whole begins anew with zeros.
    fn rename(&mut self, to: SegmentNo, from: Option<SegmentNo>, size: usize) {
        let old = from.and_then(|no| self.files.remove(&no));
        let mut file = old.unwrap_or(File {
            stable: Vec::new(),
            volatile: Vec::new(),
            durable_name: None,
            synced: 0,
        });
        if file.stable.len() != self.size() {
            file.volatile.clear();
            file.stable.clear();
            file.stable.resize(size, 0);
        }
        file.synced = 0;
        self.files.insert(to, file);
    }

    /// A `Prepare` that the end of the process or of the power interrupted.
    pub fn prepare_partly(
        &mut self,
        segment: SegmentNo,
        recycle: Option<SegmentNo>,
        name: Name,
        rng: &mut Rng,
    ) {
        if rng.chance(33) {
            return;
        }
        let sectors = (self.size() / SECTOR) as u64;
        let cut = [0, rng.below(sectors) as usize * SECTOR, self.size()][rng.below(3) as usize];
        self.rename(segment, recycle.filter(|no| self.is_whole(Some(*no))), cut);
        if name == Name::Durable {
            self.file(segment).durable_name = Some(segment);
        }
    }

    /// Bytes as the process sees them; fewer where the file ends.
    pub fn read(&mut self, segment: SegmentNo, offset: u64, len: usize) -> Bytes {
        let file = &self.files[&segment];
        let start = (offset as usize).min(file.stable.len());
        let end = (start + len).min(file.stable.len());
        if file.volatile.is_empty() {
            return Bytes::copy_from_slice(&file.stable[start..end]);
        }
        let mut bytes = file.stable[start..end].to_vec();
        for v in &file.volatile {
            let (from, to) = (v.at.max(start), (v.at + v.data.len()).min(end));
            if from < to {
                bytes[from - start..to - start].copy_from_slice(&v.data[from - v.at..to - v.at]);
            }
        }
        Bytes::from(bytes)
    }

    /// Of completed writes that were not safe each sector survives by chance, and so do names.
    pub fn power_cut(&mut self, survival: Survival, rng: &mut Rng, cut: &mut PowerCut) {
        for file in self.files.values_mut() {
            for v in file.volatile.drain(..) {
                let survival = survival.of_write(rng);
                let lost = keep(&mut file.stable, v.at, &v.data, survival, rng, cut);
                cut.lost_written += lost;
                cut.lost_promised += if v.promised { lost } else { 0 };
                give_back(&mut self.pool, v.data);
            }
        }
        for (no, mut file) in std::mem::take(&mut self.files) {
            let kept = file.durable_name == Some(no) || survival.of_write(rng).keeps(rng);
            let name = if kept { Some(no) } else { file.durable_name };
            file.durable_name = name;
            if let Some(name) = name {
                let twice = self.files.insert(name, file);
                assert!(twice.is_none(), "two files are called {name:?}");
            }
        }
    }

    /// A write that was under way when power failed.
    pub fn tear(
        &mut self,
        segment: SegmentNo,
        offset: u64,
        data: &[u8],
        survival: Survival,
        rng: &mut Rng,
        cut: &mut PowerCut,
    ) {
        // Its file's name may be gone, and the file with it.
        match self.files.get_mut(&segment) {
            Some(file) => drop(keep(&mut file.stable, offset as usize, data, survival, rng, cut)),
            None => cut.lost_sectors += (data.len() / SECTOR) as u64,
        }
    }

    /// Damages synced bytes of the log.
    pub fn rot(&mut self, rng: &mut Rng, end: Lsn) -> Option<Rotten> {
        let size = self.config.segment_bytes;
        let reach = |no: SegmentNo, file: &File| {
            let below = usize::try_from(end.0.saturating_sub(no.0 * size)).unwrap_or(usize::MAX);
            file.synced.min(below) / SECTOR
        };
        let candidates = self.files.iter().filter(|(no, file)| reach(**no, file) > 0).count();
        let chosen = rng.below(candidates.max(1) as u64) as usize;
        let mut files = self.files.iter_mut().filter(|(no, file)| reach(**no, file) > 0);
        let (no, file) = files.nth(chosen)?;
        let sector = rng.below(reach(*no, file) as u64) as usize * SECTOR;
        let bytes = &mut file.stable[sector..sector + SECTOR];
        let (from, len) = match rng.below(4) {
            0 => (0, SECTOR),
            1 => (rng.below(SECTOR as u64 - 16) as usize, 16),
            // The front of a block holds the headers: damage there is never harmless.
            2 => (rng.below(48) as usize, 1),
            _ => (rng.below(SECTOR as u64) as usize, 1),
        };
        bytes[from..from + len].iter_mut().for_each(|byte| *byte ^= 1 << rng.below(8));
        Some(Rotten { segment: *no, offset: (sector + from) as u64, len: len as u64 })
    }
}

/// Writes the sectors that survive; how many do not.
fn keep(
    stable: &mut [u8],
    at: usize,
    data: &[u8],
    survival: Survival,
    rng: &mut Rng,
    cut: &mut PowerCut,
) -> u64 {
    let mut lost = 0;
    for (n, sector) in data.chunks(SECTOR).enumerate() {
        if survival.keeps(rng) {
            stable[at + n * SECTOR..][..sector.len()].copy_from_slice(sector);
            cut.kept_sectors += 1;
        } else {
            lost += 1;
        }
    }
    cut.lost_sectors += lost;
    lost
}

fn give_back(pool: &mut Vec<Vec<u8>>, mut buffer: Vec<u8>) {
    if pool.len() < POOL_MAX {
        buffer.clear();
        pool.push(buffer);
    }
}
