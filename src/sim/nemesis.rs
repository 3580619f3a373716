//! What goes wrong in a run, planned from the seed before it begins: a list of faults that can be
//! cut down while a failure stays ([`super::shrink`]).

use super::rng::Rng;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $weight:literal, $group:literal;)+) => {
        /// A kind of trouble.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Kind { $($(#[doc = $doc])+ $name,)+ }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The group it belongs to, also a name on the command line.
            pub fn group(self) -> &'static str {
                match self { $(Self::$name => $group,)+ }
            }

            fn weight(self) -> u64 {
                match self { $(Self::$name => $weight,)+ }
            }
        }
    };
}

kinds! {
    /// kill -9 of a node; it is started again.
    Kill = "kill", 8, "node";
    /// Power loss of a node: what was not synced may be gone.
    Power = "power", 10, "node";
    /// SIGTERM of a node: it finishes what is under way; it is started again.
    Stop = "stop", 2, "node";
    /// SIGSTOP, and later SIGCONT.
    Pause = "pause", 4, "node";
    /// The node's clock runs up to 10 % fast or slow, or jumps ahead.
    Clock = "clock", 4, "node";
    /// Every turn of the node takes milliseconds.
    Slow = "slow", 3, "node";
    /// The node is stopped and started with another number of shards first, which it must refuse.
    Shards = "shards", 1, "node";
    /// The node's data directory is lost for good; it comes back as a stranger.
    Wipe = "wipe", 1, "node";
    /// The nodes fall into two sides.
    Partition = "partition", 6, "network";
    /// Nothing arrives from one node at another.
    OneWay = "one-way", 4, "network";
    /// Two sides that only one node connects.
    Bridge = "bridge", 3, "network";
    /// A connection between two nodes comes and goes.
    Flap = "flap", 3, "network";
    /// Connections of a node are reset, frames cut in half.
    Reset = "reset", 5, "network";
    /// Up to 30 % of a node's frames are lost.
    Loss = "loss", 4, "network";
    /// Frames arrive twice.
    Duplicate = "duplicate", 3, "network";
    /// Frames overtake each other.
    Reorder = "reorder", 3, "network";
    /// Old frames arrive again, also those of an earlier connection or start.
    Replay = "replay", 3, "network";
    /// Frames are late, some of them very late.
    Delay = "delay", 4, "network";
    /// A link carries few bytes a second.
    Narrow = "narrow", 2, "network";
    /// A socket takes no bytes for a while.
    Stuck = "stuck", 2, "network";
    /// The disk takes long.
    Latency = "latency", 4, "disk";
    /// The disk does nothing for a while, or completes no sync.
    Stall = "stall", 3, "disk";
    /// The disk is full.
    Full = "full", 3, "disk";
    /// Writes, syncs or preparations fail, once or for good.
    Io = "io", 3, "disk";
    /// Leadership of what a node leads is handed to another one.
    Transfer = "transfer", 4, "node";
    /// Bits flip in what was synced, while the node is down.
    Rot = "rot", 1, "disk";
    /// A write lands elsewhere, and is reported as done.
    Misdirect = "misdirect", 1, "disk";
    /// All voters of a group lose power at once and no learner does: what the voters had not synced is
    /// gone, and a learner may have it committed. Drawn apart from the others, see [`blackouts`].
    Blackout = "blackout", 0, "node";
    /// An operator changes the members: no fault of the plan, it goes on beside them.
    Members = "members", 0, "members";
    /// An operator makes groups and ends them, in the same way.
    Groups = "groups", 0, "groups";
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    pub const NONE: Self = Self(0);

    pub fn all() -> Self {
        Kind::ALL.iter().fold(Self::NONE, |kinds, &kind| kinds.with(kind))
    }

    #[must_use]
    pub fn with(self, kind: Kind) -> Self {
        Self(self.0 | 1 << kind as u8)
    }

    #[must_use]
    pub fn without(self, kind: Kind) -> Self {
        Self(self.0 & !(1 << kind as u8))
    }

    pub fn has(self, kind: Kind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }

    /// From names of kinds and groups ("kill,power,network"); the unknown name as the error.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut kinds = Self::NONE;
        for name in text.split(',').filter(|name| !name.is_empty()) {
            let before = kinds;
            for &kind in Kind::ALL {
                if name == "all" || kind.group() == name || kind.name() == name {
                    kinds = kinds.with(kind);
                }
            }
            if kinds == before && name != "none" {
                return Err(format!("unknown fault {name:?}"));
            }
        }
        Ok(kinds)
    }

    /// As [`Kinds::parse`] reads it.
    pub fn names(self) -> String {
        if self == Self::all() {
            return "all".into();
        }
        let names: Vec<_> =
            Kind::ALL.iter().filter(|kind| self.has(**kind)).map(|kind| kind.name()).collect();
        if names.is_empty() { "none".into() } else { names.join(",") }
    }
}

