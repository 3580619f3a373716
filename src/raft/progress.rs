//! What a leader knows about one follower's log, and how much it has under way to it.
//!
//! ```text
//!              rejected, silent for an rpc timeout, (dis)connected
//!            ┌───────────────────────────────────────────────────┐
//!            ▼                                                   │
//!         Probe ── the outstanding probe is acknowledged ──► Replicate
//!   one message at a time,                          appends leave at once, `next` moves
//!   `next` is a guess                               with them, window by count and bytes
//! ```
//!
//! `Snapshot` stands beside them: the log begins behind `next`, and nothing is sent until the follower
//! says that it holds what it lacked. Then it is replicated to; a disconnection makes it a probe.
//!
//! `matched < next`; `matched` is what the follower has said, of this leader's term and of its
//! present incarnation, about places that it was sent or asked about in them (`reach`). Both lie on block edges in `Replicate`; the guess of a `Probe` may fall into
//! a block and is then moved down to where that block starts.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use super::config::Config;
use crate::ids::{Index, Tick};

/// How appends to a follower are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Looking for where the logs agree. `waiting`: a probe is out.
    Probe { waiting: bool },
    /// The logs agree; appends are pipelined.
    Replicate,
    /// It needs a snapshot first, and entries from this index on afterwards.
    Snapshot { first: Index },
}

/// Blocks for a follower that had to be read from the log on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fetching {
    No,
    /// Asked for, from this index on.
    Pending(Index),
    /// The read failed; not again before this time.
    Backoff(Tick),
}

/// Appends that wait for their acknowledgement: the last index and the bytes of each, in order.
#[derive(Clone, Debug, Default)]
pub struct Inflights {
    ring: VecDeque<(Index, u64)>,
    bytes: u64,
}

impl Inflights {
    fn is_full(&self, count_max: u32, bytes_max: u64) -> bool {
        self.ring.len() >= count_max as usize || self.bytes >= bytes_max
    }

    fn add(&mut self, last: Index, bytes: u64) {
        debug_assert!(self.ring.back().is_none_or(|&(before, _)| before < last));
        self.ring.push_back((last, bytes));
        self.bytes += bytes;
    }

    fn free_through(&mut self, matched: Index) {
        while let Some(&(last, bytes)) = self.ring.front()
            && last <= matched
        {
            self.ring.pop_front();
            self.bytes -= bytes;
        }
    }

    fn clear(&mut self) {
        self.ring.clear();
        self.bytes = 0;
    }
}

/// One follower as its leader sees it.
#[derive(Clone, Debug)]
pub struct Progress {
    state: State,
    matched: Index,
    next: Index,
    /// Through here it was sent blocks, or asked, in this term and start: no answer proves more.
    reach: Index,
    inflights: Inflights,
    /// When the oldest unanswered append left, or an answer last moved `matched`.
    waiting_since: Tick,
    /// When it last answered anything.
    contact_at: Tick,
    fetching: Fetching,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            state: State::Probe { waiting: false },
            matched: Index::ZERO,
            next: Index(1),
            reach: Index::ZERO,
            inflights: Inflights::default(),
            waiting_since: Tick::ZERO,
            contact_at: Tick::ZERO,
            fetching: Fetching::No,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Highest index known to be on the follower, durable.
    pub fn matched(&self) -> Index {
        self.matched
    }

    /// First index of the next append.
    pub fn next(&self) -> Index {
        self.next
    }

    /// Highest index about which an answer can prove anything.
    pub(super) fn reach(&self) -> Index {
        self.reach
    }

    /// Appends under way.
    pub fn inflight_count(&self) -> usize {
        self.inflights.ring.len()
    }

    /// Bytes of blocks under way.
    pub fn inflight_bytes(&self) -> u64 {
        self.inflights.bytes
    }

    /// When it last answered anything in this term.
    pub fn contact_at(&self) -> Tick {
        self.contact_at
    }

    /// Nothing is known any more: a new term, or a new incarnation of the follower.
    pub(super) fn reset(&mut self, next: Index) {
        (self.matched, self.reach) = (Index::ZERO, Index::ZERO);
        self.become_probe(next);
    }

    /// Forgets what is under way and asks where the logs agree, beginning with a guess.
    pub(super) fn become_probe(&mut self, next: Index) {
        assert!(next > self.matched, "a follower does not lose what it acknowledged");
        self.state = State::Probe { waiting: false };
        self.next = next;
        self.inflights.clear();
        self.fetching = Fetching::No;
    }

    /// The log begins at `first`, behind what the follower lacks.
    pub(super) fn become_snapshot(&mut self, now: Tick, first: Index) {
        assert!(self.next < first, "what the log has is not sent as a snapshot");
        self.state = State::Snapshot { first };
        self.inflights.clear();
        self.fetching = Fetching::No;
        self.waiting_since = now;
    }

    fn become_replicate(&mut self) {
        self.state = State::Replicate;
        self.next = self.matched.next();
        self.inflights.clear();
        self.fetching = Fetching::No;
    }

    /// True when an append may leave now.
    #[inline]
    pub(super) fn may_send(&self, now: Tick, config: &Config) -> bool {
        match self.fetching {
            Fetching::Pending(_) => return false,
            Fetching::Backoff(until) if now < until => return false,
            _ => {}
        }
        match self.state {
            State::Probe { waiting } => !waiting,
            State::Replicate => {
                !self.inflights.is_full(config.inflight_count_max, config.inflight_bytes_max)
            }
            State::Snapshot { .. } => false,
        }
    }

