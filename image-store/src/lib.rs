//! A content-addressed store of OCI images: find, fetch, verify, unpack, materialise, collect.
//!
//! ```text
//! reference --find-------> verified manifest, config, layers (of a registry, a folder or a file)
//!             --ingest---> files/ (one object a content), trees/ (merged tree), images/ (record, last)
//!             --push-----> a repository of a registry (of a folder or a file)
//!             --materialise--> a local tree that a runner mounts or binds
//! ```
//! # Promises
//! - A name in the store is a digest; it is visible once its bytes are whole.
//! - An image is visible once every blob digest and every diff_id of it was verified.
//! - Layers are hostile input: no name of theirs is resolved on disk, and every length has a limit.
//! - A process that is killed at any point harms no image; what it leaves is swept, or gone on with.
//! - A private image is for those whom its registry lets in.
//!
//! # What it must not know
//! Mounts, namespaces, containers, payloads, the environment. All methods block: call them where that is
//! allowed. Async stands in `registry` alone.
#![forbid(unsafe_code)]

mod archive_file;
mod blob_stream;
mod candidate;
mod digest;
mod entry;
mod find;
#[doc(hidden)]
pub mod fuzz;
mod gc;
mod grants;
mod ingest;
mod ingest_layers;
mod layer;
mod layer_builder;
mod layer_format;
pub mod layout;
mod leb;
mod limits;
mod lookup;
mod materialise;
mod mount_points;
mod objects;
mod pax;
mod preflight;
mod push;
mod record;
mod reference;
mod registry;
mod repository;
mod scratch;
mod source;
mod sparse;
mod spec;
mod store;
mod store_format;
mod tar_stream;
mod tree;
mod tree_format;
mod tree_links;
mod tree_writer;
mod usage;
mod walk;

pub use digest::{Digest, DigestError};
pub use entry::{EntryError, LeftOut};
pub use gc::{Collected, Verified};
pub use ingest::{IngestError, Ingested, Progress};
pub use layer::LayerError;
pub use limits::Limits;
pub use lookup::{NoSuchProgram, UserError};
pub use materialise::{Attach, MaterialiseError, Root};
pub use mount_points::{MOUNT_FILES, MOUNT_POINTS, MountPoint, MountPointError, Place};
pub use objects::ObjectError;
pub use preflight::{Preflight, PreflightError};
pub use push::{PushError, PushOptions, PushProgress, Pushed, push};
pub use record::{ImageId, LayerInfo};
pub use reference::{Reference, ReferenceError, Transport};
pub use registry::{
    LoginExcerpt, Logins, Patience, Registries, RegistryAccess, RegistryError, RegistryRules,
    usual_auth_files,
};
pub use repository::{Repository, RepositoryError};
pub use source::SourceError;
pub use spec::{ImageConfig, Platform};
pub use store::{Hold, Options, Store, StoredImage};
pub use store_format::StoreError;
pub use tree_format::TreeFormatError;
pub use usage::{Checked, Damage, ImageUsage, Usage};
