//! shard
pub mod sessions;
