//! What is fuzzed: every decoder that bytes from outside can reach, and what stands behind it. Shared
//! by the test `fuzz`, which makes its own inputs, and by the targets of `cargo fuzz`.
//!
//! An input begins with a byte that says what is to be *repaired* before the decoder sees the rest:
//! without true checksums nearly everything would end at the first check.

pub mod boot;
pub mod codec;
pub mod log;
pub mod members;
pub mod node;
pub mod repair;
pub mod rng;
pub mod store;

/// What became of one call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    /// Inputs of the decoder that it was.
    pub inputs: u64,
    /// Those that the decoder took for well formed: what stands behind it saw them.
    pub taken: u64,
}

impl Tried {
    pub fn one(taken: bool) -> Self {
        Self { inputs: 1, taken: u64::from(taken) }
    }

    pub fn add(&mut self, taken: bool) {
        self.inputs += 1;
        self.taken += u64::from(taken);
    }
}

/// One decoder.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// Gives an input to the decoder, which must not panic.
    pub run: fn(&[u8]) -> Tried,
    /// Well-formed inputs, without the byte that says what to repair. None: any bytes are good.
    pub samples: fn() -> Vec<Vec<u8>>,
    /// More than one: the input is a row of so many parts for one receiver (see [`parts`]).
    pub parts: usize,
    /// Whether each part begins with a byte that says what to repair.
    pub has_mode: bool,
    /// Most memory that one input of `n` bytes may take, bytes.
    pub memory: fn(u64) -> u64,
    /// Inputs of the decoder in the test's run.
    pub inputs: u64,
}

/// A decoder without state keeps to its input: values borrow or take a few times its size.
fn of_input(bytes: u64) -> u64 {
    16 * bytes + (16 << 10)
}

/// What has a state may in addition use as much as one frame.
fn of_frame(bytes: u64) -> u64 {
    of_input(bytes) + ringraft::wire::frame::FRAME_BYTES_MAX as u64
}

const fn target(
    name: &'static str,
    run: fn(&[u8]) -> Tried,
    samples: fn() -> Vec<Vec<u8>>,
    inputs: u64,
) -> Target {
    Target { name, run, samples, parts: 1, has_mode: true, memory: of_input, inputs }
}

/// Parts of an input for a receiver with a state.
pub const PARTS: usize = 32;

#[rustfmt::skip]
pub static ALL: [Target; 13] = [
    target("frame", codec::frame, codec::frame_samples, 4_000_000),
    target("hello", codec::hello, codec::hello_samples, 1_500_000),
    target("block", codec::block, codec::block_samples, 1_500_000),
    Target { has_mode: false, ..target("reply", store::reply, store::reply_samples, 1_500_000) },
    target("boot", boot::boot, boot::samples, 300_000),
    target("members", members::members, members::member_samples, 500_000),
    Target { memory: of_frame, ..target("snapshot", members::snapshot, members::snapshot_samples, 300_000) },
    Target { memory: of_frame, parts: PARTS, ..target("admin", node::admin, node::admin_samples, 500_000) },
    Target { memory: of_frame, ..target("log", log::log, Vec::new, 1_000_000) },
    Target { has_mode: false, memory: of_frame, parts: PARTS, ..target("store", store::store, store::samples, 2_000_000) },
    Target { memory: of_frame, parts: PARTS, ..target("client", node::client, node::client_samples, 2_000_000) },
    Target { memory: of_frame, parts: PARTS, ..target("peer", node::peer, node::peer_samples, 3_000_000) },
    Target { memory: of_frame, parts: PARTS, ..target("lost", node::lost, node::peer_samples, 1_000_000) },
];

/// The target of that name.
///
/// # Panics
/// When there is none.
pub fn find(name: &str) -> &'static Target {
    ALL.iter().find(|target| target.name == name).expect("the name of a target")
}

/// Cuts an input at the lengths (`u16`, little-endian) that it names.
pub fn parts(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (size, rest) = bytes.split_first_chunk()?;
        let (part, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*size) as usize));
        bytes = rest;
        Some(part)
    })
}

/// Adds a part to an input.
pub fn push_part(input: &mut Vec<u8>, part: &[u8]) {
    let part = &part[..part.len().min(u16::MAX as usize)];
    input.extend_from_slice(&(part.len() as u16).to_le_bytes());
    input.extend_from_slice(part);
}
