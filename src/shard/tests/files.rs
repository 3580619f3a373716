//! Files of snapshots in memory: each operation is carried out at once and reported in the next turn.

use bytes::Bytes;

use crate::ids::GroupId;
use crate::raft::message::Offer;
use crate::shard::snapshots::gather::FileSource;
use crate::shard::snapshots::{FileDone, FileName, FileOp, FileOpId};
use crate::wal::DiskError;

/// What one node has, and what it has not been told yet.
#[derive(Default)]
pub struct Files {
    files: Vec<(FileName, Vec<u8>)>,
    done: Vec<(FileOpId, FileDone)>,
}

impl Files {
    /// True when there is something to report.
    pub fn carry_out(&mut self, ops: &mut Vec<FileOp>) -> bool {
        for op in ops.drain(..) {
            let (id, done) = (op.id(), self.one(op));
            self.done.push((id, done));
        }
        !self.done.is_empty()
    }

    pub fn take_done(&mut self) -> Vec<(FileOpId, FileDone)> {
        std::mem::take(&mut self.done)
    }

    /// The names of all of them, in their order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.files.iter().map(|(name, _)| name.to_string()).collect();
        names.sort();
        names
    }

    /// A process begins. What the last one was not told it never hears; of a part that it goes on with
    /// only so many bytes are whole, and those behind them are written again.
    pub fn begin_anew(&mut self, parts: &[(GroupId, Offer, u64)]) {
        self.done.clear();
        for (group, offer, held) in parts {
            let part = FileName::Part(*group, *offer);
            let (_, bytes) = self.files.iter_mut().find(|(name, _)| *name == part).expect("found");
            bytes.truncate(*held as usize);
        }
    }

    fn one(&mut self, op: FileOp) -> FileDone {
        match op {
            FileOp::Write { file, offset, bytes, .. } => {
                let mut whole = if offset == 0 { Vec::new() } else { self.take(file) };
                assert_eq!(whole.len() as u64, offset, "one piece after the other");
                whole.extend_from_slice(&bytes);
                self.put(file, whole);
                FileDone::Written
            }
            FileOp::Publish { from, to, .. } => {
                let whole = self.take(from);
                self.put(to, whole);
                FileDone::Published
            }
            FileOp::Remove { file, .. } => {
                self.files.retain(|(name, _)| *name != file);
                FileDone::Removed
            }
            FileOp::Read { file, offset, len, .. } => {
                let (_, whole) = self.files.iter().find(|(name, _)| *name == file).expect("read");
                let at = offset as usize;
                FileDone::Read { bytes: Bytes::copy_from_slice(&whole[at..at + len as usize]) }
            }
        }
    }

    fn take(&mut self, file: FileName) -> Vec<u8> {
        let at = self.files.iter().position(|(name, _)| *name == file).expect("it was written");
        self.files.swap_remove(at).1
    }

    fn put(&mut self, file: FileName, bytes: Vec<u8>) {
        self.files.retain(|(name, _)| *name != file);
        self.files.push((file, bytes));
    }
}

impl FileSource for Files {
    fn files(&mut self) -> Vec<(FileName, u64)> {
        self.files.iter().map(|(name, bytes)| (*name, bytes.len() as u64)).collect()
    }

    fn read(&mut self, file: FileName, offset: u64, len: u64) -> Result<Bytes, DiskError> {
        let (_, whole) = self.files.iter().find(|(name, _)| *name == file).expect("named");
        let (at, end) = (offset as usize, whole.len().min((offset + len) as usize));
        Ok(Bytes::copy_from_slice(&whole[at..end]))
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        Ok(())
    }
}
