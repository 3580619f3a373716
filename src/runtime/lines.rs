//! How many lines a second go to the log of events, by what they are about: a flood of bad connections
//! hides no change of role, and an election of ten thousand groups no damaged snapshot. What is over is
//! counted, and the count is a line of its own, within a second, also if nothing else happens then.

use tracing::{error, warn};

use crate::ids::Tick;

/// Lines about connections, roles, snapshots: each in any second.
const LINES_PER_SECOND: u32 = 50;
/// Groups in any second of which a possible loss is told one by one.
const LOSSES_PER_SECOND: u32 = 8;
const SECOND_US: u64 = 1_000_000;

/// Lines about one thing.
#[derive(Debug)]
pub struct Lines {
    a_second: u32,
    second: u64,
    written: u32,
    left_out: u64,
    /// When that is to be told.
    tell_at: Tick,
}

impl Lines {
    fn new(a_second: u32) -> Self {
        Self { a_second, second: 0, written: 0, left_out: 0, tell_at: Tick(u64::MAX) }
    }

    /// Whether a line may be written now. If not, it is counted.
    pub fn may_log(&mut self, now: Tick) -> bool {
        let second = now.get() / SECOND_US;
        if second > self.second {
            (self.second, self.written) = (second, 0);
        }
        if self.written < self.a_second {
            self.written += 1;
            return true;
        }
        if self.left_out == 0 {
            self.tell_at = now.plus(SECOND_US);
        }
        self.left_out += 1;
        false
    }

    /// How many were left out, once in a second.
    fn take_left_out(&mut self, now: Tick) -> Option<u64> {
        if self.left_out == 0 || now < self.tell_at {
            return None;
        }
        self.tell_at = Tick(u64::MAX);
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Lines of a shard.
#[derive(Debug)]
pub struct LogLines {
    pub links: Lines,
    pub roles: Lines,
    pub snapshots: Lines,
    pub losses: Lines,
}

impl Default for LogLines {
    fn default() -> Self {
        let lines = || Lines::new(LINES_PER_SECOND);
        let losses = Lines::new(LOSSES_PER_SECOND);
        Self { links: lines(), roles: lines(), snapshots: lines(), losses }
    }
}

impl LogLines {
    /// When something is to be told.
    pub fn deadline(&self) -> Tick {
        let Self { links, roles, snapshots, losses } = self;
        [links, roles, snapshots, losses]
            .map(|lines| lines.tell_at)
            .into_iter()
            .min()
            .expect("four")
    }

    /// Tells what was left out. With the last tick there is: all of it.
    pub fn tell_left_out(&mut self, now: Tick, shard: &str) {
        if now < self.deadline() {
            return;
        }
        let Self { links, roles, snapshots, losses } = self;
        for (lines, about) in [(links, "connections"), (roles, "roles"), (snapshots, "snapshots")] {
            if let Some(count) = lines.take_left_out(now) {
                warn!(shard, lines = count, about, "lines left out");
            }
        }
        if let Some(count) = losses.take_left_out(now) {
            error!(
                shard,
                groups = count,
                "POSSIBLE DATA LOSS in so many further groups: `ringraft \
                status` shows the recovery epoch of each"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_counted_and_told_a_second_later_though_nothing_else_happens() {
        let mut lines = LogLines::default();
        let at = Tick(7_300_000);
        let written = (0..180).filter(|_| lines.links.may_log(at)).count();
        assert_eq!((written, lines.deadline()), (50, Tick(8_300_000)));
        assert!(lines.roles.may_log(at) && lines.losses.may_log(at), "each has its own");
        // The next second has room again; what was left out is still to be told.
        assert!(lines.links.may_log(Tick(8_000_000)));
        assert_eq!(lines.links.take_left_out(Tick(8_299_999)), None);
        assert_eq!(lines.links.take_left_out(lines.deadline()), Some(130));
        assert_eq!(lines.deadline(), Tick(u64::MAX), "once");
    }

    /// Story: ten thousand groups were elected by voters who had lost power, and an operator had ten
    /// thousand lines that said the same.
    #[test]
    fn a_loss_in_ten_thousand_groups_is_told_of_a_few_and_summed_up() {
        let mut lines = LogLines::default();
        let told = (0..10_000).filter(|_| lines.losses.may_log(Tick(1))).count();
        assert_eq!(told, 8);
        lines.tell_left_out(Tick(u64::MAX), "0");
        assert_eq!((lines.losses.left_out, lines.deadline()), (0, Tick(u64::MAX)));
        assert_eq!(lines.losses.take_left_out(Tick(5)), None);
    }
}
