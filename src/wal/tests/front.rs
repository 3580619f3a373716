//! What holds the front of the log, and how it goes.

use bytes::Bytes;

use super::disk::{Disk, Image};
use super::story::{ME, Story, read_back, small};
use crate::ids::{GroupId, Index};
use crate::wal::{DiskError, SegmentNo, SegmentSource, Space, Wal, WalConfig, recover};

const BUSY: GroupId = GroupId(0);
const IDLE: GroupId = GroupId(2);

/// The busy group fills so many segments.
fn fill(story: &mut Story, segments: u64) {
    let through = story.wal.segments.head().0 + segments;
    while story.wal.segments.head() < SegmentNo(through) {
        story.append(BUSY, &[400], false, true);
        story.settle();
    }
}

fn cut(story: &mut Story, group: GroupId) {
    let last = story.last(group);
    story.release(group, last);
    story.settle();
}

/// The idle group's log begins in one segment, both groups' votes lie in the next: the first goes by
/// the busy group's cut, and then nobody has anything to cut any more.
#[test]
fn a_front_that_is_held_by_states_alone_goes_though_nobody_cuts_a_log() {
    let mut story = Story::new(small(), 1);
    for group in [BUSY, IDLE] {
        story.new_term(group);
        story.append(group, &[40], false, true);
    }
    fill(&mut story, 4);
    cut(&mut story, IDLE);
    fill(&mut story, 1);
    cut(&mut story, BUSY);
    fill(&mut story, 2);
    cut(&mut story, BUSY);
    let front = story.wal.front_segment();
    story.settle();
    assert_eq!(story.wal.front_segment(), front, "by itself it stays");
    let bytes_max = small().segment_bytes;
    for _ in 0..4 {
        assert_eq!(story.wal.pinning(bytes_max), [], "no group holds it by entries");
        story.settle();
    }
    assert!(story.wal.log_bytes() <= 2 * bytes_max, "{} bytes", story.wal.log_bytes());
    let promised = story.wal.durable();
    let mut image = story.disk.image(|_, _| false);
    story.check_image(&mut image, promised);
}

/// Each start goes on in a new segment. The log is at its limit, and nobody can cut it.
#[test]
fn at_the_limit_of_files_a_vote_is_logged_after_any_number_of_starts() {
    let config = WalConfig { segments_max: 4, ..small() };
    let mut story = Story::new(config, 1);
    while story.wal.room() >= 500 {
        story.append(BUSY, &[400], false, true);
        story.settle();
    }
    assert_eq!(story.wal.space(), Space::LimitReached);
    for start in 0..5 {
        let mut image = story.disk.image(|_, _| false);
        let mut recovered = recover(config, ME, &mut image).unwrap();
        story.wal = Wal::resume(config, ME, 100 + start, &mut recovered);
        story.disk = Disk::from_image(config, image);
        story.begin_again();
        story.new_term(IDLE);
        story.settle();
        assert_eq!(story.wal.space(), Space::LimitReached, "no more than that");
    }
    // And what makes room is logged as well.
    cut(&mut story, BUSY);
    story.settle();
    assert!(story.wal.room() >= 500);
}

/// Entries that are not committed lie in the front, and no snapshot will ever stand for them.
#[test]
fn entries_that_nobody_can_cut_go_to_the_head_whole_or_not_at_all() {
    let mut story = Story::new(small(), 1);
    story.new_term(IDLE);
    for _ in 0..3 {
        story.append(IDLE, &[200], false, true);
        story.settle();
    }
    fill(&mut story, 3);
    cut(&mut story, BUSY);
    let bytes_max = small().segment_bytes;
    assert_eq!(story.wal.pinning(bytes_max), [IDLE]);
    let blocks = read_back(&mut story.wal, &mut story.disk, IDLE, Index(1));
    assert_eq!(blocks.len(), 3);
    assert!(story.wal.may_log_again(IDLE, Index(1)));
    assert!(story.wal.log_again(IDLE, &blocks));
    // Power fails at every step, and of what is under way nothing, something or all survives.
    let mut steps = 0;
    while story.wal.front_segment() == Some(SegmentNo(1)) || !story.disk.ops.is_empty() {
        story.flush();
        let promised = story.wal.durable();
        for survives in [0, 1, 2] {
            let mut image = story.disk.image(|_, sector| sector % 2 < survives);
            let found = story.check_image(&mut image, promised);
            assert_eq!(found.groups[&IDLE].last, Index(3), "after {steps} steps");
        }
        if !story.disk.ops.is_empty() {
            let _ = story.complete(0);
        }
        steps += 1;
        assert!(steps < 100, "the front stays");
    }
    assert!(story.wal.log_bytes() <= 2 * bytes_max, "{} bytes", story.wal.log_bytes());
    // The log of the group begins within the record that was moved.
    story.release(IDLE, Index(2));
    assert!(story.wal.log_again(IDLE, &blocks[2..]));
    story.settle();
    let promised = story.wal.durable();
    let mut image = story.disk.image(|_, _| false);
    story.check_image(&mut image, promised);
}

