//! Stories about the simulator itself: that it repeats itself, that its trouble is real, and that it
//! sees what is broken.

use super::control;
use super::nemesis::{Fault, Kind, Kinds};
use super::options::{Options, Shape};
use super::regressions::REGRESSIONS;
use super::run::{Outcome, run};
use super::shrink::shrink;
use super::stats::Stats;

fn quick() -> Options {
    Options { seconds: 8, ..Options::default() }
}

fn well(outcome: &Outcome) {
    assert!(outcome.failure.is_none(), "\n{}", outcome.report());
}

#[test]
fn thirty_seeds_of_trouble_break_no_rule() {
    let mut sum = Stats::default();
    for seed in 0..30 {
        let outcome = run(seed, &quick());
        well(&outcome);
        sum.add(&outcome.stats);
    }
    // The trouble was real, and there was work to be hurt by it.
    assert!(sum.faults > 30 * 40, "{sum:?}");
    assert!(sum.kills > 100 && sum.power_losses > 30, "{sum:?}");
    assert!(sum.acknowledged > 1000 && sum.answered_retries > 20, "{sum:?}");
    assert!(sum.elections > 200 && sum.resets > 100 && sum.frames_lost > 500, "{sum:?}");
}

#[test]
fn a_seed_replays_to_the_bit_and_another_one_does_not() {
    for seed in [3, 50] {
        let (first, second) = (run(seed, &quick()), run(seed, &quick()));
        assert_eq!(first, second);
        assert_ne!(first.hash, run(seed + 1, &quick()).hash);
    }
}

#[test]
fn without_faults_everybody_is_answered_without_a_second_election() {
    let options = Options { nemesis: Kinds::NONE, nodes: Some(3), ..quick() };
    for seed in 0..4 {
        let outcome = run(seed, &options);
        well(&outcome);
        let stats = outcome.stats;
        let groups = u64::from(Shape::new(seed, &options).groups);
        let ended = stats.acknowledged + stats.given_up;
        assert!(stats.asked == ended && stats.acknowledged > 20, "{stats:?}");
        assert!(stats.elections <= 2 * groups && stats.faults == 0, "{stats:?}");
    }
}

#[test]
fn a_cluster_of_any_size_is_put_through_it() {
    for nodes in [1, 2, 4, 7] {
        for (shards, groups) in [(1, 1), (4, 9)] {
            let (shards, groups) = (Some(shards), Some(groups));
            let options = Options { nodes: Some(nodes), shards, groups, seconds: 3, ..quick() };
            let outcome = run(u64::from(nodes), &options);
            well(&outcome);
            assert!(outcome.stats.acknowledged > 0);
        }
    }
}

/// Story: the voters lose power, a learner has committed what they lost, and they go on without it.
/// The learner parts, and comes back by a snapshot when the group has gone on.
#[test]
fn a_blackout_parts_learners_from_their_leaders_and_some_come_back() {
    let nemesis = Kinds::parse("members,blackout").unwrap();
    let options = Options { nemesis, seconds: 10, ..Options::default() };
    let blackouts = |seed: &u64| {
        let plan = Shape::new(*seed, &options).plan;
        plan.iter().any(|fault| fault.kind == Kind::Blackout)
    };
    let mut sum = Stats::default();
    for seed in (1..10_000).filter(blackouts) {
        let outcome = run(seed, &options);
        well(&outcome);
        sum.add(&outcome.stats);
        if sum.parted > 0 && sum.returned > 0 {
            break;
        }
    }
    assert!(sum.parted > 0 && sum.returned > 0 && sum.losses > 0, "{sum:?}");
}

/// Story: links break and followers are cut off while they are sent snapshots, which are small here, so
/// that most come whole or not at all; and where one did not, it is gone on with.
#[test]
fn transfers_of_snapshots_that_broke_off_go_on() {
    let options = Options { nemesis: Kinds::parse("network").unwrap(), ..Options::default() };
    let mut sum = Stats::default();
    for seed in 1..200 {
        let outcome = run(seed, &options);
        well(&outcome);
        sum.add(&outcome.stats);
        if sum.resumes >= 2 {
            break;
        }
    }
    assert!(sum.installs > sum.resumes && sum.resumes >= 2, "{sum:?}");
}

#[test]
fn blackouts_are_only_where_a_majority_may_lose_power_and_leave_other_seeds_alone() {
    let with = Options { nemesis: Kinds::all(), ..Options::default() };
    let without = Options { nemesis: Kinds::all().without(Kind::Blackout), ..with.clone() };
    let mut seen = 0;
    for seed in 0..500 {
        let (some, none) = (Shape::new(seed, &with), Shape::new(seed, &without));
        let (ours, rest): (Vec<Fault>, Vec<Fault>) =
            some.plan.iter().copied().partition(|fault| fault.kind == Kind::Blackout);
        assert_eq!(rest, none.plan);
        assert!(ours.is_empty() || (some.majority && some.changes && !some.all_sync()));
        seen += usize::from(!ours.is_empty());
    }
    assert!((3..50).contains(&seen), "{seen} of 500 seeds");
}

#[test]
fn the_command_line_of_a_run_names_all_that_it_was_told() {
    let options = Options {
        nodes: Some(5),
        nemesis: Kinds::parse("kill,power").unwrap(),
        only: Some(vec![3, 9]),
        lying_disks: true,
        ..quick()
    };
    let line = "ringraft sim --seed 7 --seconds 8 --nodes 5 --nemesis kill,power --only 3,9 \
                --lying-disks";
    assert_eq!(options.command_line(7), line);
}

#[test]
fn control_on_disks_that_ignore_sync_something_acknowledged_is_seen_lost() {
    let first =
        control::first_loss(1).expect("a simulator that sees no loss here sees none at all");
    let options = control::options();
    let again = run(first.seed, &options);
    assert_eq!(first.report(), again.report(), "a failing run shows the same trace again");
    for part in ["broken  ", "append after i", "asks #", "again   ringraft sim --seed"] {
        assert!(first.report().contains(part), "{part:?} in\n{}", first.report());
    }
}

#[test]
fn a_failing_plan_shrinks_to_what_the_failure_needs() {
    let first = control::first_loss(1).expect("there is one");
    let (options, smallest) = shrink(&first, &control::options());
    let (rule, kept) = (first.failure.unwrap().violation.rule, options.only.clone().unwrap());
    assert!(kept.len() < Shape::new(first.seed, &control::options()).plan.len() / 2, "{kept:?}");
    let again = run(first.seed, &options);
    assert_eq!(again, smallest);
    assert_eq!(again.failure.unwrap().violation.rule, rule);
}

#[test]
fn the_kept_seeds_stay_green() {
    for regression in REGRESSIONS {
        let outcome = run(regression.seed, &(regression.options)());
        assert!(outcome.failure.is_none(), "{}\n{}", regression.why, outcome.report());
    }
}
