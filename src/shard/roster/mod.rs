//! Which groups there are: those of the configuration, those made since, less those that have ended.
//!
//! *Numbers.* Group g lives on shard `g % shards` at place `g / shards`. Places are filled one after
//! another and never used twice, so that finding a group stays one division, whatever comes and goes.
//!
//! *Who decides.* The first group of the shard, at place 0, keeps the [list](GroupList); it cannot end.
//! Groups are made and end by its committed entries and by nothing else:
//!
//! ```text
//! make    entry applied ─▶ an empty group, or what recovery found of it, begins with the configuration
//!           that the entry names ─▶ it elects. Messages of a group that is not here yet fall through
//! end     entry applied ─▶ record of the end logged; state, sessions, log and questions go from memory
//!           ─▶ record durable ─▶ its files go, and the other nodes are told
//! start   groups of the configuration begin, those with a record of their end do not; what the log
//!           and the snapshots hold of others waits until the list is read as far as to make them: at
//!           once, since each change of the list notes how far it is committed
//! ```
//!
//! *Why nothing comes back* (bugs.md 11). The record of the end is a hard state of the highest term
//! there is, which no later record can take back and which the log carries on for ever; files go only
//! when it is durable. A group of which a majority has that record can neither elect nor commit,
//! whatever the others still hold, and no message of a group makes one. A crash before the record is
//! durable leaves all of the group as it was, and the entry to be applied again.
//!
//! *Who is away* reads the entries, or the list in a snapshot of the first group. A node may be a
//! member of a group and not of the first one: so whoever has such a record durably tells its peers
//! now and then, in a few bits a group. Hearing it is as good as applying the entry, since the
//! identity of the peer is bound to the connection and a number is never used again.

mod list;
mod operator;

use std::collections::{BTreeMap, VecDeque};

pub use self::list::{Change, GroupList, MADE_AT_ONCE_MAX, Made, PLACES_MAX};
pub use self::operator::{Asked, RosterRefused};
use super::group::Group;
use super::snapshots::FileName;
use super::snapshots::start::Loaded;
use super::{Recovered, Shard, ShardConfig};
use crate::ids::{GroupId, Index, Lsn, NodeId, Term, Tick};
use crate::machine::StateMachine;
use crate::mutants::{self, Mutant};
use crate::raft::ready::Role;
use crate::raft::{self, Event, Raft, Restored};
use crate::wal::Suspect;
use crate::wire::client::{Answer, Refused};
use crate::wire::frame::{FrameKind, FrameWriter};
use crate::wire::peer::{ENDED_PLACES, EndedGroups, PeerEntry};

/// The others are told again of what has ended after this long, microseconds.
const TELL_US: u64 = 10_000_000;
/// A link is kept for so many election timeouts after the last group that needed it has ended.
const FAREWELL_TIMEOUTS: u64 = 20;
/// Least share of the in-memory tail for one of very many groups, bytes.
const CACHE_BYTES_MIN: u64 = 64 << 10;

/// What recovery found of a group that the list does not have yet.
struct Latent<M> {
    restored: Restored,
    loaded: Option<Loaded<M>>,
}

/// After damage groups may have been made that this node does not remember, and has voted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    None,
    /// As long as the first group is RECOVERING ...
    UntilRecovered,
    /// ... and has not applied what it had then.
    Through(Index),
}

/// See the module.
pub(super) struct Roster<M> {
    latent: BTreeMap<GroupId, Latent<M>>,
    /// Changes of the list that are carried out.
    seen: usize,
    /// Term and index of the last entry that was proposed here.
    proposed: (Term, Index),
    /// Ends whose records may not be durable yet, in their order, and the files that go with them.
    ending: VecDeque<(Lsn, GroupId, Vec<FileName>)>,
    tell_at: Tick,
    doubt: Doubt,
}

impl<M> Roster<M> {
    pub fn new(suspect: Suspect) -> Self {
        let damaged = suspect == Suspect::Everything;
        Self {
            latent: BTreeMap::new(),
            seen: 0,
            proposed: (Term::ZERO, Index::ZERO),
            ending: VecDeque::new(),
            tell_at: Tick(u64::MAX),
            doubt: if damaged { Doubt::UntilRecovered } else { Doubt::None },
        }
    }

    /// When the others are to be told.
    pub fn deadline(&self) -> Tick {
        self.tell_at
    }

    /// Whether a group may turn up that is RECOVERING.
    pub fn is_in_doubt(&self) -> bool {
        self.doubt != Doubt::None
    }

    /// Groups that are to be RECOVERING when they turn up.
    pub fn recovering(&self) -> usize {
        self.latent.values().filter(|latent| latent.restored.recovering).count()
    }
}

