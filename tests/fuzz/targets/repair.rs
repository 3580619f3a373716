//! Makes lengths and checksums of mangled bytes true again, so that what lies behind the first check
//! is reached as well. Written from docs/formats.md, not with the code under test.

use ringraft::checksum::{crc32c, crc32c_append};

const FRAME_HEADER: usize = 32;
const BLOCK_HEADER: usize = 64;

pub fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub fn get64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// One frame over all of `bytes`: size, room of the control section, version, kind, checksum.
pub fn frame(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() & !7);
    if bytes.len() < FRAME_HEADER {
        return;
    }
    let room = bytes.len() - FRAME_HEADER;
    put32(bytes, 4, (room + FRAME_HEADER) as u32);
    let control = (get32(bytes, 8) as usize % (room + 1)) & !7;
    put32(bytes, 8, control as u32);
    bytes[12] = 1 + bytes[12].wrapping_sub(1) % 12;
    bytes[13] = 0;
    bytes[14] = 1;
    let sum = crc32c(&bytes[4..FRAME_HEADER + control]);
    put32(bytes, 0, sum);
}

/// The blocks behind a frame's control section.
pub fn blocks_of_frame(bytes: &mut [u8]) {
    if bytes.len() < FRAME_HEADER {
        return;
    }
    let control = get32(bytes, 8) as usize;
    if let Some(rest) = bytes.get_mut(FRAME_HEADER.saturating_add(control)..) {
        blocks(rest);
    }
}

/// Blocks one after another: sizes that fit, the version, checksums. Counts and kinds stay.
pub fn blocks(mut bytes: &mut [u8]) {
    while bytes.len() >= BLOCK_HEADER {
        let room = bytes.len() & !7;
        let mut size = get32(bytes, 8) as usize;
        if !(BLOCK_HEADER..=room).contains(&size) || !size.is_multiple_of(8) {
            size = room;
        }
        let (block, rest) = std::mem::take(&mut bytes).split_at_mut(size);
        put32(block, 8, size as u32);
        block[57] = 1;
        let body = crc32c(&block[BLOCK_HEADER..]);
        put32(block, 4, body);
        let header = crc32c(&block[4..BLOCK_HEADER]);
        put32(block, 0, header);
        bytes = rest;
    }
}

/// The size that a list of members names of itself.
pub fn membership(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() & !7);
    if bytes.len() >= 12 {
        let size = bytes.len() as u32;
        put32(bytes, 8, size);
    }
}

/// A snapshot: checksums of its head, of each part, and of all of it at the end. Sizes and numbers
/// stay.
pub fn snapshot(bytes: &mut [u8]) {
    const HEAD: usize = 48;
    const PART: usize = 24;
    const END: u32 = 3;
    if bytes.len() < HEAD {
        return;
    }
    let size = get32(bytes, 12) as usize;
    if !(HEAD..=bytes.len()).contains(&size) {
        return;
    }
    let (head, mut rest) = bytes.split_at_mut(size);
    let seed = crc32c(&head[4..]);
    put32(head, 0, seed);
    let mut whole = crc32c(head);
    while rest.len() >= PART {
        let size = PART.saturating_add(get32(rest, 4) as usize);
        if size > rest.len() {
            return;
        }
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(size);
        if get32(part, 8) == END && size >= PART + 28 {
            put32(part, PART + 24, whole);
        }
        let sum = crc32c_append(seed, &part[4..]);
        put32(part, 0, sum);
        whole = crc32c_append(whole, part);
        rest = behind;
    }
}
