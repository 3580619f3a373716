//! Raft for one group, pure. (Contract: see below.)
pub mod message;
pub mod ready;
