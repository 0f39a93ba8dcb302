//! Names of persistent objects: `s3://bucket/key` and `file:///absolute/path`. Nothing is looked up here.
//!
//! A name is taken literally: nothing is decoded, so two texts that differ name two objects.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// S3's bound on a key, in bytes.
const KEY_BYTES_MAX: usize = 1024;
/// Linux's PATH_MAX without the final zero.
const PATH_BYTES_MAX: usize = 4095;
/// Linux's NAME_MAX.
const PART_BYTES_MAX: usize = 255;

/// The name of an object that outlives runs. Displayed as it was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectUrl(Place);

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    S3 { bucket: String, key: String },
    File(PathBuf),
}

/// Why a text names no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme than `s3` and `file`, or none.
    #[error("read \"{0}\": write s3://BUCKET/KEY or file:///ABSOLUTE/PATH")]
    Scheme(String),
    /// S3 has no such bucket names.
    #[error(
        "read \"{0}\": a bucket has 3 to 63 of a-z, 0-9, '-' and '.', and begins and ends with a letter or digit"
    )]
    Bucket(String),
    /// `file://host/..`, or a path that is not absolute.
    #[error("read \"{0}\": write file:// and an absolute path, with three slashes")]
    NotAbsolute(String),
    /// Empty parts, `.`, `..`.
    #[error("read \"{0}\": no part of the name may be empty, \".\" or \"..\"")]
    Part(String),
    /// Control characters, and what begins a query or fragment.
    #[error("read \"{0}\": control characters, '?', '#' and '\\' can't be in a name")]
    Character(String),
    /// Longer than S3 or Linux allow.
    #[error("read \"{0}\": at most {1} bytes are possible in {2}")]
    Long(String, usize, &'static str),
}

impl ObjectUrl {
    pub(crate) fn place(&self) -> &Place {
        &self.0
    }

    /// The path of a `file://` object.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Place::File(path) => Some(path),
            Place::S3 { .. } => None,
        }
    }

    /// The last part of the name.
    #[must_use]
    pub fn name(&self) -> &str {
        let text = match &self.0 {
            Place::S3 { key, .. } => key,
            Place::File(path) => path.to_str().unwrap_or_default(),
        };
        text.rsplit('/').next().unwrap_or_default()
    }
}

impl FromStr for ObjectUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.chars().any(|c| c.is_control() || matches!(c, '?' | '#' | '\\')) {
            return Err(UrlError::Character(shown(text)));
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, key) = rest.split_once('/').ok_or_else(|| UrlError::Scheme(shown(text)))?;
            if !is_bucket(bucket) {
                return Err(UrlError::Bucket(shown(text)));
            }
            if key.len() > KEY_BYTES_MAX {
                return Err(UrlError::Long(shown(text), KEY_BYTES_MAX, "a key"));
            }
            parts(text, key, KEY_BYTES_MAX)?;
            Ok(Self(Place::S3 { bucket: bucket.to_owned(), key: key.to_owned() }))
        } else if let Some(path) = text.strip_prefix("file://") {
            let parts_of = path.strip_prefix('/').ok_or_else(|| UrlError::NotAbsolute(shown(text)))?;
            if path.len() > PATH_BYTES_MAX {
                return Err(UrlError::Long(shown(text), PATH_BYTES_MAX, "a path"));
            }
            parts(text, parts_of, PART_BYTES_MAX)?;
            Ok(Self(Place::File(PathBuf::from(path))))
        } else {
            Err(UrlError::Scheme(shown(text)))
        }
    }
}

impl TryFrom<String> for ObjectUrl {
    type Error = UrlError;

    fn try_from(text: String) -> Result<Self, UrlError> {
        text.parse()
    }
}

impl From<ObjectUrl> for String {
    fn from(url: ObjectUrl) -> Self {
        url.to_string()
    }
}

fn parts(text: &str, name: &str, bytes_max: usize) -> Result<(), UrlError> {
    for part in name.split('/') {
        if matches!(part, "" | "." | "..") {
            return Err(UrlError::Part(shown(text)));
        }
        if part.len() > bytes_max {
            return Err(UrlError::Long(shown(text), bytes_max, "a part of the name"));
        }
    }
    Ok(())
}

fn is_bucket(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && bytes.iter().all(|c| plain(*c) || matches!(c, b'-' | b'.'))
        && plain(bytes[0])
        && plain(bytes[bytes.len() - 1])
        && !name.contains("..")
}

/// What an error may say of a text that somebody wrote: short, on one line.
fn shown(text: &str) -> String {
    text.chars().take(120).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl fmt::Display for ObjectUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
            Place::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn good_names_read_back_as_they_are_written() {
        for text in ["s3://data/run 1/a%20b=c.csv", "s3://a.b-c/k", "file:///x", "file:///srv/über/daten"] {
            assert_eq!(text.parse::<ObjectUrl>().map(|url| url.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("s3://data/a/b".parse::<ObjectUrl>().expect("url").name(), "b");
        assert_eq!("file:///a/c".parse::<ObjectUrl>().expect("url").name(), "c");
    }

    #[test]
    fn bad_names_are_refused_in_one_line() {
        let long = "a".repeat(1025);
        for text in [
            "",
            "s3:",
            "s3://",
            "s3:///k",
            "s3://bucket",
            "s3://bucket/",
            "s3://Bucket/k",
            "s3://ab/k",
            "s3://a..b/k",
            "s3://-ab/k",
            "s3://bucket/a//b",
            "s3://bucket/../k",
            "s3://bucket/a/.",
            "s3://bucket/k?versionId=1",
            "s3://bucket/k#f",
            "s3://bucket/a\nb",
            "s3://bucket/a\0b",
            "s3://user:secret@bucket/k",
            "file://host/x",
            "file://x",
            "file:///",
            "file:///a/../b",
            "file:///a//b",
            "file:///a/",
            "http://x/y",
            "/x",
            "stage://a/b",
            &format!("s3://bucket/{long}"),
            &format!("file:///{long}"),
        ] {
            let error = text.parse::<ObjectUrl>().expect_err(text).to_string();
            assert!(!error.contains('\n') && error.len() < 400, "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_reads_back(text in "\\PC{0,40}|(s3://[a-z]{3}/|file:///)[a-z./ %?]{0,20}") {
            if let Ok(url) = text.parse::<ObjectUrl>() {
                prop_assert_eq!(url.to_string(), text);
                prop_assert!(!url.name().is_empty());
            }
        }
    }
}
