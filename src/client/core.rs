//! [`ClientCore`]: what the driver calls, and the poll that tells it what to do. How answers are
//! taken in is in `answer.rs`, what is done when there are none in `trouble.rs`.

use bytes::Bytes;

use super::link::{Link, Stage};
use super::question::{self, Goal, Question, Questions, Subject};
use super::route::{Backoff, Map};
use super::session::Sessions;
use super::timer::Alarms;
use super::*;
use crate::block::{BLOCK_BYTES_MAX, Block, HEADER_BYTES};
use crate::ids::Incarnation;
use crate::shard::sessions::SessionEntry;
use crate::wire::admin::AdminRequest;
use crate::wire::client::{write_admin, write_query_after, write_status};
use crate::wire::frame::{FRAME_HEADER_BYTES, FrameKind, FrameWriter};
use crate::wire::hello::{Hello, Refusal, Role};

/// The client without its sockets. See the module's page for the contract.
#[derive(Debug)]
pub struct ClientCore {
    pub(super) config: ClientConfig,
    pub(super) map: Map,
    pub(super) backoff: Backoff,
    /// Slot `shard · stride + node`; those of shard 0 are there from the start.
    pub(super) links: Vec<Link>,
    pub(super) sessions: Sessions,
    pub(super) questions: Questions,
    pub(super) alarms: Alarms,
    /// Groups with blocks that wait for a link.
    pub(super) dirty: Vec<GroupId>,
    pub(super) done: Vec<Done>,
    pub(super) replies: Vec<QueryDone>,
    pub(super) closing: Vec<LinkId>,
    pub(super) counters: ClientCounters,
    pool: Vec<Vec<u8>>,
    /// Set once no node takes this client: then everything is refused with it.
    pub(super) fault: Option<Refusal>,
}

impl ClientCore {
    /// A client that wants to connect to every node: the first [`ClientCore::poll`] says so.
    ///
    /// # Panics
    /// Without nodes, with more than [`NODES_MAX`], or with session 0: who reads a configuration
    /// checks it.
    pub fn new(config: ClientConfig, now: Tick) -> Self {
        assert!((1..=NODES_MAX).contains(&config.nodes.len()), "1 to {NODES_MAX} nodes");
        assert!(config.session != 0, "session 0 stands for none");
        let _ = now;
        let mut config = config;
        config.in_flight_max = config.in_flight_max.clamp(1, IN_FLIGHT_MAX);
        config.resend_us = config.resend_us.max(1);
        config.doubt_us = config.doubt_us.clamp(1, config.resend_us);
        config.deadline_us = config.deadline_us.max(1);
        Self {
            map: Map::new(&config),
            backoff: Backoff::new(config.backoff_min_us, config.backoff_max_us, config.seed),
            links: (0..config.nodes.len() + LEARNED_MAX).map(|node| Link::new(node, 0)).collect(),
            sessions: Sessions::default(),
            questions: Questions::default(),
            alarms: Alarms::default(),
            dirty: Vec::new(),
            done: Vec::new(),
            replies: Vec::new(),
            closing: Vec::new(),
            counters: ClientCounters::default(),
            pool: Vec::new(),
            fault: None,
            config,
        }
    }

    /// Groups that the cluster began with, once a handshake told.
    pub fn groups(&self) -> Option<u32> {
        self.map.extent.map(|e| e.groups)
    }

    /// Shards of each node, once a handshake told.
    pub fn shards(&self) -> Option<u32> {
        self.map.extent.map(|e| e.shards)
    }

    /// Position in the node list where the group's leader is thought to be.
    pub fn leader(&self, group: GroupId) -> usize {
        let first = group.0 as usize % self.map.nodes.len();
        self.sessions.get(group).map_or(first, |s| s.route.target)
    }

    /// Id of the node at this position, once it is known.
    pub fn node_id(&self, node_index: usize) -> Option<NodeId> {
        self.map.nodes.get(node_index)?.id
    }

