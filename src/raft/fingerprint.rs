//! A group's state as the model check sees it: everything that decides, without what only measures.
//!
//! Two cores with equal fingerprints answer every further event alike, once [`Raft::forget_time`] has
//! taken their clocks away. What is left out, and why nothing checked is lost by it:
//!
//! | left out | why |
//! |---|---|
//! | times (deadlines, last contact, waiting since, back-off) | `forget_time` sets them to 0 after every event, so they are equal. Who uses it chooses by the `now` of the next event what has run out: 0 nothing, far ahead everything. The protocol's safety rests on no clock, so more schedules than real ones may be tried |
//! | whether it keeps up with its leader | it is told to operators, and decides nothing |
//! | the random state | it only draws timeouts, which are times |
//! | absolute sequence numbers | only their distance from what is persisted is ever compared; it is kept |
//! | the node's configuration, but for the incarnation | it does not change while a model runs |
//! | bodies of blocks | Raft never reads them; (index, term, session number) name a block |
//! | sums that follow from the rest (cached bytes, peers' ids) | they follow from the rest |

use std::hash::{Hash, Hasher};

use super::{Log, Raft};
use crate::ids::{Incarnation, NodeId, Seq, Tick};

impl Raft {
    /// Feeds everything that decides to `state`.
    pub fn fingerprint(&self, state: &mut impl Hasher) {
        let since = |seq: Seq| seq.since(self.persisted);
        self.log.fingerprint(self.persisted, state);
        (self.config.incarnation, self.role, self.leader, self.term, self.vote).hash(state);
        (self.hard_state, since(self.hard_state_seq), since(self.issued)).hash(state);
        (self.own_vote, self.heard_at.is_some(), self.announced).hash(state);
        (self.epoch, self.recovery, self.damaged, self.parted, self.context, self.transfer)
            .hash(state);
        self.hibernation.fingerprint().hash(state);
        (&self.history, &self.catch_up).hash(state);
        self.reads.fingerprint(state);
        for peer in &self.peers {
            (peer.absent, peer.sleeps).hash(state);
            (peer.id, peer.standing, peer.incarnation, peer.vote).hash(state);
            (peer.reads, peer.context).hash(state);
            peer.progress.fingerprint(state);
        }
    }

    /// Sets all times to 0 and the random state to its start: "everything was just now, and every
    /// timer may run out next".
    pub fn forget_time(&mut self) {
        self.heard_at = self.heard_at.map(|_| Tick::ZERO);
        self.election_deadline = Tick::ZERO;
        self.heartbeat_deadline = Tick::ZERO;
        self.hibernation.forget_time();
        self.silent_until = Tick::ZERO;
        self.reads.forget_time();
        self.forget_disk_time();
        self.transfer.iter_mut().for_each(super::Transfer::forget_time);
        self.rng = super::Rng::new(self.config.seed);
        for peer in &mut self.peers {
            peer.forget_time();
        }
        self.catch_up.iter_mut().for_each(super::promotion::CatchUp::forget_time);
    }

    /// The newest start of `peer` that this node has heard of; `ZERO` = none.
    pub fn known_incarnation(&self, peer: NodeId) -> Incarnation {
        self.peer(peer).map_or(Incarnation::ZERO, |i| self.peers[i].incarnation)
    }
}

impl Log {
    fn fingerprint(&self, persisted: Seq, state: &mut impl Hasher) {
        (self.start(), self.last_index(), self.runs()).hash(state);
        (self.applied(), self.commit(), self.durable(), self.first_cached()).hash(state);
        for block in self.blocks_from(self.first_cached()).into_iter().flatten() {
            (block.header().count, block.header().client, block.header().seq).hash(state);
        }
        self.for_each_write(|seq, last| (seq.since(persisted), last).hash(state));
    }
}
