//! Leadership leaves this node: because an operator wants it, because another node is to have it, or
//! because this one stops.
//!
//! ```text
//! stop        every group led here is handed to whoever is able, a few dozen a turn; until a group
//!             is gone it goes on as before, so that its clients see one pause of a few round trips
//! balance     with `balance_us`: what another node is to lead goes there, a few at a time, once that
//!             node has been in touch for a while
//! ```
//!
//! Which node is to lead a group: of those with the highest priority, in turn by the group's number.

use super::Shard;
use crate::ids::{GroupId, NodeId, Tick};
use crate::machine::StateMachine;
use crate::raft::ready::Role;
use crate::raft::{Event, TransferRefused};

/// Groups that a stopping shard begins to hand over in one turn.
const LEAVING_A_TURN: usize = 64;
/// A stopping shard tries again after this long, µs.
const LEAVE_AGAIN_US: u64 = 5_000;
/// Groups that balance moves at a time.
const BALANCE_AT_ONCE: usize = 8;
/// Election timeouts for which a node must have been in touch before groups are moved to it.
const STABLE_TIMEOUTS: u64 = 10;

/// Who is to lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaderConfig {
    /// Nodes that differ from the others; everybody else has priority 1. With 0 a node leads only
    /// where nobody else can.
    pub priorities: Vec<(NodeId, u32)>,
    /// How often leadership is moved to where it belongs; 0 = never by itself.
    pub balance_us: u64,
}

impl LeaderConfig {
    fn priority(&self, node: NodeId) -> u32 {
        let known = self.priorities.iter().find(|(id, _)| *id == node);
        known.map_or(1, |&(_, priority)| priority)
    }

    /// The node that the `turn`-th group of a shard belongs to.
    pub fn home(&self, voters: &[NodeId], turn: usize) -> NodeId {
        let highest = voters.iter().map(|&id| self.priority(id)).max().unwrap_or(0);
        let best = || voters.iter().filter(|&&id| self.priority(id) == highest);
        let count = best().count().max(1);
        best().nth(turn % count).copied().unwrap_or(NodeId::ZERO)
    }
}

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Handover {
    pub draining: bool,
    /// Until when a stopping shard tries to find others for its groups; set in the first turn.
    until: Option<Tick>,
    /// It leads nothing that anybody else could lead, or has given up.
    done: bool,
    next: Tick,
}

impl Handover {
    /// When a turn is wanted for it.
    pub fn deadline(&self, balance_us: u64) -> Tick {
        let works = (self.draining && !self.done) || (!self.draining && balance_us > 0);
        if works { self.next } else { Tick(u64::MAX) }
    }

    /// A stopping shard may end, as far as leadership goes.
    pub fn is_over(&self) -> bool {
        !self.draining || self.done
    }
}

impl<M: StateMachine> Shard<M> {
    /// Begins to hand over a group that this node leads; how it ends shows in the roles.
    pub fn transfer(
        &mut self,
        now: Tick,
        group: GroupId,
        to: NodeId,
    ) -> Result<(), TransferRefused> {
        let Some(local) = self.local(group) else { return Err(TransferRefused::NotLeader(None)) };
        self.hand_over(now, local, to)
    }

    /// The node that is to lead a group.
    pub fn home(&self, local: u32) -> NodeId {
        let group = self.groups.get(local as usize);
        let voters = group.map_or(&self.config.voters, |group| &group.raft.membership().voters);
        self.config.leaders.home(voters, local as usize)
    }

    pub(super) fn hand_over(
        &mut self,
        now: Tick,
        local: u32,
        to: NodeId,
    ) -> Result<(), TransferRefused> {
        self.wake(now, local, None);
        let group = &mut self.groups[local as usize];
        group.raft.may_transfer(now, to)?;
        group.heir = Some(to);
        self.step(now, local, Event::Transfer { to });
        Ok(())
    }

    /// Stops: what is led here goes to others, and what is in flight is finished and synced.
    pub fn drain(&mut self) {
        self.handover.draining = true;
        self.groups.iter_mut().for_each(|group| group.raft.retire());
        self.wal.sync();
    }

