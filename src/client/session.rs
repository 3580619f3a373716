//! One group's blocks in flight: a ring indexed by sequence number, so that an answer finds its
//! block without a search.
//!
//! ```text
//!     base ─────────── first_waiting ───────── next
//!      │ sent, queued, done │ some wait to be sent │ the next stamp
//! ```
//!
//! `base` is the lowest number still waited for: the stamp of the next block tells it to the
//! cluster (`pending`), which may then forget every answer below.
//!
//! A cluster that has forgotten the session (it expired, or had to make room) refuses with the number
//! from which a new one may begin. Then nothing more leaves until every block on its way is answered;
//! what surely was not applied is numbered anew, and of the rest the fate is unknown.

use std::collections::VecDeque;

use super::ClientConfig;
use super::OWN_TAG;
use super::link::Due;
use super::route::Route;
use crate::block::{Block, BlockKind};
use crate::ids::{GroupId, Tick};
use crate::shard::sessions::SessionEntry;

/// How far a block has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be given to a link when the group's pause is over.
    Waiting,
    /// In a link's queue.
    Queued,
    /// On its way; the answer is awaited.
    Sent,
    /// Completed; its place is kept until those before it are, too.
    Done,
}

#[derive(Debug)]
struct Pending {
    /// `None` once done.
    block: Option<Block>,
    tag: u64,
    submitted: Tick,
    /// When it was queued or sent.
    since: Tick,
    /// Slot of the link it is on, if queued or sent.
    link: u32,
    /// When it was sent for the first time, and on which link; NEVER if that was refused.
    first: (Tick, u32),
    /// Copies that were sent and of which it is not known that they came to nothing.
    copies: u32,
    stage: Stage,
}

/// The session of this client in one group.
#[derive(Debug)]
pub(super) struct Session {
    group: GroupId,
    base: u64,
    ring: VecDeque<Pending>,
    first_waiting: u64,
    /// The session is over: where the next one begins. 0 = it is not.
    open_from: u64,
    /// A block was answered in it, and not to close it.
    pub continues: bool,
    /// Number of the entry that closes it; 0 = none.
    pub closes: u64,
    /// When a block was last submitted.
    pub used: Tick,
    /// Bytes of the blocks held.
    pub bytes: usize,
    /// What an answer takes, smoothed, microseconds.
    answer_us: u64,
    pub route: Route,
    /// When the alarm for this group rings.
    pub armed: Tick,
    /// It is on the list of groups to flush.
    pub dirty: bool,
}

/// A node that takes so many times as long as it does on average is doubted.
const PATIENCE_FACTOR: u64 = 4;

/// Far in the future.
pub(super) const NEVER: Tick = Tick(u64::MAX);

impl Session {
    pub fn new(group: GroupId, target: usize) -> Self {
        Self {
            group,
            base: 1,
            ring: VecDeque::new(),
            first_waiting: 1,
            open_from: 0,
            continues: false,
            closes: 0,
            used: Tick::ZERO,
            bytes: 0,
            answer_us: 0,
            route: Route::new(target),
            armed: NEVER,
            dirty: false,
        }
    }

    #[inline]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Lowest sequence number still waited for.
    #[inline]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The next sequence number.
    #[inline]
    pub fn next(&self) -> u64 {
        self.base + self.ring.len() as u64
    }

    /// Places in the ring that are taken.
    #[inline]
    pub fn span(&self) -> usize {
        self.ring.len()
    }

    #[inline]
    pub fn has_waiting(&self) -> bool {
        self.first_waiting < self.next()
    }

    pub fn push(&mut self, now: Tick, mut block: Block, tag: u64) {
        assert_eq!(block.header().seq, self.next(), "blocks are submitted as they were stamped");
        if self.continues {
            block.set_continues();
        }
        self.bytes += block.size();
        self.used = now;
        self.ring.push_back(Pending {
            block: Some(block),
            tag,
            submitted: now,
            since: now,
            link: 0,
            first: (NEVER, 0),
            copies: 0,
            stage: Stage::Waiting,
        });
    }

