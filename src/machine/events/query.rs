//! Queries of the event store and their answers, as bytes.
//!
//! ```text
//! query   u8 1 read      u64 from  u32 limit  u32 bytes_max  u16 size, queue
//!         u8 2 list      u32 limit  u16 size, name to begin after
//!         u8 3 config    u16 size, key
//!         u8 4 digest
//!         u8 5 full digest
//! answer  read           u64 trimmed_through  u64 next  u32 count, count events:
//!                        u64 index  u64 timestamp  u8 flags  u8 0  u16 topic size  u32 value size
//!                        [16 id, if flags & 1]  topic  value
//!         list           u32 count, count queues:
//!                        u64 events  u64 bytes  u64 last  u64 trimmed_through  u16 size, name
//!         config         the value
//!         digests        u64 digest  u64 applied
//! ```
//!
//! Little-endian, nothing padded. Answers decode into borrowed values.

use thiserror::Error;

use crate::block::{EVENT_ID_BYTES, FLAG_EVENT_ID, KEY_BYTES_MAX};
use crate::ids::Index;
use crate::machine::QueryError;

/// Most bytes of events in one answer; an event that is larger is answered alone.
pub const READ_BYTES_MAX: u32 = 512 << 10;
/// Most queues in one answer.
pub const LIST_QUEUES_MAX: u32 = 1000;

/// A question to one group's event store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query<'a> {
    /// Events of `queue` with index `from` or higher: at most `limit`, at most about `bytes_max`
    /// bytes, but at least one if there is one. Answered by [`ReadReply`].
    Read { queue: &'a [u8], from: Index, limit: u32, bytes_max: u32 },
    /// Queues by name, those after `after`. Answered by [`ListReply`].
    List { after: &'a [u8], limit: u32 },
    /// The value of a configuration key, as it was set.
    Config { key: &'a [u8] },
    /// The running digest. Answered by [`DigestReply`].
    Digest,
    /// A digest over all that can be seen; walks the whole store. Answered by [`DigestReply`].
    FullDigest,
}

impl<'a> Query<'a> {
    /// Appends the query's bytes. Names longer than [`KEY_BYTES_MAX`] are cut: none is that long.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match *self {
            Query::Read { queue, from, limit, bytes_max } => {
                out.push(1);
                out.extend_from_slice(&from.get().to_le_bytes());
                out.extend_from_slice(&limit.to_le_bytes());
                out.extend_from_slice(&bytes_max.to_le_bytes());
                put_name(out, queue);
            }
            Query::List { after, limit } => {
                out.push(2);
                out.extend_from_slice(&limit.to_le_bytes());
                put_name(out, after);
            }
            Query::Config { key } => {
                out.push(3);
                put_name(out, key);
            }
            Query::Digest => out.push(4),
            Query::FullDigest => out.push(5),
        }
    }

    /// The query's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out
    }

    /// Reads a query; all bytes must belong to it.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, QueryError> {
        let mut rest = Reader(bytes);
        let query =
            rest.query().ok_or(QueryError::Malformed("it is cut short or of no known kind"))?;
        match rest.0 {
            [] => Ok(query),
            _ => Err(QueryError::Malformed("bytes follow its end")),
        }
    }
}

/// An answer that is not what this version of the store would send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the answer of the state machine is cut short or malformed")]
pub struct ReplyError;

/// One stored event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its index in the group's log.
    pub index: Index,
    /// The proposer's, microseconds since 1970.
    pub timestamp: u64,
    /// The event id it was written with.
    pub id: Option<[u8; EVENT_ID_BYTES]>,
    pub topic: &'a [u8],
    /// Without the id.
    pub value: &'a [u8],
}

impl Event<'_> {
    /// Bytes in an answer.
    pub fn encoded_bytes(&self) -> usize {
        24 + self.id.map_or(0, |id| id.len()) + self.topic.len() + self.value.len()
    }

    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.index.get().to_le_bytes());
        out.extend_from_slice(&self.timestamp.to_le_bytes());
        out.push(if self.id.is_some() { FLAG_EVENT_ID } else { 0 });
        out.push(0);
        out.extend_from_slice(&(self.topic.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.value.len() as u32).to_le_bytes());
        out.extend_from_slice(self.id.as_ref().map_or(&[], |id| id.as_slice()));
        out.extend_from_slice(self.topic);
        out.extend_from_slice(self.value);
    }
}

/// Answer to [`Query::Read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadReply<'a> {
    /// Retention has taken away what the queue had up to here (`ZERO`: nothing). A reader that asked
    /// from an index not above it may have missed events and must say so: never a silent gap.
    pub trimmed_through: Index,
    /// Where the next read continues.
    pub next: Index,
    pub events: Vec<Event<'a>>,
}

impl<'a> ReadReply<'a> {
    /// Reads an answer.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, ReplyError> {
        let mut rest = Reader(bytes);
        rest.read_reply().filter(|_| rest.0.is_empty()).ok_or(ReplyError)
    }
}

