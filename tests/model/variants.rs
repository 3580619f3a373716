//! Which worlds are explored, and which world finds which planted bug.

use super::world::{Disks, World};

/// All worlds, with the number of generated states at which an exploration that is not exhaustive
/// ends. Where there is none every schedule within the bounds is seen. `long`: bounds for a run of
/// minutes.
pub fn worlds(long: bool) -> Vec<(World, Option<usize>)> {
    let three = if long { 3 } else { 2 };
    let bound = Some(if long { 10_000_000 } else { 600_000 });
    vec![
        (one_leader(), None),
        (heartbeats(), None),
        (old_votes(), None),
        (pre_votes(), bound),
        (figure_8(), if long { None } else { bound }),
        (World { messages: three, ..crash() }, if long { bound } else { None }),
        (leader_leaves(), bound),
        (voters_replaced(), bound),
        (replaced_and_forgetful(), bound),
        (reads(), bound),
        (rounds_of_reads(), bound),
        (snapshot_and_entries(), bound),
        (snapshot_over_conflict(), bound),
        (one_loss_one_leader(), None),
        (one_loss(), None),
        (World { messages: three, ..two_losses() }, None),
        (World { messages: three, ..slow_writes() }, bound),
        (three_losses(), bound),
    ]
}

/// Appends of one leader in every order, one of them twice.
pub fn one_leader() -> World {
    let bounds = World::new("one leader");
    World { terms: 1, campaigns: 1, proposals: 2, repeats: 1, disks: Disks::Synced, ..bounds }
}

/// A commit index reaches followers that have something else in their log.
pub fn heartbeats() -> World {
    World { terms: 2, campaigns: 2, beats: 1, disks: Disks::Synced, ..World::new("heartbeats") }
}

/// Elections of two terms, and every message of the first still under way in the second.
pub fn old_votes() -> World {
    let bounds = World::new("old votes");
    World {
        terms: 2,
        campaigns: 3,
        messages: 8,
        dead_letters: true,
        disks: Disks::Synced,
        ..bounds
    }
}

/// The pre-vote over the network, with a leader that steps down for want of a quorum.
pub fn pre_votes() -> World {
    let bounds = World::new("pre-votes");
    World {
        terms: 2,
        campaigns: 2,
        pre_votes: true,
        proposals: 1,
        step_downs: 1,
        disks: Disks::Synced,
        ..bounds
    }
}

/// Figure 8 of the paper: n1, n2, n1, n2 lead one after the other.
pub fn figure_8() -> World {
    let bounds = World::new("figure 8");
    World {
        terms: 4,
        campaigns: 4,
        candidates: &[0, 1, 0, 1],
        messages: 3,
        disks: Disks::Synced,
        ..bounds
    }
}

/// With `wal_sync`: a node starts again and lacks any suffix of what was not yet durable.
pub fn crash() -> World {
    World { terms: 2, campaigns: 2, crashes: 1, ..World::new("crash") }
}

/// One of three voters leaves, the leader too, and somebody campaigns.
pub fn leader_leaves() -> World {
    let bounds = World { terms: 2, campaigns: 2, changes: 1, ..World::new("a voter leaves") };
    World { targets: &[0b110, 0b011], messages: 3, disks: Disks::Synced, ..bounds }
}

/// Voters are replaced by others: n1 alone by n2 alone, or by n2 and n3.
pub fn voters_replaced() -> World {
    let bounds = World { terms: 2, campaigns: 2, changes: 1, ..World::new("voters replaced") };
    World { voters: 0b001, targets: &[0b010, 0b110], messages: 3, disks: Disks::Synced, ..bounds }
}

/// n1 alone is replaced by n2, and starts again without what it had not written.
pub fn replaced_and_forgetful() -> World {
    let bounds = World { name: "replaced and forgetful", crashes: 1, ..voters_replaced() };
    World { campaigns: 3, targets: &[0b010], messages: 2, disks: Disks::Free, ..bounds }
}

/// A world that begins with a leader, for what comes late in a story.
fn led(name: &'static str) -> World {
    World { led: true, disks: Disks::Synced, ..World::new(name) }
}

/// A read at whoever leads or follows, while an entry is committed and somebody else campaigns.
pub fn reads() -> World {
    World { terms: 2, campaigns: 1, proposals: 1, reads: 1, messages: 4, ..led("reads") }
}

