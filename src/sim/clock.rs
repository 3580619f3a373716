//! A node's clock: it runs at a rate of its own and may jump ahead, and never goes back.

use crate::ids::Tick;

/// A clock that keeps time with the world.
pub const RATE_TRUE: u64 = 1_000_000;
/// Deadlines from here on mean "never".
const NEVER: u64 = u64::MAX / 4;

/// Maps the world's time to a node's. Both in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    world: u64,
    local: u64,
    /// Local microseconds in a million of the world's.
    rate: u64,
}

impl Clock {
    /// A true clock that began at some time of its own.
    pub fn new(origin: u64) -> Self {
        Self { world: 0, local: origin, rate: RATE_TRUE }
    }

    /// The node's time when it is `now` in the world.
    pub fn local(&self, now: u64) -> Tick {
        Tick(self.local + (now - self.world) * self.rate / RATE_TRUE)
    }

    /// When the node's clock shows `local`; not before `now`. `None` = never.
    pub fn world(&self, now: u64, local: Tick) -> Option<u64> {
        if local.0 >= NEVER {
            return None;
        }
        let ahead = local.0.saturating_sub(self.local);
        Some(now.max(self.world + (ahead * RATE_TRUE).div_ceil(self.rate)))
    }

    /// From `now` on it runs at `rate`.
    pub fn set_rate(&mut self, now: u64, rate: u64) {
        *self = Self { world: now, local: self.local(now).0, rate };
    }

    /// It shows `by` microseconds more from `now` on.
    pub fn jump(&mut self, now: u64, by: u64) {
        *self = Self { world: now, local: self.local(now).0 + by, rate: self.rate };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_reached_when_the_clock_shows_it_and_not_earlier() {
        let mut clock = Clock::new(1_000);
        clock.set_rate(500, 900_000);
        clock.jump(700, 12_345);
        for deadline in [13_000, 14_026, 14_027, 20_000, 1_000_003] {
            let at = clock.world(700, Tick(deadline)).unwrap();
            assert!(clock.local(at).0 >= deadline);
            assert!(at == 700 || clock.local(at - 1).0 < deadline, "{deadline} at {at}");
        }
        assert_eq!(clock.world(700, Tick(u64::MAX)), None);
        assert_eq!(clock.world(700, Tick(3)), Some(700), "what is past is due");
    }
}