/// One fault of a plan. Times in microseconds of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its position in the plan of the seed; stays when others are dropped.
    pub number: u32,
    pub at: u64,
    pub kind: Kind,
    /// Positions of nodes, different ones where there are two.
    pub node: usize,
    pub other: usize,
    /// How bad; each kind reads it its own way.
    pub amount: u64,
    pub lasts: u64,
}

const MS: u64 = 1000;

/// The plan of a seed, so that at least `count` faults take place before `end`: some more, for a
/// directory is lost only once, and what comes late may not find its time.
pub fn plan(mut rng: Rng, kinds: Kinds, nodes: u32, count: u32, end: u64) -> Vec<Fault> {
    // One node has nobody whom it could be cut off from.
    let network = |kind: &Kind| nodes == 1 && kind.group() == "network";
    let kinds =
        Kind::ALL.iter().filter(|kind| network(kind)).fold(kinds, |k, kind| k.without(*kind));
    let kinds = if nodes == 2 { kinds.without(Kind::Bridge) } else { kinds };
    let total: u64 = Kind::ALL.iter().filter(|k| kinds.has(**k)).map(|k| k.weight()).sum();
    if total == 0 {
        return Vec::new();
    }
    let slack = if count == 0 { 0 } else { 5 + count / 3 };
    let count = u64::from(count + slack) + rng.below(u64::from(count) / 4 + 1);
    // Some runs hurry, some give the cluster time between the blows.
    let longest = [300, 1000, 3000][rng.below(3) as usize] * MS;
    let mut times: Vec<u64> = (0..count).map(|_| rng.between(300 * MS, end)).collect();
    times.sort_unstable();
    let mut faults = Vec::with_capacity(times.len());
    for (number, at) in times.into_iter().enumerate() {
        let kind = pick(&mut rng, kinds, total);
        let node = rng.below(u64::from(nodes)) as usize;
        let step = 1 + rng.below(u64::from(nodes - 1).max(1)) as usize;
        let other = (node + step) % nodes as usize;
        let (amount, lasts) = (rng.next(), rng.between(10 * MS, longest));
        faults.push(Fault { number: number as u32, at, kind, node, other, amount, lasts });
    }
    faults
}

/// A few blackouts, numbered from `first` on, at any time before `end`. Each waits until there is a
/// learner that is ahead of all voters' disks, which may never be. They come behind the plan, from
/// random numbers of their own, so that runs without them stay as they were.
pub fn blackouts(mut rng: Rng, first: u32, end: u64) -> Vec<Fault> {
    let count = 1 + rng.below(3) as u32;
    let fault = |number| Fault {
        number,
        at: rng.between(300 * MS, end),
        kind: Kind::Blackout,
        node: 0,
        other: 0,
        amount: 0,
        lasts: rng.between(10 * MS, 1000 * MS),
    };
    (first..first + count).map(fault).collect()
}

fn pick(rng: &mut Rng, kinds: Kinds, total: u64) -> Kind {
    let mut ticket = rng.below(total);
    for &kind in Kind::ALL.iter().filter(|kind| kinds.has(**kind)) {
        match ticket.checked_sub(kind.weight()) {
            Some(rest) => ticket = rest,
            None => return kind,
        }
    }
    unreachable!("the weights sum to the total")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_kinds_is_printed_as_it_is_read() {
        for text in
            ["all", "none", "kill,power", "kill,power,pause,clock,slow,shards,wipe,transfer"]
        {
            assert_eq!(Kinds::parse(text).unwrap().names(), text);
        }
        assert_eq!(
            Kinds::parse("disk,kill").unwrap().names(),
            "kill,latency,stall,full,io,rot,misdirect"
        );
        assert_eq!(Kinds::parse("kil"), Err("unknown fault \"kil\"".into()));
    }

    #[test]
    fn a_plan_has_its_faults_in_order_of_the_kinds_asked_for() {
        let kinds = Kinds::parse("kill,flap").unwrap();
        let plan = plan(Rng::new(3), kinds, 3, 50, 20_000_000);
        assert!(plan.len() >= 50);
        assert!(plan.windows(2).all(|f| f[0].at <= f[1].at && f[0].number < f[1].number));
        assert!(plan.iter().all(|f| kinds.has(f.kind) && f.node != f.other && f.node < 3));
    }

    #[test]
    fn nobody_plans_what_so_few_nodes_cannot_feel() {
        let of = |nodes| plan(Rng::new(3), Kinds::all(), nodes, 200, 20_000_000);
        assert!(of(1).iter().all(|fault| fault.kind.group() != "network"));
        assert!(of(2).iter().all(|fault| fault.kind != Kind::Bridge));
        assert!(of(3).iter().any(|fault| fault.kind == Kind::Bridge));
    }
}
