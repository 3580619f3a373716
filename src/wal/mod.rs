//! One write-ahead log for all groups of a shard, with group commit. It decides everything about
//! order and touches no file: the runtime carries out [`DiskOp`]s and reports completions.
//!
//! In:
//! - [`Wal::append`], [`Wal::hard_state`]: stage records; the answer is the position (LSN) behind
//!   the record. A record is *written* when [`Wal::written`] has reached it, *durable* when
//!   [`Wal::durable`] has.
//! - [`Wal::complete`]: an operation has finished, well or badly.
//! - [`Wal::read`]: blocks that are no longer in memory. [`Wal::begin_at`]: entries not needed.
//!
//! Out: [`Wal::flush`] gives the operations to carry out. A turn calls it once, after staging and
//! after completions, and again at [`Wal::deadline`]:
//!
//! ```text
//!   complete*  ->  append* / hard_state* / begin_at* / read*  ->  flush  ->  carry out the ops
//! ```
//!
//! Batching is driven by the writes in flight: what is staged goes out at once while fewer than
//! `depth` flushes are under way, and what arrives meanwhile is the next flush.
//!
//! Never true:
//! - `durable > written`, or either going back (durability.rs);
//! - anything moving after a write or a sync failed: the first error poisons the log (bug 1);
//! - a (term, vote) that goes back, or an append that leaves a gap (asserted when staged);
//! - two flushes in one block, or an old byte overwritten: recovery goes on in a new segment.
//!
//! The bytes are drawn in docs/formats.md, the recovery rules in recovery.rs.

mod boot;
mod buffer;
mod config;
mod durability;
mod facts;
mod fetch;
mod front;
mod index;
mod inspect;
mod ops;
mod record;
mod recovery;
mod replay;
mod scan;
mod segment;
mod start;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use zerocopy::IntoBytes;

use crate::block::Block;
use crate::ids::{GroupId, HardState, Index, Lsn, Tick};
use crate::metrics::Histogram;
use crate::mutants::{self, Mutant};

pub use boot::{
    BootError, BootRecord, BootState, KnownVoter, Opening, SLOT_BYTES, StartVerdict, Suspect,
};
pub use buffer::{AlignedBuf, PAGE_BYTES};
pub use config::{LogIdentity, WalConfig, WalConfigError};
pub(crate) use facts::{Fact, FlushFacts, read_flush};
pub use inspect::{Content, Damage, FlushView, LogShape, Place, RecordView, inspect};
pub use ops::{
    Completed, DiskDone, DiskError, DiskErrorKind, DiskOp, OpId, ReadError, SegmentNo, Space,
    WalError, WalStats,
};
pub use recovery::{Recovered, Verdict, recover, recover_from};
pub use replay::{RecoveredGroup, TermStart};
pub use scan::SegmentSource;

use durability::Marks;
use fetch::{Fetch, Wanted};
use index::{LogIndex, RUN_BYTES_MAX, Run};
use record::{
    Chain, FLAG_TRUNCATES, HARD_STATE_BYTES, HardStateBytes, KIND_BLOCKS, KIND_HARD_STATE,
    RECORD_HEADER_BYTES, record_header,
};
use segment::{Need, Refs, Segments};
use writer::Writer;

/// What `append` answers once the log is poisoned: a position that is never reached.
pub const NEVER: Lsn = Lsn(u64::MAX);

/// The log of one shard. See the module's contract.
#[derive(Debug)]
pub struct Wal {
    config: WalConfig,
    writer: Writer,
    marks: Marks,
    segments: Segments,
    index: LogIndex,
    fetches: Vec<Fetch>,
    next_op: u64,
    /// When the front flush began to linger.
    lingers_since: Option<Tick>,
    /// The flush that went out last had waited too long, and others wait behind it.
    is_late: bool,
    /// Nothing is written until a sync has completed (durability.md R7).
    is_ahead: bool,
    poisoned: Option<WalError>,
    stats: WalStats,
    flush_commands: Histogram,
}

