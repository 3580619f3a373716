//! Memory that O_DIRECT accepts: whole pages, aligned by their type, no unsafe.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Alignment of every buffer and unit of its growth, bytes.
pub const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

const _: () = assert!(size_of::<Page>() == PAGE_BYTES && align_of::<Page>() == PAGE_BYTES);

/// A growable buffer whose first byte lies on a page's edge. It travels to the disk inside
/// [`DiskOp::Write`](super::DiskOp::Write) and comes back in the completion; it does not move while
/// it is away.
#[derive(Default)]
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of at least `bytes`, all zeros.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { pages: vec![Page([0; PAGE_BYTES]); bytes.div_ceil(PAGE_BYTES)], len: 0 }
    }

    /// Bytes in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nothing is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that fit without moving.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    /// The bytes in use.
    pub fn as_slice(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.len]
    }

    /// The bytes in use, to change.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.pages.as_mut_bytes()[..len]
    }

    /// Empties it. The old bytes stay in memory: whoever extends it writes every byte.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends bytes; grows by doubling.
    #[inline]
    pub fn extend(&mut self, bytes: &[u8]) {
        let at = self.len;
        self.grow(bytes.len());
        self.as_mut_slice()[at..].copy_from_slice(bytes);
    }

    /// Appends zeros up to length `len`.
    pub fn pad_to(&mut self, len: usize) {
        let at = self.len;
        self.grow(len - at);
        self.as_mut_slice()[at..].fill(0);
    }

    #[inline]
    fn grow(&mut self, more: usize) {
        let need = self.len + more;
        if need > self.capacity() {
            let pages = need.div_ceil(PAGE_BYTES).max(2 * self.pages.len());
            self.pages.resize(pages, Page([0; PAGE_BYTES]));
        }
        self.len = need;
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.len, self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_on_a_page_edge_while_it_grows_and_padding_is_zero_after_reuse() {
        let mut buffer = AlignedBuf::with_capacity(1);
        for _ in 0..10 {
            buffer.extend(&[7; 3000]);
            assert_eq!(buffer.as_slice().as_ptr() as usize % PAGE_BYTES, 0);
        }
        assert_eq!(buffer.len(), 30_000);
        buffer.clear();
        buffer.extend(&[1]);
        buffer.pad_to(512);
        assert_eq!(buffer.as_slice()[1..], [0; 511]);
    }
}
