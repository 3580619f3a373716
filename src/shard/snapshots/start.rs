//! From the files of a start to what its groups begin with: snapshots are read back, and meet the
//! log.
//!
//! ```text
//! log         c ├──────────────────────┤ last       c: where a record says that the log begins
//! snapshot              s                           c <= s <= last: restore s, apply s+1 ..
//! snapshot                                 s        ahead of the log, or of another term: it was
//!                                                   installed, the record of it is missing; the log
//!                                                   begins anew behind it
//! none, or behind c                                 lost: RECOVERING, from an empty log (bugs.md 11)
//! ```

use std::collections::BTreeMap;

use super::super::Recovered;
use super::super::sessions::{SessionLimits, Sessions};
use crate::ids::{GroupId, HardState, Index, LogStart};
use crate::machine::{SnapshotError, StateMachine};
use crate::mutants::{self, Mutant};
use crate::raft::message::Offer;
use crate::raft::{Restored, TermRun};
use crate::snapshot::{Header, Piece, ReadError, SnapshotReader};
use crate::wal::{RecoveredGroup, TermStart, Wal};

/// Why a file gives no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    State(#[from] SnapshotError),
    #[error("it is of another cluster, or of another group than its name says")]
    Foreign,
}

impl LoadError {
    /// The file is as it was written, and this build or configuration does not go with it: nothing
    /// that other nodes could help with.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Foreign
                | Self::Read(ReadError::Version(_))
                | Self::State(SnapshotError::Version(_) | SnapshotError::OtherLimits)
                | Self::State(SnapshotError::Unsupported)
        )
    }
}

/// A state that is being put together from the bytes of a snapshot.
pub struct Loading<M> {
    reader: SnapshotReader,
    machine: M,
    sessions: Sessions,
    bytes: u64,
}

/// A group's state as of a snapshot.
pub struct Loaded<M> {
    pub header: Header,
    pub offer: Offer,
    pub machine: M,
    pub sessions: Sessions,
}

impl<M: StateMachine> Loading<M> {
    /// `machine`: an empty one.
    pub fn new(mut machine: M, limits: SessionLimits) -> Result<Self, LoadError> {
        let mut sessions = Sessions::new(limits);
        machine.restore_begin()?;
        sessions.restore_begin();
        Ok(Self { reader: SnapshotReader::new(), machine, sessions, bytes: 0 })
    }

    /// The next bytes, cut anywhere.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), LoadError> {
        self.bytes += bytes.len() as u64;
        while let Some(piece) = self.reader.next(&mut bytes)? {
            match piece {
                Piece::Header(_) | Piece::End => {}
                Piece::Sessions(_) if mutants::is(Mutant::InstallIgnoresSessions) => {}
                Piece::Sessions(bytes) => self.sessions.restore_chunk(bytes)?,
                Piece::State(bytes) => self.machine.restore_chunk(bytes)?,
            }
        }
        Ok(())
    }

    /// All bytes were given: the state, if that was exactly one whole snapshot of this group.
    pub fn finish(self, group: GroupId, config_hash: u64) -> Result<Loaded<M>, LoadError> {
        let Self { reader, mut machine, mut sessions, bytes } = self;
        let header = match reader.finish() {
            Ok(header) => header.clone(),
            Err(error) => return Err(error.into()),
        };
        if header.group != group || header.config_hash != config_hash {
            return Err(LoadError::Foreign);
        }
        machine.restore_finish()?;
        // Its next block would be one that it was given already.
        if machine.applied_through().is_some_and(|applied| applied > header.index) {
            return Err(SnapshotError::Damaged("it has seen more than its head says").into());
        }
        match mutants::is(Mutant::InstallIgnoresSessions) {
            true => sessions = Sessions::new(sessions.limits()),
            false => sessions.restore_finish()?,
        }
        let offer = Offer { start: header.start(), size: bytes, checksum: reader.whole_checksum() };
        Ok(Loaded { header, offer, machine, sessions })
    }
}

/// What a group starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub restored: Restored,
    /// To be logged before anything else: a hard state with a term that only the snapshot tells of ...
    pub state: Option<HardState>,
    /// ... and where the log begins; `true`: anew.
    pub begin: Option<(LogStart, bool)>,
    /// The front of the log was given up for a snapshot that is not there any more.
    pub is_lost: bool,
}