    /// Why a node takes no client like this, if it said so (final for that node).
    pub fn refusal(&self, node_index: usize) -> Option<Refusal> {
        self.map.nodes.get(node_index)?.refused
    }

    /// Set once every node has refused this client. Final: mend the cause and start a new client.
    pub fn fault(&self) -> Option<Refusal> {
        self.fault
    }

    pub fn counters(&self) -> ClientCounters {
        self.counters
    }

    /// How many more blocks the session takes for this group. 0 while the cluster is unknown, while
    /// too many bytes wait, or when no group has such a number.
    pub fn room(&self, group: GroupId) -> u32 {
        let Some(extent) = self.map.extent else { return 0 };
        if self.fault.is_some() || group.0 >= GROUPS_MAX {
            return 0;
        }
        let Some(session) = self.sessions.get(group) else { return self.config.in_flight_max };
        let link = self.slot(session.route.target, group.0 % extent.shards);
        if session.bytes >= GROUP_BYTES_MAX || self.links[link].queued_bytes >= LINK_BYTES_MAX {
            return 0;
        }
        self.config.in_flight_max.saturating_sub(session.span() as u32)
    }

    /// What the group's next block is to be stamped with.
    pub fn stamp(&self, group: GroupId) -> Stamp {
        let client = self.config.session;
        self.sessions.get(group).map_or(Stamp { client, seq: 1, pending: 0 }, |session| Stamp {
            client,
            seq: session.next(),
            pending: (session.next() - session.base()) as u32,
        })
    }

    /// Takes a block. It is completed exactly once, under `tag` (not `u64::MAX`), in some later
    /// [`ClientOutput::done`].
    pub fn submit(&mut self, now: Tick, block: Block, tag: u64) -> Result<(), SubmitError> {
        let group = block.group();
        self.admit(group)?;
        let expected = self.stamp(group).seq;
        let header = block.header();
        if (header.client, header.seq) != (self.config.session, expected) {
            return Err(SubmitError::WrongStamp { expected });
        }
        if self.room(group) == 0 {
            return Err(SubmitError::Full);
        }
        let session = self.sessions.open(group, self.map.nodes.len());
        session.push(now, block, tag);
        let wait = session.patience_us(&self.config).min(self.config.deadline_us);
        self.alarms.arm(session, now.plus(wait));
        self.soil(group);
        Ok(())
    }

    /// Opens the session in a group without a command, or says that it is still there. Completed like
    /// a block. `Full` while blocks are under way: they say as much.
    pub fn touch_session(
        &mut self,
        now: Tick,
        group: GroupId,
        tag: u64,
    ) -> Result<(), SubmitError> {
        self.submit_entry(now, group, SessionEntry::KeepAlive, tag)
    }

    /// Ends the session in a group: the cluster forgets it. Completed like a block; `Stale` says that
    /// there was none any more. `Full` while blocks are under way: wait for their completion. A later
    /// block opens a new one.
    pub fn close_session(
        &mut self,
        now: Tick,
        group: GroupId,
        tag: u64,
    ) -> Result<(), SubmitError> {
        self.submit_entry(now, group, SessionEntry::Close, tag)
    }

    fn submit_entry(
        &mut self,
        now: Tick,
        group: GroupId,
        entry: SessionEntry,
        tag: u64,
    ) -> Result<(), SubmitError> {
        self.admit(group)?;
        let Stamp { client, seq, pending } = self.stamp(group);
        if pending > 0 {
            return Err(SubmitError::Full);
        }
        self.submit(now, entry.block(group, client, seq), tag)?;
        let session = self.sessions.open(group, self.map.nodes.len());
        session.closes = if entry == SessionEntry::Close { seq } else { 0 };
        Ok(())
    }

    /// Asks a group's state machine. Answered exactly once, under `tag`, in some later
    /// [`ClientOutput::replies`].
    ///
    /// `Linearizable` and `Lease` are answered by the leader only.
    pub fn query(
        &mut self,
        now: Tick,
        group: GroupId,
        to: QueryTarget,
        consistency: Consistency,
        question: Bytes,
        tag: u64,
    ) -> Result<(), SubmitError> {
        self.query_after(now, group, to, (consistency, Place::default()), question, tag)
    }

