//! The log goes on after rot: what it takes from then on is kept like anything else, however often
//! power fails, and the old damage is not found again once the log has gone on behind it.

use std::collections::BTreeMap;

use super::disk::{Disk, Image, Rng};
use super::rot::{is_rot, settled};
use super::story::{ME, block, small};
use crate::ids::{GroupId, HardState, Index, Lsn, Term, Tick};
use crate::wal::{Recovered, Wal, recover_from};

/// What a group must show: its hard state and the end of its log.
type Shown = BTreeMap<GroupId, (HardState, Index)>;

struct Life {
    wal: Wal,
    disk: Disk,
    rng: Rng,
    /// The highest durable position that the boot record remembers, from before the damage.
    mark: Lsn,
    /// What the damaged log showed, and the end of what was logged again of it.
    base: Shown,
    restated: Lsn,
    now: Shown,
    history: Vec<(Lsn, Shown)>,
}

fn shown(recovered: &Recovered) -> Shown {
    recovered.groups.iter().map(|(id, group)| (*id, (group.hard_state, group.last))).collect()
}

fn damage(image: &mut Image, rng: &mut Rng) {
    let nth = rng.below(image.0.len() as u64) as usize;
    let file = image.0.values_mut().nth(nth).expect("below the count");
    match rng.below(4) {
        0 => file[..512].fill(0),
        1 => file.fill(0),
        _ => {
            let at = rng.below(file.len() as u64) as usize;
            file[at] ^= 4;
        }
    }
}

impl Life {
    /// Goes on after the damage; `None` if it did not hit what was durable.
    fn begin(mut image: Image, mark: Lsn, seed: u64) -> Option<Self> {
        let mut rng = Rng::new(seed);
        damage(&mut image, &mut rng);
        let mut recovered = recover_from(small(), ME, &mut image, mark).unwrap();
        if !is_rot(&recovered) {
            return None;
        }
        let wal = Wal::resume(small(), ME, seed, &mut recovered);
        let (disk, base) = (Disk::from_image(small(), image), shown(&recovered));
        let (restated, now, history) = (wal.staged(), base.clone(), Vec::new());
        Some(Self { wal, disk, rng, mark, base, restated, now, history })
    }

    fn step(&mut self) {
        let group = GroupId(self.rng.below(5) as u32);
        let (state, last) = self.now.entry(group).or_default();
        match self.rng.below(8) {
            0 => {
                state.term = Term(state.term.0 + 1 + self.rng.below(3) * 40);
                let lsn = self.wal.hard_state(group, *state);
                self.history.push((lsn, self.now.clone()));
            }
            1 | 2 => {
                // A term that no entry before it can exceed.
                let block = block(group, 1 << 20, last.0 + 1, 8 * self.rng.below(60) as usize, 1);
                *last = last.next();
                let lsn = self.wal.append(group, &[block], false, true);
                self.history.push((lsn, self.now.clone()));
            }
            3 => self.wal.release(group, Index(last.0.saturating_sub(1))),
            4 | 5 => self.flush(),
            _ if self.disk.ops.is_empty() => self.flush(),
            _ => {
                let at = self.rng.below(self.disk.ops.len() as u64) as usize;
                let (op, done) = self.disk.complete(at);
                let _ = self.wal.complete(Tick(1), op, Ok(done)).unwrap();
            }
        }
    }

    fn flush(&mut self) {
        let mut ops = Vec::new();
        self.wal.flush(Tick(1), &mut ops);
        self.disk.issue(&mut ops);
    }

    /// Power fails now. Gives what survives if the log has gone on behind the damage.
    fn cut_power(&mut self) -> Option<(Recovered, Image)> {
        let percent = [0, 50, 100][self.rng.below(3) as usize];
        let rng = &mut self.rng;
        let mut image = self.disk.image(|_, _| rng.chance(percent));
        let found = recover_from(small(), ME, &mut image, self.mark).unwrap();
        if is_rot(&found) {
            assert!(self.wal.durable() < self.restated, "the same rot is not found for ever");
            // A later flush may have survived where the first one did not: what it says of terms is
            // kept as well, and nothing that was found before is gone.
            for (group, (state, last)) in &self.base {
                let seen = &found.groups[group];
                assert!(seen.last == *last && seen.hard_state.term >= state.term, "{group:?}");
            }
            return None;
        }
        assert!(found.end >= self.wal.durable(), "what was promised after the rot is there");
        let before = self.history.iter().rev().find(|(lsn, _)| *lsn <= found.end);
        let expected = before.map_or(&self.base, |(_, shown)| shown);
        let whole = found.end >= self.restated;
        assert!(whole, "what hides the rot must have taken its place: {found:?}");
        for (group, (state, last)) in expected {
            let seen = found.groups.get(group).cloned().unwrap_or_default();
            assert!(!whole || seen.hard_state == *state, "{group:?}: {seen:?}, not {state:?}");
            assert!(seen.last == *last || seen.last == Index::ZERO, "{group:?}: {seen:?} {last}");
        }
        Some((found, image))
    }
}

#[test]
fn after_rot_the_log_goes_on_and_power_cuts_lose_nothing_of_it() {
    let (mut lives, mut cuts, mut again) = (0, 0, 0);
    for seed in 0..60 {
        let (story, image) = settled(seed % 6);
        let mark = story.wal.durable();
        let Some(mut life) = Life::begin(image, mark, seed) else { continue };
        lives += 1;
        for step in 0..160 {
            life.step();
            cuts += 1;
            let Some((mut found, image)) = life.cut_power() else { continue };
            if step % 50 == 49 {
                // The machine really went down: the next life is an ordinary one.
                let base = shown(&found);
                life.wal = Wal::resume(small(), ME, seed + step, &mut found);
                life.disk = Disk::from_image(small(), image);
                (life.base, life.now, life.restated) = (base.clone(), base, Lsn::ZERO);
                life.history.clear();
                again += 1;
            }
        }
    }
    assert!(lives > 20 && cuts > 4000 && again > 20, "{lives} {cuts} {again}");
}
