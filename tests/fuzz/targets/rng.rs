//! Small deterministic random numbers, and what they do to bytes.

use ringraft::rng::Rng as Source;

/// The simulator's generator, for places in bytes. Equal seeds, equal numbers.
#[derive(Clone, Debug)]
pub struct Rng(Source);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(Source::new(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.next()
    }

    /// Below `n`; 0 for 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Numbers at which arithmetic breaks.
pub const INTERESTING: [u64; 20] = [
    0,
    1,
    2,
    3,
    7,
    8,
    64,
    512,
    1024,
    8192,
    (1 << 20) + 8,
    (4 << 20) + 8,
    i32::MAX as u64,
    u32::MAX as u64 - 7,
    u32::MAX as u64,
    i64::MAX as u64,
    u64::MAX / 2 + 1,
    u64::MAX - 8192,
    u64::MAX - 1,
    u64::MAX,
];

/// Does one thing to `bytes`; `other` is a second sample to take a piece from.
pub fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = rng.below(bytes.len());
    match rng.below(10) {
        0..2 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
        2 if !bytes.is_empty() => bytes[at] = rng.next() as u8,
        3..6 => {
            let value = *rng.pick(&INTERESTING);
            put(bytes, at & !3, &(value as u32).to_le_bytes());
        }
        6 => {
            let value = rng.pick(&INTERESTING).to_le_bytes();
            put(bytes, at & !7, &value);
        }
        7 => bytes.truncate(at),
        8 => {
            let more = 8 * rng.below(12);
            bytes.extend((0..more).map(|_| rng.next() as u8));
        }
        _ => {
            let from = rng.below(other.len()) & !7;
            let size = (8 * rng.below(20)).min(other.len() - from);
            put(bytes, at & !7, &other[from..from + size]);
        }
    }
}

/// As much of `piece` as there is room for.
pub fn put(bytes: &mut [u8], at: usize, piece: &[u8]) {
    let Some(room) = bytes.get_mut(at..) else { return };
    let size = room.len().min(piece.len());
    room[..size].copy_from_slice(&piece[..size]);
}
