//! Frames that no shard of ours writes.

use super::machine::Ledger;
use super::world::{Cluster, MS, Setup, block, frames, submit_frame};
use crate::block::Block;
use crate::ids::{GroupId, Incarnation, Index, NodeId, Term};
use crate::raft::message::{Body, Message};
use crate::wire::frame::{Frame, FrameError, FrameKind, FrameWriter};
use crate::wire::peer::PeerEntry;

/// A cluster, a follower to be lied to, and its leader's name.
fn follower() -> (Cluster<Ledger>, usize, NodeId) {
    let mut c = Setup::new(2).start();
    c.elect();
    c.converge();
    let leader = c.leader(0).unwrap();
    ((c), (leader + 1) % 3, NodeId(leader as u32 + 1))
}

fn message(c: &Cluster<Ledger>, i: usize, body: Body) -> Message {
    let term = c.raft(i, 0).term();
    let incarnation = Incarnation(c.nodes[i].incarnation);
    Message { term, incarnation, echo: incarnation, body }
}

fn append(c: &Cluster<Ledger>, i: usize) -> Message {
    let log = c.raft(i, 0).log();
    let (prev_index, prev_term) = (log.last_index(), log.last_term());
    message(c, i, Body::Append { prev_index, prev_term, commit: log.commit(), last: prev_index })
}

fn frame(group: u32, message: &Message, announced: u32, blocks: &[Block]) -> Frame {
    let mut out = Vec::new();
    let mut writer = FrameWriter::begin(&mut out);
    writer.entry(&PeerEntry::encode(GroupId(group), message, announced));
    blocks.iter().for_each(|block| writer.block(block));
    writer.finish(FrameKind::Peer, 1, 0);
    frames(&out).pop().unwrap()
}

fn stamped(c: &Cluster<Ledger>, i: usize, group: u32, skip: u64, term: u64) -> Block {
    let mut block = block(group, 9, 1);
    let first = c.raft(i, 0).last_index().plus(1 + skip);
    block.stamp(Term(c.raft(i, 0).term().0 + term), first, 0);
    block
}

/// Gives the frame to the follower; nothing may have come of it.
fn refused(c: &mut Cluster<Ledger>, i: usize, from: NodeId, frame: Frame) -> FrameError {
    let before = c.raft(i, 0).last_index();
    let now = c.now;
    let shard = c.nodes[i].shard.as_mut().unwrap();
    let error = shard.peer_frame(now, from, frame).unwrap_err();
    assert_eq!(c.raft(i, 0).last_index(), before);
    error
}

#[test]
fn blocks_that_do_not_follow_their_message_are_refused() {
    let (mut c, i, leader) = follower();
    let message = append(&c, i);
    let good = stamped(&c, i, 0, 0, 0);
    let gap = stamped(&c, i, 0, 1, 0);
    let other_group = stamped(&c, i, 1, 0, 0);
    let later_term = stamped(&c, i, 0, 0, 1);
    for bad in [gap.clone(), other_group, later_term] {
        let error = refused(&mut c, i, leader, frame(0, &message, 1, &[bad]));
        assert_eq!(error, FrameError::BadEntry(0));
    }
    let twice = frame(0, &message, 2, &[good.clone(), good.clone()]);
    assert_eq!(refused(&mut c, i, leader, twice), FrameError::BadEntry(0));
    let unstamped = frame(0, &message, 1, &[block(0, 9, 1)]);
    assert_eq!(refused(&mut c, i, leader, unstamped), FrameError::BadEntry(0));
    // The control: the same with the right block is taken.
    let now = c.now;
    let shard = c.nodes[i].shard.as_mut().unwrap();
    assert_eq!(shard.peer_frame(now, leader, frame(0, &message, 1, &[good])), Ok(()));
    assert_eq!(c.raft(i, 0).last_index(), gap.first().prev());
}

