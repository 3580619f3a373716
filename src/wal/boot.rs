//! The boot record: how the node ended last time, how often it has started, and whom it knows
//! (durability.md R3, §3).
//!
//! It lies in two slots that are written alternately, so that a torn write leaves the other one:
//!
//! ```text
//! slot, 4096 bytes, little-endian
//!    0 u32 checksum        CRC32C of bytes 4..4096
//!    4 u32 magic           "RRBT"
//!    8 u32 version         2
//!   12 u32 node
//!   16 u128 cluster
//!   32 u128 disk
//!   48 u128 boot           the kernel's boot id
//!   64 u32 incarnation     counts the starts
//!   68 u8  state           1 running, 2 clean
//!   69 u8  recovering      groups that may still be RECOVERING: 0 none, 1 those without wal_sync,
//!                          2 all
//!   70 u16 shards          durable positions that follow
//!   72 u64 writes          counts writes of this record; slot = writes % 2
//!   80 u64 unsynced        which groups run without wal_sync: 0 none, else a fingerprint of the set
//!   88 u32 voters          entries that follow, at most 15
//!   92 u32 epoch          highest recovery epoch that an operator's recovery of this node has begun
//!   96 voters[15]          24 bytes each, by node: u32 node, u32 zero, u128 disk (0 = not yet seen)
//!  456 u64 durable[shards] highest known durable position of each shard's log
//! 2560 u64 others        entries that follow, at most 60
//! 2568 others[60]        other nodes that it has been told of, as the voters above
//! ```
//!
//! Pure functions: the server reads and writes the file, synced, before any reply.

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::config::LogIdentity;
use crate::checksum;
use crate::ids::{Incarnation, Lsn, NodeId};

/// Size of a slot; two make the file.
pub const SLOT_BYTES: usize = 4096;
/// Most shards a record has room for.
const SHARDS_MAX: usize = 256;
const MAGIC: u32 = u32::from_le_bytes(*b"RRBT");
const VERSION: u32 = 2;
const HEAD_BYTES: usize = 456;
/// Most voters that a record has room for.
const VOTERS_MAX: usize = 15;
/// Other nodes lie behind the durable positions of as many shards as there may be.
const OTHERS_AT: usize = 2560;
const OTHERS_MAX: usize = 60;

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
    unsynced: u64,
    voters: u32,
    epoch: u32,
    voter: [VoterBytes; VOTERS_MAX],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct VoterBytes {
    node: u32,
    zero: u32,
    disk: [u8; 16],
}

/// Whether the process that wrote the record ended as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootState {
    Running,
    /// The logs were synced before this was written.
    Clean,
}

/// A voter of the cluster, and the disk it was first seen with (bug 31: a node that comes back on a
/// wiped disk has forgotten its votes; it is not the old voter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownVoter {
    pub node: NodeId,
    /// `None`: not yet seen.
    pub disk: Option<u128>,
}

/// The record. `recovering` outlives restarts: a node that lost power and is then killed while its
/// groups still re-sync must not come back as a mere process crash, although its boot id is the
/// same; nor does a clean stop end it. The server clears it when the last group has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootRecord {
    pub identity: LogIdentity,
    /// The kernel's boot id when this was written.
    pub boot: u128,
    pub incarnation: Incarnation,
    pub state: BootState,
    pub recovering: Suspect,
    /// See [`Opening::unsynced`].
    pub unsynced: u64,
    /// Those of the groups' first configuration, by node. None: this node joined groups that ran.
    pub voters: Vec<KnownVoter>,
    /// Other nodes that it has been told of, by node.
    pub others: Vec<KnownVoter>,
    /// Highest known durable position of each shard's log; feeds
    /// [`recover_from`](super::recover_from).
    pub durable: Vec<Lsn>,
    /// Highest recovery epoch that an operator's recovery has begun here: damage may take the entry
    /// that says so, and indices must not be used a third time under it.
    pub epoch: u32,
    /// Counts writes of the record; use [`BootRecord::next_write`].
    pub writes: u64,
}

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct Opening {
    pub identity: LogIdentity,
    /// The kernel's boot id now.
    pub boot: u128,
    pub shards: u32,
    /// Of all groups' first configuration, this node among them; none if it joins groups that run.
    /// Only the first start asks.
    pub voters: Vec<NodeId>,
    /// Other nodes that may take part.
    pub others: Vec<NodeId>,
    /// Which groups do without `wal_sync`: 0 for none, else any fingerprint of the set. When it
    /// changes between two starts, a loss of power puts all groups under suspicion.
    pub unsynced: u64,
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
    /// Unsynced writes may be lost, now or in an earlier end from which the groups are not all back:
    /// see [`BootRecord::recovering`] for who starts RECOVERING.
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
#[derive(Clone, Debug, PartialEq, Eq, Error)]
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
    #[error("{0} voters, a boot record has room for {VOTERS_MAX}")]
    Voters(usize),
    #[error(
        "the directory was made with {found} shards, the configuration says {expected}: set \
         cluster.shards back; it is fixed once there is data"
    )]
    ShardCount { found: u32, expected: u32 },
    #[error(
        "cluster.nodes does not fit the groups' members: {change}; set it back, members are changed \
         by `ringraft member`, not by editing the list"
    )]
    VotersChanged { change: String },
}

