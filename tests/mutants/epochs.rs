//! Where a recovery epoch begins, and who hears of it when (durability.md R9).

use ringraft::ids::{GroupId, HardState, Incarnation, Index, NodeId, Term, Tick};
use ringraft::raft::ready::{Ready, Role};
use ringraft::raft::{Body, Config, Event, Message, Raft, Restored, TermRun};
use ringraft::shard::sessions::{Answer, Request, SessionLimits, Sessions};

const G: GroupId = GroupId(0);
const FAR: Tick = Tick(1_000_000);

fn run(first: u64, term: u64, epoch: u32, since: u64) -> TermRun {
    TermRun { first: Index(first), term: Term(term), epoch, since: Index(since) }
}

/// n1, with i1 committed and what else `terms` say through i3.
fn restored(terms: Vec<TermRun>, recovering: bool) -> Restored {
    let hard_state = HardState { term: Term(5), vote: None, commit: Index(1) };
    Restored { hard_state, terms, last: Index(3), recovering, ..Restored::default() }
}

fn raft(voters: u32, restored: Restored) -> Raft {
    let voters = (1..=voters).map(NodeId).collect();
    Raft::new(Config::new(NodeId(1), G, voters, Incarnation(1)), restored, Tick::ZERO)
}

/// All its writes are done.
fn persist(raft: &mut Raft, ready: &mut Ready) {
    let last = ready.persists.last().map(|persist| persist.seq);
    if let Some(seq) = last {
        raft.handle(FAR, Event::Persisted { seq }, ready);
    }
}

fn receive(raft: &mut Raft, from: u32, body: Body, ready: &mut Ready) {
    let (incarnation, echo) = (Incarnation(1), Incarnation(1));
    let message = Message { term: raft.term(), incarnation, echo, body };
    let event = Event::Receive { from: NodeId(from), message, blocks: &mut Vec::new() };
    raft.handle(FAR, event, ready);
}

/// i2 and i3 are of term 2, and it is in term 5: leaders of the terms between may have committed others
/// there, which are lost.
pub fn an_epoch_begins_where_its_leader_is_not_sure() {
    let mut raft = raft(1, restored(vec![run(1, 1, 0, 1), run(2, 2, 0, 2)], true));
    let mut ready = Ready::default();
    raft.handle(FAR, Event::Timeout, &mut ready);
    persist(&mut raft, &mut ready);
    assert_eq!((raft.role(), ready.losses.len()), (Role::Leader, 1));
    let first = ready.blocks.last().expect("the no-op of its term").header();
    assert_eq!((first.first, first.epoch, first.since()), (4, 1, Index(2)));
}

/// An epoch begins with i3, since i2. n2 has all of it, n3 nothing behind i2: to n3 that is not
/// committed yet.
pub fn what_an_epoch_renames_is_committed_with_its_entry() {
    let mut raft =
        raft(3, restored(vec![run(1, 1, 0, 1), run(2, 2, 0, 2), run(3, 5, 1, 2)], false));
    let mut ready = Ready::default();
    raft.handle(FAR, Event::Timeout, &mut ready);
    for pre in [true, false] {
        receive(
            &mut raft,
            2,
            Body::VoteReply { pre, granted: true, recovering: false },
            &mut ready,
        );
        persist(&mut raft, &mut ready);
    }
    receive(&mut raft, 2, Body::AppendReply { matched: Index(4) }, &mut ready);
    assert_eq!((raft.role(), raft.commit()), (Role::Leader, Index(4)));
    receive(&mut raft, 3, Body::AppendReply { matched: Index(2) }, &mut ready);
    ready.clear();
    let next = raft.deadline();
    raft.handle(next, Event::Timeout, &mut ready);
    let told: Vec<_> = ready
        .messages
        .iter()
        .filter_map(|sent| match sent.message.body {
            Body::Heartbeat { commit, .. } => Some((sent.to, commit)),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(NodeId(2), Index(4)), (NodeId(3), Index(1))]);
}

/// Its client had the answers to 2 and 3 from a leader whose entries are lost.
pub fn a_session_remembers_what_it_passed_over() {
    let of = |seq| Request { client: 7, seq, pending: 0, continues: seq > 1 };
    let mut sessions = Sessions::new(SessionLimits::default());
    for (n, seq) in [(1, 1), (2, 4)] {
        let answer = Answer { first: Index(n), ..Answer::default() };
        sessions.record(&of(seq), answer);
    }
    assert!(sessions.misses_answers_of(&of(5)));
}
