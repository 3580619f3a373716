//! The checker is first shown histories whose verdict is known, good and bad.

use proptest::prelude::*;

use super::*;
use crate::sim::rng::Rng;

/// One operation a line: `client from..to operation result`, `to` is `?` if nobody was told.
/// `w5`, `r5`, `r-`, `c1>2` and `c1>2!` (refused); `-` is an empty register.
fn history(text: &str) -> History {
    let mut history = History::new();
    let value = |text: &str| if text == "-" { None } else { Some(text.parse().unwrap()) };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (client, rest) = line.split_once(' ').unwrap();
        let (times, what) = rest.split_once(' ').unwrap();
        let (from, to) = times.split_once("..").unwrap();
        let (op, told) = match what.split_at(1) {
            ("w", v) => (Op::Write(v.parse().unwrap()), Told::Written),
            ("r", v) => (Op::Read, Told::Value(value(v))),
            (_, cas) => {
                let refused = cas.ends_with('!');
                let (expected, new) = cas.trim_end_matches('!').split_once('>').unwrap();
                let (expected, new) = (value(expected), new.parse().unwrap());
                (Op::CompareAndSet { expected, new }, Told::Swapped(!refused))
            }
        };
        let op = history.invoke(client.parse().unwrap(), 7, op, from.parse().unwrap());
        if to != "?" {
            history.respond(op, to.parse().unwrap(), told);
        }
    }
    history
}

fn good(story: &str, text: &str) {
    let verdict = check(&history(text));
    assert_eq!(verdict, Ok(()), "{story}");
}

fn bad(story: &str, text: &str) {
    let verdict = check(&history(text));
    assert!(matches!(verdict, Err(Violation::NotLinearizable { key: 7, .. })), "{story}");
}

#[test]
fn good_histories_are_accepted() {
    good("nothing happened", "");
    good("one after another", "1 1..2 w5\n 2 3..4 r5\n 1 5..6 c5>6\n 2 7..8 r6");
    good("an empty register", "1 1..2 r-\n 1 3..4 c->1\n 1 5..6 r1");
    good("a read beside a write sees the old value", "1 1..9 w5\n 2 2..3 r-\n 2 4..5 r5");
    good("or the new one", "1 1..9 w5\n 2 2..3 r5");
    good("overlapping writes in either order", "1 1..9 w5\n 2 1..9 w6\n 3 10..11 r5");
    good("and the other one", "1 1..9 w5\n 2 1..9 w6\n 3 10..11 r6");
    good("a refused compare-and-set", "1 1..2 w5\n 2 3..4 c4>6!\n 2 5..6 r5");
    good("of two that compete one wins", "1 1..2 w5\n 2 3..6 c5>6\n 3 3..6 c5>7!\n 1 7..8 r6");
    good("an unknown write that never happened", "1 1..2 w5\n 2 3..? w6\n 1 9..10 r5");
    good("one that happened", "1 1..2 w5\n 2 3..? w6\n 1 9..10 r6");
    good("one that surfaces late", "1 1..2 w5\n 2 3..? w6\n 1 5..6 r5\n 1 7..8 r5\n 1 90..91 r6");
    good(
        "an unknown swap explains a refusal",
        "1 1..2 w5\n 2 3..? c5>6\n 1 4..5 c5>7!\n 3 6..7 r6",
    );
    good(
        "two unknown swaps in a chain",
        "1 1..2 w1\n 2 3..? c1>2\n 3 3..? c2>3\n 1 4..5 r1\n 1 6..7 r3",
    );
    good("touching operations overlap", "1 1..5 w5\n 2 5..6 r-\n 3 7..8 r5");
    good("an unknown read says nothing", "1 1..2 w5\n 2 3..? r9\n 1 4..5 r5");
    good("a value written twice comes back", "1 1..2 w5\n 1 3..4 w6\n 2 5..6 w5\n 1 7..8 r5");
}

