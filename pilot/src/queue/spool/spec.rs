//! Payloads to and from the text that a spool keeps of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pilot_core::{Conclusion, Fault, FaultClass, Gang, GangId, Outcome};
use spool::{NewPayload, Read, RunId, Submission, workflow_of};
use stage::StageName;

use crate::payload::{Payload, Source};
use crate::ports::{LeaseSpan, Offer, Terms};
use crate::queue::workflow::Entry;

/// A submission of a workflow's entries. `origin` is the workflow file, `out` the folder of its outputs; a second
/// submission with the same `key` adds nothing.
///
/// # Errors
/// When an entry reads a stage that no other one makes.
pub fn submission(
    name: &StageName,
    origin: &Path,
    out: &Path,
    key: Option<String>,
    entries: &[Entry],
) -> Result<Submission, Fault> {
    let numbers: BTreeMap<&StageName, usize> =
        entries.iter().enumerate().map(|(index, entry)| (&entry.payload.name, index)).collect();
    let read = |entry: &Entry| {
        let stages = entry.payload.inputs.iter().filter_map(|input| match &input.source {
            // What comes from one that runs at the same time is not waited for.
            Source::Stage(uri) if entry.payload.gang.contains(&uri.payload) => None,
            Source::Stage(uri) => Some(uri),
            Source::Host(_) | Source::Object(_) => None,
        });
        let reads = stages.map(|uri| {
            let producer = numbers.get(&uri.payload).filter(|_| uri.workflow == entry.payload.workflow);
            let unknown = || {
                let text =
                    format!("payload {:?} reads {uri}, which no payload makes", entry.payload.name.as_str());
                Fault::new(FaultClass::Payload, text)
            };
            Ok(Read { producer: *producer.ok_or_else(unknown)?, output: uri.output.to_string() })
        });
        reads.collect::<Result<Vec<_>, Fault>>()
    };
    let new = |entry: &Entry| {
        let payload = &*entry.payload;
        let spec = serde_json::to_string(payload).map_err(|error| {
            let text = format!("write payload {:?} as text: {error}", payload.name.as_str());
            Fault::new(FaultClass::Payload, text)
        })?;
        Ok(NewPayload {
            name: payload.name.to_string(),
            family: payload.family.to_string(),
            spec,
            image: payload.image.clone(),
            after: entry.after.clone(),
            reads: read(entry)?,
            retries: entry.retries,
            at_most_once: entry.at_most_once,
            trust_group: entry.trust_group.clone(),
            cpu_millis: payload.resources.cpu_millis,
            memory_bytes: payload.memory_bytes(),
            gang: payload.gang.iter().filter_map(|mate| numbers.get(mate).copied()).min(),
        })
    };
    Ok(Submission {
        name: name.to_string(),
        key,
        origin: origin.display().to_string(),
        out: out.display().to_string(),
        payloads: entries.iter().map(new).collect::<Result<_, Fault>>()?,
    })
}

/// The payload of a spec, its workflow and stages named for its run.
pub(super) fn payload(spec: &str, run_name: &str, run: RunId) -> Result<Payload, Fault> {
    let unreadable = |error: &dyn std::fmt::Display| {
        let text = format!("read the payload's spec (was it submitted by a newer pilot?): {error}");
        Fault::new(FaultClass::Payload, text)
    };
    let mut payload: Payload = serde_json::from_str(spec).map_err(|error| unreadable(&error))?;
    let workflow = StageName::new(&workflow_of(run_name, run)).map_err(|error| unreadable(&error))?;
    for input in &mut payload.inputs {
        if let Source::Stage(uri) = &mut input.source {
            uri.workflow = workflow.clone();
        }
    }
    payload.workflow = workflow;
    Ok(payload)
}

/// The spool's offer as the port passes it; or how it ends, when its spec can't be read.
pub(super) fn offer(offer: &spool::Offer, lease: LeaseSpan) -> Result<Offer, Outcome> {
    match payload(&offer.spec, &offer.run_name, offer.run) {
        Ok(payload) => Ok(Offer {
            claim: offer.claim,
            payload: Arc::new(payload),
            terms: Terms {
                trust_group: offer.trust_group.clone(),
                at_most_once: offer.at_most_once,
                attempt: offer.attempt,
                gang: offer.gang.map(|(first, size)| Gang { id: GangId(first.0), size }),
            },
            lease: Some(lease),
        }),
        Err(fault) => Err(Outcome::before_launch(Conclusion::Failed(fault))),
    }
}
