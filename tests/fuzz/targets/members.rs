//! Who takes part, wherever bytes say it: in an entry of the log, in the head of a snapshot. And the
//! rest of a snapshot, as a follower reads what its leader sent.

use ringraft::block::{Block, BlockKind};
use ringraft::ids::{GroupId, HardState, Incarnation, Index, NodeId, Term, Tick};
use ringraft::machine::StateMachine;
use ringraft::machine::events::{EventLimits, EventStore};
use ringraft::membership::{Joining, Membership, NodeAddress, Step};
use ringraft::raft::{Config, Event, Raft, Ready, Restored, TermRun};
use ringraft::shard::sessions::{SessionLimits, Sessions};
use ringraft::shard::snapshots::start::Loading;
use ringraft::snapshot::{Header, SnapshotWriter};

use super::{Tried, codec, repair};

const REPAIR: u8 = 1;
const G: GroupId = GroupId(0);

/// A configuration as the body of an entry; a group that starts from it.
pub fn members(input: &[u8]) -> Tried {
    let Some((mode, bytes)) = input.split_first() else { return Tried::one(false) };
    let mut bytes = bytes.to_vec();
    if mode & REPAIR != 0 {
        repair::membership(&mut bytes);
    }
    let Ok(members) = Membership::decode(&bytes) else { return Tried::one(false) };
    let mut again = Vec::new();
    members.encode(&mut again);
    assert_eq!(Membership::decode(&again).as_ref(), Ok(&members), "it can be said again");
    change(&members, *mode);
    start(members);
    Tried::one(true)
}

/// What an operator may ask of it, and what a leader does by itself.
fn change(members: &Membership, mode: u8) {
    if members.is_joint() {
        return;
    }
    let node = NodeId(u32::from(mode >> 1));
    let steps = [
        Step::Remove(node),
        Step::Demote(node),
        Step::Promote(node),
        Step::Seat(node),
        Step::Add { node, votes: true, address: None },
        Step::Replace { old: node, new: NodeId(9), address: None },
    ];
    for step in steps {
        if let Ok(target) = members.change(&[step]) {
            let mut encoded = Vec::new();
            target.encode(&mut encoded);
            assert_eq!(Membership::decode(&encoded), Ok(target));
        }
    }
}

/// A node whose log holds this entry alone, committed.
fn start(members: Membership) {
    let index = Index(1);
    let restored = Restored {
        hard_state: HardState { term: Term(1), vote: None, commit: index },
        terms: vec![TermRun { first: index, term: Term(1), epoch: 0, since: index }],
        last: index,
        memberships: vec![Membership { index, ..members }],
        ..Restored::default()
    };
    if restored.check().is_err() {
        return;
    }
    let config = Config::new(NodeId(1), G, Vec::new(), Incarnation(1));
    let (mut raft, mut ready) = (Raft::new(config, restored, Tick::ZERO), Ready::default());
    for n in 1..4 {
        raft.handle(Tick(n * 1_000_000), Event::Timeout, &mut ready);
        let seq = ready.persists.last().map(|persist| persist.seq);
        ready.clear();
        if let Some(seq) = seq {
            raft.handle(Tick(n * 1_000_000), Event::Persisted { seq }, &mut ready);
        }
        raft.check_invariants();
    }
}

/// All kinds of members there can be.
fn lists() -> Vec<Membership> {
    let nodes = |ids: &[u32]| ids.iter().map(|&id| NodeId(id)).collect::<Vec<_>>();
    let address = |node| NodeAddress {
        node: NodeId(node),
        peer: format!("10.0.0.{node}:7000"),
        client: format!("n{node}:8"),
    };
    let three = Membership::of_voters(nodes(&[1, 2, 3]));
    let joining = |node, replaces| Joining { node: NodeId(node), replaces };
    vec![
        Membership::of_voters(nodes(&[1])),
        Membership { learners: nodes(&[4, 5]), addresses: vec![address(4)], ..three.clone() },
        Membership {
            learners: nodes(&[4, 5]),
            joining: vec![joining(4, None), joining(5, Some(NodeId(2)))],
            addresses: vec![address(4), address(5)],
            ..three.clone()
        },
        Membership {
            voters: nodes(&[1, 3, 4]),
            outgoing: nodes(&[1, 2, 3]),
            learners_next: nodes(&[2]),
            ..three.clone()
        },
        three,
    ]
}

/// Configurations as entries have them.
pub fn member_samples() -> Vec<Vec<u8>> {
    let encoded = |members: &Membership| {
        let mut body = Vec::new();
        members.encode(&mut body);
        let block = Block::special(G, BlockKind::Membership, body.into());
        block.body().to_vec()
    };
    lists().iter().map(encoded).collect()
}

fn limits() -> EventLimits {
    EventLimits { queues: 8, dedup_ids: 16, bytes: 64 << 10, ..EventLimits::default() }
}

/// The file of a snapshot, in pieces of a size that the input chooses.
pub fn snapshot(input: &[u8]) -> Tried {
    let Some((&mode, bytes)) = input.split_first() else { return Tried::one(false) };
    let mut bytes = bytes.to_vec();
    if mode & REPAIR != 0 {
        repair::snapshot(&mut bytes);
    }
    let loading = Loading::new(EventStore::new(limits()), SessionLimits::default());
    let mut loading = loading.expect("an empty store can be restored");
    let piece = 1 + 16 * usize::from(mode >> 1);
    if !bytes.chunks(piece).all(|piece| loading.feed(piece).is_ok()) {
        return Tried::one(false);
    }
    let Ok(loaded) = loading.finish(G, 0) else { return Tried::one(false) };
    let mut machine = loaded.machine;
    let index = loaded.header.index;
    if index < Index(1 << 60) {
        let mut block = codec::events(0, 1, 3);
        block.stamp(Term(1), index.next(), 0);
        machine.apply(&block);
    }
    let _ = (machine.digest(), loaded.sessions.digest(), machine.memory_bytes());
    Tried::one(true)
}

/// A few whole snapshots.
pub fn snapshot_samples() -> Vec<Vec<u8>> {
    let of = |membership: Membership| {
        let mut store = EventStore::new(limits());
        let mut block = codec::events(0, 1, 5);
        block.stamp(Term(1), Index(1), 0);
        store.apply(&block);
        let sessions = Box::new(Sessions::new(SessionLimits::default()).freeze());
        let state = store.freeze().expect("a store can be frozen");
        let header = Header { index: Index(5), term: Term(1), membership, ..Header::default() };
        let (mut writer, mut bytes) = (SnapshotWriter::new(header, sessions, state), Vec::new());
        while writer.next(&mut bytes, 200) {}
        bytes
    };
    lists().into_iter().map(of).collect()
}
