//! Receiving a snapshot: chunks into a file, then all of it into a state beside the live one, then
//! both change places at once.
//!
//! What a chunk is worth is known only at the end, when the whole file has verified; until then
//! nothing but that file is touched. Duplicates, gaps and chunks of other snapshots fall through
//! (bugs.md 17): the reply names what is held, and the leader goes on from there.

use std::collections::VecDeque;

use bytes::Bytes;

use super::super::Shard;
use super::start::{LoadError, Loaded, Loading};
use super::{FileDone, FileName, FileOp, FileOpId, TRANSFERS_MAX};
use crate::ids::{GroupId, Index, NodeId, Term, Tick};
use crate::machine::StateMachine;
use crate::mutants::{self, Mutant};
use crate::raft::Event;
use crate::raft::message::{Body, CANNOT_USE, Offer};
use crate::raft::ready::Role;
use crate::wal::DiskError;

/// Without a word from the leader for so long its place goes to another, microseconds. What has come
/// stays.
const PATIENCE_US: u64 = 10_000_000;
/// After a snapshot did not go with this build or configuration no other one of its group is asked for
/// so long, microseconds: another would not either until an operator has done something.
const REFUSED_US: u64 = 60_000_000;

/// One snapshot on its way in.
pub(super) struct Receiving<M> {
    group: GroupId,
    local: u32,
    from: NodeId,
    /// Of the leader that offered it.
    term: Term,
    offer: Offer,
    /// Durable bytes.
    held: u64,
    /// When it last got further, or was offered.
    moved_at: Tick,
    stage: Stage<M>,
}

enum Stage<M> {
    /// Chunks come; a write of so many bytes may be under way, and later ones wait for it.
    Fills(Option<(FileOpId, u64)>, VecDeque<Bytes>),
    /// Whole: read back from this offset on.
    Loads(FileOpId, u64, Box<Loading<M>>),
    /// Right in itself; its group's term is not durable yet.
    Waits(Box<Loaded<M>>),
    Publishes(FileOpId, Box<Loaded<M>>),
}

impl<M> Receiving<M> {
    pub fn waits_for(&self, op: FileOpId) -> bool {
        match &self.stage {
            Stage::Fills(write, _) => write.is_some_and(|(id, _)| id == op),
            Stage::Loads(id, ..) | Stage::Publishes(id, _) => *id == op,
            Stage::Waits(_) => false,
        }
    }

    pub fn group(&self) -> GroupId {
        self.group
    }

    pub fn index(&self) -> Index {
        self.offer.start.index
    }

    pub fn file(&self) -> FileName {
        FileName::Part(self.group, self.offer)
    }

    /// Through here chunks have come, on stable storage or not.
    fn reached(&self) -> u64 {
        let Stage::Fills(write, queue) = &self.stage else { return self.held };
        let queued: usize = queue.iter().map(Bytes::len).sum();
        self.held + write.map_or(0, |(_, len)| len) + queued as u64
    }

    fn is_filling(&self) -> bool {
        matches!(self.stage, Stage::Fills(..))
    }
}

impl<M: StateMachine> Shard<M> {
    /// A leader offers what would bring this group further.
    pub(super) fn snapshot_offered(&mut self, now: Tick, local: u32, from: NodeId, offer: Offer) {
        let raft = &self.groups[local as usize].raft;
        let (group, term) = (raft.group(), raft.term());
        if self.is_refused(now, group, offer) {
            return self.say_refused(local, from, offer);
        }
        let under_way = self.snapshots.receiving.iter().position(|r| r.group == group);
        if let Some(at) = under_way {
            let known = &mut self.snapshots.receiving[at];
            let same = known.offer == offer;
            if same && !mutants::is(Mutant::ResumeFromZero) {
                (known.from, known.term, known.moved_at) = (from, term, now);
                return self.reply_held(now, at);
            }
            // The same leader's older offer comes late; another leader's is all there is now.
            let older = known.term == term && offer.start.index <= known.offer.start.index && !same;
            if older || !known.is_filling() {
                return;
            }
            self.forget_receiving(at);
        }
        if self.snapshots.receiving.len() >= TRANSFERS_MAX || now < self.snapshots.rests_until {
            return;
        }
        let held = self.take_part(group, offer);
        let stage = Stage::Fills(None, VecDeque::new());
        let moved_at = now;
        let receiving = Receiving { group, local, from, term, offer, held, moved_at, stage };
        self.snapshots.receiving.push(receiving);
        let at = self.snapshots.receiving.len() - 1;
        self.reply_held(now, at);
    }

