//! Sessions that expire, are closed, and are kept alive: by entries of the log, on all replicas alike.

use super::machine::Ledger;
use super::world::{Cluster, MS, Setup, block, block_of};
use crate::block::Block;
use crate::ids::GroupId;
use crate::shard::sessions::SessionEntry;
use crate::wire::client::Refused;

const IDLE: u64 = 800 * MS;

fn led() -> (Cluster<Ledger>, usize) {
    let mut setup = Setup::new(1);
    setup.shard.sessions.idle_us = IDLE;
    let mut cluster = setup.start();
    cluster.elect();
    cluster.converge();
    let leader = cluster.leader(0).expect("elected");
    (cluster, leader)
}

fn sessions(c: &Cluster<Ledger>, i: usize) -> usize {
    c.shard(i).groups[0].sessions.len()
}

fn entry(entry: SessionEntry, client: u64, seq: u64) -> Block {
    entry.block(GroupId(0), client, seq)
}

#[test]
fn a_session_that_rests_expires_everywhere_and_its_retry_is_not_applied_again() {
    let (mut c, leader) = led();
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1)]);
    c.answer(client).result.expect("committed");
    c.run(IDLE / 2);
    assert_eq!(sessions(&c, leader), 1, "half an idle time is none");
    c.run(IDLE);
    c.converge();
    assert_eq!([0, 1, 2].map(|i| sessions(&c, i)), [0, 0, 0]);
    c.submit(client, &[block(0, 9, 1)]);
    assert_eq!(c.answer(client).result, Err(Refused::Stale { open_from: 2 }));
    c.submit(client, &[block(0, 9, 2)]);
    c.answer(client).result.expect("nothing is in doubt about number 2");
    c.converge();
    assert_eq!([0, 1, 2].map(|i| c.machine(i, 0).times(9, 1)), [1, 1, 1]);
}

/// The clocks of leaders do not decide: a new one has marks of its own, and goes on from there.
#[test]
fn the_table_is_the_same_after_a_change_of_leader() {
    let (mut c, old) = led();
    let client = c.client(old);
    c.submit(client, &[block(0, 9, 1)]);
    c.answer(client).result.expect("committed");
    c.run(IDLE / 2);
    c.submit(client, &[block(0, 8, 1)]);
    c.answer(client).result.expect("committed");
    c.kill(old);
    c.run_until("another leader", 3000 * MS, |c| c.leader(0).is_some());
    let new = c.leader(0).unwrap();
    c.run_until("it knows both", 1000 * MS, |c| sessions(c, new) == 2);
    c.run_until("9 expires", 2 * IDLE, |c| sessions(c, new) == 1);
    let again = c.client(new);
    c.submit(again, &[block(0, 9, 1), block(0, 8, 1)]);
    c.run(20 * MS);
    let answers = c.answers(again);
    assert_eq!(answers[0].result, Err(Refused::Stale { open_from: 2 }));
    assert!(answers[1].result.expect("8 is still there").retry);
    c.boot(old);
    c.converge();
    assert_eq!([0, 1, 2].map(|i| c.machine(i, 0).times(9, 1)), [1, 1, 1]);
}

#[test]
fn a_sign_of_life_keeps_a_session() {
    let (mut c, leader) = led();
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1)]);
    c.answer(client).result.expect("committed");
    for seq in 2..8 {
        c.run(IDLE / 2);
        c.submit(client, &[entry(SessionEntry::KeepAlive, 9, seq)]);
        c.answer(client).result.expect("kept");
    }
    c.submit(client, &[block_of(0, 9, 7, 6, 1, 8)]);
    assert!(c.answer(client).result.expect("the last sign of life").retry);
}

#[test]
fn a_closed_session_is_gone_at_once_and_only_its_client_closes_it() {
    let (mut c, leader) = led();
    let client = c.client(leader);
    c.submit(client, &[block(0, 9, 1)]);
    c.answer(client).result.expect("committed");
    c.submit(client, &[entry(SessionEntry::Close, 9, 2)]);
    c.answer(client).result.expect("closed");
    c.converge();
    assert_eq!([0, 1, 2].map(|i| sessions(&c, i)), [0, 0, 0]);
    c.submit(client, &[entry(SessionEntry::Close, 9, 2)]);
    assert_eq!(c.answer(client).result, Err(Refused::Stale { open_from: 3 }));
    let through = c.raft(leader, 0).last_index();
    for foreign in [(0, 0), (9, 4)] {
        let expire = SessionEntry::Expire { through };
        c.submit(client, &[entry(expire, foreign.0, foreign.1)]);
        assert_eq!(c.answer(client).result, Err(Refused::BadRequest));
    }
}
