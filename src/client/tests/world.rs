//! A cluster in memory, scripted: what its nodes do with a block is set by the test, what they have
//! applied is kept as the real table of sessions would.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;

use crate::block::{Block, BlockBuilder, Command};
use crate::client::*;
use crate::ids::*;
use crate::shard::sessions::SessionEntry;
use crate::wire::client::*;
use crate::wire::frame::{Frame, FrameKind};
use crate::wire::hello::{Hello, HelloReply, Refusal};

pub const SESSION: u64 = 77;
pub const CLUSTER: u128 = 5;

/// What a node does with what reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Leads or says who does.
    Sound,
    /// No connection can be opened, and none lasts.
    Dead,
    /// Takes everything and says nothing, not even to a handshake.
    Mute,
    /// Applies, but its answers are lost.
    Lossy,
    Refuses(Refused),
    RefusesHello(Refusal),
}

pub struct World {
    pub core: ClientCore,
    pub now: Tick,
    pub out: ClientOutput,
    pub moods: Vec<Mood>,
    pub cluster: u128,
    /// Nodes that belong to another cluster.
    pub strays: BTreeMap<usize, u128>,
    pub shards: u32,
    pub groups: u32,
    /// Leader of each group; a group not named is led by node 0.
    pub leaders: BTreeMap<u32, Option<usize>>,
    /// What a node says instead of the true leader.
    pub lies: BTreeMap<usize, usize>,
    /// Group and sequence number of what was applied.
    pub applied: BTreeSet<(u32, u64)>,
    /// Blocks as they arrived: node, group, sequence number.
    pub arrived: Vec<(usize, u32, u64)>,
    /// Numbers up to here belong to sessions that the cluster has forgotten.
    pub spent: u64,
    /// What was asked in blocks without a command.
    pub entries: Vec<SessionEntry>,
    /// Flags of the blocks that arrived.
    pub flags: Vec<u16>,
    /// Submit frames that arrived.
    pub frames: usize,
    pub done: Vec<Done>,
    pub replies: Vec<QueryDone>,
    pub faults: Vec<ClientFault>,
    pub connects: Vec<usize>,
    /// Open connections: the node, the bytes on their way to the client.
    pub open: BTreeMap<LinkId, (usize, VecDeque<u8>)>,
    /// What a node says of the members, JSON.
    pub members: Option<String>,
    /// Unfinished sends are kept here while `hold_sends`.
    pub hold_sends: bool,
    pub held: Vec<(LinkId, Vec<u8>)>,
    next_tag: u64,
}

pub fn config(nodes: usize) -> ClientConfig {
    ClientConfig::new((0..nodes).map(|n| n.to_string()), SESSION)
}

impl World {
    pub fn new(nodes: usize) -> Self {
        Self::with(config(nodes))
    }

    pub fn with(config: ClientConfig) -> Self {
        Self {
            moods: vec![Mood::Sound; config.nodes.len()],
            core: ClientCore::new(config, Tick(0)),
            now: Tick(0),
            out: ClientOutput::default(),
            cluster: CLUSTER,
            strays: BTreeMap::new(),
            shards: 1,
            groups: 8,
            leaders: BTreeMap::new(),
            lies: BTreeMap::new(),
            applied: BTreeSet::new(),
            arrived: Vec::new(),
            spent: 0,
            entries: Vec::new(),
            flags: Vec::new(),
            frames: 0,
            done: Vec::new(),
            replies: Vec::new(),
            faults: Vec::new(),
            connects: Vec::new(),
            open: BTreeMap::new(),
            members: None,
            hold_sends: false,
            held: Vec::new(),
            next_tag: 0,
        }
    }

    /// A world whose client knows every node.
    pub fn ready(nodes: usize) -> Self {
        let mut world = Self::new(nodes);
        world.settle();
        assert_eq!(world.core.groups(), Some(8));
        world
    }

    pub fn block(&self, group: u32) -> Block {
        let group = GroupId(group);
        let stamp = self.core.stamp(group);
        let mut builder = BlockBuilder::default();
        let command = Command { kind: 1, flags: 0, timestamp: 1, key: b"k", value: b"v" };
        builder.push(&command).unwrap();
        builder.finish(group, stamp.client, stamp.seq, stamp.pending)
    }

    /// Submits one block; its tag.
    pub fn submit(&mut self, group: u32) -> u64 {
        let block = self.block(group);
        self.next_tag += 1;
        self.core.submit(self.now, block, self.next_tag).unwrap();
        self.next_tag
    }

