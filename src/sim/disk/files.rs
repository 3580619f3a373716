//! The files of snapshots: contents and names, each in two layers, what a process sees and what
//! survives a loss of power (bugs.md 5).
//!
//! - Written bytes are seen at once; they are safe when a synced write of the file, or its
//!   publication, has completed.
//! - A name is safe when a publication, which syncs the directory, has completed. What else was made,
//!   renamed or removed since is there after a loss of power, or is not, all together.
//! - A file whose bytes were not safe keeps each of its sectors by chance.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Disk, IDLE, SECTOR, Survival, error};
use crate::ids::{GroupId, Tick};
use crate::shard::snapshots::gather::FileSource;
use crate::shard::snapshots::{FileDone, FileName, FileOp, FileOpId};
use crate::sim::rng::Rng;
use crate::wal::{DiskError, DiskErrorKind};

#[derive(Clone, Debug, Default)]
struct Content {
    seen: Vec<u8>,
    stable: Vec<u8>,
}

#[derive(Debug)]
struct InFlight {
    due: u64,
    fails: Option<DiskErrorKind>,
    op: FileOp,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Files {
    contents: BTreeMap<u64, Content>,
    next_content: u64,
    /// By name: its content.
    seen: BTreeMap<String, u64>,
    stable: BTreeMap<String, u64>,
    /// In the order in which they complete.
    in_flight: std::collections::VecDeque<InFlight>,
}

impl Files {
    fn write(&mut self, file: FileName, offset: u64, bytes: &[u8], sync: bool) {
        let name = file.to_string();
        let known = self.seen.get(&name).copied();
        let id = known.unwrap_or_else(|| {
            self.next_content += 1;
            self.seen.insert(name, self.next_content);
            self.next_content
        });
        let content = self.contents.entry(id).or_default();
        if offset == 0 {
            content.seen.clear();
        }
        let end = offset as usize + bytes.len();
        if content.seen.len() < end {
            content.seen.resize(end, 0);
        }
        content.seen[offset as usize..end].copy_from_slice(bytes);
        if sync {
            content.stable = content.seen.clone();
        }
    }

    fn rename(&mut self, from: FileName, to: FileName) {
        if let Some(id) = self.seen.remove(&from.to_string()) {
            let content = self.contents.get_mut(&id).expect("a name has a content");
            content.stable = content.seen.clone();
            self.seen.insert(to.to_string(), id);
        }
    }

    fn carry_out(&mut self, op: FileOp) -> Result<FileDone, DiskError> {
        let missing = |file: FileName| error(DiskErrorKind::Io, &format!("{file} is not there"));
        match op {
            FileOp::Write { file, offset, bytes, sync, .. } => {
                if offset > 0 && !self.seen.contains_key(&file.to_string()) {
                    return Err(missing(file));
                }
                self.write(file, offset, &bytes, sync);
                Ok(FileDone::Written)
            }
            FileOp::Publish { from, to, .. } => {
                if !self.seen.contains_key(&from.to_string()) {
                    return Err(missing(from));
                }
                self.rename(from, to);
                self.stable = self.seen.clone();
                Ok(FileDone::Published)
            }
            FileOp::Remove { file, .. } => {
                self.seen.remove(&file.to_string());
                Ok(FileDone::Removed)
            }
            FileOp::Read { file, offset, len, .. } => {
                let bytes = self.read(file, offset, u64::from(len));
                match bytes.filter(|bytes| bytes.len() == len as usize) {
                    Some(bytes) => Ok(FileDone::Read { bytes }),
                    None => Err(missing(file)),
                }
            }
        }
    }

    fn read(&self, file: FileName, offset: u64, len: u64) -> Option<Bytes> {
        let content = &self.contents[self.seen.get(&file.to_string())?];
        let size = content.seen.len();
        let from = (offset as usize).min(size);
        let to = (from + len as usize).min(size);
        Some(Bytes::copy_from_slice(&content.seen[from..to]))
    }

    /// The process ends: one operation is under way at a time, and has happened, or not, or in part.
    pub fn kill(&mut self, rng: &mut Rng) {
        if let Some(InFlight { op, .. }) = std::mem::take(&mut self.in_flight).pop_front() {
            match op {
                FileOp::Write { file, offset, bytes, .. } => {
                    let there = offset == 0 || self.seen.contains_key(&file.to_string());
                    let done = rng.below(bytes.len() as u64 + 1) as usize;
                    if there && rng.chance(70) {
                        self.write(file, offset, &bytes[..done], false);
                    }
                }
                FileOp::Publish { from, to, .. } => {
                    if rng.chance(50) {
                        self.rename(from, to);
                    }
                }
                FileOp::Remove { file, .. } => {
                    if rng.chance(50) {
                        self.seen.remove(&file.to_string());
                    }
                }
                FileOp::Read { .. } => {}
            }
        }
    }

