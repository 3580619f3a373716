//! What others may see of a group, and what must always be true of it.

use super::membership::Standing;
use super::{Config, Log, Progress, Raft, Role};
use crate::ids::{GroupId, Index, NodeId, Term};

/// Views for status, tests and the shard.
impl Raft {
    pub fn id(&self) -> NodeId {
        self.config.id
    }

    pub fn group(&self) -> GroupId {
        self.config.group
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    #[inline]
    pub fn role(&self) -> Role {
        self.role
    }

    pub fn term(&self) -> Term {
        self.term
    }

    pub fn vote(&self) -> Option<NodeId> {
        self.vote
    }

    /// Who leads this term, as far as is known here.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    pub fn commit(&self) -> Index {
        self.log.commit()
    }

    pub fn last_index(&self) -> Index {
        self.log.last_index()
    }

    /// Highest index whose own write has completed.
    pub fn durable_index(&self) -> Index {
        self.log.durable()
    }

    /// Bytes of blocks beyond the commit index.
    pub fn uncommitted_bytes(&self) -> u64 {
        self.log.uncommitted_bytes()
    }

    /// Bytes of blocks held in memory.
    pub fn cached_bytes(&self) -> u64 {
        self.log.cached_bytes()
    }

    /// What this member acknowledged before its start may be gone from its log, and it has not got
    /// it back yet (durability.md R4). A leader never is.
    #[inline]
    pub fn is_recovering(&self) -> bool {
        self.recovery.is_some()
    }

    /// What is committed here is not in the log of this term's leader: the replica cannot follow it,
    /// and what it has applied is not what the group has.
    #[inline]
    pub fn is_parted(&self) -> bool {
        self.parted == Some(self.term)
    }

    /// Recovery epoch of the end of the log: how often a leader was elected after which acknowledged
    /// commands may have been missing (durability.md R6).
    pub fn epoch(&self) -> u32 {
        self.log.last_epoch()
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The followers as this leader sees them; nothing unless it leads.
    pub fn progress(&self) -> impl Iterator<Item = (NodeId, &Progress)> {
        let members = &self.peers[..self.members];
        let peers = if self.role == Role::Leader { members } else { &[] };
        peers.iter().map(|p| (p.id, &p.progress))
    }

    /// Panics if something is true that never may be. Costs a walk over the cache.
    pub fn check_invariants(&self) {
        self.log.check_invariants();
        assert!(self.term >= self.log.last_term());
        assert!(self.persisted <= self.issued && self.hard_state_seq <= self.issued);
        assert_eq!((self.hard_state.term, self.hard_state.vote), (self.term, self.vote));
        self.check_hibernation();
        assert!(self.peers[..self.members].iter().all(|peer| peer.standing != Standing::Stranger));
        match self.role {
            Role::Leader => {
                assert_eq!(self.leader, Some(self.config.id));
                assert_eq!(self.log.last_term(), self.term, "a leader's term begins with a no-op");
                assert!(self.persisted >= self.hard_state_seq);
                assert!(!self.is_recovering() && self.epoch == self.log.last_epoch());
                for peer in &self.peers[..self.members] {
                    peer.progress.check_invariants();
                    assert!(peer.progress.next() <= self.log.last_index().next());
                }
            }
            Role::Candidate | Role::PreCandidate => assert_eq!(self.leader, None),
            Role::Follower => assert_ne!(self.leader, Some(self.config.id)),
        }
    }
}
