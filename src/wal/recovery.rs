//! What a start finds: the chain of flushes, where it ends, and what that means.
//!
//! *V* is the end of the last flush of the unbroken chain; *D* is the highest durable position named
//! by any valid flush, segment header or the boot record. The table below turns what was seen into a
//! verdict (durability.md §5): at `V >= D` nothing that was promised is missing, and what lies
//! behind V is the torn end of writes that nobody was told of. At `V < D` it is rot, and the log is
//! not silently cut.
//!
//! After recovery the log goes on in a new segment; nothing old is ever overwritten in place.

use std::collections::{BTreeMap, BTreeSet};

use super::config::{LogIdentity, WalConfig};
use super::ops::{SegmentNo, WalError};
use super::record::{Chain, SegmentHeader};
use super::replay::{RecoveredGroup, Replay};
use super::scan::{Scan, SegmentSource};
use crate::ids::{GroupId, HardState, Lsn};
use crate::mutants::{self, Mutant};

/// How the log ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is no log yet.
    Empty,
    /// The log ends, and nothing lies behind its end.
    Clean,
    /// Behind the end lie pieces of flushes that never completed. Normal after a crash.
    TornTail,
    /// Bytes that were durable are damaged. **Every** group of the shard has to start `RECOVERING`:
    /// the damaged bytes cannot say whose they were, a vote of any group may have been among them.
    Rot {
        /// The unbroken log ends here ...
        valid: Lsn,
        /// ... and was durable up to here at least.
        durable: Lsn,
        /// All groups that the log still names.
        groups: Vec<GroupId>,
    },
}

/// How the chain begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// No segment has a header of its own.
    NoLog,
    /// The lowest one begins the chain.
    Found,
    /// The lowest one continues a segment whose file is there and cannot be read.
    HeadLost,
}

/// What lies behind the end of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Zeros, or what an earlier life of the file left.
    Nothing,
    /// A flush of this generation, whole or in pieces.
    Traces,
}

/// A verdict without its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Empty,
    Clean,
    TornTail,
    Rot,
}

/// One line of the table; `None` matches anything.
pub(super) struct Rule {
    pub start: Option<Start>,
    /// V < D.
    pub short: Option<bool>,
    pub tail: Option<Tail>,
    pub row: Row,
}

const fn rule(start: Option<Start>, short: Option<bool>, tail: Option<Tail>, row: Row) -> Rule {
    Rule { start, short, tail, row }
}

/// Every combination matches exactly one line (a test tries them all).
#[rustfmt::skip]
pub(super) const TABLE: [Rule; 8] = [
    //   start                  V < D        behind V              verdict
    rule(Some(Start::NoLog),    Some(false), Some(Tail::Nothing),  Row::Empty),
    rule(Some(Start::NoLog),    Some(false), Some(Tail::Traces),   Row::TornTail), // first write torn
    rule(Some(Start::NoLog),    Some(true),  None,                 Row::Rot),      // all headers gone
    rule(Some(Start::Found),    Some(false), Some(Tail::Nothing),  Row::Clean),
    rule(Some(Start::Found),    Some(false), Some(Tail::Traces),   Row::TornTail),
    rule(Some(Start::Found),    Some(true),  None,                 Row::Rot),
    rule(Some(Start::HeadLost), Some(false), None,                 Row::TornTail), // its first write
    rule(Some(Start::HeadLost), Some(true),  None,                 Row::Rot),
];

pub(super) fn decide(start: Start, short: bool, tail: Tail) -> Row {
    let fits = |rule: &&Rule| {
        rule.start.is_none_or(|s| s == start)
            && rule.short.is_none_or(|s| s == short)
            && rule.tail.is_none_or(|t| t == tail)
    };
    TABLE.iter().find(fits).expect("the table is complete").row
}

/// What the log holds, and what the next life of it starts from.
#[derive(Debug)]
pub struct Recovered {
    /// Groups that the log names.
    pub groups: BTreeMap<GroupId, RecoveredGroup>,
    pub verdict: Verdict,
    /// V: the end of the unbroken log. What is recovered was *written* up to here; it counts as
    /// durable only when `Wal::durable()` has reached it (after a process crash it may still lie in
    /// a volatile cache, so the new log syncs it first).
    pub end: Lsn,
    /// D: the highest position known to have been durable.
    pub durable: Lsn,
    /// Files that hold nothing of the log and will be used again, those included that were not read
    /// ([`Recovered::released`]).
    pub spares: Vec<SegmentNo>,
    /// Segments that the log had let go of and that nothing has used since: only their headers were
    /// read.
    pub released: usize,
    /// The segment in which the log goes on.
    pub next_segment: SegmentNo,
    /// Flushes and records read.
    pub flushes: u64,
    pub records: u64,
    pub(super) chain: Chain,
    pub(super) replay: Replay,
    /// Segments of the chain with the end of what each holds.
    pub(super) ends: Vec<(SegmentNo, Lsn)>,
    /// After rot: groups whose hard state must be logged again, behind the damage.
    pub(super) restate: Vec<GroupId>,
}

