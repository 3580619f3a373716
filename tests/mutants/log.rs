//! One log on a disk that loses, tears, rots and fails, with the shadow beside it.

use bytes::Bytes;

use ringraft::block::{Block, BlockKind};
use ringraft::ids::{GroupId, HardState, Index, Lsn, NodeId, Term, Tick};
use ringraft::rng::Rng;
use ringraft::sim::disk::{Disk, OpClass, Survival, Times};
use ringraft::sim::shadow::Shadow;
use ringraft::wal::{LogIdentity, Recovered, Verdict, Wal, WalConfig, recover};

const ME: LogIdentity = LogIdentity { cluster: 7, node: 1, disk: 3 };
const GROUPS: u64 = 4;
const LIVES: u64 = 8;

fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 8 << 10,
        block_bytes: 512,
        depth: 4,
        flush_bytes_max: 2048,
        spare_segments: 1,
        sync_lag_us: 800,
        sync_lag_bytes: 4000,
        ..WalConfig::default()
    }
}

#[derive(Clone, Copy, Default)]
struct Group {
    term: u64,
    last: u64,
    released: u64,
}

struct Log {
    wal: Wal,
    disk: Disk,
    shadow: Shadow,
    rng: Rng,
    now: u64,
    groups: [Group; GROUPS as usize],
    failed: bool,
}

fn block(group: GroupId, term: u64, index: u64, size: usize) -> Block {
    let body = Bytes::from(vec![term as u8 ^ index as u8; size]);
    let mut block = Block::special(group, BlockKind::Noop, body);
    block.stamp(Term(term), Index(index), 0);
    block
}

impl Log {
    /// Something a group might log.
    fn stage(&mut self) {
        let g = self.rng.below(GROUPS);
        let (id, group) = (GroupId(g as u32), &mut self.groups[g as usize]);
        let kind = self.rng.below(100);
        if kind < 20 {
            group.term += 1;
            let vote = NodeId::from_wire(self.rng.below(3) as u32);
            let commit = Index(group.released);
            self.wal.hard_state(id, HardState { term: Term(group.term), vote, commit });
            return;
        }
        let truncates = kind < 30 && group.last > group.released + 1;
        if truncates {
            group.last = self.rng.between(group.released, group.last - 1);
            group.term += 1;
            let state = HardState { term: Term(group.term), vote: None, commit: Index::ZERO };
            self.wal.hard_state(id, state);
        }
        group.last += 1;
        let size = 8 * self.rng.below(90) as usize;
        let sync = self.rng.chance(50);
        self.wal.append(id, &[block(id, group.term.max(1), group.last, size)], truncates, sync);
        group.term = group.term.max(1);
        // A snapshot would stand in for what is released, so it speaks for durable entries only.
        if group.last > group.released + 8 && self.rng.chance(40) {
            group.released = group.last - 2;
            self.wal.release(id, Index(group.released));
        }
    }

    fn flush(&mut self) -> Result<(), String> {
        let mut ops = Vec::new();
        self.wal.flush(Tick(self.now), &mut ops);
        for op in &ops {
            self.shadow.issued(op)?;
        }
        self.disk.issue(Tick(self.now), &mut ops);
        Ok(())
    }

    fn complete(&mut self, until: u64) {
        self.now = until;
        while let Some((op, done)) = self.disk.take_due(Tick(until)) {
            self.shadow.completed(op, done.is_ok());
            // The first error ends the process.
            self.failed |= self.wal.complete(Tick(until), op, done).is_err();
        }
    }

    fn agrees(&self) -> Result<(), String> {
        let (wal, shadow) = (&self.wal, &self.shadow);
        if wal.durable() > shadow.durable() || wal.written() > shadow.written() {
            return Err(format!(
                "the log claims {}/{}, the disk has {}/{}",
                wal.durable(),
                wal.written(),
                shadow.durable(),
                shadow.written()
            ));
        }
        Ok(())
    }

