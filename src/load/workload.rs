//! What the load generator sends: blocks of `SET_EVENT` commands, topics `bench/000000` by group,
//! values that do not compress.
//!
//! The generator shares its cores with the cluster it measures, so a block must cost next to
//! nothing to make. All commands have one size, and the bodies of answered blocks are used again:
//!
//! ```text
//! template      ┌ header, key, value ┐┌ header, key, value ┐ …     made once
//! spare bodies  oldest … newest, each also held by its block until that is answered
//! block()       takes the oldest if its block is gone (else copies the template), writes the
//!               timestamps (and the key, if the group is another), computes the checksum
//! ```
//!
//! Beside the checksum (which reads every byte) a command then costs one store.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use crate::block::{
    BLOCK_BYTES_MAX, BLOCK_COUNT_MAX, Block, BlockBuilder, COMMAND_HEADER_BYTES, Command,
    CommandKind, EVENT_ID_BYTES, FLAG_EVENT_ID, HEADER_BYTES,
};
use crate::ids::GroupId;

/// Bytes of `bench/` and six digits.
const KEY_BYTES: usize = 12;
/// Where a command keeps its timestamp.
const TIMESTAMP_AT: usize = 8;
/// Bytes of bodies kept for use again.
const SPARE_BYTES_MAX: usize = 64 << 20;
/// Smaller bodies are cut off a slab, which costs less than to take one back or to allocate one.
const SPARE_BODY_BYTES_MIN: usize = 2048;
/// Bytes of a slab.
const SLAB_BYTES: usize = 64 << 10;

/// The shape of the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkloadOptions {
    /// Bytes of an event, without its id.
    pub value_bytes: usize,
    /// Commands in a block.
    pub batch_size: usize,
    /// Every event carries an id of 16 bytes that no other block of this client has.
    pub event_ids: bool,
    /// Session of the proposer; also seeds the values.
    pub client: u64,
}

/// Why there are no such blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WorkloadError {
    #[error("a batch of {0} commands is not between 1 and {BLOCK_COUNT_MAX}")]
    BatchSize(usize),
    #[error(
        "{batch_size} commands of {value_bytes} bytes do not fit a block of {BLOCK_BYTES_MAX} \
         bytes: at most {batch_max} do; lower the batch size or the value size"
    )]
    BlockTooLarge { batch_size: usize, value_bytes: usize, batch_max: usize },
}

/// A body and the group whose topic is written in it.
struct Spare {
    body: Bytes,
    group: GroupId,
}

/// Makes the blocks of one client.
pub struct Workload {
    options: WorkloadOptions,
    /// Bytes from one command to the next.
    stride: usize,
    /// A body for group 0.
    template: Bytes,
    spares: VecDeque<Spare>,
    /// 0: bodies are cut off `slab`.
    spares_max: usize,
    slab: BytesMut,
}

impl Workload {
    /// Prepares the template; refuses what no block could hold.
    pub fn new(options: WorkloadOptions) -> Result<Self, WorkloadError> {
        let WorkloadOptions { value_bytes, batch_size, .. } = options;
        if batch_size == 0 || batch_size > BLOCK_COUNT_MAX {
            return Err(WorkloadError::BatchSize(batch_size));
        }
        let id_bytes = if options.event_ids { EVENT_ID_BYTES } else { 0 };
        let size = value_bytes.saturating_add(COMMAND_HEADER_BYTES + KEY_BYTES + id_bytes);
        let stride = size.checked_next_multiple_of(8).unwrap_or(usize::MAX);
        let batch_max = (BLOCK_BYTES_MAX - HEADER_BYTES) / stride;
        if batch_size > batch_max {
            return Err(WorkloadError::BlockTooLarge { batch_size, value_bytes, batch_max });
        }
        let template = template(&options, value_bytes + id_bytes);
        assert_eq!(template.len(), stride * batch_size, "all commands have one size");
        let small = template.len() < SPARE_BODY_BYTES_MIN;
        let spares_max = if small { 0 } else { SPARE_BYTES_MAX / template.len() };
        let (spares, slab) = (VecDeque::new(), BytesMut::new());
        Ok(Self { options, stride, template, spares, spares_max, slab })
    }

