//! Questions: when a replica may answer, and from what.
//!
//! ```text
//!   arrives      stale: answered at once, from whatever is applied
//!                others: numbered, and queued in their group
//!   turn         all that came since the last turn become one ReadIndex (or fall under the lease)
//!   Ready.reads  through number n: index i             (raft/read_index.rs)
//!   apply        those up to n are answered once i is applied, in the order in which they came
//! ```
//!
//! The clock is read after the last input of a turn was taken in; a lease is judged by it, so that
//! a process that was stopped between the two is not fooled (bug 24).

use std::collections::VecDeque;

use bytes::Bytes;

use super::group::Group;
use super::{Clients, Shard};
use crate::ids::{GroupId, Index, Tick};
use crate::machine::StateMachine;
use crate::mutants::{self, Mutant};
use crate::raft::ready::{ReadIndex, Role};
use crate::raft::{Event, Raft};
use crate::wire::client::{Consistency, Place, Refused, read_query};
use crate::wire::frame::{Frame, FrameError};

/// Bytes of questions that wait in a shard; further ones are refused as `Busy`.
const QUESTION_BYTES_MAX: usize = 16 << 20;

/// One question and who waits for its answer.
struct Asked {
    conn: u64,
    token: u64,
    question: Bytes,
    consistency: Consistency,
    /// How far the reader has read.
    after: Place,
    /// When it is given up; set in the turn that asks for it.
    until: Tick,
}

/// Questions of one group that wait: for rounds, and those for which a lease will do.
#[derive(Default)]
pub(super) struct GroupReads {
    rounds: Line,
    leased: Line,
    /// In the shard's list of groups with questions.
    listed: bool,
}

impl GroupReads {
    pub fn is_empty(&self) -> bool {
        self.rounds.queue.is_empty() && self.leased.queue.is_empty()
    }

    /// Questions that nobody was asked about yet.
    fn has_fresh(&self) -> bool {
        self.rounds.last() > self.rounds.asked || self.leased.last() > self.leased.asked
    }

    /// The next question that may be answered at `applied`.
    fn pop_ready(&mut self, applied: Index) -> Option<Asked> {
        self.leased.pop_ready(applied).or_else(|| self.rounds.pop_ready(applied))
    }

    /// The next question whose time is over.
    fn pop_late(&mut self, now: Tick) -> Option<Asked> {
        self.leased.pop_late(now).or_else(|| self.rounds.pop_late(now))
    }

    /// No lease runs: what hoped for one waits for a round like the others.
    fn give_up_lease(&mut self) {
        while self.leased.last() > self.leased.asked {
            self.rounds.queue.extend(self.leased.queue.pop_back());
        }
    }
}

/// Questions in the order of their numbers, which begin at 1.
#[derive(Default)]
struct Line {
    queue: VecDeque<Asked>,
    /// Questions that have left the queue.
    done: u64,
    /// An index was asked for through this one.
    asked: u64,
    /// Through these numbers an answer may be given from these indices on; both grow.
    confirmed: VecDeque<(u64, Index)>,
}

impl Line {
    fn last(&self) -> u64 {
        self.done + self.queue.len() as u64
    }

    /// Everything in it is asked for from now on; what is new is given up at `until`.
    fn ask(&mut self, until: Tick) -> u64 {
        let fresh = (self.asked - self.done) as usize;
        self.queue.range_mut(fresh..).for_each(|asked| asked.until = until);
        self.asked = self.last();
        self.asked
    }

    /// Answers may be given through `through` once `index` is applied.
    fn confirm(&mut self, through: u64, index: Index) {
        if through > self.done {
            self.confirmed.push_back((through.min(self.last()), index));
        }
    }

    /// The next question that may be answered at `applied`.
    fn pop_ready(&mut self, applied: Index) -> Option<Asked> {
        while let Some(&(through, index)) = self.confirmed.front() {
            if through <= self.done {
                self.confirmed.pop_front();
                continue;
            }
            if index > applied && !mutants::is(Mutant::ReadBeforeApplied) {
                return None;
            }
            return self.pop();
        }
        None
    }

    /// The next question whose time is over.
    fn pop_late(&mut self, now: Tick) -> Option<Asked> {
        let late = self.queue.front().is_some_and(|asked| asked.until <= now);
        if late { self.pop() } else { None }
    }

    fn pop(&mut self) -> Option<Asked> {
        let asked = self.queue.pop_front()?;
        self.done += 1;
        Some(asked)
    }
}

