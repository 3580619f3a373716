//! The consensus core and the write-ahead log beside their peers, on the same work.
//!
//! ```text
//! workload   what a command is, which batches and groups are measured
//! side       one contestant: a step of work; rounds interleaved, medians and ratios
//! table      what `compare` prints
//! scratch    a directory on the real disk that vanishes
//! raft_rs    peer: crate `raft`, three replicas in one thread
//! raft_engine peer: crate `raft-engine`, one writer, a sync per append
//! ```

pub mod raft_engine;
pub mod raft_rs;
pub mod scratch;
pub mod side;
pub mod table;
pub mod workload;