    #[inline]
    fn at(&mut self, seq: u64) -> Option<&mut Pending> {
        let offset = seq.checked_sub(self.base)?;
        self.ring.get_mut(usize::try_from(offset).ok()?)
    }

    /// Gives what waits to link `slot`, in order, at most `count_max` blocks.
    pub fn queue_waiting(
        &mut self,
        now: Tick,
        slot: u32,
        count_max: usize,
        mut queue: impl FnMut(Due),
    ) {
        let first = self.first_waiting.max(self.base);
        let skip = (first - self.base) as usize;
        self.first_waiting = self.next();
        let mut count = 0;
        for (seq, pending) in (first..).zip(self.ring.iter_mut().skip(skip)) {
            if pending.stage != Stage::Waiting {
                continue;
            }
            if count == count_max {
                self.first_waiting = seq;
                return;
            }
            let Some(block) = &pending.block else { continue };
            queue(Due { group: self.group, seq, size: block.size() as u32 });
            pending.stage = Stage::Queued;
            pending.link = slot;
            pending.since = now;
            count += 1;
        }
    }

    /// The block, if it still is to leave by link `slot`; from now on it counts as sent.
    #[inline]
    pub fn send(&mut self, now: Tick, seq: u64, slot: u32) -> Option<&Block> {
        let pending = self.at(seq)?;
        if pending.stage != Stage::Queued || pending.link != slot {
            return None;
        }
        pending.stage = Stage::Sent;
        pending.since = now;
        if pending.first.0 == NEVER {
            pending.first = (now, slot);
        }
        pending.copies = pending.copies.saturating_add(1);
        pending.block.as_ref()
    }

    /// The answer to a block has come on link `slot`. Where the block was asked first it is taken for
    /// an answer to that: whoever is doubted and answers after all was slow, however often the block
    /// has been sent since, there or elsewhere.
    #[inline]
    pub fn note_answer(&mut self, now: Tick, seq: u64, slot: u32, most_us: u64) {
        let Some(pending) = self.at(seq).filter(|p| p.stage != Stage::Done) else { return };
        let asked = match pending.first {
            (first, on) if on == slot => first,
            _ if pending.stage == Stage::Sent && pending.link == slot => pending.since,
            _ => return,
        };
        let took = now.since(asked).min(most_us);
        self.answer_us = (self.answer_us * 7 + took) / 8;
    }

    /// How long a node may say nothing before others are asked: longer where answers take long, so
    /// that a slow disk does not make its clients ask around.
    pub fn patience_us(&self, config: &ClientConfig) -> u64 {
        config.doubt_us.max(PATIENCE_FACTOR * self.answer_us).min(config.resend_us)
    }

    /// Ends a block: its tag, if it was not over before.
    #[inline]
    pub fn complete(&mut self, seq: u64) -> Option<u64> {
        let pending = self.at(seq)?;
        let block = pending.block.take()?;
        pending.stage = Stage::Done;
        let tag = pending.tag;
        self.bytes -= block.size();
        while self.ring.front().is_some_and(|p| p.stage == Stage::Done) {
            self.ring.pop_front();
            self.base += 1;
        }
        Some(tag)
    }

