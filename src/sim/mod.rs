//! The deterministic simulator: the shard, log, protocol, codec and state machine that ship, on
//! disks, wires and clocks that one seed decides about.

mod blackout;
mod check;
pub mod clock;
pub mod control;
pub mod disk;
mod faults;
mod frozen;
pub mod linear;
pub mod members;
pub mod nemesis;
mod network;
mod node;
pub mod options;
pub mod oracle;
mod queries;
pub mod queue;
pub mod registers;
pub mod regressions;
pub mod roster;
pub mod run;
pub mod shadow;
pub mod shrink;
mod start;
pub mod stats;
pub mod subject;
pub mod trace;
mod workload;
pub mod world;

pub use crate::rng;

#[cfg(test)]
mod tests;