#[test]
fn bad_histories_are_refused() {
    bad("a stale read", "1 1..2 w5\n 1 3..4 w6\n 2 5..6 r5");
    bad("a read of what nobody wrote", "1 1..2 w5\n 2 3..4 r9");
    bad("a lost update", "1 1..2 w5\n 1 3..4 c5>6\n 2 5..6 c5>7\n 1 7..8 r7");
    bad("two that compete both win", "1 1..2 w5\n 2 3..6 c5>6\n 3 3..6 c5>7");
    bad("a write that is gone", "1 1..2 w5\n 2 3..4 r-");
    bad("a retried swap applied twice", "1 1..2 w1\n 1 3..4 c1>2\n 2 5..6 w1\n 3 7..8 r2");
    bad("the new value, then the old one", "1 1..9 w5\n 2 2..3 r5\n 3 4..5 r-");
    bad("two readers disagree on the order", "1 1..9 w5\n 2 1..9 w6\n 3 10..11 r5\n 4 12..13 r6");
    bad("a swap refused without a reason", "1 1..2 w5\n 2 3..4 c5>6!");
    bad("a read from the future", "1 1..2 r5\n 2 3..4 w5");
    bad("an unknown write before it began", "1 1..2 w5\n 1 3..4 r6\n 2 5..? w6");
    bad("an unknown write that happens twice", "1 1..? w6\n 2 2..3 r6\n 2 4..5 w5\n 2 6..7 r6");
    bad(
        "an unknown swap that nothing allows",
        "1 1..2 w1\n 2 3..? c1>2\n 1 4..5 r2\n 1 6..7 w3\n 3 8..9 r2",
    );
    bad("a swap that found what was gone", "1 1..2 w5\n 1 3..4 w6\n 2 5..6 c5>7\n 1 7..8 r7");
}

#[test]
fn a_violation_is_told_with_its_surroundings() {
    let verdict = check(&history("1 1..2 w5\n 1 3..4 w6\n 2 5..6 r5")).unwrap_err();
    let text = verdict.to_string();
    assert!(text.contains("nothing explains c2 [5..6] read = 5"), "{text}");
    assert!(text.contains("  c1 [1..2] write 5\n  c1 [3..4] write 6\n"), "{text}");
}

#[test]
fn registers_are_judged_apart() {
    let mut history = History::new();
    for key in 0..3 {
        let write = history.invoke(1, key, Op::Write(key), 1);
        history.respond(write, 2, Told::Written);
        let read = history.invoke(1, key, Op::Read, 3);
        history.respond(read, 4, Told::Value(Some(key)));
    }
    assert_eq!(check(&history), Ok(()));
    let read = history.invoke(1, 2, Op::Read, 5);
    history.respond(read, 6, Told::Value(Some(1)));
    assert!(matches!(check(&history), Err(Violation::NotLinearizable { key: 2, .. })));
}

#[test]
fn many_unknown_operations_cost_little_and_too_many_are_refused() {
    let mut history = History::new();
    for n in 0..200 {
        history.invoke(n, 1, Op::Write(1000 + n), n);
        let read = history.invoke(999, 1, Op::Read, 1000 + n);
        history.respond(read, 1000 + n, Told::Value(None));
    }
    let read = history.invoke(999, 1, Op::Read, 5000);
    history.respond(read, 5001, Told::Value(Some(1100)));
    assert_eq!(check(&history), Ok(()));
    for n in 0..100 {
        history.invoke(n, 1, Op::Write(9000 + n), 6000);
    }
    assert!(matches!(check(&history), Err(Violation::TooComplex { key: 1, .. })));
}

/// A history of a real register: each operation takes effect at one instant within its time.
/// `percent` of the outcomes are unknown; half of these never take effect.
fn real(seed: u64, operations: u64, clients: u64, percent: u64) -> History {
    let mut rng = Rng::new(seed);
    let mut history = History::new();
    let mut plan = Vec::new();
    let mut free = vec![0; clients as usize];
    for n in 0..operations {
        let client = rng.below(clients);
        let invoked = free[client as usize] + 1 + rng.below(40);
        let effect = invoked + rng.below(60);
        let returned = effect + rng.below(60);
        free[client as usize] = returned;
        let op = match rng.below(3) {
            0 => Op::Write(1000 + n),
            1 => Op::Read,
            _ => Op::CompareAndSet { expected: None, new: 1000 + n },
        };
        let unknown = rng.chance(percent) && op != Op::Read;
        let effect = if unknown { effect + rng.below(400) } else { effect };
        let happens = !unknown || rng.chance(50);
        plan.push((effect, n, client, op, invoked, returned, unknown, happens));
    }
    plan.sort_unstable_by_key(|op| (op.0, op.1));
    let (mut value, mut written) = (None, vec![None]);
    for (effect, _, client, op, invoked, returned, unknown, happens) in plan {
        // Expect what is there, or what was there at some time.
        let expected =
            if rng.chance(60) { value } else { written[rng.below(written.len() as u64) as usize] };
        let op = match op {
            Op::CompareAndSet { new, .. } => Op::CompareAndSet { expected, new },
            other => other,
        };
        let (after, told) = match op {
            Op::Write(new) => (Some(new), Told::Written),
            Op::Read => (value, Told::Value(value)),
            Op::CompareAndSet { expected, new } if expected == value => {
                (Some(new), Told::Swapped(true))
            }
            Op::CompareAndSet { .. } => (value, Told::Swapped(false)),
        };
        assert!(invoked <= effect);
        if happens {
            value = after;
            written.push(value);
        }
        let op = history.invoke(client, 1, op, invoked);
        if !unknown {
            history.respond(op, returned, told);
        }
    }
    history
}

