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
        let sessions =
            Sessions::new(SessionLimits { sessions_max, answers_max, ..SessionLimits::default() });
        Self { sessions, next: 1, applied: Vec::new() }
    }

    fn commit(&mut self, client: u64, seq: u64, pending: u32) -> Verdict {
        let request = Request { client, seq, pending, continues: false };
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
        Answer { first: Index(first), term: Term(3), outcome }
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
        r.sessions.check(&Request { client: 2, seq: 2, pending: 0, continues: false }),
        Verdict::Duplicate(_)
    ));
    r.commit(4, 1, 0);
    assert_eq!((r.sessions.len(), r.sessions.forgotten()), (3, 1));
    let expired = Verdict::Expired { from: 3 };
    assert_eq!(r.commit(2, 2, 0), expired, "its retry would be a second application");
    assert_eq!(r.commit(2, 1, 0), expired, "so would one of its very first block");
    assert_eq!(r.commit(1, 3, 0), Verdict::Duplicate(r.answer(7)));
    assert_eq!(r.commit(5, 1, 0), expired, "a new client looks the same, and begins at 3");
    assert_eq!(r.commit(5, 3, 0), Verdict::New);
    assert_eq!(r.commit(2, 3, 0), Verdict::New, "nothing of client 2 above number 2 was applied");
}

/// bugs.md 32. Client 7's answer is lost and it rests for so long that its session expires, by an
/// entry of the log. Its retry comes all the same.
#[test]
fn a_retry_of_an_expired_session_is_refused_and_not_applied_again() {
    let mut r = replica();
    for seq in 1..=3 {
        r.commit(7, seq, seq as u32 - 1);
    }
    r.commit(8, 1, 0);
    assert_eq!(r.sessions.expire(Index(3)), 1, "7 was last used at 3, 8 at 4");
    assert_eq!((r.sessions.len(), r.sessions.oldest_use()), (1, Some(Index(4))));
    for seq in 1..=3 {
        assert_eq!(r.commit(7, seq, seq as u32 - 1), Verdict::Expired { from: 4 });
    }
    assert_eq!(r.commit(8, 2, 0), Verdict::New, "who is still there goes on");
    assert_eq!(r.commit(7, 4, 0), Verdict::New, "what is not in doubt opens the session again");
    assert_eq!(r.commit(7, 3, 2), Verdict::Stale);
    assert_eq!(r.applied, [(7, 1), (7, 2), (7, 3), (8, 1), (8, 2), (7, 4)]);
}

#[test]
fn a_closed_session_is_gone_and_the_last_one_leaves_an_empty_table() {
    let mut r = replica();
    r.commit(7, 5, 4);
    r.sessions.close(7);
    r.sessions.close(9);
    assert!(r.sessions.is_empty());
    assert_eq!((r.sessions.oldest_use(), r.sessions.memory_bytes() < 40_000), (None, true));
    assert_eq!(r.commit(7, 5, 0), Verdict::Expired { from: 6 });
    assert_eq!(r.commit(7, 6, 0), Verdict::New);
    assert_eq!(r.commit(9, 7, 0), Verdict::New);
    assert_eq!(r.sessions.expire(Index(u64::MAX)), 2);
    assert_eq!(r.commit(7, 7, 0), Verdict::Expired { from: 8 });
}

#[test]
fn one_entry_expires_so_many_and_the_next_one_the_rest() {
    let mut r = Replica::new(65_536, 1 << 20);
    for client in 1..=EXPIRE_MAX as u64 + 10 {
        r.commit(client, 1, 0);
    }
    assert_eq!(r.sessions.expire(Index(u64::MAX)), EXPIRE_MAX);
    assert_eq!(r.sessions.expire(Index(u64::MAX)), 10);
}

/// No client can spend the numbers of all others in one go.
#[test]
fn numbers_leap_only_so_far() {
    let mut r = replica();
    assert_eq!(r.commit(7, 1 << 50, 0), Verdict::WindowTooLarge);
    assert_eq!(r.commit(7, u64::MAX, 0), Verdict::WindowTooLarge);
    assert_eq!(r.commit(7, 1 << 40, 0), Verdict::New);
    assert_eq!(r.commit(7, 1 << 50, 0), Verdict::WindowTooLarge);
    r.sessions.close(7);
    assert_eq!(r.commit(8, 1, 0), Verdict::Expired { from: (1 << 40) + 1 });
    assert_eq!(r.commit(8, (1 << 40) + 1, 0), Verdict::New);
}

/// durability.md R9. A deposed leader has taken block 4, whose client had had the answers to 2 and 3
/// from the next one. Those are lost, and 4 is committed after all: in the epoch of before the loss,
/// where nobody looks. Behind it the client is told.
#[test]
fn a_floor_that_passed_over_missing_answers_is_remembered() {
    let of = |seq| Request { client: 7, seq, pending: 0, continues: true };
    let mut r = replica();
    r.commit(7, 1, 0);
    assert!(!r.sessions.misses_answers_of(&of(2)) && r.sessions.misses_answers_of(&of(4)));
    r.commit(7, 4, 0);
    assert!(r.sessions.misses_answers_of(&of(5)), "2 and 3 are gone");
    r.sessions.close(7);
    r.commit(7, 10, 0);
    assert!(!r.sessions.misses_answers_of(&of(11)), "that is its next session");
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
    let again = Request { client: 7, seq: 1, pending: 0, continues: false };
    r.sessions.record(&again, Answer::default());
}

proptest! {
    /// Any mixture of retries, holes and clients against a table without limits: nothing is applied
    /// twice, and two replicas stay equal.
    #[test]
    fn no_mixture_of_retries_applies_a_block_twice(
        steps in proptest::collection::vec((1u64..6, 1u64..40, 0u32..12, 0u8..30), 1..400),
    ) {
        let (mut a, mut b) = (replica(), replica());
        let mut once = std::collections::BTreeSet::new();
        for (client, seq, pending, end) in steps {
            for r in [&mut a, &mut b] {
                match end {
                    0 => r.sessions.close(client),
                    1 => drop(r.sessions.expire(Index(r.next.saturating_sub(10)))),
                    _ => {}
                }
            }
            let verdict = a.commit(client, seq, pending);
            prop_assert_eq!(b.commit(client, seq, pending), verdict);
            prop_assert_eq!(a.sessions.digest(), b.sessions.digest());
            if verdict == Verdict::New {
                prop_assert!(once.insert((client, seq)), "{} {}", client, seq);
            } else {
                let refused = matches!(verdict, Verdict::Stale | Verdict::Expired { .. });
                prop_assert!(once.contains(&(client, seq)) || refused);
            }
        }
    }

    /// The list of sessions stays whole through any order of uses and evictions.
    #[test]
    fn evictions_follow_the_order_of_last_use(clients in proptest::collection::vec(1u64..9, 1..200)) {
        let mut r = Replica::new(4, 1 << 20);
        let mut order: Vec<u64> = Vec::new();
        for (seq, client) in (1..).zip(clients) {
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
