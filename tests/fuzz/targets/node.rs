//! A shard in the middle of its life, and frames that its clients and peers would not send.
//!
//! Node n1 of three leads group 0, follows n2 in group 1 and has heard from nobody in group 2.

use bytes::BytesMut;
use ringraft::block::Block;
use ringraft::ids::{GroupId, Incarnation, Index, NodeId, Term, Tick};
use ringraft::machine::events::{EventLimits, EventStore};
use ringraft::raft;
use ringraft::raft::message::{Body, Message};
use ringraft::shard::sessions::SessionLimits;
use ringraft::shard::snapshots::SnapshotConfig;
use ringraft::shard::{Output, Shard, ShardConfig};
use ringraft::wal::{
    DiskDone, DiskError, DiskErrorKind, DiskOp, LogIdentity, Suspect, Wal, WalConfig,
};
use ringraft::wire::admin::{AdminRequest, MemberStep};
use ringraft::wire::client::{Consistency, write_admin, write_query, write_status};
use ringraft::wire::frame::{Frame, FrameKind, FrameWriter};
use ringraft::wire::peer::PeerEntry;

use super::codec::{events, repaired, submit};
use super::{Tried, parts};

const ME: Incarnation = Incarnation(3);
const THEIRS: Incarnation = Incarnation(1);
const CLIENT: u64 = 1 << 32;
/// Mode bits beside those of the repairs.
const FROM_N3: u8 = 4;
const LATER: u8 = 8;
const MUCH_LATER: u8 = 16;
const NO_TURN: u8 = 32;

struct Node {
    shard: Shard<EventStore>,
    out: Output,
    now: Tick,
    dirty: Vec<u64>,
}

impl Node {
    fn settled() -> Self {
        let mut node = Self::started(config());
        node.follow();
        node.lead();
        node
    }

    /// All groups are RECOVERING, and n2 has begun to give back what group 1 had.
    fn lost() -> Self {
        let mut node = Self::started(ShardConfig {
            wal_sync: false,
            suspect: Suspect::Everything,
            ..config()
        });
        node.follow();
        assert_eq!(node.shard.recovering(), 3);
        node
    }

    fn started(config: ShardConfig) -> Self {
        let shard = Shard::new(config, log(), Default::default(), |_| store(), Tick(1));
        let mut node = Self { shard, out: Output::default(), now: Tick(1), dirty: Vec::new() };
        for peer in [NodeId(2), NodeId(3)] {
            node.shard.peer_connected(node.now, peer, THEIRS);
        }
        node.shard.client_opened(CLIENT);
        node
    }

    /// n2 leads group 1, has five entries and sends the first three.
    fn follow(&mut self) {
        let mut blocks = [Block::noop(GroupId(1)), events(1, 1, 2)];
        blocks[0].stamp(Term(1), Index(1), 0);
        blocks[1].stamp(Term(1), Index(2), 0);
        let body = append(Index(0), Term(0), Index(1), Index(5));
        self.hear(NodeId(2), &peer_frame(&[(1, message(1, body), &blocks)]));
    }

    /// n2 agrees with whatever n1 asks until n1 leads group 0 and has committed there.
    fn lead(&mut self) {
        let mut submitted = false;
        for _ in 0..200 {
            self.now = self.now.plus(1000);
            let frames = self.turn();
            frames.iter().for_each(|frame| self.agree(frame));
            let status = self.shard.status();
            let group = &status.groups[0];
            if group.role == "leader" && !submitted {
                submitted = true;
                self.ask(&submit(&[events(0, 1, 4)]));
            }
            if submitted && group.commit == 5 {
                return;
            }
        }
        panic!("n1 does not lead: {:?}", self.shard.status());
    }