    /// What an earlier start or an earlier offer left of this snapshot; parts of others go.
    fn take_part(&mut self, group: GroupId, offer: Offer) -> u64 {
        let parts = self.snapshots.parts.extract_if(.., |part| part.0 == group);
        let mut held = 0;
        for (_, of, bytes) in parts.collect::<Vec<_>>() {
            if of == offer && !mutants::is(Mutant::ResumeFromZero) {
                held = bytes;
            } else {
                self.snapshots.remove(FileName::Part(group, of));
            }
        }
        held
    }

    /// The file goes: it is useless. A write that is under way finds nothing.
    fn forget_receiving(&mut self, at: usize) {
        let receiving = self.snapshots.receiving.swap_remove(at);
        self.snapshots.remove(receiving.file());
    }

    fn reply_held(&mut self, now: Tick, at: usize) {
        let Receiving { local, from, offer, held, .. } = self.snapshots.receiving[at];
        let body = Body::SnapshotReply { index: offer.start.index, offset: held };
        self.say(local, from, body);
        self.load_if_whole(now, at);
    }

    pub(super) fn chunk_received(
        &mut self,
        local: u32,
        from: NodeId,
        named: (Index, u64, u32),
        offset: u64,
        bytes: Bytes,
    ) {
        let mine = |r: &Receiving<M>| {
            let Offer { start, size, checksum } = r.offer;
            r.local == local && r.from == from && (start.index, size, checksum) == named
        };
        let Some(at) = self.snapshots.receiving.iter().position(mine) else { return };
        let receiving = &mut self.snapshots.receiving[at];
        let reached = receiving.reached();
        let left = receiving.offer.size - reached;
        let far = reached - receiving.held >= 2 * self.config.snapshots.window_bytes;
        let Stage::Fills(_, queue) = &mut receiving.stage else { return };
        // Too early, too late or twice: nothing. An offer asks where it is to go on.
        let next = offset == reached || mutants::is(Mutant::ChunkAnywhere);
        if next && left > 0 && !far {
            let bytes = bytes.slice(..bytes.len().min(left as usize));
            self.snapshots.stats.received_bytes += bytes.len() as u64;
            queue.push_back(bytes);
            self.write_next(at);
        }
    }

    /// One write at a time, synced: what the leader is told is held is held.
    fn write_next(&mut self, at: usize) {
        let op = self.snapshots.op();
        let receiving = &mut self.snapshots.receiving[at];
        let (file, offset) = (receiving.file(), receiving.held);
        let Stage::Fills(write, queue) = &mut receiving.stage else { return };
        if write.is_some() {
            return;
        }
        if let Some(bytes) = queue.pop_front() {
            *write = Some((op, bytes.len() as u64));
            self.snapshots.ops.push(FileOp::Write { op, file, offset, bytes, sync: true });
        }
    }

    pub(super) fn receiving_done(
        &mut self,
        now: Tick,
        at: usize,
        result: Result<FileDone, DiskError>,
    ) {
        let done = match result {
            Ok(done) => done,
            Err(error) => {
                let group = self.snapshots.receiving[at].group;
                let what = "a snapshot that was received was not written or read";
                self.snapshots.failed(now, group, what, error);
                return self.forget_receiving(at);
            }
        };
        let receiving = &mut self.snapshots.receiving[at];
        match (&mut receiving.stage, done) {
            (Stage::Fills(write, _), FileDone::Written) => {
                receiving.held += write.take().map_or(0, |(_, len)| len);
                receiving.moved_at = now;
                self.write_next(at);
                self.reply_held(now, at);
            }
            (Stage::Loads(_, offset, loading), FileDone::Read { bytes }) => {
                *offset += bytes.len() as u64;
                match loading.feed(&bytes) {
                    Ok(()) => self.load_on(now, at),
                    Err(error) => self.does_not_load(now, at, &error),
                }
            }
            (Stage::Publishes(..), FileDone::Published) => self.install(now, at),
            _ => unreachable!("an operation is reported as what it was"),
        }
    }

