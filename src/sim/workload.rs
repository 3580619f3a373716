//! Clients: sessions, windows, retries that follow leaders, and a record of who asked what when.

use bytes::{Bytes, BytesMut};

use super::network::delay;
use super::options::Shape;
use super::queries::Questions;
use super::queue::Event;
use super::roster::Life;
use super::subject::{Ask, Subject};
use super::trace::What;
use super::world::{Packet, World};
use crate::block::{Block, BlockBuilder};
use crate::ids::{GroupId, Index};
use crate::shard::sessions::SessionEntry;
use crate::wire::client::{Answer, AnswerEntry, Refused};
use crate::wire::frame::{Frame, FrameKind, FrameWriter};

/// Without an answer a block is sent again after this long, elsewhere; microseconds.
const PATIENCE: (u64, u64) = (300_000, 900_000);
/// A refusal that names nobody is followed by a pause.
const PAUSE: (u64, u64) = (10_000, 60_000);
/// Numbers between two sessions of a client: more than there are clients.
const SESSIONS: u64 = 8;
/// One in so many blocks only keeps its session, or closes it; and as rarely a client sleeps.
const RARELY: u64 = 25;
/// Percent of requests and of answers that are lost with their connection.
const LOST: u64 = 1;

/// A block that waits for its answer.
#[derive(Debug)]
struct Open {
    seq: u64,
    block: Block,
    ask: Ask,
    /// What was acknowledged of the group when it was asked.
    floor: u64,
    /// When it is sent (again).
    due: u64,
    sent: u32,
    /// Copies of which it is not known that they came to nothing.
    copies: u32,
    /// It has no command: what it says of its session.
    entry: Option<SessionEntry>,
}

/// A client's dealings with one group.
#[derive(Debug)]
struct Session {
    /// As the log knows it. A loss may end it, and another one begins.
    id: u64,
    next: u64,
    open: Vec<Open>,
    /// A block was answered in it, and not to close it.
    continues: bool,
    /// It has asked to be closed at some time.
    closes: bool,
    /// Session and sequence number.
    acknowledged: Vec<(u64, u64)>,
    /// Where the leader was last.
    node: usize,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    sessions: Vec<Session>,
    /// By host: the connection's number, 0 = none.
    conns: Vec<u32>,
    next_conn: u32,
    /// Answers on earlier connections are not for the present sessions.
    hears_from: u32,
    /// When its next look is due.
    wake_at: u64,
    think_at: u64,
    pub(super) questions: Questions,
}

impl Client {
    pub fn new(id: u32, shape: &Shape) -> Self {
        let hosts = (shape.nodes * shape.shards) as usize;
        let session = |group: u32| Session {
            id: u64::from(id) + 1,
            next: 1,
            open: Vec::new(),
            continues: false,
            closes: false,
            acknowledged: Vec::new(),
            node: (group % shape.nodes) as usize,
        };
        Self {
            sessions: (0..shape.groups_all).map(session).collect(),
            conns: vec![0; hosts],
            next_conn: 1,
            hears_from: 0,
            wake_at: 0,
            think_at: 0,
            questions: Questions::new(shape),
        }
    }

    /// Where it takes the group's leader to be.
    pub fn leader_guess(&self, group: usize) -> usize {
        self.sessions[group].node
    }

    /// The number of its connection to a host; 0 = none.
    pub fn life(&self, host: usize) -> u32 {
        self.conns[host]
    }

    /// Numbers another connection.
    pub fn next_life(&mut self) -> u32 {
        self.next_conn += 1;
        self.next_conn - 1
    }

    /// When something is to be sent.
    fn due(&self) -> Option<u64> {
        let blocks = self.sessions.iter().flat_map(|s| &s.open).map(|open| open.due).min();
        [blocks, self.questions.due()].into_iter().flatten().min()
    }

