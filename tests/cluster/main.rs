//! Three real processes on a real disk, and what may happen to them: kill -9, disks that fail or
//! fill up, power cuts, wrong files, wrong bytes, pauses.
//!
//! Each story starts `ringraft serve` as its own children, on ports of its own and in a directory
//! under the build's target folder, and removes all of it. Stories with a cluster run one at a time:
//! two clusters and their load on few cores would measure each other.
//!
//! `RINGRAFT_ROUNDS=20` asks for that many rounds of every kind of kill -9 and of power cut; the
//! default is 2.

mod admin;
mod bad_config;
mod bad_input;
mod bench;
mod check;
mod cluster;
mod disk_error;
mod full_disk;
mod groups;
mod kill9;
mod lifecycle;
mod load;
mod members;
mod mounts;
mod openmetrics;
mod pause;
mod power_cut;
mod process;
mod proxy;
mod raw;
mod reads;
mod recover;
mod recovering;
mod rolling;
mod shards;
mod snapshots;