    pub fn submit_many(&mut self, group: u32, count: usize) {
        for _ in 0..count {
            self.submit(group);
        }
    }

    pub fn ask(&mut self, group: u32, to: QueryTarget) -> u64 {
        self.next_tag += 1;
        let question = Bytes::from_static(b"?");
        self.core
            .query(self.now, GroupId(group), to, Consistency::default(), question, self.next_tag)
            .unwrap();
        self.next_tag
    }

    /// Does what the core says until nothing moves any more, without letting time pass.
    pub fn settle(&mut self) {
        for _ in 0..1000 {
            if !self.turn() {
                return;
            }
        }
        panic!("the client never comes to rest");
    }

    /// Lets time pass to the client's own deadlines until `enough`, or `limit_us` from now.
    pub fn run(&mut self, limit_us: u64, enough: impl Fn(&Self) -> bool) {
        let end = self.now.plus(limit_us);
        loop {
            self.settle();
            if enough(self) {
                return;
            }
            let next = self.core.deadline();
            assert!(next > self.now, "after a poll the next deadline lies ahead");
            if next > end {
                self.now = end;
                self.settle();
                return;
            }
            self.now = next;
        }
    }

    pub fn results(&self) -> Vec<(u64, bool)> {
        self.done.iter().map(|d| (d.tag, d.result.is_ok())).collect()
    }

    /// One poll, everything it asks for, and everything the nodes answer. False: nothing moved.
    pub fn turn(&mut self) -> bool {
        let mut out = std::mem::take(&mut self.out);
        self.core.poll(self.now, &mut out);
        let mut moved = !out.send.is_empty() || !out.connect.is_empty();
        for link in out.close.drain(..) {
            self.open.remove(&link);
        }
        for (link, address) in out.connect.drain(..) {
            self.connect(link, address.parse().unwrap());
        }
        for (link, buffer) in out.send.drain(..) {
            self.receive(link, &buffer);
            if self.hold_sends {
                self.held.push((link, buffer));
            } else {
                self.core.sent(link, buffer);
            }
        }
        self.done.append(&mut out.done);
        self.replies.append(&mut out.replies);
        self.out = out;
        let links: Vec<LinkId> = self.open.keys().copied().collect();
        for link in links {
            moved |= self.deliver(link);
        }
        moved
    }

    fn connect(&mut self, link: LinkId, node: usize) {
        self.connects.push(node);
        if self.moods[node] == Mood::Dead {
            self.core.disconnected(self.now, link, "connection refused");
        } else {
            self.open.insert(link, (node, VecDeque::new()));
            self.core.connected(self.now, link);
        }
    }

    /// Ends every connection of a node, with what is on its way; new ones fail.
    pub fn kill(&mut self, node: usize) {
        self.moods[node] = Mood::Dead;
        self.cut(node);
    }

    /// Ends every connection of a node.
    pub fn cut(&mut self, node: usize) {
        let mine = self.open.iter().filter(|(_, (n, _))| *n == node).map(|(l, _)| *l);
        for link in mine.collect::<Vec<_>>() {
            self.open.remove(&link);
            self.core.disconnected(self.now, link, "connection reset");
        }
    }

    /// Brings what a node has said to the client, byte by byte: pieces are the network's right.
    fn deliver(&mut self, link: LinkId) -> bool {
        let Some((_, pipe)) = self.open.get_mut(&link) else { return false };
        let bytes: Vec<u8> = pipe.drain(..).collect();
        let mut buffer = BytesMut::new();
        for byte in &bytes {
            buffer.extend_from_slice(&[*byte]);
            if let Some(frame) = Frame::take(&mut buffer).unwrap()
                && let Err(fault) = self.core.frame(self.now, link, frame)
            {
                self.faults.push(fault);
            }
        }
        !bytes.is_empty()
    }

