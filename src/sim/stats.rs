//! Figures of runs.

/// Counters of one run, or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub seeds: u64,
    pub simulated_us: u64,
    pub events: u64,
    pub turns: u64,
    /// Faults that took place; those that met a node that was down already are not counted.
    pub faults: u64,
    /// Those of the seed that had the fewest.
    pub faults_least: u64,
    pub kills: u64,
    pub power_losses: u64,
    pub lost_sectors: u64,
    /// Damages done to synced bytes.
    pub rotten: u64,
    /// Starts that found damage below the durable mark.
    pub rot_found: u64,
    /// Elections after which acknowledged blocks may be missing, as told.
    pub losses: u64,
    /// Replicas that found, behind a loss, that their commits are not their leader's.
    pub parted: u64,
    /// How many of them follow again: each once, in however many terms it parted.
    pub returned: u64,
    pub starts: u64,
    /// Groups that a start gave the state of a snapshot.
    pub restored: u64,
    /// Snapshots taken, and installed in place of a log.
    pub snapshots: u64,
    pub installs: u64,
    /// Transfers of snapshots that went on where they were when they had broken off.
    pub resumes: u64,
    /// Changes of members that were begun.
    pub changes: u64,
    /// Groups that came after the start, and groups that are over.
    pub groups_made: u64,
    pub groups_ended: u64,
    /// Ends in good order.
    pub stops: u64,
    pub refused_strangers: u64,
    pub resets: u64,
    pub frames: u64,
    pub frames_lost: u64,
    pub messages: u64,
    pub votes: u64,
    pub replays: u64,
    pub elections: u64,
    /// Times that a leader put its group to sleep.
    pub sleeps: u64,
    /// Blocks that clients asked for, of which were acknowledged, and how many of those by a retry
    /// that the session's table answered.
    pub asked: u64,
    pub acknowledged: u64,
    pub answered_retries: u64,
    /// Blocks sent again.
    pub retries: u64,
    /// Refusals of sessions that had expired, were closed or had to make room.
    pub sessions_over: u64,
    /// Blocks whose fate their client does not know, and gave up.
    pub given_up: u64,
    /// Questions that clients asked, and those answered by what they were asked for: linearizable,
    /// follower, lease, stale.
    pub questions: u64,
    pub answered_questions: [u64; 4],
    /// Transfers of leadership that began.
    pub transfers: u64,
}

impl Stats {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let Self {
            seeds,
            simulated_us,
            events,
            turns,
            faults,
            faults_least,
            kills,
            power_losses,
            lost_sectors,
            rotten,
            rot_found,
            losses,
            parted,
            returned,
            starts,
            restored,
            snapshots,
            installs,
            resumes,
            changes,
            groups_made,
            groups_ended,
            stops,
            refused_strangers,
            resets,
            frames,
            frames_lost,
            messages,
            votes,
            replays,
            elections,
            sleeps,
            asked,
            acknowledged,
            answered_retries,
            retries,
            sessions_over,
            given_up,
            questions,
            answered_questions,
            transfers,
        } = other;
        let least = if self.seeds == 0 { u64::MAX } else { self.faults_least };
        self.faults_least = least.min(*faults_least);
        self.seeds += seeds;
        self.simulated_us += simulated_us;
        self.events += events;
        self.turns += turns;
        self.faults += faults;
        self.kills += kills;
        self.power_losses += power_losses;
        self.lost_sectors += lost_sectors;
        self.rotten += rotten;
        self.rot_found += rot_found;
        self.losses += losses;
        self.parted += parted;
        self.returned += returned;
        self.starts += starts;
        self.restored += restored;
        self.snapshots += snapshots;
        self.installs += installs;
        self.resumes += resumes;
        self.changes += changes;
        self.groups_made += groups_made;
        self.groups_ended += groups_ended;
        self.stops += stops;
        self.refused_strangers += refused_strangers;
        self.resets += resets;
        self.frames += frames;
        self.frames_lost += frames_lost;
        self.messages += messages;
        self.votes += votes;
        self.replays += replays;
        self.elections += elections;
        self.sleeps += sleeps;
        self.asked += asked;
        self.acknowledged += acknowledged;
        self.answered_retries += answered_retries;
        self.retries += retries;
        self.sessions_over += sessions_over;
        self.given_up += given_up;
        self.questions += questions;
        let pairs = self.answered_questions.iter_mut().zip(answered_questions);
        pairs.for_each(|(sum, more)| *sum += more);
        self.transfers += transfers;
    }
}