/// The shard's side of it.
#[derive(Default)]
pub(super) struct Reads {
    /// Groups with questions since the last turn.
    asking: Vec<u32>,
    /// Groups with questions that wait.
    waiting: Vec<u32>,
    /// Groups of which some may be answered now.
    answerable: Vec<u32>,
    /// When to look for questions whose time is over.
    look_at: Tick,
    question_bytes: usize,
    /// Kept for its memory.
    reply: Vec<u8>,
}

impl Reads {
    /// Whether a turn is wanted at once.
    pub fn has_news(&self) -> bool {
        !self.asking.is_empty() || !self.answerable.is_empty()
    }

    /// When a turn is wanted for questions that wait.
    pub fn deadline(&self) -> Tick {
        if self.waiting.is_empty() { Tick(u64::MAX) } else { self.look_at }
    }
}

impl<M: StateMachine> Shard<M> {
    /// A question from a client.
    pub(super) fn query(&mut self, conn: u64, frame: &Frame) -> Result<(), FrameError> {
        let query = read_query(frame)?;
        let question = query.result.map_err(|_| FrameError::BadEntry(0))?;
        let to = (conn, query.token, query.group);
        let admitted = self.admit_question(conn, query.group, query.consistency, question.len());
        let local = match admitted {
            Ok(local) => local,
            Err(refused) => {
                self.stats.refused[refused.kind()] += 1;
                self.clients.reply(to, false, Place::default(), Err(refused));
                return Ok(());
            }
        };
        if query.consistency == Consistency::Stale {
            let group = &self.groups[local as usize];
            let asked = (query.place, &question[..]);
            answer(group, &mut self.clients, &mut self.questions.reply, to, false, asked);
            self.stats.reads[Consistency::Stale as usize] += 1;
            return Ok(());
        }
        if !self.clients.admit_question(conn, self.config.client_blocks_max) {
            self.stats.refused[Refused::Busy.kind()] += 1;
            self.clients.reply(to, false, Place::default(), Err(Refused::Busy));
            return Ok(());
        }
        self.questions.question_bytes += question.len();
        let reads = &mut self.groups[local as usize].reads;
        if !reads.has_fresh() {
            self.questions.asking.push(local);
        }
        let (token, consistency, until) = (query.token, query.consistency, Tick(u64::MAX));
        let after = query.place;
        let lease = consistency == Consistency::Lease;
        let line = if lease { &mut reads.leased } else { &mut reads.rounds };
        line.queue.push_back(Asked { conn, token, question, consistency, after, until });
        if !std::mem::replace(&mut reads.listed, true) {
            self.questions.waiting.push(local);
        }
        Ok(())
    }

    fn admit_question(
        &mut self,
        conn: u64,
        group: GroupId,
        consistency: Consistency,
        bytes: usize,
    ) -> Result<u32, Refused> {
        let local = self.local(group).ok_or_else(|| self.no_group(group))?;
        if !self.client_may_send(conn) || self.questions.question_bytes + bytes > QUESTION_BYTES_MAX
        {
            return Err(Refused::Busy);
        }
        let raft = &self.groups[local as usize].raft;
        if raft.is_recovering() || raft.is_parted() {
            // durability.md R4, R8.
            return Err(Refused::Recovering);
        }
        let at_leader = matches!(consistency, Consistency::Linearizable | Consistency::Lease);
        if at_leader && raft.role() != Role::Leader {
            return Err(Refused::NotLeader(raft.leader()));
        }
        Ok(local)
    }

    /// Asks Raft, once for all that came since the last turn, and gives up what waits too long.
    pub(super) fn ask_reads(&mut self, now: Tick) {
        let mut asking = std::mem::take(&mut self.questions.asking);
        for local in asking.drain(..) {
            self.ask_reads_of(now, local);
        }
        self.questions.asking = asking;
        if now >= self.questions.deadline() {
            self.give_up_reads(now);
        }
    }

    fn ask_reads_of(&mut self, now: Tick, local: u32) {
        let until = now.plus(self.read_patience_us());
        let look_at = now.plus(self.read_look_us());
        self.questions.look_at = self.questions.look_at.clamp(now, look_at);
        let Group { raft, reads, .. } = &mut self.groups[local as usize];
        match raft.lease_index(now) {
            Some(index) if reads.leased.last() > reads.leased.asked => {
                let number = reads.leased.ask(until);
                reads.leased.confirm(number, index);
                self.questions.answerable.push(local);
            }
            Some(_) => {}
            None => reads.give_up_lease(),
        }
        if reads.rounds.last() > reads.rounds.asked {
            let number = reads.rounds.ask(until);
            self.step(now, local, Event::ReadIndex { number });
        }
    }

