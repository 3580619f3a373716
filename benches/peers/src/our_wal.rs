//! Our write-ahead log: the real one, over plain files.
//!
//! [`Log`] waits for each append, as the peer's writer does. [`Stream`](crate::our_stream::Stream)
//! keeps as many flushes in flight as the log allows.

use std::io;
use std::path::Path;
use std::time::Instant;

use ringraft::block::Block;
use ringraft::ids::{Index, Lsn, Term, Tick};
use ringraft::wal::{DiskDone, DiskOp, LogIdentity, OpId, Wal, WalConfig};

use crate::scratch::Scratch;
use crate::segments::Segments;
use crate::side::Side;
use crate::workload::block;

/// The log, the blocks to append to it and its files: what both shapes share.
pub struct Bench {
    pub wal: Wal,
    pub files: Segments,
    pub ops: Vec<DiskOp>,
    /// One block a group, its place stamped anew for each append.
    blocks: Vec<Block>,
    turn: usize,
    start: Instant,
    _scratch: Scratch,
}

impl Bench {
    /// An empty log in a directory of its own under `parent`, its first segments made.
    pub fn new(parent: &Path, groups: usize, batch: usize, depth: u32) -> io::Result<Self> {
        let scratch = Scratch::new(parent, "ringraft")?;
        let config = WalConfig { depth, spare_segments: 4, ..WalConfig::default() };
        config.check().map_err(io::Error::other)?;
        let identity = LogIdentity { cluster: 1, node: 1, disk: 1 };
        let blocks = (0..groups as u32).map(|group| {
            let mut block = block(group, batch);
            block.stamp(Term(1), Index(1), 0);
            block
        });
        let mut bench = Self {
            wal: Wal::create(config, identity, 1),
            files: Segments::new(scratch.path(), config.segment_bytes),
            ops: Vec::new(),
            blocks: blocks.collect(),
            turn: 0,
            start: Instant::now(),
            _scratch: scratch,
        };
        bench.make_spares();
        Ok(bench)
    }

    /// Stages the next group's block. The position behind it and its commands.
    pub fn append(&mut self) -> (Lsn, u64) {
        let turn = self.turn;
        self.turn = (turn + 1) % self.blocks.len();
        let block = &mut self.blocks[turn];
        let group = block.group();
        let end = self.wal.append(group, std::slice::from_ref(block), false, true);
        let (count, next) = (block.count(), block.last().next());
        block.stamp(Term(1), next, 0);
        (end, count)
    }

    pub fn now(&self) -> Tick {
        Tick(self.start.elapsed().as_micros() as u64)
    }

    pub fn complete(&mut self, op: OpId, done: DiskDone) {
        let now = self.now();
        let _ = self.wal.complete(now, op, Ok(done)).expect("nothing failed");
    }

    /// Takes in segments that have become ready.
    pub fn poll_files(&mut self) {
        while let Some(op) = self.files.poll() {
            self.complete(op, DiskDone::Prepared);
        }
    }

    /// Waits for a segment that is being made; the log has none to go on in.
    pub fn wait_for_file(&mut self) {
        let op = self.files.wait().expect("a segment is on its way");
        self.complete(op, DiskDone::Prepared);
    }

    /// Forgets every entry, so that segments are used again, and has the spare ones made. Needs
    /// that nothing is in flight.
    pub fn make_spares(&mut self) {
        for block in &self.blocks {
            self.wal.release(block.group(), block.first().prev());
        }
        loop {
            let now = self.now();
            self.wal.flush(now, &mut self.ops);
            for op in std::mem::take(&mut self.ops) {
                self.carry_out(op);
            }
            let Some(op) = self.files.wait() else { return };
            self.complete(op, DiskDone::Prepared);
        }
    }

    /// Does `op` and waits for it; a segment is only ordered.
    pub fn carry_out(&mut self, op: DiskOp) {
        match op {
            DiskOp::Write { op, segment, offset, buffer, len, sync } => {
                assert!(sync, "all that is appended here is synced");
                let bytes = &buffer.as_slice()[..len];
                self.files.write(segment, offset, bytes).expect("the disk works");
                self.complete(op, DiskDone::Written { buffer });
            }
            DiskOp::Prepare { op, segment, recycle } => self.files.prepare(op, segment, recycle),
            other => panic!("not needed for synced appends: {other:?}"),
        }
    }
}

/// One writer, one append at a time.
pub struct Log(Bench);

impl Log {
    /// An empty log in a directory of its own under `parent`.
    pub fn new(parent: &Path, groups: usize, batch: usize) -> io::Result<Self> {
        Bench::new(parent, groups, batch, WalConfig::default().depth).map(Self)
    }
}

impl Side for Log {
    fn name(&self) -> String {
        "ringraft".into()
    }

    fn step(&mut self) -> u64 {
        let bench = &mut self.0;
        let (end, count) = bench.append();
        while bench.wal.durable() < end {
            bench.poll_files();
            let now = bench.now();
            let mut ops = std::mem::take(&mut bench.ops);
            bench.wal.flush(now, &mut ops);
            let idle = ops.is_empty();
            for op in ops.drain(..) {
                bench.carry_out(op);
            }
            bench.ops = ops;
            if idle {
                bench.wait_for_file();
            }
        }
        count
    }

    fn rest(&mut self) {
        self.0.make_spares();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::default_parent;

    #[test]
    fn a_step_is_durable_when_it_returns_and_rests_recycle_the_segments() {
        let mut log = Log::new(&default_parent(), 2, 1000).unwrap();
        for _ in 0..3 {
            for _ in 0..1000 {
                log.step();
            }
            assert_eq!(log.0.wal.durable(), log.0.wal.staged());
            log.rest();
        }
        assert!(log.0.wal.stats().recycled > 0, "{:?}", log.0.wal.stats());
        assert_eq!(log.0.wal.stats().flushes, 3000);
    }
}
