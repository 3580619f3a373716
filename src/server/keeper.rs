//! The boot record of a running node, shared by its shards. It is written rarely: when a peer is
//! seen for the first time, and when the last group has left RECOVERING.

use std::sync::{Arc, Mutex, MutexGuard};

use super::directory::DataDir;
use crate::ids::NodeId;
use crate::runtime::routing::Doorman;
use crate::wire::hello::Refusal;

/// See the module. Whoever calls waits for the disk: once a peer and once after a loss of power.
pub struct Keeper {
    inner: Mutex<Inner>,
}

struct Inner {
    directory: DataDir,
    /// By shard: some group of it may still be RECOVERING.
    recovering: Vec<bool>,
    /// Damage was found while the node ran: what a shard has recovered from is not all of it.
    damaged: bool,
}

impl Doorman for Keeper {
    fn admit(&self, node: NodeId) {
        self.lock().directory.admit(node);
    }

    fn check(&self, node: NodeId, disk: u128) -> Result<(), Refusal> {
        let mut inner = self.lock();
        if !inner.directory.knows(node) {
            return Err(Refusal::Node);
        }
        if inner.directory.pin_disk(node, disk) { Ok(()) } else { Err(Refusal::Disk) }
    }
}

impl Keeper {
    /// No shard has recovered yet.
    pub fn new(directory: DataDir, shards: u32) -> Arc<Self> {
        let recovering = vec![true; shards as usize];
        Arc::new(Self { inner: Mutex::new(Inner { directory, recovering, damaged: false }) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Asks the directory.
    pub fn with<R>(&self, ask: impl FnOnce(&mut DataDir) -> R) -> R {
        ask(&mut self.lock().directory)
    }

    /// Records that a running shard has found damage; nothing takes that back before the next start.
    pub fn mark_rot(&self) -> std::io::Result<()> {
        let mut inner = self.lock();
        inner.damaged = true;
        inner.directory.mark_rot()
    }

    /// No group of this shard is RECOVERING any more; the last shard's word is recorded.
    pub fn shard_recovered(&self, shard: u32) {
        let mut inner = self.lock();
        inner.recovering[shard as usize] = false;
        if !inner.recovering.contains(&true) && !inner.damaged {
            inner.directory.mark_recovered();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::directory::Owner;
    use crate::wal::Suspect;

    /// Two shards after a loss of power. The second finds damage while it runs, and the node stops;
    /// before it has stopped the first one has its memory back.
    #[test]
    fn a_shard_that_has_recovered_does_not_take_back_the_damage_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let (voters, others) = (vec![NodeId(1)], Vec::new());
        let owner = Owner { cluster: 1, node: 1, shards: 2, voters, others, unsynced: 0 };
        let keeper = Keeper::new(DataDir::open(dir.path(), &owner).unwrap(), 2);
        keeper.shard_recovered(1);
        keeper.mark_rot().unwrap();
        keeper.shard_recovered(0);
        drop(keeper);
        let next = DataDir::open(dir.path(), &owner).unwrap();
        assert_eq!(next.suspect(), Suspect::Everything);
    }
}