    /// How long a question waits: time enough to elect somebody.
    fn read_patience_us(&self) -> u64 {
        2 * self.config.raft.election_timeout_max_us
    }

    fn read_look_us(&self) -> u64 {
        self.config.raft.election_timeout_max_us / 2
    }

    /// Indices that Raft has confirmed in this turn.
    pub(super) fn note_reads(&mut self) {
        for ReadIndex { group, through, index } in self.ready.reads.drain(..) {
            let local = super::local_of(group, &self.config);
            self.groups[local as usize].reads.rounds.confirm(through, index);
            self.questions.answerable.push(local);
        }
    }

    /// A group has applied more: what waited for that may be answered.
    pub(super) fn applied_for_reads(&mut self, local: u32) {
        let GroupReads { rounds, leased, .. } = &self.groups[local as usize].reads;
        if !(rounds.confirmed.is_empty() && leased.confirmed.is_empty()) {
            self.questions.answerable.push(local);
        }
    }

    /// Answers what may be answered. After the turn's blocks are applied.
    pub(super) fn answer_reads(&mut self) {
        let mut answerable = std::mem::take(&mut self.questions.answerable);
        for local in answerable.drain(..) {
            let group = &mut self.groups[local as usize];
            while let Some(asked) = group.reads.pop_ready(group.applied) {
                let to = (asked.conn, asked.token, group.raft.group());
                let reply = &mut self.questions.reply;
                let question = (asked.after, &asked.question[..]);
                answer(group, &mut self.clients, reply, to, true, question);
                self.questions.question_bytes -= asked.question.len();
                self.stats.reads[asked.consistency as usize] += 1;
            }
        }
        self.questions.answerable = answerable;
    }

    /// All questions of a group that is no more.
    pub(super) fn refuse_questions(&mut self, local: u32, refused: Refused) {
        let Group { raft, reads, .. } = &mut self.groups[local as usize];
        while let Some(asked) = reads.rounds.pop().or_else(|| reads.leased.pop()) {
            let to = (asked.conn, asked.token, raft.group());
            self.questions.question_bytes -= asked.question.len();
            self.stats.refused[refused.kind()] += 1;
            self.clients.reply(to, true, Place::default(), Err(refused));
        }
    }

    /// Questions that have waited too long are sent elsewhere.
    fn give_up_reads(&mut self, now: Tick) {
        self.questions.look_at = now.plus(self.read_look_us());
        let mut waiting = std::mem::take(&mut self.questions.waiting);
        waiting.retain(|&local| {
            let Group { raft, reads, .. } = &mut self.groups[local as usize];
            while let Some(asked) = reads.pop_late(now) {
                let refused = Refused::NotLeader(leader_elsewhere(raft));
                let to = (asked.conn, asked.token, raft.group());
                self.questions.question_bytes -= asked.question.len();
                self.stats.refused[refused.kind()] += 1;
                self.clients.reply(to, true, Place::default(), Err(refused));
            }
            reads.listed = !reads.is_empty();
            reads.listed
        });
        self.questions.waiting = waiting;
    }
}

/// A leader that cannot show that it leads is no hint to give.
fn leader_elsewhere(raft: &Raft) -> Option<crate::ids::NodeId> {
    raft.leader().filter(|&leader| leader != raft.id())
}

fn answer<M: StateMachine>(
    group: &Group<M>,
    clients: &mut Clients,
    reply: &mut Vec<u8>,
    to: (u64, u64, GroupId),
    waited: bool,
    (after, question): (Place, &[u8]),
) {
    reply.clear();
    let index = group.applied;
    let place = Place { epoch: group.sessions.epochs().at(index), index };
    // What the reader has read must be there still (durability.md R9).
    let parted = group.sessions.epochs().parted(after.epoch, after.index);
    let result = match parted.filter(|_| !mutants::is(Mutant::SilentGap)) {
        Some((epoch, from)) => Err(Refused::Truncated { epoch, from }),
        None => group.machine.query(question, reply).map_err(|_| Refused::BadRequest),
    };
    clients.reply(to, waited, place, result.map(|()| reply.as_slice()));
}
