//! The Latebind pilot: holds a share of a machine and runs payloads in it, each in its own image.
//!
//! ```text
//!   main ─> cli ─> commands ─> driver: select an event ─> pilot-core decides ─> executor, queue: apply
//!                                 ^                                                  │
//!                                 └────────────────── news ──────────────────────────┘
//! ```
//! [`ports`] are the three places where the outside comes in; their adapters are [`queue`], [`runtime`] and [`cluster`].
#![forbid(unsafe_code)]

pub mod api;
pub mod board;
pub mod cli;
pub mod cluster;
pub mod clustercheck;
pub mod commands;
pub mod config;
pub mod driver;
pub mod entries;
pub mod fault;
pub mod metrics;
pub mod mounts;
pub mod object_access;
pub mod payload;
pub mod pod;
pub mod ports;
pub mod progress;
pub mod queue;
pub mod registries;
mod remote;
pub mod runtime;
pub mod show;
pub mod surroundings;
pub mod telemetry;
pub mod ui;
pub mod units;
pub mod workflow;

mod executor;
