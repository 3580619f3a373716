//! Wrong bytes on both ports, while a cluster works: each connection gets a logged reason and an
//! end, and the cluster keeps its leader and goes on.

use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::BytesMut;
use ringraft::ids::{GroupId, Incarnation, NodeId};
use ringraft::wire::hello::{HELLO_BYTES, Hello, HelloReply, Role};

use crate::check::verify;
use crate::cluster::{Cluster, PATIENT, Spec};
use crate::load::{Load, STEADY, block_of};
use crate::process::{PATIENCE, eventually};
use crate::raw::{RawClient, client_hello, hello_bytes, open, read_frame, reseal, submit_bytes};

/// A working cluster that is watched: what happened to it is checked at the end.
struct Watched {
    cluster: Cluster,
    load: Load,
    leader: (usize, u64),
    /// Where the wrong bytes go.
    target: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Peer,
    Client,
}

const BOTH: [Port; 2] = [Port::Peer, Port::Client];

impl Watched {
    /// The leader has the most to lose.
    fn start() -> Self {
        let cluster = Cluster::start(Spec { timing: PATIENT, ..Spec::default() });
        let load = Load::start(&cluster, STEADY);
        load.wait_for(50);
        let leader = cluster.leader();
        Self { cluster, load, leader, target: leader.0 }
    }

    fn open(&self, port: Port) -> TcpStream {
        match port {
            Port::Peer => open(&self.cluster.peer_address(self.target)),
            Port::Client => open(&self.cluster.client_address(self.target)),
        }
    }

    /// A hello that would be welcome on this port.
    fn good_hello(&self, port: Port) -> Hello {
        let hello = client_hello(&self.cluster, self.target);
        match port {
            Port::Client => hello,
            Port::Peer => Hello {
                role: Role::Peer,
                config: self.cluster.config(self.target).cluster.hash(),
                node: Some(NodeId((self.target as u32 + 1) % 3 + 1)),
                incarnation: Incarnation(1),
                disk: 1,
                ..hello
            },
        }
    }

    /// Sends these bytes on a new connection and expects its end, with these words in the log.
    fn is_closed(&mut self, port: Port, bytes: &[u8], words: &[&str]) {
        let stream = self.open(port);
        self.stream_is_closed(stream, bytes, words);
    }

    fn stream_is_closed(&mut self, mut stream: TcpStream, bytes: &[u8], words: &[&str]) {
        let before = self.count(words);
        // The node may close in the middle of it.
        let _ = stream.write_all(bytes);
        read_to_end(&mut stream);
        self.is_logged(words, before);
    }

    fn is_logged(&mut self, words: &[&str], before: usize) {
        eventually(&format!("the log says {words:?}"), PATIENCE, || {
            (self.count(words) > before).then_some(())
        });
    }

    fn count(&mut self, words: &[&str]) -> usize {
        let lines = self.cluster.node(self.target).lines();
        lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    /// The node answers the hello and closes.
    fn is_refused(&mut self, port: Port, hello: &Hello, words: &[&str]) {
        let before = self.count(words);
        let mut stream = self.open(port);
        stream.write_all(&hello_bytes(hello)).unwrap();
        let mut inbox = BytesMut::new();
        let frame = read_frame(&mut stream, &mut inbox).expect("an answer to the hello");
        assert!(HelloReply::read(&frame).unwrap().refusal.is_some());
        read_to_end(&mut stream);
        self.is_logged(words, before);
    }

    /// Nothing has happened to the cluster.
    fn end(self) {
        self.load.wait_for(100);
        assert_eq!(self.cluster.leader(), self.leader, "the leader or its term has changed");
        verify(&self.cluster, &[&self.load.finish()]);
    }
}

/// Until the other side closes, in whatever way.
fn read_to_end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        let kind = error.kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionReset, "not closed: {error}");
    }
}

fn with_byte(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    bytes[at] = value;
    bytes
}

#[test]
fn bytes_that_are_no_handshake_get_a_reason_and_an_end() {
    let mut watched = Watched::start();
    for port in BOTH {
        let stranger = match port {
            Port::Peer => "stranger on the peer port",
            Port::Client => "stranger on the client port",
        };
        let hello = hello_bytes(&watched.good_hello(port));
        let garbage: Vec<u8> = (0..HELLO_BYTES).map(|i| (i * 37 + 11) as u8).collect();
        watched.is_closed(port, &garbage, &[stranger, "not a Ringraft handshake"]);
        watched.is_closed(
            port,
            b"GET / HTTP/1.1\r\nHost: ringraft.example\r\n\r\n",
            &[stranger, "not a Ringraft handshake"],
        );
        let mut oversized = hello.clone();
        oversized[4..8].copy_from_slice(&0xffff_fff8u32.to_le_bytes());
        watched.is_closed(port, &oversized, &[stranger, "frame size 4294967288"]);
        let wire = with_byte(hello.clone(), 14, 9);
        watched.is_closed(port, &wire, &[stranger, "wire version 9 is not supported"]);
        let protocol = reseal(with_byte(hello.clone(), 32 + 4, 77));
        watched.is_closed(port, &protocol, &[stranger, "protocol version 77"]);
        let flipped = with_byte(hello.clone(), 40, !hello[40]);
        watched.is_closed(port, &flipped, &[stranger, "checksum"]);
        half_a_frame(&mut watched, port, &hello[..HELLO_BYTES / 2], stranger);
    }
    watched.end();
}