/// Reads the log of a shard. `config` must have the sizes the log was made with.
pub fn recover(
    config: WalConfig,
    identity: LogIdentity,
    files: &mut dyn SegmentSource,
) -> Result<Recovered, WalError> {
    recover_from(config, identity, files, Lsn::ZERO)
}

/// [`recover`], with the durable position that the boot record remembers for this shard.
pub fn recover_from(
    config: WalConfig,
    identity: LogIdentity,
    files: &mut dyn SegmentSource,
    mark: Lsn,
) -> Result<Recovered, WalError> {
    let mut recovery = Recovery::open(config, identity, files, mark)?;
    recovery.walk()?;
    recovery.look_behind()?;
    recovery.conclude()
}

/// No log lives to see it. Positions from outside (names of files, the boot record) stay below, so
/// that those computed from them stay in range.
const LSN_MAX: Lsn = Lsn(u64::MAX / 2);

struct Recovery<'a> {
    config: WalConfig,
    files: &'a mut dyn SegmentSource,
    /// Files that the log has let go of.
    released: Vec<SegmentNo>,
    /// All others.
    numbers: Vec<SegmentNo>,
    headers: Vec<(SegmentNo, SegmentHeader)>,
    start: Start,
    chain: Chain,
    durable: Lsn,
    ends: Vec<(SegmentNo, Lsn)>,
    tail: Tail,
    replay: Replay,
    /// Groups seen behind the end.
    behind: BTreeSet<GroupId>,
}

impl<'a> Recovery<'a> {
    fn open(
        config: WalConfig,
        identity: LogIdentity,
        files: &'a mut dyn SegmentSource,
        mark: Lsn,
    ) -> Result<Self, WalError> {
        let mut numbers = files.segments();
        numbers.sort_unstable();
        numbers.dedup();
        let number_max = config.segment_of(LSN_MAX);
        if mark > LSN_MAX || numbers.last().is_some_and(|last| *last >= number_max) {
            let what = "a file's number or the boot record names a position out of range";
            return Err(WalError::Format { lsn: mark.min(LSN_MAX), what });
        }
        let mut headers = Vec::new();
        let mut durable = mark;
        for &no in &numbers {
            let bytes = files
                .read(no, 0, config.lead())
                .map_err(|error| WalError::Unreadable { segment: no, error })?;
            if let Some(header) = SegmentHeader::read(&bytes, no, &config, &identity)? {
                durable = durable.max(Lsn(header.durable));
                headers.push((no, header));
            }
        }
        let (ends, tail, replay) = (Vec::new(), Tail::Nothing, Replay::new(config));
        let (start, chain, behind) = (Start::NoLog, Chain::default(), BTreeSet::new());
        let mut recovery = Self {
            config,
            files,
            released: Vec::new(),
            numbers,
            headers,
            start,
            chain,
            durable,
            ends,
            tail,
            replay,
            behind,
        };
        recovery.leave_released()?;
        recovery.begin()?;
        Ok(recovery)
    }

    /// Segments that the log had let go of are not read: it is as if their files had been renamed
    /// already, which could have happened at any moment since. The highest segment of the log says
    /// which; a header alone, whose first flush is not whole, does not count.
    fn leave_released(&mut self) -> Result<(), WalError> {
        for at in (0..self.headers.len()).rev() {
            if self.has_begun(at)? {
                let front = SegmentNo(self.headers[at].1.front);
                self.headers.retain(|(no, _)| *no >= front);
                let released = self.numbers.partition_point(|no| *no < front);
                self.released = self.numbers.drain(..released).collect();
                break;
            }
        }
        Ok(())
    }

