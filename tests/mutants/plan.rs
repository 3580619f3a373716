//! Which search finds which mutant, and how long it may take.

use ringraft::mutants::Mutant;
use ringraft::sim::nemesis::Kinds;
use ringraft::sim::options::Options;

use super::{epochs, installs, members, reads, snapshots, stories};

/// A search and its budget.
pub enum Way {
    /// Whole clusters in trouble.
    Sim { options: Box<Options>, seeds: u64 },
    /// One log on a bad disk, through kills and losses of power.
    Log { seeds: u64 },
    /// What the simulator's small load does not reach.
    Story(fn()),
}

fn sim(nemesis: &str, seeds: u64) -> Option<Way> {
    let nemesis = Kinds::parse(nemesis).expect("known names");
    let options = Box::new(Options { seconds: 8, nemesis, ..Options::default() });
    Some(Way::Sim { options, seeds })
}

fn alone(nemesis: &str, seeds: u64) -> Option<Way> {
    let nemesis = Kinds::parse(nemesis).expect("known names");
    let nodes = Some(1);
    let options = Box::new(Options { seconds: 8, nodes, nemesis, ..Options::default() });
    Some(Way::Sim { options, seeds })
}

fn in_log(seeds: u64) -> Option<Way> {
    Some(Way::Log { seeds })
}

