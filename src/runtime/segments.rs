//! The segment files of a log, read with plain reads: at a start, before the loop, and by the tools
//! that look at a log.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use tracing::warn;

use super::disk::{disk_error, segment_of};
use crate::wal::{DiskError, SegmentNo, SegmentSource};

/// See the module. Opened for reading only.
pub struct SegmentFiles {
    paths: BTreeMap<SegmentNo, PathBuf>,
    /// Files that were being made when the process ended.
    unfinished: Vec<PathBuf>,
    open: Option<(SegmentNo, File)>,
}

impl SegmentFiles {
    /// What lies in `dir`.
    pub fn list(dir: &Path) -> std::io::Result<Self> {
        let (mut paths, mut unfinished) = (BTreeMap::new(), Vec::new());
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ext| ext == "making") {
                unfinished.push(path);
            } else if let Some(segment) = segment_of(&path) {
                paths.insert(segment, path);
            }
        }
        Ok(Self { paths, unfinished, open: None })
    }

    /// Removes leftovers of files that were being made: nothing names them.
    pub fn remove_unfinished(&mut self) -> std::io::Result<()> {
        for path in self.unfinished.drain(..) {
            warn!(path = %path.display(), "removing an unfinished segment");
            std::fs::remove_file(&path)?;
        }
        Ok(())
    }

    /// Segment files and their paths, lowest first.
    pub fn paths(&self) -> impl Iterator<Item = (SegmentNo, &Path)> {
        self.paths.iter().map(|(no, path)| (*no, path.as_path()))
    }

    fn file(&mut self, segment: SegmentNo) -> std::io::Result<&File> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            let path = self.paths.get(&segment).ok_or(std::io::ErrorKind::NotFound)?;
            self.open = Some((segment, File::open(path)?));
        }
        Ok(&self.open.as_ref().expect("opened above").1)
    }
}

impl SegmentSource for SegmentFiles {
    fn segments(&self) -> Vec<SegmentNo> {
        self.paths.keys().copied().collect()
    }

    fn read(&mut self, segment: SegmentNo, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        let file = self.file(segment).map_err(|error| disk_error(&error))?;
        let mut buffer = BytesMut::zeroed(len);
        let mut done = 0;
        while done < len {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) => return Err(disk_error(&error)),
            }
        }
        buffer.truncate(done);
        Ok(buffer.freeze())
    }
}
