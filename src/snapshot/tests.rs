//! Stories about whole snapshots. The states here are plain bytes; what real ones hold is tested
//! beside them.

use proptest::prelude::*;

use super::*;
use crate::checksum::crc32c;
use crate::ids::{GroupId, Index, NodeId, Term};
use crate::machine::FrozenState;

/// Bytes that are given out in items of a certain size.
struct Plain {
    bytes: Vec<u8>,
    item: usize,
}

impl FrozenState for Plain {
    fn next_chunk(&mut self, into: &mut Vec<u8>, budget_bytes: usize) -> bool {
        let size = budget_bytes.next_multiple_of(self.item).min(self.bytes.len());
        into.extend(self.bytes.drain(..size));
        !self.bytes.is_empty()
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}

fn plain(bytes: &[u8], item: usize) -> Box<Plain> {
    Box::new(Plain { bytes: bytes.to_vec(), item })
}

fn nodes(ids: &[u32]) -> Vec<NodeId> {
    ids.iter().map(|&id| NodeId(id)).collect()
}

fn header() -> Header {
    Header {
        group: GroupId(3),
        epoch: 2,
        index: Index(10_000),
        term: Term(7),
        config_hash: 0x1234_5678_9abc_def0,
        membership: Membership {
            index: Index(9_000),
            voters: nodes(&[1, 2, 4]),
            outgoing: nodes(&[1, 2, 3]),
            learners: nodes(&[5]),
            learners_next: nodes(&[3]),
            ..Membership::default()
        },
    }
}

fn write(header: Header, sessions: &[u8], state: &[u8], budget: usize) -> Vec<u8> {
    let mut writer = SnapshotWriter::new(header, plain(sessions, 1), plain(state, 3));
    let mut bytes = Vec::new();
    while writer.next(&mut bytes, budget) {}
    assert!(!writer.next(&mut bytes, budget), "it stays complete");
    bytes
}

/// Header, sessions and state, if the bytes are a snapshot.
fn read(bytes: &[u8], piece: usize) -> Result<(Header, Vec<u8>, Vec<u8>), ReadError> {
    let (mut reader, mut sessions, mut state) = (SnapshotReader::new(), Vec::new(), Vec::new());
    for mut input in bytes.chunks(piece.max(1)) {
        while let Some(piece) = reader.next(&mut input)? {
            match piece {
                Piece::Header(_) | Piece::End => {}
                Piece::Sessions(bytes) => sessions.extend_from_slice(bytes),
                Piece::State(bytes) => state.extend_from_slice(bytes),
            }
        }
    }
    reader.finish().map(|header| (header.clone(), sessions, state))
}

fn small() -> Vec<u8> {
    write(header(), b"the sessions", b"and the state of the machine", 10)
}

#[test]
fn the_layout_is_pinned_by_golden_bytes() {
    let bytes = small();
    assert_eq!(bytes.len(), HEAD + 7 * 24 + 12 + 28 + 24 + 32);
    assert_eq!(&bytes[4..8], b"RRSN");
    assert_eq!(crc32c(&bytes), GOLDEN, "a new layout needs a new version");
}

/// Bytes of the header of these stories.
const HEAD: usize = 48 + 24 + 8 * 4;
const GOLDEN: u32 = 0xe988_c86c;

#[test]
fn every_bit_matters() {
    let bytes = small();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&damaged, 50).is_err(), "bit {} of byte {}", bit % 8, bit / 8);
    }
}

#[test]
fn every_cut_is_seen_and_so_is_every_byte_too_many() {
    let bytes = small();
    for cut in 0..bytes.len() {
        assert_eq!(read(&bytes[..cut], 7), Err(ReadError::CutShort), "cut at {cut}");
    }
    for piece in [1, 1000] {
        assert_eq!(read(&[&bytes[..], &[0]].concat(), piece), Err(ReadError::Trailing));
    }
}

