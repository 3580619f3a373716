//! Ringraft: a batched multi-Raft replication engine for Linux.

pub mod block;
pub mod client;
pub mod ids;
pub mod machine;
pub mod raft;
pub mod shard;
pub mod wal;
pub mod wire;
