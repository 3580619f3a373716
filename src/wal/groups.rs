//! The groups of a shard's log by number, found without a search: every record that is staged asks
//! for its group, and with a thousand of them a tree costs a cache line or two at each of its levels.

use std::collections::BTreeMap;
use std::ops::Index as At;

use super::index::GroupLog;
use crate::ids::GroupId;

/// Numbers from here on are looked up in a tree: a damaged record may name any.
const DENSE_MAX: usize = 1 << 20;
/// No group has this place.
const NONE: u32 = u32::MAX;

/// See the module. In the order in which the groups first appeared in the log.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// By group number: its place in `logs`.
    places: Vec<u32>,
    high: BTreeMap<GroupId, u32>,
    logs: Vec<(GroupId, GroupLog)>,
}

impl Groups {
    #[inline]
    fn place(&self, group: GroupId) -> Option<usize> {
        let place = match self.places.get(group.0 as usize) {
            Some(&place) => place,
            None => self.high.get(&group).copied().unwrap_or(NONE),
        };
        if place == NONE { None } else { Some(place as usize) }
    }

    #[inline]
    pub fn get(&self, group: &GroupId) -> Option<&GroupLog> {
        self.place(*group).map(|place| &self.logs[place].1)
    }

    #[inline]
    pub fn get_mut(&mut self, group: &GroupId) -> Option<&mut GroupLog> {
        self.place(*group).map(|place| &mut self.logs[place].1)
    }

    /// The group's part, an empty one if it is new.
    #[inline]
    pub fn of(&mut self, group: GroupId) -> &mut GroupLog {
        let place = match self.place(group) {
            Some(place) => place,
            None => self.add(group),
        };
        &mut self.logs[place].1
    }

    #[cold]
    fn add(&mut self, group: GroupId) -> usize {
        let (number, place) = (group.0 as usize, self.logs.len());
        if number < DENSE_MAX {
            if self.places.len() <= number {
                self.places.resize(number + 1, NONE);
            }
            self.places[number] = place as u32;
        } else {
            self.high.insert(group, place as u32);
        }
        self.logs.push((group, GroupLog::default()));
        place
    }

    pub fn iter(&self) -> impl Iterator<Item = (&GroupId, &GroupLog)> {
        self.logs.iter().map(|(group, log)| (group, log))
    }
}

impl At<&GroupId> for Groups {
    type Output = GroupLog;

    fn index(&self, group: &GroupId) -> &GroupLog {
        self.get(group).expect("a group of this log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Index;
    use crate::wal::index::Run;

    #[test]
    fn any_number_is_found_again_and_no_other() {
        let mut groups = Groups::default();
        let numbers = [7, 0, 1 << 20, u32::MAX, 3];
        for number in numbers {
            let run = Run { first: Index(1), last: Index(number.into()), ..Run::default() };
            groups.of(GroupId(number)).runs.push_back(run);
        }
        for number in numbers {
            assert_eq!(groups[&GroupId(number)].runs[0].last, Index(number.into()));
        }
        assert!([1, 2, 8, (1 << 20) + 1].iter().all(|&n| groups.get(&GroupId(n)).is_none()));
        assert_eq!(groups.iter().map(|(group, _)| group.0).collect::<Vec<_>>(), numbers);
    }
}
