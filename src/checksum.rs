//! CRC32C (Castagnoli), the checksum of blocks, flushes, frames and boot records: one place, so that
//! the library behind it can change.

use crc_fast::{CrcAlgorithm, Digest};

/// Of one slice.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Of what `checksum` is already the checksum of, followed by `bytes`; also a checksum of `bytes`
/// with a seed.
#[inline]
pub fn crc32c_append(checksum: u32, bytes: &[u8]) -> u32 {
    let state = u64::from(!checksum);
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, state);
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_checksum_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn parts_add_up_to_the_whole_at_every_length() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        for cut in [0, 1, 7, 8, 63, 64, 65, 255, 256, 999, 1000] {
            let (front, back) = bytes.split_at(cut);
            assert_eq!(crc32c_append(crc32c(front), back), crc32c(&bytes), "cut at {cut}");
        }
        assert_eq!(crc32c_append(0, &bytes), crc32c(&bytes));
    }
}
