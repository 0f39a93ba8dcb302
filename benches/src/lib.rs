//! Side-by-side benchmarks: the figures of docs/benchmarks.md, measured in one run with their peers in between.
//!
//! Each section ([`bind`], [`shim`], [`throughput`], [`queue`], [`idle`], [`stages`], [`unpack`], [`pull`], [`csi`], [`kube`]) makes what it needs in a temporary folder, measures rounds in which every
//! competitor has its turn, and leaves nothing. [`report`] turns the results into the document's tables.
//!
//! **Must not know:** the pilot's decisions. It uses the pilot through its `Runtime` port and the crates below
//! it, or as a program.
#![forbid(unsafe_code)]

pub mod bind;
pub mod clock;
pub mod csi;
pub mod goals;
pub mod ground;
pub mod idle;
pub mod kube;
pub mod machine;
pub mod peers;
pub mod pull;
pub mod queue;
pub mod report;
pub mod results;
pub mod shim;
pub mod site;
pub mod stages;
pub mod throughput;
pub mod tree;
pub mod unpack;
