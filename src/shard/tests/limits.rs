//! Full queues, full disks, a failed disk, and the way out.

use super::machine::Ledger;
use super::world::{Cluster, MS, Setup, block, block_of, frames};
use crate::block::Block;
use crate::ids::{GroupId, NodeId};
use crate::wal::{DiskErrorKind, DiskOp, WalError};
use crate::wire::client::{Answer, Consistency, Refused, write_query};

fn led(setup: Setup) -> (Cluster<Ledger>, usize, usize) {
    let mut c = setup.start();
    c.elect();
    c.converge();
    let leader = c.leader(0).expect("elected");
    let client = c.client(leader);
    (c, leader, client)
}

fn blocks(seqs: std::ops::RangeInclusive<u64>, bytes: usize) -> Vec<Block> {
    seqs.map(|seq| block_of(0, 9, seq, seq as u32 - 1, 1, bytes)).collect()
}

/// The sequence numbers that were refused with `why`, and those that were committed.
fn sort(answers: &[Answer], why: Refused) -> (Vec<u64>, Vec<u64>) {
    let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.result.is_ok());
    assert!(bad.iter().all(|a: &&Answer| a.result == Err(why)), "{bad:?}");
    let seqs = |answers: Vec<&Answer>| answers.iter().map(|a| a.seq).collect();
    (seqs(bad), seqs(good))
}

/// What was taken on is applied once, what was refused never.
fn exactly(c: &Cluster<Ledger>, refused: &[u64], taken: &[u64]) {
    for i in (0..3).filter(|&i| c.is_up(i)) {
        assert!(taken.iter().all(|&seq| c.machine(i, 0).times(9, seq) == 1), "node {i}");
        assert!(refused.iter().all(|&seq| c.machine(i, 0).times(9, seq) == 0), "node {i}");
    }
}

/// Submits 1..=`count` against held disks, and gives what was refused at once and what came later.
fn overrun(c: &mut Cluster<Ledger>, client: usize, count: u64, bytes: usize) -> (usize, usize) {
    (0..3).for_each(|i| c.hold_disk(i));
    for block in blocks(1..=count, bytes) {
        c.submit(client, &[block]);
        c.run(MS / 10);
    }
    c.run(10 * MS);
    let (refused, early) = sort(&c.answers(client), Refused::Busy);
    assert!(early.is_empty(), "nothing is durable");
    (0..3).for_each(|i| c.release_disk(i));
    c.run(500 * MS);
    let (late, taken) = sort(&c.answers(client), Refused::Busy);
    assert!(late.is_empty(), "who was not refused at once is served");
    assert_eq!(refused.len() + taken.len(), count as usize, "each hears once");
    c.converge();
    exactly(c, &refused, &taken);
    (refused.len(), taken.len())
}

#[test]
fn a_connection_with_too_many_blocks_under_way_is_busy_and_loses_none() {
    let mut setup = Setup::new(1);
    setup.shard.client_blocks_max = 4;
    let (mut c, _, client) = led(setup);
    assert_eq!(overrun(&mut c, client, 10, 50), (6, 4));
}

#[test]
fn a_group_with_too_many_uncommitted_bytes_is_busy_and_loses_none() {
    let mut setup = Setup::new(1);
    setup.shard.raft.uncommitted_bytes_max = 4096;
    let (mut c, _, client) = led(setup);
    let (refused, taken) = overrun(&mut c, client, 20, 1000);
    assert!(taken == 3 && refused == 17, "{taken} taken");
}

#[test]
fn a_log_with_too_much_staged_is_busy_and_loses_none() {
    let mut setup = Setup::new(1);
    (setup.wal.depth, setup.wal.staged_bytes_max) = (1, 8 << 10);
    let (mut c, _, client) = led(setup);
    let (refused, taken) = overrun(&mut c, client, 30, 1000);
    assert!(refused >= 18 && taken >= 8, "{taken} taken");
}

#[test]
fn one_turn_does_not_take_on_more_than_the_log_has_room_for() {
    let mut setup = Setup::new(1);
    setup.wal.staged_bytes_max = 8 << 10;
    let (mut c, leader, client) = led(setup);
    c.hold_disk(leader);
    c.submit(client, &blocks(1..=60, 1000));
    c.turn(leader);
    let (refused, _) = sort(&c.answers(client), Refused::Busy);
    assert!((50..=52).contains(&refused.len()), "{} refused", refused.len());
}

