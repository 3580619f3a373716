//! The group's log as Raft sees it: terms of all entries, the newest blocks in memory, and how far
//! each promise has come.
//!
//! ```text
//!      first          applied      commit         durable          last
//!        │               │            │              │               │
//!   ─────┼───────────────┼────────────┼──────────────┼───────────────┤
//!        │ on disk only  │      blocks in memory (`cache`)           │
//!        └───────────────┴───────────────────────────────────────────┘
//!                  ▲ the cache begins on a block's edge, at or below applied + 1
//!                    (unless blocks were there before this start: then they are on disk only)
//! ```
//!
//! - `applied ≤ commit ≤ last` and `durable ≤ last`, always.
//! - `commit ≤ durable` is **not** a rule: a leader with a slow disk commits what a majority of the
//!   others has made durable, and a follower learns a commit while its own write is under way.
//! - The log begins behind `start`, where a snapshot ends; its term is known as if it were an entry.
//! - All of them are counted by command and lie on edges of blocks. Terms are kept as runs.
//! - `durable` moves only by completions of writes that still speak for this log; a truncation pulls
//!   it, and every write under way, back to the cut.

use std::collections::VecDeque;

use crate::block::Block;
use crate::ids::{Index, LogStart, Seq, Term};
use crate::mutants::{self, Mutant};

/// From `first` on (until the next run) entries have `term`, and its leader's recovery epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TermRun {
    pub first: Index,
    pub term: Term,
    /// Counts the elections after which commands may have been missing (durability.md R6). A leader
    /// has one from its no-op on, so that the epoch is a function of the term; it never falls.
    pub epoch: u32,
    /// Where the epoch begins: the lowest index that may have been another entry's in an older one
    /// ([`crate::block::BlockHeader::since`]), at most `first`. Else `first`.
    pub since: Index,
}

/// Iterator over blocks in memory.
pub type Blocks<'a> = std::collections::vec_deque::Iter<'a, Block>;

/// A write under way: when `seq` is persisted, the log is durable through `last`.
#[derive(Clone, Copy, Debug)]
struct Writing {
    seq: Seq,
    last: Index,
}

/// See the module's drawing.
#[derive(Clone, Debug)]
pub struct Log {
    start: LogStart,
    last: Index,
    last_term: Term,
    runs: Vec<TermRun>,
    cache: VecDeque<Block>,
    cached_bytes: u64,
    uncommitted_bytes: u64,
    applied: Index,
    commit: Index,
    durable: Index,
    writing: VecDeque<Writing>,
}

impl Log {
    /// `applied`: the state machine begins with a snapshot of this index.
    pub(super) fn new(
        start: LogStart,
        last: Index,
        runs: Vec<TermRun>,
        commit: Index,
        applied: Index,
    ) -> Self {
        let first = start.index.next();
        assert!(last >= start.index, "first..=last, maybe empty");
        assert!(start.index <= applied && applied <= last, "a snapshot within the log");
        assert!(runs.windows(2).all(|r| r[0].first < r[1].first && r[0].term < r[1].term));
        assert!(runs.windows(2).all(|r| r[0].epoch <= r[1].epoch), "epochs never fall");
        assert_eq!(runs.is_empty(), last < first, "each entry has a term");
        assert!(runs.first().is_none_or(|r| r.first <= first));
        assert!(runs.last().is_none_or(|r| r.first <= last));
        Self {
            start,
            last,
            last_term: runs.last().map_or(start.term, |r| r.term),
            runs,
            cache: VecDeque::new(),
            cached_bytes: 0,
            uncommitted_bytes: 0,
            applied,
            commit: commit.clamp(applied, last),
            durable: last,
            writing: VecDeque::new(),
        }
    }

    /// Lowest index the log still has.
    pub fn first_index(&self) -> Index {
        self.start.index.next()
    }

    /// Where it begins.
    #[inline]
    pub fn start(&self) -> LogStart {
        self.start
    }

    /// Highest index, durable or not.
    #[inline]
    pub fn last_index(&self) -> Index {
        self.last
    }

    /// Term of the last entry; 0 for an empty log.
    #[inline]
    pub fn last_term(&self) -> Term {
        self.last_term
    }

    /// Highest index known to be committed.
    #[inline]
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// Highest index that the state machine has reported.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// Highest index whose own write has completed.
    #[inline]
    pub fn durable(&self) -> Index {
        self.durable
    }