    /// The same for someone who has read the group's state at `after`, a place that an answer told of:
    /// [`Refused::Truncated`](crate::wire::client::Refused::Truncated) says that some of it is lost.
    pub fn query_after(
        &mut self,
        now: Tick,
        group: GroupId,
        to: QueryTarget,
        (consistency, after): (Consistency, Place),
        question: Bytes,
        tag: u64,
    ) -> Result<(), SubmitError> {
        let shards = self.admit(group)?;
        if question.len() > BLOCK_BYTES_MAX - HEADER_BYTES {
            return Err(SubmitError::TooLarge(question.len()));
        }
        let goal = self.goal(to)?;
        self.sessions.open(group, self.map.nodes.len());
        let subject = Subject::Query { group, consistency, after, question };
        self.ask(now, goal, subject, group.0 % shards, tag)
    }

    /// Gives an operator's command to a group. Answered like a query, with an
    /// [`AdminReply`](crate::wire::admin::AdminReply).
    pub fn admin(
        &mut self,
        now: Tick,
        group: GroupId,
        to: QueryTarget,
        request: &AdminRequest,
        tag: u64,
    ) -> Result<(), SubmitError> {
        let shards = self.admit(group)?;
        let goal = self.goal(to)?;
        self.sessions.open(group, self.map.nodes.len());
        let request = Bytes::from(request.to_json());
        self.ask(now, goal, Subject::Admin { group, request }, group.0 % shards, tag)
    }

    fn goal(&self, to: QueryTarget) -> Result<Goal, SubmitError> {
        Ok(match to {
            QueryTarget::Leader => Goal::Leader,
            QueryTarget::Any => Goal::Any(0),
            QueryTarget::Node(id) => Goal::Node(self.map.find(id).ok_or(SubmitError::NoNode(id))?),
        })
    }

    /// Asks one shard of one node about itself; the answer is JSON. Before the first handshake
    /// only shard 0 is known to exist.
    ///
    /// # Panics
    /// When `node_index` is not a position in the list of nodes.
    pub fn status(
        &mut self,
        now: Tick,
        node_index: usize,
        shard: u32,
        tag: u64,
    ) -> Result<(), SubmitError> {
        assert!(node_index < self.map.nodes.len());
        if let Some(refusal) = self.fault {
            return Err(SubmitError::Handshake(refusal));
        }
        match self.map.extent {
            None if shard > 0 => return Err(SubmitError::NotReady),
            Some(extent) if shard >= extent.shards => return Err(SubmitError::NoShard(shard)),
            _ => {}
        }
        self.ask(now, Goal::Node(node_index), Subject::Status, shard, tag)
    }

    /// A hint names a node that is not in the list, or nobody: the node that gave it is asked who the
    /// members are. Who has just left a group knows them, and does not hear who leads. Once a while, and
    /// only if there is room for another node.
    pub(super) fn learn_members(&mut self, now: Tick, group: GroupId, node: usize, shard: u32) {
        if now < self.map.learn_at || self.map.nodes.len() >= self.map.stride {
            return;
        }
        self.map.learn_at = now.plus(self.config.resend_us);
        let request = Bytes::from(AdminRequest::Members.to_json());
        // If it does not answer, the next hint asks again.
        let _ = self.ask(now, Goal::Node(node), Subject::Learn { group, request }, shard, 0);
    }

    fn ask(
        &mut self,
        now: Tick,
        goal: Goal,
        subject: Subject,
        shard: u32,
        tag: u64,
    ) -> Result<(), SubmitError> {
        if self.questions.len() >= QUESTIONS_MAX {
            return Err(SubmitError::Full);
        }
        let (asked, hold) = (now, Tick::ZERO);
        let stage = question::Stage::Waiting;
        let link = 0;
        self.questions.add(Question {
            tag,
            goal,
            subject,
            shard,
            stage,
            link,
            asked,
            since: now,
            hold,
        });
        let wait = self.config.doubt_us.min(self.config.deadline_us);
        self.questions.arm(now.plus(wait));
        Ok(())
    }

