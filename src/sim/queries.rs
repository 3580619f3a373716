//! Clients ask as well: reads of every consistency, each judged by what it promises.
//!
//! | asked for | judged by |
//! |---|---|
//! | linearizable, follower, lease | nothing that was acknowledged before the question is missing: the answer's index is not below it; and the history of all operations is linearizable |
//! | stale | on one connection places never go back |
//! | all | two answers from one place say the same; who has read what is lost is told, and from where on |
//!
//! A question whose answer is lost is given up after a while: nobody can tell whether it was read.

use bytes::Bytes;

use super::options::Shape;
use super::subject::{Ask, Subject};
use super::trace::What;
use super::world::World;
use crate::ids::{GroupId, Index};
use crate::wire::client::{Consistency, Place, Query, Refused, read_query, write_query_after};
use crate::wire::frame::Frame;

/// No lease is longer than an election timeout, by whichever clock.
const LEASE_MAX_US: u64 = 150_000;
/// Without an answer a question is given up after this long, microseconds.
const PATIENCE: (u64, u64) = (1_500_000, 3_000_000);
/// A refusal is followed by a pause.
const PAUSE: (u64, u64) = (2_000, 40_000);
/// So often a question is sent again before it is given up.
const TRIES_MAX: u32 = 12;
/// Questions of one client without an answer.
const OPEN_MAX: usize = 6;

/// A question without an answer.
#[derive(Debug)]
struct Open {
    token: u64,
    ask: Ask,
    consistency: Consistency,
    question: Bytes,
    /// What was acknowledged of the group when it was asked.
    floor: u64,
    /// How far the client had read.
    after: Place,
    /// Place heard before on the connection that it was sent on, and that connection.
    heard: Place,
    life: u32,
    node: usize,
    /// When it is sent, or given up.
    due: u64,
    sent: bool,
    tries: u32,
}

/// The questions of one client.
#[derive(Debug, Default)]
pub struct Questions {
    open: Vec<Open>,
    next_token: u64,
    /// By host and group: the connection and the highest place heard on it.
    heard: Vec<(u32, Place)>,
    /// By group: how far the client has read.
    read: Vec<Place>,
}

impl Questions {
    pub fn new(shape: &Shape) -> Self {
        let slots = (shape.nodes * shape.groups_all) as usize;
        let read = vec![Place::default(); shape.groups_all as usize];
        Self { heard: vec![(0, Place::default()); slots], read, ..Self::default() }
    }

    /// When the next one is to be sent or given up.
    pub fn due(&self) -> Option<u64> {
        self.open.iter().map(|open| open.due).min()
    }
}

impl<S: Subject> World<S> {
    /// A client thinks of a question to `group`.
    pub(super) fn inquire(&mut self, at: usize, group: usize) {
        if self.clients[at].questions.open.len() >= OPEN_MAX {
            return;
        }
        let drawn = Consistency::ALL[self.client_rng.below(4) as usize];
        // After the trouble each group owes one linearizable answer, so that is what is asked for.
        let consistency = self.healed_at.map_or(drawn, |_| Consistency::Linearizable);
        self.stats.questions += 1;
        let ask = Ask {
            number: self.stats.questions,
            client: at as u32,
            group: GroupId(group as u32),
            asked_at: self.now,
            commands_max: 1,
        };
        let mut question = Vec::new();
        if !self.subject.question(&ask, consistency, &mut self.client_rng, &mut question) {
            // A subject without questions owes no answers.
            self.read_since[group] = true;
            return;
        }
        let anywhere = matches!(consistency, Consistency::Follower | Consistency::Stale);
        let nodes = self.nodes.len() as u64;
        let any = self.client_rng.below(nodes) as usize;
        // Some ask whoever they like: it may be one that has been deposed and does not know.
        let astray = self.client_rng.chance(30);
        let node = if anywhere || astray { any } else { self.clients[at].leader_guess(group) };
        let floor = self.oracle.floor(ask.group);
        let questions = &mut self.clients[at].questions;
        questions.next_token += 1;
        questions.open.push(Open {
            token: questions.next_token,
            ask,
            consistency,
            question: question.into(),
            floor,
            after: questions.read[group],
            heard: Place::default(),
            life: 0,
            node,
            due: self.now,
            sent: false,
            tries: 0,
        });
    }

    /// Sends what is due, and gives up what was sent long ago.
    pub(super) fn send_questions(&mut self, at: usize) {
        let now = self.now;
        let mut i = 0;
        while i < self.clients[at].questions.open.len() {
            let open = &mut self.clients[at].questions.open[i];
            if open.due > now {
                i += 1;
                continue;
            }
            if open.sent || open.tries >= TRIES_MAX {
                self.clients[at].questions.open.swap_remove(i);
                continue;
            }
            (open.sent, open.tries) = (true, open.tries + 1);
            let (group, node) = (open.ask.group, open.node);
            let mut out = Vec::new();
            let (consistency, after) = (open.consistency, open.after);
            write_query_after(&mut out, open.token, group, consistency, after, &open.question);
            let (client, to, seq) = (at as u32, node as u32 + 1, open.token);
            let note = ["reads", "reads there", "reads by the lease", "reads stale"];
            let note = note[open.consistency as usize];
            self.trace.note(now, What::Client { client, to, group, seq, note });
            let shards = self.shape.shards as usize;
            let host = node * shards + group.0 as usize % shards;
            let patience = self.client_rng.between(PATIENCE.0, PATIENCE.1);
            self.request(at, host, out.into());
            let life = self.clients[at].life(host);
            let slot = self.heard_slot(node, group);
            let questions = &mut self.clients[at].questions;
            let (known, place) = questions.heard[slot];
            let open = &mut questions.open[i];
            open.due = now + patience;
            (open.life, open.heard) = (life, if known == life { place } else { Place::default() });
            i += 1;
        }
    }

