//! The boot record: two slots of a file that anything may have been written over.

use ringraft::checksum::crc32c;
use ringraft::ids::Lsn;
use ringraft::wal::{BootRecord, LogIdentity, SLOT_BYTES, next_start};

use super::Tried;
use super::repair::put32;

const ME: LogIdentity = LogIdentity { cluster: 7, node: 2, disk: 9 };

/// Reads the record; a start goes on from it, and its record reads back.
pub fn boot(input: &[u8]) -> Tried {
    let Some((mode, bytes)) = input.split_first() else { return Tried::one(false) };
    let mut slots = bytes.to_vec();
    if mode & 1 != 0 {
        for slot in slots.chunks_exact_mut(SLOT_BYTES) {
            let sum = crc32c(&slot[4..]);
            put32(slot, 0, sum);
        }
    }
    let Ok(previous) = BootRecord::decode(&slots) else { return Tried::one(false) };
    if let Some(record) = &previous {
        let _ = record.check_identity(&ME);
    }
    let (record, _) = next_start(previous.as_ref(), ME, 5);
    if let Ok((slot, bytes)) = record.encode() {
        assert!(slot < 2 && bytes.len() == SLOT_BYTES);
        assert_eq!(BootRecord::decode(&bytes), Ok(Some(record)));
    }
    Tried::one(previous.is_some())
}

pub fn samples() -> Vec<Vec<u8>> {
    let mut slots = vec![0; 2 * SLOT_BYTES];
    let (mut first, _) = next_start(None, ME, 1);
    first.durable = vec![Lsn(4096), Lsn(8192)];
    let (mut samples, mut last) = (Vec::new(), first);
    for _ in 0..3 {
        let (slot, bytes) = last.encode().expect("two shards");
        slots[slot as usize * SLOT_BYTES..][..SLOT_BYTES].copy_from_slice(&bytes);
        samples.push(slots.clone());
        last = next_start(Some(&last), ME, 1).0;
    }
    samples
}
