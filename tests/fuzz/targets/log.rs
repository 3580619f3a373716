//! Recovery of a log whose bytes were mangled by a short program: the input. With the checksums
//! made true again afterwards, it is the records that lie.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;
use ringraft::block::Block;
use ringraft::checksum::{crc32c, crc32c_append};
use ringraft::ids::{GroupId, HardState, Index, Lsn, NodeId, Term, Tick};
use ringraft::raft::{self, Raft};
use ringraft::shard::restored;
use ringraft::wal::{
    Completed, DiskDone, DiskError, DiskOp, LogIdentity, Recovered, SegmentNo, SegmentSource, Wal,
    WalConfig, recover_from,
};

use super::Tried;
use super::codec::events;
use super::repair::{blocks, get32, get64, put32};
use super::rng::INTERESTING;

const SEGMENT: usize = 8192;
const SECTOR: usize = 512;
const ME: LogIdentity = LogIdentity { cluster: 1, node: 1, disk: 1 };
const REPAIR: u8 = 1;
const REPAIR_BLOCKS: u8 = 2;
const MARK: u8 = 4;

fn config() -> WalConfig {
    WalConfig {
        segment_bytes: SEGMENT as u64,
        block_bytes: SECTOR as u32,
        flush_bytes_max: 4096,
        segments_max: 16,
        ..WalConfig::default()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Image(BTreeMap<SegmentNo, Vec<u8>>);

impl SegmentSource for Image {
    fn segments(&self) -> Vec<SegmentNo> {
        self.0.keys().copied().collect()
    }

    fn read(&mut self, segment: SegmentNo, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        let file = &self.0[&segment];
        let start = (offset as usize).min(file.len());
        Ok(Bytes::copy_from_slice(&file[start..(start + len).min(file.len())]))
    }
}

impl Image {
    /// Carries out everything the log asks for.
    fn settle(&mut self, wal: &mut Wal) -> Vec<Completed> {
        let (mut ops, mut answers) = (Vec::new(), Vec::new());
        for round in 0.. {
            assert!(round < 1000, "the log asks for ever");
            wal.flush(Tick(1), &mut ops);
            if ops.is_empty() {
                return answers;
            }
            for op in std::mem::take(&mut ops) {
                let (op, done) = self.carry_out(op);
                answers.push(wal.complete(Tick(1), op, Ok(done)).expect("the disk is well"));
            }
        }
        answers
    }

    fn carry_out(&mut self, op: DiskOp) -> (ringraft::wal::OpId, DiskDone) {
        match op {
            DiskOp::Write { op, segment, offset, buffer, len, .. } => {
                let file = self.0.get_mut(&segment).expect("it was prepared");
                file[offset as usize..][..len].copy_from_slice(&buffer.as_slice()[..len]);
                (op, DiskDone::Written { buffer })
            }
            DiskOp::Prepare { op, segment, recycle } => {
                let mut file = recycle.and_then(|old| self.0.remove(&old)).unwrap_or_default();
                file.resize(SEGMENT, 0);
                self.0.insert(segment, file);
                (op, DiskDone::Prepared)
            }
            DiskOp::Sync { op, .. } => (op, DiskDone::Synced),
            DiskOp::Read { op, segment, offset, len } => {
                let bytes = self.read(segment, offset, len).expect("from memory");
                (op, DiskDone::Read { bytes })
            }
        }
    }
}

/// Logs of different lives: short; over many segments with truncations; gone on with after a crash.
fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let (mut image, mut wal) = (Image::default(), Wal::create(config(), ME, 5));
        write(&mut image, &mut wal, 1, 4);
        let short = image.clone();
        write(&mut image, &mut wal, 2, 24);
        let long = image.clone();
        let mut recovered = recover_from(config(), ME, &mut image, Lsn::ZERO).expect("sound");
        let mut wal = Wal::resume(config(), ME, 6, &mut recovered);
        for group in (0..3).map(GroupId) {
            wal.release(group, Index(20));
        }
        write(&mut image, &mut wal, 3, 12);
        let images = vec![short, long, image];
        for image in &images {
            let mut repaired = image.clone();
            reseal(&mut repaired, true);
            assert_eq!(&repaired, image, "what is sound needs no repair");
        }
        images
    })
}

