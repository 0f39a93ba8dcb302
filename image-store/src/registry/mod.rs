//! Images from registries (the OCI distribution protocol, and docker's before it).
//!
//! ```text
//! find       --HEAD or GET manifests/..--> digest, documents        session, endpoint, transport
//! ingest     --GET blobs/.. (Range)------> part files --read behind--> layers      downloads, part
//! push       --HEAD, POST, PATCH.., PUT--> blobs, then the manifest        push, upload, outgoing, refused
//! ```
//! It is a client of our own on reqwest: oci-client (0.17) hides `Retry-After`, and takes any 206 for the range
//! that was asked for without a look at `Content-Range`.
//!
//! # Promises
//! - Every byte is verified by its digest, wherever it came from, before anybody can see it.
//! - A password is sent to who asks for it, over https or to this machine, never to where a redirect leads.
//! - All waits and tries have a limit.
//!
//! # What it must not know
//! The store's objects, trees and records; images beyond their documents; the environment.

mod access;
mod authorize;
mod downloads;
mod endpoint;
mod error;
mod excerpt;
mod login;
mod outgoing;
mod part;
mod push;
mod range;
mod refused;
mod retry;
mod session;
mod transport;
mod upload;

pub(crate) use downloads::Downloads;
pub(crate) use outgoing::Outgoing;
pub(crate) use part::Part;
pub(crate) use session::{Document, Session, Shown};

pub use access::{Logins, Patience, Registries, RegistryAccess, RegistryRules, usual_auth_files};
pub use error::RegistryError;
pub use excerpt::LoginExcerpt;
