//! What the records of verified flushes add up to, group by group.

use std::collections::BTreeMap;

use zerocopy::FromBytes;

use super::config::WalConfig;
use super::index::{LogIndex, Run, regresses};
use super::ops::WalError;
use super::record::{
    FLAG_ANEW, FLAG_TRUNCATES, FLUSH_HEADER_BYTES, HARD_STATE_BYTES, HardStateBytes, KIND_BLOCKS,
    KIND_HARD_STATE, KIND_LOG_START, LogStartBytes, RECORD_HEADER_BYTES, Record, Records,
};
use super::scan::Flush;
use super::segment::Refs;
use crate::block::{BLOCK_COUNT_MAX, BlockHeader, BlockKind, HEADER_BYTES};
use crate::ids::{GroupId, HardState, Index, LogStart, Lsn, Term};
use crate::membership::Membership;

/// Where a term begins in a group's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermStart {
    pub first: Index,
    pub term: Term,
    /// Recovery epoch of the term's leader.
    pub epoch: u32,
    /// Where that epoch begins, if it does here ([`BlockHeader::since`]).
    pub since: Index,
}

/// What the log says about one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// The latest one; the default if none was logged.
    pub hard_state: HardState,
    /// Where the log begins, if a record says so: what lies before is in a snapshot.
    pub start: Option<LogStart>,
    /// Lowest index still in the log; meaningless while `last` is 0.
    pub first: Index,
    /// Highest index; where the log begins (or 0) when there are no entries.
    pub last: Index,
    /// Terms as runs, ascending.
    pub terms: Vec<TermStart>,
    /// Highest recovery epoch of any entry seen, also of such as are cut off or lie behind damage.
    pub epoch: u32,
    /// The configurations among the entries, ascending.
    pub memberships: Vec<Membership>,
}

/// Gathers records into an index.
#[derive(Debug)]
pub(super) struct Replay {
    pub groups: BTreeMap<GroupId, RecoveredGroup>,
    pub index: LogIndex,
    pub refs: Refs,
    pub records: u64,
    pub flushes: u64,
}

/// The indices a record's blocks take up.
struct Blocks {
    first: Index,
    last: Index,
}

impl Replay {
    pub fn new(config: WalConfig) -> Self {
        let (index, refs) = (LogIndex::new(config), Refs::default());
        Self { groups: BTreeMap::new(), index, refs, records: 0, flushes: 0 }
    }

    /// Takes in a flush of the chain.
    pub fn flush(&mut self, flush: &Flush) -> Result<(), WalError> {
        let mut count = 0;
        for record in (Records { bytes: &flush.payload, at: 0 }) {
            let record = record.map_err(|what| WalError::Format { lsn: flush.lsn, what })?;
            self.record(flush, record).map_err(|what| WalError::Format { lsn: flush.lsn, what })?;
            count += 1;
        }
        if count != flush.header.records {
            let what = "the number of records is not what the header says";
            return Err(WalError::Format { lsn: flush.lsn, what });
        }
        self.flushes += 1;
        self.records += u64::from(count);
        Ok(())
    }

    fn record(&mut self, flush: &Flush, record: Record<'_>) -> Result<(), &'static str> {
        let group = GroupId(record.header.group);
        let lsn = flush.lsn.plus((FLUSH_HEADER_BYTES + record.at) as u64);
        match record.header.kind {
            KIND_HARD_STATE => {
                let state = HardStateBytes::decode(record.payload).ok_or("hard state size")?;
                self.state(group, state, lsn)
            }
            KIND_LOG_START => {
                let start = LogStartBytes::decode(record.payload).ok_or("log start")?;
                self.start(group, start, record.header.flags & FLAG_ANEW != 0, lsn)
            }
            KIND_BLOCKS => self.blocks(group, flush.lsn, lsn, record),
            _ => Err("unknown record kind"),
        }
    }

    fn state(&mut self, group: GroupId, state: HardState, lsn: Lsn) -> Result<(), &'static str> {
        let known = self.groups.entry(group).or_default();
        if regresses(known.hard_state, state) {
            return Err("a term or vote that goes back");
        }
        if !is_possible(&state) {
            return Err("a vote or commit of a group that has ended");
        }
        if state.is_ended() {
            *known = RecoveredGroup::default();
        }
        known.hard_state = state;
        self.index.set_state(&mut self.refs, group, state, lsn);
        if state.is_ended() {
            let end = lsn.plus((RECORD_HEADER_BYTES + HARD_STATE_BYTES) as u64);
            self.index.end(&mut self.refs, group, end);
        }
        Ok(())
    }

