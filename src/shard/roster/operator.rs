//! What an operator asks of the list. The leader of the shard's first group proposes; the answer says
//! what was begun, and asking again says whether it is done.

use serde::Serialize;
use thiserror::Error;

use super::super::Shard;
use super::{Change, MADE_AT_ONCE_MAX, Made, PLACES_MAX};
use crate::ids::{GroupId, Index, NodeId, Tick};
use crate::machine::StateMachine;
use crate::membership::Membership;
use crate::mutants::{self, Mutant};
use crate::raft::Event;
use crate::raft::ready::Role;
use crate::wire::admin::AdminReply;
use crate::wire::client::Refused;

/// Group numbers end here.
const GROUPS_MAX: u32 = 1 << 20;

/// What became of a request that was not refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// It is committed, and applied here. Else it was begun, or would be.
    pub done: bool,
    pub groups: Vec<u32>,
}

/// Why the list stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RosterRefused {
    #[error("this node does not lead the shard's first group")]
    NotLeader(Option<NodeId>),
    #[error("the leader has not applied all that was asked before; try again")]
    NotYet,
    #[error("the members of group {0}, with which new groups begin, are being changed; try again")]
    MembersChange(GroupId),
    #[error("the log takes nothing at the moment; try again")]
    NoRoom,
    #[error("between 1 and {MADE_AT_ONCE_MAX} groups are made at a time")]
    Count,
    #[error(
        "group {asked} is not the next one: it is {next} on this shard, numbers are not left out"
    )]
    NotNext { asked: GroupId, next: GroupId },
    #[error("group {0} has ended; its number is not used again")]
    HasEnded(GroupId),
    #[error(
        "this shard has {living} of at most {most} groups: delete some, or raise limits.groups"
    )]
    TooMany { living: u32, most: u32 },
    #[error("all numbers of this shard are used up")]
    NumbersEnd,
    #[error("there is no group {0}")]
    Unknown(GroupId),
    #[error("group {0} keeps the list of the groups of its shard: it stays")]
    KeepsTheList(GroupId),
    #[error(
        "no member of group {0} is one of the first group, which is where it would hear of its end: \
         take one in first"
    )]
    Apart(GroupId),
}

impl RosterRefused {
    /// It may go the next time.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::NotYet | Self::MembersChange(_) | Self::NoRoom)
    }
}

/// What there is, for `group list`.
#[derive(Serialize)]
struct Listing {
    groups: Vec<u32>,
    ended: Vec<u32>,
    /// The number that the shard's next group gets.
    next: u32,
    most: u32,
}

impl<M: StateMachine> Shard<M> {
    /// This node leads the first group, and has applied all that was decided about the list.
    pub(in super::super) fn list_is_current(&self) -> bool {
        let Some(first) = self.groups.first() else { return false };
        let raft = &first.raft;
        let (term, index) = self.roster.proposed;
        raft.role() == Role::Leader
            && raft.log().term_at(first.applied) == Some(raft.term())
            && (term < raft.term() || first.applied >= index)
    }

    fn may_decide(&self) -> Result<(), RosterRefused> {
        let first = self.groups.first().ok_or(RosterRefused::NotLeader(None))?;
        match first.raft.role() {
            Role::Leader if self.list_is_current() => Ok(()),
            Role::Leader => Err(RosterRefused::NotYet),
            _ => Err(RosterRefused::NotLeader(first.raft.leader())),
        }
    }

    /// Makes `count` groups, the first of them with this number if it is given. The same `request` is
    /// not carried out twice (0: no matter), nor is a number that is there already. `dry`: only says
    /// what it would do.
    pub fn create_groups(
        &mut self,
        now: Tick,
        wanted: Option<GroupId>,
        count: u32,
        request: u64,
        dry: bool,
    ) -> Result<Asked, RosterRefused> {
        self.wake_list(now);
        self.may_decide()?;
        if !(1..=MADE_AT_ONCE_MAX).contains(&count) {
            return Err(RosterRefused::Count);
        }
        let list = self.groups[0].sessions.groups();
        if let Some(made) = list.made_for(request) {
            return Ok(self.asked(true, made.place, made.count));
        }
        let place = self.next_place();
        if let Some(group) = wanted
            && self.config.place(group) != Some(place)
        {
            return self.wanted_other(group, count, place);
        }
        self.check_room(place, count)?;
        if !dry {
            let members = self.first_configuration()?;
            let made = Change::Make(Made { place, count, request, members });
            self.propose_change(now, &made)?;
        }
        Ok(self.asked(false, place, count))
    }

    /// A number that is not the next one: there already, gone, or too far.
    fn wanted_other(&self, asked: GroupId, count: u32, next: u32) -> Result<Asked, RosterRefused> {
        let place = self.config.place(asked).filter(|place| place.saturating_add(count) <= next);
        let Some(place) = place else {
            return Err(RosterRefused::NotNext { asked, next: self.config.group_at(next) });
        };
        let ended = (place..place + count).find(|&at| self.groups[at as usize].ended);
        match ended {
            Some(ended) => Err(RosterRefused::HasEnded(self.config.group_at(ended))),
            None => Ok(self.asked(true, place, count)),
        }
    }

