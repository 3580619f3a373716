//! What a node says: the handshake, answers to blocks, replies to questions; and which refusals are
//! final, which mean "later", and which "elsewhere".

use super::link::{Link, Stage};
use super::question::{self, Goal, Subject};
use super::session::Session;
use super::*;
use crate::wire::client::{Answer, AnswerEntry, Refused, read_query, read_status_reply};
use crate::wire::frame::{Frame, FrameError, FrameKind, read_close};
use crate::wire::hello::{HelloError, HelloReply, Refusal};

impl ClientCore {
    /// Takes in one frame. An error means that the connection is given up, for the log: the next
    /// [`ClientCore::poll`] asks to close it, and everything on it goes elsewhere.
    pub fn frame(&mut self, now: Tick, link: LinkId, frame: Frame) -> Result<(), ClientFault> {
        let Some(slot) = self.live(link) else { return Ok(()) };
        self.links[slot].hear(now);
        let result = match (self.links[slot].stage(), frame.kind) {
            (_, FrameKind::Close) => Err(ClientFault::Closed(read_close(&frame))),
            (Stage::Greeting, _) => self.greeted(now, slot, &frame),
            (Stage::Ready, FrameKind::Answers) => self.answers(now, slot, &frame),
            (Stage::Ready, FrameKind::QueryReply | FrameKind::AdminReply) => {
                self.query_reply(now, slot, &frame)
            }
            (Stage::Ready, FrameKind::StatusReply) => {
                let json = Ok(read_status_reply(&frame));
                self.reply(frame.token, Place::default(), json);
                Ok(())
            }
            (_, kind) => Err(FrameError::Unexpected(kind).into()),
        };
        if let Err(fault) = &result {
            self.close(now, slot, &fault.to_string());
        }
        result
    }

    fn greeted(&mut self, now: Tick, slot: usize, frame: &Frame) -> Result<(), ClientFault> {
        let (node, shard) = (self.links[slot].node, self.links[slot].shard);
        let reply = HelloReply::read(frame).inspect_err(|error| {
            if matches!(error, HelloError::Version { .. }) {
                self.shun(now, node, Refusal::Version);
            }
        })?;
        let welcome = match reply.refusal {
            Some(refusal) => Err(refusal),
            None => self.map.learn(node, shard, &reply),
        };
        if let Err(refusal) = welcome {
            self.shun(now, node, refusal);
            return Err(refusal.into());
        }
        self.links[slot].become_ready(now);
        self.grow_links(reply.shards);
        Ok(())
    }

    fn grow_links(&mut self, shards: u32) {
        let stride = self.map.stride;
        for slot in self.links.len()..stride * shards as usize {
            self.links.push(Link::new(slot % stride, (slot / stride) as u32));
        }
    }

    /// Never asks a node again that does not take this client, unless the reason may pass.
    fn shun(&mut self, now: Tick, node: usize, refusal: Refusal) {
        if matches!(refusal, Refusal::Connections | Refusal::Shutdown) {
            return;
        }
        self.map.nodes[node].refused = Some(refusal);
        for slot in 0..self.links.len() {
            let link = &self.links[slot];
            if link.node == node && matches!(link.stage(), Stage::Connecting | Stage::Ready) {
                self.close(now, slot, &refusal.to_string());
            }
        }
        if let Some(reason) = self.map.dead_end() {
            self.give_up(reason);
        }
    }

    fn answers(&mut self, now: Tick, slot: usize, frame: &Frame) -> Result<(), ClientFault> {
        for (at, entry) in (0..).zip(frame.entries::<AnswerEntry>()?) {
            let answer = entry.decode().ok_or(FrameError::BadEntry(at))?;
            self.answer(now, slot, answer)?;
        }
        Ok(())
    }

