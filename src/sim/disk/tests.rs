//! What a disk may do, one story each.

use super::*;
use crate::block::{Block, BlockKind};
use crate::ids::{GroupId, Index, Lsn, Term};
use crate::wal::{AlignedBuf, BootRecord, LogIdentity, Verdict, Wal, recover};

const S1: SegmentNo = SegmentNo(1);
const S2: SegmentNo = SegmentNo(2);
const LATE: Tick = Tick(1 << 40);

fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 16 << 10,
        block_bytes: 512,
        flush_bytes_max: 4096,
        sync_lag_us: 1000,
        ..WalConfig::default()
    }
}

struct Desk {
    disk: Disk,
    ops: u64,
}

/// A disk and the hand that uses it.
impl Desk {
    /// With segment 1 prepared.
    fn new(seed: u64) -> Self {
        let mut desk = Self { disk: Disk::new(config(), seed), ops: 0 };
        desk.prepare(S1, None);
        desk.finish();
        desk
    }

    fn issue(&mut self, now: u64, op: impl FnOnce(OpId) -> DiskOp) -> OpId {
        self.ops += 1;
        self.disk.issue(Tick(now), &mut vec![op(OpId(self.ops))]);
        OpId(self.ops)
    }

    fn write(&mut self, segment: SegmentNo, offset: u64, bytes: &[u8], sync: bool) -> OpId {
        let mut buffer = AlignedBuf::default();
        buffer.extend(bytes);
        let len = bytes.len();
        self.issue(0, |op| DiskOp::Write { op, segment, offset, buffer, len, sync })
    }

    fn sync(&mut self, segment: SegmentNo) -> OpId {
        self.issue(0, |op| DiskOp::Sync { op, segment })
    }

    fn prepare(&mut self, segment: SegmentNo, recycle: Option<SegmentNo>) -> OpId {
        self.issue(0, |op| DiskOp::Prepare { op, segment, recycle })
    }

    /// Everything under way completes.
    fn finish(&mut self) -> Vec<(OpId, Result<DiskDone, DiskError>)> {
        std::iter::from_fn(|| self.disk.take_due(LATE)).collect()
    }

    fn bytes(&mut self, segment: SegmentNo, offset: u64, len: usize) -> Vec<u8> {
        self.disk.source().read(segment, offset, len).unwrap().to_vec()
    }

    /// The first byte of each of `sectors` sectors.
    fn sectors(&mut self, segment: SegmentNo, sectors: usize) -> Vec<u8> {
        self.bytes(segment, 0, sectors * SECTOR).iter().step_by(SECTOR).copied().collect()
    }
}

#[test]
fn a_synced_write_survives_and_another_does_not() {
    let mut d = Desk::new(1);
    d.write(S1, 0, &[1; 1024], true);
    d.write(S1, 1024, &[2; 1024], false);
    assert_eq!(d.finish().len(), 2);
    assert_eq!(d.sectors(S1, 4), [1, 1, 2, 2], "both are seen while the power is on");
    let cut = d.disk.power_cut(Survival::None);
    assert_eq!((cut.lost_sectors, cut.lost_written, cut.lost_promised), (2, 2, 0));
    assert_eq!(d.sectors(S1, 4), [1, 1, 0, 0]);
}

#[test]
fn a_sync_covers_what_had_completed_when_it_was_issued() {
    let mut d = Desk::new(1);
    d.write(S1, 0, &[1; 512], false);
    d.finish();
    d.sync(S1);
    d.write(S1, 512, &[2; 512], false);
    d.finish();
    assert!(d.disk.is_volatile());
    d.disk.power_cut(Survival::None);
    assert_eq!(d.sectors(S1, 2), [1, 0]);
    d.write(S1, 512, &[3; 512], false);
    d.finish();
    d.sync(S1);
    d.finish();
    assert_eq!(d.disk.power_cut(Survival::None), PowerCut::default());
    assert_eq!(d.sectors(S1, 2), [1, 3]);
}

#[test]
fn a_write_under_way_is_torn_at_sectors_even_through_o_dsync() {
    let (mut torn, mut whole, mut none) = (0, 0, 0);
    for seed in 0..60 {
        let mut d = Desk::new(seed);
        d.write(S1, 0, &[7; 4096], true);
        let cut = d.disk.power_cut(Survival::Mixed);
        assert_eq!((cut.lost_sectors + cut.kept_sectors, cut.lost_written), (8, 0));
        match d.sectors(S1, 8).iter().filter(|byte| **byte == 7).count() {
            0 => none += 1,
            8 => whole += 1,
            _ => torn += 1,
        }
    }
    assert!(torn > 5 && whole > 5 && none > 5, "{torn} {whole} {none}");
}

