//! The boot record: how the node ended last time, and how often it has started (durability.md R3).
//!
//! It lies in two slots that are written alternately, so that a torn write leaves the other one:
//!
//! ```text
//! slot, 4096 bytes, little-endian
//!    0 u32 checksum        CRC32C of bytes 4..4096
//!    4 u32 magic           "RRBT"
//!    8 u32 version         1
//!   12 u32 node
//!   16 u128 cluster
//!   32 u128 disk
//!   48 u128 boot           the kernel's boot id
//!   64 u32 incarnation     counts the starts; also chooses the slot together with `writes`
//!   68 u8  state           1 running, 2 clean
//!   69 u8  recovering      1 = groups of this directory may still be RECOVERING
//!   70 u16 shards          durable positions that follow
//!   72 u64 writes          counts writes of this record; slot = writes % 2
//!   80 u64 durable[shards] highest known durable position of each shard's log
//! ```
//!
//! Pure functions: the server reads and writes the file, synced, before any reply.

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::config::LogIdentity;
use crate::checksum;
use crate::ids::{Incarnation, Lsn};

/// Size of a slot; two make the file.
pub const SLOT_BYTES: usize = 4096;
/// Most shards a record has room for.
const SHARDS_MAX: usize = 256;
const MAGIC: u32 = u32::from_le_bytes(*b"RRBT");
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 80;

const _: () = assert!(size_of::<Head>() == HEAD_BYTES);
const _: () = assert!(HEAD_BYTES + 8 * SHARDS_MAX <= SLOT_BYTES);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    checksum: u32,
    magic: u32,
    version: u32,
    node: u32,
    cluster: [u8; 16],
    disk: [u8; 16],
    boot: [u8; 16],
    incarnation: u32,
    state: u8,
    recovering: u8,
    shards: u16,
    writes: u64,
}

/// Whether the process that wrote the record ended as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootState {
    Running,
    /// The logs were synced before this was written.
    Clean,
}

/// The record. `recovering` outlives restarts: a node that lost power and is then killed while its
/// groups still re-sync must not come back as a mere process crash, although its boot id is the
/// same. The server clears it when the last group has left `RECOVERING`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootRecord {
    pub identity: LogIdentity,
    /// The kernel's boot id when this was written.
    pub boot: u128,
    pub incarnation: Incarnation,
    pub state: BootState,
    pub recovering: bool,
    /// Highest known durable position of each shard's log; feeds
    /// [`recover_from`](super::recover_from).
    pub durable: Vec<Lsn>,
    /// Counts writes of the record; use [`BootRecord::next_write`].
    pub writes: u64,
}

/// What the last end of the node means for the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartVerdict {
    /// The directory is new.
    Fresh,
    /// Stopped cleanly.
    Clean,
    /// The process ended, the machine went on: everything written is there.
    ProcessCrash,
    /// Unsynced writes may be lost: all groups start `RECOVERING`.
    PowerLossOrUnknown,
}

/// Which groups may have forgotten what they acknowledged, and so start RECOVERING (durability.md
/// R3). Ordered: what suspects more is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suspect {
    #[default]
    Nothing,
    /// Power may have failed: those whose acknowledgements do not wait for stable storage.
    Unsynced,
    /// Bytes that were durable are damaged: all of them, also those that the log no longer names.
    Everything,
}

/// Why a boot record cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BootError {
    #[error(
        "both slots of the boot record are damaged; restore the directory, or join as a new node \
         on an empty one"
    )]
    Damaged,
    #[error(
        "boot record version {found}, this build reads {VERSION}; start the build that wrote it"
    )]
    Version { found: u32 },
    #[error(
        "the directory is of {what} {found:#x}, expected {expected:#x}; use the node's own one"
    )]
    Identity { what: &'static str, found: u128, expected: u128 },
    #[error("{0} shards, a boot record has room for {SHARDS_MAX}")]
    Shards(usize),
}

