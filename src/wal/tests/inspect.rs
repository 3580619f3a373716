//! A log laid open shows what was logged, and where it is damaged.

use std::collections::BTreeMap;

use super::*;
use crate::wal::tests::disk::Image;
use crate::wal::tests::story::{ME, Story, small};

/// A log of some segments, all of it durable.
fn settled() -> (Story, Image) {
    let mut story = Story::new(small(), 9);
    for n in 0..40 {
        let group = GroupId(n % 3);
        if n % 9 == 0 {
            story.new_term(group);
        }
        story.append(group, &[8 * (n as usize * 7 % 100), 40], n % 11 == 10, n % 2 == 0);
        story.settle();
    }
    let image = story.disk.image(|_, _| false);
    (story, image)
}

fn shape(image: &Image) -> LogShape {
    let front = image.0.values().next().unwrap();
    LogShape::read(front).expect("the first segment has a header")
}

#[test]
fn a_segment_says_whose_log_it_is_and_how_it_is_cut() {
    let (_, image) = settled();
    let found = shape(&image);
    assert_eq!(found.identity, ME);
    assert_eq!(found.config.segment_bytes, small().segment_bytes);
    assert_eq!(found.config.block_bytes, small().block_bytes);
    assert_eq!(LogShape::read(&[0; 4096]), None);
    let mut bad = image.0.values().next().unwrap().clone();
    bad[20] ^= 1;
    assert_eq!(LogShape::read(&bad), None, "its checksum does not vouch for it");
}

#[test]
fn every_record_is_shown_once_and_in_its_place() {
    let (story, mut image) = settled();
    let mut last: BTreeMap<GroupId, (Index, HardState)> = BTreeMap::new();
    let (mut flushes, mut records, mut behind) = (0, 0, 0);
    let mut end = Lsn::ZERO;
    let (found, damage) = inspect(&shape(&image), &mut image, Lsn::ZERO, |flush| {
        assert!(flush.lsn >= end, "in the order of the log");
        end = flush.end;
        flushes += 1;
        behind += u64::from(flush.place == Place::Behind);
        for record in &flush.records {
            records += 1;
            assert!(flush.lsn < record.lsn && record.lsn < flush.end);
            let known = last.entry(record.group).or_default();
            match record.content {
                Content::HardState(state) => known.1 = state,
                Content::Blocks { last, .. } => known.0 = last,
                Content::LogStart { start, anew: true } => known.0 = start.index,
                Content::LogStart { .. } => {}
                Content::Unknown => panic!("{record:?}"),
            }
        }
    })
    .unwrap();
    assert_eq!((damage, behind, end), (None, 0, found.end));
    assert_eq!((flushes, records), (found.flushes, found.records));
    for (group, model) in &story.latest {
        let (index, state) = last[group];
        assert_eq!(state, model.state);
        assert_eq!(&index, model.entries.keys().next_back().unwrap_or(&model.start));
    }
}

#[test]
fn a_damaged_record_is_named_with_its_place_its_group_and_whether_it_was_durable() {
    let (story, image) = settled();
    let mut flushes = Vec::new();
    let whole = &mut image.clone();
    inspect(&shape(&image), whole, Lsn::ZERO, |flush| flushes.push(flush.clone())).unwrap();
    for (n, flush) in flushes.iter().enumerate() {
        let mut bad = image.clone();
        let file = bad.0.get_mut(&flush.segment).unwrap();
        // The last byte of the last record: the names of the groups are not hit.
        let at = flush.records.last().unwrap().lsn.since(flush.lsn) + flush.offset + 16;
        file[at as usize] ^= 0x40;
        let mut behind = 0;
        let (_, damage) = inspect(&shape(&image), &mut bad, story.wal.durable(), |flush| {
            behind += usize::from(flush.place == Place::Behind);
        })
        .unwrap();
        let damage = damage.expect("damage is told");
        assert!(damage.was_durable);
        assert_eq!((damage.segment, damage.offset), (flush.segment, flush.offset), "flush {n}");
        let mut groups: Vec<_> = flush.records.iter().map(|record| record.group).collect();
        groups.sort_unstable();
        groups.dedup();
        assert_eq!(damage.groups, groups);
        assert_eq!(behind, flushes.len() - n - 1, "what lies behind it is shown as such");
    }
}
