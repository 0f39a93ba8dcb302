//! Why something was not done, as gRPC codes: one table. The kubelet tries again on any of them; what differs is what people and
//! other orchestrators make of it.
//!
//! **Must not know:** how errors come about.

use std::io;

use rustix::io::Errno;
use tonic::{Code, Status};

use crate::plan::{Conflict, Refusal};
use crate::request::BadRequest;

/// Why a volume is not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// By decision.
    #[error("publish volume: {0}")]
    Refused(#[from] Refusal),
    /// By the machine.
    #[error("publish volume: {step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The driver is stopping.
    #[error("publish volume: the driver is stopping")]
    Stopping,
}

/// Why a volume is not unpublished.
#[derive(Debug, thiserror::Error)]
pub enum UnpublishError {
    /// By decision.
    #[error("unpublish volume: {0}")]
    Refused(#[from] Conflict),
    /// By the machine.
    #[error("unpublish volume: {step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The driver is stopping, or has too much to remove.
    #[error("unpublish volume: the driver is stopping or busy")]
    Stopping,
}

/// Why a volume's figures can't be had.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// Not published there.
    #[error("volume is not published at that path")]
    NotFound,
    /// By the machine.
    #[error("measure volume: {0}")]
    Io(#[from] io::Error),
    /// The driver is stopping, or has too much to measure.
    #[error("measure volume: the driver is stopping or busy")]
    Stopping,
}

impl From<BadRequest> for Status {
    fn from(error: BadRequest) -> Self {
        let code = match &error {
            BadRequest::Id
            | BadRequest::Target(_)
            | BadRequest::Missing(_)
            | BadRequest::PodInfo(_)
            | BadRequest::OtherPod(_)
            | BadRequest::Attributes(_)
            | BadRequest::NotEphemeral
            | BadRequest::TooMany => Code::InvalidArgument,
            BadRequest::Capability(_) => Code::FailedPrecondition,
            BadRequest::Domain { .. } => Code::PermissionDenied,
        };
        Self::new(code, error.to_string())
    }
}

impl From<PublishError> for Status {
    fn from(error: PublishError) -> Self {
        let code = match &error {
            PublishError::Refused(refusal) => match refusal {
                Refusal::Conflict(conflict) => of_conflict(*conflict),
                Refusal::NoParent => Code::NotFound,
                Refusal::Elsewhere => Code::FailedPrecondition,
                Refusal::Incompatible => Code::AlreadyExists,
                Refusal::MountsForbidden => Code::PermissionDenied,
                Refusal::NodeVolumes(_)
                | Refusal::TenantVolumes(_)
                | Refusal::VolumeBytes { .. }
                | Refusal::TenantBytes { .. } => Code::ResourceExhausted,
            },
            PublishError::Io { source, .. } => of_io(source),
            PublishError::Stopping => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

impl From<UnpublishError> for Status {
    fn from(error: UnpublishError) -> Self {
        let code = match &error {
            UnpublishError::Refused(conflict) => of_conflict(*conflict),
            UnpublishError::Io { source, .. } => of_io(source),
            UnpublishError::Stopping => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

impl From<StatsError> for Status {
    fn from(error: StatsError) -> Self {
        let code = match &error {
            StatsError::NotFound => Code::NotFound,
            StatsError::Io(source) => of_io(source),
            StatsError::Stopping => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

fn of_conflict(conflict: Conflict) -> Code {
    match conflict {
        Conflict::NotAFolder | Conflict::Foreign | Conflict::Mounted => Code::FailedPrecondition,
        Conflict::Busy => Code::Aborted,
    }
}

fn of_io(error: &io::Error) -> Code {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
            Code::ResourceExhausted
        }
        // A link, a mount or a file on the way to the target.
        Some(Errno::LOOP | Errno::XDEV | Errno::NOTDIR) => Code::FailedPrecondition,
        Some(Errno::ACCESS | Errno::PERM) => Code::PermissionDenied,
        Some(Errno::BUSY) => Code::Aborted,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_link_on_the_way_have_codes_of_their_own() {
        for (errno, code) in [
            (Errno::NOSPC, Code::ResourceExhausted),
            (Errno::LOOP, Code::FailedPrecondition),
            (Errno::PERM, Code::PermissionDenied),
            (Errno::BUSY, Code::Aborted),
            (Errno::IO, Code::Internal),
        ] {
            let status = Status::from(PublishError::Io { step: "make the folder", source: errno.into() });
            assert_eq!(status.code(), code);
            assert!(status.message().starts_with("publish volume: make the folder: "), "{status}");
        }
    }
}
