//! Stages beside what programs use otherwise: hand-off of bytes from one process to another, and a broker with many stages.
//!
//! **Must not know:** how the broker keeps a stage; it opens sessions, as the pilot does, and asks.

pub mod handoff;
pub mod many;
mod party;
pub mod place;
mod stores;

use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::ground::Ground;
use crate::results::Section;

/// Folders with Python packages of the peers; `None` where there is none.
#[derive(Clone, Copy, Debug)]
pub struct Packages<'a> {
    /// vineyard, which brings vineyardd.
    pub vineyard: Option<&'a Path>,
    /// Ray, and numpy.
    pub ray: Option<&'a Path>,
    /// Our own client.
    pub ours: &'a Path,
}

/// Measures both; `rounds` hand-offs of the small sizes, fewer of the large ones.
///
/// # Errors
/// When our own part fails. A peer that fails is skipped.
pub fn measure(ground: &Ground, packages: Packages<'_>, rounds: u32) -> anyhow::Result<Value> {
    let mut section = Section::begin("stages");
    many::measure(&mut section).context("many stages")?;
    handoff::measure(ground, packages, rounds, &mut section).context("hand-off")?;
    Ok(section.end())
}