    fn load_if_whole(&mut self, now: Tick, at: usize) {
        let receiving = &self.snapshots.receiving[at];
        let whole = receiving.held == receiving.offer.size;
        if !whole || !receiving.is_filling() {
            return;
        }
        let machine = (self.machines)(receiving.group);
        match Loading::new(machine, self.config.sessions) {
            Ok(loading) => {
                let none = FileOpId(0);
                self.snapshots.receiving[at].stage = Stage::Loads(none, 0, Box::new(loading));
                self.load_on(now, at);
            }
            Err(error) => self.refuse_snapshot(now, at, &error),
        }
    }

    /// Reads the next piece, or ends: a piece a turn, so that other groups have theirs.
    fn load_on(&mut self, now: Tick, at: usize) {
        let chunk = self.config.snapshots.chunk_bytes;
        let file = self.snapshots.receiving[at].file();
        let op = self.snapshots.op();
        let receiving = &mut self.snapshots.receiving[at];
        let Stage::Loads(id, offset, _) = &mut receiving.stage else { return };
        let left = receiving.offer.size - *offset;
        if left > 0 {
            *id = op;
            let (offset, len) = (*offset, left.min(u64::from(chunk)) as u32);
            return self.snapshots.ops.push(FileOp::Read { op, file, offset, len });
        }
        let empty = Stage::Fills(None, VecDeque::new());
        let Stage::Loads(_, _, loading) = std::mem::replace(&mut receiving.stage, empty) else {
            return;
        };
        let unverified = mutants::is(Mutant::SnapshotUnverified);
        match loading.finish(receiving.group, self.config.snapshots.config_hash) {
            Ok(loaded) if loaded.offer == receiving.offer || unverified => {
                receiving.stage = Stage::Waits(Box::new(loaded));
                self.publish_received(now, at);
            }
            Ok(_) => self.does_not_verify(at),
            Err(error) => self.does_not_load(now, at, &error),
        }
    }

    fn does_not_load(&mut self, now: Tick, at: usize, error: &LoadError) {
        if error.is_refusal() {
            self.refuse_snapshot(now, at, error)
        } else {
            self.does_not_verify(at)
        }
    }

    /// It is as it was written, and not for this build or this configuration. The leader could only
    /// send the like of it again: it is told so.
    fn refuse_snapshot(&mut self, now: Tick, at: usize, error: &LoadError) {
        let Receiving { group, local, from, offer, .. } = self.snapshots.receiving[at];
        self.forget_receiving(at);
        self.say_refused(local, from, offer);
        self.snapshots.refused.push((group, offer, now.plus(REFUSED_US)));
        let what = "the leader's snapshot cannot be used here; start the build and the \
                    configuration that go with it";
        let rests_until = self.snapshots.rests_until;
        self.snapshots.failed(now, group, what, error);
        self.snapshots.rests_until = rests_until;
    }

    fn say_refused(&mut self, local: u32, to: NodeId, offer: Offer) {
        let (index, offset) = (offer.start.index, CANNOT_USE);
        self.say(local, to, Body::SnapshotReply { index, offset });
    }

    /// Whether the group is not asked for a snapshot for now, or not for this one.
    fn is_refused(&mut self, now: Tick, group: GroupId, offer: Offer) -> bool {
        let stands = |(of, refused, until): &(GroupId, Offer, Tick)| {
            *of != group || *refused == offer || now < *until
        };
        self.snapshots.refused.retain(stands);
        let refused = self.snapshots.refused.iter().any(|(of, ..)| *of == group);
        refused && !mutants::is(Mutant::RefusedAskedAgain)
    }

