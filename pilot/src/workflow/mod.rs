//! The workflow file: YAML that names payloads, and the data that they hand to each other.
//!
//! ```text
//!   bytes --parse--> Workflow (as written, with places) --validate--> Plan (resolved, expanded, in numbers)
//! ```
//! ```yaml
//! apiVersion: latebind/v1
//! metadata: {name: zmumu}
//! payloads:
//!   - name: simulate            # simulate-0 .. simulate-7
//!     image: oci:images/simulate
//!     count: 8
//!     outputs: [{name: events, class: mem, max_size: 64Mi}]
//!   - name: reconstruct         # reconstruct-3 reads what simulate-3 wrote, at /stage/in/events
//!     image: oci:images/reconstruct
//!     count: 8
//!     inputs: [{name: events, from: "stage://simulate/events", scatter: true}]
//!     outputs: [{name: masses}]
//!   - name: fit                 # reads /stage/in/masses-0 .. masses-7
//!     image: oci:images/fit
//!     inputs: [{name: masses, from: "stage://reconstruct/masses"}]
//!     outputs: [{name: plot.svg, save: plot.svg}]
//! ```
//! What each field means stands at the types of [`model`], and in the schema that [`schema()`] makes of them.
//!
//! How an input's `from` becomes inputs:
//!
//! | `from` | payload | array | array, `scatter: true` |
//! |---|---|---|---|
//! | a file, a folder, one payload's output | `x` | `x`, for every element | refused |
//! | an array's output, n elements | `x-0`..`x-(n-1)` | all n, for every element | n = count: `x`, of the same index; n > count: `x-0`.. are the i-th, the (i + count)-th and so on |
//! | a pattern of files, n matches | `x-0`..`x-(n-1)` | all n, for every element | `x-0`.. are the i-th, the (i + count)-th and so on |
//!
//! Every complaint is one line, `FILE:LINE:COLUMN: what is wrong; what to do`, and all complaints come at once: first
//! those about the form, then, when the form is right, those about the content.
//!
//! Must not know: images, slots, where results are kept, how anything runs.

pub(crate) mod duration;
mod gangs;
mod host;
mod located;
pub mod model;
mod mounted;
mod order;
mod outputs;
mod parse;
mod plan;
mod problem;
mod quantities;
mod references;
mod resolved;
mod schema;
mod settings;
mod structure;
mod tree;
mod validate;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use host::{Disk, FileKind, HostFiles, MATCHES_MAX};
pub use located::{Located, Position, Text};
pub use model::Workflow;
pub use parse::{TEXT_BYTES_MAX, parse};
pub use plan::{
    Element, InputSource, PayloadSpec, Plan, PlannedInput, PlannedOutput, PlannedPayload, PlannedResources,
    User,
};
pub use problem::{Problem, Problems};
pub use schema::schema;
pub use validate::{PAYLOADS_MAX, RELATIONS_MAX, validate};

/// Why a workflow file can't be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read.
    #[error("read workflow file {path:?}")]
    Read {
        /// As the user named it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is wrong. Display is one line for each problem.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

/// Reads and checks a workflow file. Relative input paths begin at the file's own folder.
///
/// # Errors
/// See [`LoadError`].
pub fn load(path: &Path, files: &impl HostFiles) -> Result<Plan, LoadError> {
    let unreadable = |source| LoadError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let limit = TEXT_BYTES_MAX as u64 + 1;
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(unreadable)?;
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    let invalid = |list| Problems { file: path.to_owned(), list };
    Ok(check(&bytes, folder, files).map_err(invalid)?)
}

/// All of it on bytes: text, form, content.
fn check(bytes: &[u8], folder: &Path, files: &impl HostFiles) -> Result<Plan, Vec<Problem>> {
    let text = text(bytes).map_err(|problem| vec![problem])?;
    validate(&parse(text)?, folder, files)
}

fn text(bytes: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(bytes).map_err(|error| {
        let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = good.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        let in_line = good.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let column = String::from_utf8_lossy(in_line).chars().count() as u64 + 1;
        Problem::new(Position { line, column }, "the file is not UTF-8 text; save it as UTF-8")
    })
}

/// Entry for fuzzing: any bytes are a plan or problems, never a panic. Sees no file system.
pub fn fuzz_workflow(bytes: &[u8]) {
    let (Ok(_) | Err(_)) = check(bytes, Path::new("/"), &NoFiles);
}

/// A machine whose every path is a file and whose folders have two.
struct NoFiles;

impl HostFiles for NoFiles {
    fn kind(&self, _: &Path) -> io::Result<FileKind> {
        Ok(FileKind::File)
    }

    fn names(&self, _: &Path, max: usize) -> io::Result<Vec<OsString>> {
        Ok(["a", "b"].into_iter().take(max).map(OsString::from).collect())
    }
}

#[cfg(test)]
#[path = "workflow_tests.rs"]
mod tests;
