//! The consensus core and the write-ahead log beside their peers, on the same work.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml --bin compare` prints the tables:
//! rates, latencies and ratios from interleaved rounds. `cargo bench` there gives each side alone,
//! with criterion's confidence intervals.
//!
//! ```text
//! workload     what a command is, which batches and groups are measured
//! side         one contestant: a step of work; rounds interleaved, medians and ratios
//! table        what `compare` prints
//! calibration  what the disk itself gives in this minute
//! scratch      a directory on the real disk that vanishes
//! raft_rs      peer: crate `raft`, three replicas in one thread
//! raft_engine  peer: crate `raft-engine`, one writer, a sync per append
//! our_raft     ours: three replicas in one thread
//! our_wal      ours: one writer, one append at a time, over segments
//! our_stream   ours: appends in flight without limit, over a ring
//! segments     the files under our log
//! ```

pub mod calibration;
pub mod our_raft;
pub mod our_stream;
pub mod our_wal;
pub mod raft_engine;
pub mod raft_rs;
pub mod scratch;
pub mod segments;
pub mod side;
pub mod table;
pub mod workload;
