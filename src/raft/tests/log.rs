use super::*;
use crate::ids::GroupId;
use crate::raft::harness::sample_block;

fn block(first: u64, last: u64, term: u64) -> Block {
    let mut block = sample_block(GroupId(0), (last - first + 1) as u32, 8);
    block.stamp(Term(term), Index(first), 0);
    block
}

/// Blocks 1..=3 of term 1, 4 of term 1, 5..=6 of term 3, written by s1, s2 and s3.
fn sample() -> Log {
    let mut log = Log::new(LogStart::default(), Index(0), Vec::new(), Index(0), Index(0));
    for (seq, (first, last, term)) in (1..).zip([(1, 3, 1), (4, 4, 1), (5, 6, 3)]) {
        log.append(block(first, last, term));
        log.write_started(Seq(seq));
        log.check_invariants();
    }
    log
}

fn firsts(blocks: Option<Blocks<'_>>) -> Option<Vec<u64>> {
    blocks.map(|blocks| blocks.map(|b| b.first().get()).collect())
}

#[test]
fn terms_are_known_for_the_whole_log_and_for_nothing_else() {
    let log = sample();
    let terms: Vec<_> = (0..=7).map(|i| log.term_at(Index(i)).map(Term::get)).collect();
    assert_eq!(
        terms,
        [0, 1, 1, 1, 1, 3, 3].map(Some).into_iter().chain([None]).collect::<Vec<_>>()
    );

    // A log whose front is gone still knows the term of the entry before it.
    let runs = vec![TermRun { first: Index(3), term: Term(2), epoch: 0, since: Index(3) }];
    let start = LogStart { index: Index(4), term: Term(2), epoch: 0 };
    let log = Log::new(start, Index(9), runs, Index(6), Index(4));
    let known = [3, 4, 5, 9, 10].map(|i| log.term_at(Index(i)).is_some());
    assert_eq!(known, [false, true, true, true, false]);
}

#[test]
fn where_two_logs_could_agree_is_found_by_term() {
    let log = sample();
    let hint = |index, term| {
        let (index, term) = log.highest_with_term_at_most(Index(index), Term(term));
        (index.get(), term.get())
    };
    assert_eq!(hint(9, 5), (6, 3), "beyond the end: the last entry");
    assert_eq!(hint(6, 3), (6, 3));
    assert_eq!(hint(6, 2), (4, 1), "the whole run of a later term is skipped");
    assert_eq!(hint(2, 2), (2, 1));
    assert_eq!(hint(6, 0), (0, 0));
}

#[test]
fn a_completed_write_makes_durable_what_it_wrote() {
    let mut log = sample();
    assert_eq!((log.durable(), log.written_by(Index(3))), (Index(0), Seq(1)));
    assert_eq!(log.written_by(Index(4)), Seq(2));
    assert!(log.written(Seq(2)));
    assert_eq!(log.durable(), Index(4));
    assert_eq!(log.written_by(Index(4)), Seq::ZERO);
    assert_eq!(log.written_by(Index(6)), Seq(3));
    assert!(!log.written(Seq(2)));
}

#[test]
fn a_write_that_was_overtaken_by_a_truncation_makes_nothing_of_it_durable() {
    let mut log = sample();
    log.truncate(Index(5));
    log.append(block(5, 5, 4));
    log.write_started(Seq(4));
    log.check_invariants();
    assert!(log.written(Seq(3)));
    assert_eq!(log.durable(), Index(4), "s3 wrote i5 of term 3, which is gone");
    assert!(log.written(Seq(4)));
    assert_eq!(log.durable(), Index(5));
}

#[test]
fn a_truncation_takes_durable_back_with_it() {
    let mut log = sample();
    log.written(Seq(3));
    log.truncate(Index(4));
    assert_eq!((log.durable(), log.last_index(), log.last_term()), (Index(3), Index(3), Term(1)));
    log.check_invariants();
    log.truncate(Index(1));
    assert_eq!((log.last_index(), log.last_term(), log.runs().len()), (Index(0), Term(0), 0));
    log.check_invariants();
}

#[test]
#[should_panic(expected = "never replaced")]
fn what_is_committed_is_not_truncated() {
    let mut log = sample();
    log.commit_to(Index(4));
    log.truncate(Index(4));
}

#[test]
#[should_panic(expected = "agree on the block")]
fn a_truncation_inside_a_block_is_a_broken_log() {
    sample().truncate(Index(2));
}