    /// Blocks without an answer.
    pub fn open(&self) -> usize {
        self.sessions.iter().map(|session| session.open.len()).sum()
    }

    /// An acknowledged block of `group` for which `lacks` holds: (session, number).
    pub fn acknowledged_where(
        &self,
        group: usize,
        lacks: impl Fn(u64, u64) -> bool,
    ) -> Option<(u64, u64)> {
        let told = &self.sessions[group].acknowledged;
        told.iter().find(|&&(id, seq)| lacks(id, seq)).copied()
    }

    /// Connections to a node that is gone.
    pub fn forget_node(&mut self, hosts: usize, node: usize, nodes: usize) {
        let shards = hosts / nodes;
        self.conns[node * shards..(node + 1) * shards].fill(0);
    }
}

impl Session {
    /// The table has forgotten the session. What surely was not applied goes on in the next one; of
    /// the rest the fate is unknown: how many.
    fn begin_next(&mut self, open_from: u64, now: u64) -> u64 {
        let before = self.open.len();
        self.open.retain(|open| open.copies == 0 && open.entry.is_none());
        let base = self.next.max(open_from);
        for (seq, open) in (base..).zip(&mut self.open) {
            open.block.renumber(seq, (seq - base) as u32);
            (open.seq, open.due) = (seq, now + 1);
        }
        self.next = base + self.open.len() as u64;
        self.continues = false;
        (before - self.open.len()) as u64
    }
}

impl<S: Subject> World<S> {
    /// A client looks after what is open, and perhaps thinks of something new.
    pub(super) fn on_client(&mut self, at: usize) {
        let now = self.now;
        if self.clients[at].wake_at > now {
            return;
        }
        if self.clients[at].think_at <= now {
            self.think(at);
            // After the trouble each of many groups is to be asked in time.
            let longest = if self.healed_at.is_some() { 20_000 } else { 2 * self.shape.think_us };
            let pause = 1 + self.client_rng.below(longest);
            self.clients[at].think_at = now + pause + self.nap();
        }
        self.send_due(at);
        self.send_questions(at);
        let due = self.clients[at].due();
        let next = due.unwrap_or(u64::MAX).min(self.clients[at].think_at).max(now + 1);
        self.clients[at].wake_at = next;
        self.queue.push(next, Event::Client(at as u32));
    }

    /// During the trouble: any group. After it: those that have not shown progress yet.
    fn think(&mut self, at: usize) {
        if self.client_rng.chance(40) {
            return self.think_of_a_question(at);
        }
        let groups = self.sessions_to_ask();
        if groups.is_empty() {
            return;
        }
        let group = groups[self.client_rng.below(groups.len() as u64) as usize];
        if self.clients[at].sessions[group].open.len() < self.shape.window {
            self.ask(at, group);
        }
    }

    fn think_of_a_question(&mut self, at: usize) {
        let settled = |group: &usize| self.healed_at.is_none() || !self.read_since[*group];
        let groups: Vec<_> = self.known_groups().filter(settled).collect();
        if !groups.is_empty() {
            let group = groups[self.client_rng.below(groups.len() as u64) as usize];
            self.inquire(at, group);
        }
    }

    fn sessions_to_ask(&self) -> Vec<usize> {
        let all = self.known_groups();
        match self.healed_at {
            None => all.collect(),
            Some(_) => all.filter(|&group| !self.progressed[group]).collect(),
        }
    }

