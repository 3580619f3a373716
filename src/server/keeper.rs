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
        Arc::new(Self { inner: Mutex::new(Inner { directory, recovering }) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Asks the directory.
    pub fn with<R>(&self, ask: impl FnOnce(&mut DataDir) -> R) -> R {
        ask(&mut self.lock().directory)
    }

    /// No group of this shard is RECOVERING any more; the last shard's word is recorded.
    pub fn shard_recovered(&self, shard: u32) {
        let mut inner = self.lock();
        inner.recovering[shard as usize] = false;
        if !inner.recovering.contains(&true) {
            inner.directory.mark_recovered();
        }
    }
}
