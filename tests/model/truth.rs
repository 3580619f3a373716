//! What an observer of all nodes knows, and what must be true of it at each moment.

use std::sync::Arc;

use ringraft::ids::Index;
use ringraft::raft::{Body, Role};
use stateright::Property;

use super::node::{Entry, NODES, Node, Output, holds};
use super::state::State;
use super::world::{Disks, World};

/// Highest term of any world, and 1.
const TERMS: usize = 8;

/// An entry that some client was told of, or might have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Acknowledged {
    pub index: u8,
    pub entry: Entry,
    /// Term of the leader that committed it first.
    pub in_term: u8,
    /// Highest recovery epoch in which it is known to be committed.
    pub epoch: u8,
    /// The one under which its place was told: a place is an epoch and an index.
    pub place: u8,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Truth {
    /// By term, 0 = nobody: who led.
    leaders: [u8; TERMS],
    /// By voter and term: to whom the vote went out.
    votes: [[u8; TERMS]; NODES],
    pub acknowledged: Vec<Acknowledged>,
    /// Two nodes were RECOVERING at one time.
    pub majority_forgot: bool,
    /// `possible_data_loss` was raised.
    pub reported: bool,
    /// A node has left RECOVERING as a follower, and as a leader.
    recovered: bool,
    recovered_by_vote: bool,
    second_leader: bool,
    second_vote: bool,
    second_commit: bool,
    /// Reads that wait: node, number, and the highest index that was committed when they came.
    reads: Vec<(u8, u8, u8)>,
    /// A read was answered, and one at an index from before it came.
    answered: bool,
    answered_late: bool,
    installed: bool,
}

impl Truth {
    /// After a step of the node `at`.
    pub fn update(&mut self, nodes: &[Arc<Node>; NODES], at: usize, out: &Output) {
        let node = &nodes[at];
        if node.raft.role() == Role::Leader {
            let known = &mut self.leaders[node.raft.term().get() as usize];
            self.second_leader |= !claim(known, at as u8 + 1);
        }
        for envelope in &out.sent {
            let vote = match envelope.message.body {
                Body::VoteRequest { pre: false, .. } => envelope.from,
                Body::VoteReply { pre: false, granted: true, .. } => envelope.to,
                _ => continue,
            };
            let voter = envelope.from.0 as usize - 1;
            let known = &mut self.votes[voter][envelope.message.term.get() as usize];
            self.second_vote |= !claim(known, vote.0 as u8);
        }
        if out.committed {
            self.commit(node);
        }
        self.recovered |= out.recovered && node.raft.role() != Role::Leader;
        self.recovered_by_vote |= out.recovered && node.raft.role() == Role::Leader;
        self.reported |= out.reported;
        self.installed |= out.installed;
        if let Some((through, index)) = out.read {
            self.answer(at, through, index);
        }
        self.majority_forgot |=
            nodes.iter().filter(|node| node.is_recovering()).count() * 2 > NODES;
    }

    /// A read with this number has come to the node `at`.
    pub fn asked(&mut self, at: usize, number: u64) {
        let committed = self.acknowledged.iter().map(|a| a.index).max().unwrap_or(0);
        self.reads.push((at as u8, number as u8, committed));
    }

    /// The node `at` starts again: nobody waits for an answer any more.
    pub fn forget_reads(&mut self, at: usize) {
        self.reads.retain(|read| usize::from(read.0) != at);
    }

    fn answer(&mut self, at: usize, through: u64, index: Index) {
        let is_answered =
            |read: &mut (u8, u8, u8)| usize::from(read.0) == at && u64::from(read.1) <= through;
        for (_, _, committed) in self.reads.extract_if(.., is_answered) {
            self.answered = true;
            self.answered_late |= index.get() < u64::from(committed);
        }
    }

    fn commit(&mut self, node: &Node) {
        let commit = node.raft.commit().get() as usize;
        let epoch = node.log[commit - 1].epoch;
        let in_term = node.raft.term().get() as u8;
        for (index, &entry) in (1u8..).zip(&node.log[..commit]) {
            let is_same = |a: &&mut Acknowledged| a.index == index && a.entry == entry;
            let place = epoch_of_place(&node.log[..commit], index);
            let mut is_known = false;
            for known in self.acknowledged.iter_mut().filter(is_same) {
                known.epoch = known.epoch.max(epoch);
                is_known |= known.place == place;
            }
            if is_known {
                continue;
            }
            // What was lost may be another entry in a later recovery epoch (durability.md R6, R9).
            self.second_commit |= self.clashes(index, entry, place);
            self.acknowledged.push(Acknowledged { index, entry, in_term, epoch, place });
            self.acknowledged.sort_by_key(|a| (a.index, a.epoch, a.place));
        }
    }

