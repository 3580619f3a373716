//! What a group is told at its start: who takes part, how patient it is and how much it may hold.

use thiserror::Error;

use super::log::TermRun;
use super::quorum::VOTERS_MAX;
use crate::ids::{GroupId, HardState, Incarnation, Index, LogStart, NodeId};
use crate::membership::Membership;

/// One group on one node. Times in microseconds, sizes in bytes.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node; one of `voters`, unless these are none.
    pub id: NodeId,
    pub group: GroupId,
    /// Everyone whose vote and acknowledgement counts in the group's first configuration, in any
    /// order; what the log says of memberships goes before it. None: this node waits until the
    /// group's leader sends it the log, and with it a configuration.
    pub voters: Vec<NodeId>,
    /// Start number of this node (durability.md R3); goes out in every message.
    pub incarnation: Incarnation,
    /// A follower waits between these two before it campaigns (§5.2, randomised).
    pub election_timeout_min_us: u64,
    pub election_timeout_max_us: u64,
    /// Distance of a leader's heartbeats. Its timers for peers are looked at just as often.
    pub heartbeat_us: u64,
    /// A leader whose group had nothing to do for this long asks it to sleep; 0 = never, nor does
    /// this member when it is asked.
    pub hibernate_after_us: u64,
    /// An append that was not answered for so long is followed by an empty one.
    pub rpc_timeout_us: u64,
    /// Most bytes of blocks in one Append; a single larger block still goes alone.
    pub append_bytes_max: u32,
    /// Appends to one follower that wait for their answer.
    pub inflight_count_max: u32,
    /// Bytes of blocks to one follower that wait for their answer.
    pub inflight_bytes_max: u64,
    /// Bytes a leader takes on beyond its commit index, whatever the term they are from.
    pub uncommitted_bytes_max: u64,
    /// Bytes of applied blocks kept for followers that lag; older ones are fetched from the log.
    pub cache_bytes_max: u64,
    /// Of the election timeouts. Different on each node.
    pub seed: u64,
    /// Campaigns first on a cold start. Only the first timeout is shorter.
    pub preferred: bool,
    /// Leaders may answer reads by a lease instead of a round (dissertation §6.4.1). Safe only as
    /// long as no clock of a member runs faster than another's by more than
    /// `clock_drift_percent_max`, and none jumps; must be the same on all members. It costs
    /// failover: whoever starts again is silent for an election timeout.
    pub lease_reads: bool,
    /// While the slowest clock advances 100, the fastest advances 100 + this at most. Only for
    /// leases.
    pub clock_drift_percent_max: u32,
}

/// Generous: quartz clocks of one room differ by 0.01 %.
pub const CLOCK_DRIFT_PERCENT: u32 = 20;

/// Why a configuration is refused; each text says what to change.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    #[error("{0} voters are more than {VOTERS_MAX}")]
    TooManyVoters(usize),
    #[error("node {0} is named twice among the voters")]
    DuplicateVoter(NodeId),
    #[error("node ids start at 1")]
    NodeZero,
    #[error("node {0} is not one of the voters")]
    NotAVoter(NodeId),
    #[error("{0} must not be 0")]
    Zero(&'static str),
    #[error("election_timeout_min_us {min} is above election_timeout_max_us {max}")]
    ElectionRange { min: u64, max: u64 },
    #[error("heartbeat_us {heartbeat} must be below half of election_timeout_min_us {election}")]
    HeartbeatTooSlow { heartbeat: u64, election: u64 },
    #[error("clock_drift_percent_max {0} must be below 100")]
    Drift(u32),
}

impl Config {
    /// The defaults of a local network: heartbeat 50 ms, elections after 150–300 ms of silence.
    pub fn new(id: NodeId, group: GroupId, voters: Vec<NodeId>, incarnation: Incarnation) -> Self {
        Self {
            id,
            group,
            voters,
            incarnation,
            election_timeout_min_us: 150_000,
            election_timeout_max_us: 300_000,
            heartbeat_us: 50_000,
            rpc_timeout_us: 100_000,
            hibernate_after_us: 0,
            append_bytes_max: 1 << 20,
            inflight_count_max: 256,
            inflight_bytes_max: 16 << 20,
            uncommitted_bytes_max: 64 << 20,
            cache_bytes_max: 16 << 20,
            seed: u64::from(id.0) << 32 | u64::from(group.0),
            preferred: false,
            lease_reads: false,
            clock_drift_percent_max: CLOCK_DRIFT_PERCENT,
        }
    }