impl ShardConfig {
    /// The group at a place of this shard.
    pub fn group_at(&self, place: u32) -> GroupId {
        GroupId(place * self.shards + self.shard)
    }

    /// Places of groups of the configuration.
    pub fn configured(&self) -> u32 {
        self.groups.saturating_sub(self.shard).div_ceil(self.shards)
    }

    fn place(&self, group: GroupId) -> Option<u32> {
        (group.0 % self.shards == self.shard).then_some(group.0 / self.shards)
    }
}

/// Beginnings.
impl<M: StateMachine> Shard<M> {
    /// Position in `groups` of a group that is here.
    pub(super) fn local(&self, group: GroupId) -> Option<u32> {
        let place = self.config.place(group)?;
        let known = self.groups.get(place as usize)?;
        if known.ended { None } else { Some(place) }
    }

    /// Why a group that is not here is refused. Only who has ended it knows, and the leader of the
    /// first group: another node may just not have read the list as far.
    pub(super) fn no_group(&self, group: GroupId) -> Refused {
        let Some(place) = self.config.place(group) else { return Refused::NoGroup };
        let known = (place as usize) < self.groups.len() || place >= PLACES_MAX;
        let Some(first) = self.groups.first().filter(|_| !known) else { return Refused::NoGroup };
        match first.raft.role() {
            Role::Leader if self.list_is_current() => Refused::NoGroup,
            Role::Leader => Refused::NotLeader(None),
            _ => Refused::NotLeader(first.raft.leader()),
        }
    }

    /// Whether the group was here and has ended for good, with a durable record.
    pub fn has_ended(&self, group: GroupId) -> bool {
        let place = self.config.place(group).and_then(|place| self.groups.get(place as usize));
        place.is_some_and(|group| group.ended) && !self.is_ending(group)
    }

    fn is_ending(&self, group: GroupId) -> bool {
        self.roster.ending.iter().any(|(_, ending, _)| *ending == group)
    }

    /// Groups that have ended, and those whose record of it is not durable yet.
    pub(super) fn ends(&self) -> (usize, usize) {
        (self.groups.iter().filter(|group| group.ended).count(), self.roster.ending.len())
    }

    /// Positions of the groups that have not ended.
    pub(super) fn living(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.groups.len()).filter(|&local| !self.groups[local].ended)
    }

    /// The groups of a start.
    pub(super) fn open_groups(
        &mut self,
        now: Tick,
        mut recovered: Recovered,
        loaded: Vec<Loaded<M>>,
    ) {
        let mut loaded: BTreeMap<_, _> =
            loaded.into_iter().map(|loaded| (loaded.header.group, loaded)).collect();
        for place in 0..self.config.configured() {
            let id = self.config.group_at(place);
            let restored = self.suspected(id, recovered.remove(&id).unwrap_or_default());
            self.open_group(now, Latent { restored, loaded: loaded.remove(&id) });
        }
        for (id, restored) in recovered {
            let restored = self.suspected(id, restored);
            self.recovering += usize::from(restored.recovering);
            self.roster.latent.insert(id, Latent { restored, loaded: loaded.remove(&id) });
        }
        self.follow_list(now);
    }

    fn suspected(&self, id: GroupId, mut restored: Restored) -> Restored {
        if !restored.hard_state.is_ended() {
            restored.recovering |= self.config.is_suspect(id);
            restored.damaged |= self.config.suspect == Suspect::Everything;
        }
        restored
    }

    /// The group at the next place begins with what was found of it.
    fn open_group(&mut self, now: Tick, found: Latent<M>) {
        let local = self.groups.len() as u32;
        let id = self.config.group_at(local);
        let Latent { mut restored, loaded } = found;
        if restored.hard_state.is_ended() {
            if !mutants::is(Mutant::ResurrectEndedGroup) {
                return self.open_ended(now, loaded);
            }
            restored = Restored::default();
        }
        if let Some(first) = self.first_members(local)
            && restored.memberships.first().is_none_or(|known| known.index > Index::ZERO)
        {
            restored.memberships.insert(0, first);
        }
        let raft = Raft::new(self.raft_config(id), restored, now);
        self.recovering += usize::from(raft.is_recovering());
        let empty = (self.machines)(id);
        let mut group = Group::new(raft, empty, &self.config);
        if let Some(loaded) = loaded {
            // That the node has begun anew is no reason for a newer one: who has a part of this one
            // would have to begin anew as well.
            (group.snapshot, group.snapshot_at) = (loaded.offer, now);
            group.restore(loaded.machine, loaded.sessions, loaded.offer.start.index);
        }
        self.groups.push(group);
        self.reschedule(local);
    }

    fn first_members(&self, place: u32) -> Option<crate::membership::Membership> {
        let list = self.groups.first()?.sessions.groups();
        list.maker(place).map(|made| made.members.clone())
    }

    /// Nothing begins at the next place: its group has ended. A file of it that is left goes.
    fn open_ended(&mut self, now: Tick, loaded: Option<Loaded<M>>) {
        let id = self.config.group_at(self.groups.len() as u32);
        let nobody = self.nobody(now, id);
        self.groups.push(nobody);
        self.roster.tell_at = now;
        let mut files = self.forget_snapshots(self.groups.len() as u32 - 1);
        files.extend(loaded.map(|loaded| FileName::Snapshot(id, loaded.offer.start.index)));
        if files.len() > 1 {
            self.roster.ending.push_back((Lsn::ZERO, id, files));
        }
    }

    /// Stands at the place of a group that has ended.
    fn nobody(&mut self, now: Tick, id: GroupId) -> Group<M> {
        let mut config = self.raft_config(id);
        config.voters = Vec::new();
        let raft = Raft::new(config, Restored::default(), now);
        let mut nobody = Group::new(raft, (self.machines)(id), &self.config);
        nobody.ended = true;
        nobody
    }

    pub(super) fn raft_config(&self, group: GroupId) -> raft::Config {
        let mut config = self.config.raft.clone();
        config.id = self.config.node;
        config.group = group;
        config.voters = self.config.voters.clone();
        config.incarnation = self.config.incarnation;
        config.seed = super::seed(self.config.node, self.config.incarnation, group);
        // Leaders of the groups of one shard are spread over the nodes at the first start.
        let place = group.0 / self.config.shards;
        config.preferred = self.home(place) == self.config.node;
        let configured = self.config.configured();
        if place >= configured {
            // The memory for tails was shared out among the groups of the configuration.
            let share = config.cache_bytes_max * u64::from(configured) / u64::from(place + 1);
            config.cache_bytes_max = share.max(CACHE_BYTES_MIN.min(config.cache_bytes_max));
        }
        config
    }
}

