//! Persistent objects by URL, the slowest tier of data: `s3://` through `object_store`, `file://` through the file
//! system. Put and fetched whole, verified by SHA-256, resumed after faults, shared by the processes of a machine.
//!
//! It must not know payloads, slots or the pilot, and reads no environment: who calls says what it found there.
//!
//! Guarantees:
//! - A name shows a whole object or none: files get their name last, S3 makes uploads visible in one step.
//! - What was fetched has the digest that was asked for and the one that was kept when it was put, or nothing is left.
//! - Every wait has a deadline ([`Limits`]); memory is bounded by parts, not by objects.
//! - A future that is dropped leaves no file behind and gives its upload up; [`ObjectTier::settle`] waits for that.
#![forbid(unsafe_code)]

mod blocking;
mod digest;
mod error;
mod http;
mod local;
mod node;
mod s3;
mod settings;
mod source;
mod tier;
pub mod unfinished;
mod url;

pub use digest::{Digest, DigestError};
pub use error::{Class, ObjectError};
pub use node::{Held, OncePerNode};
pub use settings::{Credentials, Limits, Settings, SettingsError};
pub use source::Source;
pub use tier::{Expect, Fetched, Head, Listed, ObjectTier, Put, Stored};
pub use url::{ObjectUrl, UrlError};
