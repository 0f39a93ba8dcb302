//! A durable queue of payloads in one SQLite file, shared by several pilots of one machine.
//!
//! A spool is a folder:
//! ```text
//!  <spool>/spool.db          everything (SQLite, write-ahead log beside it)
//!  <spool>/wake/<pilot>      datagram socket of a pilot that serves: poked when there may be something to do
//!  <spool>/pilots/<pilot>    locked for as long as that pilot lives
//! ```
//! # Flow
//! ```text
//!                     retry after a pause
//!                  +------------------------+
//!                  v                        |
//!  Waiting --> Ready --claim--> Claimed --report--> Succeeded | Failed | Cancelled | Lost
//!     |          |  <--release--    |
//!     |          +------------------+-- cancel --> Cancelled
//!     +-- a producer failed --> Skipped
//! ```
//! # Guarantees
//! - A submission is there whole or not at all, also after a crash of anything.
//! - A claim's number is given once in the life of the spool, and only who names the number that the payload has now can
//!   renew, report or release. So each payload's end is accepted exactly once.
//! - Leases and pauses are counted in boot time; a changed wall clock moves nothing. After a reboot all leases are void.
//! - What is open costs O(log n) to claim and report, however much lies in the spool.
//!
//! # Assumptions
//! One machine: locks, boot time and sockets don't reach farther. A file system with working POSIX locks.
//!
//! **Must not know:** containers, images, slots. A payload's spec is text that the pilot reads and writes.
#![forbid(unsafe_code)]

mod address;
mod cancel;
mod claim;
mod clock;
mod ending;
mod error;
mod folder;
mod gang;
mod pilots;
mod query;
mod recover;
mod remake;
mod schema;
mod spool;
mod submit;
mod wake;
mod words;
mod work;

pub use address::{Address, AddressError, FindError, Found, RunRef};
pub use cancel::{Cancelled, Selection};
pub use claim::{Claimant, Granted, Offer, Report, Skipped, Want};
pub use clock::{Clock, SystemClock};
pub use error::{OpenError, SpoolError};
pub use pilots::{NewPilot, PilotRow, Registration};
pub use query::{Detail, Row, Run};
pub use recover::{Recovered, Recovery};
pub use remake::Remade;
pub use spool::{Options, Spool};
pub use submit::{NewPayload, Read, Submission, Submitted};
pub use wake::{Ear, poke, poke_others};
pub use words::{Counts, PayloadId, RunFilter, RunId, RunStatus, State, StateError, workflow_of};
pub use work::{Upcoming, Work};
