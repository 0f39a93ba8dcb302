//! Names of outputs and stages.
//!
//! A name becomes one path component and part of an environment variable, so its alphabet is closed. The same rule
//! is kept by `wire` for what arrives on a socket; a test holds the two together.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Name of a workflow, payload or output: 1 to 64 of `A-Z a-z 0-9 . _ -`, first a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StageName(Box<str>);

/// Not a [`StageName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "read name {name:?}: it must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
)]
pub struct NameError {
    /// The name as given, at most 64 characters of it.
    pub name: String,
}

impl StageName {
    /// Longest name in bytes; leaves room for a prefix and a suffix within NAME_MAX (255).
    pub const BYTES_MAX: usize = 64;

    /// Checks a name.
    ///
    /// # Errors
    /// When it is empty, too long, or has a character outside the alphabet.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let first_good = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if first_good && name.len() <= Self::BYTES_MAX && name.bytes().all(good) {
            return Ok(Self(name.into()));
        }
        Err(NameError { name: name.chars().take(Self::BYTES_MAX).collect() })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for StageName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for StageName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(&name)
    }
}

impl From<StageName> for String {
    fn from(name: StageName) -> Self {
        name.0.into()
    }
}

impl FromStr for StageName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

/// Name of a stage: `stage://<workflow>/<payload>/<output>`. It lives as long as its workflow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StageUri {
    /// The workflow that it belongs to and ends with.
    pub workflow: StageName,
    /// The payload that makes it.
    pub payload: StageName,
    /// The output of that payload.
    pub output: StageName,
}

/// Not a [`StageUri`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// It doesn't begin with `stage://`.
    #[error("read {uri:?}: it must begin with stage://")]
    Scheme {
        /// As given.
        uri: String,
    },
    /// Too few or too many parts.
    #[error("read {uri:?}: it must be {expected}")]
    Parts {
        /// As given.
        uri: String,
        /// The forms that are understood here.
        expected: &'static str,
    },
    /// A part is no name.
    #[error("read {uri:?}")]
    Name {
        /// As given.
        uri: String,
        /// Which part and why.
        #[source]
        source: NameError,
    },
}

const SCHEME: &str = "stage://";

impl StageUri {
    /// Reads the short form `stage://<payload>/<output>` that a workflow file uses for itself, and the full form.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse_within(workflow: &StageName, uri: &str) -> Result<Self, UriError> {
        match parts(uri)?.as_slice() {
            [payload, output] => Ok(Self {
                workflow: workflow.clone(),
                payload: part(uri, payload)?,
                output: part(uri, output)?,
            }),
            _ => uri.parse().map_err(|error| match error {
                UriError::Parts { uri, .. } => UriError::Parts {
                    uri,
                    expected: "stage://<payload>/<output> or stage://<workflow>/<payload>/<output>",
                },
                other => other,
            }),
        }
    }
}

impl TryFrom<String> for StageUri {
    type Error = UriError;

    fn try_from(uri: String) -> Result<Self, UriError> {
        uri.parse()
    }
}

impl From<StageUri> for String {
    fn from(uri: StageUri) -> Self {
        uri.to_string()
    }
}

impl FromStr for StageUri {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<Self, UriError> {
        match parts(uri)?.as_slice() {
            [workflow, payload, output] => Ok(Self {
                workflow: part(uri, workflow)?,
                payload: part(uri, payload)?,
                output: part(uri, output)?,
            }),
            _ => Err(UriError::Parts {
                uri: shortened(uri),
                expected: "stage://<workflow>/<payload>/<output>",
            }),
        }
    }
}

impl fmt::Display for StageUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.workflow, self.payload, self.output)
    }
}

fn parts(uri: &str) -> Result<Vec<&str>, UriError> {
    let rest = uri.strip_prefix(SCHEME).ok_or_else(|| UriError::Scheme { uri: shortened(uri) })?;
    // One more than any form has is enough to know that it is too many.
    Ok(rest.splitn(4, '/').collect())
}

fn part(uri: &str, name: &str) -> Result<StageName, UriError> {
    StageName::new(name).map_err(|source| UriError::Name { uri: shortened(uri), source })
}

fn shortened(uri: &str) -> String {
    uri.chars().take(SCHEME.len() + 3 * (StageName::BYTES_MAX + 1)).collect()
}

#[cfg(test)]
#[path = "name_tests.rs"]
mod tests;
