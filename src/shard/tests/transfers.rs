//! Snapshots whose way to a follower is longer than its link, or a process, lasts (bug 40).

use super::world::{Cluster, MS, Setup};
use crate::block::{Block, BlockBuilder, Command};
use crate::ids::{GroupId, NodeId};
use crate::machine::register::RegisterMap;
use crate::shard::snapshots::SnapshotStats;

const SECOND: u64 = 1000 * MS;
const ENTRIES: u64 = 4;
/// Registers, each of `VALUE_BYTES`: so large is a snapshot, and a newer one is taken after as many
/// bytes of blocks.
const KEYS: u64 = 40;
const VALUE_BYTES: usize = 2000;
const CHUNK: u32 = 4 << 10;
/// What may have to be sent again: what was under way, and a part that was cut short.
const AGAIN: u64 = 3 * CHUNK as u64;

/// A cluster, and one of its followers that only a snapshot can help.
struct Story {
    c: Cluster<RegisterMap>,
    leader: usize,
    behind: usize,
    third: usize,
    client: usize,
    seq: u64,
}

impl Story {
    /// The follower is away and has missed too much.
    fn new() -> Self {
        Self::of(1, |_, _, _| {})
    }

    /// The same with several groups; `adjust` is told which nodes lead and are the third one.
    fn of(groups: u32, adjust: fn(&mut Cluster<RegisterMap>, usize, usize)) -> Self {
        let mut setup = Setup::new(groups);
        let snapshots = &mut setup.shard.snapshots;
        (snapshots.entries, snapshots.interval_us) = (ENTRIES, 0);
        (snapshots.chunk_bytes, snapshots.window_bytes) = (CHUNK, u64::from(CHUNK));
        let mut c = setup.start_with(|_| RegisterMap::new());
        c.elect();
        let leader = c.leader(0).expect("elected");
        let (behind, third) = ((leader + 1) % 3, (leader + 2) % 3);
        adjust(&mut c, leader, third);
        c.isolate(behind);
        let client = c.client(leader);
        let mut story = Self { c, leader, behind, third, client, seq: 0 };
        story.commit(3 * KEYS);
        let begins = story.log_begins();
        assert!(begins > story.c.applied(behind, 0), "nothing else helps it");
        story
    }

    fn commit(&mut self, count: u64) {
        for _ in 0..count {
            self.seq += 1;
            self.c.submit(self.client, &[block_of(0, self.seq)]);
            assert!(self.c.answer(self.client).result.is_ok());
        }
    }

    /// So much that newer snapshots are published.
    fn publish_newer(&mut self) {
        let taken = self.sender().taken;
        self.commit(3 * KEYS);
        assert!(self.sender().taken >= taken + 2);
    }

    /// The follower is back, and gets about a half of a snapshot.
    fn transfer_half(&mut self) {
        self.c.heal();
        let (leader, half) = (self.leader, self.size() / 2);
        self.c.run_until("half of it", SECOND, |c| {
            c.shard(leader).snapshot_stats().sent_bytes >= half
        });
        assert_eq!(self.receiver().installed, 0, "the other half is still to come");
    }

    fn until_installed(&mut self) {
        let behind = self.behind;
        self.c.run_until("it is installed", 20 * SECOND, |c| {
            c.is_up(behind) && c.shard(behind).snapshot_stats().installed > 0
        });
    }

    /// Of the leader's newest snapshot.
    fn size(&self) -> u64 {
        self.c.shard(self.leader).groups[0].snapshot.size
    }

    fn newest(&self) -> u64 {
        self.c.shard(self.leader).groups[0].snapshot.start.index.get()
    }

    fn sender(&self) -> SnapshotStats {
        self.c.shard(self.leader).snapshot_stats()
    }

    fn receiver(&self) -> SnapshotStats {
        self.c.shard(self.behind).snapshot_stats()
    }

    fn log_begins(&self) -> u64 {
        self.c.raft(self.leader, 0).log().start().index.get()
    }

    /// It holds what came since its newest snapshot, and nothing for anybody else.
    fn assert_log_is_short(&self) {
        let held = self.c.raft(self.leader, 0).last_index().get() - self.log_begins();
        assert!(held <= 2 * KEYS, "{held} entries are held");
    }

