//! The client for programs against a node in this process.

use std::time::Duration;

use bytes::Bytes;
use ringraft::block::BlockBuilder;
use ringraft::block::{Command, CommandKind};
use ringraft::client::handle::{Client, RequestError};
use ringraft::config::Profile;
use ringraft::ids::GroupId;
use ringraft::machine::events::query::{Query, ReadReply};
use ringraft::server::embedded::EmbeddedCluster;
use ringraft::wire::client::Consistency;

const LIMIT: Duration = Duration::from_secs(20);

fn event(value: &[u8]) -> BlockBuilder {
    let mut block = BlockBuilder::default();
    let kind = CommandKind::SetEvent as u8;
    block.push(&Command { kind, flags: 0, timestamp: 1, key: b"orders/new", value }).unwrap();
    block
}

#[test]
fn what_a_program_stores_it_reads_back_from_the_leader() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let mut profile = Profile::builtin("financial").unwrap();
    profile.nodes = 1;
    let cluster = EmbeddedCluster::start(&profile, dir.path()).unwrap();
    let client = Client::connect(cluster.addresses()).unwrap();
    let tickets: Vec<_> = [b"one", b"two"]
        .map(|value| client.submit(GroupId(0), event(value)).unwrap())
        .into_iter()
        .collect();
    let first: Vec<u64> = tickets.iter().map(|t| t.wait(LIMIT).unwrap().first.0).collect();
    assert_eq!(first[1], first[0] + 1);

    let question = Query::Read {
        queue: b"orders",
        from: ringraft::ids::Index::ZERO,
        limit: 10,
        bytes_max: 1000,
    };
    let ticket = client
        .query(GroupId(0), Consistency::Linearizable, Bytes::from(question.encode()))
        .unwrap();
    let answer = ticket.wait(LIMIT).unwrap();
    let read = ReadReply::decode(&answer.bytes).unwrap();
    let values: Vec<_> = read.events.iter().map(|event| event.value.to_vec()).collect();
    assert_eq!(values, [b"one".to_vec(), b"two".to_vec()]);
    assert!(matches!(client.submit(GroupId(0), BlockBuilder::default()), Err(RequestError::Empty)));
    drop(client);
    cluster.stop().unwrap();
}
