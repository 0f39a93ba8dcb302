//! One input of a payload or array, and how its data is dealt out to the elements.
//!
//! Must not know: how references are spelled.

use crate::mounts::Destination;

use super::located::Position;
use super::plan::{INDEX_PLACE, InputSource, PlannedInput};
use super::references::{Group, Origin, Target};

/// An input whose reference is resolved.
#[derive(Debug)]
pub(super) struct Resolved<'a> {
    pub(super) name: &'a str,
    pub(super) at: Position,
    pub(super) scatter: bool,
    pub(super) origin: Origin,
    /// Where it is mounted, and where the file says so; only for an input that keeps its plain name.
    pub(super) mount: Option<(Destination, Position)>,
}

impl Resolved<'_> {
    /// How many files or stages it stands for; `None` when it is a single thing by nature, which takes no number.
    pub(super) fn many(&self, groups: &[Group<'_>]) -> Option<usize> {
        match &self.origin {
            Origin::Host(_) | Origin::Object(_) => None,
            Origin::Matches(paths) => Some(paths.len()),
            Origin::Stage { target: Target { group, element: None }, .. } => {
                let group = &groups[*group];
                group.is_array().then_some(group.width() as usize)
            }
            Origin::Stage { .. } => None,
        }
    }

    /// How many inputs the element `index` of `width` gets from it. The first element gets the most.
    pub(super) fn share(&self, groups: &[Group<'_>], index: usize, width: usize) -> usize {
        match self.many(groups) {
            None => 1,
            Some(many) if self.scatter => many.saturating_sub(index).div_ceil(width),
            Some(many) => many,
        }
    }

    /// The inputs of the element `index` of `width`.
    pub(super) fn dealt(&self, groups: &[Group<'_>], index: usize, width: usize) -> Vec<PlannedInput> {
        let Some(many) = self.many(groups) else {
            let which = if matches!(self.origin, Origin::Object(_)) { index } else { 0 };
            return vec![self.single(groups, which)];
        };
        if !self.is_numbered(groups, width) {
            return vec![self.single(groups, index)];
        }
        let (from, step) = if self.scatter { (index, width) } else { (0, 1) };
        let numbered = |(k, which)| PlannedInput {
            name: format!("{}-{k}", self.name),
            source: self.source(groups, which),
            at: None,
        };
        (from..many).step_by(step).enumerate().map(numbered).collect()
    }

    /// Whether its inputs have numbers in an array of `width`, or in a payload.
    pub(super) fn is_numbered(&self, groups: &[Group<'_>], width: usize) -> bool {
        let is_pair = |many| self.scatter && many == width && matches!(self.origin, Origin::Stage { .. });
        self.many(groups).is_some_and(|many| !is_pair(many))
    }

    fn single(&self, groups: &[Group<'_>], which: usize) -> PlannedInput {
        let at = self.mount.as_ref().map(|(at, _)| at.clone());
        PlannedInput { name: self.name.to_owned(), source: self.source(groups, which), at }
    }

    fn source(&self, groups: &[Group<'_>], which: usize) -> InputSource {
        match &self.origin {
            Origin::Host(path) => InputSource::Host(path.clone()),
            Origin::Matches(paths) => InputSource::Host(paths[which].clone()),
            Origin::Object(url) => InputSource::Object(url.replace(INDEX_PLACE, &which.to_string())),
            Origin::Stage { target, output } => {
                let element = target.element.map_or(which, |element| element as usize);
                InputSource::Stage { producer: groups[target.group].first + element, output: *output }
            }
        }
    }
}