    /// All are level by that one snapshot, and nobody has a file but its newest snapshot.
    fn ends_well(&mut self) {
        self.commit(1);
        self.c.converge();
        self.c.run(SECOND);
        assert_eq!(self.receiver().installed, 1, "the log went on from it");
        for node in [self.leader, self.behind] {
            let newest = self.c.shard(node).groups[0].snapshot.start.index;
            assert_eq!(self.c.nodes[node].files.names(), [format!("g0-{newest}.snap")]);
        }
    }
}

/// One register gets a new value.
fn block_of(group: u32, seq: u64) -> Block {
    let (key, value) = ((seq % KEYS).to_le_bytes(), vec![seq as u8; VALUE_BYTES]);
    let mut builder = BlockBuilder::default();
    let command = Command { kind: 1, flags: 0, timestamp: 0, key: &key, value: &value };
    builder.push(&command).expect("within the limits of a block");
    builder.finish(GroupId(group), 9, seq, 0)
}

#[test]
fn a_transfer_goes_on_where_its_link_broke_though_newer_snapshots_were_published() {
    let mut story = Story::new();
    story.transfer_half();
    let (size, offered) = (story.size(), story.newest());
    story.c.isolate(story.behind);
    story.publish_newer();
    assert_eq!(story.c.nodes[story.leader].files.names().len(), 2, "the newest and the kept one");
    assert!(story.log_begins() <= offered, "and the log behind that");
    story.c.run(8 * SECOND);
    let held = story.receiver().received_bytes;
    story.c.heal();
    story.until_installed();
    let seen = story.sender();
    assert_eq!((seen.resumed, seen.resumed_bytes), (1, held));
    assert!(seen.sent_bytes <= size + AGAIN, "{seen:?} of {size}");
    story.ends_well();
}

#[test]
fn a_link_that_never_lasts_for_a_whole_transfer_brings_one_in_the_end() {
    let mut story = Story::new();
    let size = story.size();
    let mut breaks = 0;
    loop {
        story.c.heal();
        story.c.run(3 * MS / 2);
        if story.receiver().installed > 0 {
            break;
        }
        story.c.isolate(story.behind);
        story.commit(KEYS);
        breaks += 1;
        assert!(breaks < 50, "it is never installed: {:?}", story.sender());
    }
    let seen = story.sender();
    assert!(breaks >= 3 && seen.resumed >= 2, "{seen:?} after {breaks} breaks");
    assert!(seen.sent_bytes <= size + breaks * AGAIN, "{seen:?} of {size}");
    story.ends_well();
}

#[test]
fn a_follower_that_begins_anew_goes_on_with_its_part() {
    let mut story = Story::new();
    story.transfer_half();
    let (size, received) = (story.size(), story.receiver().received_bytes);
    story.c.kill(story.behind);
    story.publish_newer();
    story.c.run(SECOND);
    story.c.boot(story.behind);
    story.until_installed();
    let seen = story.sender();
    assert!(seen.resumed == 1 && seen.resumed_bytes + AGAIN >= received, "{seen:?}, {received}");
    assert!(seen.sent_bytes <= size + AGAIN, "{seen:?} of {size}");
    story.ends_well();
}

#[test]
fn a_leader_that_begins_anew_and_leads_again_goes_on_with_its_newest() {
    let mut story = Story::new();
    story.transfer_half();
    let (size, received) = (story.size(), story.receiver().received_bytes);
    // Nobody else could lead.
    story.c.kill(story.third);
    story.c.kill(story.leader);
    story.c.boot(story.leader);
    story.until_installed();
    let seen = story.sender();
    assert_eq!(story.c.leader(0), Some(story.leader));
    assert_eq!((seen.resumed, seen.resumed_bytes), (1, received));
    assert_eq!(seen.sent_bytes, size - received, "by this process");
    story.c.boot(story.third);
    story.client = story.c.client(story.leader);
    story.ends_well();
}

