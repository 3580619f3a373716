//! Cells that a shard's thread counts in: plain numbers with one owner, copied when somebody asks.
//!
//! Nothing here is shared or locked. A scrape puts a question into the shard's queue and wakes its
//! thread, which answers with a copy ([`Histogram`] is 400 bytes); between scrapes a cell costs an
//! addition. [`Histogram::merge`] adds the copies of a node's shards.

/// Buckets of a [`Histogram`].
pub const BUCKETS: usize = 48;

/// How often values of each size were seen, two buckets to a power of two:
///
/// ```text
/// bucket       0   1   2   3   4   5   6   7   8 ...          47
/// holds up to  1   2   3   4   6   8  12  16  24 ...  16,777,216   (the last one everything above, too)
/// ```
///
/// The unit is the caller's: microseconds up to 17 s, or a count. A quantile read off the buckets is
/// at most a half too high.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    count: u64,
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], count: 0, sum: 0 }
    }
}

impl Histogram {
    /// Counts one value.
    #[inline]
    pub fn observe(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.count += 1;
        self.sum = self.sum.wrapping_add(value);
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Adds what another shard has counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// The buckets in their order: the highest value of each, and how many it holds. The last one
    /// has no highest value.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        let top = |i: usize| (i + 1 < BUCKETS).then(|| bound(i));
        self.counts.iter().enumerate().map(move |(i, &count)| (top(i), count))
    }
}

/// The bucket a value falls into.
#[inline]
fn bucket(value: u64) -> usize {
    let below = value.saturating_sub(1);
    if below < 2 {
        return below as usize;
    }
    let power = below.ilog2();
    let half = (below >> (power - 1)) & 1;
    (2 * power as usize + half as usize).min(BUCKETS - 1)
}

/// The highest value of a bucket.
fn bound(bucket: usize) -> u64 {
    if bucket < 2 {
        return bucket as u64 + 1;
    }
    (2 + bucket as u64 % 2 + 1) << (bucket / 2 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_falls_into_the_first_bucket_that_reaches_it() {
        assert_eq!((0..8).map(bound).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 8, 12, 16]);
        assert_eq!(bound(BUCKETS - 1), 1 << 24);
        let near = (0..BUCKETS).flat_map(|i| [bound(i) - 1, bound(i), bound(i) + 1]);
        for value in near.chain(0..5000) {
            let expected = (0..BUCKETS).find(|&i| value <= bound(i)).unwrap_or(BUCKETS - 1);
            assert_eq!(bucket(value), expected, "{value}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn two_shards_merged_are_as_if_one_had_counted_all() {
        let (mut a, mut b, mut all) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for value in 0..1000 {
            if value % 3 == 0 {
                a.observe(value)
            } else {
                b.observe(value)
            }
            all.observe(value);
        }
        a.merge(&b);
        assert_eq!(a, all);
        assert_eq!((all.count(), all.sum()), (1000, 999 * 500));
        assert_eq!(all.buckets().map(|(_, count)| count).sum::<u64>(), 1000);
        assert_eq!(all.buckets().last().unwrap().0, None);
    }
}
