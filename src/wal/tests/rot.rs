//! Damage below the durable mark is named, never cut away; the table of verdicts is complete.

use super::disk::Image;
use super::story::{ME, Story, small};
use crate::ids::{GroupId, HardState, Index, Lsn, Tick};
use crate::wal::recovery::{Start, TABLE, Tail};
use crate::wal::{Recovered, SegmentNo, Verdict, Wal, recover, recover_from};

/// A log of some segments, all of it durable.
pub fn settled(seed: u64) -> (Story, Image) {
    let mut story = Story::new(small(), seed);
    for n in 0..60 {
        let group = GroupId(n % 4);
        if n % 9 == 0 {
            story.new_term(group);
        }
        story.append(group, &[8 * (n as usize * 7 % 100), 40], n % 11 == 10, n % 2 == 0);
        story.settle();
    }
    let image = story.disk.image(|_, _| false);
    assert!(story.disk.at_risk.is_empty() && image.0.len() > 5);
    (story, image)
}

pub fn is_rot(recovered: &Recovered) -> bool {
    matches!(recovered.verdict, Verdict::Rot { .. })
}

/// What the undamaged log shows.
fn shows(recovered: &Recovered) -> String {
    format!("{:?} {:?}", recovered.end, recovered.groups)
}

#[test]
fn a_flipped_bit_below_the_durable_mark_is_rot_and_never_a_silent_cut() {
    let (story, image) = settled(3);
    let mark = story.wal.durable();
    let whole = recover_from(small(), ME, &mut image.clone(), mark).unwrap();
    assert_eq!(whole.verdict, Verdict::Clean);
    let carried = whole.durable_seen(&image);
    assert!(carried.0 + 2048 >= whole.end.0, "each flush names what was durable before it");
    let (mut rotten, mut harmless) = (0, 0);
    for (no, file) in &image.0 {
        for byte in (0..file.len()).step_by(13) {
            let lsn = Lsn(no.0 * 8192 + byte as u64);
            let mut bad = image.clone();
            bad.0.get_mut(no).unwrap()[byte] ^= 1 << (byte % 8);
            // The boot record remembers the mark: each damage is seen.
            let found = recover_from(small(), ME, &mut bad, mark).unwrap();
            assert!(is_rot(&found) || shows(&found) == shows(&whole), "bit at {no:?} {byte}");
            // Without it, all below the mark that the log itself carries.
            let found = recover(small(), ME, &mut bad).unwrap();
            let named = is_rot(&found) || shows(&found) == shows(&whole);
            assert!(named || lsn >= carried, "bit at {no:?} {byte}");
            if is_rot(&found) { rotten += 1 } else { harmless += 1 }
        }
    }
    assert!(rotten > 500 && harmless > 100, "{rotten} rotten, {harmless} harmless");
}

impl Recovered {
    /// The durable mark that the log itself carries.
    fn durable_seen(&self, image: &Image) -> Lsn {
        recover(small(), ME, &mut image.clone()).unwrap().durable.min(self.end)
    }
}

#[test]
fn a_lost_segment_or_a_lost_header_sector_is_rot() {
    let (story, image) = settled(4);
    let mark = story.wal.durable();
    let numbers: Vec<SegmentNo> = image.0.keys().copied().collect();
    let used = numbers.iter().filter(|no| no.0 * 8192 < mark.0).count();
    for no in &numbers[1..used] {
        let mut gone = image.clone();
        gone.0.remove(no);
        assert!(is_rot(&recover_from(small(), ME, &mut gone, mark).unwrap()), "{no:?} is gone");
    }
    for no in &numbers[..used - 1] {
        let mut bad = image.clone();
        bad.0.get_mut(no).unwrap()[..512].fill(0);
        assert!(is_rot(&recover(small(), ME, &mut bad).unwrap()), "header of {no:?} is gone");
    }
    let mut all = image.clone();
    all.0.values_mut().for_each(|file| file.fill(0));
    assert!(is_rot(&recover_from(small(), ME, &mut all, mark).unwrap()), "zeros everywhere");
}

