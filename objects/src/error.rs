//! What can go wrong with an object, in one line each, and what the servers' answers mean.

use std::path::{Path, PathBuf};

use object_store::client::{HttpError, HttpErrorKind};

use crate::{Digest, Limits, ObjectUrl};

/// Who should act on a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Trying again later may help.
    Retry,
    /// Trying again can't help: the name, the rights or the content are wrong.
    Payload,
}

/// Why an operation on an object failed. One line: what failed, on what, what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There is no such object.
    #[error("find {0}: it is not there; check the name")]
    NotFound(ObjectUrl),
    /// The credentials, or their absence, don't allow it.
    #[error("access {0}: forbidden; check the credentials and what they may do")]
    Forbidden(ObjectUrl),
    /// The bucket of an `s3://` object or the folder of a `file://` one is missing.
    #[error("reach {0}: there is no such bucket or folder; make it first")]
    NoBucket(ObjectUrl),
    /// Another content has this name.
    #[error(
        "put {0}: a different object has that name; remove it, choose another name, or allow overwriting"
    )]
    Exists(ObjectUrl),
    /// The name leads to something that is no object.
    #[error("use {0}: it is not a regular file; name a file")]
    NotAFile(ObjectUrl),
    /// Content and digest don't agree.
    #[error(
        "verify {url}: {found} came instead of {expected}; it is damaged or not what was meant, put it again"
    )]
    WrongDigest {
        /// The object.
        url: ObjectUrl,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// What should be put is not as long, or not as it was, when it was announced.
    #[error("put {url}: {reason}; put it again once it no longer changes")]
    Source {
        /// The object.
        url: ObjectUrl,
        /// What is wrong.
        reason: String,
    },
    /// The object was replaced while it was read or put.
    #[error("use {0}: somebody replaced it meanwhile; try again when nobody writes it")]
    Changed(ObjectUrl),
    /// The server would not do it, whatever the number of tries.
    #[error("use {url}: {reason}; check the settings of this server")]
    Refused {
        /// The object.
        url: ObjectUrl,
        /// What the server said.
        reason: String,
    },
    /// The server can't be reached or is unwell.
    #[error("use {url}: {reason}; try again later")]
    Server {
        /// The object.
        url: ObjectUrl,
        /// What happened.
        reason: String,
    },
    /// A deadline has passed.
    #[error("use {url}: {missed}; try again later, or allow more time")]
    Timeout {
        /// The object.
        url: ObjectUrl,
        /// What did not come, and within which time.
        missed: String,
    },
    /// No space, or no quota, is left.
    #[error("write {}: no space is left; free some", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// Another failure of a local file system.
    #[error("use {}: {reason}; check the path and its rights", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// More than the caller wanted to see, or more than S3 can store.
    #[error("use {url}: {reason}")]
    TooMuch {
        /// The object or prefix.
        url: ObjectUrl,
        /// Which bound is in the way.
        reason: String,
    },
}

impl ObjectError {
    /// Who should act on it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NotFound(_)
            | Self::Forbidden(_)
            | Self::NoBucket(_)
            | Self::Exists(_)
            | Self::NotAFile(_)
            | Self::WrongDigest { .. }
            | Self::Source { .. }
            | Self::Refused { .. }
            | Self::TooMuch { .. }
            | Self::Local { .. } => Class::Payload,
            Self::Changed(_) | Self::Server { .. } | Self::Timeout { .. } | Self::DiskFull { .. } => {
                Class::Retry
            }
        }
    }

    /// A failure of a local file.
    pub(crate) fn local(path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let path = path.to_path_buf();
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Local { path, reason: one_line(&error.to_string()) },
        }
    }

    /// A failure of the file that an object is.
    pub(crate) fn file(url: &ObjectUrl, path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::NotFound => match path.parent() {
                Some(folder) if !folder.is_dir() => Self::NoBucket(url.clone()),
                _ => Self::NotFound(url.clone()),
            },
            ErrorKind::NotADirectory => Self::NoBucket(url.clone()),
            ErrorKind::IsADirectory => Self::NotAFile(url.clone()),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Self::Forbidden(url.clone()),
            ErrorKind::AlreadyExists => Self::Exists(url.clone()),
            _ => Self::local(path, error),
        }
    }

    /// What an answer of a server means.
    pub(crate) fn server(url: &ObjectUrl, limits: &Limits, error: &object_store::Error) -> Self {
        use object_store::Error as E;
        let url = url.clone();
        let text = error_text(error);
        let code = between(&text, "<Code>", "</Code>");
        if code == Some("NoSuchBucket") {
            return Self::NoBucket(url);
        }
        match error {
            E::NotFound { .. } => Self::NotFound(url),
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Self::Forbidden(url),
            E::AlreadyExists { .. } | E::Precondition { .. } => Self::Exists(url),
            _ => match http_kind(error) {
                Some(HttpErrorKind::Timeout) => Self::Timeout { url, missed: missed(error, limits) },
                Some(_) if text.contains("invalid peer certificate") => {
                    let reason = format!("its certificate is not trusted ({})", reason(error));
                    Self::Refused { url, reason }
                }
                Some(_) => Self::Server { url, reason: reason(error) },
                None => Self::by_status(url, &text, code),
            },
        }
    }

    /// `object_store` keeps a server's status to itself, but says it.
    fn by_status(url: ObjectUrl, text: &str, code: Option<&str>) -> Self {
        let status =
            text.split("status code: ").nth(1).and_then(|rest| rest.get(..3)).and_then(|s| s.parse().ok());
        let message = between(text, "<Message>", "</Message>").unwrap_or_default();
        let said =
            |status: u16| one_line(&[&status.to_string(), code.unwrap_or_default(), message].join(" "));
        match status {
            Some(403 | 401) => Self::Forbidden(url),
            Some(404) => Self::NotFound(url),
            Some(409 | 412) => Self::Exists(url),
            Some(status @ (408 | 429 | 500..)) => {
                Self::Server { url, reason: format!("the server answered {}", said(status)) }
            }
            Some(status) => Self::Refused { url, reason: format!("the server answered {}", said(status)) },
            None if text.contains("redirect without LOCATION") => {
                Self::Refused { url, reason: "the bucket is in another region".to_owned() }
            }
            None => Self::Server { url, reason: one_line(text) },
        }
    }
}