    fn receive(&mut self, link: LinkId, bytes: &[u8]) {
        let Some((node, _)) = self.open.get(&link) else { return };
        let node = *node;
        let mut buffer = BytesMut::from(bytes);
        let mut reply = Vec::new();
        while let Some(mut frame) = Frame::take(&mut buffer).unwrap() {
            if self.moods[node] == Mood::Mute {
                continue;
            }
            match frame.kind {
                FrameKind::Hello => self.greet(node, &Hello::read(&frame).unwrap(), &mut reply),
                FrameKind::Submit => self.propose(node, &mut frame, &mut reply),
                FrameKind::Query => self.inquire(node, &frame, &mut reply),
                // Who the members are, after a hint that names nobody in the list, or nobody at all.
                FrameKind::Admin => {
                    let group = read_query(&frame).unwrap().group;
                    let members = self.members.as_deref().ok_or(Refused::NoGroup);
                    let members = members.map(str::as_bytes);
                    write_admin_reply(&mut reply, frame.token, group, members);
                }
                FrameKind::Status => write_status_reply(&mut reply, frame.token, b"{}"),
                kind => panic!("a client does not send {kind:?}"),
            }
        }
        assert!(buffer.is_empty(), "a send ends with a whole frame");
        self.open.get_mut(&link).unwrap().1.extend(reply);
    }

    fn greet(&mut self, node: usize, hello: &Hello, reply: &mut Vec<u8>) {
        let mut refusal = match self.moods[node] {
            Mood::RefusesHello(refusal) => Some(refusal),
            _ => None,
        };
        let cluster = self.strays.get(&node).copied().unwrap_or(self.cluster);
        if hello.cluster != 0 && hello.cluster != cluster {
            refusal = Some(Refusal::Cluster);
        }
        let welcome = HelloReply {
            refusal,
            cluster,
            disk: 1,
            config: 1,
            node: NodeId(node as u32 + 1),
            incarnation: Incarnation(1),
            shard: hello.shard,
            shards: self.shards,
            groups: self.groups,
        };
        welcome.write(reply);
    }

    /// What this node says to a request of the group: `None` = it leads.
    fn objection(&self, node: usize, group: u32) -> Option<Refused> {
        if let Mood::Refuses(refused) = self.moods[node] {
            return Some(refused);
        }
        let leader = self.leaders.get(&group).copied().unwrap_or(Some(0));
        if leader == Some(node) {
            return None;
        }
        let hint = self.lies.get(&node).copied().or(leader);
        Some(Refused::NotLeader(hint.map(|n| NodeId(n as u32 + 1))))
    }

    fn propose(&mut self, node: usize, frame: &mut Frame, reply: &mut Vec<u8>) {
        self.frames += 1;
        let mut blocks = Vec::new();
        frame.take_blocks(frame.count, &mut blocks).unwrap();
        assert!(frame.blocks.is_empty());
        let mut answers = Vec::new();
        for block in blocks {
            let (group, seq) = (block.group(), block.header().seq);
            assert_eq!(block.header().client, SESSION);
            self.arrived.push((node, group.0, seq));
            self.entries.extend(SessionEntry::of_client(&block));
            self.flags.push(block.header().flags);
            let floor = seq - u64::from(block.header().pending);
            let result = match self.objection(node, group.0) {
                Some(refused) => Err(refused),
                None if floor <= self.spent => Err(Refused::Stale { open_from: self.spent + 1 }),
                None => Ok(self.apply(group, seq)),
            };
            let answer = Answer { group, seq, result, unproposed: result.is_err() };
            answers.push(AnswerEntry::encode(&answer));
        }
        if self.moods[node] != Mood::Lossy {
            write_answers(reply, &answers);
        }
    }

    fn apply(&mut self, group: GroupId, seq: u64) -> Committed {
        let retry = !self.applied.insert((group.0, seq));
        Committed { retry, ..self.committed(seq) }
    }

    pub fn committed(&self, seq: u64) -> Committed {
        Committed {
            first: Index(seq),
            term: Term(1),
            epoch: 0,
            durability: Durability::Synced,
            duplicates: 0,
            rejected: 0,
            retry: false,
        }
    }

    fn inquire(&mut self, node: usize, frame: &Frame, reply: &mut Vec<u8>) {
        let query = read_query(frame).unwrap();
        let text = format!("from {node}");
        let result = self.objection(node, query.group.0).map_or(Ok(text.as_bytes()), Err);
        write_query_reply(reply, query.token, query.group, Place::default(), result);
    }

    /// Lets node `node` say these answers on each of its connections.
    pub fn say(&mut self, node: usize, answers: &[Answer]) {
        let entries: Vec<AnswerEntry> = answers.iter().map(AnswerEntry::encode).collect();
        let mut bytes = Vec::new();
        write_answers(&mut bytes, &entries);
        for (n, pipe) in self.open.values_mut() {
            if *n == node {
                pipe.extend(&bytes);
            }
        }
    }
}