    /// Finds where the chain begins: at the highest segment that begins a log anew (there is more
    /// than one only after damage was accepted), else at the lowest segment, unless that one
    /// continues a segment whose file is still there. Released segments are renamed away, lowest
    /// first: no file, no loss.
    fn begin(&mut self) -> Result<(), WalError> {
        for at in (0..self.headers.len()).rev() {
            let (no, header) = self.headers[at];
            if !begins_anew(&self.config, no, &header) {
                continue;
            }
            if self.has_begun(at)? {
                self.headers.drain(..at);
                break;
            }
            // Power failed before its first flush was whole. What lay there before it, and perhaps
            // was damaged, is still all there is: a header alone must not hide it.
            self.headers.remove(at);
        }
        self.drop_superseded()?;
        let Some((no, header)) = self.headers.first() else { return Ok(()) };
        self.chain = header.previous();
        self.start = Start::Found;
        let before = self.config.segment_before(self.chain.end);
        let continues = !begins_anew(&self.config, *no, header) && before < *no;
        if continues && self.numbers.contains(&before) {
            self.chain = Chain { end: self.config.start_of(before), checksum: 0 };
            self.start = Start::HeadLost;
        }
        Ok(())
    }

    /// A segment that continues the log from before an earlier segment has taken that one's place:
    /// after damage the log goes on where it was whole, behind files that are left as they are. When
    /// what lies before the damage has been released, such a leftover is the lowest file there is,
    /// and must not be taken for the log's beginning.
    fn drop_superseded(&mut self) -> Result<(), WalError> {
        let mut at = self.headers.len();
        while at > 1 {
            at -= 1;
            let back_to = self.headers[at].1.previous().end;
            let left_behind = |(no, _): &(SegmentNo, _)| self.config.start_of(*no) >= back_to;
            let Some(first) = self.headers[..at].iter().position(left_behind) else { continue };
            if self.has_begun(at)? {
                self.headers.drain(first..at);
                at = first;
            }
        }
        Ok(())
    }

    /// Whether a segment's first flush is whole: only then has it taken its place in the log.
    fn has_begun(&mut self, at: usize) -> Result<bool, WalError> {
        let (no, header) = self.headers[at];
        let mut scan = Scan::new(&self.config, &mut *self.files, no).briefly();
        let first = scan.flush_at(self.config.lead() as u64)?;
        Ok(first.is_some_and(|flush| flush.follows(header.previous(), header.epoch)))
    }

    /// Follows the chain from segment to segment.
    fn walk(&mut self) -> Result<(), WalError> {
        if self.start != Start::Found {
            return Ok(());
        }
        for at in 0..self.headers.len() {
            let (no, header) = self.headers[at];
            // A segment that a crash left behind half-written does not continue the chain.
            if header.previous() == self.chain {
                let goes_on_at = self.continuations(at)?;
                self.walk_segment(no, &header, &goes_on_at)?;
            }
        }
        Ok(())
    }

    /// Where the log goes on in another segment, although the one at `at`, or that segment's
    /// predecessors, may have more to say. A start that finds a flush damaged goes on before it in a
    /// new segment. If what hid the flush was a write that itself lay only in a cache, a loss of power
    /// brings the flush back, and with it an end of the log that was given up:
    ///
    /// 1. flush 9 is written; a stray write covers it in the disk's cache; the process is killed;
    /// 2. the start finds flush 8 to be the last one, and rot; the log goes on in segment 5;
    /// 3. power fails: the stray write is gone, flush 9 is whole, and segment 5 continues flush 8.
    fn continuations(&mut self, at: usize) -> Result<Vec<Chain>, WalError> {
        let mut found = Vec::new();
        let (from, to) = (self.headers[at].0, self.headers[at].0.next());
        let (from, to) = (self.config.start_of(from), self.config.start_of(to));
        for later in at + 1..self.headers.len() {
            let previous = self.headers[later].1.previous();
            let inside = previous == self.chain || (previous.end > from && previous.end < to);
            if inside && self.has_begun(later)? {
                found.push(previous);
            }
        }
        Ok(found)
    }

    fn walk_segment(
        &mut self,
        no: SegmentNo,
        header: &SegmentHeader,
        goes_on_at: &[Chain],
    ) -> Result<(), WalError> {
        let mut scan = Scan::new(&self.config, &mut *self.files, no);
        let mut offset = self.config.lead() as u64;
        while !goes_on_at.contains(&self.chain)
            && let Some(flush) = scan.flush_at(offset)?
        {
            if !flush.follows(self.chain, header.epoch) {
                break;
            }
            if self.ends.last().is_none_or(|(last, _)| *last != no) {
                self.replay.refs.open(no);
                self.ends.push((no, flush.end));
            }
            self.replay.flush(&flush)?;
            self.durable = self.durable.max(Lsn(flush.header.durable));
            self.chain = flush.chain();
            self.ends.last_mut().expect("pushed above").1 = flush.end;
            offset += flush.end.since(flush.lsn);
        }
        Ok(())
    }