/// Brings the log of a group and its newest whole snapshot together; see the drawing.
pub fn meet(found: &RecoveredGroup, snapshot: Option<&Header>) -> Start {
    if found.hard_state.is_ended() {
        // What snapshot there may still be goes.
        let restored = Restored { hard_state: HardState::ENDED, ..Restored::default() };
        return Start { restored, state: None, begin: None, is_lost: false };
    }
    let logged = found.start.unwrap_or_default();
    let (first, last) = (found.first.max(Index(1)), found.last);
    let cut_through = if last == Index::ZERO { Index::ZERO } else { first.prev() };
    let whole = cut_through <= logged.index;
    let mut hard_state = found.hard_state;
    if mutants::is(Mutant::ForgetVoteAtStart) {
        hard_state.vote = None;
    }
    let terms: Vec<TermRun> = found.terms.iter().map(run_of).collect();
    let reaches = |header: &&Header| header.index >= cut_through.max(logged.index);
    let Some(header) = snapshot.filter(reaches) else {
        let is_lost = logged.index > Index::ZERO || cut_through > Index::ZERO;
        if is_lost {
            // An older snapshot is a beginning as good as none, and nearer.
            let at = snapshot.map_or(LogStart::default(), Header::start);
            hard_state.commit = at.index;
            let (start, last, applied) = (at, at.index, at.index);
            let memberships =
                snapshot.map(|header| header.membership.clone()).into_iter().collect();
            let (recovering, damaged) = (true, true);
            let terms = Vec::new();
            let restored = Restored {
                hard_state,
                terms,
                start,
                last,
                applied,
                recovering,
                damaged,
                memberships,
            };
            return Start { restored, state: None, begin: Some((at, true)), is_lost };
        }
        let (start, applied) = (LogStart::default(), Index::ZERO);
        let memberships = found.memberships.clone();
        let (recovering, damaged) = (false, false);
        let restored =
            Restored { hard_state, terms, start, last, applied, recovering, damaged, memberships };
        return Start { restored, state: None, begin: None, is_lost };
    };
    let at = header.start();
    // The snapshot's configuration, then those that the log has behind it.
    let mut memberships = vec![header.membership.clone()];
    let state = (at.term > hard_state.term).then(|| {
        hard_state = HardState { term: at.term, vote: None, commit: at.index };
        hard_state
    });
    hard_state.commit = hard_state.commit.max(at.index);
    if !agrees(found, logged, at) {
        let restored = Restored {
            hard_state,
            start: at,
            last: at.index,
            applied: at.index,
            memberships,
            ..Restored::default()
        };
        return Start { restored, state, begin: Some((at, true)), is_lost: false };
    }
    let later = found.memberships.iter().filter(|membership| membership.index > at.index);
    memberships.extend(later.cloned());
    // A log whose own record of its beginning is damaged begins where the snapshot ends.
    let (start, terms) = if whole { (logged, terms) } else { (at, terms_behind(&terms, at, last)) };
    let (applied, recovering, damaged) = (at.index, false, false);
    let restored =
        Restored { hard_state, terms, start, last, applied, recovering, damaged, memberships };
    Start { restored, state, begin: (!whole).then_some((at, false)), is_lost: false }
}

/// What a group starts from, out of what its log alone holds; the shard says whether it is RECOVERING.
pub fn restored(group: &RecoveredGroup) -> Restored {
    meet(group, None).restored
}

/// Logs what the starts of a shard's groups call for, behind what recovery found; nothing leaves the
/// shard before that is durable. What the groups then begin with.
pub fn log_starts(wal: &mut Wal, starts: BTreeMap<GroupId, Start>) -> Recovered {
    let logged = starts.into_iter().map(|(group, start)| {
        let Start { restored, state, begin, .. } = start;
        if let Some(state) = state {
            wal.hard_state(group, state);
        }
        if let Some((start, anew)) = begin {
            wal.begin_at(group, start, anew);
        }
        (group, restored)
    });
    logged.collect()
}

/// Whether the log goes on from what the snapshot stands for.
fn agrees(found: &RecoveredGroup, logged: LogStart, at: LogStart) -> bool {
    if at.index > found.last {
        return false;
    }
    let run = found.terms.partition_point(|run| run.first <= at.index);
    let behind = found.last == at.index || found.first == at.index.next();
    match run.checked_sub(1) {
        _ if at.index == logged.index => at.term == logged.term,
        Some(run) if found.first <= at.index => found.terms[run].term == at.term,
        // Its term is not in the log, and nothing in the log contradicts it.
        _ => behind && found.terms.first().is_none_or(|run| run.term >= at.term),
    }
}

fn run_of(found: &TermStart) -> TermRun {
    let &TermStart { first, term, epoch, since } = found;
    TermRun { first, term, epoch, since }
}

