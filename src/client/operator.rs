//! An operator's hand: commands to groups, one after another, each waited for.

use std::io;
use std::time::Duration;

use thiserror::Error;

use super::handle::{Client, RequestError};
use crate::ids::{GroupId, NodeId};
use crate::wire::admin::{AdminReply, AdminRequest};

/// How long one command may take to be answered, leader changes included.
const LIMIT: Duration = Duration::from_secs(12);

/// Why a command has no answer.
#[derive(Debug, Error)]
pub enum OperatorError {
    #[error("no answer to the command for group {group}: {error}")]
    Request { group: GroupId, error: RequestError },
    #[error("the answer of group {group} cannot be read ({error}); use a tool of the same version")]
    Reply { group: GroupId, error: serde_json::Error },
}

/// A connection for commands. See [`AdminRequest`].
pub struct Operator {
    client: Client,
}

impl Operator {
    /// To the cluster that these client addresses belong to.
    pub fn connect<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> io::Result<Self> {
        Ok(Self { client: Client::connect(addresses)? })
    }

    /// Gives `request` to the leader of `group`, or to the replica on `node`, and waits for the
    /// answer.
    pub fn tell(
        &self,
        group: GroupId,
        node: Option<NodeId>,
        request: AdminRequest,
    ) -> Result<AdminReply, OperatorError> {
        let request_error = |error| OperatorError::Request { group, error };
        let ticket = self.client.admin(group, node, request).map_err(request_error)?;
        let json = ticket.wait(LIMIT).map_err(request_error)?;
        AdminReply::from_json(&json).map_err(|error| OperatorError::Reply { group, error })
    }
}
