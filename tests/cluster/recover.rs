//! `ringraft recover`: what nobody can give back is given up by an operator's word, and by nothing else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ringraft::block::{BlockBuilder, Command, CommandKind};
use ringraft::client::ClientError;
use ringraft::client::handle::{Client, RequestError};
use ringraft::ids::GroupId;
use ringraft::wire::client::{Committed, Refused};
use tempfile::TempDir;

use crate::check::verify;
use crate::cluster::{Cluster, DEFAULT, Spec, free_port, node_toml, scratch};
use crate::load::{Load, STEADY};
use crate::members::{join, voters};
use crate::process::{PATIENCE, Process, eventually, ringraft, serve};
use crate::recovering::damage;

/// A cluster of one node.
struct Alone {
    dir: TempDir,
    config: PathBuf,
    client_port: u16,
    process: Option<Process>,
}

impl Alone {
    fn new() -> Self {
        let (dir, ports) = (scratch(), [(free_port(), free_port())]);
        let data = dir.path().join("data");
        let config = dir.path().join("node.toml");
        let text = node_toml(1, &data, &Spec::default(), DEFAULT, &ports);
        std::fs::write(&config, text).unwrap();
        Self { dir, config, client_port: ports[0].1, process: None }
    }

    fn start(&mut self) {
        self.process = Some(Process::spawn(serve(&self.config)));
    }

    fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.signal(libc::SIGTERM);
        assert!(process.wait().success(), "{:#?}", process.lines());
    }

    /// It does not start, and says these words.
    fn is_refused(&mut self, words: &[&str]) {
        self.start();
        let mut process = self.process.take().expect("just started");
        let status = process.wait();
        assert_eq!(status.code(), Some(1), "{:#?}", process.lines());
        assert!(process.said(words), "{:#?}", process.lines());
    }

    /// `ringraft recover` on it: exit code, standard output and error.
    fn recover(&self, more: &[&str]) -> (Option<i32>, String, String) {
        run_recover(&self.config, more)
    }

    fn client(&self) -> Client {
        Client::connect([format!("127.0.0.1:{}", self.client_port)]).unwrap()
    }
}

fn run_recover(config: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let mut command = ringraft(&["recover", "--config"]);
    let output = command.arg(config).args(more).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn write(client: &Client, number: u64) -> Result<Committed, RequestError> {
    let mut block = BlockBuilder::default();
    let value = number.to_le_bytes().repeat(20);
    let (kind, key) = (CommandKind::SetEvent as u8, b"orders/new".as_slice());
    let command = Command { kind, flags: 0, timestamp: number, key, value: &value };
    block.push(&command).unwrap();
    client.submit(GroupId(0), block)?.wait(PATIENCE)
}

fn has_word(text: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is missing:\n{text}"));
}

#[test]
fn a_damaged_node_that_is_alone_runs_again_when_its_loss_is_accepted_and_not_before() {
    let mut node = Alone::new();
    node.start();
    let client = node.client();
    for number in 1..=200 {
        assert_eq!(write(&client, number).unwrap().epoch, 0);
    }
    let (code, _, error) = node.recover(&["--accept-loss"]);
    assert_eq!(code, Some(2));
    has_word(&error, &["in use", "stop it first"]);
    node.stop();
    let (code, text, error) = node.recover(&["--accept-loss"]);
    assert_eq!(code, Some(1), "{text}{error}");
    has_word(&error, &["nothing is lost"]);

    damage(node.dir.path().join("data/shard-000"));
    node.is_refused(&["damaged below its durable mark", "ringraft recover"]);
    let (code, text, _) = node.recover(&[]);
    assert_eq!(code, Some(0), "{text}");
    has_word(&text, &["DAMAGED", "entries lie behind the damage", "--accept-loss"]);
    node.is_refused(&["damaged below its durable mark"]);

    let (code, text, error) = node.recover(&["--accept-loss"]);
    assert_eq!(code, Some(0), "{text}{error}");
    has_word(&text, &["POSSIBLE DATA LOSS", "group 0: epoch 1 begins at"]);
    node.start();
    // It thinks that all 200 are there.
    let told = eventually("the session hears of it", Duration::from_secs(60), || {
        write(&client, 201).err()
    });
    let changed = ClientError::Refused(Refused::SessionEpochChanged);
    assert_eq!(told, RequestError::Client(changed));
    let again = node.client();
    let first = write(&again, 202).unwrap();
    assert_eq!(first.epoch, 1);
    assert!(first.first.0 < 200, "indices are used again: {first:?}");
    drop((client, again));
    node.stop();
    node.start();
    // A first block that meets the election is of unknown fate, since a session has ended here.
    let later =
        eventually("it leads again", Duration::from_secs(60), || write(&node.client(), 203).ok());
    assert_eq!(later.epoch, 1, "it stays so");
    let (code, ..) = node.recover(&[]);
    assert_eq!(code, Some(2));
    node.stop();
}

/// n1 was alone and has taken n2 and n3 in; its file never named them. Its log rots back to before that:
/// by its own word it is everybody, but the two go on as a majority.
#[test]
fn a_damaged_node_that_was_alone_once_asks_for_those_it_has_taken_in() {
    let mut cluster = Cluster::start(Spec { voters: 1, ..Spec::default() });
    let load = Load::start(&cluster, STEADY);
    load.wait_for(500);
    let ledger = load.finish();
    for _ in 0..2 {
        let node = cluster.plan_node();
        cluster.start_node(node);
        join(&cluster, node);
    }
    eventually("both vote", PATIENCE, || (voters(&cluster, "0") == [1, 2, 3]).then_some(()));
    cluster.kill(0);
    damage(cluster.data_dir(0).join("shard-000"));
    let recover = |more: &[&str]| run_recover(&cluster.config_path(0), more);
    for (more, word) in [
        (&["--accept-loss"][..], "node 2,3 is a member"),
        (&["--lost", "3", "--accept-loss"], "node 2 is a member"),
    ] {
        let (code, text, error) = recover(more);
        assert_eq!(code, Some(1), "{text}{error}");
        has_word(&error, &[word, "cluster.nodes"]);
    }
    let mut refused = Process::spawn(serve(&cluster.config_path(0)));
    assert_eq!(refused.wait().code(), Some(1));
    assert!(refused.said(&["add them to cluster.nodes", "--lost 2,3"]), "{:#?}", refused.lines());
    // Its file names them: it gets everything back from them.
    let others = [1, 2].map(|node| {
        let (peer, client) = (cluster.peer_address(node), cluster.client_address(node));
        let id = node + 1;
        format!("[[cluster.nodes]]\nid = {id}\npeer = \"{peer}\"\nclient = \"{client}\"\n")
    });
    let file = cluster.config_path(0);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text + &others.concat()).unwrap();
    cluster.start_node(0);
    cluster.wait_for_catch_up(0);
    verify(&cluster, &[&ledger]);
}

