//! Rules about members that the simulator's operator does not break alone.

use ringraft::ids::{GroupId, HardState, Incarnation, Index, NodeId, Seq, Term, Tick};
use ringraft::membership::{Membership, Step};
use ringraft::raft::ready::{Ready, Role};
use ringraft::raft::{Body, ChangeRefused, Config, Event, Message, Raft, Restored, TermRun};

const G: GroupId = GroupId(0);
const FAR: u64 = 1_000_000;

fn voters() -> Vec<NodeId> {
    (1..=3).map(NodeId).collect()
}

/// However long nobody speaks to it (bug 20).
pub fn a_learner_waits_to_be_found() {
    let of = Membership::of_voters(voters());
    let membership = Membership { index: Index(1), learners: vec![NodeId(4)], ..of };
    let restored = Restored {
        hard_state: HardState { term: Term(1), vote: None, commit: Index(1) },
        terms: vec![TermRun { first: Index(1), term: Term(1), epoch: 0, since: Index(1) }],
        last: Index(1),
        memberships: vec![membership],
        ..Restored::default()
    };
    let config = Config::new(NodeId(4), G, Vec::new(), Incarnation(1));
    let (mut raft, mut ready) = (Raft::new(config, restored, Tick::ZERO), Ready::default());
    for n in 1..20 {
        raft.handle(Tick(n * FAR), Event::Timeout, &mut ready);
    }
    assert_eq!(raft.role(), Role::Follower);
    assert!(ready.messages.is_empty(), "{:?}", ready.messages);
}

/// Its later configurations may have been in what is damaged.
pub fn who_is_alone_by_a_damaged_log_does_not_elect_itself() {
    let hard_state = HardState { term: Term(1), vote: None, commit: Index::ZERO };
    let (recovering, damaged) = (true, true);
    let restored = Restored { hard_state, recovering, damaged, ..Restored::default() };
    let config = Config::new(NodeId(1), G, vec![NodeId(1)], Incarnation(2));
    let (mut raft, mut ready) = (Raft::new(config, restored, Tick::ZERO), Ready::default());
    for n in 1..20 {
        raft.handle(Tick(n * FAR), Event::Timeout, &mut ready);
        let seq = ready.persists.last().map(|persist| persist.seq);
        ready.clear();
        if let Some(seq) = seq {
            raft.handle(Tick(n * FAR), Event::Persisted { seq }, &mut ready);
        }
        assert_ne!(raft.role(), Role::Leader);
    }
}

/// Even behind a commit of its own, one at a time (bug 19).
pub fn a_second_change_waits_for_the_first() {
    let (mut raft, mut ready) = leader();
    raft.handle(Tick(FAR), Event::Persisted { seq: Seq(2) }, &mut ready);
    let message = Message {
        term: raft.term(),
        incarnation: Incarnation(1),
        echo: Incarnation(1),
        body: Body::AppendReply { matched: Index(1) },
    };
    let from = NodeId(2);
    raft.handle(Tick(FAR), Event::Receive { from, message, blocks: &mut Vec::new() }, &mut ready);
    assert_eq!(raft.commit(), Index(1));
    assert_eq!(change(&mut raft, Step::Demote(NodeId(3)), &mut ready), Some(Ok(Index(2))));
    let second = change(&mut raft, Step::Remove(NodeId(2)), &mut ready);
    assert_eq!(second, Some(Err(ChangeRefused::UnderWay)));
}

/// An older leader's change may be alive somewhere (bug 19).
pub fn a_new_leader_changes_nothing_before_its_own_entry() {
    let (mut raft, mut ready) = leader();
    let answer = change(&mut raft, Step::Remove(NodeId(3)), &mut ready);
    assert_eq!(answer, Some(Err(ChangeRefused::NotYet)));
}

fn leader() -> (Raft, Ready) {
    let config = Config::new(NodeId(1), G, voters(), Incarnation(1));
    let mut raft = Raft::new(config, Restored::default(), Tick::ZERO);
    let mut ready = Ready::default();
    raft.handle(Tick(FAR), Event::Timeout, &mut ready);
    grant(&mut raft, true, &mut ready);
    raft.handle(Tick(FAR), Event::Persisted { seq: Seq(1) }, &mut ready);
    grant(&mut raft, false, &mut ready);
    assert_eq!(raft.role(), Role::Leader);
    (raft, ready)
}

fn change(raft: &mut Raft, step: Step, ready: &mut Ready) -> Option<Result<Index, ChangeRefused>> {
    let mut answer = None;
    let steps = [step];
    let change = Event::ProposeMembership { steps: &steps, force: true, answer: &mut answer };
    raft.handle(Tick(FAR), change, ready);
    answer
}

fn grant(raft: &mut Raft, pre: bool, ready: &mut Ready) {
    let message = Message {
        term: raft.term(),
        incarnation: Incarnation(1),
        echo: Incarnation(1),
        body: Body::VoteReply { pre, granted: true, recovering: false },
    };
    let from = NodeId(2);
    raft.handle(Tick(FAR), Event::Receive { from, message, blocks: &mut Vec::new() }, ready);
}