    fn heard_slot(&self, node: usize, group: GroupId) -> usize {
        node * self.shape.groups_all as usize + group.0 as usize
    }

    /// A reply to a question arrives at its client.
    pub(super) fn on_reply(&mut self, at: usize, host: usize, life: u32, frame: &Frame) {
        let Ok(query) = read_query(frame) else {
            return self.fail("clients understand shards", format!("c{at}"));
        };
        let open = &self.clients[at].questions.open;
        let Some(i) = open.iter().position(|open| open.token == query.token && open.sent) else {
            return;
        };
        let node = self.node_of(host);
        let Query { group, place, .. } = query;
        let (client, from, seq) = (at as u32, node as u32 + 1, query.token);
        let note = if query.result.is_ok() { "read" } else { "not read:" };
        let first = place.index;
        self.trace.note(self.now, What::Answer { client, from, group, seq, first, note });
        match query.result {
            Ok(bytes) => {
                let open = self.clients[at].questions.open.swap_remove(i);
                self.judge_reply(at, node, life, &open, place, &bytes);
            }
            Err(refused) => self.on_refused_question(at, i, node, refused),
        }
    }

    fn on_refused_question(&mut self, at: usize, i: usize, from: usize, refused: Refused) {
        let nodes = self.nodes.len();
        let pause = self.client_rng.between(PAUSE.0, PAUSE.1);
        let group = self.clients[at].questions.open[i].ask.group;
        let may_be_missing = !self.must_be_there(group);
        let open = &mut self.clients[at].questions.open[i];
        open.sent = false;
        open.due = self.now + pause;
        match refused {
            Refused::NotLeader(Some(leader)) => {
                open.node = (leader.0 as usize).wrapping_sub(1) % nodes;
            }
            Refused::Busy => {}
            // Doomed, or whoever answers did not know that it leads the list no longer.
            Refused::NoGroup if may_be_missing => {
                self.clients[at].questions.open.swap_remove(i);
            }
            Refused::Truncated { epoch, from }
                if epoch > open.after.epoch
                    && from <= open.after.index
                    && self.oracle.told_of_loss(open.ask.group) =>
            {
                // It forgets what is lost, and reads on from there.
                open.after = Place { epoch, index: from.prev() };
                let (after, group) = (open.after, open.ask.group.0 as usize);
                let read = &mut self.clients[at].questions.read[group];
                *read = after.max(*read);
            }
            Refused::NotLeader(None) | Refused::Recovering | Refused::Shutdown => {
                open.node = (from + 1) % nodes;
            }
            other => {
                let what = format!("c{at} {:?}: {other}", open.ask);
                self.fail("a proper request is not refused for good", what);
            }
        }
    }

    fn judge_reply(
        &mut self,
        at: usize,
        node: usize,
        life: u32,
        open: &Open,
        place: Place,
        bytes: &[u8],
    ) {
        let Open { ask, consistency, floor, after, heard, .. } = *open;
        let group = ask.group;
        match consistency {
            Consistency::Stale => {}
            // A leader that is cut off does not hear of the end of its group, and keeps its lease.
            Consistency::Lease => self.judge_late_answer(group, ask.asked_at, LEASE_MAX_US),
            _ => self.judge_late_answer(group, ask.asked_at, 0),
        }
        // Whoever was told of a loss stands in the new epoch, before its beginning.
        let epoch = self.oracle.epoch_of(group, after.index);
        let stood = after.index == Index::ZERO || epoch.is_some_and(|e| e <= after.epoch);
        if place.epoch > after.epoch && !stood && !self.options.lying_disks {
            let what = format!("c{at} g{group} was at {after:?}, and hears of {place:?}");
            return self.fail("readers are told of what is lost", what);
        }
        let read = &mut self.clients[at].questions.read[group.0 as usize];
        *read = place.max(*read);
        self.stats.answered_questions[consistency as usize] += 1;
        let what = || {
            format!(
                "c{at} {consistency:?} g{group} of n{}, asked at {} us: e{} i{}",
                node + 1,
                ask.asked_at,
                place.epoch,
                place.index
            )
        };
        let lossless = !self.oracle.has_lost(group) && !self.options.lying_disks;
        if consistency != Consistency::Stale && lossless && place.index < Index(floor) {
            let what = format!("{}, but i{floor} was answered before", what());
            return self.fail("a read sees what was acknowledged before it", what);
        }
        let late = ask.asked_at > self.lost_at[group.0 as usize] && !self.options.lying_disks;
        let stands = self.oracle.stands(group, place.epoch, place.index);
        if consistency != Consistency::Stale && late && !stands {
            let what = format!("{}, which was lost before it was asked", what());
            return self.fail("a read shows nothing that is known to be lost", what);
        }
        if life == open.life && place < heard && lossless {
            let what = format!("{}, after e{} i{}", what(), heard.epoch, heard.index);
            return self.fail("places on one connection never go back", what);
        }
        let slot = self.heard_slot(node, group);
        let known = &mut self.clients[at].questions.heard[slot];
        *known = if known.0 == life { (life, known.1.max(place)) } else { (life, place) };
        if consistency == Consistency::Linearizable
            && self.healed_at.is_some_and(|healed| ask.asked_at >= healed)
        {
            self.read_since[group.0 as usize] = true;
        }
        if let Err(why) = self.subject.told(&ask, consistency, self.now, place, bytes) {
            let what = format!("{}: {why}", what());
            self.fail("answers from one place are the same", what);
        }
    }
}
