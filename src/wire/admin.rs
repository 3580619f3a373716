//! An operator's commands to one group: what travels as JSON in [`FrameKind::Admin`] and
//! [`FrameKind::AdminReply`]. JSON, as these are few, are read by people, and grow fields.
//!
//! A command is answered by the turn that takes it: it was begun, or why not. How it comes out
//! shows in the shard's status.
//!
//! [`FrameKind::Admin`]: super::frame::FrameKind::Admin
//! [`FrameKind::AdminReply`]: super::frame::FrameKind::AdminReply

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::NodeId;
use crate::membership::{NodeAddress, Step};

/// What an operator wants of the group that the frame names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminRequest {
    /// The group as this node sees it; any node answers.
    Show,
    /// The leader hands the group over to node `to`; without one, to the node it belongs to. The
    /// answer's data: `{"to": node}` if a transfer was begun.
    Transfer {
        #[serde(default)]
        to: Option<u32>,
    },
    /// The group's members as this node sees them; the leader knows most.
    Members,
    /// The groups of the shard, as the leader of its first group has decided: to that one.
    Groups,
    /// Makes `count` groups on the shard of the group that this is for, which must be its first one:
    /// the next numbers, beginning with `group` if it is given. The same `request` (a random number
    /// above 0) is carried out once. The answer's data: `{"done": whether it is applied, "groups":
    /// [numbers]}`, or `{"again": whether it may go later}`.
    CreateGroups {
        #[serde(default)]
        group: Option<u32>,
        count: u32,
        #[serde(default)]
        request: u64,
        #[serde(default)]
        dry: bool,
    },
    /// Ends a group of the shard for good: its data goes, its number is not used again. To the first
    /// group of the shard; answered like a creation.
    DeleteGroup {
        group: u32,
        #[serde(default)]
        dry: bool,
    },
    /// Changes the members (§6); only the leader answers. `dry`: says only what it would mean, or why
    /// it would be refused. A refusal's data: `{"again": whether it may go later}`; with `means` (what
    /// it would mean) if it waits for nothing but the same change of other groups of the shard.
    Change {
        steps: Vec<MemberStep>,
        #[serde(default)]
        force: bool,
        #[serde(default)]
        dry: bool,
    },
}

/// One step of a change of members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum MemberStep {
    /// A new member; a voter as soon as it has caught up, if it `votes`.
    Add {
        node: u32,
        votes: bool,
        peer: String,
        client: String,
    },
    Remove {
        node: u32,
    },
    /// A learner becomes a voter as soon as it has caught up.
    Promote {
        node: u32,
    },
    /// A voter becomes a learner.
    Demote {
        node: u32,
    },
    /// A new node takes the place of an old one as soon as it has caught up.
    Replace {
        old: u32,
        node: u32,
        peer: String,
        client: String,
    },
}

impl MemberStep {
    /// As a group takes it.
    pub fn step(&self) -> Step {
        let address = |node: u32, peer: &str, client: &str| {
            let (peer, client) = (peer.to_owned(), client.to_owned());
            Some(NodeAddress { node: NodeId(node), peer, client })
        };
        match *self {
            Self::Add { node, votes, ref peer, ref client } => {
                Step::Add { node: NodeId(node), votes, address: address(node, peer, client) }
            }
            Self::Replace { old, node, ref peer, ref client } => {
                let address = address(node, peer, client);
                Step::Replace { old: NodeId(old), new: NodeId(node), address }
            }
            Self::Remove { node } => Step::Remove(NodeId(node)),
            Self::Promote { node } => Step::Promote(NodeId(node)),
            Self::Demote { node } => Step::Demote(NodeId(node)),
        }
    }
}

impl AdminRequest {
    /// As it goes over the wire.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data has no map keys or values that JSON lacks")
    }

    /// Back from the wire. The error names what is wrong with it.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminReply {
    /// It was carried out or begun. False: nothing was changed.
    pub done: bool,
    /// For people: what was begun, or why not and what to do.
    pub text: String,
    /// For programs; null where there is nothing to add.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

impl AdminReply {
    /// It was carried out or begun.
    pub fn done(text: impl Into<String>) -> Self {
        Self { done: true, text: text.into(), data: Value::Null }
    }

    /// Nothing was changed, because of `text`.
    pub fn refused(text: impl Into<String>) -> Self {
        Self { done: false, text: text.into(), data: Value::Null }
    }

    /// Adds what programs read.
    pub fn with(mut self, data: impl Serialize) -> Self {
        self.data = serde_json::to_value(data).unwrap_or_default();
        self
    }

    /// As it goes over the wire.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data has no map keys or values that JSON lacks")
    }

    /// Back from the wire.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }
}
