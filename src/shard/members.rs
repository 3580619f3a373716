//! Who takes part in the groups, as far as the shard has to know: whom it is linked with, and what an
//! operator asks and hears of members.
//!
//! A link is wanted with every node that the configuration file names, and with every node that some
//! group here has as a member in a configuration that may still decide something. It is given up when
//! a node that was a member is in no such configuration any more, and has been told of it.

use serde::Serialize;

use super::transport::Peer;
use super::{Output, Shard};
use crate::ids::{GroupId, Index, NodeId, Tick};
use crate::machine::StateMachine;
use crate::membership::{NodeAddress, Step};
use crate::raft::ready::Role;
use crate::raft::{ChangeRefused, Event};
use crate::wire::admin::AdminReply;
use crate::wire::client::Refused;

/// Whom the runtime is to be linked with. Nodes of the configuration file are, from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// Dial it, and let it dial. Without an address the configuration file has it.
    Open { node: NodeId, address: Option<NodeAddress> },
    /// It takes part in nothing here any more.
    Close { node: NodeId },
}

/// When links are to be looked at again.
#[derive(Debug)]
pub(super) struct LinkWatch {
    changes: Vec<LinkChange>,
    /// Somebody may have become superfluous; looked at then, and again while that is so.
    look_at: Tick,
}

impl Default for LinkWatch {
    fn default() -> Self {
        Self { changes: Vec::new(), look_at: Tick(u64::MAX) }
    }
}

/// One member, for `member list`.
#[derive(Serialize)]
struct MemberRow {
    node: u32,
    /// "voter", "learner", "joining", "leaving".
    role: &'static str,
    leads: bool,
    /// Highest index that the leader knows it to hold; 0 unless the leader answers.
    matched: u64,
    /// It has answered the leader lately; true unless the leader answers.
    live: bool,
    /// Who leaves when this one, which joins, gets its vote.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
}

/// All of a group, as one node sees them.
#[derive(Serialize)]
struct Members {
    node: u32,
    leader: u32,
    /// Index of the entry that brought the configuration.
    index: u64,
    committed: bool,
    joint: bool,
    last: u64,
    members: Vec<MemberRow>,
}

impl<M: StateMachine> Shard<M> {
    /// Takes in what the groups' logs say at the start.
    pub(super) fn meet_members(&mut self) {
        for local in 0..self.groups.len() as u32 {
            self.meet_members_of(local);
        }
    }

    /// The same of one group.
    pub(super) fn meet_members_of(&mut self, local: u32) {
        let membership = self.groups[local as usize].raft.membership().clone();
        for node in membership.members() {
            self.meet_node(node, membership.address(node));
        }
    }

    /// Looks at the links at `at`, if not before.
    pub(super) fn watch_links(&mut self, at: Tick) {
        self.links.look_at = self.links.look_at.min(at);
    }

    /// A node is a member of a group here.
    fn meet_node(&mut self, node: NodeId, address: Option<&NodeAddress>) {
        if node == self.config.node {
            return;
        }
        let peer = match self.peers.iter_mut().position(|peer| peer.node == node) {
            Some(at) => &mut self.peers[at],
            None => {
                self.outgoing.push(Vec::new());
                self.peers.push(Peer::new(node));
                self.peers.last_mut().expect("just pushed")
            }
        };
        peer.was_member = true;
        let moved = address.is_some() && peer.address.as_ref() != address;
        if peer.is_wanted && !moved {
            return;
        }
        peer.is_wanted = true;
        peer.address = address.cloned();
        self.links.changes.push(LinkChange::Open { node, address: address.cloned() });
    }

    /// Configurations that groups use from this turn on.
    pub(super) fn note_memberships(&mut self, now: Tick, out: &mut Output) {
        if !self.ready.memberships.is_empty() {
            let news = std::mem::take(&mut self.ready.memberships);
            for found in &news {
                for node in found.membership.members() {
                    self.meet_node(node, found.membership.address(node));
                }
            }
            self.ready.memberships = news;
            self.links.look_at = now;
        }
        if self.links.look_at <= now {
            self.drop_superfluous(now);
        }
        out.links.append(&mut self.links.changes);
    }

