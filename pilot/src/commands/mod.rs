//! The commands, one file each: from arguments to an exit code.

pub mod cancel;
pub mod check;
pub mod exec;
pub mod forget;
pub mod images;
pub mod logs;
pub mod ls;
pub mod pod;
pub mod run;
pub mod schema;
pub mod serve;
pub mod stage;
pub mod submit;
pub mod top;
pub mod wait;

mod check_cluster;
mod grid;
mod images_pull;
mod images_usage;
pub mod in_pod;
mod push;
mod run_remote;
mod spooled;
mod standing;

/// The thread that a pilot decides and waits on. One: each step of a payload's way takes microseconds, and handing it from
/// thread to thread takes longer. What blocks has threads of its own.
fn threads() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
