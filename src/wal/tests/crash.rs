//! Images of power cuts and kills: a recorded run, cut at each of its steps.

use super::disk::{Disk, Image, Rng, Unsafe};
use super::story::{ME, Story, block, read_back, small};
use crate::ids::{GroupId, Index, Lsn, Tick};
use crate::wal::{DiskOp, Wal, recover};

const GROUPS: u64 = 5;

/// Sectors that are at risk now.
fn sectors(disk: &Disk) -> usize {
    disk.at_risk.iter().map(|write| write.data.len() / 512).sum()
}

/// Images of a power cut at this moment: nothing, everything, each prefix and each suffix of the
/// unsynced sectors (torn at 512 bytes), and random sectors and random writes (reordered).
fn power_cuts(story: &mut Story, dense: bool) -> Vec<Image> {
    let total = sectors(&story.disk);
    let mut rng = Rng::new(story.rng.next());
    let mut images = Vec::new();
    let step = if dense { 1 } else { (total / 3).max(1) };
    for cut in (0..=total).step_by(step) {
        let mut n = 0;
        images.push(story.disk.image(|_, _| {
            n += 1;
            n <= cut
        }));
        let mut n = 0;
        images.push(story.disk.image(|_, _| {
            n += 1;
            n > cut
        }));
    }
    if total > 0 {
        for percent in [50, 85] {
            images.push(story.disk.image(|_, _| rng.chance(percent)));
            let kept: Vec<_> = story.disk.at_risk.iter().map(|_| rng.chance(percent)).collect();
            let at = |write: &Unsafe| {
                story.disk.at_risk.iter().position(|other| std::ptr::eq(other, write)).unwrap()
            };
            images.push(story.disk.image(|write, _| kept[at(write)]));
        }
    }
    images.into_iter().map(|image| story.disk.with_prepare(image, &mut rng)).collect()
}

/// The recovered log takes new records, gives the old ones back, and survives the next crash.
fn goes_on(story: &mut Story, image: Image) {
    let config = story.config;
    let mut image = image;
    let mut recovered = recover(config, ME, &mut image).unwrap();
    let mut wal = Wal::resume(config, ME, recovered.end.0 ^ 0x55, &mut recovered);
    let mut disk = Disk::from_image(config, image);
    let model = story.model_at(&recovered);
    for (group, found) in recovered.groups.iter().filter(|(_, found)| found.last > Index::ZERO) {
        let blocks = read_back(&mut wal, &mut disk, *group, found.first);
        let expected: Vec<_> = model[group].entries.range(found.first..).map(|(_, b)| b).collect();
        assert!(blocks.iter().eq(expected), "{group:?} reads back what it logged");
    }
    let group = GroupId(1);
    let last = recovered.groups.get(&group).map_or(Index::ZERO, |found| found.last);
    let lsn = wal.append(group, &[block(group, 99, last.0 + 1, 8, 1)], false, true);
    run_until_durable(&mut wal, &mut disk, lsn);
    let mut image = disk.image(|_, _| false);
    let again = recover(config, ME, &mut image).unwrap();
    assert!(again.end >= lsn, "durable after the restart, found after the next one");
    assert_eq!(again.groups[&group].last, last.next());
    for (other, found) in recovered.groups.iter().filter(|(other, _)| **other != group) {
        assert_eq!(again.groups[other].hard_state, found.hard_state);
        assert_eq!(again.groups[other].last, found.last);
    }
}

fn run_until_durable(wal: &mut Wal, disk: &mut Disk, lsn: Lsn) {
    while wal.durable() < lsn {
        let mut ops = Vec::new();
        wal.flush(Tick(1), &mut ops);
        disk.issue(&mut ops);
        let (op, done) = disk.complete(0);
        let _ = wal.complete(Tick(1), op, Ok(done)).unwrap();
    }
}