fn terms_behind(terms: &[TermRun], at: LogStart, last: Index) -> Vec<TermRun> {
    if last == at.index {
        return Vec::new();
    }
    let gone = terms.partition_point(|run| run.first <= at.index.next()).saturating_sub(1);
    terms[gone..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockBuilder, Command};
    use crate::ids::{NodeId, Term};
    use crate::machine::events::{EventLimits, EventStore};
    use crate::membership::Membership;
    use crate::snapshot::SnapshotWriter;

    fn at(index: u64, term: u64) -> LogStart {
        LogStart { index: Index(index), term: Term(term), epoch: 0 }
    }

    /// A log of term 2 from `first` to `last`, of term 3 from 21 on.
    fn log(start: Option<LogStart>, first: u64, last: u64) -> RecoveredGroup {
        let hard_state = HardState { term: Term(5), vote: None, commit: Index(11) };
        let runs = [(first, 2), (21, 3)].into_iter().filter(|run| run.0 <= last);
        let terms = runs
            .map(|(first, term)| (Index(first), Term(term)))
            .map(|(first, term)| TermStart { first, term, epoch: 0, since: first })
            .collect();
        let (first, last) = (Index(first), Index(last));
        RecoveredGroup { hard_state, start, first, last, terms, ..RecoveredGroup::default() }
    }

    fn snapshot(LogStart { index, term, epoch }: LogStart) -> Header {
        let membership = Membership::of_voters(vec![NodeId(1)]);
        Header { index, term, epoch, membership, ..Header::default() }
    }

    fn met(log: &RecoveredGroup, at: LogStart) -> Start {
        meet(log, Some(&snapshot(at)))
    }

    fn seen(start: &Start) -> (u64, u64, u64) {
        let Restored { start, last, applied, .. } = start.restored;
        (start.index.0, applied.0, last.0)
    }

    /// bugs.md 18: each checksum is right, and they do not belong together.
    #[test]
    fn a_state_that_has_seen_more_than_its_head_says_is_no_snapshot() {
        let loaded = |index: u64| {
            let mut store = EventStore::new(EventLimits::default());
            let command = Command { kind: 1, flags: 0, timestamp: 0, key: b"q", value: b"v" };
            let mut builder = BlockBuilder::default();
            builder.push(&command).unwrap();
            let mut block = builder.finish(GroupId(0), 1, 1, 0);
            block.stamp(Term(1), Index(7), 0);
            store.apply(&block);
            let header = Header { group: GroupId(0), ..snapshot(at(index, 1)) };
            let sessions = Box::new(Sessions::new(SessionLimits::default()).freeze());
            let mut writer = SnapshotWriter::new(header, sessions, store.freeze().unwrap());
            let mut bytes = Vec::new();
            while writer.next(&mut bytes, 1000) {}
            let empty = EventStore::new(EventLimits::default());
            let mut loading = Loading::new(empty, SessionLimits::default()).unwrap();
            loading.feed(&bytes).and_then(|()| loading.finish(GroupId(0), 0)).map(drop)
        };
        assert_eq!((loaded(7), loaded(9)), (Ok(()), Ok(())), "not every entry is for the machine");
        let damaged = SnapshotError::Damaged("it has seen more than its head says");
        assert_eq!(loaded(6), Err(LoadError::State(damaged)));
    }

    #[test]
    fn a_snapshot_within_the_log_is_restored_and_only_the_rest_is_applied() {
        let found = met(&log(Some(at(10, 2)), 11, 30), at(15, 2));
        assert_eq!((seen(&found), found.begin, found.is_lost), ((10, 15, 30), None, false));
        assert_eq!(found.restored.check(), Ok(()));
        assert_eq!(found.restored.hard_state.commit, Index(15));
        let found = met(&log(None, 1, 30), at(25, 3));
        assert_eq!((seen(&found), found.begin), ((0, 25, 30), None));
    }

    #[test]
    fn one_that_is_ahead_or_of_another_term_takes_the_place_of_the_log() {
        for ahead in [at(40, 4), at(15, 3), at(30, 4)] {
            let found = met(&log(None, 1, 30), ahead);
            let index = ahead.index.0;
            assert_eq!((seen(&found), found.begin), ((index, index, index), Some((ahead, true))));
            assert_eq!(found.restored.check(), Ok(()));
        }
        let found = met(&log(None, 1, 30), at(40, 9));
        assert_eq!(found.state.map(|state| (state.term, state.vote)), Some((Term(9), None)));
        assert_eq!(found.restored.check(), Ok(()));
    }

    #[test]
    fn a_log_whose_front_is_gone_without_a_snapshot_is_lost_and_begins_anew() {
        for older in [LogStart::default(), at(9, 2)] {
            for log in [log(Some(at(10, 2)), 11, 30), log(None, 11, 30)] {
                let header = snapshot(older);
                let found = meet(&log, Some(&header).filter(|header| header.index.0 > 0));
                let index = older.index.0;
                assert!(found.is_lost && found.begin == Some((older, true)));
                assert_eq!(seen(&found), (index, index, index));
                assert!(found.restored.recovering && found.restored.check().is_ok());
                assert_eq!(found.restored.hard_state.term, Term(5), "what was promised stays");
            }
        }
        let found = meet(&log(None, 1, 30), None);
        assert!(!found.is_lost && seen(&found) == (0, 0, 30));
    }

    #[test]
    fn a_log_without_the_record_of_its_beginning_begins_at_the_snapshot() {
        let found = met(&log(None, 11, 30), at(10, 2));
        assert_eq!((seen(&found), found.begin), ((10, 10, 30), Some((at(10, 2), false))));
        let found = met(&log(Some(at(4, 1)), 11, 30), at(22, 3));
        assert_eq!((seen(&found), found.begin), ((22, 22, 30), Some((at(22, 3), false))));
        assert_eq!(found.restored.check(), Ok(()));
    }
}