/// `rounds` flushes of a term: a vote now and then, blocks of three groups, a truncation.
fn write(image: &mut Image, wal: &mut Wal, term: u64, rounds: u64) {
    static NEXT: std::sync::Mutex<[u64; 3]> = std::sync::Mutex::new([1; 3]);
    let mut next = NEXT.lock().expect("nobody panics here");
    for round in 0..rounds {
        let at = (round % 3) as usize;
        let group = GroupId(at as u32);
        if round < 3 {
            let (vote, commit) = (Some(NodeId(1)), Index(next[at] - 1));
            wal.hard_state(group, HardState { term: Term(term), vote, commit });
        }
        let truncates = round % 7 == 6;
        next[at] -= u64::from(truncates && next[at] > 1);
        let mut block = if truncates { Block::noop(group) } else { events(at as u32, round, 4) };
        block.stamp(Term(term), Index(next[at]), 0);
        next[at] = block.last().next().0;
        wal.append(group, &[block], truncates, round % 2 == 0);
        if round % 4 == 3 {
            let answers = image.settle(wal);
            assert!(answers.iter().all(|done| matches!(done, Completed::Progress)));
        }
    }
    let _ = wal.sync();
    let _ = image.settle(wal);
}

/// Recovers a mangled log, and where that works starts groups on it, reads them and goes on writing.
pub fn log(input: &[u8]) -> Tried {
    let Some((&mode, program)) = input.split_first() else { return Tried::one(false) };
    let (which, program) = program.split_first().unwrap_or((&0, &[]));
    let mut image = images()[*which as usize % images().len()].clone();
    let mut program = Program(program);
    while let Some(()) = program.step(&mut image) {}
    if mode & REPAIR != 0 {
        reseal(&mut image, mode & REPAIR_BLOCKS != 0);
    }
    let high = INTERESTING[mode as usize / 8 % INTERESTING.len()];
    let mark = if mode & MARK != 0 { Lsn(high) } else { Lsn::ZERO };
    let Ok(recovered) = recover_from(config(), ME, &mut image, mark) else {
        return Tried::one(false);
    };
    let taken = recovered.records > 0;
    go_on(image, recovered);
    Tried::one(taken)
}

fn go_on(mut image: Image, mut recovered: Recovered) {
    for (&group, state) in &recovered.groups {
        let mut config = raft::Config::new(
            NodeId(1),
            group,
            (1..=3).map(NodeId).collect(),
            ringraft::ids::Incarnation(2),
        );
        config.seed = 1;
        let restored = restored(state);
        if restored.check().is_err() {
            return;
        }
        Raft::new(config, restored, Tick(1)).check_invariants();
    }
    let groups = recovered.groups.clone();
    let mut wal = Wal::resume(config(), ME, 9, &mut recovered);
    let _ = image.settle(&mut wal);
    for (group, state) in groups {
        for from in [state.first, state.last] {
            let mut ops = Vec::new();
            if wal.read(group, from, state.last, 4096, 1, &mut ops).is_ok() {
                let (op, done) = image.carry_out(ops.remove(0));
                let _ = wal.complete(Tick(1), op, Ok(done));
            }
        }
        let mut block = Block::noop(group);
        block.stamp(Term(u64::MAX / 4), state.last.next(), 0);
        wal.append(group, &[block], false, true);
    }
    let _ = image.settle(&mut wal);
    assert!(wal.durable() <= wal.written());
}

