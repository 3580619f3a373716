//! Bytes on a socket: frames, the handshake, and the messages of peers and clients.
//!
//! Any bytes decode to a value or a typed error: no panic, and nothing is allocated from a length
//! that was not checked against a limit first. The formats are drawn in `docs/formats.md`.
//!
//! The one arrow sideways: [`peer`] carries [`crate::raft::message`], whose types it names.

pub mod admin;
pub mod client;
pub mod frame;
pub mod hello;
pub mod peer;

#[cfg(test)]
mod tests;
