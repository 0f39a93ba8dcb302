//! What PID 1 is told in its environment. Read once, then the environment is wiped.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use wire::slot::Nonce;

use crate::sys;

/// Folder that holds the pilot's socket `sock` and the launch markers `ran/`: a path, or `fd:N` for an inherited
/// directory descriptor, which leaves no path that a payload could follow.
pub const CONTROL: &str = "LATEBIND_CONTROL";
/// The nonce of this epoch, 32 hexadecimal digits.
pub const NONCE: &str = "LATEBIND_NONCE";
/// Optional, `fd:N`: directory of the slot's memory cgroup.
pub const CGROUP: &str = "LATEBIND_CGROUP";
/// Optional, `pod`: the slot is a container of a pod and shares namespaces with others. Absent: it has its own.
pub const CONFINE: &str = "LATEBIND_CONFINE";

/// Settings, parsed.
#[derive(Debug)]
pub struct Settings {
    /// The control folder.
    pub control: OwnedFd,
    /// Proof of the epoch.
    pub nonce: Nonce,
    /// The slot's memory cgroup.
    pub cgroup: Option<OwnedFd>,
    /// Whether what a pod shares is to be narrowed.
    pub in_pod: bool,
}

/// A setting that is missing or wrong.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not in the environment.
    #[error("read {0}: it is not set")]
    Missing(&'static str),
    /// Not what it should look like; values are not told, because one of them is a secret.
    #[error("read {0}: its value is not of the documented form")]
    Malformed(&'static str),
    /// It names something that can't be opened.
    #[error("open what {name} names")]
    Open {
        /// Which setting.
        name: &'static str,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
}

impl Settings {
    /// Reads the environment, takes over the descriptors that it names and closes every other inherited one.
    ///
    /// # Errors
    /// When a setting is missing or wrong.
    pub fn take() -> Result<Self, SettingsError> {
        let nonce = parse_nonce(&value(NONCE)?).ok_or(SettingsError::Malformed(NONCE))?;
        let control = open(CONTROL, &value(CONTROL)?)?;
        let cgroup = std::env::var_os(CGROUP).map(|text| open(CGROUP, &text)).transpose()?;
        let in_pod = parse_confine(std::env::var_os(CONFINE).as_deref())?;
        sys::close_inherited(
            &[Some(&control), cgroup.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect::<Vec<_>>(),
        );
        sys::wipe_environment();
        Ok(Self { control, nonce, cgroup, in_pod })
    }
}

fn value(name: &'static str) -> Result<OsString, SettingsError> {
    std::env::var_os(name).ok_or(SettingsError::Missing(name))
}

fn open(name: &'static str, text: &OsString) -> Result<OwnedFd, SettingsError> {
    let text = text.to_str().ok_or(SettingsError::Malformed(name))?;
    let opened = if let Some(number) = text.strip_prefix("fd:") {
        sys::adopt_descriptor(number.parse().map_err(|_| SettingsError::Malformed(name))?)
    } else if text.starts_with('/') {
        openat(CWD, text, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(Into::into)
    } else {
        return Err(SettingsError::Malformed(name));
    };
    opened.map_err(|source| SettingsError::Open { name, source })
}

fn parse_confine(text: Option<&OsStr>) -> Result<bool, SettingsError> {
    match text {
        None => Ok(false),
        Some(pod) if pod == "pod" => Ok(true),
        Some(_) => Err(SettingsError::Malformed(CONFINE)),
    }
}

fn parse_nonce(text: &OsString) -> Option<Nonce> {
    let digits = text.to_str()?.as_bytes();
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let mut nonce = [0; 16];
    if pairs.len() != nonce.len() {
        return None;
    }
    for (byte, [high, low]) in nonce.iter_mut().zip(pairs) {
        let digit = |ascii: u8| char::from(ascii).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(Nonce(nonce))
}

#[cfg(test)]
mod tests {
    use super::{parse_confine, parse_nonce};

    #[test]
    fn a_nonce_is_32_hexadecimal_digits_and_nothing_else() {
        let good = parse_nonce(&"00ff10aB00000000000000000000000f".into()).expect("nonce");
        assert_eq!(good.0[..4], [0, 255, 16, 0xab]);
        for bad in [
            "",
            "00",
            "0g000000000000000000000000000000",
            "+f000000000000000000000000000000",
            &"0".repeat(33),
            &"0".repeat(34),
        ] {
            assert!(parse_nonce(&bad.into()).is_none(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_slot_is_confined_when_the_word_is_pod_and_a_word_that_is_not_known_is_not_ignored() {
        assert!(!parse_confine(None).expect("absent"));
        assert!(parse_confine(Some("pod".as_ref())).expect("pod"));
        for bad in ["", "Pod", "pod ", "yes", "0"] {
            assert!(parse_confine(Some(bad.as_ref())).is_err(), "{bad:?} was taken");
        }
    }
}
