//! What is done when answers do not come: deadlines, asking elsewhere, links that fail; and how what
//! waits finds its way to a link again.
//!
//! Why asking elsewhere is safe, with two nodes and one block:
//!
//! 1. The block (session 7, number 3) is sent to n1, which leads and commits it.
//! 2. The answer is lost with the connection. The client cannot know whether 1 happened.
//! 3. The same bytes, number 3 still, go to n2, which leads by now.
//! 4. n2's table of sessions, replicated with the log, holds the answer to (7, 3): it gives that
//!    answer again, flagged as a retry, and applies nothing.
//!
//! The table may forget number 3 only when a later block's stamp says that the client no longer
//! waits for it; a copy still on its way then is `Stale`. If the whole session was forgotten
//! meanwhile, the numbers it had used are spent, and the copy is `Stale` too.

use super::link::{Link, Stage};
use super::question::{self, Goal};
use super::route::Map;
use super::session::NEVER;
use super::*;
use crate::shard::sessions::SessionEntry;
use crate::wire::client::Refused;
use crate::wire::hello::Refusal;

impl ClientCore {
    /// Looks after the groups and questions whose time has come.
    pub(super) fn ring_alarms(&mut self, now: Tick) {
        while let Some((at, group)) = self.alarms.ring(now) {
            let Some(session) = self.sessions.get_mut(group) else { continue };
            if session.armed == at {
                session.armed = NEVER;
                self.look_after(now, group);
            }
        }
        if self.questions.alarm <= now {
            self.look_after_questions(now);
        }
    }

    fn look_after(&mut self, now: Tick, group: GroupId) {
        self.doubt_silent(now, group);
        let ClientConfig { deadline_us, resend_us, keep_alive_us, .. } = self.config;
        let Some(session) = self.sessions.get_mut(group) else { return };
        while let Some(seq) = session.expired(now, deadline_us) {
            let Some(tag) = session.complete(seq) else { break };
            finish(&mut self.done, Done { tag, group, seq, result: Err(ClientError::Timeout) });
        }
        let mut silent = Vec::new();
        let mut left = None;
        let links = &self.links;
        let target = session.route.target;
        let mut retries = 0;
        session.take_unanswered(now, resend_us, |slot, since| {
            retries += 1;
            let link = &links[slot as usize];
            if link.node == target {
                left = Some(target);
            }
            if link.heard <= since && !silent.contains(&slot) {
                silent.push(slot);
            }
        });
        if let Some(node) = left {
            session.route.leave(node, self.map.nodes.len(), now, &mut self.backoff);
        }
        if session.keep_alive_at(keep_alive_us) <= now {
            let block = SessionEntry::KeepAlive.block(group, self.config.session, session.next());
            session.push(now, block, OWN_TAG);
        }
        let at = session.next_alarm(now, &self.config).min(session.keep_alive_at(keep_alive_us));
        debug_assert!(at > now, "what was looked after would ring again, for ever");
        self.alarms.arm(session, at);
        self.counters.retries += retries;
        self.soil(group);
        for slot in silent {
            self.close_silent(now, slot as usize);
        }
    }

    /// A leader that stands still resets no connection. What it has of the group goes to the next node,
    /// one block first; its own answers count if they come after all.
    fn doubt_silent(&mut self, now: Tick, group: GroupId) {
        let Self { links, sessions, config, map, backoff, counters, .. } = self;
        let Some(session) = sessions.get_mut(group) else { return };
        let patience_us = session.patience_us(config);
        let heard = |slot: u32| links[slot as usize].heard;
        let Some(slot) = session.silent_link(now, patience_us, heard) else { return };
        let link = &mut links[slot as usize];
        if !link.doubt(now, config.resend_us) {
            return self.close_silent(now, slot as usize);
        }
        session.take_back(slot);
        session.route.leave(link.node, map.nodes.len(), now, backoff);
        counters.retries += 1;
        self.soil(group);
    }

    /// Nothing at all came back since the question: the other side may be gone without a word.
    fn close_silent(&mut self, now: Tick, slot: usize) {
        if self.links[slot].stage() != Stage::Idle {
            self.close(now, slot, "no answer to anything");
        }
    }

