//! Sizes, edges and orders: every flush size, rotation at every offset, completions out of order,
//! reads, limits.

use bytes::Bytes;

use super::disk::Image;
use super::story::{ME, Story, block, read_back, small};
use crate::block::{BLOCK_BYTES_MAX, Block, BlockKind, HEADER_BYTES};
use crate::ids::{GroupId, HardState, Index, Lsn, NodeId, Term, Tick};
use crate::membership::Membership;
use crate::wal::{DiskOp, LogIdentity, ReadError, Wal, WalConfig, WalConfigError, recover};

const G: GroupId = GroupId(2);

fn check(story: &mut Story) {
    let promised = story.wal.durable();
    let mut image: Image = story.disk.image(|_, _| false);
    let recovered = story.check_image(&mut image, promised);
    let expected: Vec<_> = story.latest[&G].entries.values().cloned().collect();
    assert_eq!(read_back(&mut story.wal, &mut story.disk, G, Index(1)), expected);
    assert_eq!(recovered.groups[&G].last, story.last(G));
}

#[test]
fn every_flush_size_from_the_smallest_to_two_blocks_comes_back() {
    for block_bytes in [512, 4096] {
        let config = WalConfig {
            block_bytes,
            segment_bytes: 16 * u64::from(block_bytes),
            flush_bytes_max: 4 * block_bytes,
            ..small()
        };
        for size in (0..=2 * block_bytes as usize + 16).step_by(8) {
            let mut story = Story::new(config, size as u64);
            story.append(G, &[size], false, true);
            story.settle();
            story.append(G, &[8], false, true);
            story.settle();
            check(&mut story);
        }
    }
}

#[test]
fn the_log_rotates_at_every_offset() {
    // A segment has 15 blocks for flushes. Fill all but `left` of them, then come with a record
    // that just fits, just does not, or is far from either.
    for left in 0..=15_usize {
        for size in [0, 8, 512 - 152, 512 - 144, 512 - 136, 1024 - 144, 1024 - 136, 1800] {
            let mut story = Story::new(small(), 1);
            for _ in left..15 {
                story.append(G, &[8], false, true);
                story.settle();
            }
            story.append(G, &[size], false, size % 16 == 0);
            story.append(G, &[24, 24], false, false);
            story.settle();
            check(&mut story);
        }
    }
}

#[test]
fn flush_7_completes_before_flush_6_and_nothing_is_acknowledged() {
    let mut story = Story::new(WalConfig { depth: 8, ..small() }, 1);
    story.append(G, &[8], false, true);
    story.settle();
    let before = story.wal.durable();
    let mut ends = Vec::new();
    for _ in 0..7 {
        ends.push(story.append(G, &[8], false, true));
        story.flush();
    }
    assert_eq!(story.disk.ops.len(), 7, "seven flushes in flight");
    let _ = story.complete(6);
    assert_eq!((story.wal.durable(), story.wal.written()), (before, before));
    for done in 0..5 {
        let at = story.disk.ops.iter().enumerate().min_by_key(|(_, op)| op.id()).unwrap().0;
        let _ = story.complete(at);
        assert!(story.wal.durable() >= ends[done] && story.wal.durable() < ends[done + 1]);
    }
    let _ = story.complete(0);
    assert!(story.wal.durable() >= ends[6], "flush 6 brings flush 7 with it");
    assert_eq!(story.disk.syncs, 0, "synced writes need no fdatasync");
}

#[test]
fn what_is_staged_while_the_disk_is_busy_becomes_one_flush() {
    let mut story = Story::new(WalConfig { depth: 1, ..small() }, 1);
    story.append(G, &[8], false, true);
    story.settle();
    let flushes = story.wal.stats().flushes;
    story.append(G, &[8], false, true);
    story.flush();
    for group in 10..15 {
        story.append(GroupId(group), &[8], false, group == 12);
        story.flush();
        assert_eq!(story.disk.ops.len(), 1, "depth is 1");
    }
    let _ = story.complete(0);
    story.flush();
    assert!(matches!(story.disk.ops[0], DiskOp::Write { sync: true, .. }));
    let _ = story.complete(0);
    assert_eq!(story.wal.stats().flushes - flushes, 2);
    assert!(story.wal.durable() >= story.wal.staged());
}

