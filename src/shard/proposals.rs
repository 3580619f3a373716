//! Clients: their frames, their proposals, their answers.

use super::Shard;
use super::group::{Origin, Pending};
use super::sessions::SessionEntry;
use crate::block::{Block, BlockKind};
use crate::ids::{GroupId, NodeId, Tick};
use crate::machine::StateMachine;
use crate::mutants::{self, Mutant};
use crate::raft::Event;
use crate::raft::ready::Role;
use crate::wire::client::{
    Answer, AnswerEntry, Committed, Durability, Place, Refused, write_admin_reply, write_answers,
    write_query_reply, write_status_reply,
};
use crate::wire::frame::{FRAME_BYTES_MAX, Frame, FrameError, FrameKind};

/// Groups in one answer about the shard, so that it fits a frame.
const STATUS_GROUPS_MAX: usize = 16_384;
const _: () = assert!(STATUS_GROUPS_MAX * 256 <= FRAME_BYTES_MAX);

/// Stands for a connection where there is none.
const NOBODY: u64 = u64::MAX;

/// One client's connection. `conn` numbers are the runtime's: slot in the low half, and never used
/// twice.
#[derive(Default)]
struct ClientConn {
    conn: u64,
    open: bool,
    answers: Vec<AnswerEntry>,
    egress: Vec<u8>,
    /// Blocks that wait for their answer.
    waiting: u32,
    dirty: bool,
}

#[derive(Default)]
pub(super) struct Clients {
    slots: Vec<ClientConn>,
    /// Connections with something to send.
    dirty: Vec<u64>,
}

impl Clients {
    fn get(&mut self, conn: u64) -> Option<&mut ClientConn> {
        let client = self.slots.get_mut(conn as u32 as usize)?;
        if client.open && client.conn == conn { Some(client) } else { None }
    }

    fn touch(&mut self, conn: u64) {
        let Some(client) = self.get(conn) else { return };
        if !std::mem::replace(&mut client.dirty, true) {
            self.dirty.push(conn);
        }
    }

    /// Queues the answer to a block that counts as waiting.
    pub fn answer(&mut self, conn: u64, answer: &Answer) {
        let Some(client) = self.get(conn) else { return };
        client.waiting = client.waiting.saturating_sub(1);
        client.answers.push(AnswerEntry::encode(answer));
        self.touch(conn);
    }

    /// Queues what became of an operator's command.
    pub fn reply_admin(
        &mut self,
        conn: u64,
        token: u64,
        group: GroupId,
        result: Result<&[u8], Refused>,
    ) {
        let Some(client) = self.get(conn) else { return };
        write_admin_reply(&mut client.egress, token, group, result);
        self.touch(conn);
    }

    /// Counts a question that waits. `false`: too many do, or nobody is there.
    pub fn admit_question(&mut self, conn: u64, limit: u32) -> bool {
        let Some(client) = self.get(conn) else { return false };
        let room = client.waiting < limit;
        client.waiting += u32::from(room);
        room
    }

    /// Writes the answer to a question; `waited` if it was counted.
    pub fn reply(
        &mut self,
        (conn, token, group): (u64, u64, GroupId),
        waited: bool,
        place: Place,
        result: Result<&[u8], Refused>,
    ) {
        let Some(client) = self.get(conn) else { return };
        client.waiting = client.waiting.saturating_sub(u32::from(waited));
        write_query_reply(&mut client.egress, token, group, place, result);
        self.touch(conn);
    }

    /// Connections that are open, and bytes that wait for their sockets.
    pub fn figures(&self) -> (u32, u64) {
        let open = self.slots.iter().filter(|client| client.open);
        open.fold((0, 0), |(count, bytes), client| (count + 1, bytes + client.egress.len() as u64))
    }

    /// Turns the answers of this turn into frames.
    pub fn write_answers(&mut self) {
        for &conn in &self.dirty {
            let client = &mut self.slots[conn as u32 as usize];
            if client.conn == conn && !client.answers.is_empty() {
                write_answers(&mut client.egress, &client.answers);
                client.answers.clear();
            }
        }
    }
}

