use super::*;
use crate::ids::{GroupId, Incarnation, NodeId};

const PROBE: State = State::Probe { waiting: false };
const WAITING: State = State::Probe { waiting: true };

fn at(us: u64) -> Tick {
    Tick(us)
}

/// matched = 5, next = 6.
fn replicating() -> Progress {
    let mut p = Progress::new();
    p.reset(Index(6));
    p.sent(at(0), Index(6), Index(5), 0);
    p.acknowledged(at(0), Index(5));
    assert_eq!(p.state(), State::Replicate);
    p
}

/// matched = 5, appends of 6..=7 and 8..=9 under way, next = 10.
fn pipelining() -> Progress {
    let mut p = replicating();
    p.sent(at(0), Index(6), Index(7), 100);
    p.sent(at(0), Index(8), Index(9), 200);
    p
}

/// A probe of 10 is out (prev = 9), matched = 5.
fn probing() -> Progress {
    let mut p = replicating();
    p.become_probe(Index(10));
    p.sent(at(0), Index(10), Index(9), 0);
    assert_eq!(p.state(), WAITING);
    p
}

#[test]
fn each_edge_of_the_state_machine() {
    // what happens to whom, then: state, matched, next, appends under way
    type Edge = (&'static str, Progress, fn(&mut Progress), (State, u64, u64, usize));
    let edges: [Edge; 14] = [
        ("new leader", pipelining(), |p| p.reset(Index(12)), (PROBE, 0, 12, 0)),
        ("connection lost", pipelining(), |p| p.become_probe(p.next()), (PROBE, 5, 10, 0)),
        (
            "append",
            replicating(),
            |p| p.sent(at(0), Index(6), Index(8), 9),
            (State::Replicate, 5, 9, 1),
        ),
        (
            "first ack",
            pipelining(),
            |p| {
                p.acknowledged(at(1), Index(7));
            },
            (State::Replicate, 7, 10, 1),
        ),
        (
            "all acks",
            pipelining(),
            |p| {
                p.acknowledged(at(1), Index(9));
            },
            (State::Replicate, 9, 10, 0),
        ),
        (
            "old ack",
            pipelining(),
            |p| {
                p.acknowledged(at(1), Index(4));
            },
            (State::Replicate, 5, 10, 2),
        ),
        (
            "ack ahead",
            replicating(),
            |p| {
                p.acknowledged(at(1), Index(8));
            },
            (State::Replicate, 8, 9, 0),
        ),
        (
            "rejection",
            pipelining(),
            |p| {
                p.rejected(Index(7), Index(6));
            },
            (PROBE, 5, 6, 0),
        ),
        (
            "old rejection",
            pipelining(),
            |p| {
                p.rejected(Index(5), Index(3));
            },
            (State::Replicate, 5, 10, 2),
        ),
        (
            "probe answered",
            probing(),
            |p| {
                p.acknowledged(at(1), Index(9));
            },
            (State::Replicate, 9, 10, 0),
        ),
        (
            "ack below the guess",
            probing(),
            |p| {
                p.acknowledged(at(1), Index(7));
            },
            (WAITING, 7, 10, 0),
        ),
        (
            "probe rejected",
            probing(),
            |p| {
                p.rejected(Index(9), Index(8));
            },
            (PROBE, 5, 8, 0),
        ),
        (
            "hint below matched",
            probing(),
            |p| {
                p.rejected(Index(9), Index(2));
            },
            (PROBE, 5, 6, 0),
        ),
        (
            "another probe's rejection",
            probing(),
            |p| {
                p.rejected(Index(8), Index(7));
            },
            (WAITING, 5, 10, 0),
        ),
    ];
    for (name, mut p, step, (state, matched, next, inflight)) in edges {
        step(&mut p);
        p.check_invariants();
        let now = (p.state(), p.matched(), p.next(), p.inflight_count());
        assert_eq!(now, (state, Index(matched), Index(next), inflight), "{name}");
    }
}

#[test]
fn a_guess_inside_a_block_is_moved_to_its_start() {
    let mut p = replicating();
    p.become_probe(Index(10));
    p.sent(at(0), Index(8), Index(12), 100);
    assert_eq!((p.state(), p.next()), (WAITING, Index(8)));
    assert!(p.acknowledged(at(1), Index(12)));
    assert_eq!((p.state(), p.next()), (State::Replicate, Index(13)));
}

#[test]
fn the_window_closes_by_count_and_by_bytes_and_opens_with_answers() {
    let mut config = Config::new(NodeId(1), GroupId(0), vec![NodeId(1), NodeId(2)], Incarnation(1));
    config.inflight_count_max = 2;
    let mut p = pipelining();
    assert!(!p.may_send(at(0), &config));
    p.acknowledged(at(0), Index(7));
    assert!(p.may_send(at(0), &config));
    config.inflight_bytes_max = 200;
    assert!(!p.may_send(at(0), &config), "200 bytes are under way");
    p.acknowledged(at(0), Index(9));
    assert!(p.may_send(at(0), &config));
    assert_eq!(p.inflight_bytes(), 0);
}

#[test]
fn silence_counts_from_the_oldest_unanswered_append() {
    let mut p = replicating();
    assert!(!p.is_overdue(at(1_000_000), 100), "nothing is under way");
    p.sent(at(1000), Index(6), Index(6), 1);
    p.sent(at(1090), Index(7), Index(7), 1);
    assert!(!p.is_overdue(at(1099), 100));
    assert!(p.is_overdue(at(1100), 100));
    p.acknowledged(at(1100), Index(6));
    assert!(!p.is_overdue(at(1199), 100), "it answers, though slowly");
    assert!(p.is_overdue(at(1200), 100));
}

#[test]
fn one_read_at_a_time_and_none_while_it_backs_off() {
    let config = Config::new(NodeId(1), GroupId(0), vec![NodeId(1), NodeId(2)], Incarnation(1));
    let mut p = replicating();
    p.fetch_started(Index(6));
    assert!(!p.may_send(at(0), &config));
    assert!(!p.fetch_ended(Index(4)), "an answer to an older question");
    assert!(p.fetch_ended(Index(6)));
    p.fetch_again_at(at(50));
    assert!(!p.may_send(at(49), &config));
    assert!(p.may_send(at(50), &config));
    // The follower turns out to have the blocks: the read's answer comes too late.
    p.fetch_started(Index(6));
    p.acknowledged(at(60), Index(8));
    assert!(!p.fetch_ended(Index(6)));
}
