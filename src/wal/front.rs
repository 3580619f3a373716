//! Logs whose front is gone.
//!
//! How a log loses its front though all that is left of it is whole:
//!
//! 1. damage in segment 1; the start goes on in segment 7 and logs all votes again there;
//! 2. nothing needs segment 1 any more, and its file is used again; 3 to 6, left behind by the damage,
//!    are not used yet;
//! 3. segment 7's header is damaged too. The lowest file that can be read is segment 3, what it
//!    continues has no file any more, as with any log whose front was released, and so the chain
//!    begins there: with entries 8, 9, ... of a group whose entries 1 to 7 are nowhere.
//!
//! Such entries are no log: nothing can be applied of them, and what index 7 held nobody can say.

use super::recovery::{Recovered, Verdict};
use super::replay::RecoveredGroup;
use crate::ids::{GroupId, Index, Lsn};

impl Recovered {
    /// Drops the entries of groups whose log begins further on than it says that it begins. After rot,
    /// when the record that says so may be what was damaged, `snapshot` makes up for it: the index of
    /// the group's newest one (`Index::ZERO` without one). Term and vote
    /// stay. The groups concerned; if there is one, bytes that were durable are gone, and **every**
    /// group of the shard has to start `RECOVERING`, as after rot: they held votes as well.
    pub fn drop_headless(&mut self, snapshot: impl Fn(GroupId) -> Index) -> Vec<GroupId> {
        let rot = matches!(self.verdict, Verdict::Rot { .. });
        let covered = |id: GroupId, group: &RecoveredGroup| {
            let start = group.start.map_or(Index::ZERO, |start| start.index);
            if rot { start.max(snapshot(id)) } else { start }
        };
        let headless = |(id, group): (&GroupId, &RecoveredGroup)| {
            let gap = group.last > Index::ZERO && group.first > covered(*id, group).next();
            gap.then_some(*id)
        };
        let dropped: Vec<_> = self.groups.iter().filter_map(headless).collect();
        for id in &dropped {
            let known = self.groups.get_mut(id).expect("found above");
            let mut hard_state = known.hard_state;
            hard_state.commit = hard_state.commit.min(covered(*id, known));
            let start = known.start;
            *known = RecoveredGroup { hard_state, ..RecoveredGroup::default() };
            if let Some(start) = start {
                known.begin_at(start, true);
            }
            self.replay.index.cut(&mut self.replay.refs, *id, Index::ZERO, Lsn::ZERO);
        }
        dropped
    }
}