/// Files that must not be read beyond their headers.
struct Unread<'a> {
    image: &'a mut Image,
    below: SegmentNo,
}

impl SegmentSource for Unread<'_> {
    fn segments(&self) -> Vec<SegmentNo> {
        self.image.segments()
    }

    fn read(&mut self, no: SegmentNo, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        let header = offset == 0 && len == small().lead();
        assert!(header || no >= self.below, "{no:?} was let go, and is read at {offset}");
        self.image.read(no, offset, len)
    }
}

/// The log lets go of most of its files at once; the next segment says so in its header. A start
/// then reads only what it needs, and uses the others again.
#[test]
fn a_start_does_not_read_segments_that_the_log_has_let_go_of() {
    let config = small();
    let mut story = Story::new(config, 1);
    story.new_term(BUSY);
    fill(&mut story, 6);
    cut(&mut story, BUSY);
    let front = story.wal.front_segment().unwrap_or(story.wal.segments.head());
    assert!(front >= SegmentNo(6), "{front:?}");
    let mut image = story.disk.image(|_, _| false);
    let found = story.check_image(&mut image, story.wal.durable());
    assert_eq!(found.released, 0, "nothing has been written that says so");

    let promised = story.append(BUSY, &[400; 3], false, true);
    story.settle();
    while story.wal.segments.head() == front {
        story.append(BUSY, &[400], false, true);
        story.settle();
    }
    let mut image = story.disk.image(|_, _| false);
    let before = story.check_image(&mut image, promised);
    assert!(before.released >= 4, "{} of {:?}", before.released, image.segments());
    let below = *image.segments().iter().filter(|no| !before.spares.contains(no)).min().unwrap();
    let mut recovered = recover(config, ME, &mut Unread { image: &mut image, below }).unwrap();
    let released: Vec<_> = image.segments().into_iter().filter(|no| *no < below).collect();
    assert_eq!(
        (recovered.released, &recovered.spares[..released.len()]),
        (released.len(), &released[..])
    );

    // They are there to be used again, and nobody misses them.
    let files = image.0.len();
    story.wal = Wal::resume(config, ME, 100, &mut recovered);
    story.disk = Disk::from_image(config, image);
    story.begin_again();
    fill(&mut story, 3);
    assert!(story.wal.stats().recycled >= 3);
    assert_eq!(story.disk.image(|_, _| false).0.len(), files, "no new file was made");
    let promised = story.wal.durable();
    let mut image = story.disk.image(|_, _| false);
    story.check_image(&mut image, promised);
}

/// The header of the segment that says so is there, its first flush is torn: it is not believed, and
/// nothing is missed.
#[test]
fn a_header_whose_first_flush_is_torn_lets_go_of_nothing() {
    let mut story = Story::new(small(), 1);
    story.new_term(BUSY);
    fill(&mut story, 5);
    cut(&mut story, BUSY);
    let head = story.wal.segments.head();
    while story.wal.segments.head() == head {
        story.append(BUSY, &[400], false, true);
        story.settle();
    }
    let mut image = story.disk.image(|_, _| false);
    assert!(recover(small(), ME, &mut image).unwrap().released > 0);
    let lead = small().lead();
    let torn = image.0.get_mut(&story.wal.segments.head()).unwrap();
    torn[lead..lead + 512].fill(0);
    let found = recover(small(), ME, &mut image).unwrap();
    assert_eq!(found.released, 0);
}
