//! Stories about retries. `Replica` is a group's log position with its table, and applies a block
//! as a shard does: check, then apply and record.

use proptest::prelude::*;

use super::*;

struct Replica {
    sessions: Sessions,
    next: u64,
    applied: Vec<(u64, u64)>,
}

impl Replica {
    fn new(sessions_max: u32, answers_max: u64) -> Self {
        let sessions = Sessions::new(SessionLimits { sessions_max, answers_max });
        Self { sessions, next: 1, applied: Vec::new() }
    }

    fn commit(&mut self, client: u64, seq: u64, pending: u32) -> Verdict {
        let request = Request { client, seq, pending };
        let verdict = self.sessions.check(&request);
        if verdict == Verdict::New {
            self.sessions.record(&request, self.answer(self.next));
            self.applied.push((client, seq));
        }
        self.next += 1;
        verdict
    }

    fn answer(&self, first: u64) -> Answer {
        let outcome = Outcome { applied: first as u32, duplicates: 0, rejected: 0 };
        Answer { first: Index(first), term: Term(3), epoch: 0, outcome }
    }
}

fn replica() -> Replica {
    Replica::new(16, 1 << 20)
}

/// bugs.md 32. Client 7 sends its third block to leader A. A replicates it and dies before it
/// answers. B becomes leader, still commits the block, and the client sends it to B once more.
#[test]
fn a_retry_after_a_leader_change_is_applied_once_and_gets_the_first_answer() {
    let mut b = replica();
    for seq in 1..=3 {
        assert_eq!(b.commit(7, seq, 0), Verdict::New);
    }
    let retried = b.commit(7, 3, 0);
    assert_eq!(retried, Verdict::Duplicate(b.answer(3)));
    assert_eq!(b.applied, [(7, 1), (7, 2), (7, 3)]);
    assert_eq!(b.commit(7, 4, 0), Verdict::New, "the session goes on");
}

#[test]
fn blocks_of_a_window_may_come_in_any_order_and_each_is_applied_once() {
    let mut r = replica();
    // 5 blocks under way from number 1 on; the second was refused as busy and comes last.
    for seq in [1, 3, 4, 5] {
        assert_eq!(r.commit(7, seq, seq as u32 - 1), Verdict::New);
    }
    assert_eq!(r.commit(7, 2, 1), Verdict::New);
    assert_eq!(r.commit(7, 4, 3), Verdict::Duplicate(r.answer(3)));
    assert_eq!(r.commit(7, 2, 1), Verdict::Duplicate(r.answer(5)));
}

#[test]
fn what_the_client_no_longer_waits_for_is_stale_and_never_applied_late() {
    let mut r = replica();
    r.commit(7, 1, 0);
    // The client gave up on number 2 (its deadline passed) and says so with number 3.
    r.commit(7, 3, 0);
    assert_eq!(r.commit(7, 2, 1), Verdict::Stale);
    assert_eq!(r.commit(7, 1, 0), Verdict::Stale);
    assert_eq!(r.applied, [(7, 1), (7, 3)]);
}

#[test]
fn a_window_takes_8192_and_not_one_more() {
    let mut r = replica();
    for seq in (1..=WINDOW_MAX).rev() {
        assert_eq!(r.commit(7, seq, seq as u32 - 1), Verdict::New, "{seq}");
    }
    let too_far = WINDOW_MAX + 1;
    assert_eq!(r.commit(7, too_far, WINDOW_MAX as u32), Verdict::WindowTooLarge);
    assert_eq!(
        r.commit(8, too_far, WINDOW_MAX as u32),
        Verdict::WindowTooLarge,
        "nor a new client"
    );
    for seq in 1..=WINDOW_MAX {
        assert!(matches!(r.commit(7, seq, seq as u32 - 1), Verdict::Duplicate(_)), "{seq}");
    }
    assert_eq!(r.commit(7, too_far, WINDOW_MAX as u32 - 1), Verdict::New, "the floor moved by one");
}

#[test]
fn a_pending_larger_than_its_sequence_number_is_taken_for_all_of_them() {
    let mut r = replica();
    assert_eq!(r.commit(7, 3, 1000), Verdict::New);
    assert_eq!(r.commit(7, 1, 1000), Verdict::New);
    assert_eq!(r.commit(7, 3, 1000), Verdict::Duplicate(r.answer(1)));
}

