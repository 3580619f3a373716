//! The deterministic simulator: the shard, log, protocol, codec and state machine that ship, on
//! disks, wires and clocks that one seed decides about.

pub mod disk;
pub mod linear;
pub mod rng;
pub mod shadow;
