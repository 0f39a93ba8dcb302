//! Queue adapters: where payloads come from.

pub mod workflow;