#[test]
fn a_lingering_flush_goes_out_when_its_time_comes_or_when_a_vote_joins_it() {
    let mut story = Story::new(WalConfig { linger_us: 50, ..small() }, 1);
    story.new_term(G);
    story.settle();
    story.append(G, &[8], false, true);
    story.now = Tick(1000);
    story.flush();
    assert!(story.disk.ops.is_empty());
    assert_eq!(story.wal.deadline(), Tick(1050));
    story.now = Tick(1050);
    story.flush();
    assert_eq!(story.disk.ops.len(), 1);
    let _ = story.complete(0);
    story.append(G, &[8], false, true);
    story.flush();
    assert!(story.disk.ops.is_empty());
    story.new_term(G);
    story.flush();
    assert_eq!(story.disk.ops.len(), 1, "votes never queue behind a delay");
}

#[test]
fn unsynced_bytes_are_synced_behind_by_age_and_a_membership_entry_by_itself() {
    let mut story = Story::new(WalConfig { sync_lag_us: 100, ..small() }, 1);
    story.append(G, &[8], false, true);
    story.settle();
    story.append(G, &[8], false, false);
    story.now = Tick(500);
    story.flush();
    let _ = story.complete(0);
    assert!(story.wal.written() > story.wal.durable());
    assert_eq!(story.wal.stats().unsynced_since, Some(Tick(500)));
    assert_eq!((story.wal.deadline(), story.disk.syncs), (Tick(600), 0));
    story.now = Tick(600);
    story.flush();
    let _ = story.complete(0);
    assert_eq!((story.wal.written(), story.disk.syncs), (story.wal.durable(), 1));
    assert_eq!(story.wal.deadline(), Tick(u64::MAX), "nothing left to do");
    let mut body = Vec::new();
    Membership::of_voters(vec![NodeId(1)]).encode(&mut body);
    let mut change = Block::special(G, BlockKind::Membership, Bytes::from(body));
    change.stamp(Term(1), Index(3), 0);
    story.wal.append(G, &[change], false, false);
    story.flush();
    assert!(matches!(story.disk.ops[0], DiskOp::Write { sync: true, .. }), "R1");
    let _ = story.complete(0);
    story.wal.append(G, &[block(G, 2, 3, 8, 1)], true, false);
    story.flush();
    assert!(matches!(story.disk.ops[0], DiskOp::Write { sync: true, .. }), "a truncation, too");
}

