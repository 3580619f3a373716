//! The log played against a simulated disk.
//!
//! disk.rs: sectors, unsynced writes, renames; story.rs: a run with its model of what must be found
//! again; crash.rs: images of power cuts; faults.rs: errors of the disk and rot; shapes.rs: sizes,
//! edges and orders; fuzz.rs: bytes that no log wrote.

mod crash;
mod disk;
mod story;
