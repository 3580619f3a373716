//! Exactly-once: what a group remembers of its clients, so that a retry is not applied twice
//! (dissertation §6.3; bugs.md 32).
//!
//! ```text
//! a session's sequence numbers          floor                     highest
//!   ··· forgotten, nobody waits ··· │ 41  42  43  44  45  46  47 │ ··· never seen ···
//!                                     ✓   –   ✓   ✓   –   –   ✓    ✓ = first answer remembered
//! ```
//!
//! The table is replicated state: it changes only by [`Sessions::record`], in the order of the log,
//! and is part of snapshots. A client that lost its leader sends the block again, with the same
//! sequence number; if the first one was committed after all, the second is committed too, is seen
//! here to be a duplicate when its turn comes, is not applied, and is answered with the first
//! answer. The same question asked before proposing saves the second copy in the log; only the one
//! before applying is needed for safety.
//!
//! A block's `pending` says how far behind its `seq` the oldest one lies that the client still waits
//! for: everything before that is the *floor*, and is forgotten. Within the window blocks may come
//! in any order, since a client has many in flight and a refusal can hit any of them.
//!
//! # How a session ends
//!
//! It is closed by its client, it expires, or it has to make room: bounds are a window of
//! [`WINDOW_MAX`], a number of sessions, and a number of remembered answers, and over a bound the
//! session goes that has not recorded anything for the longest part of the log. Expiry is an entry
//! of the log ([`SessionEntry::Expire`]) with an index as its cut-off, so that no replica's clock
//! decides; a client that wants to be remembered while it has nothing to say sends a
//! [`SessionEntry::KeepAlive`].
//!
//! What is forgotten must not be applied again. The table keeps one number for all that is gone:
//! `spent`, the highest sequence number that a forgotten session had used.
//!
//! ```text
//! client 7   1 ─ ─ ─ 40   expires            spent = 40
//! client 9   its first block, number 1       refused: Stale, "open from 41"; it was not applied
//! client 9   the same block as number 41     opens a session
//! client 7   a retry of number 40            refused: Stale. A block that was recorded is never
//!                                            above `spent`, so this holds for every retry
//! client 7   a new block, number 41          opens its session again: nothing is in doubt
//! ```
//!
//! So a session of a client that is not in the table is opened by its first block if all numbers it
//! still waits for are above `spent`, and else told from where to number. Nothing is kept for a
//! session that is gone, and before the first one is gone every client begins at 1.

mod entry;
mod epochs;
mod frozen;
mod restore;

use std::rc::Rc;

pub use self::entry::SessionEntry;
pub use self::epochs::Epochs;
pub use self::frozen::FrozenSessions;
use self::restore::Restoring;
use super::roster::{Change, GroupList};
use crate::block::{Block, BlockHeader, FLAG_CONTINUES};
use crate::ids::{Index, Term};
use crate::machine::hash::{FixedMap, mix, table_bytes};
use crate::machine::shared::Pages;
use crate::machine::{Outcome, SnapshotError};
use crate::mutants::{self, Mutant};

/// Most sequence numbers a client may have under way in one group.
pub const WINDOW_MAX: u64 = 8192;
/// Slots a session begins with.
const WINDOW_MIN: usize = 4;
/// Sessions that one entry of the log expires at most: an apply stays short.
pub const EXPIRE_MAX: usize = 4096;
/// A session begins at most so far above the numbers that are spent: no client can use them all up.
const LEAP_MAX: u64 = 1 << 48;
/// Numbers end here.
const NUMBERS_END: u64 = 1 << 62;
/// End of the list of sessions.
const NONE: u32 = u32::MAX;

const _: () = assert!(WINDOW_MAX.is_power_of_two());

/// How much is remembered, the same on all replicas of a group, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionLimits {
    pub sessions_max: u32,
    /// Slots of all sessions together, 40 bytes each.
    pub answers_max: u64,
    /// A leader lets sessions expire that have rested for this long, microseconds; 0 = never. Only
    /// for proposing the cut-off: replicas may differ.
    pub idle_us: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { sessions_max: 65_536, answers_max: 1 << 20, idle_us: 3_600_000_000 }
    }
}

/// What the first copy of a block was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Log index of the block's first command.
    pub first: Index,
    pub term: Term,
    pub outcome: Outcome,
}

/// A block's place in its client's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// 0 = no session.
    pub client: u64,
    /// From 1; 0 = no session.
    pub seq: u64,
    /// `seq - pending` is the lowest number the client still waits for.
    pub pending: u32,
    /// The client has had an answer in this session.
    pub continues: bool,
}