    /// The next block for `group`. `seq` and `pending` as in the block's header; all commands carry
    /// `timestamp_us` (since 1970).
    pub fn block(&mut self, group: GroupId, seq: u64, pending: u32, timestamp_us: u64) -> Block {
        let (mut body, same_topic) = self.take_body(group);
        for command in body.chunks_exact_mut(self.stride) {
            command[TIMESTAMP_AT..TIMESTAMP_AT + 8].copy_from_slice(&timestamp_us.to_le_bytes());
        }
        if !same_topic {
            let topic = topic(group);
            for command in body.chunks_exact_mut(self.stride) {
                command[COMMAND_HEADER_BYTES..][..KEY_BYTES].copy_from_slice(&topic);
            }
        }
        if self.options.event_ids {
            self.write_event_ids(&mut body, group, seq);
        }
        let body = body.freeze();
        if self.spares.len() < self.spares_max {
            self.spares.push_back(Spare { body: body.clone(), group });
        }
        let count = self.options.batch_size as u32;
        Block::from_body(group, count, self.options.client, seq, pending, body)
    }

    /// Bytes that nobody else holds, and whether the topic of `group` is written in them.
    fn take_body(&mut self, group: GroupId) -> (BytesMut, bool) {
        if let Some(oldest) = self.spares.pop_front() {
            match oldest.body.try_into_mut() {
                Ok(body) => return (body, oldest.group == group),
                // Its block is still in use; the others, being younger, likely are, too.
                Err(body) => self.spares.push_back(Spare { body, group: oldest.group }),
            }
        }
        (self.copy_template(), group == GroupId::ZERO)
    }

    fn copy_template(&mut self) -> BytesMut {
        if self.spares_max > 0 {
            return BytesMut::from(&self.template[..]);
        }
        if self.slab.capacity() < self.template.len() {
            self.slab = BytesMut::with_capacity(SLAB_BYTES);
        }
        self.slab.extend_from_slice(&self.template);
        self.slab.split()
    }

    /// Ids differ by client, group, sequence number and place in the block.
    fn write_event_ids(&self, body: &mut [u8], group: GroupId, seq: u64) {
        let high = mix(self.options.client ^ u64::from(group.0).rotate_left(40));
        for (i, command) in body.chunks_exact_mut(self.stride).enumerate() {
            let low = seq * BLOCK_COUNT_MAX as u64 + i as u64;
            let id = u128::from(high) << 64 | u128::from(low);
            let at = COMMAND_HEADER_BYTES + KEY_BYTES;
            command[at..at + EVENT_ID_BYTES].copy_from_slice(&id.to_le_bytes());
        }
    }
}

