//! Which payloads run together: those that pipes and shared memory connect. Nobody has to say so in the file.
//!
//! Must not know: how payloads are started together, units, who runs the plan.

use std::collections::{BTreeMap, BTreeSet};

use super::model::OutputClass;
use super::order;
use super::plan::{InputSource, PlannedPayload};
use super::problem::Complaints;
use super::references::{Group, Groups, Origin};
use super::resolved::Resolved;
use super::validate::RELATIONS_MAX;

/// Most payloads that run together: each needs a slot of its own at the same moment, and a pilot of more is rare.
const GANG_MAX: usize = 64;

/// Whether an output passes between payloads that run at the same time, and is not waited for.
pub(super) const fn passes(class: OutputClass) -> bool {
    matches!(class, OutputClass::Pipe | OutputClass::Shared)
}

/// The same for an output of a payload of the plan.
pub(super) fn is_passing(producer: usize, output: usize, groups: &[Group<'_>]) -> bool {
    groups[group_of(producer, groups)].payload.outputs.get(output).is_some_and(|output| passes(output.class))
}

fn group_of(payload: usize, groups: &[Group<'_>]) -> usize {
    groups.partition_point(|group| group.first <= payload).saturating_sub(1)
}

/// Two arrays are paired element by element, or it is not clear who runs with whom.
pub(super) fn check_pairing(
    group: &Group<'_>,
    inputs: &[Resolved<'_>],
    groups: &Groups<'_>,
    complaints: &mut Complaints,
) {
    for input in inputs {
        let Origin::Stage { target, output } = &input.origin else { continue };
        let producer = &groups.list[target.group];
        let output = &producer.payload.outputs[*output];
        if !passes(output.class) {
            continue;
        }
        if std::ptr::eq(producer.payload, group.payload) {
            let text = format!(
                "{:?} reads its own output {:?}; remove this input",
                group.payload.name.value, output.name.value
            );
            complaints.add(input.at, text);
            continue;
        }
        let both = group.is_array() && producer.is_array() && target.element.is_none();
        if both && !(input.scatter && group.width() == producer.width()) {
            let text = format!(
                "it is not clear which of {:?} runs with which of {:?}; give both the same \"count\" and add \"scatter: true\"",
                producer.payload.name.value, group.payload.name.value
            );
            complaints.add(input.at, text);
        }
    }
}

/// Finds the gangs of a plan, says what is wrong with them, and lets their members wait for the same payloads.
pub(super) fn form(payloads: &mut [PlannedPayload], groups: &Groups<'_>, complaints: &mut Complaints) {
    let mut readers: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for payload in payloads.iter() {
        for input in &payload.inputs {
            if let InputSource::Stage { producer, output } = input.source
                && is_passing(producer, output, &groups.list)
            {
                readers.entry((producer, output)).or_default().push(payload.id);
            }
        }
    }
    let pipes = payloads.iter().flat_map(|payload| {
        (0..payload.spec.outputs.len())
            .filter(|output| is_passing(payload.id, *output, &groups.list))
            .map(|output| (payload.id, output))
    });
    let pipes: Vec<(usize, usize)> = pipes.collect();
    if pipes.is_empty() {
        return;
    }
    check_readers(&pipes, &readers, groups, complaints);
    let gangs = components(payloads.len(), &readers);
    check_sizes(&gangs, groups, complaints);
    check_waits(payloads, &gangs, groups, complaints);
    if complaints.is_empty() {
        wait_together(payloads, &gangs, groups, complaints);
    }
}

/// A pipe has one reader; shared memory that nobody shares is a mistake as well.
fn check_readers(
    pipes: &[(usize, usize)],
    readers: &BTreeMap<(usize, usize), Vec<usize>>,
    groups: &Groups<'_>,
    complaints: &mut Complaints,
) {
    // All elements of an array have the same ones.
    let mut told = BTreeSet::new();
    for &(producer, output) in pipes {
        let group = group_of(producer, &groups.list);
        let written = &groups.list[group].payload.outputs[output];
        let count = readers.get(&(producer, output)).map_or(0, Vec::len);
        let text = match (written.class, count) {
            (OutputClass::Pipe, 1)
            | (OutputClass::File | OutputClass::Folder | OutputClass::Mem | OutputClass::Value, _) => {
                continue;
            }
            (OutputClass::Shared, count) if count > 0 => continue,
            (OutputClass::Shared, _) => {
                format!("nobody shares output {:?}; let another payload read it", written.name.value)
            }
            (OutputClass::Pipe, 0) => {
                format!("nobody reads the pipe {:?}; let another payload read it", written.name.value)
            }
            (OutputClass::Pipe, count) => format!(
                "the pipe {:?} has {count} readers, and only one can have what goes through it; use class file, or a pipe for each",
                written.name.value
            ),
        };
        if told.insert((group, output)) {
            complaints.add(written.name.at, text);
        }
    }
}

/// Sets of at least two payloads that are connected, each sorted, in order of their first.
fn components(payloads: usize, readers: &BTreeMap<(usize, usize), Vec<usize>>) -> Vec<Vec<usize>> {
    let mut leader: Vec<usize> = (0..payloads).collect();
    fn find(leader: &mut [usize], mut of: usize) -> usize {
        while leader[of] != of {
            leader[of] = leader[leader[of]];
            of = leader[of];
        }
        of
    }
    for (&(producer, _), readers) in readers {
        for &reader in readers {
            let (one, other) = (find(&mut leader, producer), find(&mut leader, reader));
            // The lower one leads.
            leader[one.max(other)] = one.min(other);
        }
    }
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for payload in 0..payloads {
        members.entry(find(&mut leader, payload)).or_default().push(payload);
    }
    members.into_values().filter(|members| members.len() > 1).collect()
}

fn check_sizes(gangs: &[Vec<usize>], groups: &Groups<'_>, complaints: &mut Complaints) {
    for gang in gangs.iter().filter(|gang| gang.len() > GANG_MAX) {
        let name = &groups.list[group_of(gang[0], &groups.list)].payload.name;
        let text = format!(
            "with {:?} {} payloads would run together, at most {GANG_MAX} can; connect fewer by pipe and shared outputs",
            name.value,
            gang.len()
        );
        complaints.add(name.at, text);
    }
}

/// None of a gang starts before all can, so none may wait for the end of another.
fn check_waits(
    payloads: &[PlannedPayload],
    gangs: &[Vec<usize>],
    groups: &Groups<'_>,
    complaints: &mut Complaints,
) {
    let mut node: Vec<usize> = (0..payloads.len()).collect();
    for gang in gangs {
        gang.iter().for_each(|member| node[*member] = gang[0]);
    }
    let mut needs: Vec<Vec<usize>> = vec![Vec::new(); payloads.len()];
    for payload in payloads {
        needs[node[payload.id]].extend(payload.needs.iter().map(|need| node[*need]));
    }
    let name = |payload: usize| &payloads[payload].name;
    for cycle in order::cycles(&needs) {
        let Some(gang) = cycle.iter().find_map(|node| gangs.iter().find(|gang| gang[0] == *node)) else {
            continue;
        };
        let next: BTreeSet<usize> = cycle.iter().copied().collect();
        let waits = |member: &&usize| payloads[**member].needs.iter().any(|need| next.contains(&node[*need]));
        let Some(waiting) = gang.iter().find(waits) else { continue };
        let mates: Vec<&str> =
            gang.iter().filter(|mate| *mate != waiting).take(4).map(|mate| name(*mate).as_str()).collect();
        let text = format!(
            "{:?} waits for the end of a payload that waits for it: it runs together with {}, and none of them starts before all can; \
             connect them by pipe or shared outputs only",
            name(*waiting),
            mates.join(", ")
        );
        complaints.add(groups.list[group_of(*waiting, &groups.list)].payload.name.at, text);
    }
}

/// All wait for what any of them waits for: they become ready in the same moment.
fn wait_together(
    payloads: &mut [PlannedPayload],
    gangs: &[Vec<usize>],
    groups: &Groups<'_>,
    complaints: &mut Complaints,
) {
    let mut total: usize = payloads.iter().map(|payload| payload.needs.len()).sum();
    for gang in gangs {
        let needs: BTreeSet<usize> =
            gang.iter().flat_map(|member| payloads[*member].needs.iter().copied()).collect();
        total = total.saturating_add(needs.len().saturating_mul(gang.len()));
        if total > RELATIONS_MAX {
            let name = &groups.list[group_of(gang[0], &groups.list)].payload.name;
            let text = format!(
                "those that run together with {:?} wait for too many payloads, at most {RELATIONS_MAX} relations are possible; \
                 let one payload gather what they wait for",
                name.value
            );
            return complaints.add(name.at, text);
        }
        for member in gang {
            payloads[*member].needs = needs.iter().copied().collect();
            payloads[*member].gang = gang.clone();
        }
    }
}

#[cfg(test)]
#[path = "gangs_tests.rs"]
mod tests;