    /// An append of `first..=last` leaves; `last = first - 1` for an empty one.
    pub(super) fn sent(&mut self, now: Tick, first: Index, last: Index, bytes: u64) {
        match &mut self.state {
            State::Probe { waiting } => {
                // A guess inside a block has been moved down to the block's start.
                assert!(self.matched < first && first <= self.next);
                *waiting = true;
                self.next = first;
                self.waiting_since = now;
            }
            State::Replicate => {
                assert_eq!(first, self.next, "appends to one follower are contiguous");
                if self.inflights.ring.is_empty() {
                    self.waiting_since = now;
                }
                if last >= first {
                    self.inflights.add(last, bytes);
                    self.next = last.next();
                }
            }
            State::Snapshot { .. } => unreachable!("nothing is sent beside a snapshot"),
        }
        self.reach = self.reach.max(last);
        self.fetching = Fetching::No;
    }

    /// The follower holds the leader's log through `matched`. True when that is news.
    #[inline]
    pub(super) fn acknowledged(&mut self, now: Tick, matched: Index) -> bool {
        let news = matched > self.matched;
        if news {
            self.matched = matched;
            self.reach = self.reach.max(matched);
            self.waiting_since = now;
        }
        match self.state {
            // A late answer below the guess proves nothing about the guess itself.
            State::Probe { .. } if self.matched.next() >= self.next => self.become_replicate(),
            State::Probe { .. } => {}
            // Whatever it took the entries from: it has what the log no longer has.
            State::Snapshot { first } if self.matched.next() >= first => self.become_replicate(),
            State::Snapshot { .. } => self.next = self.next.max(self.matched.next()),
            State::Replicate => {
                self.inflights.free_through(matched);
                // A late answer to an append from before the last probe may lie ahead; what is
                // being read for the follower then comes too late.
                if self.matched >= self.next {
                    self.next = self.matched.next();
                    self.fetching = Fetching::No;
                }
            }
        }
        news
    }

    /// The follower does not hold `prev` as the leader does; `next` is the better guess made from
    /// its hint. False when the answer is an old one.
    pub(super) fn rejected(&mut self, prev: Index, next: Index) -> bool {
        let old = match self.state {
            State::Probe { waiting } => !waiting || prev.next() != self.next,
            State::Replicate => prev >= self.next,
            State::Snapshot { .. } => true,
        };
        if old || prev <= self.matched {
            return false;
        }
        self.become_probe(next.clamp(self.matched.next(), prev));
        true
    }

    /// The follower's log begins behind `start`, above the `prev` that it was asked about: nothing
    /// was compared, and that is where to ask. False when the answer is an old one.
    pub(super) fn begins_behind(&mut self, prev: Index, start: Index) -> bool {
        let awaited = match self.state {
            State::Probe { waiting } => waiting && prev.next() == self.next,
            State::Replicate => start >= self.next,
            State::Snapshot { .. } => false,
        };
        let news = awaited && start > self.matched;
        if news {
            self.become_probe(start.next());
        }
        news
    }

    /// True when something is under way and no answer has come for an rpc timeout.
    pub(super) fn is_overdue(&self, now: Tick, rpc_timeout_us: u64) -> bool {
        let waiting = match self.state {
            State::Probe { waiting } => waiting,
            State::Replicate => !self.inflights.ring.is_empty(),
            State::Snapshot { .. } => false,
        };
        waiting && now.since(self.waiting_since) >= rpc_timeout_us
    }

    /// Lacks no more than what its window holds: it gets there within a few round trips.
    pub(super) fn is_close(&self, config: &Config) -> bool {
        let full = self.inflights.is_full(config.inflight_count_max, config.inflight_bytes_max);
        self.state == State::Replicate && !full && self.fetching == Fetching::No
    }

    pub(super) fn contact(&mut self, now: Tick) {
        self.contact_at = now;
    }

    pub(super) fn fetch_started(&mut self, from: Index) {
        debug_assert_eq!(from, self.next);
        self.fetching = Fetching::Pending(from);
    }

    /// The read of `from` has ended; true when it is the one that is waited for.
    pub(super) fn fetch_ended(&mut self, from: Index) -> bool {
        let mine = self.fetching == Fetching::Pending(from);
        if mine {
            self.fetching = Fetching::No;
        }
        mine
    }

    pub(super) fn fetch_again_at(&mut self, at: Tick) {
        self.fetching = Fetching::Backoff(at);
    }

    /// For `Raft::fingerprint`: all but the times.
    pub(super) fn fingerprint(&self, state: &mut impl Hasher) {
        (self.state, self.matched, self.next, self.reach, self.fetching).hash(state);
        self.inflights.ring.hash(state);
    }

    /// For `Raft::forget_time`.
    pub(super) fn forget_time(&mut self) {
        self.waiting_since = Tick::ZERO;
        self.contact_at = Tick::ZERO;
        if let Fetching::Backoff(until) = &mut self.fetching {
            *until = Tick::ZERO;
        }
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.matched < self.next);
        assert!(self.state != State::Replicate || self.next <= self.reach.next());
        assert!(self.state == State::Replicate || self.inflights.ring.is_empty());
        assert_eq!(self.inflights.bytes, self.inflights.ring.iter().map(|&(_, b)| b).sum::<u64>());
        assert!(self.inflights.ring.iter().all(|&(last, _)| last < self.next));
    }
}

#[cfg(test)]
#[path = "tests/progress.rs"]
mod tests;
