//! Staging: records are copied once, straight into the aligned buffer that will be written, at the
//! position they will have. Sealing closes the chain: checksums, durable mark, padding.
//!
//! ```text
//!   chain.end        lsn of the open flush
//!      |                |
//!  ... | sealed, sent   | staged, full | staged, open ->
//!      +----------------+--------------+--------------
//!        in_flight (durability.rs)       staged (here)
//! ```

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use super::buffer::AlignedBuf;
use super::config::{LogIdentity, WalConfig};
use super::ops::SegmentNo;
use super::record::{
    Chain, FLUSH_HEADER_BYTES, FlushHeader, RECORD_HEADER_BYTES, RecordHeader, SegmentHeader,
};
use crate::block::Block;
use crate::ids::{Lsn, Tick};
use crate::mutants::{self, Mutant};

/// A buffer starts with this much room.
const BUFFER_BYTES: usize = 64 << 10;

/// A flush that still gathers records.
#[derive(Debug)]
pub(super) struct Staged {
    pub buffer: AlignedBuf,
    /// Position of the flush header.
    pub lsn: Lsn,
    pub segment: SegmentNo,
    /// Bytes of the segment's header block in front: the first flush of a segment carries it.
    lead: usize,
    /// The buffer may grow to this length.
    limit: usize,
    records: u32,
    /// In the blocks among the records.
    commands: u64,
    pub sync: bool,
    /// Holds a hard state: does not linger.
    pub urgent: bool,
    /// When it was first seen waiting.
    pub since: Option<Tick>,
}

impl Staged {
    /// Position just behind what is staged, without padding.
    fn end(&self) -> Lsn {
        Lsn(self.lsn.0 + (self.buffer.len() - self.lead) as u64)
    }

    /// Room for another record's payload, bytes.
    pub fn payload_room(&self) -> usize {
        (self.limit - self.buffer.len()).saturating_sub(RECORD_HEADER_BYTES)
    }
}

/// A flush ready for the disk.
#[derive(Debug)]
pub(super) struct Sealed {
    pub buffer: AlignedBuf,
    pub segment: SegmentNo,
    pub offset: u64,
    /// Position behind the padding.
    pub end: Lsn,
    pub sync: bool,
    pub commands: u64,
}

#[derive(Debug)]
pub(super) struct Writer {
    config: WalConfig,
    identity: LogIdentity,
    epoch: u64,
    staged: VecDeque<Staged>,
    pool: Vec<AlignedBuf>,
    /// Last flush sealed.
    chain: Chain,
    /// Where a log that begins anew begins: up to here there is nothing to be durable.
    origin: Lsn,
    /// Where the next flush opens: block-aligned, in `head` or at its very end.
    next: Lsn,
    head: SegmentNo,
    staged_bytes: u64,
}

impl Writer {
    /// Writes on from `chain` into the fresh segment `head`.
    pub fn new(
        config: WalConfig,
        identity: LogIdentity,
        epoch: u64,
        chain: Chain,
        head: SegmentNo,
    ) -> Self {
        let next = config.start_of(head);
        let origin = if chain.checksum == 0 { chain.end } else { Lsn::ZERO };
        let (staged, pool) = (VecDeque::new(), Vec::new());
        Self { origin, config, identity, epoch, staged, pool, chain, next, head, staged_bytes: 0 }
    }

    /// The segment that staging has reached.
    pub fn head(&self) -> SegmentNo {
        self.head
    }

    pub fn staged_bytes(&self) -> u64 {
        self.staged_bytes
    }

    /// The end of everything staged.
    pub fn end(&self) -> Lsn {
        self.staged.back().map_or(self.chain.end, Staged::end)
    }

    /// The next flush to go out.
    pub fn front(&self) -> Option<&Staged> {
        self.staged.front()
    }

    /// What was staged since the last call waits from now on.
    pub fn note_waiting(&mut self, now: Tick) {
        let fresh = self.staged.iter_mut().rev().take_while(|flush| flush.since.is_none());
        fresh.for_each(|flush| flush.since = Some(now));
    }

    /// True when the front is full: a later one has been opened.
    pub fn front_is_full(&self) -> bool {
        self.staged.len() > 1
    }

    /// Bytes left in the head segment behind what is staged.
    pub fn head_room(&self) -> u64 {
        self.config.start_of(self.head.next()).since(self.next_open())
    }

    /// A flush that can take a record with `payload` bytes; opens one if needed.
    pub fn fit(&mut self, payload: usize) -> &mut Staged {
        if self.staged.back().is_none_or(|open| open.payload_room() < payload) {
            self.open(payload);
        }
        self.staged.back_mut().expect("opened above")
    }

    /// Stages one record; the position of its header, and whether it shares `fit`'s flush.
    pub fn push_header(&mut self, header: RecordHeader, sync: bool, urgent: bool) -> (Lsn, Lsn) {
        let open = self.fit(header.size as usize);
        let at = open.end();
        open.buffer.extend(header.as_bytes());
        open.records += 1;
        open.sync |= sync;
        open.urgent |= urgent;
        let flush = open.lsn;
        self.staged_bytes += (RECORD_HEADER_BYTES + header.size as usize) as u64;
        (at, flush)
    }

