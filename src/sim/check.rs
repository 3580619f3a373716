//! What is checked of a node after each of its turns.

use super::members::is_quorum;
use super::node::{CLIENT_BLOCKS_MAX, PEER_EGRESS_MAX, STAGED_MAX, SYNC_LAG_BYTES};
use super::oracle::{Lost, Seen};
use super::subject::{Observed, Subject};
use super::trace::What;
use super::world::World;
use crate::ids::{Incarnation, Index};
use crate::machine::StateMachine;
use crate::membership::Membership;
use crate::raft::Raft;
use crate::raft::ready::Role;
use crate::shard::GroupView;

/// Bytes that one turn may give to one peer, beside what waited.
const TURN_BYTES_MAX: usize = 40 << 10;
/// A leader whose disk has completed nothing for two election timeouts tries for one to hand over,
/// and perhaps before for another because it was asked to; by its own clock, and a turn may be late.
const STANDS_STILL_US: u64 = 2_000_000;
/// Four lags, and the flush that reached them.
const UNSYNCED_MAX: u64 = 4 * SYNC_LAG_BYTES + (8 << 10);
/// The shards' own invariants are checked once in so many turns.
const INVARIANTS_EVERY: u64 = 64;

/// Indices of the configuration that a group uses, and of the newest one that is committed.
/// `seen`: as they were at an earlier `commit`.
fn configuration(raft: &Raft, seen: &Seen) -> (u64, u64) {
    if seen.config.0 == raft.membership().index.get() && seen.commit == raft.commit().0 {
        return seen.config;
    }
    let kept = raft.memberships();
    let committed = kept.iter().rev().find(|kept| kept.index <= raft.commit());
    (raft.membership().index.get(), committed.map_or(0, |kept| kept.index.get()))
}

impl<S: Subject> World<S> {
    /// A possible loss is told of if, and only if, a majority may have forgotten.
    pub(super) fn note_losses(&mut self, node: usize) {
        while let Some(loss) = self.losses.pop() {
            self.stats.losses += 1;
            if let Err((rule, what)) = self.oracle.note_loss(&loss) {
                self.fail(rule, what);
            }
            self.trace.note(self.now, What::Loss { node: node as u32 + 1, loss });
            if !self.may_have_lost(loss.group) {
                let forgot = self.nodes.iter().filter(|node| node.forgot).count();
                let what = format!("n{} {loss:?}, {forgot} nodes had forgotten", node + 1);
                self.fail("a loss is told of only where there can be one", what);
            }
        }
    }

    /// Every group of the shard, and what the shard holds back.
    pub(super) fn check(&mut self, node: usize, host: usize) {
        self.note_groups(node, host);
        let mut seen = std::mem::take(&mut self.hosts[host].seen);
        let state = &self.hosts[host];
        let shard = state.shard.as_ref().expect("it has just had its turn");
        let mut broken = None;
        let mut news = Vec::new();
        for view in shard.groups() {
            let seen = &mut seen[(view.raft().group().0 / self.shape.shards) as usize];
            let since = Index(seen.config.0);
            let config = configuration(view.raft(), seen);
            if seen.config != config {
                seen.config = config;
                news.push(view.raft().group());
            }
            match self.oracle.look(node, &view, seen) {
                Ok(false) => {}
                Ok(true) => {
                    let raft = view.raft();
                    let (group, index) = (raft.group(), raft.commit());
                    let term = raft.log().term_at(index).unwrap_or_default();
                    let what = What::Commit { node: node as u32 + 1, group, index, term };
                    self.trace.note(self.now, what);
                    if raft.role() == Role::Leader && !self.is_settled_on_majority(raft, since) {
                        let what = format!("n{} g{group} i{index}", node + 1);
                        broken = Some(("what is committed is settled on a majority", what));
                    }
                }
                Err(verdict) => broken = Some(verdict),
            }
            let asleep = view.raft().is_hibernating() && view.raft().role() == Role::Leader;
            if asleep && !std::mem::replace(&mut seen.asleep, asleep) {
                self.stats.sleeps += 1;
                broken = broken.or(self.who_sleeps_too_early(view.raft()));
            }
            seen.asleep = asleep;
            if let Err(what) = stands_still(self.now, &view, seen) {
                broken = Some(("a leader whose disk stands still does not stay", what));
            }
            let waiting = view.pending();
            if waiting > (CLIENT_BLOCKS_MAX * self.shape.clients) as usize {
                broken = Some(("queues are bounded", format!("{waiting} proposals wait")));
            }
        }
        // The last record may go over, and what a leader sends is taken on by the same measure.
        let staged = shard.wal().staged_bytes();
        if staged > 2 * STAGED_MAX {
            broken = Some(("queues are bounded", format!("{staged} bytes wait for the log")));
        }
        let unsynced = shard.wal().stats().unsynced_bytes;
        if unsynced > UNSYNCED_MAX {
            broken = Some(("what is not synced is bounded (R7)", format!("{unsynced} bytes")));
        }
        if self.stats.turns.is_multiple_of(INVARIANTS_EVERY) {
            shard.check_invariants();
        }
        self.hosts[host].seen = seen;
        for group in news {
            self.note_configurations(node, host, group);
        }
        self.explain_losses();
        if let Some((rule, what)) = broken {
            self.fail(rule, what);
        }
    }

