//! All that touches the machine: its facts, its rings and its disks.
//!
//! [`calibrate`] measures what one write and one round trip cost here and now, [`machine`] says on
//! what machine that was, [`probe`] finds out what the kernel and a directory can do.

pub mod calibrate;
pub mod cold;
pub mod disk;
pub mod entropy;
pub mod files;
pub mod lines;
pub mod links;
pub mod lookup;
pub mod machine;
pub mod net;
pub mod offline;
pub mod placement;
pub mod probe;
pub mod process;
pub mod reactor;
pub mod ring;
pub mod routing;
pub mod scrape;
pub mod segments;