impl BootRecord {
    /// The newer of the two slots. `Ok(None)`: nothing was ever written (empty, or all zeros).
    pub fn decode(slots: &[u8]) -> Result<Option<Self>, BootError> {
        let mut newest: Option<Self> = None;
        for slot in slots.chunks(SLOT_BYTES) {
            let Some(record) = decode_slot(slot)? else { continue };
            if newest.as_ref().is_none_or(|known| known.writes < record.writes) {
                newest = Some(record);
            }
        }
        let blank = slots.iter().all(|byte| *byte == 0);
        if newest.is_none() && !blank { Err(BootError::Damaged) } else { Ok(newest) }
    }

    /// The bytes to write, synced, at `slot * SLOT_BYTES`.
    pub fn encode(&self) -> Result<(u64, Vec<u8>), BootError> {
        if self.durable.len() > SHARDS_MAX {
            return Err(BootError::Shards(self.durable.len()));
        }
        let head = Head {
            checksum: 0,
            magic: MAGIC,
            version: VERSION,
            node: self.identity.node,
            cluster: self.identity.cluster.to_le_bytes(),
            disk: self.identity.disk.to_le_bytes(),
            boot: self.boot.to_le_bytes(),
            incarnation: self.incarnation.0,
            state: if self.state == BootState::Running { 1 } else { 2 },
            recovering: u8::from(self.recovering),
            shards: self.durable.len() as u16,
            writes: self.writes,
        };
        let mut slot = vec![0; SLOT_BYTES];
        slot[..HEAD_BYTES].copy_from_slice(head.as_bytes());
        for (i, lsn) in self.durable.iter().enumerate() {
            slot[HEAD_BYTES + 8 * i..][..8].copy_from_slice(&lsn.0.to_le_bytes());
        }
        let checksum = checksum::crc32c(&slot[4..]);
        slot[..4].copy_from_slice(&checksum.to_le_bytes());
        Ok((self.writes % 2, slot))
    }

    /// The same record for the other slot; change what has changed, then write it.
    #[must_use]
    pub fn next_write(&self) -> Self {
        Self { writes: self.writes + 1, ..self.clone() }
    }

    /// Refuses a directory that is not the node's own (durability.md §3).
    pub fn check_identity(&self, expected: &LogIdentity) -> Result<(), BootError> {
        let found = &self.identity;
        let parts = [
            ("cluster", found.cluster, expected.cluster),
            ("node", u128::from(found.node), u128::from(expected.node)),
            ("disk", found.disk, expected.disk),
        ];
        match parts.into_iter().find(|(_, found, expected)| found != expected) {
            Some((what, found, expected)) => Err(BootError::Identity { what, found, expected }),
            None => Ok(()),
        }
    }
}

fn decode_slot(slot: &[u8]) -> Result<Option<BootRecord>, BootError> {
    let Ok((head, rest)) = Head::read_from_prefix(slot) else { return Ok(None) };
    let whole = slot.len() == SLOT_BYTES && head.magic == MAGIC;
    if !whole || head.checksum != checksum::crc32c(&slot[4..]) {
        return Ok(None);
    }
    if head.version != VERSION {
        return Err(BootError::Version { found: head.version });
    }
    let state = match head.state {
        1 => BootState::Running,
        2 => BootState::Clean,
        _ => return Ok(None),
    };
    let marks = rest.chunks_exact(8).take(head.shards as usize);
    let durable = marks.map(|raw| Lsn(u64::from_le_bytes(raw.try_into().expect("8 bytes"))));
    Ok(Some(BootRecord {
        identity: LogIdentity {
            cluster: u128::from_le_bytes(head.cluster),
            node: head.node,
            disk: u128::from_le_bytes(head.disk),
        },
        boot: u128::from_le_bytes(head.boot),
        incarnation: Incarnation(head.incarnation),
        state,
        recovering: head.recovering != 0,
        durable: durable.collect(),
        writes: head.writes,
    }))
}