    fn live(&mut self) -> Result<(), String> {
        for _ in 0..self.rng.below(120) {
            if self.failed {
                break;
            }
            if self.wal.room() > 8192 {
                self.stage();
            }
            if self.rng.chance(1) {
                let classes = [OpClass::Write, OpClass::Sync, OpClass::Sync];
                let class = classes[self.rng.below(3) as usize];
                self.disk.fail(class, Times::Once);
            }
            let until = self.now + self.rng.below(400);
            self.complete(until);
            self.flush()?;
            self.agrees()?;
        }
        self.disk.heal();
        Ok(())
    }

    /// Everything is written and durable; where the log was durable before the last flush.
    fn settle(&mut self) -> Result<Lsn, String> {
        let mut before = Lsn::ZERO;
        for _ in 0..2 {
            self.wal.sync();
            for _ in 0..400 {
                self.flush()?;
                self.complete(self.now + 300);
            }
            self.agrees()?;
            if self.failed || self.wal.durable() < self.wal.staged() {
                return Ok(Lsn::ZERO);
            }
            if before == Lsn::ZERO {
                before = self.wal.durable();
                self.groups[0].term += 1;
                let term = Term(self.groups[0].term);
                let state = HardState { term, vote: None, commit: Index::ZERO };
                self.wal.hard_state(GroupId(0), state);
            }
        }
        Ok(before)
    }

    fn recover(&mut self) -> Result<Recovered, String> {
        recover(config(), ME, &mut self.disk.source()).map_err(|error| error.to_string())
    }

    /// The process ends in one of the ways there are; what the next one finds.
    fn end(&mut self) -> Result<Recovered, String> {
        let rots = self.rng.chance(25);
        let before = if rots { self.settle()? } else { Lsn::ZERO };
        if self.rng.chance(50) {
            self.disk.power_cut(Survival::Mixed);
        } else {
            self.disk.kill();
        }
        let found = self.recover()?;
        if let Verdict::Rot { .. } = found.verdict {
            return Err("rot where there was none".to_owned());
        }
        if let Some(lost) = self.shadow.lost(&found) {
            return Err(lost);
        }
        if before == Lsn::ZERO {
            return Ok(found);
        }
        if found.durable < before {
            return Err(format!("{before} was durable, the log remembers {}", found.durable));
        }
        self.look_at_rot(found)
    }

    /// Damage below the durable mark is told, or was harmless.
    fn look_at_rot(&mut self, whole: Recovered) -> Result<Recovered, String> {
        let mut rng = self.rng.fork(1);
        if self.disk.rot(&mut rng).is_none() {
            return Ok(whole);
        }
        let found = self.recover()?;
        let told = matches!(found.verdict, Verdict::Rot { .. });
        if !told && found.end < whole.durable {
            return Err(format!("damage cut the log from {} to {}", whole.durable, found.end));
        }
        Ok(found)
    }
}

/// A few lives of a log. The error says what was promised and not kept.
pub fn lives(seed: u64) -> Result<(), String> {
    let mut disk = Disk::new(config(), seed);
    let mut found = recover(config(), ME, &mut disk.source()).map_err(|e| e.to_string())?;
    let wal = Wal::resume(config(), ME, seed, &mut found);
    let shadow = Shadow::new(config());
    let rng = Rng::new(seed).fork(9);
    let groups = [Group::default(); GROUPS as usize];
    let mut log = Log { wal, disk, shadow, rng, now: 0, groups, failed: false };
    for life in 0..LIVES {
        let slowest = [150, 1000, 4000][log.rng.below(3) as usize];
        log.disk.set_latency(20, slowest);
        log.live()?;
        let mut found = log.end()?;
        if matches!(found.verdict, Verdict::Rot { .. }) {
            return Ok(());
        }
        log.shadow = log.shadow.restarted(&found);
        for (g, group) in log.groups.iter_mut().enumerate() {
            let known = found.groups.get(&GroupId(g as u32)).cloned().unwrap_or_default();
            let of_log = known.terms.last().map_or(0, |run| run.term.0);
            group.term = known.hard_state.term.0.max(of_log);
            group.last = known.last.0;
            group.released = group.released.min(group.last).max(known.first.0.saturating_sub(1));
        }
        log.wal = Wal::resume(config(), ME, seed * 100 + life + 1, &mut found);
        log.failed = false;
    }
    Ok(())
}
