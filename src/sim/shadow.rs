//! A second opinion on what one log holds. It sees the writes and syncs that the log asks for and
//! their completions, reads the bytes, and answers whether a thing may be said aloud.
//!
//! It shares no bookkeeping with the log (`wal::durability`) nor with the shard's groups: the rules
//! are told here once more, as plainly as possible.
//!
//! - A flush is *written* when its write has completed and all flushes before it are written.
//! - It is *durable* when it, and all before it, were written through O_DSYNC or were completely
//!   written before a sync of their segment was issued that has completed.
//! - After the first error nothing becomes written or durable any more (bug 1).
//! - A vote, and the term of any message, needs its hard state durable (durability.md R1).
//! - A flush names a durable position only if it is durable.
//! - An acknowledgement needs its entry durable, or written in a group without `wal_sync`, and then
//!   every hard state, truncation and membership entry of the group before it durable all the same.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use crate::ids::{GroupId, Index, Lsn, NodeId, Term};
use crate::wal::{
    DiskOp, Fact, FlushFacts, OpId, Recovered, SegmentNo, TermStart, WalConfig, read_flush,
};

/// Settled facts of a group that are remembered; older ones are believed.
const REMEMBERED_MAX: usize = 64;

#[derive(Debug)]
struct Flush {
    op: OpId,
    segment: SegmentNo,
    end: Lsn,
    /// Through O_DSYNC.
    sync: bool,
    /// Which completed write of the log this was; `None` while it is under way.
    written: Option<u64>,
    durable: bool,
}

#[derive(Debug)]
struct Sync {
    op: OpId,
    segment: SegmentNo,
    /// Covers completed writes up to this one.
    covers: u64,
}

/// Entries of one term, one after another.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: Index,
    last: Index,
    term: Term,
    /// End of the flush that holds the last one.
    end: Lsn,
    /// What must be durable before it, whatever the mode of the group.
    needs: Lsn,
}

#[derive(Clone, Copy, Debug)]
struct Vote {
    term: Term,
    vote: Option<NodeId>,
    end: Lsn,
}

#[derive(Debug, Default)]
struct Group {
    votes: VecDeque<Vote>,
    votes_forgotten: bool,
    runs: VecDeque<Run>,
    /// So many runs at the front are durable and joined.
    settled: usize,
    /// Entries up to here are no longer told apart.
    forgotten: Index,
    /// End of the last record that is always synced.
    needs: Lsn,
    /// A snapshot was installed that stands for the log through here, and the end of that record.
    start: (Index, Lsn),
}

/// See the module. For each operation: `issued` when it is handed to the disk, `completed` when its
/// completion is handed to the log, both before the log can say anything that rests on them.
#[derive(Debug)]
pub struct Shadow {
    config: WalConfig,
    /// Issued and not durable, in the order of their positions.
    flushes: VecDeque<Flush>,
    /// So many of them at the front are written.
    written_count: usize,
    syncs: Vec<Sync>,
    /// Writes completed.
    completed: u64,
    written: Lsn,
    durable: Lsn,
    /// End and checksum of the last flush issued.
    end: Lsn,
    checksum: u32,
    failed: bool,
    groups: BTreeMap<GroupId, Group>,
}

impl Shadow {
    /// Of a log that begins on an empty directory.
    pub fn new(config: WalConfig) -> Self {
        Self {
            config,
            flushes: VecDeque::new(),
            written_count: 0,
            syncs: Vec::new(),
            completed: 0,
            written: Lsn::ZERO,
            durable: Lsn::ZERO,
            end: Lsn::ZERO,
            checksum: 0,
            failed: false,
            groups: BTreeMap::new(),
        }
    }

