//! One group whose leaders keep blocks in their logs for a while, are deposed with them there, stand
//! still and wake up, while its table of sessions forgets: nothing is applied twice.

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use proptest::prelude::*;

use super::world::{CLUSTER, SESSION, config};
use crate::block::{Block, BlockBuilder, BlockKind, Command};
use crate::client::*;
use crate::ids::*;
use crate::wire::client::*;
use crate::wire::frame::{Frame, FrameKind};
use crate::wire::hello::HelloReply;

const G: GroupId = GroupId(0);
const NODES: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Submit(usize),
    /// So many entries of the log are committed and answered.
    Commit(usize),
    /// Another node leads; so many entries of the log reach it.
    Elect(usize, usize),
    Freeze(usize),
    Thaw(usize),
    Cut(usize),
    /// The table forgets the session.
    Forget,
    /// What leaders say at their door.
    Door(Option<Refused>),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let door = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Refused::Busy)),
        1 => Just(Some(Refused::TooLarge)),
        1 => Just(Some(Refused::Shutdown)),
    ];
    prop_oneof![
        6 => (1usize..4).prop_map(Step::Submit),
        5 => (0usize..6).prop_map(Step::Commit),
        3 => (0..NODES, 0usize..6).prop_map(|(to, kept)| Step::Elect(to, kept)),
        2 => (0..NODES).prop_map(Step::Freeze),
        2 => (0..NODES).prop_map(Step::Thaw),
        1 => (0..NODES).prop_map(Step::Cut),
        1 => Just(Step::Forget),
        2 => door.prop_map(Step::Door),
        6 => prop_oneof![0u64..10_000, 0u64..400_000, 0u64..2_000_000].prop_map(Step::Wait),
    ]
}

