//! The numbers that name things: small `Copy` newtypes, so that a term is never taken for an index.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The smallest value; also "none yet" where a comment says so.
            pub const ZERO: Self = Self(0);

            /// The raw number.
            #[inline]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

macro_rules! arithmetic {
    ($name:ident) => {
        impl $name {
            /// The following value. Overflow is a bug and panics: these counters start near 0.
            #[inline]
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// The preceding value; `ZERO` has none and panics.
            #[inline]
            #[must_use]
            pub const fn prev(self) -> Self {
                Self(self.0 - 1)
            }

            /// `self + n`.
            #[inline]
            #[must_use]
            pub const fn plus(self, n: u64) -> Self {
                Self(self.0 + n)
            }

            /// `self - other`, at least 0.
            #[inline]
            pub const fn since(self, other: Self) -> u64 {
                self.0.saturating_sub(other.0)
            }
        }
    };
}

id!(
    /// One Raft group: one replicated log and one state machine. Lives on shard `group % shards`.
    GroupId(u32), "g"
);
id!(
    /// One process with one data directory. Ids start at 1; 0 on the wire means "none".
    NodeId(u32), "n"
);
id!(
    /// Raft's term (§5.1 of the paper). 0 is before the first election.
    Term(u64), "t"
);
id!(
    /// Position of a command in a group's log. The first command has index 1; 0 is the empty log.
    Index(u64), "i"
);
id!(
    /// Byte position in a shard's write-ahead log.
    Lsn(u64), "l"
);
id!(
    /// Counts what a group asked to be persisted; an outbound message names the one it must wait for.
    Seq(u64), "s"
);
id!(
    /// Time as an integer: microseconds since an origin that the runtime chose. Monotonic.
    Tick(u64), "us"
);
id!(
    /// How often a node has started on its data directory (durability.md R3). 0 means "not known yet".
    Incarnation(u32), "inc"
);

arithmetic!(Term);
arithmetic!(Index);
arithmetic!(Lsn);
arithmetic!(Seq);
arithmetic!(Tick);

impl NodeId {
    /// 0 stands for "none" in every encoding.
    #[inline]
    pub const fn from_wire(raw: u32) -> Option<Self> {
        if raw == 0 { None } else { Some(Self(raw)) }
    }

    /// The number that stands for an optional node in every encoding.
    #[inline]
    pub fn to_wire(node: Option<Self>) -> u32 {
        node.map_or(0, |n| n.0)
    }
}

/// What Raft must find again after a crash, besides the log itself (figure 2 of the paper).
///
/// `commit` is not required for safety; it is kept as a hint that lets a restarted node apply before
/// it has heard from a leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardState {
    /// Latest term this node has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
    /// Highest index it knew to be committed when this was written.
    pub commit: Index,
}

impl HardState {
    /// Of a group that has ended: there is no later term, so that no record takes this one back.
    pub const ENDED: Self = Self { term: Term(u64::MAX), vote: None, commit: Index(0) };

    /// Whether it says that the group has ended.
    pub fn is_ended(&self) -> bool {
        self.term == Self::ENDED.term
    }
}

/// Where a group's log begins: everything through `index` is in a snapshot, and what the log still
/// holds of it may go. The default: a log from its first entry on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogStart {
    pub index: Index,
    /// Of the entry at `index`.
    pub term: Term,
    /// Recovery epoch of that entry (durability.md R9).
    pub epoch: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_with_their_kind_so_that_a_trace_is_readable() {
        assert_eq!(format!("{:?} {:?} {:?}", GroupId(3), Term(2), Index(9)), "g3 t2 i9");
    }

    #[test]
    fn node_zero_is_nobody_on_the_wire() {
        assert_eq!(NodeId::from_wire(0), None);
        assert_eq!(NodeId::to_wire(NodeId::from_wire(7)), 7);
    }
}
