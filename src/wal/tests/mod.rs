//! The log played against a simulated disk.
//!
//! disk.rs: sectors, unsynced writes, renames; story.rs: a run with its model of what must be found
//! again; crash.rs: images of power cuts; faults.rs: errors of the disk; rot.rs: damaged bytes;
//! after_rot.rs: the life after them; leftovers.rs: what only looks like a log;
//! shapes.rs: sizes, edges and orders; fuzz.rs: bytes that no log wrote.

mod after_rot;
mod crash;
pub(crate) mod disk;
mod faults;
mod front;
mod fuzz;
mod leftovers;
mod rot;
mod shapes;
pub(crate) mod story;
