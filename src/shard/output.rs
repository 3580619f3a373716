//! What a turn asks of the runtime, and what a shard has counted.

use super::LinkChange;
use crate::raft::ready::{PossibleLoss, Transition};
use crate::wal::{DiskOp, WalError};
use crate::wire::client::Refused;

/// What the runtime has to carry out after a turn. Cleared by whoever carries it out.
#[derive(Debug, Default)]
pub struct Output {
    pub disk: Vec<DiskOp>,
    /// For the log of events.
    pub transitions: Vec<Transition>,
    /// To be told to an operator: acknowledged commands may be missing.
    pub losses: Vec<PossibleLoss>,
    /// Whom this shard is to be linked with, besides those of the start.
    pub links: Vec<LinkChange>,
    /// The first error of the log: say why and stop the process.
    pub fatal: Option<WalError>,
}

/// Counters since the start, for reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardStats {
    pub commands_applied: u64,
    pub blocks_applied: u64,
    /// By the reason's [`Refused::kind`].
    pub refused: [u64; Refused::REASONS.len()],
    pub appends_held_back: u64,
    pub turns: u64,
    /// Elections on this node after which acknowledged commands may be missing.
    pub possible_data_loss: u64,
    /// Elections that this node stood in, and those it won.
    pub campaigns: u64,
    pub elections_won: u64,
    /// Questions answered, by their [`Consistency`](crate::wire::client::Consistency).
    pub reads: [u64; 4],
}

impl ShardStats {
    /// Proposals refused, whatever the reason.
    pub fn proposals_refused(&self) -> u64 {
        self.refused.iter().sum()
    }
}
