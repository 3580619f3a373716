//! Many groups in one shard: leaders, shared flushes, shared frames, and what they cost at rest.

use super::world::{MS, Setup, block};

fn spread(groups: u32) {
    let mut setup = Setup::new(groups);
    setup.wal.segment_bytes = 2 << 20;
    let mut c = setup.start();
    c.elect();
    let mut led = [0u32; 3];
    for g in 0..groups {
        led[c.leader(g).unwrap()] += 1;
    }
    let fair = groups / 3;
    assert!(led.iter().all(|&n| n >= fair * 9 / 10), "leaders by node: {led:?}");
    assert!(c.traffic.frames_a_turn_max <= 1, "one frame to a peer in a turn");
}

#[test]
fn the_leaders_of_48_groups_are_spread_over_the_nodes() {
    spread(48);
}

#[test]
fn the_leaders_of_1000_groups_are_spread_over_the_nodes() {
    spread(1000);
}

#[test]
fn blocks_of_48_groups_share_flushes_and_frames() {
    let mut c = Setup::new(48).start();
    c.elect();
    c.converge();
    let leader = c.leader(0).unwrap();
    let led: Vec<u32> = (0..48).filter(|&g| c.leader(g) == Some(leader)).collect();
    let client = c.client(leader);
    let (before, traffic) = (c.shard(leader).wal().stats(), c.traffic);
    for seq in 1..=20 {
        let blocks: Vec<_> = led.iter().map(|&g| block(g, 9, seq)).collect();
        c.submit(client, &blocks);
        c.run(MS);
    }
    c.run(10 * MS);
    let answers = c.answers(client);
    assert_eq!(answers.len(), 20 * led.len());
    assert!(answers.iter().all(|a| a.result.is_ok()));
    let after = c.shard(leader).wal().stats();
    let (records, flushes) = (after.records - before.records, after.flushes - before.flushes);
    assert!(records >= led.len() as u64 * flushes, "{records} records in {flushes} flushes");
    let (messages, frames) =
        (c.traffic.messages - traffic.messages, c.traffic.frames - traffic.frames);
    assert!(messages > 5 * frames, "{messages} messages in {frames} frames");
    assert_eq!(c.traffic.frames_a_turn_max, 1);
}

#[test]
fn a_thousand_idle_groups_cost_a_few_turns_and_frames_a_second() {
    let mut setup = Setup::new(1000);
    setup.wal.segment_bytes = 2 << 20;
    let mut c = setup.start();
    c.elect();
    c.converge();
    c.run(1000 * MS);
    let turns: u64 = c.nodes.iter().map(|node| node.turns).sum();
    let flushes: u64 = (0..3).map(|i| c.shard(i).wal().stats().flushes).sum();
    let (terms, traffic) = (c.raft(0, 7).term(), c.traffic);
    c.run(1000 * MS);
    let turns = c.nodes.iter().map(|node| node.turns).sum::<u64>() - turns;
    // 20 heartbeats a second of 3 nodes to 2 peers, and their answers; one message a group each.
    let frames = c.traffic.frames - traffic.frames;
    assert!(frames <= 20 * 3 * 2 * 2 + 12, "{frames} frames");
    let messages = c.traffic.messages - traffic.messages;
    assert!(messages <= 20 * 1000 * 2 * 2 + 4000, "{messages} messages");
    // Each node: its own beat, two beats and two answers to take in, and the grid of the timers.
    assert!(turns <= 3 * (20 * 16 + 20 * 5), "{turns} turns");
    assert_eq!((0..3).map(|i| c.shard(i).wal().stats().flushes).sum::<u64>(), flushes);
    assert_eq!(c.raft(0, 7).term(), terms, "and nobody campaigns");
}