    /// All of it has come, and it is not a snapshot: once more from the beginning.
    fn does_not_verify(&mut self, at: usize) {
        self.snapshots.stats.failed += 1;
        let Receiving { local, from, offer, .. } = self.snapshots.receiving[at];
        self.forget_receiving(at);
        self.say(local, from, Body::SnapshotReply { index: offer.start.index, offset: 0 });
    }

    /// What is published may be found by the next start without the leader: its term must be durable
    /// by then.
    pub(super) fn publish_received(&mut self, _now: Tick, at: usize) {
        let receiving = &mut self.snapshots.receiving[at];
        let raft = &self.groups[receiving.local as usize].raft;
        let known = raft.term() >= receiving.offer.start.term && raft.is_settled();
        if !known || !matches!(receiving.stage, Stage::Waits(_)) {
            return;
        }
        let (from, to) =
            (receiving.file(), FileName::Snapshot(receiving.group, receiving.offer.start.index));
        let op = self.snapshots.op();
        let receiving = &mut self.snapshots.receiving[at];
        let empty = Stage::Fills(None, VecDeque::new());
        if let Stage::Waits(loaded) = std::mem::replace(&mut receiving.stage, empty) {
            receiving.stage = Stage::Publishes(op, loaded);
            self.snapshots.ops.push(FileOp::Publish { op, from, to });
        }
    }

    /// Received snapshots that wait for their group's term go on; those that nobody needs any more, or
    /// that nobody sends, make room for others.
    pub(super) fn look_after_receiving(&mut self, now: Tick) {
        let mut at = 0;
        while let Some(receiving) = self.snapshots.receiving.get(at) {
            let raft = &self.groups[receiving.local as usize].raft;
            let Stage::Fills(None, _) = &receiving.stage else {
                at += 1;
                continue;
            };
            if !raft.wants_snapshot(&receiving.offer.start) {
                self.forget_receiving(at);
            } else if now.since(receiving.moved_at) >= PATIENCE_US {
                let Receiving { group, offer, held, .. } = self.snapshots.receiving.swap_remove(at);
                self.snapshots.parts.push((group, offer, held));
            } else {
                at += 1;
            }
        }
        for at in 0..self.snapshots.receiving.len() {
            self.publish_received(now, at);
        }
        self.drop_parts();
    }

    /// Parts go that would not bring their group further any more.
    fn drop_parts(&mut self) {
        let mut at = 0;
        while let Some(&(group, offer, _)) = self.snapshots.parts.get(at) {
            let raft = self.local(group).map(|local| &self.groups[local as usize].raft);
            if raft.is_none_or(|raft| raft.wants_snapshot(&offer.start)) {
                at += 1;
                continue;
            }
            self.snapshots.parts.swap_remove(at);
            self.snapshots.remove(FileName::Part(group, offer));
        }
    }

    /// State, sessions, applied index and log change in one step: nobody sees a mixture (bugs.md 18).
    fn install(&mut self, now: Tick, at: usize) {
        let Receiving { group: id, local, offer, stage, .. } =
            self.snapshots.receiving.swap_remove(at);
        let Stage::Publishes(_, loaded) = stage else { unreachable!("it was just published") };
        let start = offer.start;
        let group = &mut self.groups[local as usize];
        if !group.raft.wants_snapshot(&start) || group.raft.role() == Role::Leader {
            // The log has got further meanwhile, by entries.
            let newest = group.snapshot.start.index;
            if start.index == newest {
                // The leader's file has taken the place of the one that was taken here.
                (group.snapshot, group.snapshot_bad) = (offer, false);
                self.stop_sending(|s| s.group == id && s.offer.start == start && s.offer != offer);
            } else if start.index > newest {
                self.snapshots.remove(FileName::Snapshot(id, start.index));
            } else {
                self.snapshots.retire(id, start.index);
            }
            return;
        }
        let before = std::mem::replace(&mut group.snapshot, offer);
        group.restore(loaded.machine, loaded.sessions, start.index);
        self.snapshots.stats.installed += 1;
        self.snapshots.retire(id, before.start.index);
        let membership = loaded.header.membership;
        self.step(now, local, Event::Installed { start, membership });
        self.applied_for_reads(local);
        if local == 0 {
            self.follow_list(now);
        }
    }
}
