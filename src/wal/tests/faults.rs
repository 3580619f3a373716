//! The disk says no: failed writes, syncs and reads, a full disk, the limit of the log.

use super::disk::{Disk, Image};
use super::story::{ME, Story, block, small};
use crate::checksum;
use crate::ids::{GroupId, HardState, Index, Lsn, NodeId, Term, Tick};
use crate::wal::{
    Completed, DiskErrorKind, DiskOp, LogIdentity, NEVER, ReadError, Space, Wal, WalConfig,
    WalError, recover,
};

const SYNCED: GroupId = GroupId(2);
const UNSYNCED: GroupId = GroupId(3);

fn kind_of(op: &DiskOp) -> usize {
    match op {
        DiskOp::Write { .. } => 0,
        DiskOp::Sync { .. } => 1,
        DiskOp::Prepare { .. } => 2,
        DiskOp::Read { .. } => 3,
    }
}

/// Runs a story in which the `nth` operation of `kind` fails; `None` when there were fewer.
fn run_with_failure(kind: usize, nth: usize) -> Option<Story> {
    let mut story = Story::new(small(), 11);
    let mut seen = 0;
    for step in 0..400 {
        let group = if step % 3 == 0 { SYNCED } else { UNSYNCED };
        story.append(group, &[200], false, group == SYNCED);
        story.now = story.now.plus(10);
        story.flush();
        while let Some(op) = story.disk.ops.first() {
            if kind_of(op) == kind {
                seen += 1;
                if seen > nth {
                    let error = story.fail(0, DiskErrorKind::Io).unwrap_err();
                    assert!(matches!(error, WalError::Poisoned { .. }));
                    return Some(story);
                }
            }
            let _ = story.complete(0);
            if story.rng.chance(40) {
                break;
            }
        }
    }
    None
}

#[test]
fn eio_on_every_nth_operation_stops_all_promises_and_loses_none() {
    for kind in 0..3 {
        let mut nth = 0;
        while let Some(mut story) = run_with_failure(kind, nth) {
            let marks = (story.wal.durable(), story.wal.written());
            assert_eq!(story.wal.append(SYNCED, &[block(SYNCED, 1, 1, 8, 0)], false, true), NEVER);
            let state = HardState { term: Term(9), ..HardState::default() };
            assert_eq!(story.wal.hard_state(SYNCED, state), NEVER);
            let mut ops = Vec::new();
            story.wal.flush(Tick(1 << 40), &mut ops);
            assert!(ops.is_empty(), "a poisoned log asks for nothing");
            while !story.disk.ops.is_empty() {
                let (op, done) = story.disk.complete(0);
                let _ = story.wal.complete(Tick(1), op, Ok(done)).unwrap();
            }
            assert_eq!((story.wal.durable(), story.wal.written()), marks, "no mark moves again");
            assert!(story.wal.poisoned().is_some());
            assert_eq!(story.wal.deadline(), Tick(u64::MAX));
            let mut image = story.disk.image(|_, _| false);
            story.check_image(&mut image, marks.0);
            nth += 1;
        }
        assert!(nth > 5, "operation kind {kind} came {nth} times");
    }
}

/// Turns until no write is in flight; a prepare stays under way.
fn drain_writes(story: &mut Story) {
    story.flush();
    while let Some(at) = story.disk.ops.iter().position(|op| kind_of(op) == 0) {
        let _ = story.complete(at);
        story.flush();
    }
}

/// Appends synced records of 400 bytes while there is room; how many.
fn fill(story: &mut Story) -> usize {
    for n in 0..1000 {
        if story.wal.room() < 500 {
            return n;
        }
        story.append(SYNCED, &[400], false, true);
        drain_writes(story);
    }
    panic!("the log never fills");
}

#[test]
fn a_full_disk_makes_the_log_read_only_keeps_a_reserve_for_votes_and_resumes() {
    let mut story = Story::new(small(), 1);
    for _ in 0..2 {
        story.flush();
        let _ = story.complete(0);
    }
    // Two files are there. The third does not fit on the disk.
    for _ in 0..20 {
        story.append(SYNCED, &[400], false, true);
        drain_writes(&mut story);
        if let Some(at) = story.disk.ops.iter().position(|op| kind_of(op) == 2) {
            let _ = story.fail(at, DiskErrorKind::NoSpace).unwrap();
            break;
        }
    }
    fill(&mut story);
    assert!(matches!(story.wal.space(), Space::NoSpace { .. }), "{:?}", story.wal.space());
    assert!(story.wal.poisoned().is_none());
    let lsn = story.new_term(SYNCED);
    drain_writes(&mut story);
    assert!(story.wal.durable() >= lsn, "a vote still fits, in the reserve");
    // Before the second has passed nothing is tried; then the segment comes.
    assert!(story.wal.deadline() <= story.now.plus(1_000_000));
    story.now = story.now.plus(1_000_000);
    story.flush();
    let at = story.disk.ops.iter().position(|op| kind_of(op) == 2).expect("tried again");
    let _ = story.complete(at);
    assert_eq!(story.wal.space(), Space::Ok);
    assert!(story.wal.room() > 1000);
    story.append(SYNCED, &[400], false, true);
    story.settle();
    let promised = story.wal.durable();
    let mut image = story.disk.image(|_, _| false);
    story.check_image(&mut image, promised);
}