    fn asked(&self, done: bool, place: u32, count: u32) -> Asked {
        let groups = (place..place + count).map(|place| self.config.group_at(place).0).collect();
        Asked { done, groups }
    }

    /// The next place that was never used here; what only the log still knows of counts.
    fn next_place(&self) -> u32 {
        if mutants::is(Mutant::GroupNumberUsedAgain)
            && let Some(place) = self.groups[0].sessions.groups().ended().next()
        {
            return place;
        }
        let latent = self.roster.latent.last_key_value();
        let latent = latent.and_then(|(id, _)| self.config.place(*id)).map_or(0, |at| at + 1);
        (self.groups.len() as u32).max(latent)
    }

    fn check_room(&self, place: u32, count: u32) -> Result<(), RosterRefused> {
        let (living, most) = (self.living().count() as u32, self.config.groups_max);
        if living + count > most {
            return Err(RosterRefused::TooMany { living, most });
        }
        let end = u64::from(place) + u64::from(count);
        let last = (end - 1) * u64::from(self.config.shards) + u64::from(self.config.shard);
        if end > u64::from(PLACES_MAX) || last >= u64::from(GROUPS_MAX) {
            return Err(RosterRefused::NumbersEnd);
        }
        Ok(())
    }

    /// New groups begin with the members that the first group has.
    fn first_configuration(&self) -> Result<Membership, RosterRefused> {
        let raft = &self.groups[0].raft;
        let members = raft.membership();
        if members.is_joint() || !members.joining.is_empty() || members.index > raft.commit() {
            return Err(RosterRefused::MembersChange(raft.group()));
        }
        Ok(Membership { index: Index::ZERO, ..members.clone() })
    }

    /// Ends a group. Asked again it says whether it is done.
    pub fn delete_group(
        &mut self,
        now: Tick,
        group: GroupId,
        dry: bool,
    ) -> Result<Asked, RosterRefused> {
        self.wake_list(now);
        self.may_decide()?;
        let place = self.config.place(group).ok_or(RosterRefused::Unknown(group))?;
        let known = self.groups.get(place as usize).ok_or(RosterRefused::Unknown(group))?;
        if place == 0 {
            return Err(RosterRefused::KeepsTheList(group));
        }
        if known.ended {
            return Ok(self.asked(true, place, 1));
        }
        let first = self.groups[0].raft.membership();
        let known = known.raft.membership();
        if !known.members().is_empty() && !known.members().iter().any(|&n| first.is_member(n)) {
            return Err(RosterRefused::Apart(group));
        }
        if !dry {
            self.propose_change(now, &Change::End(place))?;
        }
        Ok(self.asked(false, place, 1))
    }

    fn wake_list(&mut self, now: Tick) {
        if !self.groups.is_empty() {
            self.wake(now, 0, None);
        }
    }

    fn propose_change(&mut self, now: Tick, change: &Change) -> Result<(), RosterRefused> {
        let mut blocks = vec![change.block(self.config.group_at(0))];
        let size = blocks[0].size() as u64;
        if self.wal.room() < 4 * size + self.claimed || self.wal.capacity() <= self.claimed {
            return Err(RosterRefused::NoRoom);
        }
        self.step(now, 0, Event::Propose { blocks: &mut blocks });
        if !blocks.is_empty() {
            return Err(RosterRefused::NoRoom);
        }
        self.claimed += size;
        let raft = &self.groups[0].raft;
        self.roster.proposed = (raft.term(), raft.last_index());
        Ok(())
    }

    /// The answer to an operator.
    pub(in super::super) fn answer_about_list(
        &self,
        what: &str,
        result: Result<Asked, RosterRefused>,
    ) -> Result<AdminReply, Refused> {
        match result {
            Ok(asked) => {
                let how = if asked.done { "done" } else { "begun" };
                let ids: Vec<_> = asked.groups.iter().map(u32::to_string).collect();
                Ok(AdminReply::done(format!("{what} group {}: {how}", ids.join(", "))).with(asked))
            }
            Err(RosterRefused::NotLeader(leader)) => Err(Refused::NotLeader(leader)),
            Err(why) => {
                let again = serde_json::json!({ "again": why.is_passing() });
                Ok(AdminReply::refused(why.to_string()).with(again))
            }
        }
    }

    /// What the list says, by its leader.
    pub(in super::super) fn show_list(&self) -> Result<AdminReply, Refused> {
        match self.may_decide() {
            Err(RosterRefused::NotLeader(leader)) => return Err(Refused::NotLeader(leader)),
            Err(_) => return Err(Refused::NotLeader(None)),
            Ok(()) => {}
        }
        let name = |place: usize| self.config.group_at(place as u32).0;
        let ended = (0..self.groups.len()).filter(|&place| self.groups[place].ended);
        Ok(AdminReply::done("as decided").with(Listing {
            groups: self.living().map(name).collect(),
            ended: ended.map(name).collect(),
            next: self.config.group_at(self.next_place()).0,
            most: self.config.groups_max,
        }))
    }
}
