//! Seeds that found something once: they are run with every test run, so that it stays found.

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
pub const REGRESSIONS: &[Regression] = &[];
