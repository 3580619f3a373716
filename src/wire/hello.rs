//! The handshake: who opens a connection says who it is and whom it wants; the other side answers
//! welcome or why not. Nothing else is read before it (bug 35: fail closed, identity bound to the
//! connection).
//!
//! ```text
//! Hello, 96 bytes of control                      HelloReply, 96 bytes of control
//!    0 u32 magic "RRFT"                              0 u32 magic
//!    4 u16 version                                   4 u16 version
//!    6 u8  role  1 peer, 2 client                    6 u8  zero
//!    7 u8  zero                                      7 u8  refusal  0 = welcome
//!    8 u128 cluster                                  8 u128 cluster
//!   24 u128 disk    of a peer                       24 u128 disk
//!   40 u64 config   hash of what must agree         40 u64 config
//!   48 u32 node     of a peer; 0 = client           48 u32 node
//!   52 u32 incarnation                              52 u32 incarnation
//!   56 u32 to       wanted node; 0 = whoever        56 u32 zero
//!   60 u32 shard    wanted shard                    60 u32 shard
//!   64 u32 zero                                     64 u32 shards of the node
//!   68 u32 zero                                     68 u32 groups of the cluster
//!   72 u64 first    hash of the first voters        72 zeros
//!   80 zeros
//! ```

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::frame::{FRAME_HEADER_BYTES, Frame, FrameError, FrameKind, FrameWriter};
use crate::ids::{Incarnation, NodeId};

/// First bytes of every handshake.
pub const MAGIC: u32 = u32::from_le_bytes(*b"RRFT");
/// Version of the handshake and of everything after it.
pub const PROTOCOL_VERSION: u16 = 1;
/// A handshake frame has exactly this size, so that not one byte of what follows is read with it.
pub const HELLO_BYTES: usize = FRAME_HEADER_BYTES + size_of::<HelloEntry>();
const _: () = assert!(HELLO_BYTES == 128);

#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct HelloEntry {
    magic: u32,
    version: u16,
    role: u8,
    refusal: u8,
    cluster: [u8; 16],
    disk: [u8; 16],
    config: u64,
    node: u32,
    incarnation: u32,
    to: u32,
    shard: u32,
    shards: u32,
    groups: u32,
    first: u64,
    zeros: [u8; 16],
}

/// What the opener is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Peer,
    Client,
}

/// The opener's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    pub role: Role,
    /// 0 from a client that does not care which cluster it talks to.
    pub cluster: u128,
    pub disk: u128,
    pub config: u64,
    pub node: Option<NodeId>,
    pub incarnation: Incarnation,
    pub to: Option<NodeId>,
    pub shard: u32,
    /// Hash of the voters of the groups' first configuration; 0 from a client, and from a node that
    /// joined later.
    pub first: u64,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloReply {
    pub refusal: Option<Refusal>,
    pub cluster: u128,
    pub disk: u128,
    pub config: u64,
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub shard: u32,
    pub shards: u32,
    pub groups: u32,
}

/// Why a connection is not welcome. Each says what to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[repr(u8)]
pub enum Refusal {
    #[error("protocol version differs: run the same release on both sides")]
    Version = 1,
    #[error("cluster id differs: this node belongs to another cluster")]
    Cluster = 2,
    #[error("another node was expected at this address: compare the addresses in the node lists")]
    Node = 3,
    #[error(
        "cluster configuration differs (nodes, groups, shards or limits of the state): make the [cluster] sections equal"
    )]
    Config = 4,
    #[error("disk id differs from the one this node is known by: its data directory was replaced")]
    Disk = 5,
    #[error("no such shard on this node")]
    Shard = 6,
    #[error("too many connections: raise limits.client_connections or close some")]
    Connections = 7,
    #[error("this port does not serve that role (clients and peers have a port each)")]
    Port = 8,
    #[error("the node is shutting down")]
    Shutdown = 9,
}

impl Refusal {
    fn from_wire(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Self::Version,
            2 => Self::Cluster,
            3 => Self::Node,
            4 => Self::Config,
            5 => Self::Disk,
            6 => Self::Shard,
            7 => Self::Connections,
            8 => Self::Port,
            9 => Self::Shutdown,
            _ => return None,
        })
    }
}