impl Wal {
    /// A log on an empty directory. `epoch`: a random number, new at each start.
    ///
    /// # Panics
    /// When the configuration breaks its rules; see [`WalConfig::check`].
    pub fn create(config: WalConfig, identity: LogIdentity, epoch: u64) -> Self {
        let head = SegmentNo(1);
        let chain = Chain { end: config.start_of(head), checksum: 0 };
        let (index, refs) = (LogIndex::new(config), Refs::default());
        let writer = Writer::new(config, identity, epoch, chain, head);
        Self::begin(config, writer, Marks::new(chain.end), index, refs, Vec::new())
    }

    /// Goes on after what [`recover`] found, in a new segment. Takes the index out of `recovered`;
    /// groups, verdict and marks stay there for the caller. Until `durable()` has reached
    /// `recovered.end`, the recovered entries are written but not known to be durable.
    pub fn resume(
        config: WalConfig,
        identity: LogIdentity,
        epoch: u64,
        recovered: &mut Recovered,
    ) -> Self {
        let index = std::mem::replace(&mut recovered.replay.index, LogIndex::new(config));
        let refs = std::mem::take(&mut recovered.replay.refs);
        let head = recovered.next_segment;
        let writer = Writer::new(config, identity, epoch, recovered.chain, head);
        let trusted = mutants::is(Mutant::RecoveredIsDurable);
        let known = if trusted { recovered.chain.end } else { recovered.durable };
        let mut marks = Marks::new(known.min(recovered.chain.end));
        for &(segment, end) in &recovered.ends {
            if end > marks.written() {
                marks.doubt(segment, end);
            }
        }
        let mut wal = Self::begin(config, writer, marks, index, refs, Vec::new());
        let end = recovered.ends.last().map_or(Lsn::ZERO, |(_, end)| *end);
        wal.segments.hold_back(recovered.spares.clone(), end);
        for group in std::mem::take(&mut recovered.restate) {
            match recovered.groups[&group].hard_state {
                state if state.is_ended() => wal.end_group(group),
                state => wal.hard_state(group, state),
            };
        }
        if matches!(recovered.verdict, Verdict::Rot { .. }) {
            wal.segments.refs.keep_until(wal.staged());
        }
        wal
    }

    fn begin(
        config: WalConfig,
        writer: Writer,
        marks: Marks,
        index: LogIndex,
        mut refs: Refs,
        reusable: Vec<SegmentNo>,
    ) -> Self {
        if let Err(error) = config.check_shape() {
            panic!("{error}");
        }
        let head = writer.head();
        refs.open(head);
        let segments = Segments::new(config, refs, reusable, SegmentNo(head.0 - 1));
        Self {
            config,
            writer,
            marks,
            segments,
            index,
            fetches: Vec::new(),
            next_op: 1,
            lingers_since: None,
            is_late: false,
            is_ahead: false,
            poisoned: None,
            stats: WalStats::default(),
            flush_commands: Histogram::default(),
        }
    }

    /// Stages contiguous blocks of one group; each is copied once, into the buffer that will be
    /// written. `truncates`: the first one replaces what the group logged from its index on.
    /// `sync`: must be durable before it is acknowledged; truncations and membership always are
    /// (durability.md R1). Ask [`Wal::room`] and [`Wal::has_capacity`] first: what is staged beyond
    /// them waits without being written.
    ///
    /// # Panics
    /// When the blocks leave a gap behind the group's last entry, or are another group's.
    pub fn append(&mut self, group: GroupId, blocks: &[Block], truncates: bool, sync: bool) -> Lsn {
        if self.poisoned.is_some() {
            return NEVER;
        }
        let (mut rest, mut truncates) = (blocks, truncates);
        while !rest.is_empty() {
            let taken = self.append_record(group, rest, truncates, sync);
            rest = &rest[taken..];
            truncates = false;
        }
        self.writer.end()
    }