/// Reads one after the other, while somebody else campaigns.
pub fn rounds_of_reads() -> World {
    World { terms: 2, campaigns: 1, reads: 2, messages: 4, ..led("rounds of reads") }
}

/// A snapshot is on its way to a follower that the entries reach as well.
pub fn snapshot_and_entries() -> World {
    let bounds = World { terms: 1, proposals: 2, beats: 1, ..led("a snapshot and entries") };
    World { compactions: 1, messages: 6, ..bounds }
}

/// A snapshot comes to a follower that has something else in its log.
pub fn snapshot_over_conflict() -> World {
    let bounds = World { terms: 2, campaigns: 1, ..led("a snapshot over a conflict") };
    World { proposals: 1, beats: 2, compactions: 1, messages: 4, ..bounds }
}

/// Without `wal_sync`: a follower forgets, while the leader goes on.
pub fn one_loss_one_leader() -> World {
    let bounds = World { sync: false, disks: Disks::Written, ..World::new("one loss, one leader") };
    World { terms: 1, campaigns: 1, proposals: 1, repeats: 1, power_losses: 1, ..bounds }
}

/// Without `wal_sync`: a minority forgets, and somebody campaigns.
pub fn one_loss() -> World {
    let bounds = World { sync: false, disks: Disks::Written, ..World::new("one loss") };
    World { terms: 2, campaigns: 2, power_losses: 1, ..bounds }
}

/// Without `wal_sync`: one after the other, both at once, or the same one before it has recovered.
pub fn two_losses() -> World {
    World { name: "two losses", power_losses: 2, ..one_loss() }
}

/// Without `wal_sync`: every node, over three terms.
pub fn three_losses() -> World {
    let bounds = World { name: "three losses", terms: 3, campaigns: 3, ..one_loss() };
    World { power_losses: 3, messages: 2, ..bounds }
}

/// Without `wal_sync`: each write and each sync of the background is a step of its own.
pub fn slow_writes() -> World {
    World { name: "slow writes", disks: Disks::Free, ..one_loss() }
}

/// More of everything than can be explored: walked at random.
pub fn wide(sync: bool) -> World {
    World {
        sync,
        terms: 7,
        campaigns: 8,
        proposals: 4,
        beats: 6,
        step_downs: 1,
        repeats: 4,
        crashes: 2,
        power_losses: 3,
        messages: 10,
        dead_letters: true,
        ..World::new(if sync { "wide, synced" } else { "wide, not synced" })
    }
}

/// Planted bugs that the model must find: where, and within how many generated states.
#[cfg(feature = "mutants")]
pub fn planted() -> Vec<(ringraft::mutants::Mutant, World, usize)> {
    use ringraft::mutants::Mutant::*;
    let two_losses = || World { messages: 2, ..two_losses() };
    vec![
        (NeverRecovering, one_loss(), 200_000),
        (VoteAfterAnyAppend, one_loss_one_leader(), 500_000),
        (LeaveWithoutNonce, one_loss_one_leader(), 500_000),
        (LeaveAtCommitIndex, two_losses(), 1_000_000),
        (CountRecoveringInMajority, two_losses(), 1_000_000),
        (NoEpochBump, two_losses(), 1_000_000),
        (CommitOlderTerm, figure_8(), 1_000_000),
        (VoteTwice, old_votes(), 200_000),
        (VoteWithoutLogCheck, heartbeats(), 200_000),
        (LeaderCountsUndurable, crash(), 200_000),
        (CountOldVotes, old_votes(), 200_000),
        (TruncateOnAnyAppend, one_leader(), 200_000),
        (CommitPastMatched, heartbeats(), 200_000),
        (SingleStepChange, replaced_and_forgetful(), 1_000_000),
        (LeaveJointBeforeCommit, replaced_and_forgetful(), 1_000_000),
        (JointByNewMajority, replaced_and_forgetful(), 1_000_000),
        (ReadWithoutRound, reads(), 1_000_000),
        (OldContextCounts, rounds_of_reads(), 1_000_000),
        (ReadBeforeCommitInTerm, reads(), 1_000_000),
        (InstallKeepsConflict, snapshot_over_conflict(), 1_000_000),
        (InstallDropsNewer, snapshot_and_entries(), 2_000_000),
    ]
}
