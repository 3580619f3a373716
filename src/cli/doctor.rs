//! `ringraft doctor`: can this machine run a node, and what would mend it. Facts are gathered
//! first; judging them is a pure function of the facts.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use super::Failure;
use crate::runtime::machine::MachineFacts;
use crate::runtime::probe::{DirectIo, RingSupport, probe_direct_io, probe_ring};

/// Oldest kernel that is known to work: multishot receive and provided buffer rings.
const KERNEL_MIN: (u32, u32) = (6, 0);
/// From here on completions wait until the reactor asks for them.
const KERNEL_GOOD: (u32, u32) = (6, 1);
/// The executors refuse to start below this.
const LOCKED_BYTES_MIN: u64 = 512 << 10;
/// Enough for the default configuration.
const LOCKED_BYTES_GOOD: u64 = 8 << 20;
/// Open files of a node with few clients, and of one with thousands.
const OPEN_FILES_MIN: u64 = 256;
const OPEN_FILES_GOOD: u64 = 4096;
/// The log writes in multiples of this.
const LOG_BLOCK_BYTES: u32 = 4096;
/// File systems whose `O_DSYNC` is a promise about a disk of this machine, and was tried.
const FILESYSTEMS_GOOD: [&str; 2] = ["ext4", "xfs"];

/// Check whether this machine can run a node, and say how to mend what is wrong
///
/// Every line begins with ok, warn or fail. Ends with code 1 if one fails.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The data directory to check
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let checks = examine(&args.dir);
    super::print(&checks.iter().map(|check| format!("{check}\n")).collect::<String>())?;
    outcome(&checks)
}

fn outcome(checks: &[Check]) -> Result<(), Failure> {
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    if failed { Err(Failure::Told) } else { Ok(()) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// It runs, slower or with less room.
    Warn,
    /// A node cannot start.
    Fail,
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    verdict: Verdict,
    subject: &'static str,
    found: String,
    /// What to do about it; empty when all is well.
    mend: String,
}

impl Check {
    fn new(
        verdict: Verdict,
        subject: &'static str,
        found: String,
        mend: impl Into<String>,
    ) -> Self {
        let mend = if verdict == Verdict::Ok { String::new() } else { mend.into() };
        Self { verdict, subject, found, mend }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        write!(f, "{verdict}  {:<14} {}", self.subject, self.found)?;
        if self.mend.is_empty() { Ok(()) } else { write!(f, "; {}", self.mend) }
    }
}

fn examine(dir: &Path) -> Vec<Check> {
    let facts = MachineFacts::gather(dir);
    vec![
        kernel(&facts.kernel),
        ring(probe_ring()),
        direct_io(dir, probe_direct_io(dir)),
        filesystem(&facts.filesystem),
        locked_memory(facts.locked_memory_bytes),
        open_files(facts.open_files),
        cores(facts.cores, &facts.cpu),
    ]
}

/// `low` and above is possible, `good` and above is well.
fn grade<T: PartialOrd>(found: T, low: T, good: T) -> Verdict {
    if found >= good {
        Verdict::Ok
    } else if found >= low {
        Verdict::Warn
    } else {
        Verdict::Fail
    }
}

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = KERNEL_GOOD;
    let mend = format!("install Linux {major}.{minor} or later");
    Check::new(grade(version, KERNEL_MIN, KERNEL_GOOD), "kernel", release.to_owned(), mend)
}

fn ring(probed: io::Result<RingSupport>) -> Check {
    const SUBJECT: &str = "io_uring";
    let support = match probed {
        Ok(support) => support,
        Err(error) => {
            let mend = match error.raw_os_error() {
                Some(libc::EPERM) => {
                    "allow it: `sysctl kernel.io_uring_disabled=0`, and in a container a seccomp \
                     profile that admits io_uring_setup, io_uring_enter and io_uring_register"
                }
                Some(libc::ENOMEM) => "raise the limit of locked memory: `ulimit -l 8192`",
                _ => "run a kernel that was built with CONFIG_IO_URING",
            };
            return Check::new(Verdict::Fail, SUBJECT, format!("not available: {error}"), mend);
        }
    };
    if !support.missing.is_empty() {
        let found = format!("lacks {}", support.missing.join(", "));
        return Check::new(Verdict::Fail, SUBJECT, found, "install a newer kernel");
    }
    if !support.defer_taskrun {
        let found = "all operations, no deferred completions".to_owned();
        return Check::new(Verdict::Warn, SUBJECT, found, "Linux 6.1 or later halves the wake-ups");
    }
    Check::new(Verdict::Ok, SUBJECT, "all operations, deferred completions".into(), "")
}

fn direct_io(dir: &Path, probed: io::Result<DirectIo>) -> Check {
    const SUBJECT: &str = "direct I/O";
    let place = dir.display();
    let align = match probed {
        Ok(align) => align,
        Err(error) => {
            let found = format!("not possible in {place}: {error}");
            let mend = match error.kind() {
                io::ErrorKind::NotFound => "create the directory",
                io::ErrorKind::PermissionDenied => "make the directory writable for this user",
                io::ErrorKind::StorageFull => "free some space",
                _ => "use a directory on ext4 or xfs",
            };
            return Check::new(Verdict::Fail, SUBJECT, found, mend);
        }
    };
    let DirectIo { memory_align, offset_align } = align;
    if offset_align == 0 {
        let found = format!("possible in {place}, alignment not told");
        let mend = "4096 is assumed; ext4 and xfs on Linux 6.1 or later tell it";
        return Check::new(Verdict::Warn, SUBJECT, found, mend);
    }
    let fits = memory_align <= LOG_BLOCK_BYTES && offset_align <= LOG_BLOCK_BYTES;
    let verdict = if fits { Verdict::Ok } else { Verdict::Fail };
    let found =
        format!("in {place}, alignment {offset_align} in the file, {memory_align} in memory");
    Check::new(verdict, SUBJECT, found, "use a disk with sectors of at most 4096 bytes")
}