    /// Ends a block that is refused for what it is: its tag, if it was not over before. Its number
    /// goes to the next block, if nobody can have seen a copy of it and no later number is given; else
    /// to a sign of life of session `client`, which its caller hears nothing of. Whichever of that and
    /// an older copy of the block comes first is the one that counts.
    pub fn withdraw(&mut self, client: u64, seq: u64) -> Option<u64> {
        let (last, group) = (seq + 1 == self.next(), self.group);
        let before = seq.checked_sub(self.base)? as u32;
        let continues = self.continues;
        let pending = self.at(seq)?;
        let size = match &pending.block {
            Some(block) if block.kind() != BlockKind::Session => block.size(),
            _ => return self.complete(seq),
        };
        let tag = std::mem::replace(&mut pending.tag, OWN_TAG);
        if last && pending.copies == 0 {
            self.ring.pop_back();
            self.bytes -= size;
            self.first_waiting = self.first_waiting.min(seq);
            return Some(tag);
        }
        let mut entry = SessionEntry::KeepAlive.block(group, client, seq);
        entry.renumber(seq, before);
        if continues {
            entry.set_continues();
        }
        let entry_size = entry.size();
        // It keeps its time: the oldest one has the first deadline.
        pending.block = Some(entry);
        self.bytes = self.bytes - size + entry_size;
        self.retry(seq);
        Some(tag)
    }

    /// True while the block is on link `slot`, sent and not answered: a refusal from elsewhere
    /// speaks of an earlier try and means nothing now.
    pub fn is_sent_on(&mut self, seq: u64, slot: u32) -> bool {
        self.at(seq).is_some_and(|p| p.stage == Stage::Sent && p.link == slot)
    }

    /// The copy that was sent last came to nothing, for certain.
    pub fn forgive(&mut self, seq: u64) {
        if let Some(pending) = self.at(seq) {
            pending.copies = pending.copies.saturating_sub(1);
        }
    }

    /// The cluster has forgotten the session; another one may begin at `open_from`. What no link has
    /// sent yet stays here.
    pub fn end(&mut self, open_from: u64) {
        self.open_from = self.open_from.max(open_from);
        for (seq, pending) in (self.base..).zip(self.ring.iter_mut()) {
            if pending.stage == Stage::Queued {
                pending.stage = Stage::Waiting;
                self.first_waiting = self.first_waiting.min(seq);
            }
        }
    }

    pub fn is_over(&self) -> bool {
        self.open_from > 0
    }

    /// Begins the next session, if nothing of this one is on its way any more. The numbers are new
    /// to the cluster and to whatever of the old session is still there: above both. Blocks of
    /// unknown fate are handed to `lost`, with number and tag.
    pub fn begin_next(&mut self, mut lost: impl FnMut(u64, u64)) -> bool {
        let on_its_way = |p: &Pending| matches!(p.stage, Stage::Queued | Stage::Sent);
        if self.ring.iter().any(on_its_way) {
            return false;
        }
        let base = self.next().max(self.open_from);
        let ring = std::mem::take(&mut self.ring);
        for (seq, mut pending) in (self.base..).zip(ring) {
            let Some(block) = &mut pending.block else { continue };
            // A session that is over need not be closed.
            if pending.copies > 0 || block.kind() == BlockKind::Session {
                self.bytes -= block.size();
                lost(seq, pending.tag);
                continue;
            }
            let before = self.ring.len() as u32;
            block.renumber(base + u64::from(before), before);
            self.ring.push_back(pending);
        }
        (self.base, self.first_waiting) = (base, base);
        (self.open_from, self.continues) = (0, false);
        true
    }

    /// The block was refused and is to be sent again.
    pub fn retry(&mut self, seq: u64) {
        if let Some(pending) = self.at(seq)
            && pending.stage != Stage::Done
        {
            if pending.first.1 == pending.link {
                // That has been answered.
                pending.first = (NEVER, 0);
            }
            pending.stage = Stage::Waiting;
            self.first_waiting = self.first_waiting.min(seq);
        }
    }

    /// Takes everything back from a link that failed. True if there was anything.
    pub fn take_back(&mut self, slot: u32) -> bool {
        self.retry_where(|p| p.link == slot)
    }

    fn retry_where(&mut self, mut which: impl FnMut(&Pending) -> bool) -> bool {
        let mut any = false;
        for (seq, pending) in (self.base..).zip(self.ring.iter_mut()) {
            if matches!(pending.stage, Stage::Queued | Stage::Sent) && which(pending) {
                pending.stage = Stage::Waiting;
                self.first_waiting = self.first_waiting.min(seq);
                any = true;
            }
        }
        any
    }

