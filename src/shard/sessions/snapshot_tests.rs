//! Stories about tables that are frozen, written and restored while recording goes on.

use proptest::prelude::*;

use super::*;
use crate::block::{Block, BlockBuilder, Command, CommandKind};
use crate::ids::{GroupId, NodeId};
use crate::machine::events::{EventLimits, EventStore};
use crate::machine::{FrozenState, StateMachine};
use crate::membership::Membership;
use crate::shard::roster::{Change, Made};
use crate::snapshot::{Header, Piece, SnapshotReader, SnapshotWriter};

fn limits() -> SessionLimits {
    SessionLimits { sessions_max: 6, answers_max: WINDOW_MAX, ..SessionLimits::default() }
}

/// Applies as a shard does; what came of it.
fn commit(table: &mut Sessions, index: u64, (client, seq, pending): (u64, u64, u32)) -> Verdict {
    let request = Request { client, seq, pending, continues: false };
    let verdict = table.check(&request);
    if verdict == Verdict::New {
        let outcome = Outcome { applied: index as u32, duplicates: 1, rejected: 2 };
        table.record(&request, Answer { first: Index(index), term: Term(3), outcome });
    }
    verdict
}

fn write(mut frozen: FrozenSessions, budget: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while frozen.next_chunk(&mut bytes, budget) {}
    bytes
}

fn restore(limits: SessionLimits, bytes: &[u8], piece: usize) -> Result<Sessions, SnapshotError> {
    let mut table = Sessions::new(limits);
    table.restore_begin();
    bytes.chunks(piece.max(1)).try_for_each(|piece| table.restore_chunk(piece))?;
    table.restore_finish().map(|()| table)
}

/// Clients in the order in which they would be evicted.
fn order(table: &Sessions) -> Vec<u64> {
    let (mut order, mut at) = (Vec::new(), table.oldest);
    while at != NONE {
        let session = table.sessions.get(at as usize);
        order.push(session.client);
        at = session.newer;
    }
    order
}

/// Client 7's answer was lost, its leader is gone, and the new leader knows the sessions only from a
/// snapshot (bugs.md 18, 32).
#[test]
fn a_retry_after_a_snapshot_gets_the_first_answer() {
    let mut table = Sessions::new(limits());
    commit(&mut table, 1, (7, 1, 0));
    commit(&mut table, 2, (7, 2, 1));
    let first = table.check(&Request { client: 7, seq: 2, pending: 1, continues: false });
    let mut restored = restore(limits(), &write(table.freeze(), 1), 1).unwrap();
    assert_eq!(commit(&mut restored, 3, (7, 2, 1)), first);
    assert_eq!(commit(&mut restored, 4, (7, 3, 1)), Verdict::New);
}

#[test]
fn what_is_recorded_after_the_freeze_is_not_in_the_snapshot() {
    let mut table = Sessions::new(limits());
    for client in 1..=6 {
        commit(&mut table, client, (client, 1, 0));
    }
    let (frozen, expected) = (table.freeze(), write(table.freeze(), usize::MAX));
    assert_eq!(frozen.memory_bytes(), 0, "all of it is shared");
    for n in 0..50 {
        commit(&mut table, 10 + n, (1 + n % 9, 2 + n / 9, 0));
    }
    assert!(frozen.memory_bytes() > 0);
    assert_eq!(write(frozen, 100), expected);
}

#[test]
fn a_full_window_and_a_full_table_come_back() {
    let mut table = Sessions::new(limits());
    for seq in 1..=WINDOW_MAX {
        commit(&mut table, seq, (7, seq, seq as u32 - 1));
    }
    let restored = restore(limits(), &write(table.freeze(), 1), 1000).unwrap();
    assert_eq!((restored.answers, restored.len()), (WINDOW_MAX, 1));
    for seq in 1..=WINDOW_MAX {
        let request = Request { client: 7, seq, pending: seq as u32 - 1, continues: false };
        assert_eq!(restored.check(&request), table.check(&request));
    }
}