    /// Searches what lies behind the end of the chain, in its segment and in all later files, for
    /// valid flushes: they may name a durable position beyond V. Files whose header is gone are
    /// searched too, since a flush verifies without it.
    fn look_behind(&mut self) -> Result<(), WalError> {
        let last = self.ends.last().copied();
        for at in 0..self.numbers.len() {
            let no = self.numbers[at];
            let from = match last {
                Some((of, _)) if no < of => continue,
                Some((of, end)) if no == of => end.since(self.config.start_of(no)),
                _ => self.config.lead() as u64,
            };
            self.search(no, from)?;
        }
        Ok(())
    }

    fn search(&mut self, no: SegmentNo, mut from: u64) -> Result<(), WalError> {
        let mut scan = Scan::new(&self.config, &mut *self.files, no);
        if scan.trace_at(from)? {
            self.tail = Tail::Traces;
        }
        while let Some(flush) = scan.find_flush(from)? {
            self.tail = Tail::Traces;
            self.durable = self.durable.max(Lsn(flush.header.durable));
            let behind = &mut self.behind;
            self.replay.salvage(&flush, |group| {
                behind.insert(group);
            });
            from = self.config.offset_of(flush.lsn) + flush.end.since(flush.lsn);
        }
        Ok(())
    }

    fn conclude(mut self) -> Result<Recovered, WalError> {
        let short = self.chain.end < self.durable && !mutants::is(Mutant::RotIsTornTail);
        let row = decide(self.start, short, self.tail);
        let rot = row == Row::Rot;
        let highest = self.numbers.last().map_or(SegmentNo(0), |no| *no);
        let next_segment = highest.max(self.config.segment_of(self.durable)).next();
        let valid = self.chain.end;
        if self.start != Start::Found {
            self.chain = Chain { end: self.config.start_of(next_segment), checksum: 0 };
        }
        let (spares, restate) = if rot { self.keep_all() } else { self.drop_behind() };
        let released = self.released.len();
        let Self { chain, durable, ends, replay, .. } = self;
        let verdict = match row {
            Row::Empty => Verdict::Empty,
            Row::Clean => Verdict::Clean,
            Row::TornTail => Verdict::TornTail,
            Row::Rot => {
                Verdict::Rot { valid, durable, groups: replay.groups.keys().copied().collect() }
            }
        };
        Ok(Recovered {
            groups: replay.groups.clone(),
            verdict,
            end: valid,
            durable,
            spares,
            released,
            next_segment,
            flushes: replay.flushes,
            records: replay.records,
            chain,
            replay,
            ends,
            restate,
        })
    }

    /// Rot: no file is touched, terms and votes found behind the damage are kept. They are all logged
    /// again: the log then goes on behind the damage, also if the groups have nothing new to say,
    /// and the next start does not find the same rot once more.
    fn keep_all(&mut self) -> (Vec<SegmentNo>, Vec<GroupId>) {
        let mut refs = std::mem::take(&mut self.replay.refs);
        refs.join(&self.released);
        refs.join(&self.numbers);
        self.replay.refs = refs;
        let states = self.replay.groups.iter();
        let states = states.filter(|(_, known)| known.hard_state != HardState::default());
        (Vec::new(), states.map(|(group, _)| *group).collect())
    }

    /// A torn tail: what lies behind V was promised to nobody, not even a vote.
    fn drop_behind(&mut self) -> (Vec<SegmentNo>, Vec<GroupId>) {
        let in_chain = |no: &SegmentNo| self.ends.iter().any(|(of, _)| of == no);
        let all = self.released.iter().chain(&self.numbers).copied();
        let spares = all.filter(|no| !in_chain(no)).collect();
        for group in &self.behind {
            let log = self.replay.index.groups.get(group);
            match (log, self.replay.groups.get_mut(group)) {
                (Some(log), Some(known)) => known.hard_state = log.state,
                _ => drop(self.replay.groups.remove(group)),
            }
        }
        (spares, Vec::new())
    }
}

/// Is this the first segment of a log?
fn begins_anew(config: &WalConfig, no: SegmentNo, header: &SegmentHeader) -> bool {
    header.previous() == Chain { end: config.start_of(no), checksum: 0 }
}
