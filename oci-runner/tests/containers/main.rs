//! Real containers, as the user who runs the tests and, for root, once more as an ordinary user.

#![expect(clippy::print_stderr, reason = "a test that is left out says so")]

mod adoption;
mod attach;
mod cgroups;
mod confinement;
mod control;
mod harness;
mod host;
