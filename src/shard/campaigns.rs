//! How many groups stand for election at a time.
//!
//! Ten thousand groups lose their leader in one moment, or start in one. If all of them campaigned
//! at once, the votes of the first would wait behind the questions of the last; no round would end
//! within its timeout, and the next ones would begin with higher terms, for ever:
//!
//! ```text
//! without a bound   10,000 rounds begin; each needs two persists and four messages; after 300 ms 2,000
//!                   are decided and 8,000 begin again, some of them against the 2,000 new leaders
//! with it           512 rounds begin; as they are decided others take their places
//! ```
//!
//! A place is given back when the round is decided, and after the shortest election timeout in any
//! case: groups that find no quorum do not keep others waiting.

use std::collections::VecDeque;

use super::Shard;
use crate::ids::Tick;
use crate::machine::StateMachine;
use crate::raft::Event;
use crate::raft::ready::Role;

/// Rounds under way.
const CAMPAIGNS_MAX: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Campaigns {
    /// When places end whatever happens, and whose they are; in that order.
    ends: VecDeque<(Tick, u32)>,
    under_way: usize,
}

impl<M: StateMachine> Shard<M> {
    /// A group's deadline is reached: it is told, unless it would stand for election and too many
    /// do; then it is called again a heartbeat later.
    pub(super) fn call(&mut self, now: Tick, local: u32) {
        let leads = self.groups[local as usize].raft.role() == Role::Leader;
        if leads || self.take_place(now, local) {
            self.step(now, local, Event::Timeout);
        } else {
            self.timers.want(local, now.plus(self.config.raft.heartbeat_us));
        }
    }

    fn take_place(&mut self, now: Tick, local: u32) -> bool {
        while let Some(&(end, whose)) = self.campaigns.ends.front()
            && end <= now
        {
            self.campaigns.ends.pop_front();
            // A later place of the same group has another end.
            if self.groups[whose as usize].campaign_ends == Some(end) {
                self.give_place_back(whose);
            }
        }
        if self.campaigns.under_way >= CAMPAIGNS_MAX {
            return false;
        }
        self.give_place_back(local);
        let end = now.plus(self.config.raft.election_timeout_min_us);
        self.groups[local as usize].campaign_ends = Some(end);
        self.campaigns.ends.push_back((end, local));
        self.campaigns.under_way += 1;
        true
    }

    /// The group does not stand for election any more, or stands anew.
    pub(super) fn give_place_back(&mut self, local: u32) {
        let place = self.groups[local as usize].campaign_ends.take();
        self.campaigns.under_way -= usize::from(place.is_some());
    }
}