    /// The number of shards, if the group exists and there is somebody to ask.
    fn admit(&self, group: GroupId) -> Result<u32, SubmitError> {
        if let Some(refusal) = self.fault {
            return Err(SubmitError::Handshake(refusal));
        }
        let extent = self.map.extent.ok_or(SubmitError::NotReady)?;
        // Groups are made at run time: whether there is one, its shard knows.
        if group.0 >= GROUPS_MAX {
            return Err(SubmitError::NoGroup(group));
        }
        Ok(extent.shards)
    }

    /// The driver has opened the connection that [`ClientOutput::connect`] asked for.
    pub fn connected(&mut self, now: Tick, link: LinkId) {
        let _ = now;
        if let Some(slot) = self.live(link)
            && self.links[slot].stage() == Stage::Connecting
        {
            self.links[slot].become_greeting();
        }
    }

    /// The connection could not be opened, or has ended. What was on it goes elsewhere.
    pub fn disconnected(&mut self, now: Tick, link: LinkId, reason: &str) {
        if let Some(slot) = self.live(link) {
            self.link_failed(now, slot, reason);
        }
    }

    /// Everything of a buffer has left (or its connection has ended): the link takes the next.
    pub fn sent(&mut self, link: LinkId, buffer: Vec<u8>) {
        if let Some(slot) = self.live(link) {
            self.links[slot].send_ended();
        }
        self.recycle(buffer);
    }

