//! Seeds that found something once: they are run with every test run, so that it stays found.

use super::nemesis::{Kind, Kinds};
use super::options::Options;

/// A kept seed.
#[derive(Debug)]
pub struct Regression {
    pub seed: u64,
    pub options: fn() -> Options,
    /// What it showed.
    pub why: &'static str,
}

/// All of them.
pub const REGRESSIONS: &[Regression] = &[
    Regression {
        seed: 343,
        options: whole,
        why: "a leader whose log read back damaged asked for the block again for ever",
    },
    Regression {
        seed: 157,
        options: whole,
        why: "after rot messages left before the salvaged votes were durable again",
    },
    Regression { seed: 167, options: whole, why: "the same" },
    Regression { seed: 217, options: whole, why: "the same" },
    Regression { seed: 239, options: whole, why: "the same" },
    Regression {
        seed: 1058,
        options: damage,
        why: "what rot had left behind was taken for the beginning of the log",
    },
    Regression {
        seed: 1040,
        options: damage,
        why: "the same, and the node stopped again and again",
    },
    Regression {
        seed: 5589,
        options: whole,
        why: "a commit index from behind rot was believed of the log before it",
    },
    Regression { seed: 5692, options: whole, why: "the same" },
    Regression { seed: 5976, options: whole, why: "the same" },
    Regression {
        seed: 2154861196822421,
        options: long,
        why: "after rot twice a log without its front was taken for one",
    },
    Regression {
        seed: 2154861196830657,
        options: long,
        why: "a header whose first flush was torn hid the damage and all votes",
    },
    Regression {
        seed: 2154861196815828,
        options: whole,
        why: "a flush came back from under a stray write, and an end of the log with it",
    },
    Regression { seed: 2154861196820411, options: whole, why: "the same" },
    Regression {
        seed: 2154861196828328,
        options: whole,
        why: "nobody was RECOVERING by the boot record, and the new epoch was not durable",
    },
    Regression {
        seed: 2154861196824528,
        options: whole,
        why: "votes waited longer for the disk than candidates for votes",
    },
    Regression {
        seed: 1795289591002,
        options: whole,
        why: "whoever was alone in an old configuration won with a loss that a minority had seen",
    },
    Regression {
        seed: 9600756,
        options: long,
        why: "a renamed snapshot whose directory was not synced was relied on",
    },
    Regression {
        seed: 9600298,
        options: whole,
        why: "a flipped bit in the version of a snapshot refused the start",
    },
    Regression { seed: 9600527, options: whole, why: "the same" },
    Regression {
        seed: 9600115,
        options: whole,
        why: "a node that had joined snapshotted before it knew of voters",
    },
    Regression { seed: 9600206, options: long, why: "the same" },
    Regression {
        seed: 9600199,
        options: long,
        why: "segments that the log let go overtook leftovers, and one became the beginning",
    },
    Regression { seed: 9800041, options: whole, why: "the same" },
    Regression {
        seed: 4900039,
        options: whole,
        why: "a leader slept with an entry that was not committed",
    },
    Regression {
        seed: 900064,
        options: whole,
        why: "members that could not be reached held all places of the sender of snapshots",
    },
    Regression {
        seed: 8842000027,
        options: whole,
        why: "a node that was taken out sent clients to its last leader for ever",
    },
    Regression {
        seed: 2000003882,
        options: long,
        why: "the simulator: a request reached a process by a connection to the one before it",
    },
    Regression {
        seed: 771120189,
        options: whole,
        why: "entries logged again were committed before they were written and could not be read back",
    },
    Regression {
        seed: 314161977,
        options: everything,
        why: "the simulator: a replica that had parted behind two losses was judged at its start",
    },
    Regression {
        seed: 314165331,
        options: everything,
        why: "a winner's old entries stood where later ones were lost, under one epoch",
    },
    Regression {
        seed: 21124014538625964,
        options: everything,
        why: "the simulator: a group ended within the lease of a leader that was cut off",
    },
    Regression { seed: 5, options: whole, why: "much happens in it" },
];

fn everything() -> Options {
    Options { seconds: 28, ..Options::default() }
}

/// Without what came later: it would make other runs of the old seeds.
fn whole() -> Options {
    let nemesis = Kinds::all().without(Kind::Groups).without(Kind::Blackout);
    Options { nemesis, ..Options::default() }
}

fn long() -> Options {
    Options { seconds: 28, ..whole() }
}

fn damage() -> Options {
    let nemesis = Kinds::parse("kill,power,full,io,rot,misdirect").unwrap_or(Kinds::NONE);
    Options { nemesis, ..Options::default() }
}