/// The bytes of an input as operations on the files.
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn byte(&mut self) -> Option<usize> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte as usize)
    }

    /// A file, and a place in one of its sectors: headers and records lie near their fronts.
    fn place(&mut self, image: &Image) -> Option<(SegmentNo, usize)> {
        let keys: Vec<_> = image.0.keys().copied().collect();
        let (file, sector, offset) = (self.byte()?, self.byte()?, self.byte()?);
        let file = *keys.get(file % keys.len().max(1))?;
        let length = image.0[&file].len();
        Some((file, (sector % 16 * SECTOR + offset).min(length)))
    }

    fn step(&mut self, image: &mut Image) -> Option<()> {
        let kind = self.byte()?;
        let (no, at) = self.place(image)?;
        let value = self.byte()?;
        let length = image.0[&no].len();
        match kind % 16 {
            0..4 => {
                let number = INTERESTING[value % INTERESTING.len()].to_le_bytes();
                let (at, size) = (at & !3, [4, 8][kind / 16 % 2]);
                super::rng::put(image.0.get_mut(&no)?, at, &number[..size]);
            }
            4..7 => *image.0.get_mut(&no)?.get_mut(at)? ^= 1 << (value % 8),
            7 => *image.0.get_mut(&no)?.get_mut(at)? = value as u8,
            8 => image.0.get_mut(&no)?.truncate(at & !(SECTOR - 1)),
            9 => drop(image.0.remove(&no)),
            10 => {
                let file = image.0.remove(&no)?;
                image.0.insert(SegmentNo(1 + value as u64 % 9), file);
            }
            11 => image.0.get_mut(&no)?[at..length.min(at + 8 * value)].fill(kind as u8 / 16 * 17),
            12 => {
                let number = INTERESTING[value % INTERESTING.len()];
                let file = image.0.remove(&no)?;
                image.0.insert(SegmentNo(number), file);
            }
            _ => {
                let (from, start) = self.place(image)?;
                let source = image.0[&from].clone();
                let (start, at) = (start & !7, at & !7);
                let size = (8 * (1 + value)).min(source.len() - start);
                super::rng::put(image.0.get_mut(&no)?, at, &source[start..start + size]);
            }
        }
        Some(())
    }
}

/// Seeds the checksum of flushes: epoch of the log's life and number of the segment.
fn generation(epoch: u64, segment: u64) -> u32 {
    let mixed =
        (epoch ^ segment.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed >> 32) as u32 | 1
}

/// Makes headers, checksums and the chain of flushes true for whatever the files hold now.
fn reseal(image: &mut Image, with_blocks: bool) {
    let mut chain: Option<u32> = None;
    for (no, file) in &mut image.0 {
        if file.len() < SECTOR || &file[4..8] != b"RRSG" {
            continue;
        }
        if let Some(checksum) = chain {
            put32(file, 96, checksum);
        }
        let sum = crc32c(&file[4..128]);
        put32(file, 0, sum);
        let mut previous = get32(file, 96);
        let mut at = SECTOR;
        while let Some(size) = flush_size(file, at) {
            let flush = &mut file[at..at + size];
            if with_blocks {
                seal_blocks(&mut flush[64..]);
            }
            put32(flush, 32, previous);
            let seed = generation(get64(flush, 40), no.0);
            previous = crc32c_append(seed, &flush[4..]);
            put32(flush, 0, previous);
            at += size.next_multiple_of(SECTOR);
        }
        chain = Some(previous);
    }
}

fn flush_size(file: &[u8], at: usize) -> Option<usize> {
    let header = file.get(at..at + 64)?;
    let size = 64usize.checked_add(get32(header, 8) as usize)?;
    (&header[4..8] == b"RRF1" && at + size <= file.len()).then_some(size)
}

fn seal_blocks(mut records: &mut [u8]) {
    while records.len() >= 16 {
        let size = (get32(records, 0) as usize).min(records.len() - 16);
        let (record, rest) = std::mem::take(&mut records).split_at_mut(16 + size);
        if record[4] == 1 {
            blocks(&mut record[16..]);
        }
        records = rest;
    }
}
