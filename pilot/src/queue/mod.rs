//! Queue adapters: where payloads come from.

pub mod spool;
pub mod workflow;