#[test]
fn a_later_write_may_survive_an_earlier_one() {
    let reordered = (0..40).any(|seed| {
        let mut d = Desk::new(seed);
        d.write(S1, 0, &[1; 512], false);
        d.write(S1, 512, &[2; 512], false);
        d.finish();
        d.disk.power_cut(Survival::Half);
        d.sectors(S1, 2) == [0, 2]
    });
    assert!(reordered);
}

#[test]
fn a_killed_process_leaves_completed_writes_volatile_and_others_in_part() {
    let mut kept = Vec::new();
    for seed in 0..60 {
        let mut d = Desk::new(seed);
        d.write(S1, 0, &[1; 512], false);
        d.finish();
        d.write(S1, 512, &[2; 2048], true);
        d.disk.kill();
        assert_eq!((d.disk.next_due(), d.disk.in_flight()), (Tick(u64::MAX), 0));
        let seen = d.sectors(S1, 5);
        assert_eq!(seen[0], 1, "a kill takes nothing back");
        kept.push(seen[1..].iter().filter(|byte| **byte == 2).count());
        d.disk.power_cut(Survival::None);
        assert_eq!(d.sectors(S1, 5), [0; 5], "but power may still");
    }
    assert!([0, 2, 4].iter().all(|n| kept.contains(n)), "{kept:?}");
}

#[test]
fn a_recycled_segment_shows_its_old_bytes() {
    let mut d = Desk::new(1);
    d.write(S1, 0, &[5; 1024], true);
    d.finish();
    d.prepare(S2, Some(S1));
    d.finish();
    assert_eq!(d.disk.source().segments(), [S2]);
    d.write(S2, 0, &[6; 512], true);
    d.finish();
    assert_eq!(d.sectors(S2, 3), [6, 5, 0]);
}

#[test]
fn a_name_may_be_lost_although_a_killed_process_saw_it() {
    let mut outcomes = Vec::new();
    for seed in 0..60 {
        let mut d = Desk::new(seed);
        d.prepare(S2, Some(S1));
        d.disk.kill();
        let seen = d.disk.source().segments();
        d.disk.power_cut(Survival::None);
        let after = d.disk.source().segments();
        assert_eq!(after, [S1], "the directory was never synced");
        outcomes.push(seen);
    }
    assert!(outcomes.contains(&vec![S1]) && outcomes.contains(&vec![S2]));
    let mut d = Desk::new(1);
    d.prepare(S2, Some(S1));
    d.finish();
    d.disk.power_cut(Survival::None);
    assert_eq!(d.disk.source().segments(), [S2], "a completed one is there for good");
}

#[test]
fn a_file_in_the_making_is_missing_or_short_or_whole_after_a_cut() {
    let mut lengths = Vec::new();
    for seed in 0..80 {
        let mut d = Desk::new(seed);
        d.prepare(S2, None);
        d.disk.power_cut(Survival::Half);
        let there = d.disk.source().segments().contains(&S2);
        lengths.push(there.then(|| d.bytes(S2, 0, 1 << 20).len()));
    }
    let short = lengths.iter().flatten().any(|len| *len > 0 && *len < 16 << 10);
    let all = [None, Some(0), Some(16 << 10)].iter().all(|l| lengths.contains(l));
    assert!(short && all, "{lengths:?}");
}

#[test]
fn a_short_file_is_made_whole_when_it_is_used() {
    for seed in 0..40 {
        let mut d = Desk::new(seed);
        d.prepare(S2, None);
        d.disk.power_cut(Survival::Half);
        if d.disk.source().segments().contains(&S2) {
            d.prepare(SegmentNo(3), Some(S2));
            d.finish();
            assert_eq!(d.bytes(SegmentNo(3), 0, 1 << 20), vec![0; 16 << 10]);
        }
    }
}

#[test]
fn errors_happen_once_or_for_good() {
    let mut d = Desk::new(1);
    let failed = |d: &mut Desk| d.finish().iter().map(|done| done.1.is_err()).collect::<Vec<_>>();
    d.disk.fail(OpClass::Write, Times::Once);
    d.write(S1, 0, &[1; 512], true);
    d.write(S1, 512, &[1; 512], true);
    assert_eq!(failed(&mut d).iter().filter(|f| **f).count(), 1);
    d.disk.fail(OpClass::Read, Times::ForGood);
    for _ in 0..2 {
        d.issue(0, |op| DiskOp::Read { op, segment: S1, offset: 0, len: 512 });
    }
    assert_eq!(failed(&mut d), [true, true]);
    assert!(d.disk.source().read(S1, 0, 512).is_err());
    d.disk.heal();
    assert!(d.disk.source().read(S1, 0, 512).is_ok());
}