    /// Stages as many of `blocks` as one record takes: they stay in one flush, and within the size
    /// that a later read enters cheaply.
    fn append_record(
        &mut self,
        group: GroupId,
        blocks: &[Block],
        truncates: bool,
        sync: bool,
    ) -> usize {
        let room = self.writer.fit(blocks[0].size()).payload_room();
        let most = room.min(RUN_BYTES_MAX as usize - RECORD_HEADER_BYTES);
        let (mut count, mut size) = (0, 0);
        let mut must_sync = sync || (truncates && !mutants::is(Mutant::TruncationNotSynced));
        let mut due = blocks[0].first();
        for block in blocks {
            if count > 0 && size + block.size() > most {
                break;
            }
            assert!(block.group() == group && block.first() == due, "blocks of {group:?} in order");
            must_sync |= block.is_always_synced();
            due = block.last().next();
            size += block.size();
            count += 1;
        }
        let flags = if truncates { FLAG_TRUNCATES } else { 0 };
        let header = record_header(group, KIND_BLOCKS, flags, size, count);
        let (lsn, flush) = self.writer.push_header(header, must_sync, false);
        for block in &blocks[..count] {
            self.writer.push_block(block);
        }
        self.note_record(RECORD_HEADER_BYTES + size);
        let bytes = (RECORD_HEADER_BYTES + size) as u32;
        let run = Run { first: blocks[0].first(), last: due.prev(), lsn, bytes };
        self.index.push(&mut self.segments.refs, group, run, flush, truncates);
        count
    }

    /// Stages a hard state; always synced (R1).
    ///
    /// # Panics
    /// When term or vote go back (bug 3).
    pub fn hard_state(&mut self, group: GroupId, state: HardState) -> Lsn {
        if self.poisoned.is_some() {
            return NEVER;
        }
        let header = record_header(group, KIND_HARD_STATE, 0, HARD_STATE_BYTES, 0);
        let sync = !mutants::is(Mutant::HardStateNotSynced);
        let (lsn, _) = self.writer.push_header(header, sync, true);
        self.writer.push_bytes(HardStateBytes::encode(state).as_bytes());
        self.note_record(RECORD_HEADER_BYTES + HARD_STATE_BYTES);
        self.index.set_state(&mut self.segments.refs, group, state, lsn);
        self.writer.end()
    }

    fn note_record(&mut self, bytes: usize) {
        self.stats.records += 1;
        self.stats.record_bytes += bytes as u64;
        // Staging moves on by one segment at a time.
        if self.segments.head() != self.writer.head() {
            self.segments.refs.open(self.writer.head());
        }
    }

    /// Gives the operations to carry out now: flushes (all full ones and at most one that is not,
    /// `depth` in flight), a segment to prepare, a sync. `ops` is appended to.
    pub fn flush(&mut self, now: Tick, ops: &mut Vec<DiskOp>) {
        if self.poisoned.is_some() {
            return;
        }
        self.segments.reclaim(self.marks.durable());
        if let Some((segment, recycle)) = self.segments.prepare_due(now) {
            let op = self.op();
            self.segments.prepare_issued(op, recycle);
            ops.push(DiskOp::Prepare { op, segment, recycle });
        }
        self.writer.note_waiting(now);
        self.is_late &= self.writer.front().is_some();
        let (lag_us, lag_bytes) = (self.config.sync_lag_us, self.config.sync_lag_bytes);
        self.is_ahead = self.marks.is_too_far_ahead(now, lag_us, lag_bytes);
        while self.may_flush() && self.front_is_due(now) {
            let full = self.writer.front_is_full();
            self.issue_flush(now, ops);
            self.is_ahead = self.marks.is_too_far_ahead(now, lag_us, lag_bytes);
            if !full {
                break;
            }
        }
        if let Some(segment) = self.marks.sync_due(now, lag_us, lag_bytes) {
            let op = self.op();
            self.marks.sync_issued(op, now);
            self.stats.syncs += 1;
            ops.push(DiskOp::Sync { op, segment });
        }
    }

    /// Something is staged, its segment is there, the disk has room for another flush, and syncs
    /// keep up.
    fn may_flush(&self) -> bool {
        let free = self.marks.flushes_in_flight() < self.config.depth as usize;
        free && !self.is_ahead
            && self.writer.front().is_some_and(|front| self.segments.is_ready(front.segment))
    }

    fn front_is_due(&mut self, now: Tick) -> bool {
        let urgent = self.writer.front().is_some_and(|front| front.urgent);
        if self.config.linger_us == 0 || urgent || self.writer.front_is_full() {
            return true;
        }
        let since = *self.lingers_since.get_or_insert(now);
        now >= since.plus(self.config.linger_us)
    }

