//! What wakes a group that sleeps, and what does not.

use super::super::*;
use crate::ids::{GroupId, LogStart};

const LEADER: NodeId = NodeId(1);
const REMOVED: NodeId = NodeId(4);

/// n2, one of three: n4 was taken out at 2, and its leader, of term 3, has put everybody to sleep.
fn sleeper() -> (Raft, Ready) {
    let voters = (1..=4).map(NodeId).collect();
    let mut config = Config::new(NodeId(2), GroupId(0), voters, Incarnation(1));
    config.hibernate_after_us = 1;
    let run = |first, term| TermRun {
        first: Index(first),
        term: Term(term),
        epoch: 0,
        since: Index(first),
    };
    let now =
        Membership { index: Index(2), ..Membership::of_voters((1..=3).map(NodeId).collect()) };
    let restored = Restored {
        hard_state: HardState { term: Term(3), vote: Some(LEADER), commit: Index(2) },
        terms: vec![run(1, 1), run(3, 3)],
        start: LogStart::default(),
        last: Index(3),
        memberships: vec![now],
        ..Restored::default()
    };
    let (mut raft, mut ready) = (Raft::new(config, restored, Tick::ZERO), Ready::default());
    hear(&mut raft, &mut ready, LEADER, 3, Body::Hibernate { last: Index(3), round: 1 });
    assert!(raft.is_hibernating() && raft.commit() == Index(3));
    (raft, ready)
}

fn hear(raft: &mut Raft, ready: &mut Ready, from: NodeId, term: u64, body: Body) {
    ready.clear();
    let (term, incarnation, echo) = (Term(term), Incarnation(1), Incarnation::ZERO);
    let message = Message { term, incarnation, echo, body };
    let event = Event::Receive { from, message, blocks: &mut Vec::new() };
    raft.handle(Tick(1_000_000), event, ready);
}

fn question(pre: bool, last_index: u64, last_term: u64) -> Body {
    let (last_index, last_term) = (Index(last_index), Term(last_term));
    Body::VoteRequest { pre, handed: false, last_index, last_term }
}

/// Long after it has heard its leader in the group: awake, it might grant what it is asked for.
#[test]
fn a_node_that_was_taken_out_while_it_was_away_wakes_nobody_and_gets_no_answer() {
    let (mut raft, mut ready) = sleeper();
    // With what it had; as much as all others have; a tail of its own of an older term.
    for (term, last_index, last_term) in [(2, 1, 1), (4, 3, 3), (9, 8, 2)] {
        hear(&mut raft, &mut ready, REMOVED, term, question(true, last_index, last_term));
        assert!(raft.is_hibernating() && ready.is_empty(), "{ready:?}");
    }
    assert_eq!((raft.term(), raft.vote(), raft.leader()), (Term(3), Some(LEADER), Some(LEADER)));
}

/// Whoever was taken in by a later configuration has the entry of it, and so the longer log (bug 20).
#[test]
fn whoever_may_be_right_wakes_a_sleeper() {
    let wakes = |from: NodeId, term: u64, body: Body| {
        let (mut raft, mut ready) = sleeper();
        hear(&mut raft, &mut ready, from, term, body);
        assert!(!raft.is_hibernating(), "{from} {body:?}");
    };
    wakes(REMOVED, 4, question(true, 4, 3));
    wakes(REMOVED, 5, question(true, 3, 4));
    wakes(REMOVED, 4, question(false, 1, 1));
    wakes(NodeId(9), 4, question(true, 4, 3));
    wakes(NodeId(3), 4, question(true, 1, 1));
    wakes(LEADER, 4, question(true, 1, 1));
    let (commit, context, last) = (Index::ZERO, 0, Index(1));
    wakes(REMOVED, 2, Body::Heartbeat { commit, context, last });
    wakes(REMOVED, 5, Body::Heartbeat { commit, context, last });
}
