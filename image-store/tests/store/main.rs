//! The store as its callers see it. One binary, because the tests share a set-up and some run it again as
//! a child that is killed.

mod common;
mod hostile;
mod lifecycle;
mod materialise;
mod races;
mod sources;
