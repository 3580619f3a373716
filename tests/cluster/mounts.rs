//! File systems in files, for stories about full disks and lost power. Only root can mount them;
//! without root a story is skipped, loudly.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cluster::scratch;
use crate::process::{PATIENCE, eventually, tell};

/// A mounted ext4 image, unmounted with the value; its loop device goes with the mount.
pub struct Mounted {
    image: PathBuf,
    pub place: PathBuf,
}

impl Mounted {
    /// Makes a file system of `mib` in the file `image` and mounts it on a new directory.
    fn make(image: PathBuf, place: PathBuf, mib: u64) -> Option<Self> {
        std::fs::create_dir(&place).unwrap();
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let made = run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        let disk = Self { image, place };
        (made && disk.mount()).then_some(disk)
    }

    fn mount(&self) -> bool {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.place))
    }

    /// The kernel lets go of the files of a killed process a little later than of the process.
    fn unmount(&self) {
        eventually("the file system can be unmounted", PATIENCE, || {
            run(Command::new("umount").arg(&self.place)).then_some(())
        });
    }

    fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(1) == self.place.to_str())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let until = Instant::now() + PATIENCE;
        while self.is_mounted() && !run(Command::new("umount").arg(&self.place)) {
            if Instant::now() > until {
                // At the latest when the last file is closed; nothing may be left behind.
                run(Command::new("umount").arg("--lazy").arg(&self.place));
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Says that a story was not told, in words that a run of all tests can count.
fn skip() {
    tell("SKIPPED: needs root (mkfs.ext4 and mount -o loop)");
}

fn run(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// A small disk that can be filled.
pub struct SmallDisk {
    disk: Mounted,
    _dir: TempDir,
}

impl SmallDisk {
    /// `None`, with a line that says so, where mounting is not possible.
    pub fn mount(mib: u64) -> Option<Self> {
        let dir = scratch();
        let disk = Mounted::make(dir.path().join("disk.img"), dir.path().join("mnt"), mib);
        if disk.is_none() {
            skip();
        }
        Some(Self { disk: disk?, _dir: dir })
    }

    pub fn place(&self) -> &Path {
        &self.disk.place
    }

    /// Takes so much of the space away.
    pub fn ballast(&self, mib: usize) -> PathBuf {
        let path = self.place().join("ballast");
        std::fs::write(&path, vec![1; mib << 20]).unwrap();
        path
    }
}

/// EXT4_IOC_SHUTDOWN, also known as FS_IOC_GOINGDOWN: `_IOR('X', 125, __u32)`.
const GOING_DOWN: libc::c_ulong = 0x8004_587d;
/// Not even the journal is written any more.
const NO_LOG_FLUSH: u32 = 2;

/// A disk with a volatile cache whose power can be cut: a file system in a file of a file system in
/// a file. What is written to the inner one lies in the page cache of the outer one until the inner
/// one is told to flush; when the outer one goes down, all that was not flushed is gone, however it
/// was written. (With one file system alone, direct writes to blocks that exist would survive.)
pub struct PowerDisk {
    // Dropped in this order.
    disk: Mounted,
    cache: Mounted,
    _dir: TempDir,
}

impl PowerDisk {
    /// `None`, with a line that says so, where mounting is not possible.
    pub fn mount(mib: u64) -> Option<Self> {
        let dir = scratch();
        let at = |name: &str| dir.path().join(name);
        let mounted =
            Mounted::make(at("cache.img"), at("cache"), mib + mib / 8 + 16).and_then(|cache| {
                Some((Mounted::make(cache.place.join("disk.img"), at("disk"), mib)?, cache))
            });
        if mounted.is_none() {
            skip();
        }
        let (disk, cache) = mounted?;
        let made = Self { disk, cache, _dir: dir };
        // The disk was formatted in the cache, too.
        File::open(&made.disk.image).and_then(|image| image.sync_all()).unwrap();
        File::open(&made.cache.place).and_then(|dir| dir.sync_all()).unwrap();
        Some(made)
    }

    pub fn place(&self) -> &Path {
        &self.disk.place
    }

    /// From now on nothing reaches the disk, and what was not flushed never will.
    pub fn cut(&self) {
        let root = File::open(&self.cache.place).unwrap();
        // SAFETY: the call reads the one number that it is given the address of.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), GOING_DOWN, &NO_LOG_FLUSH) };
        assert_eq!(result, 0, "cannot cut power: {}", std::io::Error::last_os_error());
    }

    /// Power is back: the machine finds what the disk still has. Nobody may use it meanwhile.
    pub fn restore(&self) {
        self.disk.unmount();
        self.cache.unmount();
        assert!(self.cache.mount() && self.disk.mount(), "the disk cannot be mounted again");
    }
}

#[test]
fn a_cut_loses_what_was_not_flushed_and_nothing_else() {
    use std::io::Write;
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    let Some(disk) = PowerDisk::mount(32) else { return };
    let path = disk.place().join("file");
    let mut file = File::create(&path).unwrap();
    file.write_all(&[0; 64 << 10]).unwrap();
    file.sync_all().unwrap();
    File::open(disk.place()).and_then(|dir| dir.sync_all()).unwrap();
    let mut page = ringraft::wal::AlignedBuf::with_capacity(4096);
    page.pad_to(4096);
    page.as_mut_slice().fill(7);
    let open = |flags| {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).custom_flags(libc::O_DIRECT | flags).open(&path).unwrap()
    };
    open(libc::O_DSYNC).write_all_at(page.as_slice(), 0).unwrap();
    open(0).write_all_at(page.as_slice(), 8192).unwrap();
    drop(file);
    assert_eq!(std::fs::read(&path).unwrap()[8192], 7, "it is there while there is power");
    disk.cut();
    disk.restore();
    let found = std::fs::read(&path).unwrap();
    assert_eq!((found[0], found[4095]), (7, 7), "what was flushed stays");
    assert_eq!((found[8192], found[12_287]), (0, 0), "what was not flushed is gone");
}
