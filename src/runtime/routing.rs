//! Between the shards of a node: connections that one shard accepted for another.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;

use super::ring::Waker;
use super::scrape::{QUESTIONS_MAX, Question};
use crate::ids::NodeId;
use crate::wire::hello::{Hello, Refusal};

/// Connections that may wait for one shard.
const ARRIVALS_MAX: usize = 1024;

/// A connection whose handshake was read, on its way to the shard it names.
pub struct Arrival {
    pub socket: OwnedFd,
    pub hello: Hello,
}

/// The way into a shard from other threads.
pub struct ShardPort {
    pub arrivals: ArrayQueue<Arrival>,
    /// Answered between two turns.
    pub questions: ArrayQueue<Question>,
    /// Set once: drain and stop.
    pub stop: AtomicBool,
    pub waker: Waker,
}

impl ShardPort {
    pub fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            arrivals: ArrayQueue::new(ARRIVALS_MAX),
            questions: ArrayQueue::new(QUESTIONS_MAX),
            stop: AtomicBool::new(false),
            waker: Waker::new()?,
        }))
    }

    /// Tells the shard to drain and stop.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// What all shards of a node know of each other, and whom they ask about the other nodes' disks.
pub struct Routes {
    pub ports: Vec<Arc<ShardPort>>,
    doorman: Arc<dyn Doorman>,
}

/// Knows who may come. May wait for the boot record to be written.
pub trait Doorman: Send + Sync {
    /// Some group has this node as a member.
    fn admit(&self, node: NodeId);

    /// Whether a node may come with this disk id: the first one it was ever seen with is the one it
    /// keeps (bug 31: a wiped disk is not the old voter).
    fn check(&self, node: NodeId, disk: u128) -> Result<(), Refusal>;
}

impl Routes {
    pub fn new(ports: Vec<Arc<ShardPort>>, doorman: Arc<dyn Doorman>) -> Arc<Self> {
        Arc::new(Self { ports, doorman })
    }

    /// Gives a connection to its shard; it comes back when that shard's queue is full.
    pub fn hand_over(&self, arrival: Arrival) -> Result<(), Arrival> {
        let port = &self.ports[arrival.hello.shard as usize];
        port.arrivals.push(arrival)?;
        port.waker.wake();
        Ok(())
    }

    /// Who says whether another node may come.
    pub fn doorman(&self) -> &dyn Doorman {
        &*self.doorman
    }
}
