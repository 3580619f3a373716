//! Rules that need numbers rather than a trace.

use super::super::*;
use super::world::{Envelope, World};
use crate::ids::GroupId;
use crate::raft::harness::{Cluster, sample_block};

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);

fn config() -> Config {
    Config::new(N1, GroupId(0), vec![N1, N2, N3], Incarnation(1))
}

fn elected() -> World {
    let mut world = World::new(3, |_| {});
    world.timeout(N1);
    world.settle();
    world.trace.clear();
    world
}

fn receive(world: &mut World, to: NodeId, from: NodeId, message: Message, blocks: &[Block]) {
    world.handle(to, Event::Receive { from, message, blocks: &mut blocks.to_vec() });
}

fn message(term: u64, body: Body) -> Message {
    Message { term: Term(term), incarnation: Incarnation(1), echo: Incarnation(1), body }
}

#[test]
fn a_bad_configuration_is_refused_with_what_is_wrong() {
    type Change = fn(&mut Config);
    let cases: [(Change, ConfigError); 8] = [
        (|c| c.voters = (1..=16).map(NodeId).collect(), ConfigError::TooManyVoters(16)),
        (|c| c.voters.push(N2), ConfigError::DuplicateVoter(N2)),
        (|c| c.voters.push(NodeId(0)), ConfigError::NodeZero),
        (|c| c.id = NodeId(9), ConfigError::NotAVoter(NodeId(9))),
        (|c| c.heartbeat_us = 0, ConfigError::Zero("heartbeat_us")),
        (|c| c.uncommitted_bytes_max = 0, ConfigError::Zero("uncommitted_bytes_max")),
        (
            |c| c.election_timeout_max_us = 100_000,
            ConfigError::ElectionRange { min: 150_000, max: 100_000 },
        ),
        (
            |c| c.heartbeat_us = 75_000,
            ConfigError::HeartbeatTooSlow { heartbeat: 75_000, election: 150_000 },
        ),
    ];
    assert_eq!(config().validate(), Ok(()));
    for (change, error) in cases {
        let mut config = config();
        change(&mut config);
        assert_eq!(config.validate(), Err(error));
    }
}

#[test]
fn election_timeouts_differ_and_stay_in_their_range() {
    let mut deadlines = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let raft = Raft::new(Config { seed, ..config() }, Restored::default(), Tick(1000));
        let wait = raft.deadline().since(Tick(1000));
        assert!((150_000..=300_000).contains(&wait));
        deadlines.insert(wait);
    }
    assert!(deadlines.len() > 90);
}

#[test]
fn a_preferred_node_is_first_on_a_cold_start_and_like_the_others_afterwards() {
    for seed in 0..100 {
        let config = Config { seed, preferred: true, ..config() };
        let mut raft = Raft::new(config, Restored::default(), Tick::ZERO);
        let first = raft.deadline();
        assert!((50_000..=100_000).contains(&first.get()));
        raft.handle(first, Event::Timeout, &mut Ready::default());
        assert!((150_000..=300_000).contains(&raft.deadline().since(first)));
    }
}

#[test]
fn an_early_timeout_is_harmless() {
    let mut raft = Raft::new(config(), Restored::default(), Tick::ZERO);
    let (deadline, mut ready) = (raft.deadline(), Ready::default());
    raft.handle(deadline.prev(), Event::Timeout, &mut ready);
    assert!(ready.is_empty());
    assert_eq!(raft.deadline(), deadline);
}

#[test]
fn heartbeats_of_all_groups_fall_into_one_turn() {
    let world = elected();
    let deadline = world.node(N1).raft().deadline();
    assert!(deadline > world.now && deadline.since(world.now) <= 50_000);
    assert_eq!(deadline.get() % 50_000, 0);
}

#[test]
fn malformed_appends_are_not_taken() {
    let block = |group: u32, first: u64, term: u64| {
        let mut block = sample_block(GroupId(group), 2, 8);
        block.stamp(Term(term), Index(first), 0);
        block
    };
    let aged = |mut block: Block| {
        block.stamp(block.term(), block.first(), 1);
        block
    };
    let append = |prev_index, prev_term| Body::Append {
        prev_index: Index(prev_index),
        prev_term: Term(prev_term),
        commit: Index(9),
        last: Index(9),
    };
    let cases = [
        ("a hole", append(1, 1), vec![block(0, 3, 1)]),
        ("a second epoch in a term", append(1, 1), vec![aged(block(0, 2, 1))]),
        ("an overlap", append(1, 1), vec![block(0, 2, 1), block(0, 3, 1)]),
        ("a term above the leader's", append(1, 1), vec![block(0, 2, 2)]),
        ("a falling term", append(1, 1), vec![block(0, 2, 0)]),
        ("another group", append(1, 1), vec![block(1, 2, 1)]),
        ("previous term above the leader's", append(1, 5), vec![]),
        ("the largest index", append(u64::MAX, 1), vec![block(0, 1, 1)]),
    ];
    for (name, body, blocks) in cases {
        let mut world = elected();
        receive(&mut world, N2, N1, message(1, body), &blocks);
        let accepted = |e: &Envelope| matches!(e.message.body, Body::AppendReply { .. });
        assert!(!world.net.iter().any(accepted), "{name}");
        assert_eq!(world.node(N2).raft().last_index(), Index(1), "{name}");
    }
}

