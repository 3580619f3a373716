//! A table of sessions from the bytes of a snapshot (the layout is in `frozen.rs`), piece by piece.

use super::epochs::EPOCHS_MAX;
use super::frozen::{
    ANSWER_BYTES, EPOCH_BYTES, GROUPS_VERSION, HEAD_BYTES, MISSES, SESSION_BYTES, STATE_VERSION,
};
use super::{
    Answer, GroupList, NONE, NUMBERS_END, Session, Sessions, Slot, WINDOW_MAX, WINDOW_MIN,
};
use crate::ids::{Index, Term};
use crate::machine::snapshot::{Fields, Intake};
use crate::machine::{Outcome, SnapshotError};

type Step = Result<(), SnapshotError>;

const fn damaged<T>(what: &'static str) -> Result<T, SnapshotError> {
    Err(SnapshotError::Damaged(what))
}

/// No counter gets here in the life of a log.
const COUNTS_END: u64 = 1 << 62;
/// No list of groups is longer.
const GROUPS_BYTES_MAX: usize = 1 << 30;

/// The item that comes next.
#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    Head,
    /// How many are to come.
    Epoch(u64),
    /// How many bytes the list of groups has, and then that.
    GroupsSize,
    Groups(usize),
    Session,
    Answers {
        client: u64,
        floor: u64,
        misses: bool,
        used: Index,
        window: u32,
        answers: u32,
    },
    End,
}

/// How far the bytes have come.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    intake: Intake,
    phase: Phase,
    /// Sessions to come.
    left: u64,
    /// A list of groups is to come.
    has_groups: bool,
}

impl Restoring {
    pub fn chunk(&mut self, table: &mut Sessions, mut bytes: &[u8]) -> Step {
        loop {
            let size = match self.phase {
                Phase::Head => HEAD_BYTES,
                Phase::Epoch(_) => EPOCH_BYTES,
                Phase::GroupsSize => 8,
                Phase::Groups(size) => size,
                Phase::Session => SESSION_BYTES,
                Phase::Answers { answers, .. } => answers as usize * ANSWER_BYTES,
                Phase::End if bytes.is_empty() => return Ok(()),
                Phase::End => return damaged("bytes follow the sessions"),
            };
            let Some(item) = self.intake.take(size, &mut bytes) else { return Ok(()) };
            match self.phase {
                Phase::Head => {
                    let (sessions, epochs) = head(table, item, &mut self.has_groups)?;
                    self.left = sessions;
                    if epochs > 0 {
                        self.phase = Phase::Epoch(epochs);
                        continue;
                    }
                }
                Phase::GroupsSize => {
                    match usize::try_from(Fields(item).u64()) {
                        Ok(size @ 1..=GROUPS_BYTES_MAX) => self.phase = Phase::Groups(size),
                        _ => return damaged("the size of the list of groups"),
                    }
                    continue;
                }
                Phase::Groups(_) => {
                    let list = GroupList::decode(item).filter(|list| !list.is_empty());
                    let unknown = SnapshotError::Damaged("the list of groups");
                    table.groups = list.ok_or(unknown)?;
                }
                Phase::Epoch(left) => {
                    epoch(table, item)?;
                    if left > 1 {
                        self.phase = Phase::Epoch(left - 1);
                        continue;
                    }
                }
                Phase::Session => {
                    self.phase = session(table, item)?;
                    continue;
                }
                Phase::Answers { client, floor, misses, used, window, .. } => {
                    let slots = slots(item, floor, window as usize)?.into();
                    let (older, newer) = (NONE, NONE);
                    table.place(Session { client, floor, misses, slots, used, older, newer });
                    self.left -= 1;
                }
                Phase::End => {}
            }
            if std::mem::take(&mut self.has_groups) {
                self.phase = Phase::GroupsSize;
                continue;
            }
            self.phase = if self.left == 0 { Phase::End } else { Phase::Session };
        }
    }

    pub fn finish(&self) -> Step {
        match self.phase {
            Phase::End => Ok(()),
            _ => damaged("the sessions are cut short"),
        }
    }
}

/// Numbers of sessions and of epochs.
fn head(
    table: &mut Sessions,
    item: &[u8],
    has_groups: &mut bool,
) -> Result<(u64, u64), SnapshotError> {
    let mut head = Fields(item);
    let (version, sessions_max, answers_max) = (head.u32(), head.u32(), head.u64());
    *has_groups = version == GROUPS_VERSION;
    if version != STATE_VERSION && !*has_groups {
        return Err(SnapshotError::Version(version));
    }
    let limits = table.limits;
    if (sessions_max, answers_max) != (limits.sessions_max, limits.answers_max) {
        return Err(SnapshotError::OtherLimits);
    }
    (table.forgotten, table.spent, table.digest) = (head.u64(), head.u64(), head.u64());
    if table.forgotten >= COUNTS_END || table.spent >= NUMBERS_END {
        return damaged("the number of sessions that are gone");
    }
    match (head.u64(), head.u64()) {
        (_, epochs) if epochs > EPOCHS_MAX as u64 => damaged("more epochs than are kept"),
        (sessions, _) if sessions > u64::from(sessions_max) => {
            damaged("more sessions than the limit")
        }
        numbers => Ok(numbers),
    }
}

fn epoch(table: &mut Sessions, item: &[u8]) -> Step {
    let mut fields = Fields(item);
    let (epoch, first) = (fields.u64(), Index(fields.u64()));
    let before = table.epochs.entries().last().map_or((0, Index::ZERO), |last| *last);
    match u32::try_from(epoch) {
        Ok(epoch) if epoch > before.0 && first > before.1 => table.epochs.note(epoch, first),
        _ => return damaged("an epoch out of order"),
    }
    Ok(())
}

fn session(table: &Sessions, item: &[u8]) -> Result<Phase, SnapshotError> {
    let mut head = Fields(item);
    let (client, floor, used) = (head.u64(), head.u64(), Index(head.u64()));
    let (window, answers) = (head.u32(), head.u32());
    let (misses, answers) = (answers & MISSES != 0, answers & !MISSES);
    if client == 0 || table.by_client.contains_key(&client) {
        return damaged("a session's client");
    }
    if floor == 0 || floor >= NUMBERS_END {
        return damaged("a session's floor");
    }
    if table.newest != NONE && table.sessions.get(table.newest as usize).used > used {
        return damaged("the order of sessions");
    }
    let sizes = WINDOW_MIN as u64..=WINDOW_MAX;
    if !window.is_power_of_two() || !sizes.contains(&u64::from(window)) || answers > window {
        return damaged("a session's window");
    }
    if table.answers + u64::from(window) > table.limits.answers_max {
        return damaged("more answers than the limit");
    }
    Ok(Phase::Answers { client, floor, misses, used, window, answers })
}

fn slots(item: &[u8], floor: u64, window: usize) -> Result<Vec<Slot>, SnapshotError> {
    let mut slots = vec![Slot::default(); window];
    let mut next = floor;
    for answer in item.chunks_exact(ANSWER_BYTES) {
        let mut fields = Fields(answer);
        let (seq, first, term) = (fields.u64(), Index(fields.u64()), Term(fields.u64()));
        let (applied, duplicates, rejected) = (fields.u32(), fields.u32(), fields.u32());
        if seq < next || seq - floor >= window as u64 {
            return damaged("the number of an answer");
        }
        let outcome = Outcome { applied, duplicates, rejected };
        let answer = Answer { first, term, outcome };
        slots[(seq & (window as u64 - 1)) as usize] = Slot { seq, answer };
        next = seq + 1;
    }
    Ok(slots)
}