/// One queue in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueInfo<'a> {
    pub name: &'a [u8],
    /// Events that can be read.
    pub events: u64,
    /// Their encoded bytes in the store.
    pub bytes: u64,
    /// Index of the newest event.
    pub last: Index,
    /// Highest index that retention has taken away; `ZERO` = none.
    pub trimmed_through: Index,
}

impl QueueInfo<'_> {
    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        for n in [self.events, self.bytes, self.last.get(), self.trimmed_through.get()] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        put_name(out, self.name);
    }
}

/// Answer to [`Query::List`], in the order of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListReply<'a> {
    pub queues: Vec<QueueInfo<'a>>,
}

impl<'a> ListReply<'a> {
    /// Reads an answer.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, ReplyError> {
        let mut rest = Reader(bytes);
        rest.list_reply().filter(|_| rest.0.is_empty()).ok_or(ReplyError)
    }
}

/// Answer to [`Query::Digest`] and [`Query::FullDigest`]. Replicas agree when they report the same
/// digest at the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestReply {
    pub digest: u64,
    /// Last index applied.
    pub applied: Index,
}

impl DigestReply {
    /// Reads an answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReplyError> {
        let mut rest = Reader(bytes);
        match (rest.u64(), rest.u64(), rest.0) {
            (Some(digest), Some(applied), []) => Ok(Self { digest, applied: Index(applied) }),
            _ => Err(ReplyError),
        }
    }

    pub(super) fn encode_into(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.digest.to_le_bytes());
        out.extend_from_slice(&self.applied.get().to_le_bytes());
    }
}

fn put_name(out: &mut Vec<u8>, name: &[u8]) {
    let name = &name[..name.len().min(KEY_BYTES_MAX)];
    out.extend_from_slice(&(name.len() as u16).to_le_bytes());
    out.extend_from_slice(name);
}

/// Takes values off the front of bytes; `None` when they are cut short.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn slice(&mut self, size: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn index(&mut self) -> Option<Index> {
        self.u64().map(Index)
    }

    fn name(&mut self) -> Option<&'a [u8]> {
        let size = self.u16()? as usize;
        if size > KEY_BYTES_MAX { None } else { self.slice(size) }
    }

    fn query(&mut self) -> Option<Query<'a>> {
        Some(match self.u8()? {
            1 => {
                let (from, limit, bytes_max) = (self.index()?, self.u32()?, self.u32()?);
                Query::Read { queue: self.name()?, from, limit, bytes_max }
            }
            2 => {
                let limit = self.u32()?;
                Query::List { after: self.name()?, limit }
            }
            3 => Query::Config { key: self.name()? },
            4 => Query::Digest,
            5 => Query::FullDigest,
            _ => return None,
        })
    }

    fn read_reply(&mut self) -> Option<ReadReply<'a>> {
        let (trimmed_through, next, count) = (self.index()?, self.index()?, self.u32()?);
        // The count is only believed as far as there are bytes for it.
        let mut events = Vec::with_capacity((count as usize).min(self.0.len() / 24));
        for _ in 0..count {
            events.push(self.event()?);
        }
        Some(ReadReply { trimmed_through, next, events })
    }

    fn event(&mut self) -> Option<Event<'a>> {
        let (index, timestamp) = (self.index()?, self.u64()?);
        let (flags, _) = (self.u8()?, self.u8()?);
        let (topic, value) = (self.u16()? as usize, self.u32()? as usize);
        let id = if flags & FLAG_EVENT_ID == 0 { None } else { Some(self.array()?) };
        Some(Event { index, timestamp, id, topic: self.slice(topic)?, value: self.slice(value)? })
    }

    fn list_reply(&mut self) -> Option<ListReply<'a>> {
        let count = self.u32()?;
        let mut queues = Vec::with_capacity((count as usize).min(self.0.len() / 34));
        for _ in 0..count {
            let (events, bytes) = (self.u64()?, self.u64()?);
            let (last, trimmed_through) = (self.index()?, self.index()?);
            queues.push(QueueInfo { name: self.name()?, events, bytes, last, trimmed_through });
        }
        Some(ListReply { queues })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_query_comes_back_as_it_was_sent_and_no_part_of_it_does() {
        let queries = [
            Query::Read { queue: b"orders", from: Index(7), limit: 10, bytes_max: 1000 },
            Query::List { after: b"o", limit: 3 },
            Query::Config { key: b"route/a" },
            Query::Digest,
            Query::FullDigest,
        ];
        for query in queries {
            let bytes = query.encode();
            assert_eq!(Query::decode(&bytes), Ok(query));
            for cut in 0..bytes.len() {
                assert!(Query::decode(&bytes[..cut]).is_err(), "{query:?} cut at {cut}");
            }
            assert!(Query::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_value_or_a_typed_error(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Query::decode(&bytes);
            let _ = ReadReply::decode(&bytes);
            let _ = ListReply::decode(&bytes);
            let _ = DigestReply::decode(&bytes);
        }
    }
}
