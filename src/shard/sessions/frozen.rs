//! The table of sessions as it was at one index, on its way into a snapshot.
//!
//! ```text
//! head      u32 version 3  u32 most sessions  u64 most answers  u64 forgotten  u64 spent  u64 digest
//!           u64 sessions  u64 epochs, then each epoch but the first: u64 epoch  u64 its first index
//! groups    u64 size, and the list of the shard's groups (`roster/list.rs`). Left out, and version 2,
//!           where that is empty
//! sessions  u64 client  u64 floor  u64 used  u32 slots  u32 answers (bit 31: the floor has passed over
//!           numbers that are not on record), then answers in the order of numbers:
//!             u64 seq  u64 first  u64 term  u32 applied  u32 duplicates  u32 rejected  u32 0
//! ```
//!
//! From the session that rested longest on, so that evictions go on in the same order. Answers below
//! the floor are left out: nobody can ask for them. The number of slots counts against a limit and is
//! kept.

use super::{NONE, Session, Sessions};
use crate::machine::FrozenState;
use crate::machine::shared::Pages;
use crate::machine::snapshot::{put_u32s, put_u64s};

pub(super) const STATE_VERSION: u32 = 2;
/// With a list of groups.
pub(super) const GROUPS_VERSION: u32 = 3;
pub(super) const HEAD_BYTES: usize = 56;
pub(super) const EPOCH_BYTES: usize = 16;
pub(super) const SESSION_BYTES: usize = 32;
pub(super) const ANSWER_BYTES: usize = 40;
/// Beside the number of answers.
pub(super) const MISSES: u32 = 1 << 31;

/// See the module. Holds the whole table until it is dropped.
#[derive(Debug)]
pub struct FrozenSessions {
    /// Empty once it is written.
    head: Vec<u8>,
    sessions: Pages<Session>,
    /// The session to write next.
    at: u32,
}

impl FrozenSessions {
    pub(super) fn new(table: &Sessions) -> Self {
        let mut head = Vec::with_capacity(HEAD_BYTES);
        let groups = table.groups.encode();
        let version = if groups.is_empty() { STATE_VERSION } else { GROUPS_VERSION };
        put_u32s(&mut head, &[version, table.limits.sessions_max]);
        put_u64s(&mut head, &[table.limits.answers_max, table.forgotten, table.spent]);
        let epochs = table.epochs.entries();
        put_u64s(&mut head, &[table.digest, table.len() as u64, epochs.len() as u64]);
        assert_eq!(head.len(), HEAD_BYTES);
        for (epoch, first) in epochs {
            put_u64s(&mut head, &[u64::from(*epoch), first.get()]);
        }
        if version == GROUPS_VERSION {
            put_u64s(&mut head, &[groups.len() as u64]);
            head.extend(groups);
        }
        Self { head, sessions: table.sessions.clone(), at: table.oldest }
    }
}

fn put_session(session: &Session, into: &mut Vec<u8>) {
    let window = session.slots.len() as u64;
    put_u64s(into, &[session.client, session.floor, session.used.get()]);
    let misses = if session.misses { MISSES } else { 0 };
    put_u32s(into, &[window as u32, session.live().count() as u32 | misses]);
    for seq in session.floor..session.floor + window {
        let slot = session.slot(seq);
        if slot.seq == seq {
            let (answer, outcome) = (slot.answer, slot.answer.outcome);
            put_u64s(into, &[seq, answer.first.get(), answer.term.get()]);
            put_u32s(into, &[outcome.applied, outcome.duplicates, outcome.rejected, 0]);
        }
    }
}

impl FrozenState for FrozenSessions {
    fn next_chunk(&mut self, into: &mut Vec<u8>, budget_bytes: usize) -> bool {
        let start = into.len();
        into.append(&mut self.head);
        while into.len() - start < budget_bytes.max(1) {
            if self.at == NONE {
                return false;
            }
            let session = self.sessions.get(self.at as usize);
            put_session(session, into);
            self.at = session.newer;
        }
        true
    }

    fn memory_bytes(&self) -> u64 {
        let bytes = |session: &Session| {
            let own = std::rc::Rc::strong_count(&session.slots) == 1;
            size_of::<Session>() + if own { size_of_val(&*session.slots) } else { 0 }
        };
        self.sessions.unshared().map(bytes).sum::<usize>() as u64
    }
}
