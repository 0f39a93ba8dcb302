//! What a payload writes, and where it is saved.
//!
//! Must not know: who reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use objects::ObjectUrl;

use super::located::Position;
use super::model::{Output, OutputClass, Payload};
use super::plan::{INDEX_PLACE, PlannedOutput};
use super::problem::{Complaints, shortened};
use super::quantities::bytes;
use super::settings::named;

/// Keeps a runaway output from filling the disk.
const OUTPUT_BYTES_DEFAULT: u64 = 1 << 30;
/// What a pilot in a pod can hold three of, as its manifest is.
const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;
/// A value fits a message of the stage broker.
const VALUE_BYTES: u64 = wire::stage::VALUE_BYTES_MAX as u64;

/// The outputs of one payload or array.
pub(super) fn outputs(payload: &Payload, complaints: &mut Complaints) -> Vec<PlannedOutput> {
    let mut names = BTreeSet::new();
    let mut outputs = Vec::with_capacity(payload.outputs.len());
    for output in &payload.outputs {
        if named("output", &output.name, complaints).is_some() && !names.insert(output.name.as_str()) {
            let text = format!("two outputs are called {:?}; rename one", output.name.value);
            complaints.add(output.name.at, text);
        }
        class_suits(output, complaints);
        let max_size = output.max_size.as_ref().and_then(|text| bytes("max_size", text, complaints));
        let default = match output.class {
            OutputClass::Value => VALUE_BYTES,
            OutputClass::Mem => MEMORY_BYTES_DEFAULT,
            OutputClass::File | OutputClass::Folder | OutputClass::Pipe | OutputClass::Shared => {
                OUTPUT_BYTES_DEFAULT
            }
        };
        if output.class == OutputClass::Value && max_size.is_some_and(|bytes| bytes > VALUE_BYTES) {
            let at = output.max_size.as_ref().map_or(output.name.at, |text| text.at);
            let text = format!(
                "value {:?} may have {VALUE_BYTES} bytes at most; lower its max_size, or make it class mem or file",
                output.name.value
            );
            complaints.add(at, text);
        }
        if let (OutputClass::Shared, Some(0), Some(text)) = (output.class, max_size, &output.max_size) {
            complaints
                .add(text.at, "\"max_size\" is 0, and memory of no size can't be shared; write at least 1");
        }
        outputs.push(PlannedOutput {
            name: output.name.value.clone(),
            class: output.class,
            max_bytes: max_size.unwrap_or(default),
            save: save(output, payload.count.is_some(), complaints),
        });
    }
    outputs
}

/// What passes between payloads that run together is not kept, so it can't be saved; and a pipe has no size.
fn class_suits(output: &Output, complaints: &mut Complaints) {
    let (word, name) = match output.class {
        OutputClass::File | OutputClass::Folder | OutputClass::Mem | OutputClass::Value => return,
        OutputClass::Pipe => ("pipe", &output.name),
        OutputClass::Shared => ("shared", &output.name),
    };
    if let Some(save) = &output.save {
        let advice = "let a payload that reads it write a file, and save that";
        complaints.add(
            save.at,
            format!("output {:?} of class {word} is not kept; {advice}", shortened(&name.value)),
        );
    }
    match (&output.max_size, output.class) {
        (Some(size), OutputClass::Pipe) => {
            let text =
                format!("output {:?} is a pipe and has no size; remove \"max_size\"", shortened(&name.value));
            complaints.add(size.at, text);
        }
        (None, OutputClass::Shared) => {
            let text = format!(
                "output {:?} of class shared needs its size; add \"max_size\", such as 64Mi",
                shortened(&name.value)
            );
            complaints.add(name.at, text);
        }
        (Some(_) | None, _) => {}
    }
}

/// Whether it is a path to a file below a folder, whatever that is.
fn is_inside(path: &str) -> bool {
    let inside = |component| matches!(component, Component::Normal(_) | Component::CurDir);
    let names_a_file = Path::new(path).file_name().is_some() && !path.ends_with('/');
    names_a_file && !path.contains('\0') && Path::new(path).components().all(inside)
}

/// A workflow file may come from elsewhere; it can't choose to overwrite files outside of the folder for results.
fn save(output: &Output, in_array: bool, complaints: &mut Complaints) -> Option<String> {
    let path = output.save.as_ref()?;
    let is_url = ["s3://", "file://"].iter().any(|scheme| path.starts_with(scheme));
    // Whether a file may be where a URL says is for the user's settings to decide.
    let wrong = if is_url {
        path.parse::<ObjectUrl>().err().map(|error| format!("save: {error}"))
    } else {
        (!is_inside(path)).then(|| {
            let advice = "write a relative path to a file, without .., or s3://<bucket>/<key>";
            format!("save {:?} is no path inside the folder for results; {advice}", shortened(path))
        })
    };
    if let Some(wrong) = wrong {
        complaints.add(path.at, wrong);
    } else if path.starts_with("s3://") && output.class == OutputClass::Folder {
        let advice = "let the payload make a file of it, with tar";
        complaints.add(
            path.at,
            format!("{:?} is a folder, and an object is one file; {advice}", output.name.value),
        );
    } else if in_array && !path.contains(INDEX_PLACE) {
        let text = format!(
            "all elements of the array would be saved to {:?}; put {INDEX_PLACE} into it",
            shortened(path)
        );
        complaints.add(path.at, text);
    }
    Some(path.value.clone())
}

/// Two outputs saved to one path overwrite each other, in whatever order they end.
pub(super) fn saved_twice<'a>(payloads: impl Iterator<Item = &'a Payload>, complaints: &mut Complaints) {
    let mut taken: BTreeMap<Vec<Component<'a>>, Position> = BTreeMap::new();
    for path in payloads.flat_map(|payload| &payload.outputs).filter_map(|output| output.save.as_ref()) {
        let parts: Vec<Component<'a>> =
            Path::new(path.as_str()).components().filter(|part| *part != Component::CurDir).collect();
        if let Some(first) = taken.insert(parts, path.at) {
            complaints.add(
                path.at,
                format!("{:?} is also saved at line {}; choose another path", shortened(path), first.line),
            );
        }
    }
}
