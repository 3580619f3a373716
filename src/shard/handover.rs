//! Leadership leaves this node: because an operator wants it, or because the node stops.

use super::Shard;
use crate::ids::{GroupId, NodeId, Tick};
use crate::machine::StateMachine;
use crate::raft::{Event, TransferRefused};

impl<M: StateMachine> Shard<M> {
    /// Begins to hand over a group that this node leads; how it ends shows in the roles.
    pub fn transfer(
        &mut self,
        now: Tick,
        group: GroupId,
        to: NodeId,
    ) -> Result<(), TransferRefused> {
        let Some(local) = self.local(group) else { return Err(TransferRefused::NotLeader(None)) };
        self.wake(now, local, None);
        self.groups[local as usize].raft.may_transfer(now, to)?;
        self.step(now, local, Event::Transfer { to });
        Ok(())
    }
}
