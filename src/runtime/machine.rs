//! On what machine a figure was taken: facts from `/proc`, for reports and for `doctor`.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// The machine and the directory's file system. What cannot be found out is `"unknown"` or 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MachineFacts {
    /// Model of the first CPU.
    pub cpu: String,
    /// CPUs this process may run on.
    pub cores: u32,
    /// Installed memory.
    pub memory_bytes: u64,
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Type of the file system that holds the data directory, as mounted.
    pub filesystem: String,
    /// Soft limit of locked memory; `null` when there is none.
    pub locked_memory_bytes: Option<u64>,
    /// Soft limit of open files; `null` when there is none.
    pub open_files: Option<u64>,
}

impl MachineFacts {
    /// Looks at this machine and at the file system of `dir`.
    pub fn gather(dir: &Path) -> Self {
        let limits = read("/proc/self/limits");
        Self {
            cpu: cpu_model(&read("/proc/cpuinfo")),
            cores: std::thread::available_parallelism().map_or(0, |n| n.get() as u32),
            memory_bytes: memory_bytes(&read("/proc/meminfo")),
            kernel: or_unknown(read("/proc/sys/kernel/osrelease").trim()),
            filesystem: filesystem(dir),
            locked_memory_bytes: soft_limit(&limits, "Max locked memory"),
            open_files: soft_limit(&limits, "Max open files"),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn or_unknown(text: &str) -> String {
    if text.is_empty() { "unknown".into() } else { text.into() }
}

/// The value of the first `key : value` line of `/proc/cpuinfo` that names the CPU.
fn cpu_model(cpuinfo: &str) -> String {
    let named = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
        line.split_once(':').map(|(_, value)| value.trim())
    };
    or_unknown(named("model name").or_else(|| named("Model")).unwrap_or_default())
}

fn memory_bytes(meminfo: &str) -> u64 {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    kib.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// How much memory this process may lock, bytes; `None` when there is no limit.
pub fn locked_memory_limit() -> Option<u64> {
    soft_limit(&read("/proc/self/limits"), "Max locked memory")
}

/// Raises the soft limit of open files to the hard one: the usual soft limit of 1,024 is less than
/// the clients a node accepts, and a log that cannot open its next segment stops the node.
pub fn raise_open_files() {
    // SAFETY: the structure is a local of the right type that both calls read or fill. A failure
    // leaves the limit as it is.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Soft limit from `/proc/self/limits`; `None` for "unlimited" (or a table without that line).
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let rest = limits.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn filesystem(dir: &Path) -> String {
    let Ok(absolute) = fs::canonicalize(dir) else { return "unknown".into() };
    or_unknown(mounted_type(&read("/proc/self/mountinfo"), &absolute).unwrap_or_default())
}

/// Type of the mount that `path` lies on: the longest mount point that is a prefix of it; of several
/// mounts on one point the last covers the others.
fn mounted_type<'a>(mountinfo: &'a str, path: &Path) -> Option<&'a str> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?;
            path.starts_with(point).then_some((point.len(), kind.split(' ').next()?))
        })
        .max_by_key(|(length, _)| *length)
        .map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_a_cpu_and_memory() {
        let facts = MachineFacts::gather(Path::new("."));
        assert!(facts.cores > 0 && facts.memory_bytes > 1 << 20);
        assert!(facts.kernel.contains('.'), "{}", facts.kernel);
        assert_ne!(facts.filesystem, "unknown");
    }

    #[test]
    fn the_longest_mount_point_decides_the_file_system() {
        let mounts = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      30 21 0:25 / /data rw - xfs /dev/vdb rw\n\
                      31 21 0:26 / /data/fast rw - tmpfs none rw\n\
                      32 21 0:27 / /data/fast rw - btrfs none rw\n";
        let of = |path: &str| mounted_type(mounts, Path::new(path));
        assert_eq!(of("/home/a"), Some("ext4"));
        assert_eq!(of("/data/wal"), Some("xfs"));
        assert_eq!(of("/database"), Some("ext4"), "a prefix of a name is not a mount point");
        assert_eq!(of("/data/fast/0"), Some("btrfs"), "the later mount covers the earlier");
    }

    #[test]
    fn limits_are_read_and_unlimited_is_none() {
        let limits = "Max locked memory         8388608              unlimited            bytes\n\
                      Max open files            unlimited            unlimited            files\n";
        assert_eq!(soft_limit(limits, "Max locked memory"), Some(8 << 20));
        assert_eq!(soft_limit(limits, "Max open files"), None);
    }

    #[test]
    fn a_cpu_without_a_model_name_is_unknown() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Fast CPU\n"), "Fast CPU");
        assert_eq!(cpu_model("processor : 0\n"), "unknown");
        assert_eq!(memory_bytes("MemTotal:       1024 kB\n"), 1 << 20);
    }
}
