//! Ringraft: a batched multi-Raft replication engine for Linux.

pub mod block;
pub mod checksum;
pub mod cli;
pub mod client;
pub mod config;
pub mod ids;
pub mod load;
pub mod machine;
pub mod raft;
pub mod runtime;
pub mod server;
pub mod shard;
pub mod wal;
pub mod wire;