    fn agree(&mut self, frame: &Frame) {
        let mut rest = frame.clone();
        for entry in frame.entries::<PeerEntry>().expect("our own frame") {
            let (group, asked, count) = entry.decode().expect("our own entry");
            let mut blocks = Vec::new();
            rest.take_blocks(count, &mut blocks).expect("our own blocks");
            let body = match asked.body {
                Body::VoteRequest { pre, .. } => {
                    Body::VoteReply { pre, granted: true, recovering: false }
                }
                Body::Append { prev_index, .. } => {
                    Body::AppendReply { matched: blocks.last().map_or(prev_index, Block::last) }
                }
                Body::Heartbeat { context, .. } => Body::HeartbeatReply { context },
                _ => continue,
            };
            if group == GroupId(0) {
                // A pre-vote names the term that would be, not one that is.
                let pre = matches!(asked.body, Body::VoteRequest { pre: true, .. });
                let reply = message(asked.term.0 - u64::from(pre), body);
                self.hear(NodeId(2), &peer_frame(&[(0, reply, &[])]));
            }
        }
    }

    /// A frame from a peer. If it is refused, the connection ends and comes back.
    fn hear(&mut self, from: NodeId, bytes: &[u8]) -> bool {
        let refused = match Frame::take(&mut BytesMut::from(bytes)) {
            Ok(None) => return false,
            Ok(Some(frame)) => self.shard.peer_frame(self.now, from, frame).is_err(),
            Err(_) => true,
        };
        if refused {
            self.shard.peer_disconnected(self.now, from);
            self.shard.peer_connected(self.now, from, THEIRS);
        }
        !refused
    }

    /// A frame from the client, who comes back after it was thrown out.
    fn ask(&mut self, bytes: &[u8]) -> bool {
        let refused = match Frame::take(&mut BytesMut::from(bytes)) {
            Ok(None) => return false,
            Ok(Some(frame)) => self.shard.client_frame(CLIENT, frame).is_err(),
            Err(_) => true,
        };
        if refused {
            self.shard.client_closed(CLIENT);
            self.shard.client_opened(CLIENT);
        }
        !refused
    }

    /// A turn with a disk that is done at once; what it sends to n2.
    fn turn(&mut self) -> Vec<Frame> {
        self.shard.turn(self.now, &mut self.out);
        assert!(self.out.fatal.is_none(), "{:?}", self.out.fatal);
        self.out.transitions.clear();
        self.out.links.clear();
        self.out.files.clear();
        for op in self.out.disk.drain(..) {
            let (op, result) = match op {
                DiskOp::Write { op, buffer, .. } => (op, Ok(DiskDone::Written { buffer })),
                DiskOp::Prepare { op, .. } => (op, Ok(DiskDone::Prepared)),
                DiskOp::Sync { op, .. } => (op, Ok(DiskDone::Synced)),
                DiskOp::Read { op, .. } => (op, Err(unreadable())),
            };
            self.shard.disk_done(self.now, op, result);
        }
        self.shard.apply(self.now);
        self.shard.check_invariants();
        self.shard.take_dirty_clients(&mut self.dirty);
        for conn in self.dirty.drain(..) {
            self.shard.client_egress(conn).map(Vec::clear);
        }
        self.shard.peer_egress(NodeId(3)).expect("a peer").clear();
        let egress = self.shard.peer_egress(NodeId(2)).expect("a peer");
        let mut bytes = BytesMut::from(&egress[..]);
        egress.clear();
        std::iter::from_fn(|| Frame::take(&mut bytes).expect("our own frames")).collect()
    }

    /// What the mode says about time; then a turn.
    fn go_on(&mut self, mode: u8) {
        let pause = match mode {
            _ if mode & MUCH_LATER != 0 => 60_000,
            _ if mode & LATER != 0 => 5000,
            _ => 100,
        };
        self.now = self.now.plus(pause);
        if mode & NO_TURN == 0 {
            self.turn();
        }
    }
}

/// What was written is not kept: a block that is no longer in memory cannot be read for a follower.
fn unreadable() -> DiskError {
    DiskError { kind: DiskErrorKind::Io, errno: 5, message: "nothing is kept".into() }
}

