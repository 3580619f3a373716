//! What a loss of power takes without `wal_sync`, and how it is told (durability.md R4-R6, R9).

use super::machine::Ledger;
use super::world::{Cluster, MS, Setup, block_of};
use crate::ids::{GroupId, Index};
use crate::wire::client::{Consistency, Place, Refused, write_query_after};
use crate::wire::frame::Frame;

/// Three nodes that sync nothing of their own accord.
fn unsynced(groups: u32) -> Setup {
    let mut setup = Setup::new(groups);
    setup.shard.wal_sync = false;
    setup.wal.sync_lag_us = 1 << 40;
    setup.wal.sync_lag_bytes = 1 << 40;
    setup
}

/// Session 9 has `seq` committed in a group. What came before is answered and done with.
fn commit(c: &mut Cluster<Ledger>, group: u32, seq: u64) -> Result<u32, Refused> {
    commit_as(c, group, seq, seq > 1)
}

/// `continues`: its client has had an answer in this session.
fn commit_as(
    c: &mut Cluster<Ledger>,
    group: u32,
    seq: u64,
    continues: bool,
) -> Result<u32, Refused> {
    let leader = c.leader(group).unwrap();
    let client = c.client(leader);
    let mut block = block_of(group, 9, seq, 0, 1, 100);
    if continues {
        block.set_continues();
    }
    c.submit(client, &[block]);
    let answer = c.answer(client);
    c.hang_up(client);
    answer.result.map(|done| done.epoch)
}

fn lose_everything(c: &mut Cluster<Ledger>) {
    let nodes = c.nodes.len();
    (0..nodes).for_each(|i| c.cut_power_keeping(i, 0));
    (0..nodes).for_each(|i| c.boot(i));
    c.elect();
    c.converge();
}

#[test]
fn a_majority_that_forgets_tells_of_the_loss_and_sessions_hear_of_it() {
    let mut c = unsynced(1).start();
    c.elect();
    (1..=5).for_each(|seq| assert_eq!(commit(&mut c, 0, seq), Ok(0)));
    lose_everything(&mut c);
    assert!((0..3).all(|i| c.machine(i, 0).times(9, 5) == 0), "the story needs its loss");
    let told: Vec<_> = c.nodes.iter().flat_map(|node| &node.losses).collect();
    assert_eq!(told.len(), 1, "by the new leader: {told:?}");
    assert_eq!((told[0].group, told[0].epoch), (GroupId(0), 1));
    let leader = c.leader(0).unwrap();
    let status = c.shard(leader).status();
    assert_eq!((status.possible_data_loss, status.groups[0].epoch), (1, 1));

    // The session thinks that 1..=5 are there, and goes on with 6.
    assert_eq!(commit(&mut c, 0, 6), Err(Refused::SessionEpochChanged));
    c.converge();
    assert!((0..3).all(|i| c.machine(i, 0).times(9, 6) == 0), "no replica has taken it");
    // One that still waits for its first number may go on.
    assert_eq!(commit(&mut c, 0, 1), Ok(1));
}

/// Story: block 2 was refused at the door, and its number is nowhere on record. That looks like an
/// answer that is gone; the session was told so for each further block, for ever.
#[test]
fn a_session_is_told_of_a_loss_once_and_the_next_one_goes_on() {
    let mut c = unsynced(1).start();
    c.elect();
    assert_eq!(commit(&mut c, 0, 1), Ok(0));
    lose_everything(&mut c);
    assert_eq!(commit_as(&mut c, 0, 1, false), Ok(1));
    assert_eq!(commit(&mut c, 0, 3), Err(Refused::SessionEpochChanged));
    assert_eq!(commit_as(&mut c, 0, 4, false), Ok(1));
    assert_eq!(commit(&mut c, 0, 5), Ok(1));
    // What the first one had used is spent: a late copy is not applied again.
    assert_eq!(commit_as(&mut c, 0, 1, false), Err(Refused::Stale { open_from: 0 }));
    c.converge();
    assert!((0..3).all(|i| c.machine(i, 0).times(9, 1) == 1 && c.machine(i, 0).times(9, 3) == 0));
}

/// R9. The reader was there before the loss, and does not look at the epoch of its answers.
#[test]
fn a_reader_that_has_read_what_is_lost_is_told_from_where_on_and_others_are_answered() {
    let mut c = unsynced(1).start();
    c.elect();
    (1..=5).for_each(|seq| assert_eq!(commit(&mut c, 0, seq), Ok(0)));
    let read = Index(c.applied(c.leader(0).unwrap(), 0));
    lose_everything(&mut c);
    let leader = c.leader(0).unwrap();
    let log = c.raft(leader, 0).log();
    let begins = (1..=read.0 + 9).map(Index).find(|&index| log.epoch_at(index) == 1).unwrap();
    assert!(begins <= read, "the story needs its loss");
    for node in 0..3 {
        let mut told = |epoch, index| ask_after(&mut c, node, Place { epoch, index }, b"count");
        assert_eq!(told(0, read), Err(Refused::Truncated { epoch: 1, from: begins }));
        assert_eq!(told(0, begins), Err(Refused::Truncated { epoch: 1, from: begins }));
        assert_eq!((told(0, begins.prev()), told(1, begins)), (Ok(()), Ok(())));
        assert_eq!(told(2, read), Ok(()), "of an epoch that this replica has yet to hear of");
    }
}

