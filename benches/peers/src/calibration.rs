//! What the disk itself gives in this minute.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use ringraft::wal::{AlignedBuf, PAGE_BYTES};

use crate::scratch::Scratch;

const WRITES: usize = 500;

/// Microseconds for one page written through O_DIRECT and O_DSYNC, p50 and p99, in turn, over
/// blocks that have been written before.
pub fn dsync_write_us(parent: &Path) -> io::Result<(f64, f64)> {
    let scratch = Scratch::new(parent, "calibration")?;
    let file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(scratch.path().join("writes"))?;
    let mut page = AlignedBuf::with_capacity(WRITES * PAGE_BYTES);
    page.pad_to(WRITES * PAGE_BYTES);
    file.write_all_at(page.as_slice(), 0)?;
    let mut took = Vec::with_capacity(WRITES);
    for at in 0..WRITES {
        let start = Instant::now();
        file.write_all_at(&page.as_slice()[..PAGE_BYTES], (at * PAGE_BYTES) as u64)?;
        took.push(start.elapsed().as_secs_f64() * 1e6);
    }
    took.sort_by(f64::total_cmp);
    Ok((took[WRITES / 2], took[WRITES * 99 / 100]))
}