    fn start(
        &mut self,
        group: GroupId,
        start: LogStart,
        anew: bool,
        lsn: Lsn,
    ) -> Result<(), &'static str> {
        let known = self.groups.entry(group).or_default();
        if known.hard_state.is_ended() {
            return Err("a log start of a group that has ended");
        }
        if !anew && known.start.is_some_and(|old| start.index < old.index) {
            return Err("a log start that goes back");
        }
        known.begin_at(start, anew);
        self.index.set_start(&mut self.refs, group, (start, anew), lsn);
        Ok(())
    }

    fn blocks(
        &mut self,
        group: GroupId,
        flush: Lsn,
        lsn: Lsn,
        record: Record<'_>,
    ) -> Result<(), &'static str> {
        let first = first_index(record.payload)?;
        let truncates = record.header.flags & FLAG_TRUNCATES != 0;
        let known = self.groups.entry(group).or_default();
        if known.hard_state.is_ended() {
            return Err("entries of a group that has ended");
        }
        if known.start.is_some_and(|start| first <= start.index) {
            return Err("entries that a snapshot holds, behind the record that says so");
        }
        if truncates {
            if !known.terms.is_empty() && first > known.last.next() {
                return Err("a truncation behind the end");
            }
            known.cut(first);
        } else if known.last.next() != first {
            // The chain has no holes, and an append that leaves one is refused when it is staged:
            // the entries between were released, and a later record says so. What it says of where
            // the log begins stands until then; whoever starts from this looks at both.
            self.index.cut(&mut self.refs, group, Index::ZERO, lsn);
            let RecoveredGroup { hard_state, start, epoch, .. } = *known;
            *known = RecoveredGroup { hard_state, start, epoch, ..Default::default() };
        }
        let blocks = known.take_blocks(group, record.payload)?;
        let bytes = (RECORD_HEADER_BYTES + record.payload.len()) as u32;
        let run = Run { first: blocks.first, last: blocks.last, lsn, bytes };
        self.index.push(&mut self.refs, group, run, flush, truncates);
        Ok(())
    }

    /// Takes terms and votes, and nothing else, out of a flush behind a damaged place. Entries are
    /// left: a truncation may have been in the gap. So is the commit index: it speaks of the log
    /// behind the gap, and what lies before it may be what was replaced there.
    pub fn salvage(&mut self, flush: &Flush, mut found: impl FnMut(GroupId)) {
        for record in (Records { bytes: &flush.payload, at: 0 }).flatten() {
            let group = GroupId(record.header.group);
            let state = (record.header.kind == KIND_HARD_STATE)
                .then(|| HardStateBytes::decode(record.payload))
                .flatten();
            let known = self.groups.entry(group).or_default();
            // The group has heard of every term that it logged an entry of, though the record that
            // said so may be what was damaged.
            let seen = (record.header.kind == KIND_BLOCKS).then(|| highest_term(record.payload));
            known.epoch = known.epoch.max(seen.map_or(0, |(_, epoch)| epoch));
            let term = seen.map(|(term, _)| term);
            let news = |term: &Term| *term > known.hard_state.term && *term < HardState::ENDED.term;
            if let Some(term) = term.filter(news) {
                let commit = known.hard_state.commit;
                known.hard_state = HardState { term, vote: None, commit };
            }
            let state = state.filter(is_possible);
            let newer = state.filter(|state| !regresses(known.hard_state, *state));
            if let Some(state) = newer {
                let commit = known.hard_state.commit;
                let ended = state.is_ended();
                known.hard_state = if ended { state } else { HardState { commit, ..state } };
            }
            found(group);
        }
    }
}

