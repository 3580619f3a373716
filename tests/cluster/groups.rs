//! Groups are made and deleted while clients write, by the commands that an operator has.

use bytes::Bytes;
use ringraft::block::{BlockBuilder, Command, CommandKind};
use ringraft::client::handle::{Client, RequestError};
use ringraft::ids::{GroupId, Index};
use ringraft::machine::events::query::{Query, ReadReply};
use ringraft::wire::client::{Consistency, Refused};
use serde_json::Value;

use crate::check::verify;
use crate::cluster::{Cluster, Spec};
use crate::load::{Load, STEADY};
use crate::members::voters;
use crate::process::{PATIENCE, eventually, tell};

/// `ringraft group` with these arguments; what it said, or its exit code and complaint.
fn group(cluster: &Cluster, arguments: &[&str]) -> Result<String, (i32, String)> {
    cluster.operate("group", arguments)
}

/// Numbers of the groups that there are, and of those that have ended.
fn list(cluster: &Cluster) -> (Vec<u64>, Vec<u64>) {
    let json = group(cluster, &["list", "--output", "json"]).expect("somebody leads");
    let all: Value = serde_json::from_str(&json).unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    let rows = all["groups"].as_array().unwrap();
    let ended = all["ended"].as_array().unwrap();
    (rows.iter().map(|row| number(&row["group"])).collect(), ended.iter().map(number).collect())
}

fn write(client: &Client, group: u32, value: &str) -> Result<(), RequestError> {
    let mut block = BlockBuilder::default();
    let kind = CommandKind::SetEvent as u8;
    let (key, value) = (&b"story"[..], value.as_bytes());
    block.push(&Command { kind, flags: 0, timestamp: 1, key, value }).unwrap();
    client.submit(GroupId(group), block)?.wait(PATIENCE).map(drop)
}

fn read(client: &Client, group: u32) -> Vec<String> {
    let (queue, from) = (&b"story"[..], Index::ZERO);
    let question = Query::Read { queue, from, limit: 100, bytes_max: 10_000 };
    let question = Bytes::from(question.encode());
    let ticket = client.query(GroupId(group), Consistency::Linearizable, question).unwrap();
    let reply = ticket.wait(PATIENCE).unwrap();
    let events = ReadReply::decode(&reply.bytes).unwrap().events;
    events.iter().map(|event| String::from_utf8_lossy(event.value).into_owned()).collect()
}

fn is_refused(result: Result<(), RequestError>) -> bool {
    let text = format!("{result:?}");
    result.is_err() && text.contains(&format!("{:?}", Refused::NoGroup))
}

#[test]
fn groups_come_and_go_under_load_and_what_is_gone_stays_gone() {
    let mut cluster = Cluster::start(Spec { groups: 2, shards: 2, ..Spec::default() });
    let load = Load::start(&cluster, STEADY);
    load.wait_for(300);
    let addresses: Vec<_> = (0..3).map(|node| cluster.client_address(node)).collect();
    let client = Client::connect(addresses.clone()).unwrap();
    let would = group(&cluster, &["create", "--count", "3", "--dry-run"]).unwrap();
    assert!(would.contains("2 3 4") && list(&cluster).0 == [0, 1], "{would}");
    tell(&group(&cluster, &["create", "--count", "3"]).unwrap());
    assert_eq!(list(&cluster), (vec![0, 1, 2, 3, 4], vec![]));
    assert!(group(&cluster, &["create", "--id", "3"]).unwrap().contains('3'), "it is there");
    for made in 2..5 {
        write(&client, made, "before").unwrap();
    }
    // A killed node has the groups again, and what was written without it.
    let (leader, _) = cluster.leader();
    cluster.kill(leader);
    for made in 2..5 {
        write(&client, made, "without one").unwrap();
    }
    cluster.start_node(leader);
    cluster.wait_for_catch_up(leader);
    tell(&group(&cluster, &["delete", "3"]).unwrap());
    assert_eq!(list(&cluster), (vec![0, 1, 2, 4], vec![3]));
    load.wait_for(300);
    let ledger = load.finish();
    // All of them, at once.
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.start_node(node));
    cluster.wait_for_leaders();
    eventually("the others lead again", PATIENCE, || {
        cluster.leader_of(2).and(cluster.leader_of(4))
    });
    assert_eq!(list(&cluster), (vec![0, 1, 2, 4], vec![3]));
    for made in [2, 4] {
        write(&client, made, "after").unwrap();
        assert_eq!(read(&client, made), ["before", "without one", "after"]);
    }
    assert!(is_refused(write(&client, 3, "too late")), "a client that does not know");
    let late = Client::connect(addresses).unwrap();
    assert!(is_refused(write(&late, 3, "too late")), "nor one that has just come");
    let (code, why) = group(&cluster, &["create", "--id", "3"]).unwrap_err();
    assert!(code == 1 && why.contains("not used again"), "{code}: {why}");
    let (code, why) = group(&cluster, &["delete", "1"]).unwrap_err();
    assert!(code == 1 && why.contains("keeps the list"), "{code}: {why}");
    assert_eq!(verify(&cluster, &[&ledger]).unknown, 0, "the load never noticed");
    // Who is in a group that was made leaves the shard's first group last.
    let leave =
        |more: &[&str]| cluster.operate("member", &[&["remove", "--node", "3"], more].concat());
    let (code, why) = leave(&["--group", "0"]).unwrap_err();
    assert!(code == 1 && why.contains("still in group 2"), "{code}: {why}");
    let (code, why) = leave(&["--group", "0", "--dry-run"]).unwrap_err();
    assert!(code == 1 && why.contains("still in group 2"), "{code}: {why}");
    let would = leave(&["--dry-run"]).unwrap();
    assert!(would.contains("4 groups: 3 voters"), "the first groups go last: {would}");
    assert_eq!(voters(&cluster, "2"), [1, 2, 3]);
    tell(&leave(&[]).unwrap());
    for group in ["0", "1", "2", "4"] {
        assert_eq!(voters(&cluster, group), [1, 2]);
    }
}
