//! The shadow beside the log that ships, on the disk that loses things.

use bytes::Bytes;

use super::*;
use crate::block::{Block, BlockKind};
use crate::ids::{HardState, Tick};
use crate::sim::disk::{Disk, OpClass, Survival, Times};
use crate::sim::rng::Rng;
use crate::wal::{DiskDone, DiskError, LogIdentity, Verdict, Wal, recover};

const ME: LogIdentity = LogIdentity { cluster: 7, node: 1, disk: 3 };
const G: GroupId = GroupId(1);
const N2: NodeId = NodeId(2);

fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 16 << 10,
        block_bytes: 512,
        flush_bytes_max: 2048,
        sync_lag_us: 2000,
        ..WalConfig::default()
    }
}

fn block(group: GroupId, term: u64, index: u64) -> Block {
    let mut block = Block::special(group, BlockKind::Noop, Bytes::from(vec![1; 64]));
    block.stamp(Term(term), Index(index), 0);
    block
}

/// A log, its disk and its shadow; operations that a story holds back.
struct Desk {
    wal: Wal,
    disk: Disk,
    shadow: Shadow,
    now: u64,
    ops: Vec<DiskOp>,
}

impl Desk {
    fn new(seed: u64) -> Self {
        let mut disk = Disk::new(config(), seed);
        let mut found = recover(config(), ME, &mut disk.source()).unwrap();
        let wal = Wal::resume(config(), ME, seed, &mut found);
        let shadow = Shadow::new(config());
        let mut desk = Self { wal, disk, shadow, now: 0, ops: Vec::new() };
        desk.settle();
        desk
    }

    fn append(&mut self, group: GroupId, term: u64, index: u64, truncates: bool, sync: bool) {
        self.wal.append(group, &[block(group, term, index)], truncates, sync);
    }

    fn vote(&mut self, group: GroupId, term: u64, vote: Option<NodeId>) {
        let state = HardState { term: Term(term), vote, commit: Index::ZERO };
        self.wal.hard_state(group, state);
    }

    /// What the log asks for now; nothing reaches the disk.
    fn flush(&mut self) -> usize {
        let had = self.ops.len();
        self.wal.flush(Tick(self.now), &mut self.ops);
        self.ops[had..].iter().for_each(|op| self.shadow.issued(op).unwrap());
        self.ops.len() - had
    }

    fn issue(&mut self) {
        self.disk.issue(Tick(self.now), &mut self.ops);
    }

    fn hand_over(&mut self, op: OpId, done: Result<DiskDone, DiskError>) {
        self.shadow.completed(op, done.is_ok());
        let _ = self.wal.complete(Tick(self.now), op, done);
    }

    /// Time passes until `until`.
    fn run(&mut self, until: u64) {
        while let Some((op, done)) = self.disk.take_due(Tick(until)) {
            self.hand_over(op, done);
        }
        self.now = until;
    }

    /// Everything that can complete does; no time passes for the log.
    fn settle(&mut self) {
        loop {
            let asked = self.flush();
            self.issue();
            let Some((op, done)) = self.disk.take_due(Tick(1 << 50)) else {
                if asked == 0 {
                    return;
                }
                continue;
            };
            self.hand_over(op, done);
        }
    }

    fn matched(&self, index: u64, term: u64) -> (bool, bool) {
        let may = |sync| self.shadow.may_say_matched(G, Index(index), Term(term), sync);
        (may(false), may(true))
    }
}

#[test]
fn nothing_may_be_said_before_its_write_has_completed() {
    let mut d = Desk::new(1);
    d.vote(G, 1, Some(N2));
    d.append(G, 1, 1, false, true);
    d.flush();
    assert_eq!(d.matched(1, 1), (false, false));
    assert!(!d.shadow.may_say_vote(G, Term(1), N2) && !d.shadow.may_say_term(G, Term(1)));
    d.settle();
    assert_eq!(d.matched(1, 1), (true, true));
    assert!(d.shadow.may_say_vote(G, Term(1), N2) && d.shadow.may_say_term(G, Term(1)));
    assert!(!d.shadow.may_say_vote(G, Term(1), NodeId(3)) && !d.shadow.may_say_term(G, Term(2)));
    assert_eq!((d.matched(1, 2), d.matched(2, 1)), ((false, false), (false, false)));
}

#[test]
fn flush_7_says_nothing_before_flush_6_has_completed() {
    let mut d = Desk::new(1);
    d.append(G, 1, 1, false, true);
    d.flush();
    d.append(G, 1, 2, false, true);
    d.flush();
    let later = d.ops.pop().unwrap();
    let earlier = d.ops.pop().unwrap();
    d.ops.push(later);
    d.issue();
    d.run(1000);
    assert_eq!((d.matched(1, 1), d.matched(2, 1)), ((false, false), (false, false)));
    d.ops.push(earlier);
    d.issue();
    d.run(2000);
    assert_eq!((d.matched(1, 1), d.matched(2, 1)), ((true, true), (true, true)));
}

