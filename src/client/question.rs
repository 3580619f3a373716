//! Questions in flight: queries to a group's state machine and status of a shard. They change
//! nothing, so asking again needs no sequence number; a token ties the answer to its slot.

use bytes::Bytes;

use super::ClientConfig;
use super::session::NEVER;
use crate::ids::{GroupId, Tick};
use crate::wire::client::{Consistency, Place};

/// Who is to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Whoever leads the group; hints are followed.
    Leader,
    /// Any node; the next one to try, as a position in the list.
    Any(usize),
    /// This node, as a position in the list; if it cannot be reached, that is the answer.
    Node(usize),
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Subject {
    Query {
        group: GroupId,
        consistency: Consistency,
        /// How far the asker has read.
        after: Place,
        question: Bytes,
    },
    /// An operator's command, JSON.
    Admin {
        group: GroupId,
        request: Bytes,
    },
    /// The same, of the client itself: who the members are.
    Learn {
        group: GroupId,
        request: Bytes,
    },
    Status,
}

impl Subject {
    /// The group whose leader may be meant.
    pub fn group(&self) -> Option<GroupId> {
        match self {
            Self::Query { group, .. } | Self::Admin { group, .. } => Some(*group),
            Self::Learn { .. } | Self::Status => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting,
    Queued,
    Sent,
}

#[derive(Clone, Debug)]
pub(super) struct Question {
    pub tag: u64,
    pub goal: Goal,
    pub subject: Subject,
    pub shard: u32,
    pub stage: Stage,
    /// Slot of the link it is on, if queued or sent.
    pub link: u32,
    pub asked: Tick,
    /// When it was queued or sent.
    pub since: Tick,
    /// Not to be sent before.
    pub hold: Tick,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    question: Option<Question>,
}

/// A slab with generations: a late answer to a question that is over finds nobody.
#[derive(Debug)]
pub(super) struct Questions {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Tokens of those to be routed; may name some that are over.
    pub waiting: Vec<u64>,
    /// The other one of a pair: `waiting` is emptied into links while it is filled again.
    pub placing: Vec<u64>,
    /// When to look through the slots again.
    pub alarm: Tick,
}

impl Default for Questions {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            waiting: Vec::new(),
            placing: Vec::new(),
            alarm: NEVER,
        }
    }
}

impl Questions {
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn add(&mut self, question: Question) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.question = Some(question);
        self.waiting.push(self.token(slot));
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Question> {
        self.slots.get_mut(slot as usize)?.question.as_mut()
    }

    /// What goes out with the question and comes back with its answer.
    pub fn token(&self, slot: u32) -> u64 {
        u64::from(self.slots[slot as usize].generation) << 32 | u64::from(slot)
    }

    /// The slot a token speaks of, if its question is still open.
    pub fn find(&self, token: u64) -> Option<u32> {
        let slot = token as u32;
        let entry = self.slots.get(slot as usize)?;
        let same = u64::from(entry.generation) == token >> 32 && entry.question.is_some();
        same.then_some(slot)
    }

    /// Ends a question, if it was not over before.
    pub fn finish(&mut self, slot: u32) -> Option<Question> {
        let question = self.slots.get_mut(slot as usize)?.question.take()?;
        self.free.push(slot);
        Some(question)
    }

    /// Asks again, not before `hold`.
    pub fn retry(&mut self, slot: u32, hold: Tick) {
        let Some(question) = self.get_mut(slot) else { return };
        question.hold = hold;
        if question.stage != Stage::Waiting {
            question.stage = Stage::Waiting;
            self.waiting.push(self.token(slot));
        }
        self.arm(hold);
    }

    pub fn arm(&mut self, at: Tick) {
        self.alarm = self.alarm.min(at);
    }

    /// The slots in use that `which` picks.
    pub fn select(&self, into: &mut Vec<u32>, which: impl Fn(&Question) -> bool) {
        into.clear();
        for (slot, entry) in (0..).zip(&self.slots) {
            if entry.question.as_ref().is_some_and(&which) {
                into.push(slot);
            }
        }
    }

    /// When the next of them has a deadline, an overdue answer or the end of a pause.
    pub fn rearm(&mut self, now: Tick, config: &ClientConfig) {
        let ClientConfig { deadline_us, resend_us, doubt_us, .. } = *config;
        let next = self.slots.iter().filter_map(|s| s.question.as_ref()).map(|q| {
            let again = match q.stage {
                Stage::Waiting if q.hold > now => q.hold,
                Stage::Waiting => now.plus(resend_us),
                Stage::Sent if q.since.plus(doubt_us) > now => q.since.plus(doubt_us),
                // Once it is sent it has its time.
                Stage::Queued => q.since.plus(resend_us).min(now.plus(doubt_us)),
                Stage::Sent => q.since.plus(resend_us),
            };
            again.min(q.asked.plus(deadline_us))
        });
        self.alarm = next.min().unwrap_or(NEVER);
    }
}
