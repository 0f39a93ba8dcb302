//! Where the pilots of one tenant on one node share their stages: no byte is copied, and no tenant knows of another.
//!
//! ```text
//!   pilot A ── Offer ──> gate A ┐                       ┌ gate B <── Fetch ── pilot B
//!   (its own broker)            ├─> tenant: objects ────┤             (its own broker)
//!   volume A ── link ─────────> ┘   memory, values,     └── link ──> volume B
//!                                   a folder of links
//! ```
//! A *gate* is the socket of one volume, and says whose its pilots are. An object is one more reference to what a pilot holds: a
//! descriptor of sealed memory, a hard link to a read-only file. So it outlives the pilot that offered it, and taking it costs
//! the same whatever its size. What the pilots hold they offer again when the exchange was started anew.
//!
//! # Guarantees
//! - A pilot reaches its own volume and its tenant's objects, and nothing else, whatever paths or names it says.
//! - What is not immutable is refused: memory without all seals, a file with a write bit. What a folder has in it its pilot has seen to,
//!   which harms no other tenant.
//! - A tenant's objects are bounded in number and bytes; a connection that stalls, lies or says too much is cut off, alone.
//! - When a tenant's last gate is closed, its objects are gone.
//!
//! **Must not know:** Kubernetes, how volumes come to be, who reads what.

mod client;
mod connection;
mod hub;
mod server;

pub use client::{ExchangeClient, ExchangeError, Fetched, Offered};
pub use hub::Counts;
pub use server::{Exchange, Gate, Quota};
