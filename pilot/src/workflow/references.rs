//! Where inputs come from: `stage://` names become payloads and outputs, paths become files that exist.
//!
//! Must not know: units, resources, the order of work.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use objects::ObjectUrl;

use super::host::{self, FileKind, HostFiles};
use super::located::{Located, Position};
use super::model::{Input, Payload};
use super::problem::{Complaints, did_you_mean};

/// A payload of the file before it is expanded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group<'a> {
    pub(super) payload: &'a Located<Payload>,
    /// Index of its first element in the plan.
    pub(super) first: usize,
}

impl Group<'_> {
    pub(super) fn width(&self) -> u32 {
        self.payload.count.as_ref().map_or(1, |count| count.value)
    }

    pub(super) fn is_array(&self) -> bool {
        self.payload.count.is_some()
    }
}

/// One or all elements of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Index among the groups.
    pub(super) group: usize,
    /// One element of an array; `None` for the whole group.
    pub(super) element: Option<u32>,
}

/// What an input stands for.
#[derive(Debug)]
pub(super) enum Origin {
    /// One file or folder.
    Host(PathBuf),
    /// All that match a pattern.
    Matches(Vec<PathBuf>),
    /// An output.
    Stage { target: Target, output: usize },
    /// A persistent object, with [`INDEX_PLACE`] for an element's number.
    Object(String),
}

/// All groups, found by name.
#[derive(Debug)]
pub(super) struct Groups<'a> {
    pub(super) list: Vec<Group<'a>>,
    by_name: HashMap<&'a str, usize>,
    workflow: &'a str,
}

impl<'a> Groups<'a> {
    pub(super) fn new(workflow: &'a str, payloads: &'a [Located<Payload>]) -> Self {
        let mut list = Vec::with_capacity(payloads.len());
        let mut first = 0;
        for payload in payloads {
            let group = Group { payload, first };
            list.push(group);
            first += group.width() as usize;
        }
        let by_name = list
            .iter()
            .enumerate()
            .rev()
            .map(|(index, group)| (group.payload.name.as_str(), index))
            .collect();
        Self { list, by_name, workflow }
    }

    /// Names that expansion makes the same are told once each.
    pub(super) fn same_names(&self, complaints: &mut Complaints) {
        for (index, group) in self.list.iter().enumerate() {
            let name = &group.payload.name;
            if self.by_name.get(name.as_str()) != Some(&index) {
                complaints.add(name.at, format!("two payloads are called {:?}; rename one", name.value));
            } else if let Some(array) = self.array_with_element(name) {
                let array = &self.list[array].payload.name.value;
                complaints.add(
                    name.at,
                    format!("payload {:?} is also an element of the array {array:?}; rename one", name.value),
                );
            }
        }
    }

    fn array_with_element(&self, name: &str) -> Option<usize> {
        let (group, index) = self.split_element(name)?;
        (index < self.list[group].width()).then_some(group)
    }

    /// `simulate-3` as the array `simulate` and 3.
    fn split_element(&self, name: &str) -> Option<(usize, u32)> {
        let (array, number) = name.rsplit_once('-')?;
        let canonical = number == "0" || !number.starts_with(['0', '+']);
        let group = *self.by_name.get(array)?;
        let index = number.parse().ok().filter(|_| canonical)?;
        self.list[group].is_array().then_some((group, index))
    }

    /// The payload, array or element of that name, or a complaint.
    pub(super) fn find(&self, name: &str, at: Position, complaints: &mut Complaints) -> Option<Target> {
        if let Some(&group) = self.by_name.get(name) {
            return Some(Target { group, element: None });
        }
        match self.split_element(name) {
            Some((group, index)) if index < self.list[group].width() => {
                return Some(Target { group, element: Some(index) });
            }
            Some((group, _)) => {
                let group = &self.list[group];
                let (array, last) = (&group.payload.name.value, group.width() - 1);
                complaints.add(
                    at,
                    format!("there is no payload {name:?}; {array:?} goes from {array}-0 to {array}-{last}"),
                );
            }
            None => {
                let meant = did_you_mean(name, self.by_name.keys().copied());
                complaints
                    .add(at, format!("there is no payload {name:?}{meant}; name a payload of this file"));
            }
        }
        None
    }