/// The list is carried out.
impl<M: StateMachine> Shard<M> {
    /// The first group has applied something, or begins with it: makes and ends what its list says.
    pub(super) fn follow_list(&mut self, now: Tick) {
        let Some(first) = self.groups.first() else { return };
        let list = first.sessions.groups();
        if list.changes() == self.roster.seen {
            return;
        }
        self.roster.seen = list.changes();
        let next = list.next_place();
        // The next start is not to wait for a leader before it has its groups.
        let (id, applied) = (self.config.group_at(0), first.applied);
        self.wal.note_commit(id, applied);
        while (self.groups.len() as u32) < next {
            self.make_group(now);
        }
        let list = self.groups[0].sessions.groups();
        let has_ended = |place: &u32| {
            let group = self.groups.get(*place as usize);
            *place > 0 && group.is_some_and(|group| !group.ended)
        };
        let ended: Vec<u32> = list.ended().filter(has_ended).collect();
        for place in ended {
            self.end_group(now, place);
        }
    }

    /// The group at the next place is made, or was never to be.
    fn make_group(&mut self, now: Tick) {
        let local = self.groups.len() as u32;
        let id = self.config.group_at(local);
        let latent = self.roster.latent.remove(&id);
        let was_known = latent.is_some();
        let restored = Restored::default();
        let mut found = latent.unwrap_or(Latent { restored, loaded: None });
        self.recovering -= usize::from(found.restored.recovering);
        if !was_known && self.roster.is_in_doubt() {
            (found.restored.recovering, found.restored.damaged) = (true, true);
        }
        if self.groups[0].sessions.groups().maker(local).is_none() && !was_known {
            // A place that was passed over.
            return self.open_ended(now, None);
        }
        self.open_group(now, found);
        if self.groups[local as usize].ended {
            return;
        }
        self.meet_members_of(local);
        for peer in self.linked() {
            let incarnation = self.liveness.incarnation(peer);
            self.step(now, local, Event::PeerConnected { peer, incarnation });
        }
        if self.groups[0].sessions.groups().maker(local).is_none() {
            // What the log holds of a group that the list has forgotten, by an operator's word.
            self.end_group(now, local);
        }
    }

    fn linked(&self) -> Vec<NodeId> {
        self.peers.iter().filter(|peer| peer.connected).map(|peer| peer.node).collect()
    }

