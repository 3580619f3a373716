//! Containers that can be frozen: a clone shares everything, and a write afterwards copies the one
//! page it falls on.
//!
//! ```text
//! clone     pages ──▶ │ p0 │ p1 │ p2 │        one pointer a page is copied
//! write     pages ──▶ │ p0 │ p1'│ p2 │        the page, and in it the entry, are copied once
//! ```
//!
//! Reference counts are not atomic: a state machine lives on one shard's thread, and so does what is
//! frozen of it.

use std::collections::VecDeque;
use std::rc::Rc;

/// Entries of a page of [`Pages`]: what the first write after a freeze copies pointers to.
const PAGE: usize = 256;
/// Most entries of a page of [`SharedMap`].
const MAP_PAGE: usize = 128;

/// A vector that only grows.
#[derive(Debug)]
pub struct Pages<T> {
    pages: Vec<Rc<Vec<Rc<T>>>>,
    len: usize,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), len: 0 }
    }
}

/// Shares all pages.
impl<T> Clone for Pages<T> {
    fn clone(&self) -> Self {
        Self { pages: self.pages.clone(), len: self.len }
    }
}

impl<T: Clone> Pages<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// # Panics
    /// Like indexing, beyond the end.
    #[inline]
    pub fn get(&self, at: usize) -> &T {
        &self.pages[at / PAGE][at % PAGE]
    }

    /// The entry, copied before if a frozen state shares it.
    #[inline]
    pub fn get_mut(&mut self, at: usize) -> &mut T {
        Rc::make_mut(&mut Rc::make_mut(&mut self.pages[at / PAGE])[at % PAGE])
    }

    pub fn push(&mut self, entry: T) {
        if self.len.is_multiple_of(PAGE) {
            self.pages.push(Rc::new(Vec::new()));
        }
        Rc::make_mut(self.pages.last_mut().expect("one has room")).push(Rc::new(entry));
        self.len += 1;
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flat_map(|page| page.iter()).map(|entry| &**entry)
    }

    /// Heap bytes beside what the entries hold themselves.
    pub fn memory_bytes(&self) -> u64 {
        (self.len * (size_of::<T>() + 24) + self.pages.capacity() * 48) as u64
    }

    /// Entries that nobody else has.
    pub fn unshared(&self) -> impl Iterator<Item = &T> {
        let pages = self.pages.iter().filter(|page| Rc::strong_count(page) == 1);
        let entries = pages.flat_map(|page| page.iter());
        entries.filter(|entry| Rc::strong_count(entry) == 1).map(|entry| &**entry)
    }

    /// Hands the entries out in order and lets each go.
    pub fn drain(self) -> PagesDrain<T> {
        PagesDrain { pages: self.pages.into(), page: VecDeque::new() }
    }
}

/// See [`Pages::drain`].
#[derive(Debug)]
pub struct PagesDrain<T> {
    pages: VecDeque<Rc<Vec<Rc<T>>>>,
    page: VecDeque<Rc<T>>,
}

/// Entries are handed out without a copy if nobody else has them any more.
impl<T: Clone> Iterator for PagesDrain<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        if self.page.is_empty() {
            self.page = Rc::unwrap_or_clone(self.pages.pop_front()?).into();
        }
        self.page.pop_front().map(Rc::unwrap_or_clone)
    }
}

impl<T> PagesDrain<T> {
    /// Entries that are left and that nobody else has.
    pub fn unshared(&self) -> impl Iterator<Item = &T> {
        let pages = self.pages.iter().filter(|page| Rc::strong_count(page) == 1);
        let entries = pages.flat_map(|page| page.iter()).chain(&self.page);
        entries.filter(|entry| Rc::strong_count(entry) == 1).map(|entry| &**entry)
    }
}

/// A key and its value; a copy of a page copies two pointers an entry.
type Pair = (Rc<[u8]>, Rc<[u8]>);

/// A map of byte strings in the order of keys.
#[derive(Clone, Debug, Default)]
pub struct SharedMap {
    /// None is empty; keys ascend within and across.
    pages: Vec<Rc<Vec<Pair>>>,
    len: usize,
}