#[test]
fn a_term_whose_record_is_damaged_is_known_from_the_entries_behind_it() {
    let mut story = Story::new(small(), 6);
    story.append(GroupId(0), &[40], false, true);
    story.settle();
    let hole = story.wal.durable();
    // The vote and its term lie in the flush that is damaged; the next one has an entry of the term.
    story.new_term(GroupId(0));
    story.settle();
    let voted = story.latest[&GroupId(0)].state;
    story.append(GroupId(0), &[40], false, true);
    story.settle();
    story.append(GroupId(0), &[40], false, true);
    story.settle();
    let mut image = story.disk.image(|_, _| false);
    image.0.get_mut(&SegmentNo(1)).unwrap()[(hole.0 - 8192) as usize + 80] ^= 1;
    let recovered = recover(small(), ME, &mut image).unwrap();
    assert!(is_rot(&recovered) && recovered.end == hole);
    let found = &recovered.groups[&GroupId(0)];
    assert_eq!((found.hard_state.term, found.hard_state.vote), (voted.term, None));
    assert_eq!(found.last.0, 1, "the entries themselves are not trusted");
}

#[test]
fn terms_and_votes_behind_the_damage_are_kept_and_logged_again() {
    let mut story = Story::new(small(), 5);
    story.append(GroupId(0), &[40], false, true);
    story.settle();
    let hole = story.wal.durable();
    story.append(GroupId(0), &[40], false, true);
    story.settle();
    story.new_term(GroupId(1));
    story.settle();
    story.append(GroupId(0), &[40], false, true);
    story.settle();
    let mut image = story.disk.image(|_, _| false);
    image.0.get_mut(&SegmentNo(1)).unwrap()[(hole.0 - 8192) as usize + 100] ^= 1;
    let mut recovered = recover(small(), ME, &mut image).unwrap();
    let Verdict::Rot { valid, durable, groups } = &recovered.verdict else {
        panic!("{:?}", recovered.verdict);
    };
    assert!(*valid == hole && durable > valid);
    assert_eq!(*groups, [GroupId(0), GroupId(1)]);
    // The commit index speaks of the log behind the damage and is left there.
    let written = story.latest[&GroupId(1)].state;
    assert!(written.commit > Index::ZERO);
    let vote = HardState { commit: Index::ZERO, ..written };
    assert_eq!(recovered.groups[&GroupId(1)].hard_state, vote);
    assert_eq!(recovered.groups[&GroupId(0)].last.0, 1, "entries behind the hole are not trusted");
    // The next life starts with what was kept.
    let mut wal = Wal::resume(small(), ME, 9, &mut recovered);
    let staged = wal.staged();
    let mut disk = super::disk::Disk::from_image(small(), image);
    while wal.durable() < staged {
        let mut ops = Vec::new();
        wal.flush(Tick(1), &mut ops);
        disk.issue(&mut ops);
        let (op, done) = disk.complete(0);
        let _ = wal.complete(Tick(1), op, Ok(done)).unwrap();
    }
    let again = recover(small(), ME, &mut disk.image(|_, _| false)).unwrap();
    assert_eq!(again.groups[&GroupId(1)].hard_state, vote);
    assert!(!is_rot(&again), "the damage was reported once and the log went on behind it");
}

#[test]
fn a_lost_front_is_rot_and_the_log_can_begin_anew_behind_it() {
    let (_, mut image) = settled(6);
    let first = *image.0.keys().next().unwrap();
    image.0.get_mut(&first).unwrap()[..512].fill(7);
    let mut recovered = recover(small(), ME, &mut image).unwrap();
    assert!(is_rot(&recovered));
    let terms: Vec<_> = recovered.groups.values().map(|group| group.hard_state).collect();
    let mut wal = Wal::resume(small(), ME, 9, &mut recovered);
    let mut disk = super::disk::Disk::from_image(small(), image);
    let staged = wal.staged();
    while wal.durable() < staged {
        let mut ops = Vec::new();
        wal.flush(Tick(1), &mut ops);
        disk.issue(&mut ops);
        let (op, done) = disk.complete(0);
        let _ = wal.complete(Tick(1), op, Ok(done)).unwrap();
    }
    let again = recover(small(), ME, &mut disk.image(|_, _| false)).unwrap();
    assert!(!is_rot(&again));
    assert_eq!(again.groups.values().map(|group| group.hard_state).collect::<Vec<_>>(), terms);
}

#[test]
fn each_combination_of_what_is_seen_matches_exactly_one_row() {
    for start in [Start::NoLog, Start::Found, Start::HeadLost] {
        for short in [false, true] {
            for tail in [Tail::Nothing, Tail::Traces] {
                let fits = TABLE.iter().filter(|rule| {
                    rule.start.is_none_or(|s| s == start)
                        && rule.short.is_none_or(|s| s == short)
                        && rule.tail.is_none_or(|t| t == tail)
                });
                assert_eq!(fits.count(), 1, "{start:?} {short} {tail:?}");
            }
        }
    }
}
