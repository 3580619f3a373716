//! The one source of chance: the same seed gives the same run, to the bit. Of election timeouts, of the
//! simulator and of tests.

/// SplitMix64 (Steele, Lea, Flood 2014): any seed will do, also 0.
#[derive(Clone, Debug)]
pub struct Rng(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any of the 2^64 numbers.
    #[inline]
    #[allow(clippy::should_implement_trait, reason = "a generator has no end and is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        scramble(self.0)
    }

    /// 0 to `n - 1`. The bias of the remainder does not matter here.
    ///
    /// # Panics
    /// When `n` is 0.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True in `percent` of 100 cases.
    #[inline]
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// `low` to `high`, both included.
    #[inline]
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        debug_assert!(low <= high);
        low + self.below(high - low + 1)
    }

    /// A generator of its own for the part that `label` names: what one part draws does not change
    /// what another one sees. Draws nothing itself.
    pub fn fork(&self, label: u64) -> Self {
        Self(scramble(self.0 ^ scramble(label.wrapping_add(GOLDEN))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_splitmix64() {
        let mut rng = Rng::new(0);
        assert_eq!(rng.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(rng.next(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn forks_differ_by_label_and_leave_their_origin_as_it_was() {
        let mut rng = Rng::new(5);
        let (mut a, mut b, mut again) = (rng.fork(1), rng.fork(2), rng.fork(1));
        let first = (a.next(), b.next());
        assert_ne!(first.0, first.1);
        assert_eq!(again.next(), first.0);
        assert_eq!(rng.next(), Rng::new(5).next());
    }

    #[test]
    fn bounds_are_kept_and_reached() {
        let mut rng = Rng::new(9);
        let seen: Vec<u64> = (0..200).map(|_| rng.between(3, 5)).collect();
        assert!([3, 4, 5].iter().all(|n| seen.contains(n)) && seen.iter().all(|n| *n <= 5));
        assert!((0..50).all(|_| !rng.chance(0) && rng.chance(100)));
    }
}