#[test]
fn at_the_limit_of_files_the_log_is_read_only_until_a_release_gives_room() {
    let config = WalConfig { segments_max: 4, ..small() };
    let mut story = Story::new(config, 1);
    story.new_term(UNSYNCED);
    story.settle();
    for round in 0..20 {
        while story.wal.room() >= 500 {
            story.append(SYNCED, &[400], false, true);
            story.settle();
        }
        assert_eq!(story.wal.space(), Space::LimitReached, "round {round}");
        let last = story.last(SYNCED);
        story.release(SYNCED, last);
        story.settle();
        story.settle();
        assert!(story.wal.room() >= 500, "round {round}: released segments are used again");
    }
    assert!(story.wal.stats().recycled >= 20);
    let promised = story.wal.durable();
    let mut image = story.disk.image(|_, _| false);
    assert!(image.0.len() <= 4);
    let recovered = story.check_image(&mut image, promised);
    let state = recovered.groups[&UNSYNCED].hard_state;
    assert_eq!(state, story.latest[&UNSYNCED].state, "an idle group's vote outlives its segment");
}

#[test]
fn a_read_that_fails_or_finds_rot_is_its_own_misfortune() {
    let mut story = Story::new(small(), 1);
    story.append(SYNCED, &[400, 16], false, true);
    story.settle();
    let mut ops = Vec::new();
    story.wal.read(SYNCED, Index(1), Index(2), 1000, 7, &mut ops).unwrap();
    story.disk.issue(&mut ops);
    match story.fail(0, DiskErrorKind::Io).unwrap() {
        Completed::FetchFailed { token: 7, error: ReadError::Disk(_), .. } => {}
        other => panic!("{other:?}"),
    }
    let mut image = story.disk.image(|_, _| false);
    image.0.values_mut().next().unwrap()[512 + 64 + 16 + 70] ^= 4;
    story.disk = Disk::from_image(small(), image);
    story.wal.read(SYNCED, Index(1), Index(2), 1000, 8, &mut ops).unwrap();
    story.disk.issue(&mut ops);
    match story.complete(0) {
        Completed::FetchFailed { token: 8, error: ReadError::Rot { index, .. }, .. } => {
            assert_eq!(index, Index(1));
        }
        other => panic!("{other:?}"),
    }
    assert!(story.wal.poisoned().is_none());
}

#[test]
fn another_nodes_log_another_version_or_other_sizes_are_refused_by_name() {
    let mut story = Story::new(small(), 1);
    story.append(SYNCED, &[8], false, true);
    story.settle();
    let image = story.disk.image(|_, _| false);
    let refused = |config, me| recover(config, me, &mut image.clone()).unwrap_err();
    let stranger = LogIdentity { disk: 6, ..ME };
    let error = refused(small(), stranger);
    assert!(matches!(error, WalError::Identity { what: "disk id", found: 5, expected: 6, .. }));
    let error = refused(WalConfig { shard: 3, ..small() }, ME);
    assert!(matches!(error, WalError::Identity { what: "shard", .. }));
    let error = refused(WalConfig { segment_bytes: 16 << 10, ..small() }, ME);
    assert!(matches!(error, WalError::Geometry { what: "segment_bytes", found: 8192, .. }));
    let mut newer = image.clone();
    let file = newer.0.values_mut().next().unwrap();
    file[8] = 2;
    let checksum = checksum::crc32c(&file[4..128]);
    file[..4].copy_from_slice(&checksum.to_le_bytes());
    let error = recover(small(), ME, &mut newer).unwrap_err();
    assert!(matches!(error, WalError::Version { found: 2, expected: 1, .. }));
    assert!(error.to_string().contains("start the build that wrote it"));
}

/// A process crash leaves completed writes in the drive's volatile cache. Whoever reads them back
/// and promises more on top of them must sync them first.
///
/// 1. flush 1 is written without sync; the process is killed.
/// 2. the next one reads flush 1 back and logs a vote behind it through O_DSYNC.
/// 3. power fails: were flush 1 not synced in step 2, the vote would lie behind a hole.
#[test]
fn what_a_killed_process_left_unsynced_is_synced_before_anything_after_it_counts() {
    let config = WalConfig { sync_lag_us: 1 << 40, sync_lag_bytes: 1 << 40, ..small() };
    let mut story = Story::new(config, 1);
    story.append(UNSYNCED, &[904, 904, 904], false, false);
    for _ in 0..3 {
        story.flush();
        while !story.disk.ops.is_empty() {
            let _ = story.complete(0);
        }
    }
    let (written, durable) = (story.wal.written(), story.wal.durable());
    assert!(written > durable && story.disk.syncs == 0);
    story.disk.kill();
    let mut recovered = recover(config, ME, &mut story.disk.after_kill()).unwrap();
    assert_eq!(recovered.groups[&UNSYNCED].last, Index(3));
    let mut wal = Wal::resume(config, ME, 2, &mut recovered);
    let vote = HardState { term: Term(4), vote: Some(NodeId(1)), commit: Index(0) };
    let lsn = wal.hard_state(SYNCED, vote);
    assert!(wal.durable() < recovered.end && wal.written() >= recovered.end);
    while wal.durable() < lsn {
        let mut ops = Vec::new();
        wal.flush(Tick(1), &mut ops);
        story.disk.issue(&mut ops);
        let (op, done) = story.disk.complete(0);
        let _ = wal.complete(Tick(1), op, Ok(done)).unwrap();
    }
    let mut image: Image = story.disk.image(|_, _| false);
    let after = recover(config, ME, &mut image).unwrap();
    assert_eq!(after.groups[&SYNCED].hard_state, vote);
    assert_eq!(after.groups[&UNSYNCED].last, Index(3));
    assert!(after.end >= lsn && lsn > Lsn::ZERO);
}
