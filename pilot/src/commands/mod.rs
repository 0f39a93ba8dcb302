//! The commands, one file each: from arguments to an exit code.

pub mod check;
pub mod images;
pub mod run;
pub mod schema;