/// Half a frame and then the end, or silence.
fn half_a_frame(watched: &mut Watched, port: Port, half: &[u8], link: &str) {
    let words = [link, "in the middle of a frame"];
    let before = watched.count(&words);
    let mut stream = watched.open(port);
    stream.write_all(half).unwrap();
    drop(stream);
    watched.is_logged(&words, before);
    watched.is_closed(port, half, &[link, "no handshake within 3 s"]);
}

#[test]
fn strangers_with_a_true_handshake_are_told_why_they_are_refused() {
    let mut watched = Watched::start();
    for port in BOTH {
        let good = watched.good_hello(port);
        let cluster = Hello { cluster: 77, ..good };
        watched.is_refused(port, &cluster, &["refused", "cluster id differs"]);
        let elsewhere = Hello { to: Some(NodeId(77)), ..good };
        watched.is_refused(port, &elsewhere, &["refused", "another node was expected"]);
        let shard = Hello { shard: 77, ..good };
        watched.is_refused(port, &shard, &["refused", "no such shard"]);
        let crossed =
            watched.good_hello(if port == Port::Peer { Port::Client } else { Port::Peer });
        watched.is_refused(port, &crossed, &["refused", "does not serve that role"]);
    }
    let good = watched.good_hello(Port::Peer);
    let nobody = Hello { node: Some(NodeId(77)), ..good };
    watched.is_refused(Port::Peer, &nobody, &["refused", "node=77", "another node was expected"]);
    let myself = Hello { node: Some(NodeId(watched.target as u32 + 1)), ..good };
    watched.is_refused(Port::Peer, &myself, &["refused", "another node was expected"]);
    let config = Hello { config: good.config ^ 1, ..good };
    watched.is_refused(Port::Peer, &config, &["refused", "cluster configuration differs"]);
    // The true name of a member, and not its disk.
    watched.is_refused(Port::Peer, &good, &["refused", "disk id differs"]);
    watched.end();
}

#[test]
fn a_client_that_sends_wrong_frames_after_its_handshake_is_closed() {
    let mut watched = Watched::start();
    let block = submit_bytes(&block_of(GroupId(0), 77, 1, 0, (0, 1), 16));
    let body = block.len() - 1;
    let cases: [(Vec<u8>, &str); 5] = [
        (vec![0xa5; 4096], "wire version"),
        (with_byte(block.clone(), body, 0xff), "body checksum"),
        (reseal(with_byte(block.clone(), 12, 3)), "not allowed here"),
        (reseal(with_byte(block.clone(), 12, 99)), "unknown frame kind 99"),
        (reseal(with_byte(block.clone(), 16, 0)), "bytes left after its last block"),
    ];
    for (bytes, reason) in cases {
        let client = RawClient::connect(&watched.cluster, watched.target);
        watched.stream_is_closed(client.stream, &bytes, &["connection closed", reason]);
    }
    let words = ["client", "in the middle of a frame"];
    let before = watched.count(&words);
    let mut client = RawClient::connect(&watched.cluster, watched.target);
    client.stream.write_all(&block[..block.len() / 2]).unwrap();
    drop(client);
    watched.is_logged(&words, before);
    let client = RawClient::connect(&watched.cluster, watched.target);
    let half = &block[..block.len() / 2];
    watched.stream_is_closed(client.stream, half, &["client", "half a frame, then nothing"]);
    watched.end();
}

/// The disk id that a node shows in its handshakes is no secret: this is about mistakes and broken
/// peers, not about burglars.
#[test]
fn a_peer_that_sends_wrong_frames_is_closed_and_its_node_stays_a_member() {
    let mut watched = Watched::start();
    let other = (watched.target + 1) % 3;
    let mut stream = open(&watched.cluster.client_address(other));
    stream.write_all(&hello_bytes(&client_hello(&watched.cluster, other))).unwrap();
    let frame = read_frame(&mut stream, &mut BytesMut::new()).unwrap();
    let disk = HelloReply::read(&frame).unwrap().disk;
    let node = format!("node {}", other + 1);
    let hello = Hello { disk, ..watched.good_hello(Port::Peer) };
    let client_frame = submit_bytes(&block_of(GroupId(0), 77, 1, 0, (0, 1), 16));
    let half = client_frame[..client_frame.len() / 2].to_vec();
    for (bytes, reason) in [
        (vec![0xa5; 4096], "wire version"),
        (client_frame, "not allowed here"),
        (half, "half a frame, then nothing"),
    ] {
        let mut stream = watched.open(Port::Peer);
        stream.write_all(&hello_bytes(&hello)).unwrap();
        let frame = read_frame(&mut stream, &mut BytesMut::new()).unwrap();
        assert_eq!(HelloReply::read(&frame).unwrap().refusal, None);
        watched.stream_is_closed(stream, &bytes, &["connection closed", &node, reason]);
    }
    watched.end();
}

#[test]
fn a_thousand_connections_that_say_nothing_are_closed_and_disturb_nobody() {
    let mut watched = Watched::start();
    let mut idle: Vec<TcpStream> = (0..1000).map(|i| watched.open(BOTH[i % 2])).collect();
    watched.load.wait_for(100);
    idle.iter_mut().for_each(read_to_end);
    // Lines are limited, and a flood's may all be of one port: one more of each shows both.
    let mut later = BOTH.map(|port| watched.open(port));
    later.iter_mut().for_each(read_to_end);
    watched.is_logged(&["stranger on the peer port", "no handshake within 3 s"], 0);
    watched.is_logged(&["stranger on the client port", "no handshake within 3 s"], 0);
    // And there is room for those who come with something to say.
    RawClient::connect(&watched.cluster, watched.target);
    watched.end();
}