#[test]
fn the_winner_counts_as_recovering_until_its_new_epoch_is_durable() {
    let mut c = unsynced(1).start();
    c.elect();
    (1..=5).for_each(|seq| assert_eq!(commit(&mut c, 0, seq), Ok(0)));
    (0..3).for_each(|i| c.cut_power_keeping(i, 0));
    (0..3).for_each(|i| c.boot(i));
    c.run_until("a leader", 5_000 * MS, |c| c.leader(0).is_some());
    let leader = c.leader(0).unwrap();
    assert!(!c.raft(leader, 0).is_recovering(), "it has the votes of all");
    // Its no-op is on the way to the disk. Were the boot record told now, and the power lost, it would
    // start as one that has never forgotten anything, in epoch 0.
    c.hold_disk(leader);
    c.run(10 * MS);
    assert_eq!(c.shard(leader).recovering(), 1);
    c.release_disk(leader);
    c.converge();
    assert_eq!((c.shard(leader).recovering(), c.raft(leader, 0).epoch()), (0, 1));
}

#[test]
fn a_synced_group_beside_it_forgets_nothing_and_votes_at_once() {
    let mut setup = unsynced(2);
    setup.shard.wal_sync_except = vec![GroupId(1)];
    let mut c = setup.start();
    c.elect();
    (1..=5).for_each(|seq| assert_eq!(commit(&mut c, 1, seq), Ok(0)));
    (0..3).for_each(|i| c.cut_power_keeping(i, 0));
    c.boot(0);
    assert_eq!(c.shard(0).recovering(), 1);
    assert!(c.raft(0, 0).is_recovering() && !c.raft(0, 1).is_recovering());
    (1..3).for_each(|i| c.boot(i));
    c.elect();
    c.converge();
    assert!((0..3).all(|i| c.machine(i, 1).times(9, 5) == 1));
    assert_eq!(commit(&mut c, 1, 6), Ok(0));
    assert!((0..3).all(|i| c.raft(i, 1).epoch() == 0 && c.raft(i, 0).epoch() == 1));
}

#[test]
fn a_replica_without_its_memory_answers_no_questions() {
    let mut c = unsynced(1).start();
    c.elect();
    c.converge();
    c.isolate(2);
    c.cut_power_keeping(2, 0);
    c.boot(2);
    c.run(10 * MS);
    assert_eq!(ask(&mut c, 2), Err(Refused::Recovering));
    c.heal();
    c.converge();
    c.run(200 * MS);
    assert_eq!(c.shard(2).recovering(), 0);
    assert_ne!(ask(&mut c, 2), Err(Refused::Recovering));
}

fn ask(c: &mut Cluster<Ledger>, node: usize) -> Result<(), Refused> {
    ask_after(c, node, Place::default(), b"")
}

fn ask_after(
    c: &mut Cluster<Ledger>,
    node: usize,
    after: Place,
    question: &[u8],
) -> Result<(), Refused> {
    let client = c.client(node);
    let mut bytes = Vec::new();
    write_query_after(&mut bytes, 1, GroupId(0), Consistency::Stale, after, question);
    let frame = Frame::take(&mut bytes.as_slice().into()).unwrap().unwrap();
    c.give(client, frame).unwrap();
    c.run(MS);
    c.clients[client].replies.pop().expect("answered").result.map(drop)
}

#[test]
fn a_node_whose_log_rots_is_mended_by_the_others_once() {
    let mut c = Setup::new(2).start();
    c.elect();
    (1..=30).for_each(|seq| assert_eq!(commit(&mut c, 0, seq), Ok(0)));
    c.converge();
    let victim = (c.leader(0).unwrap() + 1) % 3;
    c.kill(victim);
    c.rot(victim);
    c.isolate(victim);
    c.boot(victim);
    assert_eq!(c.shard(victim).recovering(), 2, "nobody knows whose the bytes were");
    assert!(c.raft(victim, 0).last_index().0 < 30, "the story needs its damage");
    c.run(100 * MS);
    c.kill(victim);
    c.boot(victim);
    assert_eq!(c.shard(victim).recovering(), 2, "also if it is killed meanwhile");
    c.heal();
    c.converge();
    c.run(200 * MS);
    assert!((1..=30).all(|seq| c.machine(victim, 0).times(9, seq) == 1));
    c.kill(victim);
    c.boot(victim);
    assert_eq!(c.shard(victim).recovering(), 0, "the damage lies behind it");
    c.converge();
    assert!((0..3).all(|i| c.raft(i, 0).epoch() == 0 && c.nodes[i].losses.is_empty()));
}
