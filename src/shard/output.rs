//! What a turn asks of the runtime.

use super::LinkChange;
use super::snapshots::{FileOp, Trouble};
use crate::raft::ready::{PossibleLoss, Transition};
use crate::wal::{DiskOp, WalError};

/// What the runtime has to carry out after a turn. Cleared by whoever carries it out.
#[derive(Debug, Default)]
pub struct Output {
    pub disk: Vec<DiskOp>,
    /// On the files of snapshots; answered by [`Shard::file_done`](super::Shard::file_done).
    pub files: Vec<FileOp>,
    /// For the log of events.
    pub transitions: Vec<Transition>,
    /// With files of snapshots; for the log of events.
    pub troubles: Vec<Trouble>,
    /// To be told to an operator: acknowledged commands may be missing.
    pub losses: Vec<PossibleLoss>,
    /// Whom this shard is to be linked with, besides those of the start.
    pub links: Vec<LinkChange>,
    /// The first error of the log: say why and stop the process.
    pub fatal: Option<WalError>,
}