    /// Groups that clients know; after the trouble those that are to work.
    fn known_groups(&self) -> impl Iterator<Item = usize> + '_ {
        let healed = self.healed_at.is_some();
        let now = self.now;
        let known = move |life: &Life| if healed { life.lives() } else { life.is_known(now) };
        (0..self.lives.len()).filter(move |&group| known(&self.lives[group]))
    }

    /// Nobody may say that there is no such group: it was there from the start, and is to stay.
    pub(super) fn must_be_there(&self, group: GroupId) -> bool {
        group.0 < self.shape.groups && !self.lives[group.0 as usize].may_be_missing()
    }

    fn ask(&mut self, at: usize, group: usize) {
        self.stats.asked += 1;
        let ask = Ask {
            number: self.stats.asked,
            client: at as u32,
            group: GroupId(group as u32),
            asked_at: self.now,
            commands_max: self.shape.batch,
        };
        let session = &mut self.clients[at].sessions[group];
        let (id, seq) = (session.id, session.next);
        session.next += 1;
        let alone = session.open.is_empty() && self.healed_at.is_none();
        let entry = match self.client_rng.below(RARELY) {
            0 if alone => Some(SessionEntry::KeepAlive),
            1 if alone => Some(SessionEntry::Close),
            _ => None,
        };
        let mut block = match entry {
            Some(entry) => entry.block(ask.group, id, seq),
            None => {
                let lowest = session.open.iter().map(|open| open.seq).min().unwrap_or(seq);
                let mut builder = BlockBuilder::default();
                self.subject.block(&ask, &mut self.client_rng, &mut builder);
                builder.finish(ask.group, id, seq, (seq - lowest) as u32)
            }
        };
        if session.continues {
            block.set_continues();
        }
        session.closes |= entry == Some(SessionEntry::Close);
        let floor = self.oracle.floor(ask.group);
        let (due, sent, copies) = (self.now, 0, 0);
        session.open.push(Open { seq, block, ask, floor, due, sent, copies, entry });
    }

    /// Now and then a client sleeps until its sessions may be over, and retries all the same.
    fn nap(&mut self) -> u64 {
        let idle = self.shape.session_idle_us;
        let sleeps = idle > 0 && self.healed_at.is_none() && self.client_rng.below(RARELY) == 0;
        if sleeps { idle + self.client_rng.below(idle) } else { 0 }
    }

    /// Sends what is due, one frame to each host.
    fn send_due(&mut self, at: usize) {
        for group in 0..self.shape.groups_all as usize {
            let nodes = self.nodes.len();
            let (now, shards, nap) = (self.now, self.shape.shards as usize, self.nap());
            let session = &mut self.clients[at].sessions[group];
            let due = |open: &&mut Open| open.due <= now;
            if !session.open.iter().any(|open| open.due <= now) {
                continue;
            }
            let mut out = Vec::new();
            let mut writer = FrameWriter::begin(&mut out);
            let (mut count, mut again) = (0, false);
            for open in session.open.iter_mut().filter(due) {
                open.due = now + self.client_rng.between(PATIENCE.0, PATIENCE.1) + nap;
                again |= open.sent > 0;
                open.sent += 1;
                open.copies += 1;
                count += 1;
                let (client, to) = (at as u32, session.node as u32 + 1);
                let note = if open.sent > 1 { "asks again" } else { "asks" };
                let (group, seq) = (open.ask.group, open.seq);
                self.trace.note(now, What::Client { client, to, group, seq, note });
                self.stats.retries += u64::from(open.sent > 1);
                writer.block(&open.block);
            }
            writer.finish(FrameKind::Submit, count, 0);
            let host = session.node * shards + group % shards;
            if again && self.client_rng.chance(50) {
                // Nobody may have listened there: the next time it goes elsewhere.
                session.node = (session.node + 1) % nodes;
            }
            self.request(at, host, out.into());
        }
    }

    pub(super) fn request(&mut self, at: usize, host: usize, bytes: Bytes) {
        let node = self.node_of(host);
        if !self.hosts[host].serving {
            return self.move_on(at, node);
        }
        let client = &mut self.clients[at];
        if client.conns[host] == 0 {
            client.conns[host] = client.next_life();
        }
        let life = client.conns[host];
        if self.client_rng.chance(LOST) {
            client.conns[host] = 0;
            return;
        }
        let arrives = self.now + delay(&mut self.client_rng, self.shape.net_us);
        let (client, host) = (at as u32, host as u32);
        self.post(arrives, Packet::ToNode { client, host, life, bytes });
    }

    /// Nobody listens at `node`: what the client thought of it is wrong.
    fn move_on(&mut self, at: usize, node: usize) {
        let nodes = self.nodes.len();
        let pause = self.client_rng.between(PAUSE.0, PAUSE.1);
        for session in &mut self.clients[at].sessions {
            if session.node == node {
                session.node = (node + 1) % nodes;
                let soon = self.now + pause;
                session.open.iter_mut().for_each(|open| open.due = open.due.min(soon));
            }
        }
    }

    /// A frame of a client arrives at a shard.
    pub(super) fn on_request(&mut self, client: usize, host: usize, life: u32, bytes: Bytes) {
        let state = &mut self.hosts[host];
        let Some(shard) = state.shard.as_mut().filter(|_| state.serving) else { return };
        if life < state.conns[client] {
            return;
        }
        let conn = u64::from(life) << 32 | client as u64;
        if life > state.conns[client] {
            state.conns[client] = life;
            shard.client_opened(conn);
        }
        let mut inbox = BytesMut::from(&bytes[..]);
        while let Ok(Some(frame)) = Frame::take(&mut inbox) {
            if let Err(error) = shard.client_frame(conn, frame) {
                let what = format!("h{host} does not understand c{client}: {error}");
                return self.fail("shards understand clients", what);
            }
        }
        self.poke(host);
    }

    /// Bytes leave a shard for a client.
    pub(super) fn answer(&mut self, conn: u64, host: usize, bytes: Bytes) {
        let client = conn as u32 as usize;
        if self.client_rng.chance(LOST) {
            // Lost with its connection.
            if let Some(shard) = self.hosts[host].shard.as_mut() {
                shard.client_closed(conn);
            }
            self.clients[client].conns[host] = 0;
            return;
        }
        let arrives = self.now + delay(&mut self.client_rng, self.shape.net_us);
        let (client, host, life) = (client as u32, host as u32, (conn >> 32) as u32);
        self.post(arrives, Packet::ToClient { client, host, life, bytes });
    }

    pub(super) fn on_answers(&mut self, client: usize, host: usize, life: u32, bytes: Bytes) {
        if life < self.clients[client].hears_from {
            return;
        }
        let mut inbox = BytesMut::from(&bytes[..]);
        while let Ok(Some(frame)) = Frame::take(&mut inbox) {
            if frame.kind == FrameKind::QueryReply {
                self.on_reply(client, host, life, &frame);
                continue;
            }
            let Ok(entries) = frame.entries::<AnswerEntry>() else {
                return self.fail("clients understand shards", format!("c{client}"));
            };
            for answer in entries.filter_map(|entry| entry.decode()) {
                self.hear(client, self.node_of(host), &answer);
            }
        }
        self.on_client_soon(client);
    }

    /// What was just heard may make something due.
    fn on_client_soon(&mut self, at: usize) {
        let due = self.clients[at].due();
        if let Some(due) = due.filter(|&due| due < self.clients[at].wake_at) {
            self.clients[at].wake_at = due;
            self.queue.push(due.max(self.now), Event::Client(at as u32));
        }
    }

    fn hear(&mut self, client: usize, from: usize, answer: &Answer) {
        let Answer { group, seq, result, unproposed } = *answer;
        let now = self.now;
        let session = &mut self.clients[client].sessions[group.0 as usize];
        let open = session.open.iter().position(|open| open.seq == seq);
        let (note, first) = match &result {
            Ok(done) if done.retry => ("done before:", done.first),
            Ok(done) => ("done:", done.first),
            Err(Refused::NotLeader(_)) => ("not the leader:", Index::ZERO),
            Err(_) => ("refused:", Index::ZERO),
        };
        let (id, node) = (client as u32, from as u32 + 1);
        self.trace.note(now, What::Answer { client: id, from: node, group, seq, first, note });
        // The first copy was answered; this speaks of another one.
        let Some(place) = open else { return };
        let nodes = self.nodes.len();
        // Taken at its word: a block that is numbered anew though a log has it is applied twice.
        session.open[place].copies -= u32::from(unproposed);
        match result {
            Ok(done) => {
                let open = session.open.swap_remove(place);
                session.node = from;
                session.continues = open.entry != Some(SessionEntry::Close);
                if open.entry.is_none() {
                    session.acknowledged.push((session.id, seq));
                }
                self.stats.acknowledged += 1;
                self.stats.answered_retries += u64::from(done.retry);
                if self.healed_at.is_some_and(|healed| open.ask.asked_at >= healed) {
                    self.progressed[group.0 as usize] = true;
                }
                self.judge_late_answer(group, open.ask.asked_at, 0);
                let count = open.block.count();
                let judged = self.oracle.acknowledged(group, count, open.floor, &done);
                // Committed, answered and ended in one turn: nobody has seen the commit.
                let may_be_missing = self.lives[group.0 as usize].may_be_missing();
                let unseen = may_be_missing && self.view(from, group.0 as usize).is_none();
                if let Err((rule, what)) = judged
                    && !unseen
                {
                    return self.fail(rule, what);
                }
                if open.entry.is_none() {
                    self.subject.answered(&open.ask, now, &done);
                }
            }
            Err(Refused::Stale { open_from }) if open_from > 0 => {
                self.stats.sessions_over += 1;
                let roomy = self.shape.sessions_max > self.shape.clients;
                let forever = self.shape.session_idle_us == 0 && roomy && !session.closes;
                if forever && session.continues && !self.oracle.told_of_loss(group) {
                    let what = format!("c{client} g{group} #{seq} of s{}", session.id);
                    return self.fail("a session ends by its rules", what);
                }
                session.open[place].copies -= 1;
                self.stats.given_up += session.begin_next(open_from, now);
            }
            Err(Refused::NotLeader(Some(leader))) => {
                session.node = (leader.0 as usize).wrapping_sub(1) % nodes;
                // Two nodes that take each other for the leader are not asked without end.
                let patience = 2_000 << session.open[place].sent.min(6);
                session.open[place].due = now + 1 + self.client_rng.below(patience);
            }
            Err(Refused::Busy | Refused::ReadOnly) => {
                session.open[place].due = now + self.client_rng.between(PAUSE.0, PAUSE.1);
            }
            Err(Refused::NoGroup) if self.lives[group.0 as usize].may_be_missing() => {
                session.open.swap_remove(place);
            }
            Err(Refused::NoGroup) if group.0 >= self.shape.groups => {
                // It did not know that it leads the list no longer.
                session.node = (from + 1) % nodes;
                session.open[place].due = now + self.client_rng.between(PAUSE.0, PAUSE.1);
            }
            Err(Refused::NotLeader(None) | Refused::Recovering | Refused::Shutdown) => {
                session.node = (from + 1) % nodes;
                let pause = self.client_rng.between(PAUSE.0, PAUSE.1);
                session.open[place].due = now + pause * u64::from(session.open[place].sent.min(8));
            }
            Err(Refused::SessionEpochChanged) if self.oracle.told_of_loss(group) => {
                // What was under way has an unknown fate; a new session goes on.
                self.stats.given_up += session.open.len() as u64;
                session.open.clear();
                session.id += SESSIONS;
                session.next = 1;
                session.continues = false;
                // Answers that are still on their way speak of the old one.
                let client = &mut self.clients[client];
                client.conns.fill(0);
                client.hears_from = client.next_conn;
            }
            Err(other) => {
                let what = format!("c{client} g{group} #{seq}: {other}");
                self.fail("a proper request is not refused for good", what);
            }
        }
    }
}