fn filesystem(kind: &str) -> Check {
    let verdict = if FILESYSTEMS_GOOD.contains(&kind) { Verdict::Ok } else { Verdict::Warn };
    let mend = "not tried: durability and speed were checked on ext4 and xfs";
    Check::new(verdict, "file system", kind.to_owned(), mend)
}

/// `None` = unlimited.
fn locked_memory(bytes: Option<u64>) -> Check {
    let found = bytes.map_or("unlimited".into(), |bytes| format!("{} KiB", bytes >> 10));
    let verdict = grade(bytes.unwrap_or(u64::MAX), LOCKED_BYTES_MIN, LOCKED_BYTES_GOOD);
    let mend = "set at least 8192 KiB: `ulimit -l 8192`, LimitMEMLOCK=8M in the service, or \
                memlock in /etc/security/limits.conf";
    Check::new(verdict, "locked memory", found, mend)
}

/// `None` = unlimited.
fn open_files(limit: Option<u64>) -> Check {
    let found = limit.map_or("unlimited".into(), |limit| limit.to_string());
    let verdict = grade(limit.unwrap_or(u64::MAX), OPEN_FILES_MIN, OPEN_FILES_GOOD);
    let mend = "each client connection takes one: `ulimit -n 65536`, or LimitNOFILE=65536 in the \
                service";
    Check::new(verdict, "open files", found, mend)
}

fn cores(cores: u32, cpu: &str) -> Check {
    let mend = "give each shard a core of its own and leave one to the system";
    Check::new(grade(cores, 1, 2), "CPU", format!("{cores} × {cpu}"), mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_passes() {
        let checks = examine(Path::new(env!("CARGO_MANIFEST_DIR")));
        let failed: Vec<_> = checks.iter().filter(|c| c.verdict == Verdict::Fail).collect();
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(outcome(&checks), Ok(()));
    }

    #[test]
    fn a_missing_directory_fails_the_whole() {
        let checks = examine(Path::new("/nonexistent/here"));
        assert_eq!(outcome(&checks), Err(Failure::Told));
        let line = checks.iter().find(|c| c.subject == "direct I/O").unwrap().to_string();
        assert!(
            line.starts_with("fail  direct I/O     not possible in /nonexistent/here"),
            "{line}"
        );
        assert!(line.ends_with("; create the directory"), "{line}");
    }

    #[test]
    fn kernels_are_compared_as_numbers() {
        let verdict = |release| kernel(release).verdict;
        assert_eq!(verdict("6.18.44-fc-v669"), Verdict::Ok);
        assert_eq!(verdict("6.1.0-13-amd64"), Verdict::Ok);
        assert_eq!(verdict("6.0"), Verdict::Warn);
        assert_eq!(verdict("5.15.0"), Verdict::Fail);
        assert_eq!(verdict("unknown"), Verdict::Fail);
    }

    #[test]
    fn a_forbidden_ring_says_which_switch() {
        let line = ring(Err(io::Error::from_raw_os_error(libc::EPERM))).to_string();
        assert!(line.starts_with("fail") && line.contains("io_uring_disabled=0"), "{line}");
        let line = ring(Err(io::Error::from_raw_os_error(libc::ENOMEM))).to_string();
        assert!(line.contains("ulimit -l"), "{line}");
        let old = RingSupport { missing: vec!["SEND"], defer_taskrun: false };
        assert_eq!(ring(Ok(old)).verdict, Verdict::Fail);
        let plain = RingSupport { missing: vec![], defer_taskrun: false };
        assert_eq!(ring(Ok(plain)).verdict, Verdict::Warn);
    }

    #[test]
    fn limits_grade_into_three_and_unlimited_is_well() {
        let verdicts = |f: fn(Option<u64>) -> Check, values: [Option<u64>; 4]| {
            values.map(|value| f(value).verdict)
        };
        let expected = [Verdict::Fail, Verdict::Warn, Verdict::Ok, Verdict::Ok];
        let locked = [Some(64 << 10), Some(1 << 20), Some(8 << 20), None];
        assert_eq!(verdicts(locked_memory, locked), expected);
        let files = [Some(100), Some(1024), Some(20_000), None];
        assert_eq!(verdicts(open_files, files), expected);
    }

    #[test]
    fn what_is_well_needs_no_advice_and_what_is_not_has_some() {
        assert!(cores(2, "CPU").mend.is_empty());
        let coarse = DirectIo { memory_align: 512, offset_align: 16_384 };
        for bad in [cores(1, "CPU"), filesystem("tmpfs"), direct_io(Path::new("."), Ok(coarse))] {
            assert!(bad.verdict != Verdict::Ok && !bad.mend.is_empty(), "{bad}");
        }
    }
}
