//! One fixed hash for maps and digests: the same on every node, in every process, in every run.
//!
//! The standard library seeds its maps at random, which replicated state must not see. The price of
//! a fixed seed is that keys can be chosen to collide; all maps here are bounded by replicated
//! limits, and whoever may write to a group may fill it anyway.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const MULTIPLIER: u64 = 0xd6e8_feb8_6659_fd93;

/// Folds `value` into `hash`. The order of calls matters.
#[inline]
#[must_use]
pub const fn mix(hash: u64, value: u64) -> u64 {
    let product = (hash.rotate_left(23) ^ value ^ SEED) as u128 * MULTIPLIER as u128;
    product as u64 ^ (product >> 64) as u64
}

/// Folds bytes and their length into `hash`.
#[inline]
#[must_use]
pub fn mix_bytes(hash: u64, bytes: &[u8]) -> u64 {
    let mut hash = mix(hash, bytes.len() as u64);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        hash = mix(hash, u64::from_le_bytes(word.try_into().expect("8 bytes")));
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        hash = mix(hash, u64::from_le_bytes(word));
    }
    hash
}

/// Makes [`FixedHasher`]s.
#[derive(Clone, Copy, Debug, Default)]
pub struct FixedState;

impl BuildHasher for FixedState {
    type Hasher = FixedHasher;

    #[inline]
    fn build_hasher(&self) -> FixedHasher {
        FixedHasher(0)
    }
}

/// [`mix`] as the standard library's hasher.
#[derive(Clone, Copy, Debug, Default)]
pub struct FixedHasher(u64);

impl Hasher for FixedHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.0 = mix_bytes(self.0, bytes);
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.0 = mix(self.0, value);
    }

    #[inline]
    fn write_usize(&mut self, value: usize) {
        self.0 = mix(self.0, value as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// A map with the fixed hash. Its iteration order must not reach anything replicated.
pub type FixedMap<K, V> = HashMap<K, V, FixedState>;
/// A set with the fixed hash. Its iteration order must not reach anything replicated.
pub type FixedSet<K> = HashSet<K, FixedState>;

/// Heap bytes of a hash table with room for `capacity` entries of `entry` bytes: one control byte an
/// entry, at most 7 of 8 places taken.
pub(crate) fn table_bytes(capacity: usize, entry: usize) -> u64 {
    (capacity as u64 * 8).div_ceil(7) * (entry as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_pinned_because_digests_of_different_builds_are_compared() {
        assert_eq!(mix_bytes(1, b"orders/new"), 9_472_459_886_714_715_807);
    }

    #[test]
    fn order_length_and_each_byte_matter() {
        let base = mix_bytes(0, b"abcdefgh-abcdefg");
        for i in 0..16 {
            let mut other = *b"abcdefgh-abcdefg";
            other[i] ^= 1;
            assert_ne!(mix_bytes(0, &other), base, "byte {i}");
        }
        assert_ne!(mix_bytes(0, b"abc"), mix_bytes(0, b"abc\0"));
        assert_ne!(mix(mix(0, 1), 2), mix(mix(0, 2), 1));
    }
}
