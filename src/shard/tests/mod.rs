//! The shard played as a cluster: simulated disks, network and clients, virtual time.
//!
//! world.rs: nodes, wires and the order of events; start.rs: how a node starts; bytes.rs: blocks and frames; machine.rs: a state
//! machine that remembers who;
//! acknowledge.rs: when a client hears; leaders.rs: changes of leader, sessions; limits.rs: caps and
//! full disks; restart.rs: recovery and catching up; many.rs: groups by the thousand; hostile.rs:
//! frames that no peer writes; questions.rs: queries and status; figures.rs: what is counted;
//! files.rs: files of snapshots; snapshots.rs: followers that cannot use them; transfers.rs: those that break off and go on;
//! recovering.rs: lost memory; hibernation.rs: groups that sleep; reads.rs: who may answer, and who leads; sessions.rs: how they end;
//! random.rs: everything at once.

mod acknowledge;
mod bytes;
mod figures;
mod files;
mod hibernation;
mod hostile;
mod leaders;
mod limits;
mod machine;
mod many;
mod questions;
mod random;
mod reads;
mod recovering;
mod restart;
mod roster;
mod sessions;
mod snapshots;
mod start;
mod transfers;
mod world;
