//! The files of snapshots: carried out by blocking calls on the pool of a cold executor of their own,
//! so that neither a shard's loop nor the making of segments waits for them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::disk::disk_error;
use crate::shard::snapshots::gather::FileSource;
use crate::shard::snapshots::{FileDone, FileName, FileOp};
use crate::wal::DiskError;

/// Directory of a shard's snapshots within the shard's own.
pub fn snapshot_dir(shard_dir: &Path) -> PathBuf {
    shard_dir.join("snapshots")
}

/// Does what is asked, and syncs what has to be.
pub fn carry_out(dir: &Path, op: &FileOp) -> Result<FileDone, DiskError> {
    let path = |file: &FileName| dir.join(file.to_string());
    let done = match op {
        FileOp::Write { file, offset, bytes, sync, .. } => {
            write(&path(file), *offset, bytes, *sync).map(|()| FileDone::Written)
        }
        FileOp::Publish { from, to, .. } => {
            publish(dir, &path(from), &path(to)).map(|()| FileDone::Published)
        }
        FileOp::Remove { file, .. } => match fs::remove_file(path(file)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(FileDone::Removed),
        },
        FileOp::Read { file, offset, len, .. } => {
            let mut buffer = BytesMut::zeroed(*len as usize);
            let file = File::open(path(file));
            file.and_then(|file| file.read_exact_at(&mut buffer, *offset))
                .map(|()| FileDone::Read { bytes: buffer.freeze() })
        }
    };
    done.map_err(|error| disk_error(&error))
}

fn write(path: &Path, offset: u64, bytes: &[u8], sync: bool) -> io::Result<()> {
    let first = offset == 0;
    let file = OpenOptions::new()
        .create(first)
        .truncate(first)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)?;
    file.write_all_at(bytes, offset)?;
    if sync { file.sync_data() } else { Ok(()) }
}

/// Content first, then the name, then the directory (bugs.md 5).
fn publish(dir: &Path, from: &Path, to: &Path) -> io::Result<()> {
    File::open(from)?.sync_all()?;
    fs::rename(from, to)?;
    File::open(dir)?.sync_all()
}

/// The same files, as a start and the tools read them.
pub struct SnapshotFiles {
    dir: PathBuf,
    open: Option<(FileName, File)>,
}

impl SnapshotFiles {
    /// Makes the directory if it is not there.
    pub fn create(shard_dir: &Path) -> io::Result<Self> {
        let dir = snapshot_dir(shard_dir);
        fs::create_dir_all(&dir)?;
        File::open(shard_dir)?.sync_all()?;
        Ok(Self { dir, open: None })
    }

    /// What lies in `dir`, which may not be there.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir, open: None }
    }

    pub fn path(&self, file: FileName) -> PathBuf {
        self.dir.join(file.to_string())
    }

    /// Puts a damaged file where nobody takes it for a snapshot, for people to look at.
    pub fn set_aside(&self, file: FileName) -> io::Result<PathBuf> {
        let aside = self.path(file).with_extension("damaged");
        fs::rename(self.path(file), &aside)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(aside)
    }

    /// Removes what nobody needs.
    pub fn remove(&self, file: FileName) -> io::Result<()> {
        fs::remove_file(self.path(file))
    }

    fn file(&mut self, name: FileName) -> io::Result<&File> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != name) {
            self.open = Some((name, File::open(self.path(name))?));
        }
        Ok(&self.open.as_ref().expect("opened above").1)
    }
}

impl FileSource for SnapshotFiles {
    fn files(&mut self) -> Vec<(FileName, u64)> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let of = |entry: fs::DirEntry| {
            let name = FileName::parse(entry.file_name().to_str()?)?;
            Some((name, entry.metadata().ok()?.len()))
        };
        entries.flatten().filter_map(of).collect()
    }

    fn read(&mut self, file: FileName, offset: u64, len: u64) -> Result<Bytes, DiskError> {
        let mut read = || {
            let file = self.file(file)?;
            let mut buffer = BytesMut::zeroed(len as usize);
            let mut done = 0;
            while done < buffer.len() {
                match file.read_at(&mut buffer[done..], offset + done as u64)? {
                    0 => break,
                    count => done += count,
                }
            }
            buffer.truncate(done);
            Ok(buffer.freeze())
        };
        read().map_err(|error: io::Error| disk_error(&error))
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|error| disk_error(&error))
    }
}
