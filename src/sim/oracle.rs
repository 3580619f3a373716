//! What may never happen, looked for after every turn: the all-knowing view of terms, leaders,
//! committed entries and what was said about them.
//!
//! Cheap on purpose: a turn costs a comparison of a few numbers per group of its shard, a commit
//! costs its new entries, a message its 64 bytes.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{GroupId, Index, LogStart, NodeId, Term};
use crate::machine::StateMachine;
use crate::raft::ready::{PossibleLoss, Role};
use crate::raft::{Body, Log, Message, Raft, TermRun};
use crate::shard::GroupView;
use crate::shard::forced::Forced;
use crate::wire::client::Committed;

use super::subject::Observed;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule, in a few words that stay the same.
    pub rule: &'static str,
    /// Who broke it, and how.
    pub what: String,
    /// Simulated microseconds.
    pub at: u64,
}

/// The rules whose breach is the loss of something acknowledged or committed: what the control on
/// lying disks has to show.
pub const LOSSES: &[&str] = &["a leader has every committed entry", "what is acknowledged stays"];

/// A check's result; the error is (rule, what).
pub type Verdict = Result<(), (&'static str, String)>;

fn broken<T>(rule: &'static str, what: String) -> Result<T, (&'static str, String)> {
    Err((rule, what))
}

/// One committed index.
#[derive(Clone, Copy, Debug)]
struct Entry {
    term: u32,
    /// Recovery epoch of its leader.
    epoch: u32,
    /// The one under which its place is told: a later one that began with others in its place.
    place: u32,
    /// Term of the node on which it was first seen committed.
    by: u32,
    /// Checksum of the body, at a block's first index; 0 = not seen yet or not a first index.
    sum: u32,
}

/// What is known of a group, over all nodes.
#[derive(Debug, Default)]
struct Truth {
    /// By index, from 1.
    committed: Vec<Entry>,
    /// By term: the node that led it (its position + 1).
    leaders: BTreeMap<u64, u8>,
    /// By applied index; 0 = nobody was seen there.
    digests: Vec<u64>,
    /// Highest index that a client was told of.
    acknowledged: u64,
    /// By node.
    spoken: Vec<Spoken>,
    /// Terms whose election told of a possible loss.
    losses: Vec<u64>,
    /// Highest recovery epoch in which something was committed.
    epoch: u32,
    /// An operator goes on without what is missing; the next leader shows what that is.
    forced: bool,
    has_lost: bool,
    /// What was committed and is lost, as told: by index, what stood there last.
    lost: BTreeMap<u64, Entry>,
    /// All that ever stood there, for there may be several losses: index, term, epoch.
    gone: BTreeSet<(u64, u64, u32)>,
}

/// A committed entry that a told loss took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub group: GroupId,
    pub index: Index,
    pub term: Term,
}

/// The highest term that a node has shown to others, and its vote in it.
#[derive(Clone, Copy, Debug, Default)]
struct Spoken {
    term: u64,
    vote: Option<NodeId>,
}

/// What was seen of a group on a node, since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    term: u64,
    vote: Option<NodeId>,
    leads: bool,
    /// As a leader.
    pub asleep: bool,
    pub commit: u64,
    pub applied: u64,
    /// Of a leader whose last entries are not durable: how far its log is, and since when.
    pub stands_still: Option<(u64, u64)>,
    /// Index of the configuration in use, and of the newest one that was seen committed.
    pub config: (u64, u64),
    /// Uncommitted bytes that it may have while it leads.
    allowed: u64,
    /// It has parted, and has not followed since.
    parted: bool,
}

impl Truth {
    /// A leader that was elected after a loss begins where its log agrees with what was committed:
    /// what remains is a prefix. The others are handed on, to see whether the loss explains them.
    fn cut(&mut self, raft: &Raft, gone: &mut Vec<Lost>) {
        let agrees = |at: &usize| {
            let index = Index(*at as u64);
            if index < raft.log().start().index {
                return true;
            }
            let term = raft.log().term_at(index);
            term == Some(Term(u64::from(self.committed[*at - 1].term)))
        };
        let keep = (1..=self.committed.len()).rev().find(agrees).unwrap_or(0);
        for (index, entry) in (keep as u64 + 1..).zip(self.committed.drain(keep..)) {
            let term = Term(u64::from(entry.term));
            gone.push(Lost { group: raft.group(), index: Index(index), term });
            self.gone.insert((index, term.0, entry.epoch));
            self.lost.insert(index, entry);
        }
        self.digests.truncate(keep + 1);
        self.acknowledged = self.acknowledged.min(keep as u64);
        self.has_lost = true;
    }
}

