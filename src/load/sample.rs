//! Who used the CPU: time on a core of every thread of this process, told apart by thread name.
//!
//! The embedded cluster and its load generator share one process. Threads whose name begins with
//! [`LOAD_THREAD_PREFIX`] are the generator's, those that begin with [`NODE_THREAD_PREFIX`] the
//! nodes'. A ring's kernel workers (`iou-wrk-<tid>`, `iou-sqp-<pid>`) appear as threads of the
//! process too and count for the thread that owns the ring.

use std::fs;
use std::io;

/// Threads of the load generator are named `load…`.
pub const LOAD_THREAD_PREFIX: &str = "load";
/// Threads of the nodes are named `node…`.
pub const NODE_THREAD_PREFIX: &str = "node";

/// CPU time of one thread since it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadCpu {
    pub tid: u32,
    /// At most 15 bytes: the kernel keeps no more.
    pub name: String,
    pub cpu_ns: u64,
}

impl ThreadCpu {
    /// All threads of this process. One that ends meanwhile is left out.
    pub fn sample() -> io::Result<Vec<Self>> {
        let mut threads = Vec::new();
        for entry in fs::read_dir("/proc/self/task")? {
            let path = entry?.path();
            let tid = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            let name = fs::read_to_string(path.join("comm"));
            let times = fs::read_to_string(path.join("schedstat"));
            if let (Some(tid), Ok(name), Ok(times)) = (tid, name, times) {
                threads.push(Self { tid, name: name.trim_end().into(), cpu_ns: on_cpu_ns(&times) });
            }
        }
        Ok(threads)
    }
}

/// `schedstat`: nanoseconds on a CPU, nanoseconds waiting for one, times scheduled.
fn on_cpu_ns(schedstat: &str) -> u64 {
    schedstat.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// CPU time between two samples, nanoseconds. Threads that ended before the second sample are not
/// in it: sample before the threads are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuUse {
    pub nodes_ns: u64,
    pub load_ns: u64,
    /// Neither: the main thread, the progress bar.
    pub other_ns: u64,
}

impl CpuUse {
    /// What every thread of `after` used since `before`. A thread that is not in `before` began
    /// in between.
    pub fn between(before: &[ThreadCpu], after: &[ThreadCpu]) -> Self {
        let mut used = Self::default();
        for thread in after {
            let earlier = before.iter().find(|t| t.tid == thread.tid).map_or(0, |t| t.cpu_ns);
            let ns = thread.cpu_ns.saturating_sub(earlier);
            match owner_name(thread, after) {
                name if name.starts_with(LOAD_THREAD_PREFIX) => used.load_ns += ns,
                name if name.starts_with(NODE_THREAD_PREFIX) => used.nodes_ns += ns,
                _ => used.other_ns += ns,
            }
        }
        used
    }
}

/// The name of the thread itself or, for a ring's kernel worker, of the ring's owner.
fn owner_name<'a>(thread: &'a ThreadCpu, all: &'a [ThreadCpu]) -> &'a str {
    let owner = ["iou-wrk-", "iou-sqp-"]
        .iter()
        .find_map(|prefix| thread.name.strip_prefix(prefix)?.parse::<u32>().ok());
    let owner = owner.and_then(|tid| all.iter().find(|t| t.tid == tid));
    owner.map_or(&thread.name, |t| &t.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    fn thread(tid: u32, name: &str, cpu_ns: u64) -> ThreadCpu {
        ThreadCpu { tid, name: name.into(), cpu_ns }
    }

    #[test]
    fn time_goes_to_the_side_the_thread_is_named_after() {
        let before = [thread(1, "ringraft", 5), thread(2, "node-1-s0", 100)];
        let after = [
            thread(1, "ringraft", 6),
            thread(2, "node-1-s0", 150),
            thread(3, "load-0", 30),
            thread(4, "iou-wrk-2", 7),
            thread(5, "iou-wrk-3", 2),
        ];
        let used = CpuUse::between(&before, &after);
        assert_eq!(used, CpuUse { nodes_ns: 57, load_ns: 32, other_ns: 1 });
    }

    #[test]
    fn a_thread_id_that_was_used_again_does_not_go_below_zero() {
        let used = CpuUse::between(&[thread(2, "node-1", 100)], &[thread(2, "load-0", 30)]);
        assert_eq!(used.load_ns, 0);
    }

    #[test]
    fn a_working_thread_is_seen_to_work() {
        let before = ThreadCpu::sample().unwrap();
        let worker = std::thread::Builder::new().name("load-test".into()).spawn(|| {
            let mut sum = 0u64;
            loop {
                (0..1_000_000u64).for_each(|n| sum = black_box(sum ^ n));
                let used = CpuUse::between(&[], &ThreadCpu::sample().unwrap());
                if used.load_ns > 0 {
                    break used;
                }
            }
        });
        let used = worker.unwrap().join().unwrap();
        assert!(!before.is_empty() && used.load_ns > 0);
    }
}