#[test]
fn bytes_that_no_entry_speaks_for_are_refused() {
    let (mut c, i, leader) = follower();
    let heartbeat =
        message(&c, i, Body::Heartbeat { commit: Index(0), context: 0, last: Index(0) });
    let good = stamped(&c, i, 0, 0, 0);
    let leftover = frame(0, &heartbeat, 0, std::slice::from_ref(&good));
    assert_eq!(refused(&mut c, i, leader, leftover), FrameError::Leftover);
    let missing = frame(0, &append(&c, i), 1, &[]);
    assert!(matches!(refused(&mut c, i, leader, missing), FrameError::Block(_)));
    let misplaced = frame(0, &heartbeat, 1, &[good]);
    assert_eq!(refused(&mut c, i, leader, misplaced), FrameError::BadEntry(0));
    let mut short = frame(0, &heartbeat, 0, &[]);
    short.count = 2;
    assert_eq!(refused(&mut c, i, leader, short), FrameError::BadCount { count: 2 });
    let submit = submit_frame(&[block(0, 9, 1)]);
    assert_eq!(refused(&mut c, i, leader, submit), FrameError::Unexpected(FrameKind::Submit));
}

#[test]
fn numbers_at_the_end_of_their_range_are_no_reason_to_panic() {
    let (mut c, i, leader) = follower();
    let most = Index(u64::MAX);
    let bodies = [
        Body::Append { prev_index: most, prev_term: Term(1), commit: most, last: most },
        Body::Append { prev_index: most, prev_term: Term(u64::MAX), commit: Index(0), last: most },
        Body::AppendReply { matched: most },
        Body::AppendReject { prev_index: most, hint_index: most, hint_term: Term(u64::MAX) },
        Body::AppendReject { prev_index: Index(0), hint_index: Index(0), hint_term: Term(0) },
        Body::Heartbeat { commit: most, context: u64::MAX, last: most },
        Body::HeartbeatReply { context: u64::MAX },
        Body::VoteRequest { pre: true, handed: false, last_index: most, last_term: Term(u64::MAX) },
        Body::TimeoutNow,
        Body::ReadIndex { number: u64::MAX },
        Body::ReadReply { number: u64::MAX, index: most },
        Body::VoteReply { pre: false, granted: true, recovering: true },
    ];
    let target = leader.0 as usize - 1;
    for body in bodies {
        for (node, from) in [(i, leader), (target, NodeId(i as u32 + 1))] {
            let message = message(&c, node, body);
            let now = c.now;
            let shard = c.nodes[node].shard.as_mut().unwrap();
            // Taken or refused, but never a panic.
            let _ = shard.peer_frame(now, from, frame(0, &message, 0, &[]));
            let _ = shard.peer_frame(now, from, frame(u32::MAX, &message, 0, &[]));
            let _ = shard.peer_frame(now, NodeId(99), frame(0, &message, 0, &[]));
        }
    }
    let mut huge = block(0, 9, 1);
    huge.stamp(c.raft(i, 0).term(), most, 0);
    let body = Body::Append {
        prev_index: Index(u64::MAX - 1),
        prev_term: Term(1),
        commit: most,
        last: most,
    };
    let message = message(&c, i, body);
    let now = c.now;
    let shard = c.nodes[i].shard.as_mut().unwrap();
    let _ = shard.peer_frame(now, leader, frame(0, &message, 1, &[huge]));
    c.run(2000 * MS);
    c.elect();
    c.converge();
}

#[test]
fn a_clients_frame_of_the_wrong_kind_or_with_bytes_left_over_is_refused() {
    let (mut c, i, _) = follower();
    let client = c.client(i);
    let mut whole = submit_frame(&[block(0, 9, 1), block(0, 9, 2)]);
    whole.count = 1;
    assert_eq!(c.give(client, whole.clone()), Err(FrameError::Leftover));
    whole.count = 3;
    assert!(matches!(c.give(client, whole), Err(FrameError::Block(_))));
    let message = append(&c, i);
    let peer = frame(0, &message, 0, &[]);
    assert_eq!(c.give(client, peer), Err(FrameError::Unexpected(FrameKind::Peer)));
    c.run(MS);
    assert_eq!(c.answers(client), [], "no block of a malformed frame is taken");
}
