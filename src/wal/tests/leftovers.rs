//! What damage, and losses of power beside it, leave lying about: pieces that look like a log and are
//! none. Each story was found by the simulator.

use super::disk::{Disk, Image};
use super::rot::{is_rot, settled};
use super::story::{ME, Story, block, small};
use crate::ids::{GroupId, Index, LogStart, Lsn, Tick};
use crate::wal::{DiskOp, Recovered, SegmentNo, Verdict, Wal, recover, recover_from};

/// Everything staged is written and synced.
fn write_all(wal: &mut Wal, disk: &mut Disk) {
    let end = wal.sync();
    while wal.durable() < end {
        let mut ops = Vec::new();
        wal.flush(Tick(1), &mut ops);
        disk.issue(&mut ops);
        let (op, done) = disk.complete(0);
        let _ = wal.complete(Tick(1), op, Ok(done)).unwrap();
    }
}

fn shows(recovered: &Recovered) -> String {
    format!("{:?}", recovered.groups)
}

#[test]
fn a_header_whose_first_flush_was_torn_hides_no_damage_behind_it() {
    let (_, mut image) = settled(6);
    let first = *image.0.keys().next().unwrap();
    image.0.get_mut(&first).unwrap()[..512].fill(7);
    let mut recovered = recover(small(), ME, &mut image).unwrap();
    assert!(is_rot(&recovered), "the log has to begin anew");
    let before = shows(&recovered);
    let mut wal = Wal::resume(small(), ME, 9, &mut recovered);
    let mut disk = Disk::from_image(small(), image);
    let mut ops = Vec::new();
    while disk.at_risk.is_empty() {
        wal.flush(Tick(1), &mut ops);
        disk.issue(&mut ops);
        if disk.at_risk.is_empty() {
            let (op, done) = disk.complete(0);
            let _ = wal.complete(Tick(1), op, Ok(done)).unwrap();
        }
    }
    // Power fails during the first write: of it the sector with the segment's header survives.
    let again = recover(small(), ME, &mut disk.image(|_, sector| sector == 0)).unwrap();
    assert!(is_rot(&again), "{:?}", again.verdict);
    assert_eq!(shows(&again), before, "terms and votes are still there");
}

#[test]
fn what_a_new_beginning_replaced_is_kept_until_the_beginning_is_durable() {
    let (_, mut image) = settled(6);
    let first = *image.0.keys().next().unwrap();
    image.0.get_mut(&first).unwrap()[..512].fill(7);
    let mut wal = Wal::resume(small(), ME, 9, &mut recover(small(), ME, &mut image).unwrap());
    let mut disk = Disk::from_image(small(), image);
    write_all(&mut wal, &mut disk);
    // The process was killed before it heard of that: all of it may lie in the disk's cache.
    let mut image = disk.image(|_, _| false);
    let mut recovered = recover(small(), ME, &mut image).unwrap();
    assert!(!is_rot(&recovered) && recovered.spares.contains(&first));
    let end = recovered.end;
    let mut wal = Wal::resume(small(), ME, 10, &mut recovered);
    let mut disk = Disk::from_image(small(), image);
    let mut used_again = false;
    while !used_again {
        let mut ops = Vec::new();
        wal.flush(Tick(1), &mut ops);
        used_again = ops.iter().any(|op| matches!(op, DiskOp::Prepare { recycle: Some(_), .. }));
        assert!(!used_again || wal.durable() >= end, "{ops:?} at {}", wal.durable());
        disk.issue(&mut ops);
        if !used_again {
            let (op, done) = disk.complete(0);
            let _ = wal.complete(Tick(1), op, Ok(done)).unwrap();
        }
    }
}

/// A log of which three flushes lie in the first segment, and the place of the third.
fn three_flushes() -> (Story, Lsn) {
    let mut story = Story::new(small(), 3);
    for _ in 0..2 {
        story.append(GroupId(0), &[40], false, true);
        story.settle();
    }
    let third = story.wal.durable();
    story.append(GroupId(0), &[40], false, true);
    story.settle();
    (story, third)
}

#[test]
fn a_flush_that_comes_back_does_not_bring_back_the_end_that_was_given_up() {
    let (story, third) = three_flushes();
    let mark = story.wal.durable();
    let whole = story.disk.image(|_, _| false);
    // A stray write covers the third flush, in the disk's cache.
    let mut hidden = whole.clone();
    hidden.0.get_mut(&SegmentNo(1)).unwrap()[(third.0 - 8192) as usize..][..512].fill(3);
    let mut recovered = recover_from(small(), ME, &mut hidden, mark).unwrap();
    assert!(is_rot(&recovered) && recovered.end == third);
    let mut wal = Wal::resume(small(), ME, 9, &mut recovered);
    let mut disk = Disk::from_image(small(), hidden);
    for index in 3..=5 {
        let _ = wal.append(GroupId(0), &[block(GroupId(0), 8, index, 40, 7)], false, true);
        write_all(&mut wal, &mut disk);
    }
    // Power fails: the stray write is gone, and what it covered is there again.
    let mut image = disk.image(|_, _| false);
    image.0.insert(SegmentNo(1), whole.0[&SegmentNo(1)].clone());
    let found = recover_from(small(), ME, &mut image, mark).unwrap();
    assert_eq!((&found.verdict, found.end), (&Verdict::Clean, wal.durable()));
    let group = &found.groups[&GroupId(0)];
    assert_eq!((group.last, group.last_term().0), (Index(5), 8), "{group:?}");
}

/// A log of one group over some segments, whose first files are gone as if they had been released.
fn headless() -> (Image, GroupId) {
    let group = GroupId(0);
    let mut story = Story::new(small(), 4);
    for _ in 0..60 {
        story.append(group, &[400], false, true);
        story.settle();
    }
    let mut image = story.disk.image(|_, _| false);
    for no in 1..=2 {
        image.0.remove(&SegmentNo(no)).expect("the story needs some segments");
    }
    (image, group)
}

#[test]
fn entries_without_their_front_are_dropped_unless_a_snapshot_makes_up_for_it() {
    let (mut image, group) = headless();
    let mut recovered = recover(small(), ME, &mut image).unwrap();
    let first = recovered.groups[&group].first;
    assert!(first > Index(1) && recovered.verdict == Verdict::Clean, "{recovered:?}");
    let state = recovered.groups[&group].hard_state;

    let start = LogStart { index: first.prev(), ..LogStart::default() };
    recovered.groups.get_mut(&group).unwrap().start = Some(start);
    assert!(recovered.drop_headless(|_| Index::ZERO).is_empty(), "the log says so");
    recovered.groups.get_mut(&group).unwrap().start = None;
    assert_eq!(
        recovered.drop_headless(|_| first.prev()),
        [group],
        "nothing was rotten: it should say so"
    );
    let left = &recovered.groups[&group];
    assert_eq!((left.last, left.terms.len(), left.hard_state.term), (Index::ZERO, 0, state.term));
    assert!(left.hard_state.commit < first);

    // The log takes the entries anew, from the first one on, and keeps them.
    let mut wal = Wal::resume(small(), ME, 9, &mut recovered);
    let mut disk = Disk::from_image(small(), image);
    let _ = wal.append(group, &[block(group, 9, 1, 40, 7)], false, true);
    write_all(&mut wal, &mut disk);
    let mut found = recover(small(), ME, &mut disk.image(|_, _| false)).unwrap();
    assert!(found.drop_headless(|_| Index::ZERO).is_empty());
    let group = &found.groups[&group];
    assert_eq!((group.first, group.last, group.last_term().0), (Index(1), Index(1), 9));
}