    /// A turn's share of handing over.
    pub(super) fn hand_over_some(&mut self, now: Tick) {
        if now < self.handover.deadline(self.config.leaders.balance_us) {
            return;
        }
        if self.handover.draining {
            self.leave_some(now);
        } else {
            self.balance_some(now);
        }
    }

    fn leave_some(&mut self, now: Tick) {
        let patience = 3 * self.config.raft.election_timeout_max_us;
        let until = *self.handover.until.get_or_insert(now.plus(patience));
        self.handover.next = now.plus(LEAVE_AGAIN_US);
        // Whoever could take over would have been heard by then.
        let nobody = until.since(now) + self.config.raft.election_timeout_min_us <= patience;
        let (mut begun, mut led, mut under_way) = (0, 0, 0);
        for local in 0..self.groups.len() as u32 {
            let raft = &self.groups[local as usize].raft;
            if raft.role() != Role::Leader || raft.is_alone() {
                continue;
            }
            led += 1;
            under_way += usize::from(raft.is_transferring());
            if begun < LEAVING_A_TURN && !raft.is_transferring() {
                // Who sleeps does not know whom it could hand over to.
                self.wake(now, local, None);
                let heir = self.heir(now, local);
                let tried = heir.map(|to| self.hand_over(now, local, to));
                begun += usize::from(tried.is_some_and(|tried| tried.is_ok()));
            }
        }
        let hopeless = nobody && begun + under_way == 0;
        self.handover.done = led == 0 || hopeless || now >= until;
    }

    /// Somebody able to lead: another one than the last, who may not have wanted to, then of the
    /// highest priority, then by turns, so that the groups of a node that stops go to different ones.
    fn heir(&self, now: Tick, local: u32) -> Option<NodeId> {
        let group = &self.groups[local as usize];
        let (count, turn) = (self.peers.len(), local as usize);
        let by_turns = (0..count).map(|i| self.peers[(turn + i) % count].node);
        let able = by_turns.filter(|&to| group.raft.may_transfer(now, to).is_ok());
        let rank = |to: NodeId| (group.heir != Some(to), self.config.leaders.priority(to));
        able.reduce(|best, to| if rank(to) > rank(best) { to } else { best })
    }

    fn balance_some(&mut self, now: Tick) {
        self.handover.next = now.plus(self.config.leaders.balance_us);
        let stable = STABLE_TIMEOUTS * self.config.raft.election_timeout_max_us;
        let mut begun = 0;
        for local in 0..self.groups.len() as u32 {
            // What came from a node that stops is not sent back to it.
            let leads_since = self.groups[local as usize].leads_since;
            if leads_since.is_none_or(|since| now.since(since) < stable) {
                continue;
            }
            let home = self.home(local);
            let peer = self.peers.iter().find(|peer| peer.node == home);
            if peer.is_some_and(|peer| peer.is_stable(now, stable))
                && self.groups[local as usize].raft.role() == Role::Leader
                && self.hand_over(now, local, home).is_ok()
            {
                begun += 1;
                if begun == BALANCE_AT_ONCE {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_go_by_turns_to_the_nodes_of_the_highest_priority() {
        let voters = [NodeId(1), NodeId(2), NodeId(3)];
        let homes = |config: &LeaderConfig| (0..4).map(|g| config.home(&voters, g).0).collect();
        let equal: Vec<u32> = homes(&LeaderConfig::default());
        assert_eq!(equal, [1, 2, 3, 1]);
        let priorities = vec![(NodeId(1), 5), (NodeId(3), 5)];
        let two: Vec<u32> = homes(&LeaderConfig { priorities, balance_us: 0 });
        assert_eq!(two, [1, 3, 1, 3]);
        let last = LeaderConfig { priorities: vec![(NodeId(2), 0)], balance_us: 0 };
        let rest: Vec<u32> = homes(&last);
        assert_eq!(rest, [1, 3, 1, 3]);
    }
}