    /// Of the log that goes on after what recovery found. What this shadow knew to be durable still
    /// is; the rest was read back and counts as written until it is synced.
    #[must_use]
    pub fn restarted(&self, recovered: &Recovered) -> Self {
        let mut new = Self::new(self.config);
        (new.end, new.checksum) = recovered.chain_end();
        new.durable = self.durable.max(recovered.durable).min(new.end);
        new.written = new.durable;
        for &(segment, end) in recovered.segment_ends() {
            if end > new.written {
                let (op, sync, durable) = (OpId(0), false, false);
                new.flushes.push_back(Flush { op, segment, end, sync, written: Some(0), durable });
            }
        }
        new.advance();
        for (&id, found) in &recovered.groups {
            let known = self.groups.get(&id);
            let mut group = Group { needs: new.end, ..Group::default() };
            let state = found.hard_state;
            if !recovered.is_restated(id) {
                let durable = known.is_some_and(|g| g.voted(state.term, state.vote, self.durable));
                let end = if durable { Lsn::ZERO } else { new.end };
                group.votes.push_back(Vote { term: state.term, vote: state.vote, end });
            }
            group.votes_forgotten = true;
            let start = found.start.map_or(Index::ZERO, |start| start.index);
            group.forgotten = start.max(Index(found.first.0.saturating_sub(1)));
            for (n, &TermStart { first, term, .. }) in found.terms.iter().enumerate() {
                let last = found.terms.get(n + 1).map_or(found.last, |next| next.first.prev());
                let safe = known.and_then(|g| g.durable_through(first, term, self.durable));
                let spoken = known.and_then(|g| g.spoken_through(first, term, self.durable));
                let run = Run { first, last, term, end: new.end, needs: new.end };
                group.restore(run, safe, spoken);
            }
            new.groups.insert(id, group);
        }
        new
    }

    /// What this shadow knows to be durable and recovery did not find: the positions, or the group
    /// whose vote is gone. On an honest disk without damage there is none.
    pub fn lost(&self, recovered: &Recovered) -> Option<String> {
        if recovered.end < self.durable {
            let (end, durable) = (recovered.end, self.durable);
            return Some(format!("the log was durable through {durable} and ends at {end}"));
        }
        for (id, group) in &self.groups {
            let last = group.votes.iter().rfind(|vote| vote.end <= self.durable);
            let Some(last) = last else { continue };
            let found = recovered.groups.get(id).map(|group| group.hard_state).unwrap_or_default();
            let same = last.vote.is_none() || found.vote == last.vote;
            if found.term < last.term || (found.term == last.term && !same) {
                let (term, vote) = (last.term, last.vote);
                return Some(format!("{id:?} had voted for {vote:?} in {term:?}, found {found:?}"));
            }
        }
        None
    }

    /// An operation is on its way to the disk. An error says what is wrong with its bytes.
    pub fn issued(&mut self, op: &DiskOp) -> Result<(), String> {
        match op {
            DiskOp::Write { op, segment, offset, buffer, len, sync } => {
                let bytes = &buffer.as_slice()[..*len];
                self.take_flush(*op, *segment, *offset, bytes, *sync)
                    .map_err(|what| format!("{segment:?} at {offset}: {what}"))
            }
            DiskOp::Sync { op, segment } => {
                let (op, segment, covers) = (*op, *segment, self.completed);
                self.syncs.push(Sync { op, segment, covers });
                Ok(())
            }
            DiskOp::Prepare { recycle: Some(old), .. } if self.holds_unsafe(*old) => {
                Err(format!("{old:?} is used again while it holds what is not durable"))
            }
            DiskOp::Prepare { .. } | DiskOp::Read { .. } => Ok(()),
        }
    }

    fn holds_unsafe(&self, segment: SegmentNo) -> bool {
        self.flushes.iter().any(|flush| flush.segment == segment)
    }