#[test]
fn another_version_is_refused_by_name_and_other_files_are_no_snapshots() {
    let mut bytes = small();
    bytes[8] = 2;
    assert_eq!(read(&bytes, 1), Err(ReadError::Header("its checksum")), "a flipped bit is damage");
    let size = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let checksum = crc32c(&bytes[4..size]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(read(&bytes, 1), Err(ReadError::Version(2)));
    assert_eq!(read(&[7; 200], 1), Err(ReadError::NotASnapshot));
    assert_eq!(read(&[0; 200], 1), Err(ReadError::NotASnapshot));
}

/// bugs.md 17: two snapshots of one group were sent close together, and parts came twice.
#[test]
fn parts_of_another_snapshot_or_in_another_order_are_refused() {
    let (a, later) = (small(), Header { index: Index(10_001), ..header() });
    let b = write(later, b"the sessions", b"and the state of the machine", 10);
    let (first, second) = (HEAD..HEAD + 34, HEAD + 34..HEAD + 34 + 26);
    let mixed = [&a[..first.end], &b[first.end..]].concat();
    assert_eq!(read(&mixed, 9), Err(ReadError::Part { number: 1, what: "its checksum" }));
    let twice = [&a[..first.end], &a[first.clone()], &a[first.end..]].concat();
    assert_eq!(read(&twice, 9), Err(ReadError::Part { number: 1, what: "it is not the next one" }));
    let lost = [&a[..first.start], &a[second.start..]].concat();
    assert_eq!(read(&lost, 9), Err(ReadError::Part { number: 0, what: "it is not the next one" }));
}

/// Every part is right by itself, but the end was made for others.
#[test]
fn an_end_that_counts_other_parts_is_refused() {
    let bytes = small();
    let (parts, end) = bytes.split_at(bytes.len() - PART_HEAD_BYTES - END_BYTES);
    let seed = u32::from_le_bytes(bytes[..4].try_into().unwrap());
    let number = u64::from_le_bytes(end[16..24].try_into().unwrap());
    for byte in 0..=END_BYTES {
        let mut payload = end[PART_HEAD_BYTES..].to_vec();
        payload.iter_mut().skip(byte).take(1).for_each(|byte| *byte ^= 1);
        let mut forged = parts.to_vec();
        writer::put_part(seed, Kind::End, number, &payload, &mut forged);
        let expected = if byte < END_BYTES { Err(ReadError::Incomplete) } else { read(&bytes, 9) };
        assert_eq!(read(&forged, 9), expected, "byte {byte}");
    }
}

#[test]
fn what_a_state_gives_at_once_is_cut_into_parts_that_a_reader_can_hold() {
    let state = vec![7; 3 * PART_BYTES_MAX];
    let mut writer = SnapshotWriter::new(header(), plain(b"", 1), plain(&state, state.len()));
    let mut bytes = Vec::new();
    loop {
        let before = bytes.len();
        let more = writer.next(&mut bytes, usize::MAX);
        assert!(bytes.len() - before <= PART_HEAD_BYTES + PART_BYTES_MAX);
        if !more {
            break;
        }
    }
    assert_eq!(read(&bytes, usize::MAX).unwrap(), (header(), vec![], state));
}

#[test]
fn a_size_that_is_too_large_is_refused_before_its_bytes_are_waited_for() {
    let mut bytes = small();
    bytes[HEAD + 4..HEAD + 8].copy_from_slice(&(PART_BYTES_MAX as u32 + 1).to_le_bytes());
    let (mut reader, mut input) = (SnapshotReader::new(), &bytes[..HEAD + PART_HEAD_BYTES]);
    assert!(matches!(reader.next(&mut input), Ok(Some(Piece::Header(_)))));
    let error = ReadError::Part { number: 0, what: "its size" };
    assert_eq!(reader.next(&mut input), Err(error));
    assert_eq!(reader.next(&mut &b""[..]), Err(error), "it stays refused");
}

#[test]
#[should_panic(expected = "voters")]
fn members_out_of_order_are_the_callers_bug() {
    let membership = Membership { voters: nodes(&[2, 1]), ..Membership::default() };
    write(Header { membership, ..header() }, b"", b"", 1);
}

proptest! {
    #[test]
    fn what_was_written_is_read_in_whatever_pieces(
        sessions in proptest::collection::vec(any::<u8>(), 0..300),
        state in proptest::collection::vec(any::<u8>(), 0..900),
        voters in proptest::collection::btree_set(1u32..1000, 0..MEMBERS_MAX),
        budget in 1usize..1000, piece in 1usize..1000,
    ) {
        let voters = voters.into_iter().map(NodeId).collect();
        let header = Header { membership: Membership { voters, ..Membership::default() }, ..header() };
        let bytes = write(header.clone(), &sessions, &state, budget);
        prop_assert_eq!(read(&bytes, piece), Ok((header, sessions, state)));
    }

    #[test]
    fn damage_of_any_kind_is_a_typed_error(
        state in proptest::collection::vec(any::<u8>(), 0..900),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..6),
        piece in 1usize..1000,
    ) {
        let bytes = write(header(), b"sessions", &state, 100);
        let mut damaged = bytes.clone();
        for (at, change) in changes {
            let at = at.index(damaged.len());
            damaged[at] ^= change;
        }
        prop_assert_eq!(read(&damaged, piece).is_ok(), damaged == bytes);
    }

    #[test]
    fn any_bytes_are_a_snapshot_or_a_typed_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read(&bytes, 11).is_err());
    }
}