/// The pieces in which a table is written do not grow with the table.
#[test]
fn a_slice_touches_only_what_its_budget_pays_for() {
    let limits = SessionLimits::default();
    let mut table = Sessions::new(limits);
    for client in 1..=65_536 {
        commit(&mut table, client, (client, 1, 0));
    }
    let (mut frozen, mut bytes, mut slices) = (table.freeze(), Vec::new(), 0);
    let mut index = 70_000;
    while frozen.next_chunk(&mut bytes, 4096) {
        slices += 1;
        assert!(bytes.len() <= slices * (4096 + SESSION_AND_ANSWER));
        index += 1;
        commit(&mut table, index, (index % 65_536 + 1, 2, 0));
    }
    assert!(slices > 900, "{slices} slices");
    let restored = restore(limits, &bytes, 5000).unwrap();
    assert_eq!(order(&restored), (1..=65_536).collect::<Vec<_>>());
}

const SESSION_AND_ANSWER: usize = frozen::SESSION_BYTES + frozen::ANSWER_BYTES;

#[test]
fn a_table_of_other_limits_is_refused() {
    let bytes = write(Sessions::new(limits()).freeze(), 1);
    let other = SessionLimits { sessions_max: 7, ..limits() };
    assert_eq!(restore(other, &bytes, 9).err(), Some(SnapshotError::OtherLimits));
    let mut newer = bytes.clone();
    newer[0] = 4;
    assert_eq!(restore(limits(), &newer, 9).err(), Some(SnapshotError::Version(4)));
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(restore(limits(), &longer, 9), Err(SnapshotError::Damaged(_))));
    let shorter = &bytes[..bytes.len() - 1];
    assert!(matches!(restore(limits(), shorter, 9), Err(SnapshotError::Damaged(_))));
}

#[test]
fn the_list_of_groups_is_part_of_the_table_however_the_bytes_are_cut() {
    let members = Membership::of_voters(vec![NodeId(1), NodeId(2)]);
    let made = Made { place: 3, count: 2, request: 9, members };
    let mut table = Sessions::new(limits());
    for change in [Change::Make(made), Change::End(4)] {
        table.change_groups(&change.block(GroupId(0)));
    }
    let bytes = write(table.freeze(), 1);
    for cut in [1, 9, 1000] {
        let back = restore(limits(), &bytes, cut).unwrap();
        assert_eq!((back.groups(), back.digest()), (table.groups(), table.digest()));
    }
    let mut damaged = bytes.clone();
    let last = damaged.len() - 8;
    damaged[last] = 1;
    assert!(matches!(restore(limits(), &damaged, 9), Err(SnapshotError::Damaged(_))));
}

fn block(index: u64, request: &Request) -> Block {
    let mut builder = BlockBuilder::default();
    let (kind, key, value) = (CommandKind::SetEvent as u8, &b"orders/new"[..], &[7; 100][..]);
    for timestamp in 0..10 {
        let command = Command { kind, flags: 0, timestamp, key, value };
        builder.push(&command).expect("it fits");
    }
    let mut block = builder.finish(GroupId(3), request.client, request.seq, request.pending);
    block.stamp(Term(3), Index(index), 0);
    block
}

/// A group as a shard has it: its state and its sessions change together.
struct Replica {
    store: EventStore,
    table: Sessions,
    next: u64,
}

impl Replica {
    fn new() -> Self {
        let store = EventStore::new(EventLimits::default());
        Self { store, table: Sessions::new(limits()), next: 1 }
    }

    /// Each client sends two blocks, and each of them twice.
    fn commit(&mut self, n: u64) {
        let request = Request {
            client: 1 + n / 4 % 5,
            seq: 1 + n / 20 * 2 + n % 2,
            pending: 1,
            continues: false,
        };
        let block = block(self.next, &request);
        if self.table.check(&request) == Verdict::New {
            let outcome = self.store.apply(&block);
            self.table.record(&request, Answer { first: block.first(), term: Term(3), outcome });
        }
        self.next = block.last().next().get();
    }

    fn freeze(&mut self) -> SnapshotWriter {
        let (group, index) = (GroupId(3), Index(self.next - 1));
        let header = Header { group, index, term: Term(3), ..Header::default() };
        let state = self.store.freeze().expect("it has snapshots");
        SnapshotWriter::new(header, Box::new(self.table.freeze()), state)
    }