#[test]
fn a_block_without_a_session_is_always_new_and_leaves_no_trace() {
    let mut r = replica();
    let digest = r.sessions.digest();
    for (client, seq) in [(0, 0), (0, 5), (5, 0), (0, 5)] {
        assert_eq!(r.commit(client, seq, 0), Verdict::New);
    }
    assert!(r.sessions.is_empty());
    assert_eq!(r.sessions.digest(), digest);
}

#[test]
fn the_session_that_rested_longest_goes_and_is_told_instead_of_applied_again() {
    let mut r = Replica::new(3, 1 << 20);
    for client in [1, 2, 3] {
        r.commit(client, 1, 0);
        r.commit(client, 2, 0);
    }
    r.commit(1, 3, 0);
    // Client 2 rested longest. Asking alone does not wake it.
    assert!(matches!(
        r.sessions.check(&Request { client: 2, seq: 2, pending: 0 }),
        Verdict::Duplicate(_)
    ));
    r.commit(4, 1, 0);
    assert_eq!((r.sessions.len(), r.sessions.evicted()), (3, 1));
    assert_eq!(r.commit(2, 2, 0), Verdict::Expired, "its retry might have been applied");
    assert_eq!(r.commit(1, 3, 0), Verdict::Duplicate(r.answer(7)));
    assert_eq!(r.commit(5, 1, 0), Verdict::New, "a new client begins at 1");
}

#[test]
fn remembered_answers_are_bounded_over_all_sessions() {
    let mut r = Replica::new(1000, 2 * WINDOW_MAX);
    for client in 1..=10 {
        r.commit(client, WINDOW_MAX, WINDOW_MAX as u32 - 1);
    }
    assert_eq!(r.sessions.len(), 2);
    assert!(r.sessions.memory_bytes() < 1_000_000, "{}", r.sessions.memory_bytes());
}

#[test]
#[should_panic(expected = "must not be applied")]
fn recording_twice_is_applying_twice_and_stops_the_node() {
    let mut r = replica();
    r.commit(7, 1, 0);
    r.sessions.record(&Request { client: 7, seq: 1, pending: 0 }, Answer::default());
}

proptest! {
    /// Any mixture of retries, holes and clients against a table without limits: nothing is applied
    /// twice, and two replicas stay equal.
    #[test]
    fn no_mixture_of_retries_applies_a_block_twice(
        steps in proptest::collection::vec((1u64..6, 1u64..40, 0u32..12), 1..400),
    ) {
        let (mut a, mut b) = (replica(), replica());
        let mut once = std::collections::BTreeSet::new();
        for (client, seq, pending) in steps {
            let verdict = a.commit(client, seq, pending);
            prop_assert_eq!(b.commit(client, seq, pending), verdict);
            prop_assert_eq!(a.sessions.digest(), b.sessions.digest());
            if verdict == Verdict::New {
                prop_assert!(once.insert((client, seq)), "{} {}", client, seq);
            } else {
                prop_assert!(once.contains(&(client, seq)) || verdict == Verdict::Stale);
            }
        }
    }

    /// The list of sessions stays whole through any order of uses and evictions.
    #[test]
    fn evictions_follow_the_order_of_last_use(clients in proptest::collection::vec(1u64..9, 1..200)) {
        let mut r = Replica::new(4, 1 << 20);
        let mut order: Vec<u64> = Vec::new();
        let mut seqs = [0u64; 9];
        for client in clients {
            seqs[client as usize] += 1;
            let known = order.contains(&client);
            let seq = if known { seqs[client as usize] } else { 1 };
            seqs[client as usize] = seq;
            prop_assert_eq!(r.commit(client, seq, 0), Verdict::New);
            order.retain(|&c| c != client);
            order.push(client);
            if order.len() > 4 {
                order.remove(0);
            }
            let mut listed = Vec::new();
            let mut at = r.sessions.oldest;
            while at != NONE {
                listed.push(r.sessions.sessions.get(at as usize).client);
                at = r.sessions.sessions.get(at as usize).newer;
            }
            prop_assert_eq!(&listed, &order);
        }
    }
}
