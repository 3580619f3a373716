//! An operator who makes groups and ends them while everything else goes wrong, and what the world
//! knows of it: by its own books.
//!
//! | never | judged by |
//! |---|---|
//! | a number given to two groups | the same |
//! | a group that nobody asked for, or one that ends unasked | `note_groups`, after each turn |
//! | a group on a node that has a durable record of its end | the same, also after any start that found no damage |
//! | an answer of a group of which a quorum has such records, to what was asked later | `judge_late_answer` |
//! | after the trouble a group here and not there | `has_settled` |

use super::members::{Configurations, is_quorum};
use super::oracle::Seen;
use super::queue::Event;
use super::subject::Subject;
use super::world::World;
use crate::ids::{GroupId, Index};
use crate::raft::ready::Role;

/// Between two wishes, microseconds.
const PAUSE_US: (u64, u64) = (200_000, 3_000_000);
/// When nobody could be asked.
const AGAIN_US: (u64, u64) = (50_000, 300_000);

/// Clients go on asking for so long after a group is over, microseconds.
const HEARSAY_US: u64 = 700_000;

/// How a group stands, as far as the operator can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Its number is free.
    Free,
    /// It was asked for, and may come.
    Wanted,
    /// It was seen.
    There,
    /// Its end was asked for, and may come.
    Doomed,
}

/// One group.
#[derive(Clone, Debug)]
pub struct Life {
    stage: Stage,
    /// By node: it has a durable record of the end.
    ended: Vec<bool>,
    /// Since when a quorum has one.
    over_since: Option<u64>,
}

impl Life {
    pub fn new(nodes: u32, configured: bool) -> Self {
        let stage = if configured { Stage::There } else { Stage::Free };
        Self { stage, ended: vec![false; nodes as usize], over_since: None }
    }

    /// Some node has it for certain that the group is over.
    fn has_ended(&self) -> bool {
        self.over_since.is_some() || self.ended.contains(&true)
    }

    /// Nothing is decided in it any more.
    pub fn is_over(&self) -> bool {
        self.over_since.is_some()
    }

    /// It is to work after the trouble.
    pub fn lives(&self) -> bool {
        self.stage >= Stage::There && !self.has_ended()
    }

    /// Clients have heard of it, and for a while not that it is over.
    pub fn is_known(&self, now: u64) -> bool {
        self.stage >= Stage::There && self.over_since.is_none_or(|over| now < over + HEARSAY_US)
    }

    /// A client may hear that there is no such group.
    pub fn may_be_missing(&self) -> bool {
        self.stage == Stage::Doomed
    }
}

/// Books.
impl<S: Subject> World<S> {
    /// Compares what a shard has after a turn, or at its start, with what was asked for.
    pub(super) fn note_groups(&mut self, node: usize, host: usize) {
        if self.shape.groups_all == self.shape.groups {
            return;
        }
        let Some(first) = self.first_news(node, host) else { return };
        let Some(shard) = self.hosts[host].shard.take() else { return };
        let places = shard.places();
        let mut seen = std::mem::take(&mut self.hosts[host].seen);
        let shards = self.shape.shards as usize;
        for place in first..places {
            let group = place * shards + host % shards;
            let id = GroupId(group as u32);
            let Some(life) = self.lives.get_mut(group) else {
                self.fail("groups come when they are asked for", format!("n{} g{group}", node + 1));
                break;
            };
            let view = shard.group(id);
            if place >= seen.len() {
                let mut new = Seen::default();
                let judged = view.as_ref().map(|view| self.oracle.started(node, view, &mut new));
                seen.push(new);
                if let Some(Err((rule, what))) = judged {
                    self.fail(rule, what);
                    break;
                }
                if view.is_none() && life.stage == Stage::Free {
                    self.fail(
                        "a group ends when it is asked for",
                        format!("n{} g{group}", node + 1),
                    );
                    break;
                }
            }
            if let Some(view) = &view {
                let rule = match life.stage {
                    Stage::Free => Some("groups come when they are asked for"),
                    _ if life.ended[node] => Some("what has ended does not come back"),
                    _ => None,
                };
                if let Some(rule) = rule {
                    let what = format!("n{} has g{group} in {life:?}", node + 1);
                    self.fail(rule, what);
                    break;
                }
                if life.stage == Stage::Wanted {
                    life.stage = Stage::There;
                    self.stats.groups_made += 1;
                    let first = view.raft().memberships().first();
                    let first = first.filter(|first| first.index == Index::ZERO).cloned();
                    self.configurations[group] = Configurations::of(first.unwrap_or_default());
                    self.note_node(node, "is the first to have group", group as u64);
                }
                continue;
            }
            if shard.has_ended(id) && !life.ended[node] {
                life.ended[node] = true;
                let asked = life.stage == Stage::Doomed;
                self.note_node(node, "has ended group", group as u64);
                if !asked {
                    self.fail(
                        "a group ends when it is asked for",
                        format!("n{} g{group}", node + 1),
                    );
                    break;
                }
                self.is_it_over(group);
            }
        }
        self.hosts[host].seen = seen;
        self.hosts[host].shard = Some(shard);
    }

    /// The first place of a shard at which the books do not say what it has. After nearly every turn
    /// there is none, and finding that out must cost next to nothing.
    fn first_news(&self, node: usize, host: usize) -> Option<usize> {
        let (shard, known) = (self.hosts[host].shard.as_ref()?, self.hosts[host].seen.len());
        let shards = self.shape.shards as usize;
        let is_news = |&place: &usize| {
            let group = place * shards + host % shards;
            let Some(life) = self.lives.get(group) else { return true };
            let id = GroupId(group as u32);
            let differs = match shard.group(id) {
                Some(_) => life.stage < Stage::There || life.ended[node],
                None => shard.has_ended(id) && !life.ended[node],
            };
            differs || place >= known
        };
        (0..shard.places()).find(is_news)
    }

