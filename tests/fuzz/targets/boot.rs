//! The boot record: two slots of a file that anything may have been written over.

use ringraft::checksum::crc32c;
use ringraft::ids::{Lsn, NodeId};
use ringraft::wal::{BootRecord, LogIdentity, Opening, SLOT_BYTES};

use super::Tried;
use super::repair::put32;

const ME: LogIdentity = LogIdentity { cluster: 7, node: 2, disk: 9 };

fn opening() -> Opening {
    let voters = [1, 2, 3].map(NodeId).to_vec();
    Opening { identity: ME, boot: 5, shards: 2, voters, others: vec![NodeId(4)], unsynced: 4 }
}

fn open(previous: Option<&BootRecord>) -> BootRecord {
    BootRecord::open(previous, &opening()).expect("it is ours").0
}

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
    let Ok((mut record, _)) = BootRecord::open(previous.as_ref(), &opening()) else {
        return Tried::one(false);
    };
    let _ = record.pin_disk(NodeId(3), 77);
    let _ = record.admit(NodeId(9)) && record.pin_disk(NodeId(9), 78).is_some();
    if let Ok((slot, bytes)) = record.encode() {
        assert!(slot < 2 && bytes.len() == SLOT_BYTES);
        assert_eq!(BootRecord::decode(&bytes), Ok(Some(record)));
    }
    Tried::one(previous.is_some())
}

pub fn samples() -> Vec<Vec<u8>> {
    let mut slots = vec![0; 2 * SLOT_BYTES];
    let mut first = open(None);
    first.durable = vec![Lsn(4096), Lsn(8192)];
    let (mut samples, mut last) = (Vec::new(), first);
    for _ in 0..3 {
        let (slot, bytes) = last.encode().expect("two shards");
        slots[slot as usize * SLOT_BYTES..][..SLOT_BYTES].copy_from_slice(&bytes);
        samples.push(slots.clone());
        last = open(Some(&last));
    }
    samples
}