#[test]
fn only_blocks_that_are_applied_and_durable_are_freed() {
    let mut log = sample();
    let all = Index(u64::MAX);
    log.evict(all, 0);
    assert_eq!(log.first_cached(), Index(1), "nothing is applied");
    log.commit_to(Index(4));
    log.applied_to(Index(4));
    log.evict(all, 0);
    assert_eq!(log.first_cached(), Index(1), "nothing is durable");
    log.written(Seq(1));
    log.evict(all, 0);
    assert_eq!(log.first_cached(), Index(4));
    log.check_invariants();
}

#[test]
fn blocks_that_a_follower_needs_stay_until_memory_is_short() {
    let mut log = sample();
    log.written(Seq(3));
    log.commit_to(Index(6));
    log.applied_to(Index(6));
    log.evict(Index(3), u64::MAX);
    assert_eq!(log.first_cached(), Index(4));
    let last_only = block(5, 6, 3).size() as u64;
    log.evict(Index(3), last_only);
    assert_eq!((log.first_cached(), log.cached_bytes()), (Index(5), last_only));
}

#[test]
fn blocks_are_read_from_an_edge_on_or_not_at_all() {
    let mut log = sample();
    assert_eq!(firsts(log.blocks_from(Index(4))), Some(vec![4, 5]));
    assert_eq!(firsts(log.blocks_from(Index(7))), Some(vec![]));
    log.written(Seq(3));
    log.commit_to(Index(3));
    log.applied_to(Index(3));
    log.evict(Index(3), u64::MAX);
    assert_eq!(firsts(log.blocks_from(Index(1))), None, "on disk only");
    assert_eq!(firsts(log.blocks_from(Index(4))), Some(vec![4, 5]));
}

#[test]
fn blocks_for_a_follower_are_cut_to_size_and_start_at_an_edge() {
    let log = sample();
    let copied = |from, bytes_max| {
        let mut arena = Vec::new();
        let bytes = log.copy_blocks(Index(from), bytes_max, &mut arena).unwrap();
        assert_eq!(bytes, arena.iter().map(|b| b.size() as u64).sum::<u64>());
        arena.iter().map(|b| b.first().get()).collect::<Vec<_>>()
    };
    assert_eq!(copied(1, u64::MAX), [1, 4, 5]);
    assert_eq!(copied(4, 1), [4], "at least one");
    assert_eq!(copied(6, u64::MAX), [5], "the block that holds it");
}

#[test]
fn uncommitted_bytes_follow_commits_and_truncations() {
    let mut log = sample();
    let size = |first, last| block(first, last, 1).size() as u64;
    assert_eq!(log.uncommitted_bytes(), size(1, 3) + size(4, 4) + size(5, 6));
    log.commit_to(Index(3));
    assert_eq!(log.uncommitted_bytes(), size(4, 4) + size(5, 6));
    log.truncate(Index(5));
    assert_eq!(log.uncommitted_bytes(), size(4, 4));
    log.commit_to(Index(4));
    assert_eq!(log.uncommitted_bytes(), 0);
}

#[test]
fn a_restored_log_goes_on_behind_its_last_entry() {
    let runs = vec![TermRun { first: Index(1), term: Term(2), epoch: 0, since: Index(1) }];
    let mut log = Log::new(LogStart::default(), Index(9), runs, Index(12), Index(0));
    assert_eq!((log.commit(), log.durable(), log.first_cached()), (Index(9), Index(9), Index(10)));
    log.append(block(10, 11, 2));
    log.write_started(Seq(1));
    log.append(block(12, 12, 3));
    log.write_started(Seq(2));
    log.check_invariants();
    assert_eq!(log.runs().len(), 2);
}

/// e1 begins with i6, since i4; e2 with i9.
#[test]
fn what_an_epoch_renames_is_told_to_be_committed_with_its_entry() {
    let run = |first, term, epoch, since| {
        let (first, since) = (Index(first), Index(since));
        TermRun { first, term: Term(term), epoch, since }
    };
    let runs = vec![run(1, 1, 0, 1), run(3, 2, 0, 3), run(6, 4, 1, 4), run(9, 7, 2, 9)];
    let mut log = Log::new(LogStart::default(), Index(10), runs, Index(10), Index(10));
    let told = |log: &Log| [2, 3, 4, 5, 6, 8, 9, 10].map(|i| log.commit_within(Index(i)).get());
    assert_eq!(told(&log), [2, 3, 3, 3, 6, 8, 9, 10]);
    assert_eq!(log.known_committed(), Index(10));

    log.begin_at(Index(5));
    assert_eq!(told(&log), [2, 3, 3, 3, 6, 8, 9, 10], "it still knows where e1 begins");
    log.begin_at(Index(7));
    assert_eq!(told(&log), [0, 0, 0, 0, 0, 8, 9, 10], "not any more: they need a snapshot");
}
