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

/// What an operator wants of the group that the frame names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminRequest {
    /// The group as this node sees it; any node answers.
    Show,
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
