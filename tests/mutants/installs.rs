//! What a follower makes of a snapshot that it is offered.

use ringraft::ids::{GroupId, HardState, Incarnation, Index, LogStart, NodeId, Term, Tick};
use ringraft::raft::message::{Body, Message, Offer};
use ringraft::raft::{Config, Event, InstallStep, Raft, Ready, Restored, TermRun};

const G: GroupId = GroupId(0);

/// n2, with i1 of term 1 committed and i2..i5 of `term`, is offered what stands for i3 of term 2.
fn offered(term: u64) -> (Raft, Ready) {
    let run = |first, term| {
        let (first, term) = (Index(first), Term(term));
        TermRun { first, term, epoch: 0, since: first }
    };
    let restored = Restored {
        hard_state: HardState { term: Term(2), vote: None, commit: Index(1) },
        terms: vec![run(1, 1), run(2, term)].into_iter().take(term as usize).collect(),
        last: Index(5),
        ..Restored::default()
    };
    let voters = (1..=3).map(NodeId).collect();
    let config = Config::new(NodeId(2), G, voters, Incarnation(1));
    let (mut raft, mut ready) = (Raft::new(config, restored, Tick::ZERO), Ready::default());
    let start = LogStart { index: Index(3), term: Term(2), epoch: 0 };
    let body = Body::SnapshotOffer(Offer { start, size: 100, checksum: 1 });
    let incarnation = Incarnation(1);
    let message = Message { term: Term(2), incarnation, echo: Incarnation::ZERO, body };
    let event = Event::Receive { from: NodeId(1), message, blocks: &mut Vec::new() };
    raft.handle(Tick(1), event, &mut ready);
    (raft, ready)
}

fn wants(ready: &Ready) -> bool {
    ready.installs.iter().any(|install| matches!(install.step, InstallStep::Offered(_)))
}

/// Bug 15: it has something else at i3.
pub fn a_log_that_contradicts_a_snapshot_gives_way() {
    let (raft, ready) = offered(1);
    assert!(wants(&ready), "it is to be replaced");
    assert_eq!(raft.commit(), Index(1), "what is there is not what was committed");
}

/// Bug 16: it has i3 of term 2, and i4 and i5, which it has acknowledged.
pub fn a_log_that_agrees_with_a_snapshot_stays() {
    let (raft, ready) = offered(2);
    assert!(!wants(&ready), "nothing would be gained");
    assert_eq!((raft.commit(), raft.last_index()), (Index(3), Index(5)));
}
