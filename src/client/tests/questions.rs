//! Queries and status: asked, redirected, repeated, given up.

use super::world::*;
use crate::client::*;
use crate::ids::*;
use crate::wire::client::{Consistency, Place, Refused, write_query_reply};
use crate::wire::frame::Frame;

#[test]
fn a_query_finds_the_leader_and_teaches_where_it_is() {
    let mut world = World::ready(3);
    world.leaders.insert(0, Some(2));
    let tag = world.ask(0, QueryTarget::Leader);
    world.settle();
    assert_eq!(
        world.replies,
        [QueryDone { tag, place: Place::default(), result: Ok("from 2".into()) }]
    );
    assert_eq!(world.core.leader(GroupId(0)), 2);
}

#[test]
fn a_query_to_one_node_is_answered_by_it_or_not_at_all() {
    let mut world = World::ready(3);
    world.leaders.insert(0, Some(1));
    world.ask(0, QueryTarget::Node(NodeId(2)));
    world.ask(0, QueryTarget::Node(NodeId(1)));
    world.settle();
    assert_eq!(
        world.replies[0].result,
        Err(ClientError::Refused(Refused::NotLeader(Some(NodeId(2)))))
    );
    assert_eq!(world.replies[1].result, Ok("from 1".into()));
    let nobody = world.core.query(
        world.now,
        GroupId(0),
        QueryTarget::Node(NodeId(9)),
        Consistency::Stale,
        Bytes::new(),
        1,
    );
    assert_eq!(nobody, Err(SubmitError::NoNode(NodeId(9))));
}

#[test]
fn a_query_survives_its_connection_and_a_mute_node() {
    let mut world = World::ready(3);
    world.moods[0] = Mood::Mute;
    world.ask(0, QueryTarget::Leader);
    world.settle();
    world.leaders.insert(0, Some(1));
    world.cut(0);
    world.run(50_000, |w| !w.replies.is_empty());
    assert_eq!(world.replies[0].result, Ok("from 1".into()));
    world.moods[1] = Mood::Mute;
    world.ask(0, QueryTarget::Leader);
    world.settle();
    world.leaders.insert(0, Some(2));
    world.run(2_000_000, |w| w.replies.len() == 2);
    assert_eq!(world.replies[1].result, Ok("from 2".into()));
}

/// The leader was busy first.
#[test]
fn a_leader_that_falls_silent_behind_a_pause_is_doubted_as_soon_by_a_question() {
    let mut world = World::ready(3);
    world.moods[0] = Mood::Refuses(Refused::Busy);
    world.ask(0, QueryTarget::Leader);
    world.settle();
    world.moods[0] = Mood::Mute;
    world.run(10_000, |_| false);
    world.leaders.insert(0, Some(1));
    world.run(220_000, |w| !w.replies.is_empty());
    assert!(world.replies.first().is_some_and(|reply| reply.result.is_ok()));
}

/// It would have the same work twice.
#[test]
fn a_query_that_takes_long_is_not_asked_again_where_nobody_else_is() {
    let mut world = World::ready(1);
    world.moods[0] = Mood::Mute;
    world.ask(0, QueryTarget::Leader);
    world.run(900_000, |w| w.core.counters().retries > 0);
    assert_eq!(world.core.counters().retries, 0);
    world.run(200_000, |w| w.core.counters().retries > 0);
    assert_eq!(world.core.counters().retries, 1, "until the node counts as gone");
}

#[test]
fn a_query_ends_at_its_deadline() {
    let mut world = World::ready(3);
    world.leaders.insert(0, None);
    world.ask(0, QueryTarget::Leader);
    world.run(10_000_000, |w| !w.replies.is_empty());
    assert_eq!(world.replies[0].result, Err(ClientError::Timeout));
    assert_eq!(world.now, Tick(10_000_000));
}

#[test]
fn status_of_a_dead_node_says_so_and_of_a_live_one_answers() {
    let mut world = World::ready(3);
    world.kill(1);
    world.core.status(world.now, 0, 0, 10).unwrap();
    world.core.status(world.now, 1, 0, 11).unwrap();
    world.run(1_000_000, |w| w.replies.len() == 2);
    assert_eq!(
        world.replies[0],
        QueryDone { tag: 10, place: Place::default(), result: Ok("{}".into()) }
    );
    assert_eq!(
        world.replies[1].result,
        Err(ClientError::Unreachable { reason: "connection refused".into() })
    );
    assert_eq!(world.core.status(world.now, 0, 1, 12), Err(SubmitError::NoShard(1)));
}

#[test]
fn a_late_reply_to_a_question_that_is_over_finds_nobody() {
    let mut world = World::ready(1);
    world.ask(0, QueryTarget::Leader);
    world.settle();
    let next = world.ask(0, QueryTarget::Leader);
    world.moods[0] = Mood::Mute;
    world.settle();
    let mut bytes = Vec::new();
    let first_token = 1 << 32;
    write_query_reply(&mut bytes, first_token, GroupId(0), Place::default(), Ok(b"old"));
    let link = *world.open.keys().next().unwrap();
    let frame = Frame::take(&mut bytes[..].into()).unwrap().unwrap();
    world.core.frame(world.now, link, frame).unwrap();
    world.settle();
    assert_eq!(world.replies.len(), 1, "tag {next} is in the same slot and still open");
}
