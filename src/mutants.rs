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
    /// The log's files are opened without O_DSYNC, and a sync does nothing: a database on a laptop.
    NoSync = "no-sync",
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