    fn take_flush(
        &mut self,
        op: OpId,
        segment: SegmentNo,
        offset: u64,
        bytes: &[u8],
        sync: bool,
    ) -> Result<(), &'static str> {
        let start = Lsn(segment.0 * self.config.segment_bytes + offset);
        if start < self.end {
            return Err("it overwrites what was logged");
        }
        let (durable, groups) = (self.durable, &mut self.groups);
        // The facts need the end of their flush, which is known only behind them.
        let end = start.plus(bytes.len() as u64);
        let mut copies = false;
        let facts = read_flush(&self.config, segment, offset, bytes, |fact| match fact {
            Fact::State { group, state } => {
                groups.entry(group).or_default().state(state.term, state.vote, end);
            }
            Fact::Start { group, start, anew: true } => {
                let group = groups.entry(group).or_default();
                group.needs = end;
                group.start = (start.index, end);
                let (first, term) = (start.index, start.term);
                group.push(Run { first, last: first, term, end, needs: end }, durable);
            }
            // What a published snapshot holds as well may go: nobody speaks for that.
            Fact::Start { .. } => {}
            Fact::Block { group, first, last, term, truncates, membership } => {
                let group = groups.entry(group).or_default();
                // Logged again, so that its segment can go: the old copy stays until this one is
                // durable, and an entry is the same for ever.
                copies |= truncates && group.has(first, term);
                if copies && group.has(last, term) {
                    return;
                }
                copies = false;
                let needs = if truncates || membership { end } else { group.needs };
                group.needs = needs;
                group.push(Run { first, last, term, end, needs }, durable);
            }
        })?;
        self.check(&facts, end)?;
        (self.end, self.checksum) = (facts.end, facts.checksum);
        self.flushes.push_back(Flush { op, segment, end, sync, written: None, durable: false });
        Ok(())
    }

    fn check(&self, facts: &FlushFacts, end: Lsn) -> Result<(), &'static str> {
        if facts.end != end {
            return Err("more than one flush, or less");
        }
        if facts.previous != self.checksum {
            return Err("it does not continue the flush before");
        }
        if facts.durable > self.durable {
            return Err("it names a durable position that is not durable");
        }
        Ok(())
    }

    /// An operation has completed, well or badly.
    pub fn completed(&mut self, op: OpId, ok: bool) {
        if let Some(at) = self.syncs.iter().position(|sync| sync.op == op) {
            let Sync { segment, covers, .. } = self.syncs.swap_remove(at);
            self.failed |= !ok;
            for flush in self.flushes.iter_mut().filter(|flush| flush.segment == segment) {
                flush.durable |= ok && flush.written.is_some_and(|nth| nth <= covers);
            }
        } else if let Some(flush) = self.flushes.iter_mut().find(|flush| flush.op == op) {
            self.failed |= !ok;
            if ok {
                self.completed += 1;
                flush.written = Some(self.completed);
                flush.durable = flush.sync;
            }
        }
        self.advance();
    }

    fn advance(&mut self) {
        if self.failed {
            return;
        }
        while let Some(flush) = self.flushes.get(self.written_count)
            && flush.written.is_some()
        {
            self.written = flush.end;
            self.written_count += 1;
        }
        while self.written_count > 0 && self.flushes.front().is_some_and(|flush| flush.durable) {
            self.durable = self.flushes.pop_front().map_or(self.durable, |flush| flush.end);
            self.written_count -= 1;
        }
    }

    /// Everything before this is durable.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Everything before this is written.
    pub fn written(&self) -> Lsn {
        self.written
    }

    /// May a message show this term?
    pub fn may_say_term(&self, group: GroupId, term: Term) -> bool {
        let known = self.groups.get(&group).and_then(|group| {
            group.votes.iter().rfind(|vote| vote.end <= self.durable).map(|vote| vote.term)
        });
        term <= known.unwrap_or(Term::ZERO)
    }

    /// May a vote for `vote` in `term` be told?
    pub fn may_say_vote(&self, group: GroupId, term: Term, vote: NodeId) -> bool {
        self.groups.get(&group).is_some_and(|g| g.voted(term, Some(vote), self.durable))
    }

    /// May the entry at `index`, of term `term`, and all before it be acknowledged? `term` is the
    /// entry's, not the message's. `sync`: the group's mode. An entry that was replaced later counts
    /// as it did before: (index, term) names one entry for ever, and the reply may be an old one.
    pub fn may_say_matched(&self, group: GroupId, index: Index, term: Term, sync: bool) -> bool {
        let holds = |run: &Run| {
            let settled = if sync { self.durable } else { self.written };
            let there = (run.first..=run.last).contains(&index) && run.term == term;
            there && run.end <= settled && run.needs <= self.durable
        };
        let known = self.groups.get(&group);
        let given = |g: &Group| index <= g.start.0 && g.start.1 <= self.durable;
        index == Index::ZERO
            || known
                .is_some_and(|g| g.runs.iter().rev().any(holds) || index <= g.forgotten || given(g))
    }

    /// Is the log durable through this entry, in whatever mode? A snapshot that stands for it may be
    /// published then (durability.md R8).
    pub fn is_durable(&self, group: GroupId, index: Index, term: Term) -> bool {
        self.may_say_matched(group, index, term, true)
    }

    /// Is this entry in the log for good: durable, and not replaced since? What is too old to be
    /// told apart is not.
    pub fn holds(&self, group: GroupId, index: Index, term: Term) -> bool {
        let runs = self.groups.get(&group).map(|group| &group.runs);
        let newest = runs.and_then(|runs| runs.iter().rev().find(|run| run.first <= index));
        newest.is_some_and(|run| {
            let is_it = index <= run.last && run.term == term;
            is_it && run.end <= self.durable && run.needs <= self.durable
        })
    }
}