    /// Checks what would make a group unsafe or unable to elect anybody.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_voters()?;
        for (name, value) in [
            ("heartbeat_us", self.heartbeat_us),
            ("rpc_timeout_us", self.rpc_timeout_us),
            ("append_bytes_max", u64::from(self.append_bytes_max)),
            ("inflight_count_max", u64::from(self.inflight_count_max)),
            ("inflight_bytes_max", self.inflight_bytes_max),
            ("uncommitted_bytes_max", self.uncommitted_bytes_max),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero(name));
            }
        }
        let (min, max) = (self.election_timeout_min_us, self.election_timeout_max_us);
        if min > max {
            return Err(ConfigError::ElectionRange { min, max });
        }
        if self.heartbeat_us.saturating_mul(2) >= min {
            let heartbeat = self.heartbeat_us;
            return Err(ConfigError::HeartbeatTooSlow { heartbeat, election: min });
        }
        if self.clock_drift_percent_max >= 100 {
            return Err(ConfigError::Drift(self.clock_drift_percent_max));
        }
        Ok(())
    }

    fn validate_voters(&self) -> Result<(), ConfigError> {
        if self.voters.len() > VOTERS_MAX {
            return Err(ConfigError::TooManyVoters(self.voters.len()));
        }
        for (i, &voter) in self.voters.iter().enumerate() {
            if voter == NodeId::ZERO {
                return Err(ConfigError::NodeZero);
            }
            if self.voters[..i].contains(&voter) {
                return Err(ConfigError::DuplicateVoter(voter));
            }
        }
        let joins = self.voters.is_empty();
        if joins || self.voters.contains(&self.id) {
            Ok(())
        } else {
            Err(ConfigError::NotAVoter(self.id))
        }
    }
}

/// What recovery found on disk. All of it is durable before anything leaves this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub hard_state: HardState,
    /// Terms of `first..=last`, ascending in both fields; empty for an empty log.
    pub terms: Vec<TermRun>,
    /// Where the log begins: what lies before is in a snapshot.
    pub start: LogStart,
    /// Highest index; `start.index` for an empty log.
    pub last: Index,
    /// The state machine begins with a snapshot of this index; 0: with nothing.
    pub applied: Index,
    /// What this node acknowledged before may be missing from the above: the group starts
    /// RECOVERING (durability.md R3, R4).
    pub recovering: bool,
    /// Synced bytes were damaged: entries of any age may be missing from the above, and with them
    /// configurations that this node has acknowledged.
    pub damaged: bool,
    /// The configurations among the entries, ascending, behind that of a snapshot if there is one.
    /// None: the group's first configuration.
    pub memberships: Vec<Membership>,
}

impl Default for Restored {
    /// A node that has never run.
    fn default() -> Self {
        Self {
            hard_state: HardState::default(),
            terms: Vec::new(),
            start: LogStart::default(),
            last: Index::ZERO,
            applied: Index::ZERO,
            recovering: false,
            damaged: false,
            memberships: Vec::new(),
        }
    }
}

impl Restored {
    /// What no log of this core says: why a group cannot start from it. A true checksum is no proof
    /// of sense.
    pub fn check(&self) -> Result<(), &'static str> {
        let Self { hard_state, terms, start, last, applied, memberships, .. } = self;
        let in_order = memberships.windows(2).all(|pair| pair[0].index < pair[1].index);
        let among = memberships.iter().all(|m| m.index <= *last);
        let alone = memberships.iter().any(|m| m.voters.is_empty());
        if !in_order || !among || alone {
            return Err("configurations that the entries do not have");
        }
        let first = start.index.next();
        if *last < start.index || terms.is_empty() != (*last == start.index) {
            return Err("entries without a place or without a term");
        }
        if *applied < start.index || applied > last {
            return Err("a snapshot that does not meet the log");
        }
        let ascend = |r: &[TermRun]| r[0].first < r[1].first && r[0].term < r[1].term;
        if !terms.windows(2).all(ascend) {
            return Err("terms that do not ascend");
        }
        if terms.first().is_some_and(|r| r.first > first)
            || terms.last().is_some_and(|r| r.first > *last)
        {
            return Err("terms of entries that are not there");
        }
        if terms.first().is_some_and(|r| r.term < start.term || r.epoch < start.epoch) {
            return Err("entries of an older term than what lies before them");
        }
        // The term is persisted before the first entry that has it.
        let highest = terms.last().map_or(start.term, |run| run.term);
        if highest > hard_state.term {
            return Err("entries of a term above the hard state");
        }
        Ok(())
    }
}