    /// When a session that has nothing to say is to say that it is still there.
    pub fn keep_alive_at(&self, keep_alive_us: u64) -> Tick {
        let rests = keep_alive_us > 0 && self.continues && self.ring.is_empty();
        if rests { self.used.plus(keep_alive_us) } else { NEVER }
    }

    /// The oldest block whose time is over, if any.
    pub fn expired(&self, now: Tick, deadline_us: u64) -> Option<u64> {
        let mut ring = (self.base..).zip(&self.ring);
        let (seq, oldest) = ring.find(|(_, p)| p.stage != Stage::Done)?;
        (oldest.submitted.plus(deadline_us) <= now).then_some(seq)
    }

    /// Takes back what has had no answer for `resend_us`, and names each link it was on with the
    /// time it was sent.
    pub fn take_unanswered(
        &mut self,
        now: Tick,
        resend_us: u64,
        mut overdue: impl FnMut(u32, Tick),
    ) {
        self.retry_where(|p| {
            let late = p.since.plus(resend_us) <= now;
            if late {
                overdue(p.link, p.since);
            }
            late
        });
    }

    /// The first link on which a block was sent `patience_us` ago and of which `heard` says that nothing
    /// came since.
    pub fn silent_link(
        &self,
        now: Tick,
        patience_us: u64,
        heard: impl Fn(u32) -> Tick,
    ) -> Option<u32> {
        let waits = |p: &&Pending| {
            p.stage == Stage::Sent && p.since.plus(patience_us) <= now && heard(p.link) <= p.since
        };
        self.ring.iter().find(waits).map(|p| p.link)
    }

    /// When to look again: the first deadline, unanswered block or end of a pause. What waits
    /// without a pause is about to be queued.
    pub fn next_alarm(&self, now: Tick, config: &ClientConfig) -> Tick {
        let ClientConfig { deadline_us, resend_us, .. } = *config;
        let patience_us = self.patience_us(config);
        let mut at = match (self.has_waiting(), self.route.hold > now) {
            (true, true) => self.route.hold,
            (true, false) => now.plus(resend_us),
            (false, _) => NEVER,
        };
        for pending in self.ring.iter().filter(|p| p.stage != Stage::Done) {
            at = at.min(pending.submitted.plus(deadline_us));
            at = match pending.stage {
                Stage::Sent if pending.since.plus(patience_us) > now => {
                    at.min(pending.since.plus(patience_us))
                }
                // Once it is sent it has its time.
                Stage::Queued => at.min(now.plus(patience_us)).min(pending.since.plus(resend_us)),
                Stage::Sent => at.min(pending.since.plus(resend_us)),
                Stage::Waiting | Stage::Done => at,
            };
        }
        at
    }
}

/// The sessions of all groups this client has spoken to.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    groups: Vec<Option<Box<Session>>>,
}

impl Sessions {
    #[inline]
    pub fn get(&self, group: GroupId) -> Option<&Session> {
        self.groups.get(group.0 as usize)?.as_deref()
    }

    #[inline]
    pub fn get_mut(&mut self, group: GroupId) -> Option<&mut Session> {
        self.groups.get_mut(group.0 as usize)?.as_deref_mut()
    }

    /// The group's session; a new one first asks node `group % nodes`, so that clients who know
    /// nothing spread over the nodes.
    pub fn open(&mut self, group: GroupId, nodes: usize) -> &mut Session {
        let at = group.0 as usize;
        if self.groups.len() <= at {
            self.groups.resize_with(at + 1, || None);
        }
        self.groups[at].get_or_insert_with(|| Box::new(Session::new(group, at % nodes)))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.groups.iter_mut().flatten().map(|s| &mut **s)
    }
}