/// The record to write at this start, and what the previous one says. Rot found in a log makes the
/// caller set `recovering` in the record before it writes it.
pub fn next_start(
    previous: Option<&BootRecord>,
    identity: LogIdentity,
    boot: u128,
) -> (BootRecord, StartVerdict) {
    let verdict = match previous {
        None => StartVerdict::Fresh,
        Some(last) if last.recovering => StartVerdict::PowerLossOrUnknown,
        Some(last) if last.state == BootState::Clean => StartVerdict::Clean,
        Some(last) if last.boot == boot => StartVerdict::ProcessCrash,
        Some(_) => StartVerdict::PowerLossOrUnknown,
    };
    let record = BootRecord {
        identity,
        boot,
        incarnation: Incarnation(previous.map_or(0, |last| last.incarnation.0) + 1),
        state: BootState::Running,
        recovering: verdict == StartVerdict::PowerLossOrUnknown,
        durable: previous.map_or_else(Vec::new, |last| last.durable.clone()),
        writes: previous.map_or(0, |last| last.writes + 1),
    };
    (record, verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: LogIdentity = LogIdentity { cluster: 7, node: 2, disk: 9 };

    fn write(slots: &mut [u8], record: &BootRecord) {
        let (slot, bytes) = record.encode().unwrap();
        slots[slot as usize * SLOT_BYTES..][..SLOT_BYTES].copy_from_slice(&bytes);
    }

    fn running(boot: u128) -> BootRecord {
        next_start(None, ME, boot).0
    }

    #[test]
    fn each_end_of_a_node_has_its_verdict() {
        let clean = BootRecord { state: BootState::Clean, ..running(1) };
        let still_recovering = BootRecord { recovering: true, ..running(1) };
        let clean_recovering = BootRecord { recovering: true, ..clean.clone() };
        let verdict = |previous: &BootRecord, boot| next_start(Some(previous), ME, boot).1;
        assert_eq!(next_start(None, ME, 1).1, StartVerdict::Fresh);
        assert_eq!(verdict(&clean, 1), StartVerdict::Clean);
        assert_eq!(verdict(&clean, 2), StartVerdict::Clean, "stopped, then rebooted");
        assert_eq!(verdict(&running(1), 1), StartVerdict::ProcessCrash);
        assert_eq!(verdict(&running(1), 2), StartVerdict::PowerLossOrUnknown);
        assert_eq!(verdict(&still_recovering, 1), StartVerdict::PowerLossOrUnknown);
        assert_eq!(verdict(&clean_recovering, 1), StartVerdict::PowerLossOrUnknown);
    }

    #[test]
    fn the_incarnation_counts_every_start_and_a_torn_write_leaves_the_other_slot() {
        let mut slots = vec![0; 2 * SLOT_BYTES];
        assert_eq!(BootRecord::decode(&slots), Ok(None));
        let mut last = None;
        for start in 1..=5 {
            let (mut record, _) = next_start(last.as_ref(), ME, 1);
            assert_eq!(record.incarnation, Incarnation(start));
            record.durable = vec![Lsn(10 * u64::from(start)), Lsn(3)];
            let before = slots.clone();
            write(&mut slots, &record);
            assert_eq!(BootRecord::decode(&slots), Ok(Some(record.clone())));
            for torn in (512..SLOT_BYTES).step_by(512) {
                let at = (record.writes % 2) as usize * SLOT_BYTES;
                let mut half = slots.clone();
                half[at + torn - 512..at + SLOT_BYTES]
                    .copy_from_slice(&before[at + torn - 512..at + SLOT_BYTES]);
                half[at] ^= 1;
                match last.as_ref() {
                    Some(_) => assert_eq!(BootRecord::decode(&half), Ok(last.clone())),
                    None => assert_eq!(BootRecord::decode(&half), Err(BootError::Damaged)),
                }
            }
            last = Some(record);
        }
    }

    #[test]
    fn every_flipped_bit_of_the_newest_slot_falls_back_to_the_other() {
        let mut slots = vec![0; 2 * SLOT_BYTES];
        let first = running(1);
        write(&mut slots, &first);
        let second = next_start(Some(&first), ME, 1).0;
        write(&mut slots, &second);
        let at = (second.writes % 2) as usize * SLOT_BYTES;
        for bit in 0..96 * 8 {
            let mut bad = slots.clone();
            bad[at + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BootRecord::decode(&bad), Ok(Some(first.clone())), "bit {bit}");
        }
    }

    #[test]
    fn a_stranger_is_named() {
        let other = LogIdentity { disk: 10, ..ME };
        let error = running(1).check_identity(&other).unwrap_err();
        assert_eq!(error, BootError::Identity { what: "disk", found: 9, expected: 10 });
        assert_eq!(running(1).check_identity(&ME), Ok(()));
    }
}
