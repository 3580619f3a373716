//! Snapshots for followers that cannot use them, or that say nothing of them.

use super::world::{Cluster, MS, Setup, block_of};
use crate::machine::register::RegisterMap;

/// Applied entries between two snapshots.
const ENTRIES: u64 = 4;
const SECOND: u64 = 1000 * MS;

/// A cluster and one of its followers, which only a snapshot can help.
struct Story {
    c: Cluster<RegisterMap>,
    leader: usize,
    behind: usize,
    client: usize,
    seq: u64,
}

impl Story {
    fn new() -> Self {
        let mut setup = Setup::new(1);
        let snapshots = &mut setup.shard.snapshots;
        (snapshots.entries, snapshots.interval_us) = (ENTRIES, 0);
        (snapshots.chunk_bytes, snapshots.window_bytes) = (512, 1024);
        let mut c = setup.start_with(|_| RegisterMap::new());
        c.elect();
        let leader = c.leader(0).expect("elected");
        let behind = (leader + 1) % 3;
        c.isolate(behind);
        let client = c.client(leader);
        let mut story = Self { c, leader, behind, client, seq: 0 };
        story.commit(40);
        assert!(story.log_begins() > story.c.applied(behind, 0), "nothing else helps it");
        story
    }

    fn commit(&mut self, count: u64) {
        for _ in 0..count {
            self.seq += 1;
            self.c.submit(self.client, &[block_of(0, 9, self.seq, 0, 1, 2000)]);
            assert!(self.c.answer(self.client).result.is_ok());
        }
    }

    fn log_begins(&self) -> u64 {
        self.c.raft(self.leader, 0).log().start().index.get()
    }

    /// What stays in the leader's log behind its newest snapshot, and what came since.
    fn assert_log_is_short(&self) {
        let last = self.c.raft(self.leader, 0).last_index().get();
        let held = last - self.log_begins();
        assert!(held <= 4 * ENTRIES, "{held} entries are held");
    }

    /// Whether the follower takes what its leader sends.
    fn is_of_another_build(&mut self, other: bool) {
        let shard = self.c.nodes[self.behind].shard.as_mut().expect("up");
        shard.config.snapshots.config_hash = u64::from(other);
    }
}

/// The log would otherwise grow behind the one snapshot that is sent, and that one would stay the
/// one that is sent: the follower never hears of another one.
#[test]
fn a_follower_that_cannot_use_a_snapshot_holds_no_log_and_gets_a_newer_one_when_it_can() {
    let mut story = Story::new();
    story.is_of_another_build(true);
    story.c.heal();
    story.c.run(SECOND);
    story.commit(80);
    story.assert_log_is_short();
    let (leader, behind) = (story.leader, story.behind);
    let refused = story.c.shard(behind).snapshot_stats();
    assert_eq!((refused.installed, refused.failed), (0, 1), "it found out once");
    story.c.run(50 * SECOND);
    let asked = story.c.shard(leader).snapshot_stats().refused;
    assert!((2..=6).contains(&asked), "from time to time: {asked}");
    let again = story.c.shard(behind).snapshot_stats();
    assert_eq!(again.received_bytes, refused.received_bytes, "nothing was sent for nothing");

    story.is_of_another_build(false);
    story.c.run(30 * SECOND);
    assert_eq!(story.c.shard(behind).snapshot_stats().installed, 1);
    story.commit(20);
    story.c.converge();
}

/// One that another build has written may have no word for it: silence is an answer as well.
#[test]
fn a_follower_that_says_nothing_of_a_snapshot_holds_the_log_only_for_a_while() {
    let mut story = Story::new();
    story.c.heal();
    story.c.stick(story.behind, story.leader, true);
    story.c.run(SECOND);
    story.commit(80);
    let begins = story.log_begins();
    assert!(begins < story.seq - 40, "it is waited for: the log begins behind {begins}");
    story.c.run(4 * SECOND);
    story.commit(20);
    story.assert_log_is_short();
    story.c.heal();
    story.c.converge();
    assert!(story.c.shard(story.behind).snapshot_stats().installed > 0);
}