impl<M: StateMachine> Shard<M> {
    /// A client has completed its handshake.
    pub fn client_opened(&mut self, conn: u64) {
        let slot = conn as u32 as usize;
        if self.clients.slots.len() <= slot {
            self.clients.slots.resize_with(slot + 1, ClientConn::default);
        }
        self.clients.slots[slot] = ClientConn { conn, open: true, ..ClientConn::default() };
    }

    /// It is gone; answers to its proposals have nobody to go to.
    pub fn client_closed(&mut self, conn: u64) {
        if let Some(client) = self.clients.get(conn) {
            *client = ClientConn::default();
        }
    }

    /// Connections that have bytes to send, since the last call.
    pub fn take_dirty_clients(&mut self, into: &mut Vec<u64>) {
        into.append(&mut self.clients.dirty);
    }

    /// Bytes for a client's socket. Asking clears the connection's place among the dirty ones.
    pub fn client_egress(&mut self, conn: u64) -> Option<&mut Vec<u8>> {
        let client = self.clients.get(conn)?;
        client.dirty = false;
        Some(&mut client.egress)
    }

    /// Whether to go on reading from a client: not while it leaves its answers unread.
    pub fn client_may_send(&mut self, conn: u64) -> bool {
        let limit = self.config.client_egress_bytes_max;
        self.clients.get(conn).is_some_and(|client| client.egress.len() < limit)
    }

    /// A frame from a client. An error means that the connection must be closed.
    pub fn client_frame(&mut self, conn: u64, mut frame: Frame) -> Result<(), FrameError> {
        match frame.kind {
            FrameKind::Submit => self.submit(conn, &mut frame),
            FrameKind::Query => self.query(conn, &frame),
            FrameKind::Admin => self.admin(conn, &frame),
            FrameKind::Status => {
                self.answer_status(conn, frame.token);
                Ok(())
            }
            other => Err(FrameError::Unexpected(other)),
        }
    }

    fn submit(&mut self, conn: u64, frame: &mut Frame) -> Result<(), FrameError> {
        let mut blocks = std::mem::take(&mut self.incoming);
        blocks.clear();
        let taken = frame.take_blocks(frame.count, &mut blocks);
        let whole = taken.is_ok() && frame.blocks.is_empty() && frame.control.is_empty();
        if whole {
            blocks.drain(..).for_each(|block| self.proposal(conn, block));
        }
        self.incoming = blocks;
        taken?;
        if whole { Ok(()) } else { Err(FrameError::Leftover) }
    }

    fn proposal(&mut self, conn: u64, block: Block) {
        let (group, seq) = (block.group(), block.header().seq);
        let limit = self.config.client_blocks_max;
        let Some(client) = self.clients.get(conn) else { return };
        client.waiting += 1;
        let crowded = client.waiting > limit;
        let admitted = if crowded { Err(Refused::Busy) } else { self.admit(&block) };
        match admitted {
            Err(refused) => self.refuse(conn, group, seq, refused),
            Ok(local) => {
                let state = &mut self.groups[local as usize];
                if state.proposals.is_empty() {
                    self.proposing.push(local);
                }
                state.origins.push(Origin { conn, seq, count: block.count() });
                state.proposals.push(block);
            }
        }
    }

    fn refuse(&mut self, conn: u64, group: GroupId, seq: u64, refused: Refused) {
        self.stats.refused[refused.kind()] += 1;
        self.clients.answer(conn, &Answer::at_the_door(group, seq, refused));
    }

    /// Whether a proposal may go to its group: the cheap reasons why not come first.
    fn admit(&mut self, block: &Block) -> Result<u32, Refused> {
        let group = block.group();
        let local = self.local(group).ok_or_else(|| self.no_group(group))?;
        let raft = &self.groups[local as usize].raft;
        if raft.role() != Role::Leader {
            return Err(Refused::NotLeader(raft.leader()));
        }
        // Until somebody else leads the group it is served, if anybody else can.
        if self.handover.draining && (self.handover.is_over() || raft.is_alone()) {
            return Err(Refused::Shutdown);
        }
        if block.size() > self.config.block_bytes_max as usize {
            return Err(Refused::TooLarge);
        }
        let size = block.size() as u64;
        if self.wal.room() < 4 * size + self.claimed {
            return Err(Refused::ReadOnly);
        }
        if self.wal.capacity() <= self.claimed {
            return Err(Refused::Busy);
        }
        let valid = match block.kind() {
            BlockKind::Session => SessionEntry::of_client(block).is_some(),
            _ => block.validate_commands().is_ok(),
        };
        if !valid {
            return Err(Refused::BadRequest);
        }
        self.claimed += size;
        Ok(local)
    }