    fn drop_superfluous(&mut self, now: Tick) {
        let mut waits = false;
        for at in 0..self.peers.len() {
            let Peer { node, is_wanted, was_member, .. } = self.peers[at];
            if !is_wanted || !was_member {
                continue;
            }
            let takes_part = |raft: &crate::raft::Raft| raft.membership().is_member(node);
            if self.groups.iter().any(|group| takes_part(&group.raft)) {
                continue;
            }
            if self.groups.iter().any(|group| group.raft.may_need(node)) {
                waits = true;
                continue;
            }
            self.peers[at].is_wanted = false;
            self.links.changes.push(LinkChange::Close { node });
        }
        let again = now.plus(self.config.raft.election_timeout_max_us);
        self.links.look_at = if waits { again } else { Tick(u64::MAX) };
    }

    /// When links are to be looked at again.
    pub(super) fn links_deadline(&self) -> Tick {
        self.links.look_at
    }

    /// Begins a change of a group's members, or says why not. `dry`: only says it, and refuses what it
    /// would refuse otherwise.
    ///
    /// A refusal's data: `again`, it may go later; `means`, it waits only for the same change of other
    /// groups, and this is what it would mean; `needed`, for that of groups that were made.
    pub(super) fn change_members(
        &mut self,
        now: Tick,
        local: u32,
        steps: &[Step],
        force: bool,
        dry: bool,
    ) -> Result<AdminReply, Refused> {
        self.wake(now, local, None);
        let raft = &self.groups[local as usize].raft;
        let found = raft.preflight_change(now, steps);
        let refused = |refused: ChangeRefused| match refused {
            ChangeRefused::NotLeader(leader) => Err(Refused::NotLeader(leader)),
            ChangeRefused::NotYet | ChangeRefused::UnderWay => {
                let again = serde_json::json!({ "again": true });
                Ok(AdminReply::refused(refused.to_string()).with(again))
            }
            refused => Ok(AdminReply::refused(refused.to_string())),
        };
        let leaves = if force { None } else { self.is_needed(local, steps) };
        // A replacement cannot wait for the other groups: those wait for it to take the new node in.
        let replaces = steps.iter().any(|step| matches!(step, Step::Replace { .. }));
        if replaces && let Some(why @ ChangeRefused::Needed { .. }) = leaves {
            return Ok(AdminReply::refused(why.to_string()));
        }
        let text = match found {
            Ok(found) if !found.is_safe() && !force => {
                return refused(ChangeRefused::Quorum(found));
            }
            Ok(found) => found.to_string(),
            Err(why) => return refused(why),
        };
        match self.is_apart(local, steps).or(leaves) {
            // The same change of the other groups ends that; until then it is to be asked for again.
            Some(why @ (ChangeRefused::Apart { .. } | ChangeRefused::Needed { .. })) => {
                let mut waits = serde_json::json!({ "again": true, "means": text });
                if let ChangeRefused::Needed { .. } = why {
                    waits["needed"] = true.into();
                }
                return Ok(AdminReply::refused(why.to_string()).with(waits));
            }
            Some(why) => return refused(why),
            None if dry => return Ok(AdminReply::done(text)),
            None => {}
        }
        let mut answer = None;
        let answered = &mut answer;
        self.step(now, local, Event::ProposeMembership { steps, force, answer: answered });
        match answer {
            Some(Ok(index)) => Ok(AdminReply::done(text).with(index.get())),
            Some(Err(why)) => refused(why),
            None => Err(Refused::NotLeader(None)),
        }
    }

    /// Whoever is taken into a group that was made later must hear of it from the first group.
    fn is_apart(&self, local: u32, steps: &[Step]) -> Option<ChangeRefused> {
        if local < self.config.configured() {
            return None;
        }
        let first = &self.groups[0].raft;
        let mut comes = steps.iter().filter_map(|step| match step {
            Step::Add { node, .. } | Step::Replace { new: node, .. } => Some(*node),
            _ => None,
        });
        let node = comes.find(|&node| !first.membership().is_member(node))?;
        Some(ChangeRefused::Apart { node, first: first.group() })
    }

