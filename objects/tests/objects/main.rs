//! Objects against real files and a real S3 server on the loopback, with a proxy between that makes faults.

mod faults;
mod files;
mod memory;
mod node;
mod proxy;
mod s3;
mod server;