    fn issue_flush(&mut self, now: Tick, ops: &mut Vec<DiskOp>) {
        let since = self.writer.front().and_then(|front| front.since);
        let waited = since.map_or(0, |since| now.since(since));
        self.is_late = waited > self.config.staged_age_max_us && self.writer.front_is_full();
        let needed = self.segments.lowest_needed();
        let Some(sealed) = self.writer.seal(self.marks.durable(), needed) else { return };
        let op = self.op();
        self.lingers_since = None;
        let len = sealed.buffer.len();
        self.marks.issued(op, sealed.segment, sealed.end, len as u64, sealed.sync);
        self.stats.flushes += 1;
        self.stats.bytes += len as u64;
        self.flush_commands.observe(sealed.commands);
        ops.push(DiskOp::Write {
            op,
            segment: sealed.segment,
            offset: sealed.offset,
            buffer: sealed.buffer,
            len,
            sync: sealed.sync,
        });
    }

    fn op(&mut self) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        op
    }

    /// Takes in a finished operation. An error of a write or a sync, or of preparing a segment other
    /// than for want of space, poisons the log: it is returned here once and by
    /// [`Wal::poisoned`] ever after, and no mark moves again.
    ///
    /// # Panics
    /// When `op` is not under way: each is completed exactly once.
    pub fn complete(
        &mut self,
        now: Tick,
        op: OpId,
        result: Result<DiskDone, DiskError>,
    ) -> Result<Completed, WalError> {
        if let Some(at) = self.fetches.iter().position(|fetch| fetch.op == op) {
            return Ok(self.complete_fetch(at, result));
        }
        if self.poisoned.is_some() {
            return Ok(Completed::Progress);
        }
        match result {
            Ok(done) => self.complete_done(now, op, done),
            Err(error) if self.segments.is_prepare(op) && error.kind == DiskErrorKind::NoSpace => {
                self.segments.prepare_failed(now, error);
            }
            Err(_) if self.marks.is_sync(op) && mutants::is(Mutant::RetryFailedSync) => {
                self.marks.sync_again();
            }
            Err(_) if self.marks.is_flush(op) && mutants::is(Mutant::FailedWriteCounts) => {
                self.marks.wrote(op, now);
            }
            Err(error) => return Err(self.poison(op, error)),
        }
        Ok(Completed::Progress)
    }

    fn complete_done(&mut self, now: Tick, op: OpId, done: DiskDone) {
        match done {
            DiskDone::Written { buffer } if self.marks.is_flush(op) => {
                self.marks.wrote(op, now);
                self.writer.recycle(buffer);
            }
            DiskDone::Synced if self.marks.is_sync(op) => self.marks.synced(),
            DiskDone::Prepared if self.segments.is_prepare(op) => self.segments.prepared(),
            other => panic!("{op:?} is not under way, or not as {other:?}"),
        }
    }

    fn poison(&mut self, op: OpId, error: DiskError) -> WalError {
        let what = match () {
            () if self.marks.is_flush(op) => "write",
            () if self.marks.is_sync(op) => "sync",
            () if self.segments.is_prepare(op) => "preparing a segment",
            () => panic!("{op:?} is not under way"),
        };
        let error = WalError::Poisoned { what, error };
        self.poisoned = Some(error.clone());
        error
    }

    /// Asks for blocks of `group` from the one that holds `from` on: at least one, then more up to
    /// `through` and about `bytes_max` bytes, as far as one read of the disk reaches. The answer
    /// comes as [`Completed::Fetched`] or [`Completed::FetchFailed`] with `token`. Entries that are
    /// staged but not written are refused with [`ReadError::NotYet`]. What is truncated while the
    /// read is under way may still be in its answer: compare terms.
    pub fn read(
        &mut self,
        group: GroupId,
        from: Index,
        through: Index,
        bytes_max: u32,
        token: u64,
        ops: &mut Vec<DiskOp>,
    ) -> Result<(), ReadError> {
        if self.poisoned.is_some() {
            return Err(ReadError::Poisoned);
        }
        let wanted = Wanted { token, group, from, through, bytes_max };
        let op = OpId(self.next_op);
        let fetch = Fetch::plan(op, wanted, &self.config, &self.index, self.marks.written())?;
        self.next_op += 1;
        self.stats.reads += 1;
        self.segments.refs.hold(fetch.segment, Need::Read);
        let (segment, len) = (fetch.segment, fetch.len);
        ops.push(DiskOp::Read { op, segment, offset: fetch.offset(&self.config), len });
        self.fetches.push(fetch);
        Ok(())
    }

    fn complete_fetch(&mut self, at: usize, result: Result<DiskDone, DiskError>) -> Completed {
        let fetch = self.fetches.swap_remove(at);
        self.segments.refs.drop(fetch.segment, Need::Read, Lsn::ZERO);
        let Fetch { token, group, .. } = fetch;
        let blocks = match result {
            Ok(DiskDone::Read { bytes }) => fetch.blocks(&bytes),
            Ok(other) => panic!("a read completed as {other:?}"),
            Err(error) => Err(ReadError::Disk(error)),
        };
        match blocks {
            Ok(blocks) => Completed::Fetched { token, group, blocks },
            Err(error) => Completed::FetchFailed { token, group, error },
        }
    }

    /// Asks for everything staged so far to be synced as soon as it is written, whatever the groups'
    /// modes: a clean stop, `RECOVERING` left (R5), a group switched to sync (R10).
    pub fn sync(&mut self) -> Lsn {
        let end = self.writer.end();
        self.marks.want(end);
        if self.poisoned.is_some() { NEVER } else { end }
    }

    /// Everything before this survives a power loss.
    pub fn durable(&self) -> Lsn {
        self.marks.durable()
    }

    /// Everything before this has left the process and survives its end.
    pub fn written(&self) -> Lsn {
        self.marks.written()
    }

    /// The end of everything staged.
    pub fn staged(&self) -> Lsn {
        self.writer.end()
    }

    /// Bytes of records that can be taken before files run out, one segment kept back for hard
    /// states. 0: read-only; [`Wal::space`] says why.
    pub fn room(&self) -> u64 {
        self.segments.room(self.writer.head_room())
    }

    /// Whether the caller may stage more: less than `staged_bytes_max` waits, and not for longer than
    /// `staged_age_max_us`.
    pub fn has_capacity(&self) -> bool {
        self.capacity() > 0
    }

    /// Bytes that may still be staged before `staged_bytes_max` wait; the last record may go over.
    pub fn capacity(&self) -> u64 {
        if self.is_late {
            return 0;
        }
        self.config.staged_bytes_max.saturating_sub(self.writer.staged_bytes())
    }

    /// Bytes of records that are staged and not under way to the disk.
    pub fn staged_bytes(&self) -> u64 {
        self.writer.staged_bytes()
    }

    /// Why `room` is what it is.
    pub fn space(&self) -> Space {
        self.segments.space(self.room())
    }

    /// When `flush` must be called again though nothing happens; `Tick::ZERO` = now,
    /// `Tick(u64::MAX)` = never.
    pub fn deadline(&self) -> Tick {
        if self.poisoned.is_some() {
            return Tick(u64::MAX);
        }
        let linger = self.may_flush().then(|| match self.lingers_since {
            Some(since) if !self.writer.front_is_full() => since.plus(self.config.linger_us),
            _ => Tick::ZERO,
        });
        let sync = self.marks.deadline(self.config.sync_lag_us);
        let due = [linger, sync, self.segments.deadline()];
        due.into_iter().flatten().min().unwrap_or(Tick(u64::MAX))
    }

    /// The error that stopped the log, if one did.
    pub fn poisoned(&self) -> Option<&WalError> {
        self.poisoned.as_ref()
    }

    /// Commands of each flush issued.
    pub fn flush_commands(&self) -> &Histogram {
        &self.flush_commands
    }

    /// Figures for metrics.
    pub fn stats(&self) -> WalStats {
        WalStats {
            segments: self.segments.refs.len() as u64,
            spares: self.segments.spares(),
            recycled: self.segments.recycled,
            unsynced_bytes: self.marks.unsynced_bytes(),
            unsynced_since: self.marks.unsynced_since(),
            in_flight: self.marks.flushes_in_flight() as u64,
            ..self.stats
        }
    }
}