/// Epochs do not fall along the log, and (epoch, index) names one command for ever (R9): an index
/// that is used again after a loss has a higher one, unless what was lost has come back.
fn compare_epochs(index: u64, new: &Entry, last: Option<&Entry>, lost: Option<&Entry>) -> Verdict {
    if let Some(last) = last.filter(|last| new.epoch < last.epoch) {
        let what = format!("i{index} has e{}, behind e{}", new.epoch, last.epoch);
        return broken("epochs do not fall along a log", what);
    }
    if let Some(lost) = lost.filter(|lost| new.place <= lost.place && new.term != lost.term) {
        let (e, t) = (new.place, new.term);
        let what = format!("i{index} is t{t} in e{e}, was t{} in e{}", lost.term, lost.place);
        return broken("an epoch and an index name one command", what);
    }
    Ok(())
}

/// The epoch under which whoever has committed so much tells of `index`.
fn place_of(log: &Log, index: u64, commit: u64) -> u32 {
    let begun = |run: &&TermRun| run.first.0 <= commit && run.since.0 <= index;
    log.runs().iter().rfind(begun).map_or(log.start().epoch, |run| run.epoch)
}

/// An epoch begins, and with it what lies from `since` on.
fn rename(committed: &mut [Entry], since: Index, epoch: u32) {
    for entry in &mut committed[since.0 as usize - 1..] {
        entry.place = entry.place.max(epoch);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Oracle {
    groups: Vec<Truth>,
    /// Most bytes that a leader may have taken on beyond its commit index.
    uncommitted_max: u64,
    pub elections: u64,
    /// Replicas that had parted and follow again.
    pub returned: u64,
    /// Losses that are still to be explained.
    pub gone: Vec<Lost>,
}

impl Oracle {
    pub fn new(nodes: u32, groups: u32, uncommitted_max: u64) -> Self {
        let truth =
            || Truth { spoken: vec![Spoken::default(); nodes as usize], ..Truth::default() };
        let groups = (0..groups).map(|_| truth()).collect();
        Self { groups, uncommitted_max, elections: 0, returned: 0, gone: Vec::new() }
    }

    /// A node has started: what its group begins with must not contradict what it had said.
    pub fn started<M: StateMachine>(
        &mut self,
        node: usize,
        view: &GroupView<'_, Observed<M>>,
        seen: &mut Seen,
    ) -> Verdict {
        let raft = view.raft();
        let group = raft.group();
        let spoken = self.groups[group.0 as usize].spoken[node];
        let (term, vote) = (raft.term().0, raft.vote());
        *seen = Seen { term, vote, ..Seen::default() };
        let forgot = term == spoken.term && spoken.vote.is_some() && vote != spoken.vote;
        if term < spoken.term || forgot {
            let what = format!(
                "n{} g{group} starts with t{term} and vote {vote:?}, had said t{} and {:?}",
                node + 1,
                spoken.term,
                spoken.vote
            );
            return broken("a term or a vote that was told is never forgotten", what);
        }
        self.look(node, view, seen).map(drop)
    }

    /// After a turn: compares what has changed. True when the commit index moved.
    #[inline]
    pub fn look<M: StateMachine>(
        &mut self,
        node: usize,
        view: &GroupView<'_, Observed<M>>,
        seen: &mut Seen,
    ) -> Result<bool, (&'static str, String)> {
        let raft = view.raft();
        let (term, commit) = (raft.term().0, raft.commit().0);
        let (applied, leads) = (view.applied().0, raft.role() == Role::Leader);
        if term != seen.term || raft.vote() != seen.vote {
            self.moved_on(node, raft, seen)?;
        }
        if leads && !seen.leads {
            // What it had taken from earlier leaders counts, and may be more than it would take.
            seen.allowed = self.uncommitted_max.max(raft.uncommitted_bytes());
            self.elected(node, raft)?;
        }
        seen.leads = leads;
        let moved = commit != seen.commit;
        let strays = (moved || applied != seen.applied) && self.strays(raft);
        if strays {
            (seen.commit, seen.applied) = (commit, applied);
            return Ok(false);
        }
        if raft.is_parted() && !self.groups[raft.group().0 as usize].has_lost {
            let what = format!("n{} g{} in t{term}", node + 1, raft.group());
            return broken("a replica parts with its leader only behind a loss", what);
        }
        seen.parted |= raft.is_parted();
        if moved {
            self.returned += u64::from(std::mem::take(&mut seen.parted));
            self.committed(node, raft, seen)?;
        }
        if applied != seen.applied {
            self.applied(node, view, seen)?;
        }
        if leads && raft.uncommitted_bytes() > seen.allowed {
            let what = format!("n{} g{} has {}", node + 1, raft.group(), raft.uncommitted_bytes());
            return broken("uncommitted bytes stay within their bound", what);
        }
        Ok(moved)
    }

    /// Whether what a replica has committed is what a told loss took: nobody asked it, and it has kept
    /// its power. Whoever leads does not stray: what it commits is the group's.
    pub fn strays(&self, raft: &Raft) -> bool {
        let truth = &self.groups[raft.group().0 as usize];
        let index = raft.commit();
        if !truth.has_lost || index == Index::ZERO || raft.role() == Role::Leader {
            return false;
        }
        let own = (raft.log().term_at(index).unwrap_or_default(), raft.log().epoch_at(index));
        let is = |entry: &Entry| (Term(u64::from(entry.term)), entry.epoch) == own;
        let stands = truth.committed.get(index.0 as usize - 1).is_some_and(is);
        !stands && truth.gone.contains(&(index.0, own.0.0, own.1))
    }

    fn moved_on(&mut self, node: usize, raft: &Raft, seen: &mut Seen) -> Verdict {
        let (term, vote) = (raft.term().0, raft.vote());
        let changed = term == seen.term && seen.vote.is_some() && vote != seen.vote;
        if term < seen.term || changed {
            let (was, had) = (seen.term, seen.vote);
            let what = format!("n{} from t{was}/{had:?} to t{term}/{vote:?}", node + 1);
            return broken("terms do not fall, votes do not change in a term", what);
        }
        if term != seen.term {
            seen.leads = false;
        }
        (seen.term, seen.vote) = (term, vote);
        Ok(())
    }

    fn elected(&mut self, node: usize, raft: &Raft) -> Verdict {
        self.elections += 1;
        let (group, term) = (raft.group(), raft.term().0);
        let truth = &mut self.groups[group.0 as usize];
        let known = truth.leaders.entry(term).or_default();
        if *known != 0 && *known as usize != node + 1 {
            let what = format!("g{group} t{term}: n{known} and n{}", node + 1);
            return broken("one leader a term", what);
        }
        *known = node as u8 + 1;
        // Entries that a leader of an earlier term has committed; those of a later one (this node
        // may have won late) are none of its business.
        let count = truth.committed.partition_point(|entry| u64::from(entry.by) < term);
        if let Some(last) = count.checked_sub(1) {
            let expected = Some(Term(u64::from(truth.committed[last].term)));
            let index = Index(count as u64);
            let found = raft.log().term_at(index);
            let found = if index < raft.log().start().index { expected } else { found };
            let forced = std::mem::take(&mut truth.forced);
            if found != expected && (forced || truth.losses.contains(&term)) {
                truth.cut(raft, &mut self.gone);
            } else if found != expected {
                let what = format!(
                    "n{} leads g{group} in t{term} and has {found:?} at i{index}, where \
                     {expected:?} was committed",
                    node + 1
                );
                return broken("a leader has every committed entry", what);
            }
        }
        Ok(())
    }

    /// An election has told of a possible loss. Its epoch is above all in which something was
    /// committed; one that was told and died with its leader before its no-op was committed is used
    /// again, for nobody was told of an index in it.
    pub fn note_loss(&mut self, loss: &PossibleLoss) -> Verdict {
        let truth = &mut self.groups[loss.group.0 as usize];
        truth.losses.push(loss.term.0);
        if loss.epoch <= truth.epoch {
            let what = format!("{loss:?} after epoch {}", truth.epoch);
            return broken("a possible loss begins a new epoch", what);
        }
        Ok(())
    }

    /// An operator has accepted a loss, and a group begins anew.
    pub fn forced(&mut self, forced: &Forced) -> Verdict {
        let Forced { group, term, epoch, .. } = *forced;
        let truth = &mut self.groups[group.0 as usize];
        truth.forced = true;
        truth.losses.push(term.0);
        // What an earlier attempt began, nobody may have seen.
        let before = truth.committed.last().map_or(0, |entry| entry.epoch);
        if epoch <= before {
            return broken(
                "a possible loss begins a new epoch",
                format!("{forced:?} after {before}"),
            );
        }
        truth.epoch = truth.epoch.max(epoch);
        Ok(())
    }

    /// Whether a possible loss of the group was told of.
    pub fn told_of_loss(&self, group: GroupId) -> bool {
        !self.groups[group.0 as usize].losses.is_empty()
    }

    /// Whether acknowledged entries of the group are gone, as was told.
    pub fn has_lost(&self, group: GroupId) -> bool {
        self.groups[group.0 as usize].has_lost
    }

    fn committed(&mut self, node: usize, raft: &Raft, seen: &mut Seen) -> Verdict {
        let (group, commit) = (raft.group(), raft.commit().0);
        if commit < seen.commit {
            let what = format!("n{} g{group} from i{} to i{commit}", node + 1, seen.commit);
            return broken("the commit index does not fall", what);
        }
        let start = raft.log().start();
        if start.index.0 > seen.commit {
            self.begins_at(node, group, start)?;
        }
        let from = seen.commit.max(start.index.0) + 1;
        seen.commit = commit;
        self.compare_terms(node, raft, from, commit)?;
        self.compare_bodies(node, raft, from, commit)
    }

    /// What a snapshot stands for was committed, here or elsewhere, and ends as it does.
    fn begins_at(&self, node: usize, group: GroupId, start: LogStart) -> Verdict {
        let LogStart { index, term, epoch } = start;
        let truth = &self.groups[group.0 as usize];
        match truth.committed.get(index.0 as usize - 1) {
            Some(entry) if (u64::from(entry.term), entry.epoch) == (term.0, epoch) => Ok(()),
            known => {
                let what = format!("n{} g{group} begins behind {start:?}: {known:?}", node + 1);
                broken("a snapshot stands for what is committed", what)
            }
        }
    }

    fn compare_terms(&mut self, node: usize, raft: &Raft, from: u64, commit: u64) -> Verdict {
        let (group, by) = (raft.group(), raft.term().0 as u32);
        let runs = raft.log().runs();
        let mut run = runs.partition_point(|run| run.first.0 <= from).saturating_sub(1);
        let Truth { committed: truth, lost, epoch: highest, .. } =
            &mut self.groups[group.0 as usize];
        for index in from..=commit {
            while runs.get(run + 1).is_some_and(|next| next.first.0 <= index) {
                run += 1;
            }
            let (term, epoch) = runs.get(run).map_or((0, 0), |run| (run.term.0 as u32, run.epoch));
            match truth.get(index as usize - 1) {
                None => {
                    let place = place_of(raft.log(), index, commit);
                    let entry = Entry { term, epoch, place, by, sum: 0 };
                    compare_epochs(index, &entry, truth.last(), lost.get(&index))
                        .map_err(|(rule, what)| (rule, format!("n{} g{group} {what}", node + 1)))?;
                    truth.push(entry);
                    *highest = epoch.max(*highest);
                    if let Some(run) = runs.get(run).filter(|run| run.first.0 == index) {
                        rename(truth, run.since, epoch);
                    }
                }
                Some(entry) if (entry.term, entry.epoch) == (term, epoch) => {}
                Some(entry) => {
                    let what = format!(
                        "n{} g{group} i{index} has t{term} e{epoch}, t{} e{} was committed",
                        node + 1,
                        entry.term,
                        entry.epoch
                    );
                    return broken("what is committed is the same everywhere", what);
                }
            }
        }
        Ok(())
    }

    /// Of the blocks in memory: what was read back from the log shows in the digests.
    fn compare_bodies(&mut self, node: usize, raft: &Raft, from: u64, commit: u64) -> Verdict {
        let group = raft.group();
        let from = Index(from).max(raft.log().first_cached());
        if from.0 > commit {
            return Ok(());
        }
        let truth = &mut self.groups[group.0 as usize].committed;
        for block in raft.log().blocks_from(from).into_iter().flatten() {
            if block.last().0 > commit {
                break;
            }
            let sum = block.header().body_checksum.max(1);
            let entry = &mut truth[block.first().0 as usize - 1];
            if entry.sum != 0 && entry.sum != sum {
                let what = format!("n{} g{group} has another body at i{}", node + 1, block.first());
                return broken("what is committed is the same everywhere", what);
            }
            entry.sum = sum;
        }
        Ok(())
    }

    fn applied<M: StateMachine>(
        &mut self,
        node: usize,
        view: &GroupView<'_, Observed<M>>,
        seen: &mut Seen,
    ) -> Verdict {
        let (group, applied) = (view.raft().group(), view.applied().0);
        if applied < seen.applied || applied > seen.commit {
            let what =
                format!("n{} g{group} applied i{applied}, commit i{}", node + 1, seen.commit);
            return broken("applied <= committed, and never back", what);
        }
        seen.applied = applied;
        if let Some((client, seq)) = view.machine().ledger.twice() {
            let what = format!("n{} g{group} applied #{seq} of c{client} twice", node + 1);
            return broken("a block is applied once", what);
        }
        let digests = &mut self.groups[group.0 as usize].digests;
        if digests.len() <= applied as usize {
            digests.resize(applied as usize + 1, 0);
        }
        let (known, digest) = (&mut digests[applied as usize], view.digest().max(1));
        if *known != 0 && *known != digest {
            let what = format!("n{} g{group} differs at i{applied}", node + 1);
            return broken("equal indices, equal digests", what);
        }
        *known = digest;
        Ok(())
    }

    /// A message leaves a node: from now on its term and vote are known to others.
    #[inline]
    pub fn spoke(&mut self, node: usize, to: NodeId, group: GroupId, message: &Message) {
        let pre = match message.body {
            Body::VoteRequest { pre, .. } | Body::VoteReply { pre, .. } => pre,
            _ => false,
        };
        if pre {
            return;
        }
        let spoken = &mut self.groups[group.0 as usize].spoken[node];
        let term = message.term.0;
        if term > spoken.term {
            *spoken = Spoken { term, vote: None };
        }
        if term == spoken.term {
            match message.body {
                Body::VoteRequest { .. } => spoken.vote = Some(NodeId(node as u32 + 1)),
                Body::VoteReply { granted: true, .. } => spoken.vote = Some(to),
                _ => {}
            }
        }
    }

    /// A client is told that its block is done. `floor`: what was acknowledged of this group when
    /// the client first asked.
    pub fn acknowledged(
        &mut self,
        group: GroupId,
        count: u64,
        floor: u64,
        done: &Committed,
    ) -> Verdict {
        let truth = &mut self.groups[group.0 as usize];
        let (first, last) = (done.first.0, done.first.0 + count - 1);
        let stands = |index: u64| {
            let entry = truth.committed.get(index as usize - 1);
            // Answers may be from before a later epoch began where the entry stands.
            let told = |e: &Entry| (e.epoch..=e.place).contains(&done.epoch);
            entry.is_some_and(|e| u64::from(e.term) == done.term.0 && told(e))
        };
        if first == 0 || !stands(first) || !stands(last) {
            let what = format!("g{group} i{first}..i{last} of t{} e{}", done.term, done.epoch);
            return broken("only what is committed is acknowledged", what);
        }
        if first <= floor && !truth.has_lost {
            let what = format!("g{group} i{first}, but i{floor} was answered before it was asked");
            return broken("what is asked later takes effect later", what);
        }
        truth.acknowledged = truth.acknowledged.max(last);
        Ok(())
    }

    /// The node's directory is gone: what it said is no longer its own.
    pub fn forget(&mut self, node: usize) {
        self.groups.iter_mut().for_each(|truth| truth.spoken[node] = Spoken::default());
    }

    /// Highest index of the group that a client was told of.
    pub fn floor(&self, group: GroupId) -> u64 {
        self.groups[group.0 as usize].acknowledged
    }

    /// Recovery epoch of the place of a committed entry.
    pub fn epoch_of(&self, group: GroupId, index: Index) -> Option<u32> {
        let at = (index.0 as usize).checked_sub(1)?;
        self.groups[group.0 as usize].committed.get(at).map(|entry| entry.place)
    }

    /// Whether the group has an entry of this epoch at `index`, as far as is known.
    pub fn stands(&self, group: GroupId, epoch: u32, index: Index) -> bool {
        index == Index::ZERO || self.epoch_of(group, index) == Some(epoch)
    }

    /// Highest index of the group that is committed anywhere.
    pub fn commit(&self, group: GroupId) -> u64 {
        self.groups[group.0 as usize].committed.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(term: u32, epoch: u32) -> Entry {
        Entry { term, epoch, place: epoch, by: term, sum: 0 }
    }

    #[test]
    fn an_index_is_used_again_only_in_a_higher_epoch_or_by_the_same_entry() {
        let lost = entry(3, 1);
        let again = |new: &Entry| compare_epochs(7, new, None, Some(&lost));
        assert!(again(&entry(4, 2)).is_ok() && again(&entry(3, 1)).is_ok());
        assert!(again(&entry(4, 1)).is_err() && again(&entry(4, 0)).is_err());
        assert!(compare_epochs(7, &entry(5, 1), Some(&entry(4, 2)), None).is_err());
        assert!(compare_epochs(7, &entry(5, 2), Some(&entry(4, 2)), None).is_ok());
    }
}