#[test]
fn a_follower_takes_on_no_more_in_one_turn_than_its_log_has_room_for() {
    let mut setup = Setup::new(1);
    setup.wal.staged_bytes_max = 8 << 10;
    let (mut c, leader, client) = led(setup);
    let peer = (leader + 1) % 3;
    c.stick(leader, peer, true);
    for round in 0..3 {
        c.submit(client, &blocks(1 + round * 6..=6 + round * 6, 1000));
        c.run(10 * MS);
    }
    let (refused, taken) = sort(&c.answers(client), Refused::Busy);
    assert_eq!((refused.len(), taken.len()), (0, 18));
    // All of it reaches the follower between two of its turns.
    let (now, before) = (c.now, c.raft(peer, 0).last_index());
    let id = NodeId(peer as u32 + 1);
    let bytes = std::mem::take(c.nodes[leader].shard.as_mut().unwrap().peer_egress(id).unwrap());
    let shard = c.nodes[peer].shard.as_mut().unwrap();
    for frame in frames(&bytes) {
        assert_eq!(shard.peer_frame(now, NodeId(leader as u32 + 1), frame), Ok(()));
    }
    assert_eq!(c.raft(peer, 0).last_index(), before.plus(12), "a second frame goes a little over");
    assert!(c.shard(peer).stats().appends_held_back > 0);
    c.heal();
    c.converge();
    exactly(&c, &[], &taken);
}

#[test]
fn what_can_never_be_taken_is_refused_with_the_reason() {
    let mut setup = Setup::new(1);
    setup.shard.block_bytes_max = 4096;
    let (mut c, leader, client) = led(setup);
    let mut result = |block: Block| {
        c.submit(client, &[block]);
        c.answer(client).result.unwrap_err()
    };
    assert_eq!(result(block_of(0, 9, 1, 0, 1, 5000)), Refused::TooLarge);
    assert_eq!(result(block(1, 9, 1)), Refused::NoGroup);
    assert_eq!(result(Block::noop(GroupId(0))), Refused::BadRequest);
    let torn = block(0, 9, 1).body().slice(..40);
    assert_eq!(result(Block::from_body(GroupId(0), 1, 9, 1, 0, torn)), Refused::BadRequest);
    assert_eq!(result(block_of(0, 9, 1, 9000, 1, 8)), Refused::BadRequest);
    assert_eq!(c.shard(leader).stats().proposals_refused(), 4);
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let mut setup = Setup::new(1);
    setup.shard.client_egress_bytes_max = 128 << 10;
    let (mut c, leader, client) = led(setup);
    c.clients[client].deaf = true;
    let conn = 1 << 32 | client as u64;
    let mut question = Vec::new();
    write_query(&mut question, 1, GroupId(0), Consistency::Stale, b"long");
    let question = frames(&question).pop().unwrap();
    for asked in 0..40 {
        let shard = c.nodes[leader].shard.as_mut().unwrap();
        assert_eq!(shard.client_may_send(conn), asked < 2, "after {asked}");
        // The runtime may have read more before it stops: that is answered in a few bytes.
        c.give(client, question.clone()).unwrap();
    }
    let egress = c.nodes[leader].shard.as_mut().unwrap().client_egress(conn).unwrap();
    assert!(egress.len() < 256 << 10, "{} bytes wait", egress.len());
}

#[test]
fn a_peer_whose_socket_is_stuck_holds_back_nobody_and_no_memory() {
    let mut setup = Setup::new(4);
    setup.shard.peer_egress_bytes_max = 64 << 10;
    let (mut c, leader, client) = led(setup);
    let peer = (leader + 1) % 3;
    c.stick(leader, peer, true);
    for seq in 1..=300 {
        c.submit(client, &[block_of(0, 9, seq, 0, 1, 2000)]);
        assert!(c.answer(client).result.is_ok());
    }
    c.run(60_000 * MS);
    let id = NodeId(peer as u32 + 1);
    let waiting = c.nodes[leader].shard.as_mut().unwrap().peer_egress(id).unwrap().len();
    assert!(waiting <= 192 << 10, "{waiting} bytes wait for the peer");
    c.stick(leader, peer, false);
    c.converge();
    exactly(&c, &[], &(1..=300).collect::<Vec<_>>());
}

#[test]
fn draining_sends_clients_elsewhere_and_ends_when_the_rest_is_durable() {
    for sync in [true, false] {
        let mut setup = Setup::new(1);
        setup.shard.wal_sync = sync;
        let (mut c, leader, client) = led(setup);
        c.submit(client, &[block(0, 9, 1)]);
        c.nodes[leader].shard.as_mut().unwrap().drain();
        c.submit(client, &[block(0, 9, 2)]);
        assert!(!c.shard(leader).is_quiet());
        c.run(300 * MS);
        let answers = c.answers(client);
        let of = |seq| answers.iter().find(|a| a.seq == seq).expect("an answer").result;
        // Committed here, or on its way to whoever leads now, who is named.
        for seq in [1, 2] {
            let result = of(seq);
            let elsewhere = matches!(result, Err(Refused::Busy | Refused::NotLeader(Some(_))));
            assert!(result.is_ok() || elsewhere, "{result:?}");
        }
        assert_ne!(c.leader(0), Some(leader));
        let shard = c.shard(leader);
        assert!(shard.is_quiet());
        assert_eq!(shard.wal().durable(), shard.wal().staged());
    }
}