#[test]
fn an_unsynced_entry_may_be_said_without_wal_sync_and_a_vote_behind_it_waits() {
    let mut d = Desk::new(1);
    d.append(G, 1, 1, false, false);
    d.flush();
    d.vote(GroupId(2), 3, Some(N2));
    d.flush();
    d.issue();
    d.run(500);
    assert_eq!(d.matched(1, 1), (true, false));
    assert!(!d.shadow.may_say_vote(GroupId(2), Term(3), N2), "a hole would be in front of it");
    d.settle();
    assert_eq!(d.matched(1, 1), (true, true));
    assert!(d.shadow.may_say_vote(GroupId(2), Term(3), N2));
}

/// What was said before a kill is still true after it, and no more than that.
#[test]
fn an_unsynced_entry_that_was_said_may_be_said_after_a_kill_and_is_not_held_for_good() {
    let mut d = Desk::new(1);
    d.vote(G, 1, Some(N2));
    d.settle();
    d.append(G, 1, 1, false, false);
    d.flush();
    d.issue();
    d.run(500);
    assert_eq!(d.matched(1, 1), (true, false));
    d.disk.kill();
    let found = recover(config(), ME, &mut d.disk.source()).unwrap();
    d.shadow = d.shadow.restarted(&found);
    assert_eq!(d.matched(1, 1), (true, false));
    assert!(!d.shadow.holds(G, Index(1), Term(1)));
}

#[test]
fn what_is_durable_is_held_until_another_entry_takes_its_place() {
    let mut d = Desk::new(1);
    d.append(G, 1, 1, false, true);
    d.append(G, 1, 2, false, true);
    d.settle();
    let holds = |d: &Desk, index, term| d.shadow.holds(G, Index(index), Term(term));
    assert!(holds(&d, 1, 1) && holds(&d, 2, 1) && !holds(&d, 3, 1) && !holds(&d, 2, 2));
    d.append(G, 2, 1, true, true);
    d.settle();
    assert!(holds(&d, 1, 2) && !holds(&d, 1, 1) && !holds(&d, 2, 1));
}

#[test]
fn a_sync_says_nothing_of_what_completed_after_it_was_issued() {
    let mut d = Desk::new(1);
    d.append(G, 1, 1, false, false);
    d.flush();
    d.issue();
    d.run(500);
    let segment = SegmentNo(1);
    let sync = DiskOp::Sync { op: OpId(900), segment };
    d.shadow.issued(&sync).unwrap();
    d.append(G, 1, 2, false, false);
    d.flush();
    d.issue();
    d.run(1000);
    d.shadow.completed(OpId(900), true);
    assert_eq!((d.matched(1, 1), d.matched(2, 1)), ((true, true), (true, false)));
}

#[test]
fn a_truncation_is_said_only_when_it_is_durable_whatever_the_mode() {
    let mut d = Desk::new(1);
    d.append(G, 1, 1, false, false);
    d.append(G, 1, 2, false, false);
    d.flush();
    d.issue();
    d.run(500);
    d.append(G, 2, 2, true, false);
    assert_eq!(d.flush(), 2, "the write, and a sync of what lies before it");
    let sync = d.ops.pop();
    d.issue();
    d.run(1000);
    assert_eq!(d.shadow.written(), d.wal.written());
    assert_eq!(d.matched(2, 2), (false, false), "its write is done, and it is not durable");
    assert_eq!(d.matched(2, 1), (true, false), "an old reply was true when it was made");
    d.ops.extend(sync);
    d.issue();
    d.run(2000);
    assert_eq!(d.matched(2, 2), (true, true));
}

#[test]
fn after_an_error_nothing_more_may_be_said() {
    let mut d = Desk::new(1);
    d.append(G, 1, 1, false, false);
    d.flush();
    d.issue();
    d.run(500);
    let sync = |op| DiskOp::Sync { op: OpId(op), segment: SegmentNo(1) };
    d.shadow.issued(&sync(900)).unwrap();
    d.shadow.completed(OpId(900), false);
    d.shadow.issued(&sync(901)).unwrap();
    d.shadow.completed(OpId(901), true);
    assert_eq!(d.matched(1, 1), (true, false));
}

