//! Our write-ahead log with appends in flight without limit: one thread, one ring.
//!
//! ```text
//!   stage appends -> Wal::flush -> submit -> ... -> completion -> Wal::complete -> durable moves
//!        ^                                                                          |
//!        +--------------------------------------------------------------------------+
//! ```

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::Instant;

use io_uring::{IoUring, opcode, types};
use ringraft::ids::Lsn;
use ringraft::wal::{AlignedBuf, DiskDone, DiskOp, OpId};

use crate::our_wal::Bench;
use crate::side::Side;

/// How much a flush may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// One append a flush: as many durable flushes as the disk gives.
    One,
    /// Appends are staged for as long as the log takes them.
    Full,
}

/// A write that the kernel may be reading from. Owns its buffer until the completion.
struct InFlight {
    op: OpId,
    buffer: AlignedBuf,
    len: usize,
}

/// An append that is not durable yet.
struct Waiting {
    end: Lsn,
    count: u64,
    since: Instant,
}

/// See the module. Dropped only with nothing in flight: [`Side::rest`] and `drop` wait for it.
pub struct Stream {
    bench: Bench,
    ring: IoUring,
    slots: Vec<Option<InFlight>>,
    in_flight: usize,
    waiting: VecDeque<Waiting>,
    latencies_ns: Vec<u32>,
    fill: Fill,
}

impl Stream {
    /// `depth` flushes in flight at most.
    pub fn new(
        parent: &Path,
        groups: usize,
        batch: usize,
        depth: u32,
        fill: Fill,
    ) -> io::Result<Self> {
        Ok(Self {
            bench: Bench::new(parent, groups, batch, depth)?,
            ring: IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(64)?,
            slots: (0..depth).map(|_| None).collect(),
            in_flight: 0,
            waiting: VecDeque::new(),
            latencies_ns: Vec::new(),
            fill,
        })
    }

    fn stage(&mut self) {
        let since = Instant::now();
        while self.may_stage() {
            let (end, count) = self.bench.append();
            self.waiting.push_back(Waiting { end, count, since });
            if self.fill == Fill::One {
                break;
            }
        }
    }

    /// `One`: as many appends as flushes. `Full`: one flush's worth waits behind those in flight.
    fn may_stage(&self) -> bool {
        let (wal, depth) = (&self.bench.wal, self.slots.len());
        match self.fill {
            Fill::One => self.waiting.len() < depth,
            Fill::Full => {
                let ahead = wal.staged().since(wal.written());
                wal.has_capacity() && ahead < (depth as u64 + 1) << 20
            }
        }
    }

    fn submit(&mut self) {
        let now = self.bench.now();
        let mut ops = std::mem::take(&mut self.bench.ops);
        self.bench.wal.flush(now, &mut ops);
        for op in ops.drain(..) {
            match op {
                DiskOp::Write { .. } => self.push(op),
                other => self.bench.carry_out(other),
            }
        }
        self.bench.ops = ops;
    }

    fn push(&mut self, op: DiskOp) {
        let DiskOp::Write { op, segment, offset, buffer, len, .. } = op else { return };
        let free = self.slots.iter().position(Option::is_none).expect("as many as the depth");
        let file = types::Fd(self.bench.files.descriptor(segment));
        let entry = opcode::Write::new(file, buffer.as_slice().as_ptr(), len as u32)
            .offset(offset)
            .build()
            .user_data(free as u64);
        self.slots[free] = Some(InFlight { op, buffer, len });
        self.in_flight += 1;
        // SAFETY: the entry reads `len` bytes of the buffer. Its heap memory neither moves nor is
        // written to while it sits in its slot, and it leaves the slot only in `reap`, after the
        // completion; drop waits for all completions before the slots go. `len` is at most the
        // buffer's length. The descriptor stays open: a segment is recycled only when all its
        // flushes are durable.
        unsafe { self.ring.submission().push(&entry).expect("64 entries, at most `depth` used") };
    }

    /// Submits, waits for `want` completions, and tells the log.
    fn reap(&mut self, want: usize) {
        self.ring.submit_and_wait(want).expect("the ring works");
        while let Some(done) = self.ring.completion().next() {
            let slot = self.slots[done.user_data() as usize].take().expect("was submitted");
            self.in_flight -= 1;
            assert_eq!(done.result(), slot.len as i32, "a whole write or none");
            self.bench.complete(slot.op, DiskDone::Written { buffer: slot.buffer });
        }
    }

    /// Counts the commands of appends that have become durable.
    fn acknowledge(&mut self) -> u64 {
        let durable = self.bench.wal.durable();
        let mut commands = 0;
        let now = Instant::now();
        while let Some(front) = self.waiting.front()
            && front.end <= durable
        {
            commands += front.count;
            let ns = (now - front.since).as_nanos();
            self.latencies_ns.push(u32::try_from(ns).unwrap_or(u32::MAX));
            self.waiting.pop_front();
        }
        commands
    }

    fn drain(&mut self) {
        while !self.waiting.is_empty() {
            self.turn(1);
            self.acknowledge();
        }
    }

    fn turn(&mut self, want: usize) {
        self.bench.poll_files();
        self.submit();
        if self.in_flight == 0 && !self.waiting.is_empty() {
            self.bench.wait_for_file();
        }
        self.reap(want.min(self.in_flight));
    }
}

impl Side for Stream {
    fn name(&self) -> String {
        let depth = self.slots.len();
        match self.fill {
            Fill::One => format!("ringraft, {depth} in flight"),
            Fill::Full => format!("ringraft, {depth} full flushes"),
        }
    }

    fn step(&mut self) -> u64 {
        self.stage();
        // Waits only when nothing more may be staged, so that the depth stays filled.
        let want = usize::from(!self.may_stage());
        self.turn(want);
        self.acknowledge()
    }

    fn take_latencies(&mut self, out: &mut Vec<u32>) -> bool {
        out.append(&mut self.latencies_ns);
        true
    }

    fn rest(&mut self) {
        self.drain();
        self.latencies_ns.clear();
        self.bench.make_spares();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            self.reap(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::default_parent;

    #[test]
    fn every_append_is_acknowledged_once_in_either_shape() {
        for fill in [Fill::One, Fill::Full] {
            let mut stream = Stream::new(&default_parent(), 3, 100, 4, fill).unwrap();
            let acknowledged: u64 = (0..500).map(|_| stream.step()).sum();
            let waiting: u64 = stream.waiting.iter().map(|w| w.count).sum();
            let staged: u64 = acknowledged + waiting;
            assert_eq!(staged, stream.bench.wal.stats().records * 100, "{fill:?}");
            assert!(acknowledged > 0);
            stream.rest();
            assert_eq!(stream.bench.wal.durable(), stream.bench.wal.staged());
        }
    }
}
