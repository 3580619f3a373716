//! A directory on the real disk that vanishes with the run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Removed, with all that is in it, when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new directory under `parent`, which is made if it is missing.
    pub fn new(parent: &Path, name: &str) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A directory left behind is a nuisance and no reason to fail a finished measurement.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where the logs of a run go unless it is told otherwise: on the disk that holds the sources, for
/// a build directory may lie in memory.
pub fn default_parent() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join("scratch")
}