impl BootRecord {
    /// The newer of the two slots. `Ok(None)`: nothing was ever written (empty, or all zeros).
    pub fn decode(slots: &[u8]) -> Result<Option<Self>, BootError> {
        let mut newest: Option<Self> = None;
        let mut damaged = false;
        for slot in slots.chunks(SLOT_BYTES) {
            let Some(record) = decode_slot(slot)? else {
                damaged |= slot.iter().any(|byte| *byte != 0);
                continue;
            };
            if newest.as_ref().is_none_or(|known| known.writes < record.writes) {
                newest = Some(record);
            }
        }
        match newest {
            Some(record) if damaged => Ok(Some(record.beside_damage())),
            None if damaged => Err(BootError::Damaged),
            newest => Ok(newest),
        }
    }

    /// The other slot held a record that cannot be read, and it may have been the newer one: of a
    /// start that ran and whose end nobody knows. Its number is not given out a second time.
    fn beside_damage(self) -> Self {
        Self {
            incarnation: Incarnation(self.incarnation.0 + 1),
            state: BootState::Running,
            boot: !self.boot,
            ..self
        }
    }

    /// The bytes to write, synced, at `slot * SLOT_BYTES`.
    pub fn encode(&self) -> Result<(u64, Vec<u8>), BootError> {
        self.check_room()?;
        let mut slot = vec![0; SLOT_BYTES];
        slot[..HEAD_BYTES].copy_from_slice(self.head().as_bytes());
        for (i, lsn) in self.durable.iter().enumerate() {
            slot[HEAD_BYTES + 8 * i..][..8].copy_from_slice(&lsn.0.to_le_bytes());
        }
        let others = &mut slot[OTHERS_AT..];
        others[..4].copy_from_slice(&(self.others.len() as u32).to_le_bytes());
        for (bytes, known) in
            others[8..].chunks_exact_mut(size_of::<VoterBytes>()).zip(&self.others)
        {
            bytes.copy_from_slice(VoterBytes::of(known).as_bytes());
        }
        let checksum = checksum::crc32c(&slot[4..]);
        slot[..4].copy_from_slice(&checksum.to_le_bytes());
        Ok((self.writes % 2, slot))
    }

    fn check_room(&self) -> Result<(), BootError> {
        if self.durable.len() > SHARDS_MAX {
            return Err(BootError::Shards(self.durable.len()));
        }
        let (voters, others) = (self.voters.len(), self.others.len());
        if voters > VOTERS_MAX || others > OTHERS_MAX {
            return Err(BootError::Voters(voters.max(others)));
        }
        Ok(())
    }

