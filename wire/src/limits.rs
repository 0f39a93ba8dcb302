//! Limits on counts, lengths and names, in one place so that both directions agree.

/// A message that can say whether it keeps its own limits.
pub trait Check {
    /// Checks every count, length and name.
    ///
    /// # Errors
    /// The first limit that is broken.
    fn check(&self) -> Result<(), Violation>;
}

/// A broken limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Too many of something.
    #[error("{count} {what}: at most {max} are allowed")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many may be.
        max: usize,
    },
    /// Too long.
    #[error("{what} of {bytes} bytes: at most {max} are allowed")]
    TooLong {
        /// What is measured.
        what: &'static str,
        /// Its length in bytes.
        bytes: usize,
        /// The longest allowed.
        max: usize,
    },
    /// A NUL byte where the kernel takes a C string.
    #[error("{what} contains a NUL byte")]
    Nul {
        /// Where.
        what: &'static str,
    },
    /// Empty where something is needed.
    #[error("{what} is empty")]
    Empty {
        /// What.
        what: &'static str,
    },
    /// A stage name that is not 1 to 64 of `A-Z a-z 0-9 . _ -`, first a letter or digit.
    #[error(
        "stage name {name:?} is not 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
    )]
    Name {
        /// The name as received, shortened.
        name: String,
    },
    /// A path that is not of plain names.
    #[error("path {path:?} has an empty part, \".\" or \"..\"")]
    Path {
        /// The path as received, shortened.
        path: String,
    },
    /// A number outside its range.
    #[error("{what} {value} is outside {min}..={max}")]
    Range {
        /// What.
        what: &'static str,
        /// Its value.
        value: i64,
        /// Smallest allowed.
        min: i64,
        /// Largest allowed.
        max: i64,
    },
}

pub(crate) fn count(what: &'static str, count: usize, max: usize) -> Result<(), Violation> {
    if count > max { Err(Violation::TooMany { what, count, max }) } else { Ok(()) }
}

pub(crate) fn long(what: &'static str, bytes: usize, max: usize) -> Result<(), Violation> {
    if bytes > max { Err(Violation::TooLong { what, bytes, max }) } else { Ok(()) }
}

pub(crate) fn range(what: &'static str, value: i64, min: i64, max: i64) -> Result<(), Violation> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(Violation::Range { what, value, min, max }) }
}

/// A byte string that will become a C string.
pub(crate) fn c_string(what: &'static str, bytes: &[u8], max: usize) -> Result<(), Violation> {
    if bytes.len() > max {
        return Err(Violation::TooLong { what, bytes: bytes.len(), max });
    }
    if bytes.contains(&0) { Err(Violation::Nul { what }) } else { Ok(()) }
}

/// Longest stage name, in bytes. Leaves room for a prefix within NAME_MAX (255).
pub(crate) const STAGE_NAME_BYTES_MAX: usize = 64;

/// A stage name becomes one path component; see [`Violation::Name`].
pub(crate) fn stage_name(name: &str) -> Result<(), Violation> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let first_good = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first_good && name.len() <= STAGE_NAME_BYTES_MAX && name.bytes().all(good) {
        return Ok(());
    }
    Err(Violation::Name { name: name.chars().take(STAGE_NAME_BYTES_MAX).collect() })
}

/// `stage://<workflow>/<payload>/<output>`, of three stage names.
pub(crate) fn stage_uri(uri: &str) -> Result<(), Violation> {
    let parts = uri.strip_prefix("stage://").map(|rest| rest.split('/').collect::<Vec<_>>());
    match parts.as_deref() {
        Some([workflow, payload, output]) => {
            [workflow, payload, output].into_iter().try_for_each(|name| stage_name(name))
        }
        _ => Err(Violation::Name { name: uri.chars().take(STAGE_NAME_BYTES_MAX).collect() }),
    }
}

/// Bytes in one piece: element by element they would take longer than the system call that carries them. The encoding is
/// the same.
pub(crate) mod blob {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Blob;
        impl Visitor<'_> for Blob {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        from.deserialize_bytes(Blob)
    }
}