#[test]
fn answers_that_cannot_be_true_change_nothing() {
    let elected = || {
        let mut world = elected();
        world.forged = true;
        world
    };
    let matched = |index| Body::AppendReply { matched: Index(index) };
    let cases = [
        ("beyond the log", N2, message(1, matched(99))),
        ("a stranger", NodeId(9), message(1, matched(2))),
        (
            "an answer to an earlier start",
            N2,
            Message { echo: Incarnation(7), ..message(1, matched(2)) },
        ),
        (
            "an earlier start's answer",
            N2,
            Message { incarnation: Incarnation(0), ..message(1, matched(2)) },
        ),
        ("an older term", N2, message(0, matched(2))),
    ];
    for (name, from, message) in cases {
        let mut world = elected();
        world.propose(N1, &[1]);
        world.persist(N1, 1);
        receive(&mut world, N1, from, message, &[]);
        assert_eq!(world.node(N1).raft().commit(), Index(1), "{name}");
    }
    let mut world = elected();
    world.propose(N1, &[1]);
    world.persist(N1, 1);
    receive(&mut world, N1, N2, message(1, matched(2)), &[]);
    assert_eq!(world.node(N1).raft().commit(), Index(2), "the true answer commits");
}

/// A snapshot of an earlier leader arrives in a later term, and its end is told to a leader that has sent
/// nothing of that place. After a loss it may have something else there.
#[test]
fn a_claim_beyond_what_was_sent_counts_for_nothing_and_is_asked_about() {
    let mut world = elected();
    let before = world.node(N1).raft().commit();
    for peer in [N2, N3] {
        world.handle(N1, Event::PeerDisconnected { peer });
    }
    world.propose(N1, &[1]);
    world.propose(N1, &[1]);
    world.persist(N1, usize::MAX);
    let raft = world.node(N1).raft();
    let (term, last) = (raft.term().0, raft.last_index());
    assert_eq!(raft.durable_index(), last);
    receive(&mut world, N1, N3, message(term, Body::AppendReply { matched: last }), &[]);
    let raft = world.node(N1).raft();
    assert_eq!(raft.commit(), before);
    let (_, progress) = raft.progress().find(|(id, _)| *id == N3).unwrap();
    assert_eq!((progress.matched(), progress.next()), (before, last.next()), "it is asked there");
    assert_eq!(progress.state(), progress::State::Probe { waiting: true });
}

#[test]
fn a_second_leader_of_a_term_is_not_believed() {
    let mut world = elected();
    let before = world.node(N2).raft().deadline();
    let body =
        Body::Append { prev_index: Index(1), prev_term: Term(1), commit: Index(1), last: Index(2) };
    let mut block = sample_block(GroupId(0), 1, 8);
    block.stamp(Term(1), Index(2), 0);
    receive(&mut world, N2, N3, message(1, body), &[block]);
    let raft = world.node(N2).raft();
    assert_eq!((raft.leader(), raft.last_index(), raft.deadline()), (Some(N1), Index(1), before));
}

#[test]
fn a_heartbeat_meant_for_an_earlier_start_commits_nothing() {
    let mut world = elected();
    let body = Body::Heartbeat { commit: Index(1), context: 5, last: Index(1) };
    receive(&mut world, N2, N1, Message { echo: Incarnation(7), ..message(1, body) }, &[]);
    assert_eq!(world.node(N2).raft().commit(), Index(0));
    let reply = world.net.last().expect("it is answered all the same");
    assert_eq!(reply.message.body, Body::HeartbeatReply { context: 5 });
    receive(&mut world, N2, N1, message(1, body), &[]);
    assert_eq!(world.node(N2).raft().commit(), Index(1));
}