    /// The group is over on this node. See the module.
    fn end_group(&mut self, now: Tick, place: u32) {
        let id = self.config.group_at(place);
        let lsn = self.wal.end_group(id);
        self.dismiss(place);
        let files = self.forget_snapshots(place);
        let ended_early = mutants::is(Mutant::FilesGoBeforeTheEnd);
        let lsn = if ended_early { Lsn::ZERO } else { lsn };
        self.roster.ending.push_back((lsn, id, files));
        let nobody = self.nobody(now, id);
        self.groups[place as usize] = nobody;
        // Members of this group alone have yet to hear of it.
        let farewell = FAREWELL_TIMEOUTS * self.config.raft.election_timeout_max_us;
        self.watch_links(now.plus(farewell));
    }

    /// Who waits for the group is told, and what this turn was to do for it is not done.
    fn dismiss(&mut self, local: u32) {
        let id = self.config.group_at(local);
        self.refuse_questions(local, Refused::NoGroup);
        self.give_place_back(local);
        let group = &mut self.groups[local as usize];
        let pending = group.pending.drain(..).map(|pending| (pending.conn, pending.seq));
        let waiting: Vec<_> = pending
            .chain(group.origins.drain(..).map(|origin| (origin.conn, origin.seq)))
            .collect();
        group.proposals.clear();
        for (conn, seq) in waiting {
            let result = Err(Refused::NoGroup);
            self.stats.refused[Refused::NoGroup.kind()] += 1;
            self.clients.answer(conn, &Answer::new(id, seq, result));
        }
        let raft = &self.groups[local as usize].raft;
        if raft.is_recovering() {
            self.recovering -= 1;
            self.recovered_at = None;
        }
        self.liveness.asleep -= usize::from(raft.is_hibernating());
        let ready = &mut self.ready;
        ready.persists.retain(|persist| persist.group != id);
        ready.messages.retain(|message| message.group != id);
        ready.fetches.retain(|fetch| fetch.group != id);
        ready.committed.retain(|committed| committed.group != id);
        ready.reads.retain(|read| read.group != id);
        ready.installs.retain(|install| install.group != id);
    }

    /// Once a turn: ends whose records have become durable, and who is to hear of them.
    pub(super) fn settle_ends(&mut self, now: Tick) {
        self.settle_doubt();
        let durable = self.wal.durable();
        while self.roster.ending.front().is_some_and(|(lsn, ..)| *lsn <= durable) {
            let Some((_, _, files)) = self.roster.ending.pop_front() else { break };
            self.remove_files(files);
            self.roster.tell_at = now;
        }
        if self.roster.tell_at <= now {
            self.roster.tell_at = now.plus(TELL_US);
            self.tell_of_ends();
        }
    }

    /// Whoever has just been linked with is told of what has ended.
    pub(super) fn tell_soon(&mut self, now: Tick) {
        if self.roster.tell_at < Tick(u64::MAX) {
            self.roster.tell_at = now;
        }
    }

    fn settle_doubt(&mut self) {
        let Some(first) = self.groups.first() else {
            return self.roster.doubt = Doubt::None;
        };
        self.roster.doubt = match self.roster.doubt {
            Doubt::UntilRecovered if !first.raft.is_recovering() => {
                Doubt::Through(first.raft.last_index())
            }
            Doubt::Through(index) if first.applied >= index => Doubt::None,
            doubt => doubt,
        };
    }

    fn tell_of_ends(&mut self) {
        let limit = self.config.peer_egress_bytes_max;
        let sender = self.config.incarnation;
        let over = |place: usize| {
            self.groups[place].ended && !self.is_ending(self.config.group_at(place as u32))
        };
        let all: Vec<usize> = (0..self.groups.len()).filter(|&place| over(place)).collect();
        let entries: Vec<_> = all
            .chunk_by(|a, b| a / ENDED_PLACES == b / ENDED_PLACES)
            .map(|places| PeerEntry::ended(&EndedGroups::of(sender, places)))
            .collect();
        for peer in self.peers.iter_mut().filter(|peer| peer.connected && !entries.is_empty()) {
            if peer.egress.len() > 2 * limit {
                continue;
            }
            let mut writer = FrameWriter::begin(&mut peer.egress);
            entries.iter().for_each(|entry| writer.entry(entry));
            writer.finish(FrameKind::Peer, entries.len() as u32, 0);
        }
    }

    /// Another node has records of ends.
    pub(super) fn hear_of_ends(&mut self, now: Tick, ended: &EndedGroups) {
        for place in ended.places() {
            let known = self.groups.get(place).is_some_and(|group| !group.ended);
            if known && place > 0 {
                self.end_group(now, place as u32);
            }
        }
    }
}