/// n2 and n3 are gone with their disks. What n1 holds is the cluster from here on.
#[test]
fn a_majority_whose_disks_are_gone_for_good_is_gone_on_without_by_an_operators_word() {
    let mut cluster = Cluster::start(Spec::default());
    let load = Load::start(&cluster, STEADY);
    load.wait_for(200);
    let ledger = load.finish();
    cluster.wait_for_catch_up(0);
    (0..3).for_each(|node| cluster.kill(node));
    for node in [1, 2] {
        std::fs::remove_dir_all(cluster.data_dir(node)).unwrap();
    }
    let recover = |more: &[&str]| run_recover(&cluster.config_path(0), more);
    let refused = [
        (&["--accept-loss"][..], Some(1), "can give back what this one lacks"),
        (&["--lost", "2", "--accept-loss"], Some(1), "2 of 3 voters remain"),
        (&["--lost", "1,2", "--accept-loss"], Some(2), "is the one that is to go on"),
        (&["--lost", "7", "--accept-loss"], Some(2), "not a voter"),
    ];
    for (more, code, word) in refused {
        let (ended, text, error) = recover(more);
        assert_eq!(ended, code, "{text}{error}");
        has_word(&error, &[word]);
    }
    let (code, text, _) = recover(&["--lost", "2,3"]);
    assert_eq!(code, Some(0), "{text}");
    has_word(&text, &["nothing was changed", "--accept-loss"]);
    let (code, text, error) = recover(&["--lost", "2,3", "--accept-loss"]);
    assert_eq!(code, Some(0), "{text}{error}");
    has_word(&text, &["epoch 1 begins", "without node 2, 3"]);

    cluster.start_node(0);
    cluster.wait_for_leaders();
    let client = Client::connect([cluster.client_address(0)]).unwrap();
    assert_eq!(write(&client, 1).unwrap().epoch, 1);
    verify(&cluster, &[&ledger]);
    // One of the lost comes back under its old name, on a new disk: it is nobody.
    cluster.start_node(1);
    eventually("it knocks", PATIENCE, || cluster.node(0).said(&["refused"]).then_some(()));
    assert_eq!(write(&client, 2).unwrap().epoch, 1);
    assert_eq!(cluster.shard_status(0).unwrap().groups[0].role, "leader");
}