    fn look_after_questions(&mut self, now: Tick) {
        let ClientConfig { deadline_us, resend_us, doubt_us, .. } = self.config;
        let mut slots = Vec::new();
        let (links, others) = (&self.links, self.map.takers() > 1);
        self.questions.select(&mut slots, |q| {
            let overdue = q.since.plus(doubt_us) <= now && links[q.link as usize].heard <= q.since;
            let may_move = others && !matches!(q.goal, Goal::Node(_));
            q.stage == question::Stage::Sent && may_move && overdue
        });
        for slot in slots.drain(..) {
            self.doubt_silent_about(now, slot);
        }
        self.questions.select(&mut slots, |q| q.asked.plus(deadline_us) <= now);
        for slot in slots.drain(..) {
            self.fail_question(self.questions.token(slot), ClientError::Timeout);
        }
        self.questions.select(&mut slots, |q| {
            q.stage != question::Stage::Waiting && q.since.plus(resend_us) <= now
        });
        for slot in slots {
            let Some(question) = self.questions.get_mut(slot) else { continue };
            let (link, since) = (question.link as usize, question.since);
            question.since = now;
            if self.links[link].heard <= since {
                self.close_silent(now, link);
            } else {
                self.ask_elsewhere(now, slot, link);
            }
        }
        self.questions.rearm(now, &self.config);
    }

    /// The same as for blocks, for a question.
    fn doubt_silent_about(&mut self, now: Tick, slot: u32) {
        let Some(question) = self.questions.get_mut(slot) else { return };
        let link = question.link as usize;
        if self.links[link].doubt(now, self.config.resend_us) {
            self.ask_elsewhere(now, slot, link);
        } else {
            self.close_silent(now, link);
        }
    }

    /// A question to the leader goes to another node; one to a node of its own has to wait.
    fn ask_elsewhere(&mut self, now: Tick, slot: u32, link: usize) {
        let node = self.links[link].node;
        let Some(question) = self.questions.get_mut(slot) else { return };
        if let Goal::Any(_) = question.goal {
            question.goal = Goal::Any((node + 1) % self.map.nodes.len());
            self.questions.retry(slot, now);
            self.counters.retries += 1;
            return;
        }
        let (Goal::Leader, Some(group)) = (question.goal, question.subject.group()) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(group) else { return };
        session.route.leave(node, self.map.nodes.len(), now, &mut self.backoff);
        self.questions.retry(slot, session.route.hold);
        self.counters.retries += 1;
    }

    /// Gives up connections whose opening, handshake or send takes too long.
    pub(super) fn tend_links(&mut self, now: Tick) {
        let (connect_us, send_us) = (self.config.resend_us, self.config.deadline_us);
        for slot in 0..self.links.len() {
            if self.links[slot].overdue_at(connect_us, send_us).is_some_and(|at| at <= now) {
                self.close(now, slot, "connecting or sending takes too long");
            }
        }
    }

    /// Ends a connection from this side.
    pub(super) fn close(&mut self, now: Tick, slot: usize, reason: &str) {
        if self.links[slot].stage() != Stage::Idle {
            self.closing.push(self.links[slot].id(slot));
            self.link_failed(now, slot, reason);
        }
    }

    /// A connection has ended: what was on it is routed again, the groups it served turn to the
    /// next node, and the link rests a while.
    pub(super) fn link_failed(&mut self, now: Tick, slot: usize, reason: &str) {
        let Self { links, sessions, map, backoff, dirty, counters, .. } = self;
        let link = &mut links[slot];
        let node = link.node;
        let delay = backoff.delay(link.attempts());
        link.become_idle(now, delay);
        counters.links_lost += 1;
        for session in sessions.iter_mut() {
            if !session.take_back(slot as u32) {
                continue;
            }
            session.route.leave(node, map.nodes.len(), now, backoff);
            if !session.dirty {
                session.dirty = true;
                dirty.push(session.group());
            }
        }
        self.questions_failed(now, slot, reason);
    }

    fn questions_failed(&mut self, now: Tick, link: usize, reason: &str) {
        let mut slots = Vec::new();
        self.questions
            .select(&mut slots, |q| q.stage != question::Stage::Waiting && q.link == link as u32);
        for slot in slots {
            match self.questions.get_mut(slot).map(|q| q.goal) {
                Some(Goal::Leader | Goal::Any(_)) => self.ask_elsewhere(now, slot, link),
                Some(Goal::Node(node)) => {
                    let error = match self.map.nodes[node].refused {
                        Some(refusal) => ClientError::Handshake(refusal),
                        None => ClientError::Unreachable { reason: reason.to_owned() },
                    };
                    self.fail_question(self.questions.token(slot), error);
                }
                None => {}
            }
        }
    }

    /// No node is left that takes this client: everything ends with the reason.
    pub(super) fn give_up(&mut self, reason: Refusal) {
        self.fault = Some(reason);
        for session in self.sessions.iter_mut() {
            let group = session.group();
            for seq in session.base()..session.next() {
                if let Some(tag) = session.complete(seq) {
                    let result = Err(ClientError::Handshake(reason));
                    finish(&mut self.done, Done { tag, group, seq, result });
                }
            }
        }
        let mut slots = Vec::new();
        self.questions.select(&mut slots, |_| true);
        for slot in slots {
            self.fail_question(self.questions.token(slot), ClientError::Handshake(reason));
        }
    }