fn config() -> ShardConfig {
    let voters: Vec<_> = (1..=3).map(NodeId).collect();
    ShardConfig {
        node: NodeId(1),
        incarnation: ME,
        voters: voters.clone(),
        peers: Vec::new(),
        shard: 0,
        shards: 1,
        groups: 3,
        groups_max: 16,
        wal_sync: true,
        wal_sync_except: Vec::new(),
        suspect: Suspect::Nothing,
        sessions: SessionLimits::default(),
        snapshots: SnapshotConfig::default(),
        raft: raft::Config::new(NodeId(1), GroupId(0), voters, ME),
        block_bytes_max: 64 << 10,
        apply_bytes_per_turn: 1 << 20,
        peer_egress_bytes_max: 1 << 20,
        client_egress_bytes_max: 1 << 20,
        client_blocks_max: 64,
        leaders: Default::default(),
    }
}

fn log() -> Wal {
    let (segment_bytes, flush_bytes_max) = (4 << 20, 32 << 10);
    let config =
        WalConfig { segment_bytes, flush_bytes_max, block_bytes: 512, ..WalConfig::default() };
    Wal::create(config, LogIdentity { cluster: 1, node: 1, disk: 1 }, 7)
}

fn store() -> EventStore {
    EventStore::new(EventLimits { retention_bytes: 64 << 10, ..EventLimits::default() })
}

fn message(term: u64, body: Body) -> Message {
    Message { term: Term(term), incarnation: THEIRS, echo: ME, body }
}

fn append(prev_index: Index, prev_term: Term, commit: Index, last: Index) -> Body {
    Body::Append { prev_index, prev_term, commit, last }
}

fn peer_frame(messages: &[(u32, Message, &[Block])]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = FrameWriter::begin(&mut out);
    for (group, message, blocks) in messages {
        writer.entry(&PeerEntry::encode(GroupId(*group), message, blocks.len() as u32));
    }
    for (_, _, blocks) in messages {
        blocks.iter().for_each(|block| writer.block(block));
    }
    writer.finish(FrameKind::Peer, messages.len() as u32, 0);
    out
}

/// Frames from peers, as parts of the input.
pub fn peer(input: &[u8]) -> Tried {
    hear_all(Node::settled(), input)
}

/// The same for a node that has lost its memory.
pub fn lost(input: &[u8]) -> Tried {
    hear_all(Node::lost(), input)
}

fn hear_all(mut node: Node, input: &[u8]) -> Tried {
    let mut tried = Tried::default();
    for part in parts(input) {
        let Some((mode, bytes)) = repaired(part) else { continue };
        let from = if mode & FROM_N3 != 0 { NodeId(3) } else { NodeId(2) };
        tried.add(node.hear(from, &bytes));
        node.go_on(mode);
    }
    tried
}

/// Commands of an operator, to a node whose peers agree with it as far as it leads.
pub fn admin(input: &[u8]) -> Tried {
    let mut node = Node::settled();
    let mut tried = Tried::default();
    for part in parts(input) {
        let Some((mode, bytes)) = repaired(part) else { continue };
        tried.add(node.ask(&bytes));
        node.go_on(mode & !MUCH_LATER & !NO_TURN);
        let frames = node.turn();
        frames.iter().for_each(|frame| node.agree(frame));
    }
    tried
}