    /// Once a quorum of every configuration that may decide has a record of the end, nothing is
    /// decided in the group any more.
    fn is_it_over(&mut self, group: usize) {
        let life = &self.lives[group];
        let holds = |node: usize| life.ended[node];
        let over = self.configurations[group].alive().all(|alive| is_quorum(alive, &holds));
        if over && life.over_since.is_none() {
            self.lives[group].over_since = Some(self.now);
            self.stats.groups_ended += 1;
            // Nobody's votes count there any more.
            self.configurations[group] = Configurations::of(Default::default());
        }
    }

    /// The records of a node may be gone with what was damaged.
    pub(super) fn forget_ends(&mut self, node: usize) {
        self.lives.iter_mut().for_each(|life| life.ended[node] = false);
    }

    /// A client was answered what it asked at `asked_at`, by somebody who may not know of an end for so
    /// long.
    pub(super) fn judge_late_answer(&mut self, group: GroupId, asked_at: u64, unknown_us: u64) {
        let over = self.lives[group.0 as usize].over_since;
        if over.is_some_and(|over| asked_at > over + unknown_us) {
            let what =
                format!("g{group} answers what was asked at {asked_at} us, over since {over:?}");
            self.fail("a group that is over answers nobody", what);
        }
    }

    /// A node that has left the first group before it heard of a later one does not hear of it any more,
    /// nor does one that has parted there, before a snapshot brings it back.
    pub(super) fn has_not_heard(&self, node: usize, group: usize) -> bool {
        let first = group % self.shape.shards as usize;
        let may_miss = || {
            let settled = self.configurations[first].settled();
            let parted = self.view(node, first).is_some_and(|v| self.oracle.strays(v.raft()));
            parted || !settled.is_member(super::network::node_id(node))
        };
        group >= self.shape.groups as usize && self.view(node, group).is_none() && may_miss()
    }

    /// A group that somebody has ended is nowhere any more, but where nobody can say it.
    pub(super) fn has_settled(&self, group: usize) -> bool {
        let id = GroupId(group as u32);
        !self.lives[group].has_ended()
            || (0..self.nodes.len()).filter(|&node| !self.nodes[node].is_stranger).all(|node| {
                let host = node * self.shape.shards as usize + group % self.shape.shards as usize;
                let shard = self.hosts[host].shard.as_ref();
                shard.is_none_or(|shard| shard.group(id).is_none())
            })
    }
}

/// The operator.
impl<S: Subject> World<S> {
    pub(super) fn begin_roster(&mut self) {
        if self.shape.groups_all > self.shape.groups {
            self.plan_wish(PAUSE_US);
        }
    }

    fn plan_wish(&mut self, pause: (u64, u64)) {
        let wait = self.roster_rng.between(pause.0, pause.1);
        self.queue.push(self.now + wait, Event::Wish);
    }

    pub(super) fn on_wish(&mut self) {
        if self.healed_at.is_none() {
            let begun = self.try_wish().is_some();
            self.plan_wish(if begun { PAUSE_US } else { AGAIN_US });
        }
    }

    /// Asks the leader of a shard's first group.
    fn try_wish(&mut self) -> Option<()> {
        let shard = self.roster_rng.below(u64::from(self.shape.shards)) as usize;
        let makes = self.roster_rng.chance(55);
        let leads = |node: &usize| {
            let view = self.view(*node, shard);
            view.is_some_and(|view| view.raft().role() == Role::Leader)
        };
        let leader = (0..self.nodes.len()).find(leads)?;
        if self.nodes[leader].paused {
            return None;
        }
        let host = leader * self.shape.shards as usize + shard;
        let begun =
            if makes { self.wish_for(leader, host) } else { self.doom(leader, host, shard) };
        self.poke(host);
        begun
    }

    fn wish_for(&mut self, leader: usize, host: usize) -> Option<()> {
        let now = self.local(leader);
        let (count, request) =
            (1 + self.roster_rng.below(2) as u32, 1 + self.roster_rng.below(1 << 40));
        let shard = self.hosts[host].shard.as_mut()?;
        let would = shard.create_groups(now, None, count, request, true).ok()?;
        let used = |group: &&u32| {
            self.lives.get(**group as usize).is_some_and(|life| life.stage >= Stage::There)
        };
        if let Some(group) = would.groups.iter().find(used) {
            self.fail("the number of a group is used once", format!("n{} g{group}", leader + 1));
            return None;
        }
        // The world's tables end somewhere.
        if would.groups.iter().any(|group| *group >= self.shape.groups_all) {
            return None;
        }
        let begun = shard.create_groups(now, None, count, request, false).ok()?;
        for group in begun.groups {
            let life = &mut self.lives[group as usize];
            life.stage = life.stage.max(Stage::Wanted);
            self.note_node(leader, "is to make group", u64::from(group));
        }
        Some(())
    }

    fn doom(&mut self, leader: usize, host: usize, first: usize) -> Option<()> {
        let now = self.local(leader);
        let step = self.shape.shards as usize;
        let all = (first + step..self.lives.len()).step_by(step);
        let there: Vec<_> = all.filter(|&group| self.lives[group].lives()).collect();
        // Some are left to work with.
        if there.len() < 2 {
            return None;
        }
        let group = there[self.roster_rng.below(there.len() as u64) as usize];
        let shard = self.hosts[host].shard.as_mut()?;
        shard.delete_group(now, GroupId(group as u32), false).ok()?;
        self.lives[group].stage = Stage::Doomed;
        self.note_node(leader, "is to end group", group as u64);
        Some(())
    }
}