#[test]
fn ten_thousand_crash_images_recover_what_was_acknowledged() {
    let (mut images, mut recycled, mut kills, mut resumed) = (0, 0, 0, 0);
    for seed in 0..4 {
        let mut story = Story::new(small(), seed);
        for step in 0..900 {
            story.step(GROUPS);
            let durable = story.wal.durable();
            for mut image in power_cuts(&mut story, step % 3 == 0) {
                story.check_image(&mut image, durable);
                images += 1;
                if images % 4 == 0 {
                    goes_on(&mut story, image);
                    resumed += 1;
                }
            }
            // A kill leaves completed writes, and the others half done.
            let written = story.wal.written();
            let mut rng = Rng::new(story.rng.next());
            for percent in [0, 50, 100] {
                let done = |write: &Unsafe, _| write.completed || rng.chance(percent);
                let mut killed = story.disk.image(done);
                story.check_image(&mut killed, written);
                kills += 1;
            }
        }
        recycled += story.wal.stats().recycled;
    }
    eprintln!("{images} power cuts, {kills} kills, {resumed} resumed, {recycled} files recycled");
    assert!(images >= 10_000, "only {images} images");
    assert!(recycled >= 50, "stale content must lie under the new: {recycled}");
}

#[test]
fn power_fails_again_while_the_node_recovers_from_the_first_cut() {
    for seed in 100..130 {
        let mut story = Story::new(small(), seed);
        for _ in 0..200 {
            story.step(GROUPS);
        }
        // Three lives, each cut short: what was durable in one is there in all that follow.
        let mut rng = Rng::new(seed);
        let mut promised = story.wal.durable();
        let mut image = story.disk.image(|_, _| rng.chance(50));
        let mut next = 0;
        for life in 0..3 {
            let mut recovered = story_recover(&story, &mut image, promised);
            let group = GroupId(40);
            next = recovered.groups.get(&group).map_or(0, |found| found.last.0).max(next);
            let mut wal = Wal::resume(story.config, ME, seed + life, &mut recovered);
            let mut disk = Disk::from_image(story.config, image);
            let found = recovered.groups.get(&group).map_or(0, |found| found.last.0);
            assert_eq!(found, next, "acknowledged in an earlier life");
            let lsn = wal.append(group, &[block(group, 1, found + 1, 64, 3)], false, true);
            let cut = rng.below(6);
            for _ in 0..cut {
                let mut ops: Vec<DiskOp> = Vec::new();
                wal.flush(Tick(1), &mut ops);
                disk.issue(&mut ops);
                if !disk.ops.is_empty() {
                    let at = rng.below(disk.ops.len() as u64) as usize;
                    let (op, done) = disk.complete(at);
                    let _ = wal.complete(Tick(1), op, Ok(done)).unwrap();
                }
            }
            if wal.durable() >= lsn {
                next = found + 1;
            }
            promised = promised.max(wal.durable());
            image = disk.image(|_, _| rng.chance(50));
            let seen = recover(story.config, ME, &mut image.clone()).unwrap();
            next = next.max(seen.groups.get(&group).map_or(0, |found| found.last.0));
        }
    }
}

fn story_recover(story: &Story, image: &mut Image, promised: Lsn) -> crate::wal::Recovered {
    let recovered = recover(story.config, ME, image).unwrap();
    let rot = matches!(recovered.verdict, crate::wal::Verdict::Rot { .. });
    assert!(!rot && recovered.end >= promised, "{:?}", recovered.verdict);
    recovered
}

#[test]
fn control_on_a_disk_that_ignores_sync_an_acknowledged_record_is_seen_lost() {
    let mut lost = 0;
    for seed in 0..4 {
        let mut story = Story::new(small(), seed);
        story.disk.honest = false;
        for _ in 0..150 {
            story.step(GROUPS);
            let mut image = story.disk.image(|_, _| false);
            let recovered = recover(story.config, ME, &mut image).unwrap();
            lost += u64::from(recovered.groups.is_empty() && story.wal.durable() > Lsn(8192));
        }
    }
    assert!(lost > 0, "a harness that cannot see a loss proves nothing");
}
