//! A CSI node plugin that gives pods the volume which a pilot shares with its slots.
//!
//! ```text
//!  kubelet ──csi.sock──> node.rs ─parse─> request.rs ─> driver.rs (one thread owns all volumes)
//!     ▲                                                   │ look (target.rs) ─> plan.rs ─> apply.rs, journal.rs
//!     └──<driver>-reg.sock── register.rs                  └─> work.rs: removal and measuring, which may take long
//! ```
//! Only inline ephemeral volumes exist. In the default mode nothing is mounted: a volume is a folder that the driver makes at
//! the target path, so that it needs neither a privileged container nor `CAP_SYS_ADMIN`. Mounts (`mode: mount`) are for admins
//! who grant both.
//!
//! # Guarantees
//! - What the driver removes it made itself: a record on disk names each volume's folder by inode and birth, removal goes by
//!   descriptor and follows no link, and whatever else is found at a target is refused.
//! - A record is on disk before a folder has its name, so a driver that is killed at any instruction finds everything again.
//! - The tenant of a volume comes from what the kubelet says of the pod, which a pod can't spoof.
//!
//! **Must not know:** payloads, pilots, the API server. That pilots' pods want certain folders is data (`layout.rs`).

pub mod apply;
pub mod attributes;
pub mod code;
pub mod driver;
pub mod gates;
pub mod grpc;
pub mod http;
pub mod identity;
pub mod journal;
pub mod layout;
pub mod metrics;
pub mod mounts;
pub mod node;
pub mod plan;
pub mod quantity;
pub mod register;
pub mod remove;
pub mod request;
pub mod serve;
pub mod settings;
pub mod sockets;
#[expect(unsafe_code, reason = "mount_setattr(2) has no safe wrapper")]
mod sys;
pub mod target;
pub mod telemetry;
pub mod tenant;
pub mod volume;
pub mod work;