/// The highest term belongs to groups that have ended, with neither a vote nor a commit index.
fn is_possible(state: &HardState) -> bool {
    !state.is_ended() || *state == HardState::ENDED
}

impl RecoveredGroup {
    /// Of the highest entry; `ZERO` when there are none.
    pub fn last_term(&self) -> Term {
        self.terms.last().map_or(Term::ZERO, |run| run.term)
    }

    /// The log begins behind `start`: with what it has there, or `anew` with nothing.
    pub(super) fn begin_at(&mut self, start: LogStart, anew: bool) {
        self.start = Some(start);
        if anew || start.index >= self.last {
            (self.first, self.last) = (start.index.next(), start.index);
            self.terms.clear();
            self.memberships.clear();
            return;
        }
        self.first = self.first.max(start.index.next());
        let gone = self.terms.partition_point(|run| run.first <= self.first).saturating_sub(1);
        self.terms.drain(..gone);
        self.memberships.retain(|membership| membership.index > start.index);
    }

    fn cut(&mut self, from: Index) {
        if from <= self.first {
            let start = self.start.map_or(Index::ZERO, |start| start.index);
            (self.first, self.last) = (start.next(), start);
            self.terms.clear();
            self.memberships.clear();
        } else if from <= self.last {
            self.last = from.prev();
            let keep = self.terms.partition_point(|run| run.first < from);
            self.terms.truncate(keep);
            self.memberships.retain(|membership| membership.index < from);
        }
    }

    fn take_blocks(&mut self, group: GroupId, payload: &[u8]) -> Result<Blocks, &'static str> {
        let start = first_index(payload)?;
        let mut due = start;
        let mut rest = payload;
        while !rest.is_empty() {
            let (header, _) = BlockHeader::read_from_prefix(rest).map_err(|_| "block cut short")?;
            let size = header.size as usize;
            if size < HEADER_BYTES || size > rest.len() {
                return Err("block longer than its record");
            }
            let count = u64::from(header.count);
            if header.group != group.0 || header.first != due.0 || count == 0 {
                return Err("block out of place");
            }
            let (term, epoch, since) = (Term(header.term), header.epoch, header.since());
            let run = TermStart { first: due, term, epoch, since };
            match self.terms.last() {
                Some(last) if (last.term, last.epoch) == (run.term, run.epoch) => {}
                Some(last) if last.term >= run.term || last.epoch > run.epoch => {
                    return Err("a term or epoch that goes back");
                }
                _ => self.terms.push(run),
            }
            self.epoch = self.epoch.max(header.epoch);
            if header.kind == BlockKind::Membership as u8 {
                let body = &rest[HEADER_BYTES..size];
                let membership = Membership::decode(body).map_err(|_| "a damaged membership")?;
                self.memberships.push(Membership { index: due, ..membership });
            }
            due = due.plus(count);
            rest = &rest[size..];
        }
        if self.first > self.last || self.last == Index::ZERO || start <= self.first {
            self.first = start;
        }
        self.last = due.prev();
        Ok(Blocks { first: start, last: self.last })
    }
}

/// The highest term and epoch of a record's blocks, as far as they can be read.
fn highest_term(payload: &[u8]) -> (Term, u32) {
    let (mut rest, mut highest, mut epoch) = (payload, 0, 0);
    while let Ok((header, _)) = BlockHeader::read_from_prefix(rest) {
        highest = highest.max(header.term);
        epoch = epoch.max(header.epoch);
        match rest.get((header.size as usize).max(HEADER_BYTES)..) {
            Some(next) => rest = next,
            None => break,
        }
    }
    (Term(highest), epoch)
}

/// Index of a record's first entry.
fn first_index(payload: &[u8]) -> Result<Index, &'static str> {
    let (header, _) = BlockHeader::read_from_prefix(payload).map_err(|_| "record without block")?;
    if header.first == 0 || header.first > u64::MAX / 2 || header.count as usize > BLOCK_COUNT_MAX {
        return Err("block index out of range");
    }
    Ok(Index(header.first))
}