/// Which wait was too long. reqwest does not tell silence in the middle from slowness in all.
fn missed(error: &object_store::Error, limits: &Limits) -> String {
    let cause = http_error(error).and_then(|error| std::error::Error::source(error));
    if cause.and_then(|cause| cause.downcast_ref::<reqwest::Error>()).is_some_and(reqwest::Error::is_connect)
    {
        return format!("no connection within {} s", limits.connect.as_secs_f32());
    }
    let (stall, request) = (limits.stall.as_secs_f32(), limits.request.as_secs_f32());
    format!("no byte for {stall} s, or not all within {request} s")
}

/// All that an error and its causes say.
fn error_text(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}

fn http_error(error: &object_store::Error) -> Option<&HttpError> {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

fn http_kind(error: &object_store::Error) -> Option<HttpErrorKind> {
    http_error(error).map(HttpError::kind)
}

/// The innermost causes of a failed connection; the outer ones repeat addresses.
fn reason(error: &object_store::Error) -> String {
    let mut text = Vec::new();
    let mut next = http_error(error).and_then(|error| std::error::Error::source(error));
    while let Some(cause) = next {
        text.push(cause.to_string());
        next = cause.source();
    }
    one_line(&text.join(": "))
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    text.split_once(open).and_then(|(_, rest)| rest.split_once(close)).map(|(inner, _)| inner)
}

/// At most 300 characters without control characters.
pub(crate) fn one_line(text: &str) -> String {
    let clean: String = text.trim().chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url() -> ObjectUrl {
        "s3://data/key".parse().expect("url")
    }

    fn said(text: &str) -> ObjectError {
        let error = object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
        ObjectError::server(&url(), &Limits::default(), &error)
    }

    #[test]
    fn every_answer_has_its_class() {
        let rows = [
            (
                "non-2xx status code: 503 Service Unavailable: <Code>SlowDown</Code>",
                Class::Retry,
                "503 SlowDown",
            ),
            ("non-2xx status code: 500 x", Class::Retry, "500"),
            ("non-2xx status code: 429 x", Class::Retry, "429"),
            ("non-2xx status code: 400 Bad Request: <Code>BadDigest</Code>", Class::Payload, "400 BadDigest"),
            ("non-2xx status code: 403 Forbidden", Class::Payload, "forbidden"),
            ("status code: 404 Not Found: <Code>NoSuchBucket</Code>", Class::Payload, "no such bucket"),
            ("status code: 404 Not Found: <Code>NoSuchKey</Code>", Class::Payload, "not there"),
            ("status code: 409 Conflict", Class::Payload, "different object"),
            ("Received redirect without LOCATION, this", Class::Payload, "another region"),
            ("something\nelse", Class::Retry, "something else"),
        ];
        for (text, class, part) in rows {
            let error = said(text);
            let line = error.to_string();
            assert_eq!(error.class(), class, "{text}: {line}");
            assert!(line.contains(part) && line.contains("s3://data/key") && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = ObjectError::local(Path::new("/x"), &std::io::Error::from_raw_os_error(28));
        assert!(matches!(full, ObjectError::DiskFull { .. }) && full.class() == Class::Retry);
        let other = ObjectError::local(Path::new("/x"), &std::io::Error::from_raw_os_error(5));
        assert_eq!(other.class(), Class::Payload);
    }
}