    /// Payload of the record whose header was pushed last.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.staged.back_mut().expect("its header is there").buffer.extend(bytes);
    }

    /// A block of the record whose header was pushed last: header and body as they are.
    pub fn push_block(&mut self, block: &Block) {
        let open = self.staged.back_mut().expect("its header is there");
        open.buffer.extend(block.header().as_bytes());
        open.buffer.extend(block.body());
        open.commands += block.count();
    }

    fn next_open(&self) -> Lsn {
        match self.staged.back() {
            Some(open) => {
                let used = self.config.padded(open.buffer.len() - open.lead);
                Lsn(open.lsn.0 + used as u64)
            }
            None => self.next,
        }
    }

    /// Opens a flush for a record of `payload` bytes: in the head segment if it fits, else in the
    /// next one, which then becomes the head.
    fn open(&mut self, payload: usize) {
        let need = self.config.padded(FLUSH_HEADER_BYTES + RECORD_HEADER_BYTES + payload);
        let usable = self.config.segment_bytes as usize - self.config.lead();
        assert!(need <= usable, "a record of {payload} bytes fits no segment of {usable}");
        self.next = self.next_open();
        let fresh = self.next == self.config.start_of(self.head);
        if !fresh && self.head_room() < need as u64 {
            self.head = self.head.next();
            self.next = self.config.start_of(self.head);
        }
        let lead =
            if self.next == self.config.start_of(self.head) { self.config.lead() } else { 0 };
        let lsn = self.next.plus(lead as u64);
        let room = self.config.start_of(self.head.next()).since(lsn) as usize;
        let flush_max = self.config.padded(self.config.flush_bytes_max as usize);
        let limit = lead + need.max(flush_max).min(room);
        let fresh = || AlignedBuf::with_capacity(BUFFER_BYTES.min(flush_max));
        let mut buffer = self.pool.pop().unwrap_or_else(fresh);
        buffer.clear();
        buffer.pad_to(lead + FLUSH_HEADER_BYTES);
        let segment = self.head;
        let (records, commands, sync, urgent, since) = (0, 0, false, false, None);
        self.staged.push_back(Staged {
            buffer,
            lsn,
            segment,
            lead,
            limit,
            records,
            commands,
            sync,
            urgent,
            since,
        });
    }

    /// Closes the front flush: stamps it with `durable`, links it to the one before, pads it. The first
    /// one of a segment says as well that nothing below `needed` is needed.
    pub fn seal(&mut self, durable: Lsn, needed: SegmentNo) -> Option<Sealed> {
        self.next = self.next_open();
        let mut front = self.staged.pop_front()?;
        let (lsn, segment, lead) = (front.lsn, front.segment, front.lead);
        assert!(front.records > 0 && front.buffer.len() <= front.limit);
        assert!(lsn >= self.chain.end && durable <= self.chain.end);
        let silent = durable <= self.origin || mutants::is(Mutant::ForgetDurableMark);
        let durable = if silent { Lsn::ZERO } else { durable };
        if lead > 0 {
            self.stamp_segment(&mut front, (durable, needed));
        }
        let flush = &mut front.buffer.as_mut_slice()[lead..];
        let used = flush.len();
        let checksum = FlushHeader::seal(
            flush,
            (self.epoch, segment),
            lsn,
            front.records,
            durable,
            self.chain.checksum,
            front.sync,
        );
        let padded = self.config.padded(used);
        front.buffer.pad_to(lead + padded);
        let end = lsn.plus(padded as u64);
        self.chain = Chain { end, checksum };
        self.staged_bytes -= (used - FLUSH_HEADER_BYTES) as u64;
        let offset = self.config.offset_of(lsn) - lead as u64;
        let Staged { buffer, sync, commands, .. } = front;
        Some(Sealed { buffer, segment, offset, end, sync, commands })
    }

    fn stamp_segment(&self, front: &mut Staged, (durable, needed): (Lsn, SegmentNo)) {
        let header = SegmentHeader::new(
            &self.config,
            &self.identity,
            self.epoch,
            front.segment,
            self.chain,
            (durable, needed.min(front.segment)),
        );
        let bytes = header.as_bytes();
        front.buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    }

    /// Takes a buffer back from the disk. The pool never holds more than can be staged and in
    /// flight at once.
    pub fn recycle(&mut self, buffer: AlignedBuf) {
        let flush_max = u64::from(self.config.flush_bytes_max);
        let usual = buffer.capacity() as u64 <= 2 * flush_max + self.config.lead() as u64;
        let staged_max = self.config.staged_bytes_max / flush_max;
        if usual && (self.pool.len() as u64) <= u64::from(self.config.depth) + staged_max {
            self.pool.push(buffer);
        }
    }
}