#[test]
fn a_flush_out_of_its_place_or_with_a_false_mark_is_refused() {
    let mut d = Desk::new(1);
    // It hears of writes and never of a completion.
    let mut deaf = Shadow::new(config());
    let mut flush = |d: &mut Desk, index| {
        d.append(G, 1, index, false, true);
        d.flush();
        let write = d.ops.iter().find(|op| matches!(op, DiskOp::Write { .. })).unwrap();
        let heard = deaf.issued(write);
        let again = d.shadow.issued(write).unwrap_err();
        assert!(again.contains("overwrites"), "{again}");
        d.settle();
        heard
    };
    assert_eq!(flush(&mut d, 1), Ok(()));
    let mark = flush(&mut d, 2).unwrap_err();
    assert!(mark.contains("not durable"), "{mark}");
}

/// Lives that end in kills and losses of power; at each step the shadow agrees with the log.
fn lives(seed: u64, honest: bool) -> (u64, u64) {
    let mut rng = Rng::new(seed);
    let mut d = Desk::new(seed);
    d.disk.set_honest(honest);
    let mut said = 0;
    let mut terms = [1; 3];
    for life in 0..8 {
        let mut last = [0; 3];
        let found = recover(config(), ME, &mut d.disk.source()).unwrap();
        for g in 0..3_u32 {
            let group = found.groups.get(&GroupId(g));
            last[g as usize] = group.map_or(0, |group| group.last.0);
            terms[g as usize] = group
                .map_or(1, |g| g.hard_state.term.0.max(g.terms.last().map_or(1, |t| t.term.0)));
        }
        let mut marks = Vec::new();
        for _ in 0..rng.below(150) {
            let g = rng.below(3) as usize;
            let group = GroupId(g as u32);
            if rng.chance(15) {
                terms[g] += 1;
                d.vote(group, terms[g], Some(N2));
                marks.push((group, d.wal.staged(), terms[g], 0, true));
            } else {
                let back = if rng.chance(10) { last[g].min(rng.below(3)) } else { 0 };
                let index = last[g] + 1 - back;
                if back > 0 {
                    terms[g] += 1;
                    d.vote(group, terms[g], None);
                }
                let sync = rng.chance(50);
                d.append(group, terms[g], index, back > 0, sync);
                last[g] = index;
                marks.push((group, d.wal.staged(), terms[g], index, sync));
            }
            let until = d.now + rng.below(400);
            d.run(until);
            d.flush();
            d.issue();
            assert_eq!(d.shadow.written(), d.wal.written(), "seed {seed} life {life}");
            assert!(d.shadow.durable() >= d.wal.durable(), "seed {seed} life {life}");
            for &(group, lsn, term, index, sync) in &marks {
                let settled = if index == 0 {
                    d.shadow.may_say_vote(group, Term(term), N2)
                } else {
                    d.shadow.may_say_matched(group, Index(index), Term(term), sync)
                };
                let durable = lsn <= d.wal.durable();
                let written = lsn <= d.wal.written();
                assert!(settled || !durable, "seed {seed}: the log is right to say {index}");
                assert!(!settled || written, "seed {seed}: {group:?} {index} is not written");
                assert!(!(settled && sync) || lsn <= d.shadow.durable());
                said += u64::from(settled);
            }
        }
        if rng.chance(50) {
            d.disk.power_cut(Survival::Mixed);
        } else {
            d.disk.kill();
        }
        let mut found = recover(config(), ME, &mut d.disk.source()).unwrap();
        let rot = matches!(found.verdict, Verdict::Rot { .. });
        if rot || d.shadow.lost(&found).is_some() {
            assert!(!honest, "seed {seed} life {life}: {:?}", d.shadow.lost(&found));
            return (said, 1);
        }
        d.shadow = d.shadow.restarted(&found);
        d.wal = Wal::resume(config(), ME, seed * 100 + life, &mut found);
        d.ops.clear();
    }
    (said, 0)
}

#[test]
fn it_agrees_with_the_log_through_kills_and_losses_of_power() {
    let said: u64 = (0..60).map(|seed| lives(seed, true).0).sum();
    assert!(said > 100_000, "{said}");
}

#[test]
fn control_what_a_lying_disk_loses_is_missed() {
    let lost: u64 = (0..20).map(|seed| lives(seed, false).1).sum();
    assert!(lost > 10, "{lost}");
}

#[test]
fn a_failed_sync_freezes_the_marks_of_both() {
    let mut d = Desk::new(4);
    d.append(G, 1, 1, false, false);
    d.settle();
    d.disk.fail(OpClass::Sync, Times::Once);
    d.wal.sync();
    d.settle();
    d.run(d.now + 10_000);
    d.settle();
    assert!(d.wal.poisoned().is_some());
    assert_eq!(d.matched(1, 1), (true, false));
}
