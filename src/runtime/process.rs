//! What this process uses, as the kernel accounts for it.

use std::fs;

/// At one moment. What cannot be found out is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessFigures {
    /// Time on a core since the start, user and system, all threads.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub open_files: u64,
    pub threads: u64,
}

impl ProcessFigures {
    /// Asks the kernel: a few system calls and two small files.
    pub fn gather() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            cpu_seconds: cpu_seconds(),
            resident_bytes: number(&status, "VmRSS:") * 1024,
            virtual_bytes: number(&status, "VmSize:") * 1024,
            open_files: fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
            threads: number(&status, "Threads:"),
        }
    }
}

fn cpu_seconds() -> f64 {
    // SAFETY: the structure is a local of the right type, all zeros are a valid value of it, and the
    // call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// The number behind a key of `/proc/self/status`; sizes there are in KiB.
fn number(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something_of_everything() {
        let used = ProcessFigures::gather();
        assert!(used.resident_bytes > 1 << 20 && used.virtual_bytes > used.resident_bytes);
        assert!(used.open_files >= 3 && used.threads >= 1 && used.cpu_seconds > 0.0, "{used:?}");
    }

    #[test]
    fn a_key_is_found_by_its_whole_name() {
        let status = "VmSize:\t  20 kB\nVmRSS:\t   1234 kB\nThreads:\t7\n";
        assert_eq!((number(status, "VmRSS:"), number(status, "Threads:")), (1234, 7));
        assert_eq!(number(status, "VmSwap:"), 0);
    }
}