    #[inline]
    fn answer(&mut self, now: Tick, slot: usize, answer: Answer) -> Result<(), ClientFault> {
        let Answer { group, seq, result, unproposed } = answer;
        let unasked = ClientFault::Unasked { group, seq };
        let Some(session) = self.sessions.get_mut(group) else { return Err(unasked) };
        if seq >= session.next() {
            return Err(unasked);
        }
        match result {
            // A success counts wherever it comes from: the block was applied, once.
            Ok(committed) => {
                session.note_answer(now, seq, slot as u32, self.config.resend_us);
                if session.route.is_unsure() {
                    // Whoever answers leads, or did: not the one that was to be asked instead.
                    session.route.target = self.links[slot].node;
                }
                if let Some(tag) = session.complete(seq) {
                    session.route.settle();
                    session.continues = !session.is_over() && seq != session.closes;
                    let more = session.has_waiting() || session.is_over();
                    finish(&mut self.done, Done { tag, group, seq, result: Ok(committed) });
                    if more {
                        self.soil(group);
                    }
                }
            }
            Err(refused) if session.is_sent_on(seq, slot as u32) => {
                // This copy will not be applied. Older nodes do not say so where they want room: what
                // they refuse for that they have not proposed.
                let is_dead =
                    matches!(refused, Refused::Busy | Refused::ReadOnly | Refused::Stale { .. });
                if unproposed || is_dead {
                    session.forgive(seq);
                }
                self.block_refused(now, slot, group, seq, refused);
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn block_refused(
        &mut self,
        now: Tick,
        slot: usize,
        group: GroupId,
        seq: u64,
        refused: Refused,
    ) {
        let again = self.heed(now, slot, group, refused);
        let Some(session) = self.sessions.get_mut(group) else { return };
        if refused == Refused::SessionEpochChanged {
            // The cluster has ended the session; the next block begins another one.
            session.continues = false;
        }
        if again {
            session.retry(seq);
            self.counters.retries += 1;
            self.soil(group);
        } else if let Some(tag) = end_refused(session, self.config.session, seq, refused) {
            let result = Err(ClientError::Refused(refused));
            finish(&mut self.done, Done { tag, group, seq, result });
            self.soil(group);
        }
    }

    /// Draws the consequences of a refusal for the group's route. True if a retry can help.
    fn heed(&mut self, now: Tick, slot: usize, group: GroupId, refused: Refused) -> bool {
        let node = self.links[slot].node;
        let hint = match refused {
            Refused::NotLeader(hint) => hint.and_then(|id| self.reachable(now, slot, id)),
            _ => None,
        };
        if let Refused::NotLeader(leader) = refused
            && leader.is_none_or(|id| self.map.nodes.iter().all(|known| known.id != Some(id)))
        {
            self.learn_members(now, group, node, self.links[slot].shard);
        }
        let nodes = self.map.nodes.len();
        let Some(session) = self.sessions.get_mut(group) else { return false };
        if let Refused::Stale { open_from: open_from @ 1.. } = refused {
            session.end(open_from);
            return true;
        }
        let route = &mut session.route;
        match refused {
            Refused::TooLarge
            | Refused::BadRequest
            | Refused::Stale { .. }
            | Refused::SessionEpochChanged
            | Refused::Truncated { .. }
            | Refused::NoGroup => false,
            Refused::Busy | Refused::ReadOnly => {
                if route.target == node {
                    route.pause(now, &mut self.backoff);
                }
                true
            }
            Refused::NotLeader(_) if route.target == node => {
                self.counters.redirects += 1;
                if !hint.is_some_and(|to| route.chase(to, nodes)) {
                    route.leave(node, nodes, now, &mut self.backoff);
                }
                true
            }
            Refused::NotLeader(_) => true,
            Refused::Recovering | Refused::Shutdown => {
                route.leave(node, nodes, now, &mut self.backoff);
                true
            }
        }
    }

    /// The node a hint names, unless its connection to the same shard has just failed or is in doubt:
    /// followers name a leader that stands still until they elect another one.
    fn reachable(&self, now: Tick, slot: usize, id: NodeId) -> Option<usize> {
        let node = self.map.find(id)?;
        let link = &self.links[self.slot(node, self.links[slot].shard)];
        (link.resting(now).is_none() && !link.is_doubted(now)).then_some(node)
    }

    fn query_reply(&mut self, now: Tick, slot: usize, frame: &Frame) -> Result<(), ClientFault> {
        let query = read_query(frame)?;
        let refused = match query.result {
            Ok(bytes) => {
                self.reply(query.token, query.place, Ok(bytes));
                return Ok(());
            }
            Err(refused) => refused,
        };
        let Some(at) = self.questions.find(query.token) else { return Ok(()) };
        let Some(question) = self.questions.get_mut(at) else { return Ok(()) };
        if question.stage != question::Stage::Sent || question.link != slot as u32 {
            return Ok(());
        }
        let goal = question.goal;
        let again = match goal {
            Goal::Leader => self.heed(now, slot, query.group, refused),
            Goal::Node(_) => refused == Refused::Busy,
            Goal::Any(_) => refused.may_pass(),
        };
        if !again {
            self.fail_question(query.token, ClientError::Refused(refused));
            return Ok(());
        }
        let hold = match goal {
            Goal::Leader => self.sessions.get(query.group).map_or(now, |s| s.route.hold),
            Goal::Node(_) | Goal::Any(_) => now.plus(self.backoff.delay(0)),
        };
        if let (Goal::Any(_), Some(question)) = (goal, self.questions.get_mut(at)) {
            let next = (self.links[slot].node + 1) % self.map.nodes.len();
            question.goal = Goal::Any(next);
        }
        self.counters.retries += 1;
        self.questions.retry(at, hold);
        Ok(())
    }

    /// Ends a question, if it is not over.
    fn reply(&mut self, token: u64, place: Place, result: Result<bytes::Bytes, ClientError>) {
        if let Some(slot) = self.questions.find(token)
            && let Some(question) = self.questions.finish(slot)
        {
            match (question.subject, result) {
                (Subject::Learn { .. }, Ok(json)) => self.map.add_members(&json),
                (Subject::Learn { .. }, Err(_)) => {}
                (_, result) => self.replies.push(QueryDone { tag: question.tag, place, result }),
            }
        }
    }

    /// Ends a question without an answer.
    pub(super) fn fail_question(&mut self, token: u64, error: ClientError) {
        self.reply(token, Place::default(), Err(error));
    }
}

/// Ends a block that no retry can help: its tag. One that is refused for what it is leaves its number
/// unused, which after a loss the cluster cannot tell from an answer that is gone (durability.md R9):
/// so the number is given back, or used for a sign of life.
fn end_refused(session: &mut Session, client: u64, seq: u64, refused: Refused) -> Option<u64> {
    match refused {
        Refused::TooLarge | Refused::BadRequest => session.withdraw(client, seq),
        _ => session.complete(seq),
    }
}
