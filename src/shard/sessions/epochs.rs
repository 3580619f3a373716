//! Where each recovery epoch of a group begins, for readers that were there before (durability.md
//! R9).
//!
//! ```text
//! a reader has read   e0: … i117 i118 … i341         then a majority loses i118 and what follows
//! the log since       e0: … i117 │ e1: i118 … i900
//! it asks behind (e0, i341)      refused: truncated from i118, where e1 begins
//! it asks behind (e0, i117)      answered: nothing that it has read is gone
//! ```
//!
//! Replicated: noted as blocks are applied, and part of snapshots, since the log forgets its terms.

use crate::ids::Index;

/// Beginnings that are kept. Older ones are taken together, so that a reader is told to go back
/// further than it need.
pub(super) const EPOCHS_MAX: usize = 1024;

/// See the module. Epochs and indices ascend; epoch 0 begins with the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epochs(Vec<(u32, Index)>);

impl Epochs {
    /// That of an entry of the log.
    pub fn at(&self, index: Index) -> u32 {
        let after = self.entries().partition_point(|(_, first)| *first <= index);
        after.checked_sub(1).map_or(0, |at| self.entries()[at].0)
    }

    /// The present epoch.
    #[inline]
    pub fn last(&self) -> u32 {
        self.0.last().map_or(0, |&(epoch, _)| epoch)
    }

    /// A higher epoch begins at `since`. Where that is no higher index than where others begin, nothing
    /// is told under those any more.
    pub(super) fn note(&mut self, epoch: u32, since: Index) {
        assert!(epoch > self.last(), "epochs never fall along the log");
        while self.0.last().is_some_and(|&(_, first)| first >= since) {
            self.0.pop();
        }
        self.0.push((epoch, since));
        if self.0.len() > EPOCHS_MAX {
            let (_, oldest) = self.0.remove(0);
            self.0[0].1 = oldest;
        }
    }

    /// Whether someone who has read through `index` in `epoch` has read what is no longer there:
    /// the epoch and the index from which on that is so.
    pub fn parted(&self, epoch: u32, index: Index) -> Option<(u32, Index)> {
        let next = self.0.iter().find(|&&(later, _)| later > epoch)?;
        (index >= next.1).then_some(*next)
    }

    /// In order.
    pub(super) fn entries(&self) -> &[(u32, Index)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(entries: &[(u32, u64)]) -> Epochs {
        let mut epochs = Epochs::default();
        entries.iter().for_each(|&(epoch, first)| epochs.note(epoch, Index(first)));
        epochs
    }

    #[test]
    fn who_has_read_what_was_lost_is_told_from_where_and_nobody_else() {
        let epochs = epochs(&[(1, 118), (3, 500)]);
        let told = |epoch, index| epochs.parted(epoch, Index(index)).map(|(e, i)| (e, i.0));
        assert_eq!(told(0, 341), Some((1, 118)));
        assert_eq!(told(0, 118), Some((1, 118)));
        assert_eq!(told(0, 117), None);
        assert_eq!(told(0, 700), Some((1, 118)), "not where the last one begins");
        assert_eq!(
            (told(1, 499), told(1, 500), told(2, 500)),
            (None, Some((3, 500)), Some((3, 500)))
        );
        assert_eq!((told(3, 900), told(4, 900)), (None, None), "this replica may lag");
        assert_eq!(Epochs::default().parted(0, Index(9)), None);
    }

    #[test]
    fn an_epoch_that_begins_as_low_as_others_takes_their_place() {
        let epochs = epochs(&[(1, 118), (2, 200), (3, 300), (4, 200)]);
        assert_eq!(epochs.entries(), [(1, Index(118)), (4, Index(200))]);
        assert_eq!((epochs.at(Index(199)), epochs.at(Index(200))), (1, 4));
        let told = |epoch, index| epochs.parted(epoch, Index(index)).map(|(e, i)| (e, i.0));
        assert_eq!(
            (told(2, 199), told(2, 200), told(3, 310)),
            (None, Some((4, 200)), Some((4, 200)))
        );
    }

    #[test]
    fn beginnings_that_are_taken_together_are_told_of_too_early_and_never_too_late() {
        let entries: Vec<_> =
            (1..=EPOCHS_MAX as u32 + 10).map(|n| (n, u64::from(n) * 10)).collect();
        let epochs = epochs(&entries);
        assert_eq!(epochs.0.len(), EPOCHS_MAX);
        assert_eq!(epochs.parted(0, Index(10)), Some((11, Index(10))));
        assert_eq!(epochs.parted(500, Index(5009)), None);
        assert_eq!(epochs.parted(500, Index(5010)), Some((501, Index(5010))));
    }
}
