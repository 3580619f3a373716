//! What others may see of a shard's groups: for tests and the simulator. Nothing here changes
//! anything.

use super::Shard;
use super::group::Group;
use crate::ids::{GroupId, Index};
use crate::machine::StateMachine;
use crate::raft::Raft;

/// One group, to be looked at between turns.
pub struct GroupView<'a, M>(&'a Group<M>);

impl<'a, M: StateMachine> GroupView<'a, M> {
    /// Its protocol: role, term, vote, log and cursors.
    pub fn raft(&self) -> &'a Raft {
        &self.0.raft
    }

    /// What its committed commands have become.
    pub fn machine(&self) -> &'a M {
        &self.0.machine
    }

    /// Applied through this index.
    pub fn applied(&self) -> Index {
        self.0.applied
    }

    /// Of state machine and sessions at [`GroupView::applied`]; equal on all replicas that applied
    /// as much.
    pub fn digest(&self) -> u64 {
        self.0.machine.digest() ^ self.0.sessions.digest().rotate_left(32)
    }

    /// Proposals of this leader that wait for their answer.
    pub fn pending(&self) -> usize {
        self.0.pending.len()
    }

    /// Whether acknowledgements wait for stable storage.
    pub fn is_synced(&self) -> bool {
        self.0.sync
    }
}

impl<M: StateMachine> Shard<M> {
    /// The groups of this shard, in ascending order; those that have ended are no more.
    pub fn groups(&self) -> impl Iterator<Item = GroupView<'_, M>> {
        self.groups.iter().filter(|group| !group.ended).map(GroupView)
    }

    /// Groups that are here and groups that have ended here.
    pub fn places(&self) -> usize {
        self.groups.len()
    }

    /// Checks what must hold between turns; for tests and the simulator.
    pub fn check_invariants(&self) {
        let recovering = self.groups.iter().filter(|group| group.raft.is_recovering()).count();
        assert_eq!(recovering + self.roster.recovering(), self.recovering);
        let asleep = self.groups.iter().filter(|group| group.raft.is_hibernating()).count();
        assert_eq!(asleep, self.hibernating());
        for group in &self.groups {
            group.raft.check_invariants();
            assert!(group.applied <= group.raft.commit(), "applied <= committed");
            assert!(!group.ended || group.raft.last_index() == Index::ZERO, "nothing is left");
        }
    }

    /// One of them; `None` if another shard has it.
    pub fn group(&self, id: GroupId) -> Option<GroupView<'_, M>> {
        let local = self.local(id)?;
        Some(GroupView(&self.groups[local as usize]))
    }
}