/// Commands with every kind of step, for every group.
pub fn admin_samples() -> Vec<Vec<u8>> {
    let (peer, client) = ("10.0.0.4:7000".to_owned(), "10.0.0.4:8000".to_owned());
    let (node, old, votes) = (4, 3, true);
    let steps = [
        MemberStep::Add { node, votes, peer: peer.clone(), client: client.clone() },
        MemberStep::Remove { node: 3 },
        MemberStep::Promote { node },
        MemberStep::Demote { node: 2 },
        MemberStep::Replace { old, node, peer, client },
    ];
    let one = |step: &MemberStep| vec![step.clone()];
    let (force, dry) = (true, true);
    let mut requests = vec![
        AdminRequest::Show,
        AdminRequest::Members,
        AdminRequest::Transfer { to: Some(2) },
        AdminRequest::Transfer { to: None },
        AdminRequest::Change { steps: steps.to_vec(), force: false, dry },
    ];
    requests.extend(steps.iter().map(|step| AdminRequest::Change {
        steps: one(step),
        force,
        dry: false,
    }));
    let framed = |(group, request): (u32, &AdminRequest)| {
        let mut out = Vec::new();
        write_admin(&mut out, 4, GroupId(group), &request.to_json());
        out
    };
    (0..4).flat_map(|group| requests.iter().map(move |r| (group, r))).map(framed).collect()
}

/// Frames from a client, as parts of the input.
pub fn client(input: &[u8]) -> Tried {
    let mut node = Node::settled();
    let mut tried = Tried::default();
    for part in parts(input) {
        let Some((mode, bytes)) = repaired(part) else { continue };
        tried.add(node.ask(&bytes));
        node.go_on(mode & !MUCH_LATER);
    }
    tried
}

pub fn client_samples() -> Vec<Vec<u8>> {
    let mut samples = vec![submit(&[]), submit(&[Block::noop(GroupId(0))])];
    for group in 0..4 {
        samples.push(submit(&[events(group, 2, 3)]));
        samples.push(submit(&[events(group, 1, 4), events(0, 3, 1)]));
    }
    for (group, question) in [(0, &b"\x04"[..]), (1, b"\x05"), (0, b"\x02\x09\0\0\0\0\0"), (3, b"")]
    {
        for consistency in Consistency::ALL {
            let mut out = Vec::new();
            write_query(&mut out, 4, GroupId(group), consistency, question);
            samples.push(out);
        }
    }
    let mut status = Vec::new();
    write_status(&mut status, 9);
    samples.push(status);
    samples
}

/// Every kind of message for every group around the terms and indices that n1 has.
pub fn peer_samples() -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    for group in 0..4u32 {
        for term in 0..4 {
            for at in 0..7u64 {
                let bodies = bodies(at, term);
                for body in bodies {
                    samples.push(peer_frame(&[(group, message(term, body), &[])]));
                }
                let mut block = events(group, at, 1 + at % 3);
                block.stamp(Term(term), Index(at + 1), 0);
                let append = bodies[0];
                samples.push(peer_frame(&[(group, message(term, append), &[block])]));
            }
        }
    }
    let beat = message(1, Body::Heartbeat { commit: Index(2), context: 1, last: Index(3) });
    let vote = message(
        9,
        Body::VoteRequest { pre: false, handed: false, last_index: Index(9), last_term: Term(2) },
    );
    samples.push(peer_frame(&[(0, vote, &[]), (1, beat, &[]), (2, vote, &[])]));
    let now = message(2, Body::TimeoutNow);
    samples.push(peer_frame(&[(1, beat, &[]), (1, now, &[]), (0, now, &[])]));
    samples
}

fn bodies(at: u64, term: u64) -> [Body; 12] {
    let (index, before, last) = (Index(at), Term(term.min(1)), Index(at + at % 2));
    let pre = at.is_multiple_of(2);
    let reply = |granted, recovering| Body::VoteReply { pre, granted, recovering };
    [
        append(index, before, index, last),
        Body::AppendReply { matched: index },
        Body::AppendReject { prev_index: index, hint_index: Index(at / 2), hint_term: before },
        Body::Heartbeat { commit: index, context: at, last },
        Body::HeartbeatReply { context: at },
        Body::VoteRequest { pre, handed: false, last_index: index, last_term: before },
        Body::VoteRequest { pre: false, handed: true, last_index: index, last_term: before },
        Body::ReadIndex { number: at },
        Body::ReadReply { number: at, index },
        reply(true, false),
        reply(at.is_multiple_of(3), true),
        append(index, Term(term), Index(at + 2), last),
    ]
}
