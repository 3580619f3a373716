//! Files of snapshots in memory: each operation is carried out at once and reported in the next turn.

use bytes::Bytes;

use crate::shard::snapshots::{FileDone, FileName, FileOp, FileOpId};

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