/// `bench/` and the group in six digits, so that all topics have one size. The queue of every topic
/// is `bench` unless a route says otherwise.
fn topic(group: GroupId) -> [u8; KEY_BYTES] {
    let mut key = *b"bench/000000";
    let mut rest = group.0;
    for digit in key[6..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

fn template(options: &WorkloadOptions, value_bytes: usize) -> Bytes {
    let key = topic(GroupId::ZERO);
    let flags = if options.event_ids { FLAG_EVENT_ID } else { 0 };
    let mut value = vec![0; value_bytes];
    let mut state = options.client;
    let mut builder = BlockBuilder::default();
    for _ in 0..options.batch_size {
        for bytes in value.chunks_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            bytes.copy_from_slice(&mix(state).to_le_bytes()[..bytes.len()]);
        }
        let kind = CommandKind::SetEvent as u8;
        let command = Command { kind, flags, timestamp: 0, key: &key, value: &value };
        builder.push(&command).expect("the sizes were checked before");
    }
    builder.finish(GroupId::ZERO, 0, 0, 0).body().clone()
}

/// The finalizer of splitmix64: every input bit changes half of the output bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const OPTIONS: WorkloadOptions =
        WorkloadOptions { value_bytes: 1000, batch_size: 3, event_ids: false, client: 9 };

    fn workload() -> Workload {
        Workload::new(OPTIONS).unwrap()
    }

    /// What a server makes of the block's bytes.
    fn received(block: &Block) -> Block {
        let mut bytes = Vec::new();
        block.encode_into(&mut bytes);
        let block = Block::decode(&mut Bytes::from(bytes)).unwrap();
        block.validate_commands().unwrap();
        block
    }

    #[test]
    fn a_server_takes_the_blocks_and_finds_the_commands() {
        let block = received(&workload().block(GroupId(47), 5, 2, 1234));
        assert_eq!((block.group(), block.count()), (GroupId(47), 3));
        let header = block.header();
        assert_eq!((header.client, header.seq, header.pending), (9, 5, 2));
        for command in block.commands() {
            assert_eq!(command.kind, CommandKind::SetEvent as u8);
            assert_eq!((command.timestamp, command.key), (1234, &b"bench/000047"[..]));
            assert_eq!(command.value.len(), 1000);
        }
        let values: BTreeSet<_> = block.commands().map(|c| c.value.to_vec()).collect();
        assert_eq!(values.len(), 3, "values differ");
    }

    #[test]
    fn a_body_is_used_again_only_after_its_block_is_gone() {
        let mut workload = workload();
        let first = workload.block(GroupId(1), 1, 0, 10);
        let second = workload.block(GroupId(1), 2, 0, 20);
        assert_ne!(first.body().as_ptr(), second.body().as_ptr(), "both are in flight");
        assert!(received(&first).commands().all(|c| c.timestamp == 10));

        let was = first.body().as_ptr();
        drop(first);
        // Both bodies are kept: within two blocks the free one is found.
        let again = [3, 4].map(|seq| workload.block(GroupId(0), seq, 0, 30));
        assert!(again.iter().any(|block| block.body().as_ptr() == was));
        for block in &again {
            let commands = received(block);
            assert!(commands.commands().all(|c| c.timestamp == 30 && c.key == b"bench/000000"));
        }
        assert!(
            received(&second).commands().all(|c| c.timestamp == 20 && c.key == b"bench/000001")
        );
    }

    #[test]
    fn memory_is_bounded_by_what_is_in_flight() {
        let mut workload = workload();
        for seq in 0..1000 {
            workload.block(GroupId(0), seq, 0, seq);
        }
        assert_eq!(workload.spares.len(), 1);
    }

    #[test]
    fn small_blocks_are_made_afresh() {
        let mut workload = Workload::new(WorkloadOptions { batch_size: 1, ..OPTIONS }).unwrap();
        for seq in 0..3 {
            let block = received(&workload.block(GroupId(seq), u64::from(seq), 0, 77));
            let command = block.commands().next().unwrap();
            assert_eq!((command.timestamp, command.key), (77, &topic(GroupId(seq))[..]));
        }
        assert!(workload.spares.is_empty());
    }

    #[test]
    fn event_ids_are_never_used_twice() {
        let mut workload = Workload::new(WorkloadOptions { event_ids: true, ..OPTIONS }).unwrap();
        let mut ids = BTreeSet::new();
        for (group, seq) in [(0, 1), (0, 2), (1, 1), (1, 2), (0, 3)] {
            let block = received(&workload.block(GroupId(group), seq, 0, 0));
            for command in block.commands() {
                assert_eq!((command.flags, command.value.len()), (FLAG_EVENT_ID, 1016));
                assert!(ids.insert(command.value[..EVENT_ID_BYTES].to_vec()));
            }
        }
    }

    #[test]
    fn what_no_block_can_hold_is_refused_with_the_limit() {
        let refused = |batch_size, value_bytes| {
            Workload::new(WorkloadOptions { batch_size, value_bytes, ..OPTIONS }).err().unwrap()
        };
        assert_eq!(refused(0, 1), WorkloadError::BatchSize(0));
        assert_eq!(refused(8193, 1), WorkloadError::BatchSize(8193));
        let too_large =
            WorkloadError::BlockTooLarge { batch_size: 1000, value_bytes: 1028, batch_max: 992 };
        assert_eq!(refused(1000, 1028), too_large);
        assert!(matches!(refused(1, usize::MAX), WorkloadError::BlockTooLarge { .. }));
        Workload::new(WorkloadOptions { batch_size: 992, value_bytes: 1028, ..OPTIONS }).unwrap();
    }
}
