//! From a workflow file's plan to the entries of a queue: references made absolute, stages named, log files placed.
//!
//! `pilot run` and `pilot submit` both go through here, so that a file means the same to both.
//!
//! **Must not know:** queues, slots, what is done with an entry.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use objects::{ObjectUrl, UrlError};
use pilot_core::{Fault, FaultClass};
use stage::{StageName, StageUri};

use crate::fault::chain;
use crate::payload::{Input, Output, Payload, Resources, Save, Source, StageClass};
use crate::queue::workflow::Entry;
use crate::workflow::{self, Plan, PlannedPayload};

/// From the file's plan to the queue's entries.
///
/// # Errors
/// When a name or an image reference is none.
pub fn entries(plan: &Plan, out: &Path) -> Result<Vec<Entry>, Fault> {
    let workflow = name(&plan.workflow)?;
    let mut readers: BTreeMap<(usize, usize), BTreeSet<StageName>> = BTreeMap::new();
    for payload in &plan.payloads {
        for input in &payload.inputs {
            if let workflow::InputSource::Stage { producer, output } = input.source {
                readers.entry((producer, output)).or_default().insert(name(&payload.name)?);
            }
        }
    }
    let entry = |planned: &PlannedPayload| {
        let payload = payload(plan, planned, &workflow, &readers, out)?;
        let spec = &planned.spec;
        Ok(Entry {
            payload: Arc::new(payload),
            trust_group: spec.trust_group.clone().unwrap_or_else(|| "user".to_owned()),
            at_most_once: spec.at_most_once,
            retries: spec.retries,
            after: planned.needs.clone(),
        })
    };
    plan.payloads.iter().map(entry).collect()
}

fn name(text: &str) -> Result<StageName, Fault> {
    StageName::new(text).map_err(|error| Fault::new(FaultClass::Payload, error.to_string()))
}

fn object(text: &str) -> Result<ObjectUrl, Fault> {
    text.parse().map_err(|error: UrlError| Fault::new(FaultClass::Payload, error.to_string()))
}

/// Where results go, or where the file says.
fn save(to: &str, out: &Path) -> Result<Save, Fault> {
    if !to.starts_with("s3://") && !to.starts_with("file://") {
        return Ok(Save::File(out.join(to)));
    }
    let url = object(to)?;
    Ok(url.path().map(Path::to_owned).map_or(Save::Object(url), Save::File))
}

/// Refuses files outside of the folder for results that no setting allows: a workflow file may come from elsewhere.
///
/// # Errors
/// The first that is not allowed, with the setting that allows it.
pub fn saves_allowed(entries: &[Entry], out: &Path, allowed: &[PathBuf]) -> Result<(), Fault> {
    let outputs = entries.iter().flat_map(|entry| &entry.payload.outputs);
    let mut files = outputs.filter_map(|output| output.save.as_ref()?.file());
    let stray = files.find(|path| !path.starts_with(out) && !allowed.iter().any(|at| path.starts_with(at)));
    match stray {
        None => Ok(()),
        Some(path) => {
            let folder = path.parent().unwrap_or(path).display();
            let text = format!(
                "save file://{}: it is outside of the folder for results; allow it with --save-under {folder}",
                path.display()
            );
            Err(Fault::new(FaultClass::Payload, text))
        }
    }
}

/// The reference, its path absolute.
fn image(plan: &Plan, spec: &workflow::PayloadSpec) -> Result<String, Fault> {
    let reference: image_store::Reference = spec.image.parse().map_err(|error| {
        let (line, column) = (spec.at.line, spec.at.column);
        let text = format!("line {line}, column {column}: payload {:?}: {}", spec.name, chain(&error));
        Fault::new(FaultClass::Payload, text)
    })?;
    Ok(reference.relative_to(&plan.folder).to_string())
}

fn payload(
    plan: &Plan,
    planned: &PlannedPayload,
    workflow: &StageName,
    readers: &BTreeMap<(usize, usize), BTreeSet<StageName>>,
    out: &Path,
) -> Result<Payload, Fault> {
    let spec = &planned.spec;
    let input = |input: &workflow::PlannedInput| {
        let source = match &input.source {
            workflow::InputSource::Host(path) => Source::Host(path.clone()),
            workflow::InputSource::Object(url) => Source::Object(object(url)?),
            workflow::InputSource::Stage { producer, output } => {
                let missing =
                    || Fault::new(FaultClass::Pilot, "an input names a payload that is not planned");
                let from = plan.payloads.get(*producer).ok_or_else(missing)?;
                let of = from.spec.outputs.get(*output).ok_or_else(missing)?;
                let (payload, output) = (name(&from.name)?, name(&of.name)?);
                Source::Stage(StageUri { workflow: workflow.clone(), payload, output })
            }
        };
        Ok(Input { name: name(&input.name)?, source, at: input.at.clone() })
    };
    let output = |(index, output): (usize, &workflow::PlannedOutput)| {
        Ok(Output {
            name: name(&output.name)?,
            class: match output.class {
                workflow::model::OutputClass::File => StageClass::File,
                workflow::model::OutputClass::Folder => StageClass::Folder,
                workflow::model::OutputClass::Mem => StageClass::Memory,
                workflow::model::OutputClass::Value => StageClass::Value,
                workflow::model::OutputClass::Pipe => StageClass::Pipe,
                workflow::model::OutputClass::Shared => StageClass::Shared,
            },
            max_bytes: output.max_bytes,
            save: planned.save_to(output).map(|to| save(&to, out)).transpose()?,
            readers: readers.get(&(planned.id, index)).cloned().unwrap_or_default(),
        })
    };
    Ok(Payload {
        workflow: workflow.clone(),
        name: name(&planned.name)?,
        family: name(&spec.name)?,
        image: image(plan, spec)?,
        command: spec.command.clone(),
        args: spec.args.clone(),
        env: planned.environment(),
        cwd: spec.cwd.clone(),
        user: match spec.user {
            workflow::User::Unsaid | workflow::User::Image => None,
            workflow::User::Ids { uid, gid } => Some((uid, gid.unwrap_or(uid))),
        },
        needs_image_user: spec.user == workflow::User::Image,
        resources: Resources {
            cpu_millis: spec.resources.cpu_millicores,
            memory_bytes: spec.resources.memory_bytes,
            disk_bytes: spec.resources.disk_bytes,
        },
        walltime_ms: spec.walltime_ms,
        grace_ms: spec.grace_ms,
        inputs: planned.inputs.iter().map(input).collect::<Result<_, Fault>>()?,
        outputs: spec.outputs.iter().enumerate().map(output).collect::<Result<_, Fault>>()?,
        writable_root: spec.rootfs == workflow::model::Rootfs::Writable,
        host_network: spec.network == workflow::model::Network::Host,
        logs: out.join("logs"),
        registry_auth: None,
        gang: planned
            .gang
            .iter()
            .filter_map(|mate| plan.payloads.get(*mate))
            .map(|mate| name(&mate.name))
            .collect::<Result<_, Fault>>()?,
    })
}
