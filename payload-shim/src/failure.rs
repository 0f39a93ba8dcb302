//! A step that failed and the kernel's reason: what a refused launch tells.

use rustix::io::Errno;
use wire::slot::LaunchRefusal;

/// Which step, and its errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}: errno {errno}")]
pub struct Failure {
    /// Name of the step as [`LaunchRefusal::Failed`] documents it.
    pub(crate) step: &'static str,
    /// Error number.
    pub(crate) errno: i32,
}

impl Failure {
    /// For `map_err`: the step, waiting for its errno.
    pub(crate) fn at(step: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self { step, errno: errno.raw_os_error() }
    }

    /// The same for errors of std; `EIO` stands for one without a number.
    pub(crate) fn of(step: &'static str, error: &std::io::Error) -> Self {
        Self { step, errno: error.raw_os_error().unwrap_or_else(|| Errno::IO.raw_os_error()) }
    }
}

impl From<Failure> for LaunchRefusal {
    fn from(failure: Failure) -> Self {
        Self::Failed { step: failure.step.to_owned(), errno: failure.errno }
    }
}