#[test]
fn a_full_disk_makes_no_file_but_renames_one() {
    let mut d = Desk::new(1);
    d.disk.fill(true);
    d.prepare(S2, None);
    let (_, result) = d.finish().pop().unwrap();
    assert_eq!(result.unwrap_err().kind, DiskErrorKind::NoSpace);
    assert_eq!(d.disk.source().segments(), [S1]);
    d.prepare(S2, Some(S1));
    assert!(d.finish().pop().unwrap().1.is_ok());
    d.disk.fill_writes(true);
    d.write(S2, 0, &[1; 512], true);
    assert_eq!(d.finish().pop().unwrap().1.unwrap_err().kind, DiskErrorKind::NoSpace);
}

#[test]
fn after_a_failed_sync_a_good_one_says_nothing() {
    let mut d = Desk::new(1);
    d.write(S1, 0, &[1; 512], false);
    d.finish();
    d.disk.fail(OpClass::Sync, Times::Once);
    d.sync(S1);
    assert!(d.finish().pop().unwrap().1.is_err());
    d.sync(S1);
    assert!(d.finish().pop().unwrap().1.is_ok());
    d.disk.power_cut(Survival::None);
    assert_eq!(d.sectors(S1, 1), [0], "the second sync did not bring it to the medium");
}

#[test]
fn operations_complete_in_the_order_of_their_latency_and_a_stall_holds_them_all() {
    let mut d = Desk::new(3);
    d.disk.set_latency(10, 500);
    for n in 0..16 {
        d.write(S1, n * 512, &[1; 512], true);
    }
    let first = d.disk.next_due();
    assert!(first.0 >= 10 && d.disk.take_due(Tick(first.0 - 1)).is_none());
    d.disk.stall_until(Tick(10_000));
    assert_eq!(d.disk.next_due(), Tick(10_000));
    assert!(d.disk.take_due(Tick(9_999)).is_none());
    let order: Vec<u64> = d.finish().iter().map(|(op, _)| op.0).collect();
    assert_eq!(order.len(), 16);
    assert!(!order.is_sorted(), "they overtake each other: {order:?}");
}

#[test]
fn where_syncs_stand_still_writes_go_on() {
    let mut d = Desk::new(3);
    d.disk.set_latency(10, 20);
    d.write(S1, 0, &[1; 512], false);
    d.finish();
    d.sync(S1);
    d.write(S1, 512, &[1; 512], false);
    let before = d.disk.next_due();
    d.disk.stall_syncs_until(Tick(10_000));
    assert_eq!(d.disk.next_due().0.max(before.0), d.disk.next_due().0, "never earlier");
    assert!(d.disk.next_due() < Tick(10_000), "the write");
    assert!(d.disk.take_due(Tick(9_999)).is_some());
    assert_eq!((d.disk.next_due(), d.disk.take_due(Tick(9_999)).is_none()), (Tick(10_000), true));
    d.disk.heal();
    assert!(d.disk.next_due() < Tick(10_000), "until the disk is healed");
    assert_eq!(d.finish().len(), 1);
}

#[test]
fn a_misdirected_write_lands_elsewhere_in_its_segment() {
    for seed in 0..30 {
        let mut d = Desk::new(seed);
        d.disk.misdirect_next_write();
        d.write(S1, 1024, &[9; 1024], seed % 2 == 0);
        assert!(d.finish().pop().unwrap().1.is_ok());
        let m = d.disk.take_misdirected().unwrap();
        assert!(m.meant == 1024 && m.landed != 1024 && m.landed.is_multiple_of(512));
        assert_eq!(d.bytes(S1, m.landed, 1024), [9; 1024]);
        assert!(d.disk.take_misdirected().is_none());
    }
}

#[test]
fn rot_strikes_what_was_synced_and_nothing_else() {
    let mut d = Desk::new(1);
    let mut rng = Rng::new(1);
    assert_eq!(d.disk.rot(&mut rng), None);
    d.write(S1, 0, &[9; 2048], true);
    d.finish();
    for _ in 0..50 {
        let before = d.bytes(S1, 0, 16 << 10);
        let rotten = d.disk.rot(&mut rng).unwrap();
        let after = d.bytes(S1, 0, 16 << 10);
        assert!(rotten.offset + rotten.len <= 2048 && before != after);
        let from = rotten.offset as usize;
        assert_eq!(before[..from], after[..from]);
        let end = from + rotten.len as usize;
        assert_eq!(before[end..], after[end..]);
    }
}

