//! Planted bugs: each is a mistake that a real engine made, or that looks right and is wrong. The
//! simulator and the model check must find every one of them; a rule that no mutant breaks is a rule
//! that nobody has shown to be tested.
//!
//! Without the feature `mutants` [`is`] is the constant `false` and the wrong branch is not even
//! compiled into the program. With it one mutant at a time is live in the whole process.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!("the feature `mutants` plants bugs: it is never part of an optimised release build");

/// Makes the enum, the list of all and the names from one table.
macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// A planted bug. The comment says what is done wrong, and after whose example.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Mutant { $($(#[doc = $doc])+ $name,)+ }

        impl Mutant {
            /// All of them, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The mutant of that name.
            pub fn by_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
            }
        }
    };
}

mutants! {
    /// A follower's word and a vote leave before the write they speak for is done (bugs 2, 3).
    ReplyBeforeWrite = "reply-before-write",
    /// A log without sync writes and acknowledges on, however far behind its syncs are (R7).
    WriteAheadOfSync = "write-ahead-of-sync",
    /// The log's files are opened without O_DSYNC, and a sync does nothing: a database on a laptop.
    NoSync = "no-sync",
    /// A node that lost power votes like any other (durability.md R4 left out; nats-server#7567).
    NeverRecovering = "never-recovering",
    /// It votes again as soon as any leader has sent it any append (durability.md §1).
    VoteAfterAnyAppend = "vote-after-any-append",
    /// It takes a message meant for its earlier start for the leader's answer (durability.md §1).
    LeaveWithoutNonce = "leave-without-nonce",
    /// It is content with the leader's commit index (durability.md §1).
    LeaveAtCommitIndex = "leave-at-commit-index",
    /// Voters that may have forgotten count toward a plain majority (durability.md §1).
    CountRecoveringInMajority = "count-recovering-in-majority",
    /// Indices are used a second time under the same recovery epoch (durability.md R6, R9).
    NoEpochBump = "no-epoch-bump",
    /// A leader keeps what a follower's earlier start had acknowledged (bug 30, etcd#13509).
    KeepMatchOfOldIncarnation = "keep-match-of-old-incarnation",
    /// Acknowledgements of a follower's earlier start go on counting (durability.md R5).
    AcceptOldIncarnation = "accept-old-incarnation",
    /// Entries of an older term commit by counting (figure 8 of the paper).
    CommitOlderTerm = "commit-older-term",
    /// A voter forgets whom it voted for in this term (bug 3).
    VoteTwice = "vote-twice",
    /// A vote for a candidate whose log is behind (§5.4.1 left out).
    VoteWithoutLogCheck = "vote-without-log-check",
    /// The leader counts itself before its own write is done (bug 2, etcd#14370).
    LeaderCountsUndurable = "leader-counts-undurable",
    /// A vote of an older term counts in this one (bug 4, little-raft#44).
    CountOldVotes = "count-old-votes",
    /// An append rewrites from its first block on, also what agrees: an old, shorter one cuts off
    /// what was acknowledged since (§5.3).
    TruncateOnAnyAppend = "truncate-on-any-append",
    /// A heartbeat tells the commit index to a follower that may have something else there.
    CommitPastMatched = "commit-past-matched",
    /// A vote leaves when it is written, not when it is synced (bug 3, durability.md R1).
    HardStateNotSynced = "hard-state-not-synced",
    /// An acknowledgement of a group with `wal_sync` leaves when it is written (the table of
    /// durability.md).
    AppendNotSynced = "append-not-synced",
    /// A truncation counts when it is written, and is not synced (durability.md R1).
    TruncationNotSynced = "truncation-not-synced",
    /// A group of one voter counts its entry when it is staged (bug 2, etcd#14370).
    AloneBeforeOwnWrite = "alone-before-own-write",
    /// Messages show a new term before it is durable (bug 3).
    TermBeforeDurable = "term-before-durable",
    /// A held reply leaves with the persist before the one it speaks for.
    ReplyOneEarly = "reply-one-early",
    /// A completion of an overwritten entry speaks for the entry in its place.
    StalePersisted = "stale-persisted",
    /// A failed sync is tried again, and the second one believed (bug 1, cockroach#37102).
    RetryFailedSync = "retry-failed-sync",
    /// A write that failed counts as done (bug 1).
    FailedWriteCounts = "failed-write-counts",
    /// Flush 7 makes everything before it durable although flush 6 is under way.
    CountOverHole = "count-over-hole",
    /// A flush that was written without sync counts as durable.
    UnsyncedIsDurable = "unsynced-is-durable",
    /// A sync counts for writes that completed after it was issued.
    SyncCoversLaterWrites = "sync-covers-later-writes",
    /// The sync of one segment counts for the next one too.
    SyncCoversOtherSegments = "sync-covers-other-segments",
    /// What recovery reads back counts as durable, though a killed process may have left it in a
    /// volatile cache.
    RecoveredIsDurable = "recovered-is-durable",
    /// A shard serves before what it recovered is synced.
    SpeakBeforeSynced = "speak-before-synced",
    /// A segment says that those before it are not needed before what freed them is durable.
    ReleasedUndurable = "released-undurable",
    /// A segment is used again before what freed it is durable.
    RecycleEarly = "recycle-early",
    /// A flush counts at recovery whether or not its checksum fits (bug 7).
    TornFlushCounts = "torn-flush-counts",
    /// Damage below the durable mark is cut off as a torn tail (bugs 9, 10).
    RotIsTornTail = "rot-is-torn-tail",
    /// Flushes do not carry the durable mark, so that rot looks like a torn tail (bug 9).
    ForgetDurableMark = "forget-durable-mark",
    /// A disk that was full once is never tried again (bug 29, etcd#4744).
    FullForGood = "full-for-good",
    /// A start forgets the vote that the log holds (bug 3).
    ForgetVoteAtStart = "forget-vote-at-start",
    /// A client's block is applied without asking its session (bug 32).
    SkipSessionCheck = "skip-session-check",
    /// Sessions do not remember what they answered (bug 32).
    ForgetAnswers = "forget-answers",
    /// A retry of a session that has expired is taken for a new client's first block (bug 32).
    ExpiredAppliesAgain = "expired-applies-again",
    /// A reader that has read what is lost goes on behind it and is not told (durability.md R9).
    SilentGap = "silent-gap",
    /// A session's floor passes over answers that are not on record, and nobody remembers (durability.md
    /// R9).
    MissingAnswersPass = "missing-answers-pass",
    /// An epoch begins with its leader's first entry, whatever the log before it replaces (durability.md
    /// R9).
    EpochFromItsEntry = "epoch-from-its-entry",
    /// What may stand where something else was lost is committed before the entry that says so
    /// (durability.md R9).
    CommitBeforeItsEpoch = "commit-before-its-epoch",
    /// An operator's recovery lets indices be used again under the same epoch (durability.md R9).
    RecoverWithoutEpoch = "recover-without-epoch",
    /// Each replica lets sessions expire when its own clock says so (reference texts on
    /// DEDUP_EXPIRE).
    ExpireByLocalClock = "expire-by-local-clock",
    /// A block that a deposed leader has in its log counts as refused at the door, and is numbered
    /// anew when its session is over (bug 32).
    DisownedAtTheDoor = "disowned-at-the-door",
    /// All clients share one session.
    OneSessionForAll = "one-session-for-all",
    /// A client is answered when its block is proposed.
    AnswerWhenProposed = "answer-when-proposed",
    /// Blocks are applied when they are in the log, committed or not.
    ApplyBeforeCommit = "apply-before-commit",
    /// Committed blocks are read back twice at a time, and applied as often as they come.
    ApplyFetchedTwice = "apply-fetched-twice",
    /// A leader takes on blocks without a bound (bug 26, etcd#10167).
    UncommittedWithoutBound = "uncommitted-without-bound",
    /// A peer that takes no bytes is given ever more of them (bug 27).
    EgressWithoutBound = "egress-without-bound",
    /// Over a full link heartbeats are left out like appends (bug 36, etcd#15247).
    HeartbeatsBehindBulk = "heartbeats-behind-bulk",
    /// A start does not heed the record that a group has ended (bug 11).
    ResurrectEndedGroup = "resurrect-ended-group",
    /// The number of a group that has ended is given to another one.
    GroupNumberUsedAgain = "group-number-used-again",
    /// The files of a group go before the record that it has ended is durable.
    FilesGoBeforeTheEnd = "files-go-before-the-end",
    /// A group sleeps while a follower lacks entries (tikv#1440, cockroach#315; bug 38).
    HibernateWithLaggingFollower = "hibernate-with-lagging-follower",
    /// A follower sleeps, and takes all it has for committed, without comparing the last term.
    HibernateForUnconfirmedTerm = "hibernate-for-unconfirmed-term",
    /// A sleeping follower does not notice that its leader's node has begun anew.
    NoWakeOnIncarnationChange = "no-wake-on-incarnation-change",
    /// A snapshot is published while the log is not durable through its index (durability.md R8).
    PublishBeforeLog = "publish-before-log",
    /// The log lets go of entries when a snapshot of them is begun (bugs 13, 14).
    ReleaseBeforePublish = "release-before-publish",
    /// A log with something else at the snapshot's index is kept (bug 15, hashicorp/raft#697).
    InstallKeepsConflict = "install-keeps-conflict",
    /// A log that agrees with the snapshot and goes on is dropped (bug 16, camunda#6092).
    InstallDropsNewer = "install-drops-newer",
    /// The sessions in a snapshot are left out (bugs 18, 32).
    InstallIgnoresSessions = "install-ignores-sessions",
    /// A snapshot counts whether or not its checksums fit (bug 11, nats-server#7556).
    SnapshotUnverified = "snapshot-unverified",
    /// A snapshot says that it stands for entries that its state was not given yet (bug 18).
    SnapshotAheadOfState = "snapshot-ahead-of-state",
    /// A snapshot says that its state lacks an entry that it was given (bug 18, etcd#13766).
    SnapshotBehindState = "snapshot-behind-state",
    /// A log is cut further than where a follower will go on from the snapshot that it is being sent.
    CutUnderTransfer = "cut-under-transfer",
    /// A follower that cannot use its leader's snapshots asks for each of them.
    RefusedAskedAgain = "refused-asked-again",
    /// A leader does not hear that a follower cannot use a snapshot, and keeps the log behind it.
    RefusedHoldsLog = "refused-holds-log",
    /// A leader forgets what it was sending as soon as the link breaks, and offers its newest snapshot
    /// when it is there again (bug 40).
    OfferGoesWithLink = "offer-goes-with-link",
    /// A follower that is offered what it has a part of begins anew (bug 40, renegade#634).
    ResumeFromZero = "resume-from-zero",
    /// A follower that does not come back holds a snapshot, and the log behind it, for ever.
    KeptForEver = "kept-for-ever",
    /// A chunk of a snapshot is taken for the next one, wherever it belongs (bug 17, logcabin#174).
    ChunkAnywhere = "chunk-anywhere",
    /// A change of voters is one entry, without a joint configuration (bug 19).
    SingleStepChange = "single-step-change",
    /// A configuration is in use when it is committed, not when it is in the log (§6).
    ConfigurationAtCommit = "configuration-at-commit",
    /// A configuration that was cut off the log stays in use (§6).
    KeepCutConfiguration = "keep-cut-configuration",
    /// A leader begins a change before it has committed anything in its term (bug 19).
    ChangeBeforeOwnCommit = "change-before-own-commit",
    /// A second change begins before the first one is committed (bug 19).
    TwoChangesAtOnce = "two-changes-at-once",
    /// A leader that is being removed counts itself (bug 21).
    RemovedLeaderCountsItself = "removed-leader-counts-itself",
    /// Learners count like voters.
    LearnersCount = "learners-count",
    /// Learners stand for election (bug 20, redpanda#8495).
    LearnerCampaigns = "learner-campaigns",
    /// While two configurations decide together, the new one's majority is enough (§6).
    JointByNewMajority = "joint-by-new-majority",
    /// The joint configuration is left before it is committed (§6).
    LeaveJointBeforeCommit = "leave-joint-before-commit",
    /// A member whose log is damaged takes its newest configuration for the group's.
    DamagedWinsWithLoss = "damaged-wins-with-loss",
    /// A leader answers reads without asking anybody whether it still leads.
    ReadWithoutRound = "read-without-round",
    /// A new leader answers reads before an entry of its own term has committed (bug 24, tikv#9239).
    ReadBeforeCommitInTerm = "read-before-commit-in-term",
    /// Answers to earlier rounds confirm a read.
    OldContextCounts = "old-context-counts",
    /// A read is answered before the state machine has come as far as its index.
    ReadBeforeApplied = "read-before-applied",
    /// A lease lasts an election timeout, however fast the others' clocks run (bug 25).
    LeaseIgnoresDrift = "lease-ignores-drift",
    /// A leader that told somebody to campaign goes on by its lease.
    LeaseOutlivesTransfer = "lease-outlives-transfer",
    /// A lease ends when a timer finds no quorum, however far the clock has jumped before (bug 25,
    /// tikv#1593).
    LeaseEndsByTimer = "lease-ends-by-timer",
    /// A leader that hands over takes proposals and does nothing with them (bug 39).
    TransferDropsProposals = "transfer-drops-proposals",
    /// Leadership is handed to a follower that is behind (bug 39, redpanda#2592).
    TransferToLagging = "transfer-to-lagging",
    /// A late word of an earlier leader starts an election.
    OldTimeoutNow = "old-timeout-now",
    /// A leader whose disk completes nothing stays leader (bug 28, tarantool#12292).
    LeadWithDeadDisk = "lead-with-dead-disk",
    /// An event id that was seen is taken for a new one.
    DedupForgets = "dedup-forgets",
    /// Expiry leaves what lies in a segment with younger ids.
    ExpireWholeSegments = "expire-whole-segments",
}

#[cfg(feature = "mutants")]
mod live {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Mutant;

    const NONE: u8 = u8::MAX;
    static LIVE: AtomicU8 = AtomicU8::new(NONE);

    /// Makes one mutant live, or none, for the whole process.
    pub fn set(mutant: Option<Mutant>) {
        LIVE.store(mutant.map_or(NONE, |m| m as u8), Ordering::SeqCst);
    }

    /// Whether this mutant is the live one.
    #[inline]
    pub fn is(mutant: Mutant) -> bool {
        LIVE.load(Ordering::Relaxed) == mutant as u8
    }
}

#[cfg(feature = "mutants")]
pub use live::{is, set};

/// Whether this mutant is the live one: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is(_mutant: Mutant) -> bool {
    false
}
