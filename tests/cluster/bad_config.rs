//! What is wrong with a configuration is said in one line, with how to mend it, before anything is
//! written.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::{DEFAULT, Spec, free_port, node_toml, scratch};
use crate::process::{PATIENCE, Process, eventually, serve};

/// A node's file in a directory of its own, and what is beside it.
struct Stage {
    dir: tempfile::TempDir,
    text: String,
    peer: u16,
}

impl Stage {
    fn new() -> Self {
        let dir = scratch();
        let ports: Vec<_> = (0..3).map(|_| (free_port(), free_port())).collect();
        let data_dir = dir.path().join("data");
        let text = node_toml(1, &data_dir, &Spec::default(), DEFAULT, &ports);
        Self { dir, text, peer: ports[0].0 }
    }

    fn replace(mut self, old: &str, new: &str) -> Self {
        assert!(self.text.contains(old), "{old} is not in the file");
        self.text = self.text.replace(old, new);
        self
    }

    fn config(&self) -> PathBuf {
        let path = self.dir.path().join("node.toml");
        std::fs::write(&path, &self.text).unwrap();
        path
    }

    fn is_refused(&self, words: &[&str]) {
        self.command_is_refused(serve(&self.config()), words);
    }

    /// Code 2, one line with these words, and not one byte changed.
    fn command_is_refused(&self, command: Command, words: &[&str]) {
        self.config();
        let before = contents(self.dir.path());
        let mut process = Process::spawn(command);
        let status = process.wait();
        let lines = process.lines();
        assert_eq!(status.code(), Some(2), "{lines:#?}");
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].starts_with("error: "), "{lines:#?}");
        for word in words {
            assert!(lines[0].contains(word), "{word:?} is missing: {}", lines[0]);
        }
        assert!(contents(self.dir.path()) == before, "something was written");
    }
}

/// Every file below, with what is in it; directories have nothing in them.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
            found.insert(path, Vec::new());
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

#[test]
fn a_heartbeat_that_is_not_below_half_of_the_election_timeout() {
    let stage = Stage::new().replace("heartbeat_ms = 50", "heartbeat_ms = 75");
    stage.is_refused(&["heartbeat_ms = 75", "election"]);
}

#[test]
fn an_even_number_of_voters() {
    let mut stage = Stage::new();
    stage.text += "[[cluster.nodes]]\nid = 4\npeer = \"127.0.0.1:1\"\nclient = \"127.0.0.1:2\"\n";
    stage.is_refused(&["cluster.nodes", "4", "allow_even_voters"]);
}

#[test]
fn no_voters_at_all() {
    let mut stage = Stage::new().replace("id = \"stories\"", "id = \"stories\"\nnodes = []");
    let nodes = stage.text.find("[[cluster.nodes]]").unwrap();
    stage.text.truncate(nodes);
    stage.is_refused(&["cluster.nodes", "zero voters", "list 1, 3 or 5 nodes"]);
}

#[test]
fn an_unknown_key() {
    let stage = Stage::new().replace("segment_mib = 4", "segment_mb = 4");
    stage.is_refused(&["unknown key `segment_mb`", "did you mean `segment_mib`?"]);
}

#[test]
fn a_missing_directory() {
    let stage = Stage::new().replace("/data\"", "/no/such/place/data\"");
    stage.is_refused(&["data_dir", "missing directory", "/no/such/place", "create it"]);
}

#[test]
fn a_missing_file() {
    let stage = Stage::new();
    let command = serve(&stage.dir.path().join("nothing.toml"));
    stage.command_is_refused(command, &["nothing.toml", "cannot be read", "check the path"]);
}

#[test]
fn a_port_in_use() {
    let stage = Stage::new();
    let address = format!("127.0.0.1:{}", stage.peer);
    let _taken = TcpListener::bind(&address).unwrap();
    stage.is_refused(&["cannot listen on", &address, "for peers", "free the port"]);
}

#[test]
fn an_admin_port_in_use() {
    let address = format!("127.0.0.1:{}", free_port());
    let stage = Stage::new().replace("data_dir =", &format!("admin = {address:?}\ndata_dir ="));
    let _taken = TcpListener::bind(&address).unwrap();
    stage.is_refused(&["cannot listen on", &address, "for operators", "free the port"]);
}

#[test]
fn too_little_locked_memory() {
    let stage = Stage::new();
    let config = stage.config();
    let mut command = Command::new("sh");
    // The shell lowers its own limit, and becomes the node.
    command.args(["-c", "ulimit -l 64; exec \"$0\" serve --config \"$1\""]);
    command.arg(env!("CARGO_BIN_EXE_ringraft")).arg(config);
    stage.command_is_refused(command, &["locked memory", "64 KiB allowed", "ulimit -l 4096"]);
}

#[test]
fn the_directory_of_another_node() {
    let stage = Stage::new();
    let mut first = Process::spawn(serve(&stage.config()));
    eventually("the node has started", PATIENCE, || first.said(&["node started"]).then_some(()));
    first.kill();
    let other = stage.replace("id = 1\ndata_dir", "id = 2\ndata_dir");
    other.is_refused(&["boot", "node"]);
}
