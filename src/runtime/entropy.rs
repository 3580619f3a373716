//! Random numbers from the kernel: identities and epochs, never anything that is replicated.

use std::fs::File;
use std::io::Read;

/// 128 random bits: identity of a disk, epoch of a log, session of a client.
pub fn random() -> std::io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes).max(1))
}