impl SharedMap {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let (page, at) = self.place(key).ok()?;
        Some(&self.pages[page][at].1)
    }

    /// Where the key is, or where it belongs.
    fn place(&self, key: &[u8]) -> Result<(usize, usize), (usize, usize)> {
        let page = self.pages.partition_point(|page| *page[0].0 <= *key).saturating_sub(1);
        let Some(entries) = self.pages.get(page) else { return Err((0, 0)) };
        let at = entries.binary_search_by(|(k, _)| (**k).cmp(key));
        at.map(|at| (page, at)).map_err(|at| (page, at))
    }

    /// The value that was there.
    pub fn insert(&mut self, key: &[u8], value: &[u8]) -> Option<Rc<[u8]>> {
        match self.place(key) {
            Ok((page, at)) => {
                let entry = &mut Rc::make_mut(&mut self.pages[page])[at];
                Some(std::mem::replace(&mut entry.1, value.into()))
            }
            Err((page, at)) => {
                self.insert_at(page, at, (key.into(), value.into()));
                None
            }
        }
    }

    fn insert_at(&mut self, page: usize, at: usize, pair: Pair) {
        self.len += 1;
        if self.pages.is_empty() {
            self.pages.push(Rc::default());
        }
        let entries = Rc::make_mut(&mut self.pages[page]);
        entries.insert(at, pair);
        if entries.len() > MAP_PAGE {
            // Keys that come in order leave full pages behind, others half-full ones.
            let keep = if at == MAP_PAGE { MAP_PAGE } else { MAP_PAGE / 2 };
            let upper = entries.split_off(keep);
            self.pages.insert(page + 1, Rc::new(upper));
        }
    }

    /// The value that was there.
    pub fn remove(&mut self, key: &[u8]) -> Option<Rc<[u8]>> {
        let (page, at) = self.place(key).ok()?;
        let entries = Rc::make_mut(&mut self.pages[page]);
        let (_, value) = entries.remove(at);
        if entries.is_empty() {
            self.pages.remove(page);
        }
        self.len -= 1;
        Some(value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pages.iter().flat_map(|page| page.iter()).map(|(key, value)| (&**key, &**value))
    }

    /// Hands the pairs out in order and lets each page go.
    pub fn drain(self) -> MapDrain {
        MapDrain { pages: self.pages.into(), at: 0 }
    }
}

/// See [`SharedMap::drain`].
#[derive(Debug)]
pub struct MapDrain {
    pages: VecDeque<Rc<Vec<Pair>>>,
    /// Pairs of the first page that were handed out.
    at: usize,
}

impl MapDrain {
    /// Appends the next pair as `u32 size of the key, u32 size of the value, key, value`. `false`:
    /// there is none.
    pub fn put_next(&mut self, into: &mut Vec<u8>) -> bool {
        let Some(page) = self.pages.front() else { return false };
        let (key, value) = &page[self.at];
        super::snapshot::put_u32s(into, &[key.len() as u32, value.len() as u32]);
        into.extend_from_slice(key);
        into.extend_from_slice(value);
        self.at += 1;
        if self.at == page.len() {
            self.pages.pop_front();
            self.at = 0;
        }
        true
    }

    /// Bytes of keys and values that nobody else has, and of pages.
    pub fn memory_bytes(&self) -> u64 {
        let pages = self.pages.iter().filter(|page| Rc::strong_count(page) == 1);
        pages.map(|page| page.iter().map(unshared_bytes).sum::<u64>()).sum()
    }
}

fn unshared_bytes((key, value): &Pair) -> u64 {
    let own = |bytes: &Rc<[u8]>| if Rc::strong_count(bytes) == 1 { bytes.len() as u64 } else { 0 };
    size_of::<Pair>() as u64 + own(key) + own(value)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_write_after_a_freeze_copies_one_page_of_pointers_and_one_entry() {
        let mut live = Pages::default();
        (0..10 * PAGE).for_each(|n| live.push(n));
        let frozen = live.clone();
        *live.get_mut(700) = 1;
        *live.get_mut(701) = 1;
        let shared = live.pages.iter().zip(&frozen.pages).filter(|(a, b)| Rc::ptr_eq(a, b));
        assert_eq!(shared.count(), 9);
        let (a, b) = (&live.pages[700 / PAGE], &frozen.pages[700 / PAGE]);
        assert_eq!(a.iter().zip(b.iter()).filter(|(a, b)| !Rc::ptr_eq(a, b)).count(), 2);
        let drain = frozen.drain();
        assert_eq!(drain.unshared().copied().collect::<Vec<_>>(), [700, 701]);
        assert!(drain.eq(0..10 * PAGE));
    }

    proptest! {
        /// Against the standard library's map, with frozen copies taken on the way.
        #[test]
        fn a_shared_map_is_a_map_and_a_frozen_one_stays_as_it_was(
            steps in proptest::collection::vec((0u16..900, 0u8..8), 1..3000),
        ) {
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let mut frozen = Vec::new();
            for (n, (key, value)) in steps.into_iter().enumerate() {
                let key = key.to_be_bytes();
                let (old, expected) = match value {
                    0 => (map.remove(&key), model.remove(&key)),
                    _ => (map.insert(&key, &[value]), model.insert(key, value)),
                };
                prop_assert_eq!(old.as_deref(), expected.as_ref().map(std::slice::from_ref));
                prop_assert_eq!(map.get(&key), model.get(&key).map(std::slice::from_ref));
                if n % 500 == 250 {
                    frozen.push((map.clone(), model.clone()));
                }
            }
            frozen.push((map, model));
            for (map, model) in frozen {
                prop_assert_eq!(map.len(), model.len());
                prop_assert!(map.pages.iter().all(|page| (1..=MAP_PAGE).contains(&page.len())));
                let expected = model.iter().map(|(k, v)| (&k[..], std::slice::from_ref(v)));
                prop_assert!(map.iter().eq(expected));
            }
        }
    }
}