    /// A proposal of the shard itself, which nobody waits for. Without room in the log it is left
    /// out: there is a next time.
    pub(super) fn propose_own(&mut self, local: u32, block: Block) {
        let size = block.size() as u64;
        if self.wal.room() < 4 * size + self.claimed || self.wal.capacity() <= self.claimed {
            return;
        }
        self.claimed += size;
        let state = &mut self.groups[local as usize];
        if state.proposals.is_empty() {
            self.proposing.push(local);
        }
        state.origins.push(Origin { conn: NOBODY, seq: 0, count: block.count() });
        state.proposals.push(block);
    }

    /// Hands each group all of its proposals of this turn.
    pub(super) fn propose(&mut self, now: Tick) {
        let mut proposing = std::mem::take(&mut self.proposing);
        for local in proposing.drain(..) {
            self.propose_to(now, local);
        }
        self.proposing = proposing;
    }

    fn propose_to(&mut self, now: Tick, local: u32) {
        let group = &mut self.groups[local as usize];
        let mut blocks = std::mem::take(&mut group.proposals);
        let offered = blocks.len();
        let mut first = group.raft.last_index().next();
        self.step(now, local, Event::Propose { blocks: &mut blocks });
        let group = &mut self.groups[local as usize];
        let admitted = offered - blocks.len();
        blocks.clear();
        group.proposals = blocks;
        let term = group.raft.term();
        let refused = match group.raft.role() {
            Role::Leader => Refused::Busy,
            _ => Refused::NotLeader(group.raft.leader()),
        };
        for Origin { conn, seq, count } in group.origins.drain(..admitted) {
            if mutants::is(Mutant::AnswerWhenProposed) {
                let (durability, epoch) = (Durability::Synced, group.raft.epoch());
                let (duplicates, rejected, retry) = (0, 0, false);
                let done =
                    Committed { first, term, epoch, durability, duplicates, rejected, retry };
                let answer = Answer::new(group.raft.group(), seq, Ok(done));
                self.clients.answer(conn, &answer);
            }
            group.pending.push_back(Pending { first, term, conn, seq });
            first = first.plus(count);
        }
        if admitted > 0 {
            group.probes.set(first.prev(), now);
        }
        let id = group.raft.group();
        for Origin { conn, seq, .. } in group.origins.drain(..) {
            self.stats.refused[refused.kind()] += 1;
            // What Raft left over is in no log.
            self.clients.answer(conn, &Answer::at_the_door(id, seq, refused));
        }
    }

    /// This node no longer leads the group: who waits is sent to the leader. The fate of these
    /// blocks is open; the session's sequence number makes the retry safe.
    pub(super) fn disown(&mut self, local: u32, leader: Option<NodeId>) {
        let group = &mut self.groups[local as usize];
        group.probes.clear();
        let id = group.raft.group();
        for pending in group.pending.drain(..) {
            let result = Err(Refused::NotLeader(leader));
            let mut answer = Answer::new(id, pending.seq, result);
            answer.unproposed = mutants::is(Mutant::DisownedAtTheDoor);
            self.clients.answer(pending.conn, &answer);
        }
    }

    fn answer_status(&mut self, conn: u64, token: u64) {
        let json = self.client_may_send(conn).then(|| {
            let mut status = self.status();
            status.groups.truncate(STATUS_GROUPS_MAX);
            status.to_json()
        });
        let Some(client) = self.clients.get(conn) else { return };
        match json {
            Some(json) => write_status_reply(&mut client.egress, token, &json),
            None => {
                let (group, busy) = (GroupId(0), Err(Refused::Busy));
                write_query_reply(&mut client.egress, token, group, Place::default(), busy);
            }
        }
        self.clients.touch(conn);
    }
}