    fn head(&self) -> Head {
        let mut voter = [VoterBytes { node: 0, zero: 0, disk: [0; 16] }; VOTERS_MAX];
        for (bytes, known) in voter.iter_mut().zip(&self.voters) {
            *bytes = VoterBytes::of(known);
        }
        Head {
            checksum: 0,
            magic: MAGIC,
            version: VERSION,
            node: self.identity.node,
            cluster: self.identity.cluster.to_le_bytes(),
            disk: self.identity.disk.to_le_bytes(),
            boot: self.boot.to_le_bytes(),
            incarnation: self.incarnation.0,
            state: if self.state == BootState::Running { 1 } else { 2 },
            recovering: self.recovering as u8,
            shards: self.durable.len() as u16,
            writes: self.writes,
            unsynced: self.unsynced,
            voters: self.voters.len() as u32,
            epoch: self.epoch,
            voter,
        }
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
    // No node lives to see such numbers, and the next start must not leave their range.
    if head.incarnation >= u32::MAX / 2 || head.writes >= u64::MAX / 2 {
        return Ok(None);
    }
    let marks = rest.chunks_exact(8).take(head.shards as usize);
    let durable = marks.map(|raw| Lsn(u64::from_le_bytes(raw.try_into().expect("8 bytes"))));
    Ok(others(slot).and_then(|others| head.record(durable.collect(), others)))
}

/// The nodes behind the head.
fn others(slot: &[u8]) -> Option<Vec<KnownVoter>> {
    let (count, table) = slot[OTHERS_AT..].split_first_chunk::<8>()?;
    let count = u64::from_le_bytes(*count);
    let rows = table.chunks_exact(size_of::<VoterBytes>()).take(count.min(1 << 16) as usize);
    let known = |row: &[u8]| Some(VoterBytes::read_from_bytes(row).ok()?.known());
    (count <= OTHERS_MAX as u64).then(|| rows.map(known).collect())?
}

impl VoterBytes {
    fn of(known: &KnownVoter) -> Self {
        let disk = known.disk.unwrap_or(0).to_le_bytes();
        Self { node: known.node.0, zero: 0, disk }
    }

    fn known(&self) -> KnownVoter {
        let disk = u128::from_le_bytes(self.disk);
        KnownVoter { node: NodeId(self.node), disk: (disk != 0).then_some(disk) }
    }
}

impl Head {
    fn record(&self, durable: Vec<Lsn>, others: Vec<KnownVoter>) -> Option<BootRecord> {
        let state = match self.state {
            1 => BootState::Running,
            2 => BootState::Clean,
            _ => return None,
        };
        let recovering = match self.recovering {
            0 => Suspect::Nothing,
            1 => Suspect::Unsynced,
            2 => Suspect::Everything,
            _ => return None,
        };
        Some(BootRecord {
            identity: LogIdentity {
                cluster: u128::from_le_bytes(self.cluster),
                node: self.node,
                disk: u128::from_le_bytes(self.disk),
            },
            boot: u128::from_le_bytes(self.boot),
            incarnation: Incarnation(self.incarnation),
            state,
            recovering,
            unsynced: self.unsynced,
            voters: self.voter.get(..self.voters as usize)?.iter().map(VoterBytes::known).collect(),
            others,
            durable,
            epoch: self.epoch,
            writes: self.writes,
        })
    }
}

/// Starting.
impl BootRecord {
    /// Decides a start: the record to write before anything else happens, with who is under
    /// suspicion in `recovering`, and what the previous one says of the last end. The server and the
    /// simulator both ask here.
    pub fn open(previous: Option<&Self>, now: &Opening) -> Result<(Self, StartVerdict), BootError> {
        if let Some(last) = previous {
            last.check_identity(&now.identity)?;
            last.check_shape(now)?;
        }
        let verdict = match previous {
            None => StartVerdict::Fresh,
            Some(last) if last.recovering > Suspect::Nothing => StartVerdict::PowerLossOrUnknown,
            Some(last) if last.state == BootState::Clean => StartVerdict::Clean,
            Some(last) if last.boot == now.boot => StartVerdict::ProcessCrash,
            Some(_) => StartVerdict::PowerLossOrUnknown,
        };
        let record = Self {
            identity: now.identity,
            boot: now.boot,
            incarnation: Incarnation(previous.map_or(0, |last| last.incarnation.0) + 1),
            state: BootState::Running,
            recovering: previous.map_or(Suspect::Nothing, |last| last.suspect(now)),
            unsynced: now.unsynced,
            voters: previous.map_or_else(|| known(now, &now.voters), |last| last.voters.clone()),
            others: previous.map_or_else(|| known(now, &now.others), |last| last.others.clone()),
            durable: previous
                .map_or_else(|| vec![Lsn::ZERO; now.shards as usize], |last| last.durable.clone()),
            epoch: previous.map_or(0, |last| last.epoch),
            writes: previous.map_or(0, |last| last.writes + 1),
        };
        record.check_room().map(|()| (record, verdict))
    }