#[test]
fn a_lying_disk_loses_what_it_promised() {
    let mut d = Desk::new(1);
    d.disk.set_honest(false);
    d.write(S1, 0, &[1; 1024], true);
    d.write(S1, 1024, &[2; 512], false);
    d.finish();
    d.sync(S1);
    d.finish();
    let cut = d.disk.power_cut(Survival::None);
    assert_eq!((cut.lost_written, cut.lost_promised), (3, 3));
}

#[test]
fn a_boot_record_that_is_torn_leaves_the_other_slot() {
    let record = |writes| BootRecord {
        identity: ME,
        boot: 1,
        incarnation: crate::ids::Incarnation(writes as u32),
        state: crate::wal::BootState::Running,
        recovering: crate::wal::Suspect::Nothing,
        unsynced: 0,
        voters: Vec::new(),
        others: Vec::new(),
        durable: vec![Lsn(writes * 512); 200],
        epoch: 0,
        writes,
    };
    let mut seen = Vec::new();
    for seed in 0..60 {
        let mut boot = BootFile::new();
        let (slot, bytes) = record(6).encode().unwrap();
        boot.write(slot, &bytes);
        boot.sync();
        let (slot, bytes) = record(7).encode().unwrap();
        boot.write(slot, &bytes);
        boot.power_cut(Survival::Mixed, &mut Rng::new(seed));
        seen.push(BootRecord::decode(boot.bytes()).unwrap().unwrap().writes);
    }
    assert!(seen.contains(&6) && seen.contains(&7));
}

const ME: LogIdentity = LogIdentity { cluster: 7, node: 1, disk: 3 };

/// The log that ships, through lives that end in kills and losses of power.
fn lives(seed: u64) -> (u64, u64) {
    let mut rng = Rng::new(seed);
    let mut disk = Disk::new(config(), seed);
    let (mut cuts, mut promised, mut now) = (0, 0, 0);
    let mut log: Vec<u64> = Vec::new();
    for life in 0..12 {
        let mut found = recover(config(), ME, &mut disk.source()).unwrap();
        assert!(!matches!(found.verdict, Verdict::Rot { .. }), "seed {seed} life {life}");
        let last = found.groups.get(&GroupId(1)).map_or(0, |group| group.last.0);
        assert!(last >= promised, "seed {seed} life {life}: {last} < {promised}");
        log.truncate(last as usize);
        let mut wal = Wal::resume(config(), ME, seed * 100 + life, &mut found);
        let mut ends: Vec<(Lsn, u64)> = Vec::new();
        let mut next = last + 1;
        for _ in 0..rng.below(120) {
            let size = 8 * rng.below(60) as usize;
            let mut block =
                Block::special(GroupId(1), BlockKind::Noop, Bytes::from(vec![life as u8; size]));
            block.stamp(Term(life + 1), Index(next), 0);
            if wal.room() > 4096 {
                ends.push((wal.append(GroupId(1), &[block], false, rng.chance(50)), next));
                next += 1;
            }
            if next > 40 {
                wal.release(GroupId(1), Index(next - 40));
            }
            now += rng.below(300);
            while let Some((op, done)) = disk.take_due(Tick(now)) {
                let _ = wal.complete(Tick(now), op, done).unwrap();
            }
            let mut ops = Vec::new();
            wal.flush(Tick(now), &mut ops);
            disk.issue(Tick(now), &mut ops);
            let safe = ends.iter().rfind(|(lsn, _)| *lsn <= wal.durable());
            promised = safe.map_or(promised, |(_, index)| *index).max(promised);
        }
        let written = ends.iter().rfind(|(lsn, _)| *lsn <= wal.written()).map_or(0, |end| end.1);
        if rng.chance(60) {
            cuts += 1;
            disk.power_cut(Survival::Mixed);
        } else {
            disk.kill();
            let found = recover(config(), ME, &mut disk.source()).unwrap();
            let last = found.groups.get(&GroupId(1)).map_or(0, |group| group.last.0);
            assert!(last >= written, "a kill loses nothing written");
        }
    }
    (cuts, promised)
}

#[test]
fn the_log_keeps_its_promises_on_it() {
    let (mut cuts, mut promised) = (0, 0);
    for seed in 0..60 {
        let (c, p) = lives(seed);
        (cuts, promised) = (cuts + c, promised + p);
    }
    assert!(cuts > 200 && promised > 3000, "{cuts} {promised}");
    assert_eq!(lives(3), lives(3));
}