    pub fn power_cut(&mut self, survival: Survival, rng: &mut Rng) {
        self.kill(rng);
        // A journal keeps the order of what was done to names: all of it is there, or nothing since the
        // last sync. Never a file under two names.
        if survival.keeps(rng) {
            self.stable = self.seen.clone();
        }
        self.seen = self.stable.clone();
        let named: Vec<u64> = self.seen.values().copied().collect();
        self.contents.retain(|id, _| named.contains(id));
        for content in self.contents.values_mut() {
            let survival = survival.of_write(rng);
            tear(content, survival, rng);
        }
    }

    /// Flips a bit of a published snapshot.
    fn rot(&mut self, rng: &mut Rng) -> Option<GroupId> {
        let published = self.seen.iter().filter_map(|(name, id)| {
            let file = FileName::parse(name)?;
            matches!(file, FileName::Snapshot(..)).then_some((file, *id))
        });
        let published: Vec<_> = published.collect();
        let (file, id) = *published.get(rng.below(published.len().max(1) as u64) as usize)?;
        let content = self.contents.get_mut(&id).expect("a name has a content");
        let at = rng.below(content.seen.len() as u64) as usize;
        let bit = 1 << rng.below(8);
        content.seen[at] ^= bit;
        content.stable[at] ^= bit;
        Some(file.group())
    }
}

/// Of the sectors that were not safe some are.
fn tear(content: &mut Content, survival: Survival, rng: &mut Rng) {
    let size = if survival == Survival::None { content.stable.len() } else { content.seen.len() };
    content.stable.resize(size, 0);
    for at in (0..size).step_by(SECTOR) {
        let end = (at + SECTOR).min(size).min(content.seen.len());
        if at < end && content.seen[at..end] != content.stable[at..end] && survival.keeps(rng) {
            content.stable[at..end].copy_from_slice(&content.seen[at..end]);
        }
    }
    content.seen = content.stable.clone();
}

impl Disk {
    /// As [`Disk::issue`], for the files of snapshots.
    pub fn issue_files(&mut self, now: Tick, ops: &mut Vec<FileOp>) {
        for op in ops.drain(..) {
            let fails = match &op {
                FileOp::Read { .. } => self.faults.read_file.take().then_some(DiskErrorKind::Io),
                FileOp::Remove { .. } => None,
                _ if self.faults.file.take() => Some(DiskErrorKind::Io),
                FileOp::Write { .. } if self.faults.full => Some(DiskErrorKind::NoSpace),
                _ => None,
            };
            let before = self.files.in_flight.back().map_or(0, |last| last.due);
            let took = self.rng.between(self.latency.min, self.latency.max);
            let due = (now.0 + took).max(before);
            self.files.in_flight.push_back(InFlight { due, fails, op });
        }
    }

    /// When the next of them is due.
    pub(super) fn next_file_due(&self) -> u64 {
        self.files.in_flight.front().map_or(IDLE, |op| op.due.max(self.stalled_until))
    }

    /// The next of them that has completed by `now`.
    pub fn take_due_file(&mut self, now: Tick) -> Option<(FileOpId, Result<FileDone, DiskError>)> {
        if self.next_file_due() > now.0 {
            return None;
        }
        let InFlight { op, fails, .. } = self.files.in_flight.pop_front()?;
        let id = op.id();
        let result = match fails {
            Some(kind) => Err(error(kind, "injected")),
            None => self.files.carry_out(op),
        };
        Some((id, result))
    }

    /// Damages a published snapshot. `None`: there is none.
    pub fn rot_snapshot(&mut self, rng: &mut Rng) -> Option<GroupId> {
        self.files.rot(rng)
    }
}

/// The directory as a start reads it.
impl FileSource for Disk {
    fn files(&mut self) -> Vec<(FileName, u64)> {
        let size = |id: &u64| self.files.contents[id].seen.len() as u64;
        let seen = self.files.seen.iter();
        seen.filter_map(|(name, id)| Some((FileName::parse(name)?, size(id)))).collect()
    }

    fn read(&mut self, file: FileName, offset: u64, len: u64) -> Result<Bytes, DiskError> {
        let bytes = self.files.read(file, offset, len);
        bytes.ok_or_else(|| error(DiskErrorKind::Io, "no such file"))
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.files.stable = self.files.seen.clone();
        Ok(())
    }
}