    /// Another entry has had the place; or has one of a later epoch, and this one is news.
    fn clashes(&self, index: u8, entry: Entry, place: u8) -> bool {
        let at_index = || self.acknowledged.iter().filter(|a| a.index == index);
        let is_news = !at_index().any(|a| a.entry == entry);
        let mut others = at_index().filter(|a| a.entry != entry);
        others.any(|a| a.place == place || (is_news && a.place > place))
    }
}

/// That of the last entry that begins one at or below `index`.
fn epoch_of_place(log: &[Entry], index: u8) -> u8 {
    let mut place = 0;
    for (at, entry) in (1u8..).zip(log) {
        let since = if entry.since > 0 { entry.since } else { at };
        if since <= index {
            place = place.max(entry.epoch);
        }
    }
    place
}

/// True if the place is free or is this one's already.
fn claim(place: &mut u8, by: u8) -> bool {
    let free = *place == 0 || *place == by;
    *place = by;
    free
}

fn is_held(log: &[Entry], acknowledged: &Acknowledged) -> bool {
    let Acknowledged { index, entry, .. } = acknowledged;
    holds(log, usize::from(*index), entry.term, entry.payload)
}

fn one_leader_a_term(_: &World, state: &State) -> bool {
    !state.truth.second_leader
}

fn one_vote_a_term(_: &World, state: &State) -> bool {
    !state.truth.second_vote
}

fn commits_agree(_: &World, state: &State) -> bool {
    !state.truth.second_commit
}

/// Dissertation §6.4: a read sees everything that was committed anywhere when it came.
fn reads_are_current(_: &World, state: &State) -> bool {
    !state.truth.answered_late
}

fn assertions_hold(_: &World, state: &State) -> bool {
    state.broken.is_none()
}

/// Figure 3: two logs that hold an entry of the same index and term are the same through it.
fn logs_match(_: &World, state: &State) -> bool {
    let logs = state.nodes.each_ref().map(|node| &node.log);
    [(0, 1), (0, 2), (1, 2)].iter().all(|&(a, b)| {
        let pairs = || logs[a].iter().zip(logs[b]);
        let same = pairs().take_while(|(x, y)| x == y).count();
        pairs().skip(same).all(|(x, y)| x.term != y.term)
    })
}

/// Figure 3: a leader holds what was acknowledged under every leader before it, unless the loss of it
/// was reported by a higher recovery epoch.
fn leaders_are_complete(_: &World, state: &State) -> bool {
    state.nodes.iter().filter(|node| node.raft.role() == Role::Leader).all(|leader| {
        let term = leader.raft.term().get() as u8;
        let epoch = leader.log.last().map_or(0, |entry| entry.epoch);
        let mut owed = state.truth.acknowledged.iter();
        owed.all(|a| a.in_term > term || a.epoch < epoch || is_held(&leader.log, a))
    })
}

/// What was acknowledged is where its rule wants it on a majority. A RECOVERING node counts as if it
/// held it: it is not asked whether it does. After a loss of the majority's nothing is promised here.
fn a_majority_holds_it(world: &World, state: &State) -> bool {
    let may_hold = |node: &Arc<Node>, a: &Acknowledged| {
        let disk = if world.sync { &node.durable } else { &node.written };
        is_held(&disk.log, a) || (!world.sync && node.is_recovering())
    };
    let mut owed = state.truth.acknowledged.iter();
    // With changes the majority is that of a configuration; a leader's completeness is checked.
    state.truth.majority_forgot
        || world.changes > 0
        || owed.all(|a| state.nodes.iter().filter(|node| may_hold(node, a)).count() * 2 > NODES)
}

/// The epoch rises, and the event is raised, only when a majority may have forgotten; never the one
/// without the other.
fn losses_are_reported(_: &World, state: &State) -> bool {
    let rose = state.nodes.iter().any(|node| node.log.last().is_some_and(|e| e.epoch > 0));
    let truth = &state.truth;
    (!rose || truth.reported) && (!truth.reported || truth.majority_forgot)
}

/// Of what was acknowledged before a loss, a prefix remains: a leader that lacks one entry lacks all
/// that came after it in the same epoch.
fn what_remains_is_a_prefix(_: &World, state: &State) -> bool {
    state.nodes.iter().filter(|node| node.raft.role() == Role::Leader).all(|leader| {
        let term = leader.raft.term().get() as u8;
        let known = || state.truth.acknowledged.iter().filter(|a| a.in_term <= term);
        let mut lost = known().filter(|a| !is_held(&leader.log, a));
        lost.all(|gone| {
            let mut later = known().filter(|a| a.index > gone.index && a.epoch <= gone.epoch);
            later.all(|a| !is_held(&leader.log, a))
        })
    })
}