#[test]
fn the_commit_hint_of_a_restart_is_announced_once() {
    let hard_state = HardState { term: Term(2), vote: None, commit: Index(3) };
    let terms = vec![TermRun { first: Index(1), term: Term(2), epoch: 0, since: Index(1) }];
    let restored = Restored { hard_state, terms, last: Index(5), ..Restored::default() };
    let mut raft = Raft::new(config(), restored, Tick::ZERO);
    let mut ready = Ready::default();
    for _ in 0..2 {
        raft.handle(Tick(1), Event::Timeout, &mut ready);
    }
    assert_eq!(ready.committed, [Committed { group: GroupId(0), index: Index(3) }]);
}

#[test]
fn what_every_replica_has_applied_is_not_kept_in_memory() {
    let mut cluster = Cluster::new(3);
    for _ in 0..10 {
        cluster.propose(&mut vec![sample_block(GroupId(0), 4, 128); 3]);
    }
    assert!(cluster.leader().cached_bytes() > 0);
    cluster.settle();
    cluster.heartbeat();
    assert_eq!((cluster.leader().cached_bytes(), cluster.leader().uncommitted_bytes()), (0, 0));
    assert_eq!(cluster.committed_everywhere(), Index(121));
    assert_eq!(cluster.applied_commands(), 121);
}

#[test]
fn a_follower_that_is_gone_holds_no_memory_for_ever() {
    let mut world = elected();
    world.crash(N3, 0);
    for round in 0..20 {
        world.propose(N1, &[4]);
        world.settle();
        world.timeout(N1);
        world.settle();
        // For an election timeout it may come back and is served from memory.
        assert!(round > 2 || world.node(N1).raft().cached_bytes() > 0);
    }
    assert_eq!(world.node(N1).raft().cached_bytes(), 0);
}

#[test]
fn proposals_are_stamped_and_share_one_copy_between_log_and_followers() {
    let mut world = elected();
    let mut blocks = vec![sample_block(GroupId(0), 3, 8), sample_block(GroupId(0), 2, 8)];
    let body = blocks[0].body().clone();
    let mut ready = Ready::default();
    let now = world.now;
    let raft = world.node_mut(N1).raft.as_mut().unwrap();
    raft.handle(now, Event::Propose { blocks: &mut blocks }, &mut ready);
    assert!(blocks.is_empty());
    assert_eq!(ready.blocks.len(), 2, "one copy in the arena");
    let stamped: Vec<_> = ready.blocks.iter().map(|b| (b.term(), b.first())).collect();
    assert_eq!(stamped, [(Term(1), Index(2)), (Term(1), Index(5))]);
    assert_eq!(ready.blocks[0].body().as_ptr(), body.as_ptr(), "the body is not copied");
    assert!(ready.messages.iter().all(|m| m.blocks == (0..2) && m.after == Seq::ZERO));
    assert_eq!((ready.messages.len(), ready.persists.len()), (2, 1));
}

/// Bytes from a faulty member must not stop a healthy one: places that lie inside a block, and
/// blocks that contradict what is committed, are passed over.
#[test]
fn a_faulty_peer_names_places_that_cannot_be_and_stops_nobody() {
    let mut world = elected();
    world.propose(N1, &[3]);
    world.settle();
    // The leader holds 5..=7, the followers not yet; n2 claims to have half of it.
    world.propose(N1, &[3]);
    let term = world.node(N1).raft().term().0;
    let last = world.node(N1).raft().last_index();
    let inside = Index(last.0 - 1);
    receive(&mut world, N1, N2, message(term, Body::AppendReply { matched: inside }), &[]);
    assert!(world.node(N1).raft().commit() < inside);

    // n2 gets the block, and then a commit index inside of it.
    world.deliver(0);
    let before = world.node(N2).raft().commit();
    let inside = Index(world.node(N2).raft().last_index().0 - 1);
    let body = Body::Heartbeat { commit: inside, context: 0, last };
    receive(&mut world, N2, N1, message(term, body), &[]);
    assert_eq!(world.node(N2).raft().commit(), before);

    // A block of a newer term at a place that is committed here already.
    let commit = world.node(N2).raft().commit();
    let mut block = sample_block(GroupId(0), 1, 8);
    block.stamp(Term(term), Index(1), 0);
    let mut other = sample_block(GroupId(0), 1, 8);
    other.stamp(Term(term + 1), Index(1), 0);
    let body = Body::Append { prev_index: Index(0), prev_term: Term(0), commit, last: commit };
    receive(&mut world, N2, N1, message(term + 1, body), &[other]);
    assert_eq!(world.node(N2).raft().commit(), commit);
    assert_eq!(world.node(N2).raft().log().term_at(Index(1)), Some(Term(1)));
}