    /// A leader sleeps only when everybody who sleeps with it has its whole log (bug 38).
    fn who_sleeps_too_early(&self, leader: &Raft) -> Option<(&'static str, String)> {
        let group = leader.group();
        leader.sleepers().find_map(|id| {
            let node = id.0 as usize - 1;
            let same = self.nodes[node].up
                && Incarnation(self.nodes[node].incarnation) == leader.known_incarnation(id);
            let view = self.view(node, group.0 as usize).filter(|_| same)?;
            let (last, has) = (leader.last_index(), view.raft().last_index());
            let what = format!("g{group}: the leader {} at i{last}, {id} at i{has}", leader.id());
            (has < last).then_some(("nobody sleeps who lacks something", what))
        })
    }

    /// A told loss does not excuse everything: what the disks of a majority still hold must be in the
    /// log of whoever was elected by all. Disks with damage, and new ones, prove nothing.
    fn explain_losses(&mut self) {
        while let Some(Lost { group, index, term }) = self.oracle.gone.pop() {
            self.configurations[group.0 as usize].lose(index.prev());
            self.lost_at[group.0 as usize] = self.now;
            let shards = self.shape.shards as usize;
            let holds = |node: usize| {
                let state = &self.nodes[node];
                let host = &self.hosts[node * shards + group.0 as usize % shards];
                let sound = !state.may_rot && !state.is_stranger && !state.is_misdirected;
                sound && host.shadow.holds(group, index, term)
            };
            let proven =
                self.configurations[group.0 as usize].alive().all(|m| is_quorum(m, &holds));
            if proven && !self.options.lying_disks {
                let what = format!("g{group} i{index} of t{term} is on the disks of a majority");
                self.fail("a loss takes only what a majority has lost", what);
            }
        }
    }

    /// R2: by the completions that a majority has seen, not by what it says. Nodes that have lost
    /// what they had settled count: they had.
    ///
    /// `since`: the configuration that the leader used before this turn. In the turn it may have
    /// begun to use others, each of which counts only if the one before it has agreed to it.
    fn is_settled_on_majority(&self, raft: &Raft, since: Index) -> bool {
        let (shards, nodes, group) = (self.shape.shards as usize, &self.nodes, raft.group());
        let is_settled = |membership: &Membership, index: Index| {
            let term = raft.log().term_at(index).unwrap_or_default();
            let holds = |node: usize| {
                let host = &self.hosts[node * shards + group.0 as usize % shards];
                let sync = self.shape.syncs(group);
                nodes[node].forgot || host.shadow.may_say_matched(group, index, term, sync)
            };
            is_quorum(membership, &holds)
        };
        let kept = raft.memberships();
        let first = kept.partition_point(|kept| kept.index <= since).saturating_sub(1);
        for (i, membership) in kept[first..].iter().enumerate() {
            if is_settled(membership, raft.commit()) {
                return true;
            }
            let next = kept.get(first + i + 1);
            let agreed = membership.index <= raft.commit()
                && (membership.index == Index::ZERO || is_settled(membership, membership.index));
            if next.is_none() || !agreed {
                break;
            }
        }
        self.options.lying_disks
    }

    /// What waits for a peer's socket.
    pub(super) fn check_egress(&mut self, host: usize, bytes: usize) {
        if bytes > 2 * PEER_EGRESS_MAX + TURN_BYTES_MAX {
            self.fail("queues are bounded", format!("h{host} holds {bytes} bytes for a peer"));
        }
    }
}

/// Bug 28: whoever cannot write must not go on leading.
fn stands_still<M: StateMachine>(
    now: u64,
    view: &GroupView<'_, Observed<M>>,
    seen: &mut Seen,
) -> Result<(), String> {
    let raft = view.raft();
    let durable = raft.durable_index();
    if raft.role() != Role::Leader || raft.is_alone() || durable == raft.last_index() {
        seen.stands_still = None;
        return Ok(());
    }
    match seen.stands_still {
        Some((index, since)) if index == durable.0 => {
            if now - since < STANDS_STILL_US {
                return Ok(());
            }
            Err(format!("{} leads g{}, durable through i{durable}", raft.id(), raft.group()))
        }
        _ => {
            seen.stands_still = Some((durable.0, now));
            Ok(())
        }
    }
}