    fn restore(bytes: &[u8], piece: usize) -> Self {
        let (mut to, mut reader) = (Self::new(), SnapshotReader::new());
        for mut input in bytes.chunks(piece) {
            while let Some(piece) = reader.next(&mut input).expect("whole") {
                match piece {
                    Piece::Header(header) => {
                        to.next = header.index.next().get();
                        to.table.restore_begin();
                        to.store.restore_begin().unwrap();
                    }
                    Piece::Sessions(bytes) => to.table.restore_chunk(bytes).unwrap(),
                    Piece::State(bytes) => to.store.restore_chunk(bytes).unwrap(),
                    Piece::End => {
                        to.table.restore_finish().unwrap();
                        to.store.restore_finish().unwrap();
                    }
                }
            }
        }
        assert_eq!(reader.finish().expect("whole").index, Index(to.next - 1));
        to
    }
}

/// bugs.md 18, 32. State, sessions and index are of one moment, although the group went on while they
/// were written: half of the retries that follow find their first answer in the restored table.
#[test]
fn a_group_is_restored_from_one_unit_and_goes_on_as_the_first() {
    for (budget, piece) in [(1, 1), (100, 33), (4096, 1 << 20), (usize::MAX, 7)] {
        let mut group = Replica::new();
        (0..102).for_each(|n| group.commit(n));
        let (mut writer, mut bytes, mut n) = (group.freeze(), Vec::new(), 102);
        while writer.next(&mut bytes, budget) {
            if n < 300 {
                group.commit(n);
                n += 1;
            }
        }
        let mut restored = Replica::restore(&bytes, piece);
        (102..n).for_each(|n| restored.commit(n));
        assert_eq!(restored.store.digest(), group.store.digest(), "in slices of {budget}");
        assert_eq!(restored.store.full_digest(), group.store.full_digest());
        assert_eq!(restored.table.digest(), group.table.digest());
    }
}

proptest! {
    /// A table is frozen in the middle of any mixture of retries, holes and evictions, written while
    /// that goes on, and restored elsewhere: from there on both are one.
    #[test]
    fn a_restored_table_behaves_as_the_one_that_was_frozen(
        steps in proptest::collection::vec((1u64..10, 1u64..60, 0u32..40), 1..300),
        at in 0usize..300, budget in 1usize..300, piece in 1usize..300,
    ) {
        let (before, after) = steps.split_at(at.min(steps.len()));
        let mut table = Sessions::new(limits());
        for (step, n) in before.iter().zip(1..) {
            commit(&mut table, n, *step);
        }
        let (frozen_order, half) = (order(&table), table.freeze());
        let (mut frozen, mut bytes, mut more) = (table.freeze(), Vec::new(), true);
        let verdicts: Vec<Verdict> = after.iter().zip(1000..).map(|(step, n)| {
            more = more && frozen.next_chunk(&mut bytes, budget);
            commit(&mut table, n, *step)
        }).collect();
        drop(half);
        while more {
            more = frozen.next_chunk(&mut bytes, budget);
        }
        let mut restored = restore(limits(), &bytes, piece).unwrap();
        prop_assert_eq!(order(&restored), frozen_order);
        for ((step, n), verdict) in after.iter().zip(1000..).zip(verdicts) {
            prop_assert_eq!(commit(&mut restored, n, *step), verdict);
        }
        prop_assert_eq!(restored.digest(), table.digest());
        prop_assert_eq!(order(&restored), order(&table));
        prop_assert_eq!((restored.answers, restored.forgotten), (table.answers, table.forgotten));
        prop_assert_eq!(write(restored.freeze(), 1), write(table.freeze(), 1));
    }

    /// Bytes that pass every checksum and are wrong all the same are an error, or a table that works.
    #[test]
    fn changed_bytes_never_make_a_broken_table(
        steps in proptest::collection::vec((1u64..9, 1u64..30, 0u32..20), 1..60),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut table = Sessions::new(limits());
        for (step, n) in steps.iter().zip(1..) {
            commit(&mut table, n, *step);
        }
        let mut bytes = write(table.freeze(), 1);
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
        }
        if let Ok(mut table) = restore(limits(), &bytes, 100) {
            for (step, n) in steps.iter().zip(500..) {
                commit(&mut table, n, *step);
            }
        }
    }
}