impl Request {
    /// The request that a block carries.
    pub fn of(header: &BlockHeader) -> Self {
        let shared = mutants::is(Mutant::OneSessionForAll) && header.client != 0;
        let client = if shared { 1 } else { header.client };
        let continues = header.flags & FLAG_CONTINUES != 0;
        Self { client, seq: header.seq, pending: header.pending, continues }
    }

    fn has_session(&self) -> bool {
        self.client != 0 && self.seq != 0
    }

    /// Everything below is answered and forgotten.
    fn floor(&self) -> u64 {
        self.seq.saturating_sub(u64::from(self.pending)).max(1)
    }
}

/// What to do with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not seen before, or not in a session: apply it, then [`Sessions::record`].
    New,
    /// Seen: do not apply it, give this answer.
    Duplicate(Answer),
    /// The client has said that it no longer waits for it: do not apply it, answer nothing.
    Stale,
    /// More under way than [`WINDOW_MAX`], or numbers beyond all use: refuse it.
    WindowTooLarge,
    /// The client is not in the table, and blocks with such numbers may have been applied for it:
    /// refuse it. A session that begins at `from` or above is a new one.
    Expired { from: u64 },
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// 0 = never used. Valid only while it is not below the session's floor.
    seq: u64,
    answer: Answer,
}

/// A clone shares the slots.
#[derive(Clone, Debug)]
struct Session {
    client: u64,
    floor: u64,
    /// The floor has passed over numbers that are not on record, see [`Sessions::misses_answers_of`].
    misses: bool,
    /// Sequence number `seq` lies at `seq & (len - 1)`; `len` is a power of two, at least the window.
    slots: Rc<[Slot]>,
    /// Index of the last block that was recorded. Ascends along the list.
    used: Index,
    /// Neighbours in the list from least to most recently recorded.
    older: u32,
    newer: u32,
}

impl Session {
    fn slot(&self, seq: u64) -> &Slot {
        &self.slots[(seq & (self.slots.len() as u64 - 1)) as usize]
    }

    /// Whether the client has done with numbers that are not on record.
    fn misses_answers_of(&self, request: &Request) -> bool {
        let mut done = self.floor..request.floor();
        // More than was ever under way is not looked through one by one.
        let too_many = request.floor().saturating_sub(self.floor) > WINDOW_MAX;
        self.misses || too_many || done.any(|seq| self.slot(seq).seq != seq)
    }

    fn judge(&self, request: &Request) -> Verdict {
        let floor = self.floor.max(request.floor());
        if request.seq < self.floor {
            return Verdict::Stale;
        }
        if request.seq - floor >= WINDOW_MAX || request.seq - self.floor > LEAP_MAX {
            return Verdict::WindowTooLarge;
        }
        match self.slot(request.seq) {
            slot if slot.seq == request.seq && !mutants::is(Mutant::ForgetAnswers) => {
                Verdict::Duplicate(slot.answer)
            }
            _ => Verdict::New,
        }
    }

    /// Makes the ring long enough for `seq`; how many slots were added.
    fn grow_for(&mut self, seq: u64) -> u64 {
        let window = (seq - self.floor + 1) as usize;
        if window <= self.slots.len() {
            return 0;
        }
        let size = window.next_power_of_two();
        let mut slots = vec![Slot::default(); size];
        for slot in self.live() {
            slots[(slot.seq & (size as u64 - 1)) as usize] = *slot;
        }
        let old = std::mem::replace(&mut self.slots, slots.into());
        (size - old.len()) as u64
    }

    /// Answers that may still be asked for, in no particular order.
    fn live(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.seq >= self.floor)
    }

    /// Copies the slots first if they are frozen.
    fn remember(&mut self, seq: u64, answer: Answer) {
        let at = (seq & (self.slots.len() as u64 - 1)) as usize;
        Rc::make_mut(&mut self.slots)[at] = Slot { seq, answer };
    }
}

/// One group's table.
#[derive(Debug)]
pub struct Sessions {
    limits: SessionLimits,
    by_client: FixedMap<u64, u32>,
    /// Places are reused; those in `free` hold no session.
    sessions: Pages<Session>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
    answers: u64,
    /// Sessions that are gone, and the highest number that any of them had used.
    forgotten: u64,
    spent: u64,
    /// What readers across a loss are to know.
    epochs: Epochs,
    /// The shard's groups, in the group that keeps the list of them.
    groups: GroupList,
    digest: u64,
    /// A snapshot is being taken in: nothing else may be done.
    restoring: Option<Box<Restoring>>,
}