/// What is kept is not kept for ever: neither the file, nor the log, nor the part of it.
#[test]
fn a_follower_that_is_away_for_too_long_is_sent_the_newest_from_its_beginning() {
    let mut story = Story::new();
    story.transfer_half();
    let (old, begins) = (story.size(), story.log_begins());
    let part = story.c.nodes[story.behind].files.names();
    assert!(part.len() == 1 && part[0].ends_with(".part"), "{part:?}");
    story.c.isolate(story.behind);
    story.publish_newer();
    story.c.run(11 * SECOND);
    assert_eq!(story.c.nodes[story.leader].files.names().len(), 1, "the newest");
    assert!(story.log_begins() > begins);
    story.assert_log_is_short();
    story.c.heal();
    story.until_installed();
    let seen = story.sender();
    assert_eq!((seen.resumed, seen.resumed_bytes), (0, 0));
    assert!(seen.sent_bytes >= story.size() + old / 2, "{seen:?}");
    story.ends_well();
}

/// A link that comes and goes, and never brings a word, is as good as none.
#[test]
fn a_follower_that_comes_and_goes_without_a_word_holds_the_log_no_longer() {
    let mut story = Story::new();
    story.transfer_half();
    let begins = story.log_begins();
    for _ in 0..12 {
        story.c.isolate(story.behind);
        story.commit(KEYS);
        story.c.run(SECOND / 2);
        story.c.heal();
        story.c.stick(story.behind, story.leader, true);
        story.c.run(SECOND / 2);
    }
    assert!(story.log_begins() > begins, "twelve seconds are over");
    story.c.run(4 * SECOND);
    story.commit(KEYS + 2 * ENTRIES);
    story.assert_log_is_short();
    story.c.heal();
    story.until_installed();
    story.ends_well();
}

#[test]
fn a_follower_that_had_all_of_it_when_the_link_broke_needs_nothing_kept() {
    let mut story = Story::new();
    story.c.heal();
    story.until_installed();
    story.c.isolate(story.behind);
    let sent = story.sender().sent_bytes;
    story.publish_newer();
    assert_eq!(story.c.nodes[story.leader].files.names().len(), 2, "who knows how far it is?");
    story.c.heal();
    story.c.run(SECOND);
    assert_eq!(story.sender().sent_bytes, sent);
    story.ends_well();
}

/// The third has kept all of its log, and leads: nobody offers the follower what it has a part of.
#[test]
fn a_part_goes_when_the_log_makes_up_for_it() {
    let mut story = Story::of(1, |c, _, third| {
        let shard = c.nodes[third].shard.as_mut().expect("up");
        shard.config.snapshots.entries = 0;
    });
    story.transfer_half();
    story.c.kill(story.behind);
    story.c.kill(story.leader);
    story.c.boot(story.behind);
    let (behind, third) = (story.behind, story.third);
    assert_eq!(story.c.nodes[behind].files.names().len(), 1, "the part is kept");
    story.c.elect();
    assert_eq!(story.c.leader(0), Some(third));
    story.c.converge();
    story.c.run(SECOND);
    assert_eq!(story.receiver().installed, 0);
    assert!(story.c.nodes[behind].files.names().iter().all(|name| !name.ends_with(".part")));
}

/// Heartbeats to the follower wait behind what is under way to it, of whatever group.
#[test]
fn the_transfers_to_one_follower_share_a_window() {
    let mut story = Story::of(4, |_, _, _| {});
    let Story { behind, .. } = story;
    // Others lead by now what it led.
    story.c.run(2 * SECOND);
    for group in 1..4 {
        let leader = story.c.leader(group).expect("elected");
        let client = story.c.client(leader);
        for seq in 1..=3 * KEYS {
            story.c.submit(client, &[block_of(group, seq)]);
            assert!(story.c.answer(client).result.is_ok());
        }
    }
    story.c.heal();
    let (to, mut parts_max) = (NodeId(behind as u32 + 1), 0);
    story.c.run_until("all of them", 20 * SECOND, |c| {
        for leader in (0..3).filter(|&node| node != behind) {
            let under_way = c.shard(leader).under_way_to(to);
            assert!(under_way <= u64::from(CHUNK), "{under_way} bytes");
        }
        let names = c.nodes[behind].files.names();
        parts_max = parts_max.max(names.iter().filter(|name| name.ends_with(".part")).count());
        c.shard(behind).snapshot_stats().installed == 4
    });
    assert!(parts_max >= 3, "they take turns, {parts_max} at a time");
    story.c.converge();
}
