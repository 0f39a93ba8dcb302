//! What every adapter of a port promises, as tests that each adapter runs: the fakes too, so that what is tested with them
//! is true of the real ones.
//!
//! Each function is one promise. `tests/conformance.rs` runs all of them for all adapters.
//!
//! **Must not know:** any adapter.

pub mod queue;
pub mod runtime;
pub mod stages;