/// Why a handshake cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HelloError {
    #[error("not a Ringraft handshake: {0}")]
    Frame(#[from] FrameError),
    #[error("not a Ringraft handshake: wrong magic number")]
    Magic,
    #[error(
        "protocol version {theirs} instead of {PROTOCOL_VERSION}: run the same release on both sides"
    )]
    Version { theirs: u16 },
    #[error("malformed handshake: {0}")]
    Malformed(&'static str),
}

impl Hello {
    pub fn write(&self, out: &mut Vec<u8>) {
        let entry = HelloEntry {
            magic: MAGIC,
            version: PROTOCOL_VERSION,
            role: match self.role {
                Role::Peer => 1,
                Role::Client => 2,
            },
            refusal: 0,
            cluster: self.cluster.to_le_bytes(),
            disk: self.disk.to_le_bytes(),
            config: self.config,
            node: NodeId::to_wire(self.node),
            incarnation: self.incarnation.0,
            to: NodeId::to_wire(self.to),
            shard: self.shard,
            shards: 0,
            groups: 0,
            first: self.first,
            zeros: [0; 16],
        };
        write_entry(out, FrameKind::Hello, &entry);
    }

    pub fn read(frame: &Frame) -> Result<Self, HelloError> {
        let entry = read_entry(frame, FrameKind::Hello)?;
        let role = match entry.role {
            1 => Role::Peer,
            2 => Role::Client,
            _ => return Err(HelloError::Malformed("unknown role")),
        };
        let node = NodeId::from_wire(entry.node);
        if (role == Role::Peer) != node.is_some() {
            return Err(HelloError::Malformed("a peer names its node, a client none"));
        }
        Ok(Self {
            role,
            cluster: u128::from_le_bytes(entry.cluster),
            disk: u128::from_le_bytes(entry.disk),
            config: entry.config,
            node,
            incarnation: Incarnation(entry.incarnation),
            to: NodeId::from_wire(entry.to),
            shard: entry.shard,
            first: entry.first,
        })
    }
}

impl HelloReply {
    pub fn write(&self, out: &mut Vec<u8>) {
        let entry = HelloEntry {
            magic: MAGIC,
            version: PROTOCOL_VERSION,
            role: 0,
            refusal: self.refusal.map_or(0, |r| r as u8),
            cluster: self.cluster.to_le_bytes(),
            disk: self.disk.to_le_bytes(),
            config: self.config,
            node: self.node.0,
            incarnation: self.incarnation.0,
            to: 0,
            shard: self.shard,
            shards: self.shards,
            groups: self.groups,
            first: 0,
            zeros: [0; 16],
        };
        write_entry(out, FrameKind::HelloReply, &entry);
    }

    pub fn read(frame: &Frame) -> Result<Self, HelloError> {
        let entry = read_entry(frame, FrameKind::HelloReply)?;
        let refusal = match entry.refusal {
            0 => None,
            raw => Some(Refusal::from_wire(raw).ok_or(HelloError::Malformed("unknown refusal"))?),
        };
        let node = NodeId::from_wire(entry.node).ok_or(HelloError::Malformed("no node id"))?;
        if entry.shards == 0 || entry.groups == 0 {
            return Err(HelloError::Malformed("no shards or no groups"));
        }
        Ok(Self {
            refusal,
            cluster: u128::from_le_bytes(entry.cluster),
            disk: u128::from_le_bytes(entry.disk),
            config: entry.config,
            node,
            incarnation: Incarnation(entry.incarnation),
            shard: entry.shard,
            shards: entry.shards,
            groups: entry.groups,
        })
    }
}

fn write_entry(out: &mut Vec<u8>, kind: FrameKind, entry: &HelloEntry) {
    let mut writer = FrameWriter::begin(out);
    writer.entry(entry);
    writer.finish(kind, 1, 0);
}

fn read_entry(frame: &Frame, kind: FrameKind) -> Result<HelloEntry, HelloError> {
    if frame.kind != kind {
        return Err(FrameError::Unexpected(frame.kind).into());
    }
    let entry = HelloEntry::read_from_bytes(&frame.control)
        .map_err(|_| HelloError::Malformed("wrong size"))?;
    if entry.magic != MAGIC {
        return Err(HelloError::Magic);
    }
    if entry.version != PROTOCOL_VERSION {
        return Err(HelloError::Version { theirs: entry.version });
    }
    Ok(entry)
}
