//! The work that every contestant is given.

use bytes::Bytes;
use ringraft::block::{Block, BlockBuilder, Command, CommandKind};
use ringraft::ids::GroupId;

/// A command's header, as the engine encodes it; peers carry as many bytes.
pub const HEADER_BYTES: usize = 16;
/// A command's key.
pub const KEY_BYTES: usize = 8;
/// A command's value.
pub const VALUE_BYTES: usize = 128;
/// One command, whole.
pub const COMMAND_BYTES: usize = HEADER_BYTES + KEY_BYTES + VALUE_BYTES;
/// Commands in one proposal, or in one append.
pub const BATCHES: [usize; 3] = [1, 100, 1000];
/// Groups that share one log, written in turn.
pub const GROUPS: [usize; 3] = [1, 16, 1000];

/// The bytes of `count` commands, the same in every run. They do not compress, so that a peer that
/// tries gains nothing and one that does not try loses nothing.
pub fn commands(count: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let words = (0..count * COMMAND_BYTES / 8).flat_map(|_| splitmix(&mut state).to_le_bytes());
    words.collect::<Vec<u8>>().into()
}

/// A block of `count` such commands, as a client of the engine would send it.
pub fn block(group: u32, count: usize) -> Block {
    let bytes = commands(count);
    let mut builder = BlockBuilder::with_capacity(bytes.len());
    for one in bytes.chunks_exact(COMMAND_BYTES) {
        let (key, value) = one[HEADER_BYTES..].split_at(KEY_BYTES);
        let kind = CommandKind::SetEvent as u8;
        let command = Command { kind, flags: 0, timestamp: 1, key, value };
        builder.push(&command).expect("the largest batch fits a block");
    }
    builder.finish(GroupId(group), 1, 1, 0)
}

/// Steele, Lea and Flood's generator (SplitMix64): small, and good enough to look random to LZ4.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_the_same_every_time_and_fills_whole_words() {
        assert_eq!(COMMAND_BYTES, 152);
        assert_eq!(commands(3).len(), 3 * COMMAND_BYTES);
        assert_eq!(commands(2), commands(3)[..2 * COMMAND_BYTES]);
    }

    #[test]
    fn both_sides_are_given_as_many_bytes() {
        assert_eq!(block(7, 100).body().len(), commands(100).len());
        block(7, 1000).validate_commands().unwrap();
    }
}