impl Group {
    fn state(&mut self, term: Term, vote: Option<NodeId>, end: Lsn) {
        // A state that is logged again, so that its segment can go, was durable before.
        if self.votes.back().is_some_and(|last| (last.term, last.vote) == (term, vote)) {
            return;
        }
        self.needs = end;
        self.votes.push_back(Vote { term, vote, end });
        if self.votes.len() > REMEMBERED_MAX {
            self.votes.pop_front();
            self.votes_forgotten = true;
        }
    }

    fn voted(&self, term: Term, vote: Option<NodeId>, durable: Lsn) -> bool {
        let said = |v: &Vote| v.term == term && v.vote == vote && v.end <= durable;
        let old = self.votes.front().is_some_and(|first| term < first.term);
        self.votes.iter().rev().any(said) || (self.votes_forgotten && old)
    }

    /// Whether it has this entry by now.
    fn has(&self, index: Index, term: Term) -> bool {
        let newest = self.runs.iter().rev().find(|run| run.first <= index);
        let has = newest.is_some_and(|run| index <= run.last && run.term == term);
        has || index <= self.forgotten
    }

    /// How far entries of `term` from about `first` on are durable.
    fn durable_through(&self, first: Index, term: Term, durable: Lsn) -> Option<Index> {
        let safe = |run: &&Run| {
            run.term == term && run.last >= first && run.end <= durable && run.needs <= durable
        };
        self.runs.iter().filter(safe).map(|run| run.last).max()
    }

    /// How far the rest of what such entries need is durable, be they themselves or not.
    fn spoken_through(&self, first: Index, term: Term, durable: Lsn) -> Option<Index> {
        let met = |run: &&Run| run.term == term && run.last >= first && run.needs <= durable;
        self.runs.iter().filter(met).map(|run| run.last).max()
    }

    fn push(&mut self, run: Run, durable: Lsn) {
        self.settle(durable);
        if let Some(last) = self.runs.back_mut() {
            let goes_on = last.term == run.term && last.last.next() == run.first;
            if goes_on && last.end == run.end && last.needs == run.needs {
                last.last = run.last;
                return;
            }
        }
        self.runs.push_back(run);
    }

    /// A run that recovery found; up to `safe` it was known to be durable, up to `spoken` what it
    /// needs was.
    fn restore(&mut self, mut run: Run, safe: Option<Index>, spoken: Option<Index>) {
        let safe = safe.map_or(Index::ZERO, |safe| safe.min(run.last));
        let spoken = spoken.map_or(Index::ZERO, |spoken| spoken.min(run.last));
        if safe >= run.first {
            let (end, needs) = (Lsn::ZERO, Lsn::ZERO);
            self.runs.push_back(Run { last: safe, end, needs, ..run });
        }
        run.first = run.first.max(safe.next());
        if spoken >= run.first {
            self.runs.push_back(Run { last: spoken, needs: Lsn::ZERO, ..run });
            run.first = spoken.next();
        }
        if run.first <= run.last {
            self.runs.push_back(run);
        }
    }

    /// Joins the runs at the front that are durable, so that few are left.
    fn settle(&mut self, durable: Lsn) {
        while let Some(&run) = self.runs.get(self.settled)
            && run.end <= durable
            && run.needs <= durable
        {
            let before = self.settled.checked_sub(1).map(|at| &mut self.runs[at]);
            match before {
                Some(old) if old.term == run.term && run.first <= old.last.next() => {
                    old.first = old.first.min(run.first);
                    old.last = old.last.max(run.last);
                    self.runs.remove(self.settled);
                }
                _ => self.settled += 1,
            }
        }
        if self.settled > REMEMBERED_MAX {
            let old = self.runs.pop_front().map_or(Index::ZERO, |run| run.last);
            self.forgotten = self.forgotten.max(old);
            self.settled -= 1;
        }
    }
}
