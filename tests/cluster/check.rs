//! The one check behind every story: what was acknowledged is there, once, in its place, on every
//! node; what was not asked for is not there.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringraft::client::driver::Driver;
use ringraft::client::{ClientError, QueryTarget, SubmitError};
use ringraft::ids::{GroupId, Index, NodeId};
use ringraft::machine::events::query::{Query, ReadReply};
use ringraft::runtime::ring::Waker;
use ringraft::wire::client::{Consistency, Refused};

use crate::cluster::Cluster;
use crate::load::{Fate, Ledger, QUEUE, new_session};
use crate::process::{PATIENCE, eventually};

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verified {
    pub acked: u64,
    /// Blocks whose fate the client does not know.
    pub unknown: u64,
    pub events: u64,
}

/// One stored command: (session, number).
type Name = (u64, u64);

/// Waits until the running nodes agree and compares each of them with the books of all loads that
/// ever wrote to the cluster.
pub fn verify(cluster: &Cluster, ledgers: &[&Ledger]) -> Verified {
    cluster.wait_until_equal();
    let mut reader = Reader::new(cluster);
    let mut verified = Verified::default();
    for group in (0..cluster.spec().groups).map(GroupId) {
        let nodes = cluster.running();
        let first = reader.read_all(nodes[0], group);
        for &node in &nodes[1..] {
            assert!(first == reader.read_all(node, group), "nodes differ in {group:?}");
        }
        let found = by_name(&first, group);
        verified.events += found.len() as u64;
        let known: u64 =
            ledgers.iter().map(|ledger| compare(ledger, group, &found, &mut verified)).sum();
        assert_eq!(known, found.len() as u64, "{group:?} has commands that nobody wrote");
    }
    verified
}

fn by_name(events: &[(Index, Name)], group: GroupId) -> BTreeMap<Name, Index> {
    let mut found = BTreeMap::new();
    for &(index, name) in events {
        if let Some(before) = found.insert(name, index) {
            panic!("{name:?} was applied twice in {group:?}: at {before:?} and at {index:?}");
        }
    }
    found
}

/// How many of the book's commands are there.
fn compare(
    ledger: &Ledger,
    group: GroupId,
    found: &BTreeMap<Name, Index>,
    verified: &mut Verified,
) -> u64 {
    let mut present = 0;
    for entry in ledger.entries.iter().filter(|entry| entry.group == group) {
        let at = |i: u64| found.get(&(ledger.session, entry.id + i)).copied();
        let there = (0..entry.count).filter(|&i| at(i).is_some()).count() as u64;
        match entry.fate {
            Fate::Acked { first, .. } => {
                for i in 0..entry.count {
                    assert_eq!(at(i), Some(Index(first.0 + i)), "acknowledged: {entry:?}");
                }
                verified.acked += entry.count;
            }
            Fate::Unknown(_) => {
                assert!(there == 0 || there == entry.count, "torn: {entry:?} has {there}");
                verified.unknown += 1;
            }
            Fate::Open => panic!("never completed: {entry:?}"),
        }
        present += there;
    }
    present
}

/// After a loss that may take acknowledged commands: what the nodes still have is equal on all of
/// them and is a prefix of what was acknowledged. Takes the rest out of the books and says how many
/// commands it was. The loads have ended before the loss, and all of their blocks were acknowledged.
pub fn forget_lost_suffix(cluster: &Cluster, ledgers: &mut [Ledger]) -> u64 {
    cluster.wait_until_equal();
    let mut reader = Reader::new(cluster);
    let mut lost = 0;
    for group in (0..cluster.spec().groups).map(GroupId) {
        let found = by_name(&reader.read_all(cluster.running()[0], group), group);
        let end = found.values().max().copied().unwrap_or_default();
        for ledger in ledgers.iter_mut() {
            let session = ledger.session;
            ledger.entries.retain(|entry| {
                let Fate::Acked { first, .. } = entry.fate else { panic!("{entry:?}") };
                let there = found.contains_key(&(session, entry.id));
                let gone = entry.group == group && !there;
                assert!(!gone || first > end, "a hole before {end:?}: {entry:?}");
                lost += u64::from(gone) * entry.count;
                !gone
            });
        }
    }
    verify(cluster, &ledgers.iter().collect::<Vec<_>>());
    lost
}

/// Asks state machines.
pub struct Reader {
    driver: Driver,
}

impl Reader {
    pub fn new(cluster: &Cluster) -> Self {
        let configs = vec![cluster.client(new_session())];
        Self { driver: Driver::new(configs, Waker::new().unwrap()).unwrap() }
    }

    /// Every event of a group's queue as one node (from 0) has it.
    pub fn read_all(&mut self, node: usize, group: GroupId) -> Vec<(Index, Name)> {
        let (mut events, mut from) = (Vec::new(), Index(0));
        loop {
            let query = Query::Read { queue: QUEUE, from, limit: 100_000, bytes_max: 1 << 20 };
            let target = QueryTarget::Node(NodeId(node as u32 + 1));
            let bytes = match self.ask(group, target, query.encode()) {
                Ok(bytes) => bytes,
                // A queue that nobody has written to does not exist yet.
                Err(ClientError::Refused(Refused::BadRequest)) if events.is_empty() => {
                    return events;
                }
                Err(error) => panic!("node {} does not answer: {error}", node + 1),
            };
            let reply = ReadReply::decode(&bytes).unwrap();
            assert_eq!(reply.trimmed_through, Index::ZERO, "retention must not hide anything");
            if reply.events.is_empty() {
                return events;
            }
            events.extend(reply.events.iter().map(|event| (event.index, name_of(event.value))));
            from = reply.next;
        }
    }

    fn ask(
        &mut self,
        group: GroupId,
        target: QueryTarget,
        question: Vec<u8>,
    ) -> Result<Bytes, ClientError> {
        let question = Bytes::from(question);
        eventually("a node takes the question", PATIENCE, || {
            self.turn();
            let now = self.driver.now();
            match self.driver.core(0).query(
                now,
                group,
                target,
                Consistency::Stale,
                question.clone(),
                0,
            ) {
                Err(SubmitError::NotReady | SubmitError::NoNode(_)) => None,
                other => {
                    other.unwrap();
                    Some(())
                }
            }
        });
        eventually("a node answers", 2 * PATIENCE, || {
            self.turn();
            self.driver.take_replies().next().map(|(_, reply)| reply.result)
        })
    }

    fn turn(&mut self) {
        self.driver.turn().unwrap();
        let pause = self.driver.now().plus(1000);
        self.driver.wait(pause).unwrap();
        self.driver.turn().unwrap();
    }
}

fn name_of(value: &[u8]) -> Name {
    let number = |at: usize| u64::from_le_bytes(value[at..at + 8].try_into().unwrap());
    (number(8), number(0))
}
