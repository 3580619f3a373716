//! Bytes that no log wrote: recovery answers, and never panics.

use std::collections::BTreeMap;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::disk::{Image, Rng};
use super::story::{ME, Story, small};
use crate::ids::Lsn;
use crate::wal::record::{Chain, FlushHeader, SegmentHeader};
use crate::wal::{SegmentNo, Verdict, Wal, WalError, recover, recover_from};

/// Recovers, and if that works starts a log on it.
fn survives(image: &mut Image) {
    if let Ok(mut recovered) = recover(small(), ME, image) {
        let wal = Wal::resume(small(), ME, 3, &mut recovered);
        assert!(wal.durable() <= wal.written());
    }
}

fn busy_image(seed: u64) -> Image {
    let mut story = Story::new(small(), seed);
    for _ in 0..150 {
        story.step(4);
    }
    story.disk.after_kill()
}

#[test]
fn zeros_are_an_empty_log() {
    for sizes in [vec![], vec![0], vec![8192], vec![8192, 8192, 512]] {
        let files = (1..).zip(sizes).map(|(n, size)| (SegmentNo(n), vec![0; size]));
        let mut image = Image(files.collect());
        let recovered = recover(small(), ME, &mut image).unwrap();
        assert_eq!(recovered.verdict, Verdict::Empty);
        assert_eq!(recovered.end, Lsn::ZERO);
        survives(&mut image);
    }
}

/// A segment whose only flush has a true checksum over any payload.
fn sealed(payload: &[u8], records: u32) -> Image {
    let chain = Chain { end: Lsn(8192), checksum: 0 };
    let header =
        SegmentHeader::new(&small(), &ME, 5, SegmentNo(1), chain, (Lsn::ZERO, SegmentNo(1)));
    let mut file = vec![0; 8192];
    file[..128].copy_from_slice(header.as_bytes());
    let flush = &mut file[512..512 + 64 + payload.len()];
    flush[64..].copy_from_slice(payload);
    FlushHeader::seal(flush, (5, SegmentNo(1)), Lsn(8192 + 512), records, Lsn::ZERO, 0, true);
    Image(BTreeMap::from([(SegmentNo(1), file)]))
}

#[test]
fn a_true_checksum_over_nonsense_is_a_typed_error() {
    let mut image = sealed(&[0xff; 64], 1);
    let error = recover(small(), ME, &mut image).unwrap_err();
    assert!(matches!(error, WalError::Format { lsn: Lsn(8704), .. }), "{error}");
}

#[test]
fn positions_out_of_range_are_typed_errors() {
    let far = Lsn(u64::MAX - 1);
    let error = recover_from(small(), ME, &mut Image::default(), far).unwrap_err();
    assert!(matches!(error, WalError::Format { .. }), "{error}");
    let mut image = Image(BTreeMap::from([(SegmentNo(u64::MAX), vec![0; 8192])]));
    let error = recover(small(), ME, &mut image).unwrap_err();
    assert!(matches!(error, WalError::Format { .. }), "{error}");
    // A header that says more was durable than can be before it is none.
    let chain = Chain { end: Lsn(8192), checksum: 0 };
    let header = SegmentHeader::new(&small(), &ME, 5, SegmentNo(1), chain, (far, SegmentNo(1)));
    let mut image = busy_image(1);
    image.0.values_mut().next().unwrap()[..128].copy_from_slice(header.as_bytes());
    survives(&mut image);
}

proptest! {
    #[test]
    fn random_files_never_panic(
        files in proptest::collection::btree_map(
            0u64..5, proptest::collection::vec(any::<u8>(), 0..3000), 0..4),
    ) {
        let mut image = Image(files.into_iter().map(|(n, f)| (SegmentNo(n), f)).collect());
        survives(&mut image);
    }

    #[test]
    fn random_payload_under_a_true_checksum_never_panics(
        payload in proptest::collection::vec(prop_oneof![0u8..4, any::<u8>()], 16..600),
        kind in 0u8..4,
        size in 0u32..700,
        records in 0u32..4,
    ) {
        let mut payload = payload;
        payload[..4].copy_from_slice(&size.to_le_bytes());
        payload[4] = kind;
        survives(&mut sealed(&payload, records));
    }

    #[test]
    fn a_mangled_log_never_panics(seed in any::<u64>(), cuts in 1u64..6) {
        let mut image = busy_image(seed % 5);
        let mut rng = Rng::new(seed);
        for _ in 0..cuts {
            mangle(&mut image, &mut rng);
        }
        survives(&mut image);
    }
}

/// Copies, swaps, shortens, removes or scribbles over parts of files.
fn mangle(image: &mut Image, rng: &mut Rng) {
    let numbers: Vec<_> = image.0.keys().copied().collect();
    if numbers.is_empty() {
        return;
    }
    let pick = |rng: &mut Rng| numbers[rng.below(numbers.len() as u64) as usize];
    let (a, b) = (pick(rng), pick(rng));
    let source = image.0[&a].clone();
    let file = image.0.get_mut(&b).expect("picked from the keys");
    let at = |rng: &mut Rng, len: usize| rng.below(len as u64 / 512 + 1) as usize * 512;
    match rng.below(5) {
        0 => *file = source,
        1 => file.truncate(at(rng, file.len())),
        2 => drop(image.0.remove(&b)),
        3 => {
            let (from, to) = (at(rng, source.len()), at(rng, file.len()));
            let len = 512.min(source.len() - from).min(file.len() - to);
            file[to..to + len].copy_from_slice(&source[from..from + len]);
        }
        _ => {
            let (from, len) = (at(rng, file.len()), file.len());
            file[from..(from + 700).min(len)].fill(rng.next() as u8);
        }
    }
}
