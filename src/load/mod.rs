//! The load generator's parts that know no socket: what to send ([`workload`]), when to send it
//! ([`schedule`]), how long it took ([`histogram`]), what it cost ([`sample`]) and how that is told
//! ([`report`], [`table`]).
//!
//! One run, as its driver goes through it:
//!
//! ```text
//! let mut workload = Workload::new(...)?;      let mut pacer = Pacer::new(schedule);
//! let before = ThreadCpu::sample()?;           let mut latency = Latency::new(schedule.is_open());
//! loop until the time is up:
//!     match pacer.next(now) {
//!         Next::Send { due_ns }  => send workload.block(...), keep (due_ns, now) beside it
//!         Next::At(ns)           => sleep until then or until an acknowledgement
//!         Next::Full             => sleep until an acknowledgement
//!     }
//!     on an acknowledgement      => pacer.done(); latency.record(due_ns, sent_ns, now, count)
//! RunReport::new(&Measured { latency, cpu: CpuUse::between(&before, &ThreadCpu::sample()?), ... })
//! ```

pub mod drive;
pub mod histogram;
pub mod options;
pub mod progress;
pub mod reads;
pub mod report;
pub mod sample;
pub mod schedule;
pub mod table;
pub mod workload;
