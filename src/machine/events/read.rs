//! The read side: answers a [`Query`] from what is stored.

use super::EventStore;
use super::query::{DigestReply, Event, LIST_QUEUES_MAX, Query, QueueInfo, READ_BYTES_MAX};
use super::queue::{Queue, Stored};
use crate::ids::Index;
use crate::machine::{QueryError, StateMachine};

impl<'a> From<Stored<'a>> for Event<'a> {
    fn from(stored: Stored<'a>) -> Self {
        Event {
            index: Index(stored.index),
            timestamp: stored.timestamp,
            id: stored.id.and_then(|id| id.try_into().ok()),
            topic: stored.topic,
            value: stored.value,
        }
    }
}

/// A full digest walks the store on the shard's thread; over this many bytes it would hold up
/// heartbeats.
const FULL_DIGEST_BYTES_MAX: u64 = 32 << 20;

impl EventStore {
    /// Appends the answer to `reply`.
    pub(super) fn answer(&self, query: &Query<'_>, reply: &mut Vec<u8>) -> Result<(), QueryError> {
        match *query {
            Query::Read { queue, from, limit, bytes_max } => {
                let queue = self.queue(queue).ok_or(QueryError::NotFound("queue"))?;
                read(queue, from, limit, bytes_max.min(READ_BYTES_MAX), reply);
            }
            Query::List { after, limit } => self.list(after, limit.min(LIST_QUEUES_MAX), reply),
            Query::Config { key } => {
                let value = self.settings.get(key);
                reply.extend_from_slice(value.ok_or(QueryError::NotFound("configuration key"))?);
            }
            Query::Digest => self.put_digest(self.digest, reply),
            Query::FullDigest if self.memory_bytes() > FULL_DIGEST_BYTES_MAX => {
                return Err(QueryError::Malformed("a full digest of so large a store"));
            }
            Query::FullDigest => self.put_digest(self.full_digest(), reply),
        }
        Ok(())
    }

    fn list(&self, after: &[u8], limit: u32, reply: &mut Vec<u8>) {
        let queues = self.queues_by_name();
        let start = queues.partition_point(|queue| &*queue.name <= after);
        let page = &queues[start..queues.len().min(start + limit as usize)];
        reply.extend_from_slice(&(page.len() as u32).to_le_bytes());
        for queue in page {
            let info = QueueInfo {
                name: &queue.name,
                events: queue.visible_events(),
                bytes: queue.visible_bytes(),
                last: Index(queue.last()),
                trimmed_through: Index(queue.trimmed_through()),
            };
            info.encode_into(reply);
        }
    }

    fn put_digest(&self, digest: u64, reply: &mut Vec<u8>) {
        DigestReply { digest, applied: self.applied }.encode_into(reply);
    }
}

fn read(queue: &Queue, from: Index, limit: u32, bytes_max: u32, reply: &mut Vec<u8>) {
    let start = reply.len();
    let (mut next, mut count) = (from, 0u32);
    reply.extend_from_slice(&queue.trimmed_through().to_le_bytes());
    reply.extend_from_slice(&[0; 12]);
    for event in queue.read(from.get()).take(limit as usize).map(Event::from) {
        let bytes = reply.len() - start + event.encoded_bytes();
        if count > 0 && bytes > bytes_max as usize {
            break;
        }
        event.encode_into(reply);
        next = event.index.next();
        count += 1;
    }
    reply[start + 8..start + 16].copy_from_slice(&next.get().to_le_bytes());
    reply[start + 16..start + 20].copy_from_slice(&count.to_le_bytes());
}