struct Story {
    core: ClientCore,
    now: Tick,
    out: ClientOutput,
    open: BTreeMap<LinkId, usize>,
    leader: usize,
    door: Option<Refused>,
    frozen: [bool; NODES],
    /// What came to, and is to leave, a node that stands still.
    inbox: Vec<(LinkId, Vec<u8>)>,
    outbox: Vec<(usize, LinkId, Vec<u8>)>,
    /// Proposed and not committed; the link of whoever still waits for it.
    log: Vec<(Option<LinkId>, Block)>,
    /// The session, if it is known: its floor, and what it remembers.
    session: Option<(u64, BTreeSet<u64>)>,
    spent: u64,
    applied: BTreeMap<u64, u32>,
    tags: u64,
    done: BTreeMap<u64, Result<Committed, ClientError>>,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut story = Self {
            core: ClientCore::new(ClientConfig { seed, ..config(NODES) }, Tick(0)),
            now: Tick(1),
            out: ClientOutput::default(),
            open: BTreeMap::new(),
            leader: 0,
            door: None,
            frozen: [false; NODES],
            inbox: Vec::new(),
            outbox: Vec::new(),
            log: Vec::new(),
            session: None,
            spent: 0,
            applied: BTreeMap::new(),
            tags: 0,
            done: BTreeMap::new(),
        };
        story.settle();
        story
    }

    fn submit(&mut self) {
        if self.core.room(G) == 0 {
            return;
        }
        self.tags += 1;
        let stamp = self.core.stamp(G);
        let mut builder = BlockBuilder::default();
        let timestamp = self.tags;
        builder.push(&Command { kind: 1, flags: 0, timestamp, key: b"k", value: b"v" }).unwrap();
        let block = builder.finish(G, stamp.client, stamp.seq, stamp.pending);
        self.core.submit(self.now, block, self.tags).unwrap();
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            let mut out = std::mem::take(&mut self.out);
            self.core.poll(self.now, &mut out);
            let moved = !(out.send.is_empty() && out.connect.is_empty());
            for link in out.close.drain(..) {
                self.open.remove(&link);
            }
            for (link, address) in out.connect.drain(..) {
                self.open.insert(link, address.parse().unwrap());
                self.core.connected(self.now, link);
            }
            for (link, buffer) in out.send.drain(..) {
                self.receive(link, buffer.clone());
                self.core.sent(link, buffer);
            }
            for done in out.done.drain(..) {
                assert!(self.done.insert(done.tag, done.result).is_none());
            }
            self.out = out;
            if !moved {
                return;
            }
        }
        panic!("the client never comes to rest");
    }

    fn run(&mut self, us: u64) {
        let end = self.now.plus(us);
        loop {
            self.settle();
            let next = self.core.deadline();
            assert!(next > self.now);
            if next > end {
                self.now = end;
                return self.settle();
            }
            self.now = next;
        }
    }

    fn receive(&mut self, link: LinkId, bytes: Vec<u8>) {
        let Some(&node) = self.open.get(&link) else { return };
        if self.frozen[node] {
            return self.inbox.push((link, bytes));
        }
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Some(mut frame) = Frame::take(&mut buffer).unwrap() {
            match frame.kind {
                FrameKind::Hello => self.greet(node, link),
                FrameKind::Submit => {
                    let mut blocks = Vec::new();
                    frame.take_blocks(frame.count, &mut blocks).unwrap();
                    blocks.into_iter().for_each(|block| self.propose(node, link, block));
                }
                // Who the members are: nobody that the client does not know.
                FrameKind::Admin => {
                    let mut bytes = Vec::new();
                    write_admin_reply(&mut bytes, frame.token, G, Err(Refused::NoGroup));
                    self.say(node, link, bytes);
                }
                kind => panic!("{kind:?}"),
            }
        }
    }

    fn greet(&mut self, node: usize, link: LinkId) {
        let mut bytes = Vec::new();
        let node_id = NodeId(node as u32 + 1);
        let incarnation = Incarnation(1);
        let (cluster, refusal) = (CLUSTER, None);
        let welcome = HelloReply {
            refusal,
            cluster,
            disk: 1,
            config: 1,
            node: node_id,
            incarnation,
            shard: 0,
            shards: 1,
            groups: 1,
        };
        welcome.write(&mut bytes);
        self.say(node, link, bytes);
    }

    fn propose(&mut self, node: usize, link: LinkId, block: Block) {
        let refused = match self.door {
            _ if node != self.leader => Refused::NotLeader(Some(NodeId(self.leader as u32 + 1))),
            Some(refused) => refused,
            None => return self.log.push((Some(link), block)),
        };
        self.answer(node, link, Answer::at_the_door(G, block.header().seq, refused));
    }

    fn answer(&mut self, node: usize, link: LinkId, answer: Answer) {
        let mut bytes = Vec::new();
        write_answers(&mut bytes, &[AnswerEntry::encode(&answer)]);
        self.say(node, link, bytes);
    }

    fn say(&mut self, node: usize, link: LinkId, bytes: Vec<u8>) {
        if self.frozen[node] {
            return self.outbox.push((node, link, bytes));
        }
        if self.open.contains_key(&link) {
            let frame = Frame::take(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
            self.core.frame(self.now, link, frame).unwrap();
        }
    }

    fn commit(&mut self, count: usize) {
        for (link, block) in self.log.drain(..count.min(self.log.len())).collect::<Vec<_>>() {
            let result = self.apply(&block);
            if let Some(link) = link {
                self.answer(self.leader, link, Answer::new(G, block.header().seq, result));
            }
        }
    }

    fn elect(&mut self, to: usize, kept: usize) {
        if to == self.leader {
            return;
        }
        for at in 0..self.log.len() {
            if let Some(link) = self.log[at].0.take() {
                let seq = self.log[at].1.header().seq;
                self.answer(self.leader, link, Answer::new(G, seq, Err(Refused::NotLeader(None))));
            }
        }
        self.log.truncate(kept);
        self.leader = to;
    }

    fn thaw(&mut self, node: usize) {
        self.frozen[node] = false;
        let mine = |open: &BTreeMap<LinkId, usize>, link: &LinkId| open.get(link) == Some(&node);
        let out: Vec<_> = self.outbox.extract_if(.., |(of, ..)| *of == node).collect();
        out.into_iter().for_each(|(_, link, bytes)| self.say(node, link, bytes));
        let open = self.open.clone();
        let came: Vec<_> = self.inbox.extract_if(.., |(link, _)| mine(&open, link)).collect();
        came.into_iter().for_each(|(link, bytes)| self.receive(link, bytes));
    }

    /// As `shard/sessions.rs` does it.
    fn apply(&mut self, block: &Block) -> Result<Committed, Refused> {
        let header = block.header();
        assert_eq!(header.client, SESSION);
        let floor = (header.seq - u64::from(header.pending)).max(1);
        if self.session.is_none() {
            if floor <= self.spent {
                return Err(Refused::Stale { open_from: self.spent + 1 });
            }
            self.session = Some((floor, BTreeSet::new()));
        }
        let (known, answers) = self.session.as_mut().unwrap();
        if header.seq < *known {
            return Err(Refused::Stale { open_from: 0 });
        }
        *known = floor.max(*known);
        let retry = !answers.insert(header.seq);
        if !retry && block.kind() == BlockKind::Commands {
            let tag = u64::from_le_bytes(block.body()[8..16].try_into().unwrap());
            *self.applied.entry(tag).or_default() += 1;
        }
        let (durability, term, epoch) = (Durability::Synced, Term(1), 0);
        let (first, duplicates, rejected) = (Index(1), 0, 0);
        Ok(Committed { first, term, epoch, durability, duplicates, rejected, retry })
    }

    fn forget(&mut self) {
        if let Some((_, answers)) = self.session.take() {
            self.spent = self.spent.max(answers.last().copied().unwrap_or(0));
        }
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Submit(count) => (0..count).for_each(|_| self.submit()),
            Step::Commit(count) if !self.frozen[self.leader] => self.commit(count),
            Step::Commit(_) => {}
            Step::Elect(to, kept) => self.elect(to, kept),
            Step::Freeze(node) => self.frozen[node] = true,
            Step::Thaw(node) => self.thaw(node),
            Step::Cut(node) => {
                let mine: Vec<_> = self
                    .open
                    .iter()
                    .filter(|(_, of)| **of == node)
                    .map(|(link, _)| *link)
                    .collect();
                for link in mine {
                    self.open.remove(&link);
                    self.core.disconnected(self.now, link, "reset");
                }
            }
            Step::Forget => self.forget(),
            Step::Door(door) => self.door = door,
            Step::Wait(us) => self.run(us),
        }
        self.settle();
    }

    fn heal(&mut self) {
        (0..NODES).for_each(|node| self.thaw(node));
        self.door = None;
        for _ in 0..200 {
            self.commit(usize::MAX);
            self.run(100_000);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_numbered_anew_is_not_applied_twice(
        steps in proptest::collection::vec(step(), 1..150),
        seed: u64,
    ) {
        let mut story = Story::new(seed);
        steps.into_iter().for_each(|step| story.play(step));
        story.heal();
        prop_assert_eq!(story.done.len() as u64, story.tags, "each ends once");
        for (tag, result) in &story.done {
            let times = story.applied.get(tag).copied().unwrap_or(0);
            prop_assert!(times <= 1, "{tag} was applied {times} times: {result:?}");
            prop_assert!(result.is_err() || times == 1, "{tag} was acknowledged: {result:?}");
        }
    }
}
