//! The driver as a process, called as the kubelet calls it.
//!
//! Each test has a kubelet's folder of its own in a temporary folder, and leaves nothing.

mod collecting;
mod conformance;
mod end;
mod hostile;
mod kubelet;
mod mounting;
mod publishing;
mod registering;
mod sharing;