    /// What an input's `from` means, or a complaint. Relative paths begin at `folder`.
    pub(super) fn origin(
        &self,
        input: &Input,
        folder: &Path,
        files: &impl HostFiles,
        complaints: &mut Complaints,
    ) -> Option<Origin> {
        let from = &input.from;
        if let Some(stage) = from.strip_prefix("stage://") {
            return self.stage(stage, from, complaints);
        }
        if from.starts_with("s3://") {
            return object(from, complaints);
        }
        let path = match from.strip_prefix("file:") {
            Some(url) if url.starts_with("///") => &url[2..],
            Some(url) if url.starts_with("//") => {
                complaints.add(
                    from.at,
                    format!("{:?} names another machine; write file:/path or file:path", from.value),
                );
                return None;
            }
            Some(path) => path,
            None => from.as_str(),
        };
        let explicit =
            path.len() < from.len() || ["/", "./", "../"].iter().any(|start| path.starts_with(start));
        if !explicit || path.is_empty() || path.contains('\0') {
            let advice = "write stage://<payload>/<output>, ./path, /path, file:path or s3://<bucket>/<key>";
            complaints.add(from.at, format!("{:?} says not where the data is; {advice}", from.value));
            return None;
        }
        host_origin(path, from, folder, files, complaints)
    }

    fn stage(&self, stage: &str, from: &Located<String>, complaints: &mut Complaints) -> Option<Origin> {
        let (payload, output) = match stage.split('/').collect::<Vec<_>>()[..] {
            [payload, output] => (payload, output),
            [workflow, payload, output] if workflow == self.workflow => (payload, output),
            [workflow, _, _] => {
                let text = format!(
                    "{workflow:?} is another workflow than {:?}; save its output and read the file",
                    self.workflow
                );
                complaints.add(from.at, text);
                return None;
            }
            _ => {
                complaints
                    .add(from.at, format!("{:?} is no stage; write stage://<payload>/<output>", from.value));
                return None;
            }
        };
        let target = self.find(payload, from.at, complaints)?;
        let producer = self.list[target.group].payload;
        let Some(output) = producer.outputs.iter().position(|known| known.name.value == output) else {
            let known: Vec<&str> = producer.outputs.iter().map(|output| output.name.as_str()).collect();
            let meant = did_you_mean(output, known.iter().copied());
            let name = &producer.name.value;
            let advice = if known.is_empty() {
                "it has none".to_owned()
            } else {
                format!("it has {}", known.join(", "))
            };
            complaints.add(from.at, format!("payload {name:?} has no output {output:?}{meant}; {advice}"));
            return None;
        };
        Some(Origin::Stage { target, output })
    }
}

fn object(from: &Located<String>, complaints: &mut Complaints) -> Option<Origin> {
    match from.parse::<ObjectUrl>() {
        Ok(_) => Some(Origin::Object(from.value.clone())),
        Err(error) => {
            complaints.add(from.at, error.to_string());
            None
        }
    }
}

fn host_origin(
    path: &str,
    from: &Located<String>,
    folder: &Path,
    files: &impl HostFiles,
    complaints: &mut Complaints,
) -> Option<Origin> {
    if host::is_pattern(path) {
        return host::matches(files, folder, path)
            .map_err(|error| complaints.add(from.at, format!("{error} {path:?}; correct the pattern")))
            .map(Origin::Matches)
            .ok();
    }
    // Through components, so that "./x" is not kept as "folder/./x".
    let full: PathBuf = folder.join(path).components().collect();
    match files.kind(&full) {
        Ok(FileKind::File | FileKind::Folder) => return Some(Origin::Host(full)),
        Ok(FileKind::Other) => {
            complaints.add(
                from.at,
                format!(
                    "{:?} is neither a file nor a folder; inputs are one of these",
                    full.display().to_string()
                ),
            );
        }
        Err(error) => {
            let full = full.display().to_string();
            complaints.add(
                from.at,
                format!("input file {full:?} can't be used ({}); correct the path", reason(&error)),
            );
        }
    }
    None
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "it does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}
