//! What is said on Latebind's sockets.
//!
//! One `SOCK_SEQPACKET` frame is one message is one `sendmsg(2)`, and the descriptors that belong to a message
//! travel in the same call, so neither can arrive without the other ([`frame`]). Above it stand the messages:
//! [`slot`] is spoken between a pilot and the `payload-shim` that is PID 1 of a slot, [`pilot`] between a pilot that serves
//! and the commands that look at it, [`stage`] between a payload's client library and the stage broker, [`exchange`] between pilots
//! of one tenant and what lets them share stages.
//!
//! Every byte that arrives is hostile input: lengths, counts and names are checked before anyone acts on them, and
//! a peer that breaks a rule gets an error, never a panic and never more memory than [`frame::FRAME_BYTES_MAX`]
//! (or [`slot::LAUNCH_BYTES_MAX`] for a launch in memory).
//!
//! **Must not know:** any async runtime, any policy (who may say what is the reader's business), Kubernetes, files.
//!
//! ## Encoding
//! [postcard](https://postcard.jamesmunns.com/wire-format): variable-length integers, little endian, enum variants by
//! position. So variants and fields are only ever appended, and a change of meaning is a new [`version::Version`].
#![forbid(unsafe_code)]

pub mod exchange;
pub mod frame;
pub mod pilot;
pub mod slot;
pub mod stage;
pub mod version;

mod codec;
mod launch_memory;
mod limits;

pub use codec::{DecodeError, EncodeError, decode, encode};
pub use launch_memory::{LaunchMemoryError, read_launch_memory, write_launch_memory};
pub use limits::{Check, Violation};