#[test]
fn after_the_logs_first_error_nothing_is_answered_sent_or_written() {
    let (mut c, leader, client) = led(Setup::new(1));
    c.hold_disk(leader);
    c.submit(client, &[block(0, 9, 1)]);
    c.turn(leader);
    let at = c.find_op(leader, |op| matches!(op, DiskOp::Write { .. })).unwrap();
    c.fail_op(leader, at, DiskErrorKind::Io);
    c.turn(leader);
    assert!(matches!(c.nodes[leader].fatal, Some(WalError::Poisoned { what: "write", .. })));

    let sent = c.nodes[leader].sent;
    c.submit(client, &[block(0, 9, 2)]);
    for _ in 0..1000 {
        c.run(MS);
        c.turn(leader);
        assert!(c.nodes[leader].fatal.is_some() && c.nodes[leader].disk.ops.is_empty());
    }
    assert_eq!(c.answers(client), []);
    assert_eq!(c.nodes[leader].sent, sent);
    // The others go on, with the block or without it.
    let new = c.leader(0).expect("another leader");
    assert_ne!(new, leader);
    let again = c.client(new);
    c.submit(again, &[block(0, 9, 1)]);
    assert!(c.answer(again).result.is_ok());
}

#[test]
fn a_poisoned_node_grants_no_vote() {
    let (mut c, leader, _) = led(Setup::new(1));
    let [a, b] = [(leader + 1) % 3, (leader + 2) % 3];
    // a's next write fails; with the leader gone, b would need a's vote.
    c.hold_disk(a);
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1)]);
    c.run_until("a write", 100 * MS, |c| {
        c.find_op(a, |op| matches!(op, DiskOp::Write { .. })).is_some()
    });
    c.kill(leader);
    c.fail_op(a, 0, DiskErrorKind::Io);
    for _ in 0..1000 {
        c.run(MS);
        c.turn(a);
    }
    assert_eq!(c.leader(0), None, "neither a nor b can win");
    assert!(c.raft(b, 0).commit() < c.raft(b, 0).last_index().next());
}

fn fill(c: &mut Cluster<Ledger>, client: usize) -> u64 {
    for seq in 1..2000 {
        c.submit(client, &[block_of(0, 9, seq, 0, 1, 4000)]);
        match c.answer(client).result {
            Ok(_) => {}
            Err(Refused::ReadOnly) => return seq,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the log is never full");
}

#[test]
fn a_full_disk_makes_the_shard_read_only_until_there_is_space_again() {
    let (mut c, leader, client) = led(Setup::new(1));
    c.nodes[leader].disk_full = true;
    let refused = fill(&mut c, client);
    assert!(c.shard(leader).status().space.starts_with("disk full"));
    assert!(refused > 50);
    // It still leads, and still can write terms and votes.
    c.run(1000 * MS);
    assert_eq!(c.leader(0), Some(leader));
    c.nodes[leader].disk_full = false;
    c.run(1500 * MS);
    c.submit(client, &[block_of(0, 9, refused, 0, 1, 4000)]);
    assert!(c.answer(client).result.is_ok(), "it resumes by itself");
    assert_eq!(c.shard(leader).status().space, "ok");
    c.converge();
    exactly(&c, &[], &(1..=refused).collect::<Vec<_>>());
}

#[test]
fn a_follower_with_a_full_disk_does_not_stop_the_majority_and_catches_up() {
    let (mut c, leader, client) = led(Setup::new(1));
    let full = (leader + 1) % 3;
    c.nodes[full].disk_full = true;
    for seq in 1..=600 {
        c.submit(client, &[block_of(0, 9, seq, 0, 1, 4000)]);
        assert!(c.answer(client).result.is_ok());
    }
    assert!(c.shard(full).stats().appends_held_back > 0);
    assert!(c.applied(full, 0) < c.applied(leader, 0));
    c.nodes[full].disk_full = false;
    c.converge();
    exactly(&c, &[], &(1..=600).collect::<Vec<_>>());
}

#[test]
fn a_log_at_its_limit_is_read_only_and_still_elects() {
    let mut setup = Setup::new(1);
    (setup.wal.segments_max, setup.wal.spare_segments) = (3, 1);
    let (mut c, leader, client) = led(setup);
    let refused = fill(&mut c, client);
    assert!(c.shard(leader).status().space.starts_with("log limit"));
    for _ in 0..5 {
        let old = c.leader(0).unwrap();
        c.isolate(old);
        c.run_until("another leader", 5000 * MS, |c| c.leader(0).is_some_and(|i| i != old));
        c.heal();
        c.elect();
    }
    c.converge();
    exactly(&c, &[refused], &(1..refused).collect::<Vec<_>>());
}
