//! Text to [`Workflow`].
//!
//! The text is read twice: as a tree that is held against the schema, to hear everything that is wrong at once, and when
//! nothing is, into the types. Both readings have the same budgets, so that neither size, depth nor aliases make a
//! small file large in memory.
//!
//! Must not know: what the fields mean.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_saphyr::localizer::Localizer;
use serde_saphyr::{Error, Location, Options, UserMessageFormatter};

use super::located::Position;
use super::model::Workflow;
use super::problem::{Complaints, Problem};
use super::schema::schema_ref;
use super::structure::compare;
use super::tree::{Node, Value};

/// Longest workflow file in bytes: 100,000 lines of 80 characters and more.
pub const TEXT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most nodes, those that aliases repeat included. A payload with everything has about 60.
const NODES_MAX: usize = 500_000;
/// Deepest nesting. The format itself needs 7.
const DEPTH_MAX: usize = 24;

/// Reads a workflow.
///
/// # Errors
/// Everything that is wrong with the form of the file: at least one problem.
pub fn parse(text: &str) -> Result<Workflow, Vec<Problem>> {
    let mut complaints = Complaints::default();
    if text.len() > TEXT_BYTES_MAX {
        let advice = "split the workflow";
        complaints.add(Position::START, format!("the file is longer than {TEXT_BYTES_MAX} bytes; {advice}"));
        return Err(complaints.finish());
    }
    let document: Node = read(text).map_err(|problem| vec![problem])?;
    if matches!(document.value, Value::Null) {
        let advice = "begin with \"apiVersion: latebind/v1\"";
        complaints.add(Position::START, format!("the file is empty; {advice}"));
        return Err(complaints.finish());
    }
    compare(schema_ref(), &document, &mut complaints);
    drop(document);
    if !complaints.is_empty() {
        return Err(complaints.finish());
    }
    read(text).map_err(|problem| vec![problem])
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
        let error = error.without_snippet();
        let at = error.location().map_or(Position::START, Position::from);
        Problem::new(at, told(error))
    })
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 4 * NODES_MAX,
            max_nodes: NODES_MAX,
            max_depth: DEPTH_MAX,
            flow_nesting_limit: DEPTH_MAX,
            max_documents: 2,
            max_aliases: 10_000,
            max_anchors: 10_000,
            max_total_scalar_bytes: 2 * TEXT_BYTES_MAX,
            max_recorded_anchor_events: NODES_MAX,
            max_recorded_anchor_bytes: 2 * TEXT_BYTES_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: NODES_MAX,
            max_replay_stack_depth: DEPTH_MAX,
        },
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

/// What the YAML reader complains about, and what to do.
fn told(error: &Error) -> String {
    let advice = match error {
        Error::AliasError { error, .. } => return told(error),
        Error::DuplicateMappingKey { .. } => return duplicate(error),
        Error::MultipleDocuments { .. } => {
            return "a second document begins here; write one workflow a file".to_owned();
        }
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            return "the file is too large or too deep, or its aliases make it so; split the workflow"
                .to_owned();
        }
        Error::UnknownAnchor { .. } => "define the anchor before it is used",
        _ => "correct the YAML here or just above",
    };
    let without_place = UserMessageFormatter;
    let formatter = without_place.with_localizer(&NoPlaces);
    let message = error.render_with_formatter(&formatter);
    let one_line: Vec<&str> = message.split_whitespace().collect();
    format!("not a readable workflow: {}; {advice}", one_line.join(" "))
}

fn duplicate(error: &Error) -> String {
    match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("field {key:?} is written twice; remove one of the two")
        }
        _ => "a field is written twice; remove one of the two".to_owned(),
    }
}

/// The place stands at the head of our messages; the reader's own would say it again.
struct NoPlaces;

impl Localizer for NoPlaces {
    fn attach_location<'a>(&self, base: Cow<'a, str>, _: Location) -> Cow<'a, str> {
        base
    }

    fn alias_defined_at(&self, _: Location) -> String {
        String::new()
    }

    fn alias_used_at(&self, _: Location) -> String {
        String::new()
    }
}
