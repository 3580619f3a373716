//! Bytes on a socket, without a client library that would know better.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use bytes::BytesMut;
use ringraft::block::Block;
use ringraft::ids::Incarnation;
use ringraft::wire::client::{AnswerEntry, Committed, Refused};
use ringraft::wire::frame::{Frame, FrameKind, FrameWriter};
use ringraft::wire::hello::{Hello, HelloReply, Role};

use crate::cluster::Cluster;
use crate::process::PATIENCE;

/// A connection with nothing said yet. Reads end after a while.
pub fn open(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// What a client of this cluster says first.
pub fn client_hello(cluster: &Cluster, node: usize) -> Hello {
    Hello {
        role: Role::Client,
        cluster: cluster.config(node).cluster.cluster_id(),
        disk: 0,
        config: 0,
        node: None,
        incarnation: Incarnation::ZERO,
        to: None,
        shard: 0,
        first: 0,
    }
}

pub fn hello_bytes(hello: &Hello) -> Vec<u8> {
    let mut bytes = Vec::new();
    hello.write(&mut bytes);
    bytes
}

/// The next frame; `None` when the other side has closed.
pub fn read_frame(stream: &mut TcpStream, inbox: &mut BytesMut) -> Option<Frame> {
    loop {
        if let Some(frame) = Frame::take(inbox).unwrap() {
            return Some(frame);
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(count) => inbox.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("neither an answer nor an end: {error}"),
        }
    }
}

/// A client that says exactly what it is told to.
pub struct RawClient {
    pub stream: TcpStream,
    inbox: BytesMut,
}

impl RawClient {
    /// Connected to one node (from 0), and welcome.
    pub fn connect(cluster: &Cluster, node: usize) -> Self {
        let mut stream = open(&cluster.client_address(node));
        stream.write_all(&hello_bytes(&client_hello(cluster, node))).unwrap();
        let mut inbox = BytesMut::new();
        let frame = read_frame(&mut stream, &mut inbox).expect("an answer to the hello");
        assert_eq!(HelloReply::read(&frame).unwrap().refusal, None);
        Self { stream, inbox }
    }

    /// Sends a block, once.
    pub fn submit(&mut self, block: &Block) {
        self.stream.write_all(&submit_bytes(block)).unwrap();
    }

    /// The next frame.
    pub fn frame(&mut self) -> Frame {
        read_frame(&mut self.stream, &mut self.inbox).expect("an answer")
    }

    /// The next answer to a block.
    pub fn answer(&mut self) -> Result<Committed, Refused> {
        let frame = read_frame(&mut self.stream, &mut self.inbox).expect("an answer to the block");
        assert_eq!(frame.kind, FrameKind::Answers);
        let entry = frame.entries::<AnswerEntry>().unwrap().next().unwrap();
        entry.decode().unwrap().result
    }
}

/// A frame with one block.
pub fn submit_bytes(block: &Block) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = FrameWriter::begin(&mut bytes);
    writer.block(block);
    writer.finish(FrameKind::Submit, 1, 0);
    bytes
}

/// A frame's checksum made true again after its bytes were changed.
pub fn reseal(mut frame: Vec<u8>) -> Vec<u8> {
    let control = u32::from_le_bytes(frame[8..12].try_into().unwrap()) as usize;
    let sum = crc32c(&frame[4..32 + control]);
    frame[..4].copy_from_slice(&sum.to_le_bytes());
    frame
}

/// CRC32C by its definition, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8)
            .fold(sum ^ u32::from(*byte), |s, _| (s >> 1) ^ (0x82f6_3b78 & (s & 1).wrapping_neg()))
    })
}
