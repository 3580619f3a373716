//! Who may talk to whom, and what the client learns by it.

use super::world::*;
use crate::client::*;
use crate::ids::*;
use crate::wire::client::write_status_reply;
use crate::wire::frame::{Frame, FrameError, FrameKind};
use crate::wire::hello::Refusal;

#[test]
fn nothing_is_taken_until_a_handshake_told_what_the_cluster_is() {
    let mut world = World::new(3);
    assert_eq!((world.core.groups(), world.core.shards()), (None, None));
    assert_eq!(world.core.room(GroupId(0)), 0);
    let block = world.block(0);
    assert_eq!(world.core.submit(Tick(0), block, 1), Err(SubmitError::NotReady));
    world.settle();
    assert_eq!((world.core.groups(), world.core.shards()), (Some(8), Some(1)));
    assert_eq!(world.core.node_id(2), Some(NodeId(3)), "and who lives where");
    assert_eq!(world.core.room(GroupId(7)), 1024);
    assert_eq!(world.core.room(GroupId(8)), 1024, "it may have been made since");
    assert_eq!(world.core.room(GroupId(1 << 20)), 0, "numbers end there");
}

#[test]
fn another_cluster_refuses_and_that_is_final_and_clear() {
    let mut world = World::with(ClientConfig { cluster: 9, ..config(3) });
    world.run(20_000_000, |_| false);
    assert_eq!(world.connects.len(), 3, "each node was asked once and never again");
    assert_eq!(world.core.fault(), Some(Refusal::Cluster));
    assert_eq!(world.faults[0], ClientFault::Refused(Refusal::Cluster));
    let block = world.block(0);
    let refused = world.core.submit(world.now, block, 1).unwrap_err();
    assert_eq!(refused, SubmitError::Handshake(Refusal::Cluster));
    assert!(refused.to_string().contains("belongs to another cluster"));
}

#[test]
fn blocks_in_flight_end_when_the_last_node_turns_the_client_away() {
    let mut world = World::ready(1);
    world.moods[0] = Mood::Mute;
    let tag = world.submit(0);
    world.settle();
    world.moods[0] = Mood::RefusesHello(Refusal::Port);
    world.cut(0);
    world.run(1_000_000, |w| !w.done.is_empty());
    assert_eq!(world.done[0].tag, tag);
    assert_eq!(world.done[0].result, Err(ClientError::Handshake(Refusal::Port)));
}

#[test]
fn a_client_that_joined_one_cluster_never_talks_to_a_second() {
    let mut world = World::new(2);
    world.moods[1] = Mood::Dead;
    world.settle();
    // n1 comes up, but belongs to somebody else: it welcomes clients of its own cluster.
    world.cluster = 6;
    world.moods[1] = Mood::Sound;
    world.run(5_000_000, |w| w.core.refusal(1).is_some());
    assert_eq!(world.core.refusal(1), Some(Refusal::Cluster));
    assert_eq!(world.core.fault(), None, "n0 serves on");
}

#[test]
fn of_two_clusters_that_both_welcome_it_a_client_keeps_to_the_first() {
    let mut world = World::new(2);
    world.strays.insert(1, 6);
    world.settle();
    assert_eq!(world.core.refusal(1), Some(Refusal::Cluster));
    // Group 1 would have begun with n1.
    world.submit(1);
    world.settle();
    assert_eq!(world.arrived, [(0, 1, 1)]);
}

#[test]
fn the_wrong_node_at_an_address_is_refused_if_the_right_one_is_known() {
    let mut config = config(2);
    config.nodes[1].id = Some(NodeId(9));
    let mut world = World::with(config);
    world.settle();
    assert_eq!(world.core.refusal(1), Some(Refusal::Node));
    assert_eq!(world.core.refusal(0), None);
}

#[test]
fn a_node_that_is_full_or_stopping_is_asked_again_later() {
    let mut world = World::new(1);
    world.moods[0] = Mood::RefusesHello(Refusal::Connections);
    world.run(200_000, |_| false);
    assert!(world.connects.len() > 2, "asked {} times", world.connects.len());
    assert_eq!(world.core.fault(), None);
    world.moods[0] = Mood::Sound;
    world.run(1_000_000, |w| w.core.groups().is_some());
    assert_eq!(world.core.groups(), Some(8));
}

#[test]
fn a_node_that_never_answers_the_handshake_is_given_up_and_tried_again() {
    let mut world = World::new(1);
    world.moods[0] = Mood::Mute;
    world.run(1_000_000, |_| false);
    assert!(world.open.is_empty(), "closed after the second that a connect may take");
    world.moods[0] = Mood::Sound;
    world.run(1_000_000, |w| w.core.groups().is_some());
    assert_eq!(world.core.groups(), Some(8));
}

#[test]
fn the_first_frame_must_be_the_handshake() {
    let mut world = World::new(1);
    let mut out = ClientOutput::default();
    world.core.poll(Tick(0), &mut out);
    let link = out.connect[0].0;
    world.core.connected(Tick(0), link);
    let mut bytes = Vec::new();
    write_status_reply(&mut bytes, 0, b"{}");
    let frame = Frame::take(&mut bytes[..].into()).unwrap().unwrap();
    let fault = world.core.frame(Tick(0), link, frame).unwrap_err();
    let unexpected = FrameError::Unexpected(FrameKind::StatusReply);
    assert_eq!(fault, ClientFault::Handshake(unexpected.into()));
    world.core.poll(Tick(0), &mut out);
    assert_eq!(out.close, [link]);
}

#[test]
fn a_cluster_of_absurd_size_sizes_no_table() {
    let mut world = World::new(1);
    (world.shards, world.groups) = (u32::MAX, u32::MAX);
    world.settle();
    assert_eq!(world.core.fault(), Some(Refusal::Config));
}

#[test]
fn reports_about_an_earlier_connection_are_ignored() {
    let mut world = World::ready(1);
    let old = *world.open.keys().next().unwrap();
    world.cut(0);
    world.submit(0);
    world.run(1_000_000, |w| !w.done.is_empty());
    let new = *world.open.keys().next().unwrap();
    assert_ne!(old, new);
    assert_eq!(old.slot(), new.slot());
    world.core.disconnected(world.now, old, "late news");
    world.core.connected(world.now, old);
    world.submit(0);
    world.settle();
    assert_eq!(world.done.len(), 2, "the new connection is untouched");
}