/// `None`: the model check (`tests/model`) finds it; its schedules are too rare for seeds.
pub fn way(mutant: Mutant) -> Option<Way> {
    use Mutant as M;
    match mutant {
        M::ReplyBeforeWrite
        | M::HardStateNotSynced
        | M::AppendNotSynced
        | M::TermBeforeDurable
        | M::ReplyOneEarly
        | M::ForgetVoteAtStart
        | M::SkipSessionCheck
        | M::ForgetAnswers
        | M::OneSessionForAll
        | M::ExpiredAppliesAgain
        | M::ExpireByLocalClock
        | M::AnswerWhenProposed
        | M::ApplyBeforeCommit
        | M::ApplyFetchedTwice
        | M::VoteTwice
        | M::VoteWithoutLogCheck => sim("all", 60),
        M::TruncationNotSynced => sim("all", 200),
        M::DisownedAtTheDoor => sim("all", 400),
        M::StalePersisted => sim("kill,pause,network,latency", 1500),
        M::PublishBeforeLog | M::ReleaseBeforePublish => sim("all", 200),
        M::InstallIgnoresSessions => sim("all", 200),
        M::InstallKeepsConflict => {
            Some(Way::Story(installs::a_log_that_contradicts_a_snapshot_gives_way))
        }
        M::InstallDropsNewer => Some(Way::Story(installs::a_log_that_agrees_with_a_snapshot_stays)),
        M::SnapshotAheadOfState | M::SnapshotBehindState => sim("all", 200),
        M::SnapshotUnverified => Some(Way::Story(snapshots::damage_on_the_way_is_not_installed)),
        M::ChunkAnywhere => Some(Way::Story(snapshots::chunks_that_come_twice_are_taken_once)),
        M::CutUnderTransfer => {
            Some(Way::Story(snapshots::what_follows_a_snapshot_that_is_sent_stays_in_the_log))
        }
        M::OfferGoesWithLink | M::ResumeFromZero => {
            Some(Way::Story(snapshots::a_transfer_goes_on_when_its_link_is_back))
        }
        M::KeptForEver => Some(Way::Story(snapshots::who_does_not_come_back_holds_no_log)),
        M::RefusedHoldsLog => Some(Way::Story(snapshots::who_cannot_use_a_snapshot_holds_no_log)),
        M::RefusedAskedAgain => {
            Some(Way::Story(snapshots::who_cannot_use_a_snapshot_does_not_ask_for_each))
        }
        M::TransferDropsProposals => {
            Some(Way::Story(snapshots::what_comes_during_a_transfer_is_refused))
        }
        M::LeaseEndsByTimer => Some(Way::Story(reads::a_lease_does_not_outlast_a_jump)),
        M::FullForGood => sim("full,kill", 40),
        M::AloneBeforeOwnWrite | M::LeaderCountsUndurable => alone("kill,power", 40),
        M::MissingAnswersPass => Some(Way::Story(epochs::a_session_remembers_what_it_passed_over)),
        M::EpochFromItsEntry => {
            Some(Way::Story(epochs::an_epoch_begins_where_its_leader_is_not_sure))
        }
        M::CommitBeforeItsEpoch => {
            Some(Way::Story(epochs::what_an_epoch_renames_is_committed_with_its_entry))
        }
        M::RecoverWithoutEpoch | M::SilentGap => alone("kill,rot", 60),
        M::SpeakBeforeSynced => sim("kill,latency,stall", 400),
        M::TruncateOnAnyAppend => sim("network,kill,power", 1500),
        M::RetryFailedSync
        | M::FailedWriteCounts
        | M::CountOverHole
        | M::UnsyncedIsDurable
        | M::SyncCoversLaterWrites
        | M::SyncCoversOtherSegments
        | M::RecoveredIsDurable
        | M::ReleasedUndurable
        | M::RecycleEarly
        | M::TornFlushCounts
        | M::RotIsTornTail
        | M::ForgetDurableMark => in_log(300),
        M::UncommittedWithoutBound => Some(Way::Story(stories::a_leader_alone_takes_on_so_much)),
        M::WriteAheadOfSync => Some(Way::Story(stories::a_log_runs_so_far_ahead_of_its_syncs)),
        M::EgressWithoutBound => Some(Way::Story(stories::a_stuck_peer_costs_so_much_memory)),
        M::HeartbeatsBehindBulk => Some(Way::Story(stories::a_full_link_still_gets_heartbeats)),
        M::DedupForgets => Some(Way::Story(stories::an_event_id_is_new_once)),
        M::ExpireWholeSegments => Some(Way::Story(stories::expired_ids_are_new_again)),
        M::ResurrectEndedGroup | M::GroupNumberUsedAgain => sim("groups,kill,power", 100),
        M::FilesGoBeforeTheEnd => sim("groups,kill,power,latency,stall", 600),
        M::HibernateWithLaggingFollower => sim("all", 60),
        M::HibernateForUnconfirmedTerm => {
            Some(Way::Story(stories::who_has_something_else_does_not_sleep))
        }
        M::NoWakeOnIncarnationChange => {
            Some(Way::Story(stories::a_sleeper_notices_that_its_leader_has_begun_anew))
        }
        M::AcceptOldIncarnation => Some(Way::Story(stories::an_earlier_starts_word_does_not_count)),
        M::NeverRecovering
        | M::CountRecoveringInMajority
        | M::KeepMatchOfOldIncarnation
        | M::CommitPastMatched => sim("all", 400),
        M::CountOldVotes => sim("kill,pause,network", 1500),
        M::ReadBeforeApplied => sim("all", 60),
        M::ReadWithoutRound => Some(Way::Story(reads::a_deposed_leader_answers_nothing)),
        M::OldContextCounts => Some(Way::Story(reads::a_deposed_leader_answers_nothing)),
        M::ReadBeforeCommitInTerm => {
            Some(Way::Story(reads::a_new_leader_knows_what_is_committed_after_its_own_entry))
        }
        M::LeaseIgnoresDrift => {
            Some(Way::Story(reads::a_lease_ends_before_the_fastest_clock_allows_an_election))
        }
        M::LeaseOutlivesTransfer => Some(Way::Story(reads::a_leader_that_hands_over_has_no_lease)),
        M::TransferToLagging => {
            Some(Way::Story(reads::only_who_has_everything_is_told_to_campaign))
        }
        M::OldTimeoutNow => Some(Way::Story(reads::a_late_word_starts_no_election)),
        M::LeadWithDeadDisk => sim("stall,full", 200),
        M::ConfigurationAtCommit
        | M::RemovedLeaderCountsItself
        | M::LearnersCount
        | M::JointByNewMajority => sim("members,kill,pause,network", 200),
        M::SingleStepChange | M::KeepCutConfiguration | M::LeaveJointBeforeCommit => {
            sim("members,kill,pause,network", 1500)
        }
        M::TwoChangesAtOnce => Some(Way::Story(members::a_second_change_waits_for_the_first)),
        M::DamagedWinsWithLoss => {
            Some(Way::Story(members::who_is_alone_by_a_damaged_log_does_not_elect_itself))
        }
        M::ChangeBeforeOwnCommit => {
            Some(Way::Story(members::a_new_leader_changes_nothing_before_its_own_entry))
        }
        M::LearnerCampaigns => Some(Way::Story(members::a_learner_waits_to_be_found)),
        M::NoSync
        | M::VoteAfterAnyAppend
        | M::LeaveWithoutNonce
        | M::LeaveAtCommitIndex
        | M::NoEpochBump
        | M::CommitOlderTerm => None,
    }
}