/// The history with one result that cannot be: a read of, or a swap from, what nobody wrote.
fn corrupted(history: &History, pick: u64) -> Option<History> {
    let mut bad = history.clone();
    let told = |o: &&mut Operation| matches!(o.told, Told::Value(_) | Told::Swapped(true));
    let mut reads: Vec<_> = bad.operations.iter_mut().filter(told).collect();
    if reads.is_empty() {
        return None;
    }
    let at = (pick % reads.len() as u64) as usize;
    let chosen = &mut reads[at];
    match &mut chosen.op {
        Op::Read => chosen.told = Told::Value(Some(1)),
        Op::CompareAndSet { expected, .. } => *expected = Some(1),
        Op::Write(_) => return None,
    }
    Some(bad)
}

#[test]
fn a_long_history_with_many_unknown_outcomes_is_judged() {
    for seed in 0..4 {
        assert_eq!(check(&real(seed, 2000, 6, 5)), Ok(()));
    }
}

/// Tries all orders.
fn explained(left: &[Operation], value: Value) -> bool {
    if left.iter().all(|o| o.told == Told::Nothing) {
        return true;
    }
    (0..left.len()).any(|n| {
        let next = left[n];
        let too_early = |o: &Operation| o.told != Told::Nothing && o.returned < next.invoked;
        if left.iter().any(too_early) {
            return false;
        }
        let rest: Vec<_> = [&left[..n], &left[n + 1..]].concat();
        let (after, told) = match next.op {
            Op::Write(new) => (Some(new), Told::Written),
            Op::Read => (value, Told::Value(value)),
            Op::CompareAndSet { expected, new } if expected == value => {
                (Some(new), Told::Swapped(true))
            }
            Op::CompareAndSet { .. } => (value, Told::Swapped(false)),
        };
        (told == next.told || next.told == Told::Nothing) && explained(&rest, after)
    })
}

/// A few operations with any results, on few values.
fn anything(seed: u64) -> History {
    let mut rng = Rng::new(seed);
    let mut history = History::new();
    for client in 0..rng.between(2, 7) {
        let some = |rng: &mut Rng| (rng.below(4) > 0).then(|| rng.between(1, 3));
        let invoked = rng.below(12);
        let (op, told) = match rng.below(3) {
            0 => (Op::Write(rng.between(1, 3)), Told::Written),
            1 => (Op::Read, Told::Value(some(&mut rng))),
            _ => {
                let expected = some(&mut rng);
                let new = rng.between(1, 3);
                (Op::CompareAndSet { expected, new }, Told::Swapped(rng.chance(70)))
            }
        };
        let op = history.invoke(client, 1, op, invoked);
        if rng.chance(70) {
            history.respond(op, invoked + rng.below(6), told);
        }
    }
    history
}

#[test]
fn the_verdict_is_that_of_trying_all_orders() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..20_000 {
        let history = anything(seed);
        let expected = explained(history.operations(), None);
        assert_eq!(check(&history).is_ok(), expected, "seed {seed}: {history:?}");
        if expected { good += 1 } else { bad += 1 }
    }
    assert!(good > 3000 && bad > 3000, "{good} {bad}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_a_real_register_did_is_accepted_and_with_one_false_result_it_is_not(
        seed in any::<u64>(),
        operations in 1_u64..120,
        clients in 1_u64..7,
        unknown in 0_u64..30,
        pick in any::<u64>(),
    ) {
        let history = real(seed, operations, clients, unknown);
        prop_assert_eq!(check(&history), Ok(()));
        if let Some(bad) = corrupted(&history, pick) {
            let refused = matches!(check(&bad), Err(Violation::NotLinearizable { .. }));
            prop_assert!(refused);
        }
    }

    #[test]
    fn a_stale_read_at_the_end_is_refused(seed in any::<u64>(), operations in 2_u64..80) {
        let mut history = real(seed, operations, 4, 10);
        let end = 1_000_000;
        let first = history.invoke(1, 1, Op::Write(5), end);
        history.respond(first, end + 1, Told::Written);
        let read = history.invoke(1, 1, Op::Read, end + 2);
        history.respond(read, end + 3, Told::Value(Some(5)));
        prop_assert_eq!(check(&history), Ok(()));
        let second = history.invoke(2, 1, Op::Write(6), end + 4);
        history.respond(second, end + 5, Told::Written);
        let read = history.invoke(1, 1, Op::Read, end + 6);
        history.respond(read, end + 7, Told::Value(Some(5)));
        prop_assert!(check(&history).is_err());
    }
}
