//! The file of the boot record: two slots, each written and then synced.

use super::{SECTOR, Survival};
use crate::sim::rng::Rng;
use crate::wal::SLOT_BYTES;

/// See the module. A write is seen at once, and safe when [`BootFile::sync`] has followed.
#[derive(Clone, Debug)]
pub struct BootFile {
    stable: Vec<u8>,
    seen: Vec<u8>,
    honest: bool,
}

impl Default for BootFile {
    fn default() -> Self {
        Self::new()
    }
}

impl BootFile {
    /// Two empty slots.
    pub fn new() -> Self {
        let zeros = vec![0; 2 * SLOT_BYTES];
        Self { stable: zeros.clone(), seen: zeros, honest: true }
    }

    /// False: syncs are ignored (the negative control).
    pub fn set_honest(&mut self, honest: bool) {
        self.honest = honest;
    }

    /// Writes a slot, as [`BootRecord::encode`](crate::wal::BootRecord::encode) gives it.
    pub fn write(&mut self, slot: u64, bytes: &[u8]) {
        assert!(slot < 2 && bytes.len() == SLOT_BYTES, "one of two slots");
        self.seen[slot as usize * SLOT_BYTES..][..SLOT_BYTES].copy_from_slice(bytes);
    }

    /// What was written survives a loss of power from here on.
    pub fn sync(&mut self) {
        if self.honest {
            self.stable.copy_from_slice(&self.seen);
        }
    }

    /// Both slots as a process sees them.
    pub fn bytes(&self) -> &[u8] {
        &self.seen
    }

    /// Power fails: of what was not synced each sector survives by chance.
    pub fn power_cut(&mut self, survival: Survival, rng: &mut Rng) {
        let survival = survival.of_write(rng);
        for at in (0..self.stable.len()).step_by(SECTOR) {
            let (old, new) = (&mut self.stable[at..at + SECTOR], &self.seen[at..at + SECTOR]);
            if old != new && survival.keeps(rng) {
                old.copy_from_slice(new);
            }
        }
        self.seen.copy_from_slice(&self.stable);
    }
}