#[test]
fn reads_say_what_is_missing_what_is_early_and_keep_to_their_budget() {
    let mut story = Story::new(small(), 1);
    let mut ops = Vec::new();
    let mut read =
        |story: &mut Story, from: u64| story.wal.read(G, Index(from), Index(99), 100, 1, &mut ops);
    story.append(G, &[800, 800, 800, 800], false, true);
    assert_eq!(read(&mut story, 1), Err(ReadError::NotYet(Index(1))));
    story.settle();
    assert_eq!(read(&mut story, 5), Err(ReadError::NotFound(Index(5))));
    assert_eq!(read(&mut story, 0), Err(ReadError::NotFound(Index(0))));
    read(&mut story, 2).unwrap();
    story.disk.issue(&mut ops);
    match story.complete(0) {
        crate::wal::Completed::Fetched { blocks, .. } => {
            assert_eq!(blocks.len(), 1, "at least one, and no more than the budget");
            assert_eq!(blocks[0].first(), Index(2));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_segment_stays_while_a_read_of_it_is_under_way() {
    let mut story = Story::new(WalConfig { segments_max: 4, ..small() }, 1);
    story.append(G, &[1000], false, true);
    story.settle();
    let mut ops = Vec::new();
    story.wal.read(G, Index(1), Index(1), 100, 1, &mut ops).unwrap();
    for _ in 0..14 {
        story.append(G, &[1000], false, true);
        story.settle();
    }
    let last = story.last(G);
    story.release(G, last);
    story.settle();
    story.settle();
    assert_eq!(story.wal.stats().recycled, 0, "the lowest segment is being read");
    story.disk.issue(&mut ops);
    assert!(matches!(story.complete(0), crate::wal::Completed::Fetched { .. }));
    story.settle();
    story.settle();
    assert!(story.wal.room() > 8000);
}

#[test]
fn the_largest_block_goes_through_the_default_log_and_small_segments_are_refused() {
    let config = WalConfig::default();
    assert_eq!(config.check(), Ok(()));
    let tight = WalConfig { segment_bytes: 1 << 20, ..config };
    assert!(matches!(tight.check(), Err(WalConfigError::SegmentTooSmall { .. })));
    assert!(matches!(small().check(), Err(WalConfigError::SegmentTooSmall { .. })));
    let me = LogIdentity { cluster: 1, node: 1, disk: 1 };
    let mut wal = Wal::create(config, me, 1);
    let big = block(G, 1, 1, BLOCK_BYTES_MAX - HEADER_BYTES, 7);
    let next = block(G, 1, 2, 5000, 7);
    wal.append(G, &[big, next], false, true);
    let mut ops = Vec::new();
    wal.flush(Tick(0), &mut ops);
    let prepare = ops.remove(0).id();
    assert!(ops.is_empty(), "nothing is written before the segment is there");
    let _ = wal.complete(Tick(0), prepare, Ok(crate::wal::DiskDone::Prepared)).unwrap();
    wal.flush(Tick(0), &mut ops);
    let lens: Vec<_> = ops
        .iter()
        .filter_map(|op| match op {
            DiskOp::Write { len, buffer, .. } => {
                assert_eq!(buffer.as_slice().as_ptr() as usize % 4096, 0);
                Some(*len)
            }
            _ => None,
        })
        .collect();
    assert_eq!(lens, [4096 + BLOCK_BYTES_MAX + 4096, 8192], "the large one alone");
}

#[test]
fn a_caller_sees_when_too_much_is_staged() {
    let mut wal = Wal::create(
        WalConfig { staged_bytes_max: 3000, ..small() },
        LogIdentity { cluster: 1, node: 1, disk: 1 },
        1,
    );
    assert!(wal.has_capacity());
    let before = wal.staged();
    let lsn = wal.append(G, &[block(G, 1, 1, 1000, 0), block(G, 1, 2, 1000, 0)], false, false);
    assert!(wal.has_capacity() && lsn > before && lsn == wal.staged());
    wal.append(G, &[block(G, 1, 3, 1000, 0)], false, false);
    assert!(!wal.has_capacity());
    assert_eq!((wal.durable(), wal.written()), (Lsn(8192), Lsn(8192)));
}

#[test]
fn a_caller_sees_when_what_is_staged_waits_too_long_for_the_disks_pace() {
    let config = WalConfig { depth: 1, staged_age_max_us: 1000, ..small() };
    let (mut story, mut ops) = (Story::new(config, 1), Vec::new());
    for _ in 0..3 {
        story.append(G, &[1504], false, true);
    }
    // Prepares the segment, then writes one flush after the other, each for 800 us.
    let mut seen = Vec::new();
    for turn in 0..4 {
        let now = Tick(1 + 800 * turn);
        if turn > 0 {
            let is_write = |op: &DiskOp| matches!(op, DiskOp::Write { .. });
            let at = story.disk.ops.iter().position(is_write).unwrap_or(0);
            let (op, done) = story.disk.complete(at);
            let _ = story.wal.complete(now, op, Ok(done)).unwrap();
        }
        assert!(story.wal.has_capacity() || turn > 2, "a disk that does nothing is not late");
        story.wal.flush(now, &mut ops);
        story.disk.issue(&mut ops);
        seen.push(story.wal.has_capacity());
    }
    assert_eq!(seen, [true, true, false, true], "the last one has nobody behind it");
}

#[test]
#[should_panic(expected = "contiguous")]
fn an_append_that_leaves_a_gap_is_refused() {
    let mut story = Story::new(small(), 1);
    story.append(G, &[8], false, false);
    story.wal.append(G, &[block(G, 1, 3, 8, 0)], false, false);
}

/// The record wanders to the head as often as its segment is wanted back; what lay before it does not.
#[test]
fn nothing_of_a_group_is_left_behind_the_record_of_its_end() {
    let (mut story, other) = (Story::new(small(), 3), GroupId(5));
    story.new_term(G);
    story.append(G, &[104, 104], false, true);
    story.settle();
    let end = story.wal.end_group(G);
    story.settle();
    assert!(story.wal.durable() >= end);
    assert!(story.wal.edge_at_most(G, Index(u64::MAX / 2)).is_none());
    for _ in 0..200 {
        story.append(other, &[800], false, true);
        story.settle();
        story.release(other, story.last(other).prev());
    }
    story.settle();
    assert!(story.wal.log_bytes() < 8 * small().segment_bytes, "nothing holds old segments");
    let found = recover(small(), ME, &mut story.disk.image(|_, _| false)).expect("it is whole");
    let known = &found.groups[&G];
    assert_eq!((known.hard_state, known.last), (HardState::ENDED, Index::ZERO));
    assert!(known.terms.is_empty() && known.start.is_none());
}