impl Sessions {
    /// An empty table.
    ///
    /// # Panics
    /// When a limit is too small to hold one session with a full window.
    pub fn new(limits: SessionLimits) -> Self {
        assert!(limits.sessions_max >= 1 && limits.answers_max >= WINDOW_MAX);
        Self {
            limits,
            by_client: FixedMap::default(),
            sessions: Pages::default(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
            answers: 0,
            forgotten: 0,
            spent: 0,
            epochs: Epochs::default(),
            groups: GroupList::default(),
            digest: 0,
            restoring: None,
        }
    }

    /// How much it remembers at most.
    pub fn limits(&self) -> SessionLimits {
        self.limits
    }

    /// Sessions remembered.
    pub fn len(&self) -> usize {
        self.by_client.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sessions that have expired, were closed or had to go since the beginning of the log.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Where the group's recovery epochs begin.
    #[inline]
    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// A higher recovery epoch than any before begins at `since`.
    pub fn begin_epoch(&mut self, epoch: u32, since: Index) {
        self.epochs.note(epoch, since);
    }

    /// The entry that begins a recovery epoch is applied. Replicas may have noted the epoch before or
    /// behind the same entries; here they agree.
    pub fn mix_epoch(&mut self, first: &BlockHeader) {
        self.digest = mix(mix(self.digest, u64::from(first.epoch)), first.since().get());
    }

    /// Which groups the shard has; empty in all groups but the one that keeps the list.
    #[inline]
    pub fn groups(&self) -> &GroupList {
        &self.groups
    }

    /// An entry about the list is applied. What this version does not know changes nothing.
    pub fn change_groups(&mut self, block: &Block) {
        if let Some(change) = Change::of(block) {
            self.digest = self.groups.apply(&change, self.digest);
        }
    }

    /// When the session that has rested longest was last used.
    pub fn oldest_use(&self) -> Option<Index> {
        (self.oldest != NONE).then(|| self.sessions.get(self.oldest as usize).used)
    }

    /// Equal on all replicas that recorded the same, in the same order.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Heap bytes held.
    pub fn memory_bytes(&self) -> u64 {
        self.answers * size_of::<Slot>() as u64
            + self.sessions.memory_bytes()
            + (self.free.capacity() * size_of::<u32>()) as u64
            + table_bytes(self.by_client.capacity(), size_of::<(u64, u32)>())
    }

    /// The table as it is now, while recording goes on: a pointer for each 256 sessions. Afterwards
    /// the first record of a session copies it, at most 320 KiB.
    pub fn freeze(&self) -> FrozenSessions {
        assert!(self.restoring.is_none(), "a snapshot is half restored");
        FrozenSessions::new(self)
    }

    /// Empties the table and makes it ready for the chunks of a snapshot. After an error the table
    /// must be dropped.
    pub fn restore_begin(&mut self) {
        *self = Self { restoring: Some(Box::default()), ..Self::new(self.limits) };
    }

    /// Takes the next bytes, cut anywhere.
    ///
    /// # Panics
    /// When `restore_begin` was not called.
    pub fn restore_chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut restoring = self.restoring.take().expect("restore_begin came before");
        let outcome = restoring.chunk(self, bytes);
        self.restoring = Some(restoring);
        outcome
    }

    /// All bytes were given: from here on the table is the one that was frozen.
    ///
    /// # Panics
    /// As `restore_chunk`.
    pub fn restore_finish(&mut self) -> Result<(), SnapshotError> {
        self.restoring.as_ref().expect("restore_begin came before").finish()?;
        self.restoring = None;
        Ok(())
    }

    /// What to do with a block. Changes nothing, so that a leader may ask before proposing.
    #[inline]
    pub fn check(&self, request: &Request) -> Verdict {
        if !request.has_session() {
            return Verdict::New;
        }
        if request.seq >= NUMBERS_END {
            return Verdict::WindowTooLarge;
        }
        match self.find(request.client) {
            Some(at) => self.sessions.get(at as usize).judge(request),
            None => self.judge_unknown(request),
        }
    }

    fn judge_unknown(&self, request: &Request) -> Verdict {
        let floor = request.floor();
        if u64::from(request.pending) >= WINDOW_MAX {
            return Verdict::WindowTooLarge;
        }
        if floor <= self.spent && !mutants::is(Mutant::ExpiredAppliesAgain) {
            return Verdict::Expired { from: self.spent + 1 };
        }
        let leaps = floor.saturating_sub(self.spent) > LEAP_MAX;
        if leaps { Verdict::WindowTooLarge } else { Verdict::New }
    }

    /// Whether the client has done with numbers that are not on record here. After a loss (recovery
    /// epoch above 0) that means that commands which it was told are committed are gone
    /// (durability.md R9). A number that the client gave up without an answer looks the same: then
    /// it is told of a loss that did not hit it, which is better than the other way round.
    ///
    /// The session remembers it: a block that a deposed leader had taken before the loss has an older
    /// epoch, where nobody looks, and the ones behind it look like any others.
    pub fn misses_answers_of(&self, request: &Request) -> bool {
        match self.find(request.client) {
            None => request.continues,
            Some(at) => self.sessions.get(at as usize).misses_answers_of(request),
        }
    }

    /// Remembers the answer of a block that was just applied, and forgets what its client no longer
    /// waits for. Blocks without a session leave no trace.
    ///
    /// # Panics
    /// When [`Sessions::check`] would not have said `New`: recording over an answer is applying
    /// twice.
    pub fn record(&mut self, request: &Request, answer: Answer) {
        if !request.has_session() {
            return;
        }
        assert!(self.restoring.is_none(), "a snapshot is half restored");
        assert_eq!(self.check(request), Verdict::New, "{request:?} must not be applied");
        let misses = self.misses_answers_of(request) && !mutants::is(Mutant::MissingAnswersPass);
        let at = self.touch(request.client);
        let session = self.sessions.get_mut(at as usize);
        session.misses = misses;
        session.floor = session.floor.max(request.floor());
        session.used = answer.first;
        self.answers += session.grow_for(request.seq);
        session.remember(request.seq, answer);
        self.digest = mix(mix(self.digest, request.client), request.seq);
        self.digest = mix(mix(self.digest, session.floor), answer.first.get());
        self.evict();
    }

    /// The newest session is asked for first: a busy client's blocks follow each other.
    #[inline]
    fn find(&self, client: u64) -> Option<u32> {
        if self.newest != NONE && self.sessions.get(self.newest as usize).client == client {
            return Some(self.newest);
        }
        self.by_client.get(&client).copied()
    }

    /// The client's session, made if need be, moved to the recent end of the list.
    fn touch(&mut self, client: u64) -> u32 {
        match self.find(client) {
            Some(at) if at == self.newest => at,
            Some(at) => {
                self.unlink(at);
                self.link_newest(at);
                at
            }
            None => {
                let slots = [Slot::default(); WINDOW_MIN].into();
                let (floor, misses, used) = (1, false, Index::ZERO);
                self.place(Session { client, floor, misses, slots, used, older: NONE, newer: NONE })
            }
        }
    }

    /// Takes a session in as the newest.
    fn place(&mut self, session: Session) -> u32 {
        self.answers += session.slots.len() as u64;
        let client = session.client;
        let at = match self.free.pop() {
            Some(at) => {
                *self.sessions.get_mut(at as usize) = session;
                at
            }
            None => {
                self.sessions.push(session);
                self.sessions.len() as u32 - 1
            }
        };
        self.by_client.insert(client, at);
        self.link_newest(at);
        at
    }

    fn unlink(&mut self, at: u32) {
        let &Session { older, newer, .. } = self.sessions.get(at as usize);
        match older {
            NONE => self.oldest = newer,
            _ => self.sessions.get_mut(older as usize).newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => self.sessions.get_mut(newer as usize).older = older,
        }
    }

    fn link_newest(&mut self, at: u32) {
        let before = self.newest;
        let session = self.sessions.get_mut(at as usize);
        (session.older, session.newer) = (before, NONE);
        match before {
            NONE => self.oldest = at,
            _ => self.sessions.get_mut(before as usize).newer = at,
        }
        self.newest = at;
    }

    /// Drops the least recently recorded sessions until the limits hold. The newest one fits alone.
    fn evict(&mut self) {
        while self.len() > self.limits.sessions_max as usize
            || self.answers > self.limits.answers_max
        {
            let at = self.oldest;
            assert!(at != self.newest, "one full window fits the limits");
            self.forget(at);
        }
    }

    /// The client's session is over, by its own wish.
    pub fn close(&mut self, client: u64) {
        if let Some(at) = self.find(client) {
            self.forget(at);
        }
    }

    /// Ends the sessions that were last used at `through` or before, the first [`EXPIRE_MAX`] of
    /// them: how many. To be called for an entry of the log, and for nothing else.
    pub fn expire(&mut self, through: Index) -> usize {
        let mut count = 0;
        while count < EXPIRE_MAX && self.oldest_use().is_some_and(|used| used <= through) {
            self.forget(self.oldest);
            count += 1;
        }
        count
    }

    /// A session that a table had and that is gone is never taken for a new one: its numbers are
    /// spent. The highest it used lies in a slot, since a window always covers it.
    fn forget(&mut self, at: u32) {
        self.unlink(at);
        self.free.push(at);
        let session = self.sessions.get_mut(at as usize);
        let slots = std::mem::replace(&mut session.slots, Rc::new([]));
        self.answers -= slots.len() as u64;
        self.by_client.remove(&session.client);
        let highest = slots.iter().map(|slot| slot.seq).max().unwrap_or(0);
        self.spent = self.spent.max(highest);
        self.forgotten += 1;
        self.digest = mix(mix(self.digest, session.client), self.spent);
    }
}

#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod tests;