    /// Gives a buffer back without word of its link.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.pool.len() < POOL_BUFFERS_MAX {
            buffer.clear();
            self.pool.push(buffer);
        }
    }

    /// Says what is to be done now, and what has been completed. To be called after each batch of
    /// inputs and at [`ClientCore::deadline`]; appends to `out`.
    pub fn poll(&mut self, now: Tick, out: &mut ClientOutput) {
        self.ring_alarms(now);
        self.tend_links(now);
        self.flush_groups(now);
        self.flush_questions(now);
        self.open_links(now, out);
        self.fill_sends(now, out);
        move_all(&mut self.done, &mut out.done);
        move_all(&mut self.replies, &mut out.replies);
        move_all(&mut self.closing, &mut out.close);
    }

    /// When [`ClientCore::poll`] is to be called next, if nothing happens before.
    pub fn deadline(&self) -> Tick {
        let (connect_us, send_us) = (self.config.resend_us, self.config.deadline_us);
        let mut at = self.alarms.next().min(self.questions.alarm);
        for link in &self.links {
            if let Some(overdue) = link.overdue_at(connect_us, send_us) {
                at = at.min(overdue);
            } else if link.stage() == Stage::Idle && self.wants(link) {
                at = at.min(link.retry_at());
            }
        }
        at
    }

    /// Somebody has use for the connection: work is due, or the node is not known yet.
    fn wants(&self, link: &Link) -> bool {
        let Some(node) = self.map.nodes.get(link.node) else { return false };
        let unknown = link.shard == 0 && (node.id.is_none() || self.map.extent.is_none());
        node.refused.is_none() && self.fault.is_none() && (unknown || link.has_work())
    }

    fn open_links(&mut self, now: Tick, out: &mut ClientOutput) {
        for slot in 0..self.links.len() {
            let link = &self.links[slot];
            if link.stage() != Stage::Idle || link.resting(now).is_some() || !self.wants(link) {
                continue;
            }
            let address = self.map.nodes[link.node].address.clone();
            let link = &mut self.links[slot];
            link.become_connecting(now);
            out.connect.push((link.id(slot), address));
        }
    }

    fn fill_sends(&mut self, now: Tick, out: &mut ClientOutput) {
        for slot in 0..self.links.len() {
            let link = &mut self.links[slot];
            let greet = link.take_hello();
            let ready = link.can_send() && link.has_work();
            if !(greet || ready) {
                continue;
            }
            let mut buffer = self.pool.pop().unwrap_or_default();
            if greet {
                self.write_hello(slot, &mut buffer);
            } else {
                self.write_questions(now, slot, &mut buffer);
                self.write_blocks(now, slot, &mut buffer);
            }
            if buffer.is_empty() {
                self.recycle(buffer);
            } else {
                self.links[slot].send_began(now);
                out.send.push((self.links[slot].id(slot), buffer));
            }
        }
    }

    fn write_hello(&self, slot: usize, out: &mut Vec<u8>) {
        let link = &self.links[slot];
        let hello = Hello {
            role: Role::Client,
            cluster: self.map.cluster,
            disk: 0,
            config: 0,
            node: None,
            incarnation: Incarnation::ZERO,
            to: self.map.expected(link.node),
            shard: link.shard,
            first: 0,
        };
        hello.write(out);
    }

    /// Gathers blocks into as many frames as are useful, up to what one send may hold.
    fn write_blocks(&mut self, now: Tick, slot: usize, out: &mut Vec<u8>) {
        let Self { links, sessions, counters, .. } = self;
        let link = &mut links[slot];
        while out.len() < SEND_BYTES && !link.blocks.is_empty() {
            let start = out.len();
            let mut writer = FrameWriter::begin(out);
            let (mut count, mut bytes) = (0, FRAME_HEADER_BYTES);
            while let Some(due) = link.blocks.front().copied() {
                if count > 0 && bytes + due.size as usize > SUBMIT_FRAME_BYTES {
                    break;
                }
                link.pop();
                let session = sessions.get_mut(due.group);
                if let Some(block) = session.and_then(|s| s.send(now, due.seq, slot as u32)) {
                    writer.block(block);
                    bytes += block.size();
                    count += 1;
                }
            }
            if count == 0 {
                out.truncate(start);
                return;
            }
            writer.finish(FrameKind::Submit, count, 0);
            counters.blocks_sent += u64::from(count);
        }
    }

    fn write_questions(&mut self, now: Tick, slot: usize, out: &mut Vec<u8>) {
        while out.len() < SEND_BYTES
            && let Some(at) = self.links[slot].questions.pop_front()
        {
            let token = self.questions.token(at);
            let Some(question) = self.questions.get_mut(at) else { continue };
            if question.stage != question::Stage::Queued || question.link != slot as u32 {
                continue;
            }
            match &question.subject {
                Subject::Query { group, consistency, after, question } => {
                    write_query_after(out, token, *group, *consistency, *after, question);
                }
                Subject::Admin { group, request } | Subject::Learn { group, request } => {
                    write_admin(out, token, *group, request);
                }
                Subject::Status => write_status(out, token),
            }
            question.stage = question::Stage::Sent;
            question.since = now;
        }
    }

    /// Slot of the link to a node's shard.
    #[inline]
    pub(super) fn slot(&self, node: usize, shard: u32) -> usize {
        shard as usize * self.map.stride + node
    }

    /// Slot of a link whose present connection this is.
    #[inline]
    pub(super) fn live(&self, id: LinkId) -> Option<usize> {
        let slot = id.slot();
        let link = self.links.get(slot)?;
        (link.id(slot) == id && link.stage() != Stage::Idle).then_some(slot)
    }

    /// Notes that a group has blocks to be given to a link.
    #[inline]
    pub(super) fn soil(&mut self, group: GroupId) {
        if let Some(session) = self.sessions.get_mut(group)
            && !session.dirty
        {
            session.dirty = true;
            self.dirty.push(group);
        }
    }
}

/// Appends `from` to `to`; swaps the two where that does the same.
fn move_all<T>(from: &mut Vec<T>, to: &mut Vec<T>) {
    if to.is_empty() {
        std::mem::swap(from, to);
    } else {
        to.append(from);
    }
}
