//! The project's documents, as they lie in `src/docs/`.

#[doc = include_str!("docs/architecture.md")]
pub mod architecture {}

#[doc = include_str!("docs/formats.md")]
pub mod formats {}

#[doc = include_str!("docs/invariants.md")]
pub mod invariants {}

#[doc = include_str!("docs/model.md")]
pub mod model {}

#[doc = include_str!("docs/decisions.md")]
pub mod decisions {}

#[doc = include_str!("docs/benchmarking.md")]
pub mod benchmarking {}

#[doc = include_str!("docs/testing.md")]
pub mod testing {}

#[doc = include_str!("docs/simulator.md")]
pub mod simulator {}

#[doc = include_str!("docs/operations.md")]
pub mod operations {}