    /// Lowest index whose block is in memory; `last_index() + 1` when none is.
    #[inline]
    pub fn first_cached(&self) -> Index {
        self.cache.front().map_or(self.last.next(), Block::first)
    }

    /// Bytes of the blocks in memory.
    pub fn cached_bytes(&self) -> u64 {
        self.cached_bytes
    }

    /// Bytes beyond the commit index, of all terms. Blocks from before the last start count 0: they
    /// were bounded when they were taken on.
    pub fn uncommitted_bytes(&self) -> u64 {
        self.uncommitted_bytes
    }

    /// Terms of the whole log, ascending.
    pub fn runs(&self) -> &[TermRun] {
        &self.runs
    }

    /// The term of an entry; of index 0 it is 0. `None` outside the log.
    #[inline]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.last {
            return Some(self.last_term);
        }
        if index > self.last || index < self.start.index {
            return None;
        }
        if index == self.start.index {
            return Some(self.start.term);
        }
        let run = self.runs.partition_point(|r| r.first <= index).checked_sub(1)?;
        Some(self.runs[run].term)
    }

    /// Recovery epoch of the last entry; 0 for an empty log.
    pub fn last_epoch(&self) -> u32 {
        self.runs.last().map_or(self.start.epoch, |run| run.epoch)
    }

    /// The recovery epoch of an entry; before the log that of where it begins.
    #[inline]
    pub fn epoch_at(&self, index: Index) -> u32 {
        if index >= self.last {
            return self.last_epoch();
        }
        let run = self.runs.partition_point(|r| r.first <= index).checked_sub(1);
        run.map_or(self.start.epoch, |run| self.runs[run].epoch)
    }

    /// Those terms behind `index` in which an epoch begins.
    pub fn epochs_behind(&self, index: Index) -> impl Iterator<Item = &TermRun> {
        let behind = &self.runs[self.runs.partition_point(|run| run.first <= index)..];
        let mut epoch = self.epoch_at(index);
        behind.iter().filter(move |run| std::mem::replace(&mut epoch, run.epoch) < run.epoch)
    }

    /// The commit index as somebody may hear it who has the log through `known`. What may have been
    /// another entry's place in an older epoch is committed together with the entry that says so,
    /// or a reader of the older one would take it for what comes next (durability.md R9). Where an epoch
    /// began before this log does nothing is told: whoever is behind that gets a snapshot.
    pub(super) fn commit_within(&self, known: Index) -> Index {
        if known < self.start.index && self.start.epoch > 0 {
            return Index::ZERO;
        }
        let commit = self.commit.min(known);
        if self.last_epoch() == self.epoch_at(known) || mutants::is(Mutant::CommitBeforeItsEpoch) {
            return commit;
        }
        self.epochs_behind(known).fold(commit, |commit, run| commit.min(run.since.prev()))
    }

    /// Through here the log is known to be what was committed: by the commit index, and by the word
    /// of those who began epochs in it.
    pub(super) fn known_committed(&self) -> Index {
        let begun = self.epochs_behind(self.start.index).map(|run| run.since.prev());
        begun.fold(self.commit, Index::max)
    }

    /// The highest index not above `index` whose term is not above `term`, with its term: where two
    /// logs could still agree (end of §5.3, by term instead of by entry).
    pub(super) fn highest_with_term_at_most(&self, index: Index, term: Term) -> (Index, Term) {
        let index = index.min(self.last);
        let above = self.runs.partition_point(|r| r.term <= term && r.first <= index);
        let at = self.runs.get(above).map_or(index, |r| index.min(r.first.prev()));
        (at, self.term_at(at).unwrap_or(Term::ZERO))
    }

    /// Blocks in memory from the one that starts at `from`, in order; `None` if it is on disk only.
    /// `from = last_index() + 1` gives an empty iterator.
    ///
    /// # Panics
    /// When `from` is inside a block.
    pub fn blocks_from(&self, from: Index) -> Option<Blocks<'_>> {
        if from < self.first_cached() {
            return None;
        }
        let at = self.position(from);
        let edge = self.cache.get(at).map_or(self.last.next(), Block::first);
        assert_eq!(edge, from, "blocks are read from their edge on");
        Some(self.cache.range(at..))
    }

    /// Position in the cache of the block that holds `index`, or of the first one after it.
    fn position(&self, index: Index) -> usize {
        self.cache.partition_point(|block| block.last() < index)
    }

    /// Whether no cached block lies across `index`. What peers name are edges of blocks; a peer that
    /// names another place is faulty, and no reason to stop.
    pub fn is_edge(&self, index: Index) -> bool {
        let block = self.cache.get(self.position(index));
        block.is_none_or(|block| block.last() == index || block.first() > index)
    }

    /// Copies blocks from the one that holds `from` on to the end of `arena`, at least one and as
    /// many more as fit `bytes_max`. Gives their bytes; `None` if `from` is on disk only.
    pub(super) fn copy_blocks(
        &self,
        from: Index,
        bytes_max: u64,
        arena: &mut Vec<Block>,
    ) -> Option<u64> {
        if from < self.first_cached() {
            return None;
        }
        let mut bytes = 0;
        for block in self.cache.range(self.position(from)..) {
            let size = block.size() as u64;
            if bytes > 0 && bytes + size > bytes_max {
                break;
            }
            bytes += size;
            arena.push(block.clone());
        }
        Some(bytes)
    }

    /// Adds a block right behind the last one.
    #[inline]
    pub(super) fn append(&mut self, block: Block) {
        assert_eq!(block.first(), self.last.next(), "the log has no holes");
        let (term, epoch) = (block.term(), block.header().epoch);
        if term != self.last_term || self.runs.is_empty() {
            let first = self.runs.is_empty() && term == self.last_term;
            assert!(term > self.last_term || first, "terms never fall along the log");
            assert!(epoch >= self.last_epoch(), "epochs never fall along the log");
            let since = block.header().since();
            self.runs.push(TermRun { first: block.first(), term, epoch, since });
            self.last_term = term;
        }
        debug_assert_eq!(epoch, self.last_epoch(), "one epoch a term");
        self.last = block.last();
        let size = block.size() as u64;
        self.cached_bytes += size;
        self.uncommitted_bytes += size;
        self.cache.push_back(block);
    }

    /// Drops everything from `from` on: a leader of a later term has something else there (§5.3).
    pub(super) fn truncate(&mut self, from: Index) {
        assert!(from > self.commit, "a committed entry is never replaced (§5.4)");
        assert!(self.start.index < from && from <= self.last);
        while let Some(block) = self.cache.back()
            && block.last() >= from
        {
            assert!(block.first() >= from, "logs that agree on (term, index) agree on the block");
            let size = block.size() as u64;
            self.cached_bytes -= size;
            self.uncommitted_bytes -= size;
            self.cache.pop_back();
        }
        self.runs.truncate(self.runs.partition_point(|r| r.first < from));
        self.last = from.prev();
        self.last_term = self.runs.last().map_or(self.start.term, |r| r.term);
        self.durable = self.durable.min(self.last);
        let pulled_back = |w: &&mut Writing| w.last >= from && !mutants::is(Mutant::StalePersisted);
        for write in self.writing.iter_mut().rev().take_while(pulled_back) {
            write.last = self.last;
        }
    }

    /// The log begins behind `through` from here on: a published snapshot holds the rest.
    pub(super) fn begin_at(&mut self, through: Index) {
        assert!(self.start.index <= through && through <= self.applied.min(self.durable));
        assert!(self.is_edge(through), "a log is cut between blocks");
        let term = self.term_at(through).expect("it is in the log");
        let epoch = self.epoch_at(through);
        self.start = LogStart { index: through, term, epoch };
        let gone = self.runs.partition_point(|r| r.first <= through.next()).saturating_sub(1);
        self.runs.drain(..gone);
        if through == self.last {
            self.runs.clear();
        }
        while self.cache.front().is_some_and(|block| block.last() <= through) {
            let block = self.cache.pop_front().expect("looked at");
            self.cached_bytes -= block.size() as u64;
        }
    }

    /// A snapshot takes the place of everything here. What is under way speaks for nothing any more;
    /// `seq` makes the beginning durable.
    pub(super) fn install(&mut self, start: LogStart, seq: Seq) {
        assert!(start.index > self.commit, "what is committed here is not replaced");
        self.start = start;
        (self.last, self.last_term) = (start.index, start.term);
        self.runs.clear();
        self.cache.clear();
        (self.cached_bytes, self.uncommitted_bytes) = (0, 0);
        (self.applied, self.commit) = (start.index, start.index);
        self.durable = Index::ZERO;
        self.writing.iter_mut().for_each(|write| write.last = Index::ZERO);
        self.write_started(seq);
    }

    /// The whole log through its last index is written by the persist `seq`.
    pub(super) fn write_started(&mut self, seq: Seq) {
        debug_assert!(self.writing.back().is_none_or(|w| w.seq < seq && w.last <= self.last));
        self.writing.push_back(Writing { seq, last: self.last });
    }

    /// All persists through `seq` are done. True when `durable` moved.
    ///
    /// Story of the stale completion: (1) s1 writes i5..i9 of term 2; (2) a new leader replaces i7 on,
    /// s2 writes i7..i8 of term 3; (3) s1 completes. It was pulled back to i6 by the truncation, so
    /// i7..i8 are not taken for durable; (4) s2 completes and speaks for them.
    pub(super) fn written(&mut self, seq: Seq) -> bool {
        let before = self.durable;
        while let Some(write) = self.writing.front()
            && write.seq <= seq
        {
            self.durable = self.durable.max(write.last);
            self.writing.pop_front();
        }
        self.durable > before
    }

    /// The writes under way, in order: the persist, and through where the log is written by it.
    pub(super) fn for_each_write(&self, mut see: impl FnMut(Seq, Index)) {
        self.writing.iter().for_each(|write| see(write.seq, write.last));
    }

    /// The persist that an acknowledgement of `matched` must wait for; 0 when all is durable.
    #[inline]
    pub(super) fn written_by(&self, matched: Index) -> Seq {
        if matched <= self.durable {
            return Seq::ZERO;
        }
        let write = self.writing.iter().find(|w| w.last >= matched);
        write.expect("what is not durable is under way").seq
    }

    /// Moves the commit index up. True when it moved.
    pub(super) fn commit_to(&mut self, index: Index) -> bool {
        if index <= self.commit {
            return false;
        }
        assert!(index <= self.last, "only what is in the log commits");
        for block in self.cache.range(self.position(self.commit.next())..) {
            if block.last() > index {
                assert!(block.first() > index, "commit lies on a block's edge");
                break;
            }
            self.uncommitted_bytes -= block.size() as u64;
        }
        self.commit = index;
        true
    }

    pub(super) fn applied_to(&mut self, index: Index) {
        assert!(
            self.applied <= index && index <= self.commit,
            "applies committed blocks, in order"
        );
        self.applied = index;
    }

    /// True when `evict` could free something.
    #[inline]
    pub(super) fn may_evict(&self) -> bool {
        self.cache.front().is_some_and(|b| b.last() <= self.applied && b.last() <= self.durable)
    }

    /// Frees blocks from the front that are applied, durable and either not needed by a follower
    /// (`last ≤ shared`) or beyond the memory the group may hold.
    pub(super) fn evict(&mut self, shared: Index, bytes_max: u64) {
        let done = self.applied.min(self.durable);
        while let Some(block) = self.cache.front()
            && block.last() <= done
            && (block.last() <= shared || self.cached_bytes > bytes_max)
        {
            self.cached_bytes -= block.size() as u64;
            self.cache.pop_front();
        }
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.applied <= self.commit && self.commit <= self.last);
        assert!(self.durable <= self.last);
        assert!(self.writing.iter().all(|w| w.last <= self.last));
        let reach = self.writing.back().map_or(self.durable, |w| w.last.max(self.durable));
        assert_eq!(reach, self.last, "everything is durable or under way");
        assert!(self.runs.last().is_none_or(|r| r.first <= self.last && r.term == self.last_term));
        assert!(self.start.index <= self.applied && self.start.term <= self.last_term);
        assert_eq!(self.runs.is_empty(), self.start.index == self.last);
        assert_eq!(self.cache.iter().map(|b| b.size() as u64).sum::<u64>(), self.cached_bytes);
        let open = self.cache.iter().filter(|b| b.last() > self.commit);
        assert_eq!(open.map(|b| b.size() as u64).sum::<u64>(), self.uncommitted_bytes);
        let mut next = self.first_cached();
        for block in &self.cache {
            assert_eq!((block.first(), Some(block.term())), (next, self.term_at(block.last())));
            next = block.last().next();
        }
        assert_eq!(next, self.last.next());
    }
}

#[cfg(test)]
#[path = "tests/log.rs"]
mod tests;