    /// Gives what waits in each group to the link of the node that it takes for its leader: all of
    /// it, or after a pause one block. A window of a thousand blocks sent again and again to nodes
    /// that are busy electing would cost them more than the election; the first success calls the
    /// rest.
    pub(super) fn flush_groups(&mut self, now: Tick) {
        let Some(extent) = self.map.extent else { return };
        let Self { config, map, links, sessions, alarms, dirty, done, .. } = self;
        for group in dirty.drain(..) {
            let Some(session) = sessions.get_mut(group) else { continue };
            session.dirty = false;
            if session.is_over() {
                let result = Err(ClientError::Refused(Refused::Stale { open_from: 0 }));
                let lost =
                    |seq, tag| finish(done, Done { tag, group, seq, result: result.clone() });
                if !session.begin_next(lost) {
                    continue;
                }
            }
            if !session.has_waiting() {
                continue;
            }
            if session.route.hold <= now {
                match pick(map, links, session.route.target, group.0 % extent.shards, now) {
                    Ok(slot) => {
                        let link = &mut links[slot];
                        session.route.target = link.node;
                        let count_max = if session.route.is_unsure() { 1 } else { usize::MAX };
                        session.queue_waiting(now, slot as u32, count_max, |due| link.push(due));
                        // Also behind a pause, and if nothing is submitted any more.
                        alarms.arm(session, now.plus(session.patience_us(config)));
                        continue;
                    }
                    Err(at) => session.route.hold = at,
                }
            }
            let at = session.route.hold;
            alarms.arm(session, at);
        }
    }

    /// The same for questions.
    pub(super) fn flush_questions(&mut self, now: Tick) {
        let mut placing = std::mem::take(&mut self.questions.placing);
        std::mem::swap(&mut placing, &mut self.questions.waiting);
        for token in placing.drain(..) {
            let Some(slot) = self.questions.find(token) else { continue };
            match self.place(now, slot) {
                Some(Ok(link)) => self.links[link].questions.push_back(slot),
                Some(Err(hold)) => {
                    self.questions.waiting.push(token);
                    self.questions.arm(hold);
                }
                None => {}
            }
        }
        self.questions.placing = placing;
    }

    /// Puts one question on a link, or says until when it has to wait. `None`: it is not waiting,
    /// or over.
    fn place(&mut self, now: Tick, slot: u32) -> Option<Result<usize, Tick>> {
        let question = self.questions.get_mut(slot)?;
        if question.stage != question::Stage::Waiting {
            return None;
        }
        if question.hold > now {
            return Some(Err(question.hold));
        }
        let placed = match (question.goal, question.subject.group()) {
            (Goal::Leader, Some(group)) => {
                let session = self.sessions.get_mut(group)?;
                if session.route.hold > now {
                    Err(session.route.hold)
                } else {
                    let target = session.route.target;
                    pick(&self.map, &self.links, target, question.shard, now)
                        .inspect(|link| session.route.target = self.links[*link].node)
                }
            }
            (Goal::Any(node), _) => pick(&self.map, &self.links, node, question.shard, now),
            (Goal::Node(node), _) if self.map.nodes[node].refused.is_none() => {
                let link = question.shard as usize * self.map.stride + node;
                self.links[link].resting(now).map_or(Ok(link), Err)
            }
            (Goal::Node(node), _) => {
                let refusal = self.map.nodes[node].refused?;
                self.fail_question(self.questions.token(slot), ClientError::Handshake(refusal));
                return None;
            }
            (Goal::Leader, None) => unreachable!("status is asked of a node"),
        };
        match placed {
            Ok(link) => {
                question.stage = question::Stage::Queued;
                question.link = link as u32;
                question.since = now;
                self.questions.arm(now.plus(self.config.doubt_us));
            }
            Err(hold) => question.hold = hold,
        }
        Some(placed)
    }
}

/// The link of the first node from `target` on that takes us and is neither resting nor in doubt, of
/// one in doubt if all others rest; or when the first of them has rested.
fn pick(map: &Map, links: &[Link], target: usize, shard: u32, now: Tick) -> Result<usize, Tick> {
    let nodes = map.nodes.len();
    let mut rested = NEVER;
    let mut doubted = None;
    for node in (target..nodes).chain(0..target) {
        if map.nodes[node].refused.is_some() {
            continue;
        }
        let slot = shard as usize * map.stride + node;
        match links[slot].resting(now) {
            None if links[slot].is_doubted(now) => doubted = doubted.or(Some(slot)),
            None => return Ok(slot),
            Some(at) => rested = rested.min(at),
        }
    }
    doubted.ok_or(rested)
}