    /// Whose memory the last end may have taken. A clean stop takes none, but does not give back
    /// what an earlier end took.
    fn suspect(&self, now: &Opening) -> Suspect {
        let lost_power = self.state == BootState::Running && self.boot != now.boot;
        let now_lost =
            if lost_power && self.unsynced != 0 { Suspect::Unsynced } else { Suspect::Nothing };
        let suspect = self.recovering.max(now_lost);
        // Who was unsynced then is not known by who is now.
        let changed = suspect == Suspect::Unsynced && self.unsynced != now.unsynced;
        if changed { Suspect::Everything } else { suspect }
    }

    fn check_shape(&self, now: &Opening) -> Result<(), BootError> {
        let found = self.durable.len() as u32;
        if found != now.shards {
            return Err(BootError::ShardCount { found, expected: now.shards });
        }
        Ok(())
    }

    /// Whether the list of nodes in a configuration file still says what the directory and the
    /// groups' logs say: `members` take part in some group, and of `placed` the logs name the
    /// addresses. Members are not changed by editing the list, and nobody is lost from sight by it.
    pub fn check_nodes(
        &self,
        listed: &[NodeId],
        members: &[NodeId],
        placed: &[NodeId],
    ) -> Result<(), BootError> {
        let is_new = |node: &&NodeId| !self.knows(**node) && !members.contains(node);
        let added: Vec<_> = listed.iter().filter(is_new).collect();
        let is_lost = |node: &&NodeId| !listed.contains(node) && !placed.contains(node);
        let gone: Vec<_> = members.iter().filter(is_lost).collect();
        let names = |nodes: &[&NodeId]| {
            nodes.iter().map(|node| node.0.to_string()).collect::<Vec<_>>().join(", ")
        };
        let change = match (added.is_empty(), gone.is_empty()) {
            (true, true) => return Ok(()),
            (false, true) => format!("node {} was added", names(&added)),
            (true, false) => format!("node {} was removed", names(&gone)),
            (false, false) => {
                format!("node {} was added and node {} removed", names(&added), names(&gone))
            }
        };
        Err(BootError::VotersChanged { change })
    }

    /// Whether it has been told of this node.
    pub fn knows(&self, node: NodeId) -> bool {
        self.voters.iter().chain(&self.others).any(|known| known.node == node)
    }

    /// Tells it of a node that a group has taken in. True when that is news and there is room.
    pub fn admit(&mut self, node: NodeId) -> bool {
        let news = !self.knows(node) && self.others.len() < OTHERS_MAX;
        if news {
            self.others.push(KnownVoter { node, disk: None });
        }
        news
    }

    /// Whether a voter may come with this disk: the first one it is seen with is the one it keeps.
    /// `None`: it is not of this cluster, or comes with another one. `Some(true)`: it was noted just
    /// now, and counts when the record is written.
    pub fn pin_disk(&mut self, node: NodeId, disk: u128) -> Option<bool> {
        let mut all = self.voters.iter_mut().chain(&mut self.others);
        let known = all.find(|known| known.node == node)?;
        match known.disk {
            Some(pinned) => (pinned == disk).then_some(false),
            None if disk == 0 => None,
            None => {
                known.disk = Some(disk);
                Some(true)
            }
        }
    }
}

/// No disk has this name: names are random.
const FENCED: u128 = u128::MAX;

impl BootRecord {
    /// The disk that a voter had is gone for good, by an operator's word: whoever comes with it, or
    /// under this name with another one, is refused.
    pub fn fence_disk(&mut self, node: NodeId) {
        let all = self.voters.iter_mut().chain(&mut self.others);
        for known in all.filter(|known| known.node == node) {
            known.disk = Some(FENCED);
        }
    }
}

/// Nodes of a new directory; of their disks only this node's own is known.
fn known(now: &Opening, nodes: &[NodeId]) -> Vec<KnownVoter> {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    let own = |node| (node == NodeId(now.identity.node)).then_some(now.identity.disk);
    nodes.into_iter().map(|node| KnownVoter { node, disk: own(node) }).collect()
}

#[cfg(test)]
#[path = "tests/boot.rs"]
mod tests;
