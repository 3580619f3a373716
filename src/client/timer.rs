//! One alarm a group. Moving an alarm later costs nothing: the early one rings, finds nothing to do
//! and is set anew; so a group with a thousand blocks in flight rings about once per resend time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::session::{NEVER, Session};
use crate::ids::{GroupId, Tick};

/// The alarms of all groups, soonest first.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    heap: BinaryHeap<Reverse<(Tick, GroupId)>>,
}

impl Alarms {
    /// Lets the session's alarm ring at `at`, or earlier if it is set so already.
    #[inline]
    pub fn arm(&mut self, session: &mut Session, at: Tick) {
        if at < session.armed {
            session.armed = at;
            self.heap.push(Reverse((at, session.group())));
        }
    }

    /// The next group whose time has come, with the time that was set. Stale if the session is
    /// armed for another time by now.
    pub fn ring(&mut self, now: Tick) -> Option<(Tick, GroupId)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(due)| due)
    }

    /// When the first alarm rings.
    pub fn next(&self) -> Tick {
        self.heap.peek().map_or(NEVER, |Reverse((at, _))| *at)
    }
}