    /// And stays in the first group until it is out of all of those: of one that it has not made yet it
    /// would never hear, and might be one of the majority that it needs. What a leader knows of a group
    /// that has taken it out itself is out of date, and may stay so for ever: it does not decide.
    fn is_needed(&self, local: u32, steps: &[Step]) -> Option<ChangeRefused> {
        let comes = |gone: &NodeId| {
            steps.iter().any(|step| match step {
                Step::Add { node, .. } | Step::Replace { new: node, .. } => node == gone,
                _ => false,
            })
        };
        let goes = |step: &Step| match step {
            Step::Remove(node) | Step::Replace { old: node, .. } => {
                Some(*node).filter(|node| !comes(node))
            }
            _ => None,
        };
        let leads = self.groups[0].raft.role() == Role::Leader;
        if local > 0 || !leads || !steps.iter().any(|step| goes(step).is_some()) {
            return None;
        }
        if !self.list_is_current() {
            return Some(ChangeRefused::NotYet);
        }
        let me = self.config.node;
        let made = self.groups.iter().skip(self.config.configured() as usize);
        made.filter(|group| !group.ended).find_map(|group| {
            let (members, group) = (group.raft.membership(), group.raft.group());
            let knows = members.is_member(me);
            let stays = |node: &NodeId| if knows { members.is_member(*node) } else { *node != me };
            let node = steps.iter().filter_map(goes).find(stays)?;
            Some(match knows {
                true => ChangeRefused::Needed { node, group },
                false => ChangeRefused::Outside { node, group },
            })
        })
    }

    /// The same for a group by its name.
    pub fn change_group(
        &mut self,
        now: Tick,
        group: GroupId,
        steps: &[Step],
    ) -> Result<Index, ChangeRefused> {
        let local = self.local(group).ok_or(ChangeRefused::NotLeader(None))?;
        self.wake(now, local, None);
        if let Some(why) = self.is_apart(local, steps).or(self.is_needed(local, steps)) {
            return Err(why);
        }
        let mut answer = None;
        let answered = &mut answer;
        self.step(now, local, Event::ProposeMembership { steps, force: false, answer: answered });
        answer.unwrap_or(Err(ChangeRefused::NotLeader(None)))
    }

    /// The members of a group as this node sees them.
    pub(super) fn list_members(&self, now: Tick, local: u32) -> AdminReply {
        let raft = &self.groups[local as usize].raft;
        let (membership, leads) = (raft.membership(), raft.role() == Role::Leader);
        let row = |node: NodeId| {
            let progress = raft.progress().find(|(id, _)| *id == node);
            let own = if node == raft.id() && leads { raft.durable_index().get() } else { 0 };
            let address = membership.address(node);
            let joining = membership.joining.iter().find(|joining| joining.node == node);
            MemberRow {
                node: node.0,
                role: if joining.is_some() {
                    "joining"
                } else if membership.voters.contains(&node) {
                    "voter"
                } else if membership.is_voter(node) {
                    "leaving"
                } else {
                    "learner"
                },
                leads: raft.leader() == Some(node),
                matched: progress.map_or(own, |(_, progress)| progress.matched().get()),
                live: !leads || raft.is_live(now, node),
                replaces: joining.and_then(|joining| joining.replaces).map(|old| old.0),
                peer: address.map(|address| address.peer.clone()),
                client: address.map(|address| address.client.clone()),
            }
        };
        let members = Members {
            node: self.config.node.0,
            leader: raft.leader().map_or(0, |node| node.0),
            index: membership.index.get(),
            committed: membership.index <= raft.commit(),
            joint: membership.is_joint(),
            last: raft.last_index().get(),
            members: membership.members().into_iter().map(row).collect(),
        };
        AdminReply::done("as this node sees it").with(members)
    }
}