/// The moments that each world must reach, or it shows nothing.
fn a_leader_is_elected(world: &World, state: &State) -> bool {
    world.first_time(0, || state.nodes.iter().any(|node| node.raft.role() == Role::Leader))
}

fn an_entry_is_acknowledged(world: &World, state: &State) -> bool {
    world.first_time(1, || state.truth.acknowledged.iter().any(|a| a.entry.payload > 0))
}

fn a_second_leader_follows(world: &World, state: &State) -> bool {
    let led = |n: &&u8| **n > 0;
    world.first_time(2, || state.truth.leaders.iter().filter(led).count() > 1)
}

fn a_node_recovers_from_its_leader(world: &World, state: &State) -> bool {
    world.first_time(3, || state.truth.recovered)
}

fn a_node_recovers_by_the_vote_of_all(world: &World, state: &State) -> bool {
    world.first_time(4, || state.truth.recovered_by_vote)
}

fn a_loss_is_reported(world: &World, state: &State) -> bool {
    world.first_time(5, || state.truth.reported)
}

fn a_change_is_complete(world: &World, state: &State) -> bool {
    let done = |node: &Arc<Node>| {
        let membership = node.raft.membership();
        let changed = membership.index > Index::ZERO && !membership.is_joint();
        changed && membership.index <= node.raft.commit()
    };
    world.first_time(6, || state.nodes.iter().any(done))
}

fn a_leader_of_the_new_voters_follows(world: &World, state: &State) -> bool {
    let leads = |node: &Arc<Node>| {
        let by_new = node.raft.membership().index > Index::ZERO;
        by_new && node.raft.role() == Role::Leader && node.raft.term().get() > 1
    };
    world.first_time(7, || state.nodes.iter().any(leads))
}

fn a_read_is_answered(world: &World, state: &State) -> bool {
    world.first_time(8, || state.truth.answered)
}

fn a_snapshot_is_installed(world: &World, state: &State) -> bool {
    world.first_time(9, || state.truth.installed)
}

/// All properties of a world.
pub fn properties(world: &World) -> Vec<Property<World>> {
    let mut all = vec![
        Property::always("assertions hold", assertions_hold),
        Property::always("one leader a term", one_leader_a_term),
        Property::always("one vote a term", one_vote_a_term),
        Property::always("logs match", logs_match),
        Property::always("leaders are complete", leaders_are_complete),
        Property::always("commits agree", commits_agree),
        Property::always("reads are current", reads_are_current),
        Property::always("a majority holds it", a_majority_holds_it),
        Property::always("losses are reported", losses_are_reported),
        Property::always("what remains is a prefix", what_remains_is_a_prefix),
        Property::sometimes("a leader is elected", a_leader_is_elected),
    ];
    if world.campaigns > 1 && world.terms > 1 {
        all.push(Property::sometimes("a second leader follows", a_second_leader_follows));
    }
    if world.proposals > 0 {
        all.push(Property::sometimes("an entry is acknowledged", an_entry_is_acknowledged));
    }
    if world.reads > 0 {
        all.push(Property::sometimes("a read is answered", a_read_is_answered));
    }
    if world.compactions > 0 {
        all.push(Property::sometimes("a snapshot is installed", a_snapshot_is_installed));
    }
    if world.changes > 0 && world.disks == Disks::Synced {
        all.push(Property::sometimes("a change is complete", a_change_is_complete));
        let by_new = a_leader_of_the_new_voters_follows;
        all.push(Property::sometimes("a leader of the new voters follows", by_new));
    }
    if !world.sync && world.power_losses > 0 {
        let from_leader = a_node_recovers_from_its_leader;
        all.push(Property::sometimes("a node recovers from its leader", from_leader));
    }
    if !world.sync && world.power_losses > 0 && world.campaigns > 1 {
        let by_vote = a_node_recovers_by_the_vote_of_all;
        all.push(Property::sometimes("a node recovers by the vote of all", by_vote));
    }
    if !world.sync && world.power_losses > 1 && world.campaigns > 1 {
        all.push(Property::sometimes("a loss is reported", a_loss_is_reported));
    }
    all
}

impl Truth {
    /// For people.
    pub fn describe(&self) -> String {
        let told: Vec<_> = self
            .acknowledged
            .iter()
            .map(|a| format!("i{} of t{} by the leader of t{}", a.index, a.entry.term, a.in_term))
            .collect();
        let forgot = if self.majority_forgot { "; a majority may have forgotten" } else { "" };
        format!("acknowledged: [{}]{forgot}", told.join(", "))
    }
}
