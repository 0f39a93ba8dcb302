//! [`Workflow`] to [`Plan`]: everything is checked, references are resolved, arrays are expanded.
//!
//! All checks run on payloads and arrays as written; only a workflow without a problem is expanded, after its size was
//! added up. So a small file can't become a large plan by surprise.
//!
//! Must not know: YAML, who runs the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use wire::slot::STAGES_MAX;

use super::gangs;
use super::host::HostFiles;
use super::located::Located;
use super::model::{OutputClass, Payload, Workflow};
use super::mounted;
use super::order;
use super::outputs;
use super::plan::{Element, InputSource, PayloadSpec, Plan, PlannedPayload};
use super::problem::{Complaints, Problem};
use super::references::{Group, Groups, Origin, Target};
use super::resolved::Resolved;
use super::settings::{self, Inherited, is_name, named};

/// Most payloads of a workflow, elements of arrays counted singly.
pub const PAYLOADS_MAX: usize = 250_000;
/// Most inputs and `after` relations of a workflow, counted for each element singly: about 100 MB of plan.
pub const RELATIONS_MAX: usize = 1_000_000;
/// Most names of a cycle that are told.
const CYCLE_NAMES_MAX: usize = 12;

/// Turns a workflow into a plan. Relative input paths begin at `folder`; `files` is asked whether inputs exist.
///
/// # Errors
/// Everything that is wrong: at least one problem.
pub fn validate(workflow: &Workflow, folder: &Path, files: &impl HostFiles) -> Result<Plan, Vec<Problem>> {
    let mut complaints = Complaints::default();
    named("workflow", &workflow.metadata.name, &mut complaints);
    let inherited = Inherited::new(workflow.defaults.as_ref(), &mut complaints);
    let groups = Groups::new(&workflow.metadata.name, &workflow.payloads);
    groups.same_names(&mut complaints);
    outputs::saved_twice(workflow.payloads.iter().map(|payload| &payload.value), &mut complaints);
    let drafts: Vec<Draft<'_>> = groups
        .list
        .iter()
        .map(|group| Draft::new(group, &groups, &inherited, folder, files, &mut complaints))
        .collect();
    check_order(&groups, &drafts, &mut complaints);
    for (group, draft) in groups.list.iter().zip(&drafts) {
        gangs::check_pairing(group, &draft.inputs, &groups, &mut complaints);
    }
    check_size(&groups, &drafts, workflow, &mut complaints);
    if !complaints.is_empty() {
        return Err(complaints.finish());
    }
    let expanded =
        groups.list.iter().zip(&drafts).flat_map(|(group, draft)| draft.expand(group, &groups.list));
    let mut payloads: Vec<PlannedPayload> = expanded.collect();
    gangs::form(&mut payloads, &groups, &mut complaints);
    if !complaints.is_empty() {
        return Err(complaints.finish());
    }
    Ok(Plan { workflow: workflow.metadata.name.value.clone(), folder: folder.to_owned(), payloads })
}

/// A payload or array, checked but not expanded.
struct Draft<'a> {
    spec: Arc<PayloadSpec>,
    inputs: Vec<Resolved<'a>>,
    after: Vec<Target>,
}

impl<'a> Draft<'a> {
    fn new(
        group: &Group<'a>,
        groups: &Groups<'a>,
        inherited: &Inherited<'_>,
        folder: &Path,
        files: &impl HostFiles,
        complaints: &mut Complaints,
    ) -> Self {
        let payload = group.payload;
        check_name(group, complaints);
        let spec = settings::spec(payload, inherited, complaints);
        let mut inputs = Vec::with_capacity(payload.inputs.len());
        for input in &payload.inputs {
            named("input", &input.name, complaints);
            let Some(origin) = groups.origin(input, folder, files, complaints) else { continue };
            let scatter = input.scatter.as_ref().is_some_and(|scatter| scatter.value);
            let mut resolved =
                Resolved { name: &input.name, at: input.name.at, scatter, origin, mount: None };
            if let Some(scatter) = input.scatter.as_ref().filter(|scatter| scatter.value) {
                check_scatter(scatter, &resolved, group, groups, complaints);
            }
            if let Some(at) = &input.value.at {
                resolved.mount = mounted::place(at, &resolved, group, groups, complaints);
            }
            inputs.push(resolved);
        }
        mounted::apart(&inputs, complaints);
        let after = payload.after.iter().filter_map(|name| groups.find(name, name.at, complaints)).collect();
        let draft = Self { spec: Arc::new(spec), inputs, after };
        draft.check_stages(group, groups, complaints);
        draft
    }

    /// Counts and names of the first element's stages, which has the most.
    fn check_stages(&self, group: &Group<'_>, groups: &Groups<'_>, complaints: &mut Complaints) {
        let width = group.width() as usize;
        let inputs: usize = self.inputs.iter().map(|input| input.share(&groups.list, 0, width)).sum();
        let stages = inputs + self.spec.outputs.len();
        if stages > STAGES_MAX {
            let advice = "take a whole folder as one input, or scatter over more elements";
            let name = &group.payload.name;
            let text = format!(
                "{:?} has {stages} inputs and outputs, at most {STAGES_MAX} are possible; {advice}",
                name.value
            );
            return complaints.add(name.at, text);
        }
        let mut names = BTreeSet::new();
        let mut variables = BTreeMap::new();
        for input in &self.inputs {
            for dealt in input.dealt(&groups.list, 0, width) {
                if is_name(input.name) && !is_name(&dealt.name) {
                    complaints.add(
                        input.at,
                        format!("{:?} is too long for a name; shorten {:?}", dealt.name, input.name),
                    );
                }
                if is_mem(&input.origin, groups)
                    && let Some(other) = variables.insert(variable(&dealt.name), dealt.name.clone())
                    && other != dealt.name
                {
                    complaints.add(input.at, same_variable("IN", &other, &dealt.name));
                }
                if !names.insert(dealt.name.clone()) {
                    complaints.add(input.at, format!("two inputs are called {:?}; rename one", dealt.name));
                }
            }
        }
        let mut variables = BTreeMap::new();
        for output in group.payload.outputs.iter().filter(|output| is_memory(output.class)) {
            let name = &output.name;
            if let Some(other) =
                variables.insert(variable(name), name.as_str()).filter(|other| *other != name.as_str())
            {
                complaints.add(name.at, same_variable("OUT", other, name));
            }
        }
    }

    fn expand(&self, group: &Group<'_>, groups: &[Group<'_>]) -> Vec<PlannedPayload> {
        let width = group.width();
        (0..width)
            .map(|index| {
                let mut inputs = Vec::new();
                for input in &self.inputs {
                    inputs.extend(input.dealt(groups, index as usize, width as usize));
                }
                let mut needs: Vec<usize> = inputs
                    .iter()
                    .filter_map(|input| match &input.source {
                        InputSource::Stage { producer, output } => {
                            (!gangs::is_passing(*producer, *output, groups)).then_some(*producer)
                        }
                        InputSource::Host(_) | InputSource::Object(_) => None,
                    })
                    .collect();
                needs.extend(self.after.iter().flat_map(|target| elements(*target, groups)));
                needs.sort_unstable();
                needs.dedup();
                let name = &self.spec.name;
                PlannedPayload {
                    id: group.first + index as usize,
                    name: if group.is_array() { format!("{name}-{index}") } else { name.clone() },
                    element: group.is_array().then_some(Element { index, count: width }),
                    spec: Arc::clone(&self.spec),
                    inputs,
                    needs,
                    gang: Vec::new(),
                }
            })
            .collect()
    }
}

fn elements(target: Target, groups: &[Group<'_>]) -> std::ops::Range<usize> {
    let group = &groups[target.group];
    match target.element {
        Some(element) => group.first + element as usize..group.first + element as usize + 1,
        None => group.first..group.first + group.width() as usize,
    }
}

fn check_name(group: &Group<'_>, complaints: &mut Complaints) {
    let name = &group.payload.name;
    if named("payload", name, complaints).is_none() || !group.is_array() {
        return;
    }
    let last = format!("{}-{}", name.value, group.width() - 1);
    if !is_name(&last) {
        complaints.add(name.at, format!("{last:?} is too long for a name; shorten {:?}", name.value));
    }
}

fn check_scatter(
    scatter: &Located<bool>,
    input: &Resolved<'_>,
    group: &Group<'_>,
    groups: &Groups<'_>,
    complaints: &mut Complaints,
) {
    let width = group.width() as usize;
    if !group.is_array() {
        let text = format!(
            "{:?} is no array, so nothing can be dealt out; remove \"scatter\" or add \"count\"",
            group.payload.name.value
        );
        return complaints.add(scatter.at, text);
    }
    match input.many(&groups.list) {
        None => {
            let advice = "remove \"scatter\", or name an array's output or a pattern of files";
            complaints.add(scatter.at, format!("input {:?} is a single thing; {advice}", input.name));
        }
        Some(many) if many < width => {
            let text = format!(
                "input {:?} has {many} to deal out to {width} elements; make \"count\" at most {many}",
                input.name
            );
            complaints.add(scatter.at, text);
        }
        Some(_) => {}
    }
}

fn check_order(groups: &Groups<'_>, drafts: &[Draft<'_>], complaints: &mut Complaints) {
    let needs: Vec<Vec<usize>> = drafts
        .iter()
        .map(|draft| {
            let data = draft.inputs.iter().filter_map(|input| match &input.origin {
                Origin::Stage { target, output } => {
                    let class = groups.list[target.group].payload.outputs[*output].class;
                    (!gangs::passes(class)).then_some(target.group)
                }
                Origin::Host(_) | Origin::Matches(_) | Origin::Object(_) => None,
            });
            data.chain(draft.after.iter().map(|target| target.group)).collect()
        })
        .collect();
    for cycle in order::cycles(&needs) {
        let name = |node: &usize| groups.list[*node].payload.name.as_str();
        let mut names: Vec<&str> = cycle.iter().take(CYCLE_NAMES_MAX).map(name).collect();
        if cycle.len() > CYCLE_NAMES_MAX {
            names.push("...");
        }
        let Some(first) = cycle.first() else { continue };
        names.push(name(first));
        let text = format!(
            "payloads wait for each other: {}; remove one of these inputs or \"after\"",
            names.join(" -> ")
        );
        complaints.add(groups.list[*first].payload.name.at, text);
    }
}

fn check_size(groups: &Groups<'_>, drafts: &[Draft<'_>], workflow: &Workflow, complaints: &mut Complaints) {
    let payloads: usize = groups.list.iter().map(|group| group.width() as usize).sum();
    if payloads > PAYLOADS_MAX {
        let text = format!(
            "there are {payloads} payloads, at most {PAYLOADS_MAX} are possible; make an array smaller"
        );
        complaints.add(workflow.payloads.at, text);
    }
    let relations = |(group, draft): (&Group<'_>, &Draft<'_>)| {
        let width = group.width() as usize;
        let inputs: usize = draft.inputs.iter().map(|input| input.share(&groups.list, 0, width)).sum();
        let after: usize = draft.after.iter().map(|target| elements(*target, &groups.list).len()).sum();
        width.saturating_mul(inputs + after)
    };
    let mut total = 0_usize;
    for (group, draft) in groups.list.iter().zip(drafts) {
        total = total.saturating_add(relations((group, draft)));
        if total > RELATIONS_MAX {
            let advice = "let one payload gather an array before another array follows";
            let text = format!(
                "with this payload there are {total} inputs and \"after\", at most {RELATIONS_MAX} are possible; {advice}"
            );
            return complaints.add(group.payload.name.at, text);
        }
    }
}

fn is_mem(origin: &Origin, groups: &Groups<'_>) -> bool {
    let Origin::Stage { target, output } = origin else { return false };
    let producer: &Payload = groups.list[target.group].payload;
    producer.outputs.get(*output).is_some_and(|output| is_memory(output.class))
}

/// Whether the payload finds it by a descriptor as well.
const fn is_memory(class: OutputClass) -> bool {
    matches!(class, OutputClass::Mem | OutputClass::Shared)
}

/// As the shim spells a stage's name in `LATEBIND_FD_IN_<NAME>`.
fn variable(name: &str) -> String {
    name.to_ascii_uppercase().replace(['.', '-'], "_")
}

fn same_variable(direction: &str, one: &str, other: &str) -> String {
    let variable = variable(other);
    format!("{one:?} and {other:?} would both be LATEBIND_FD_{direction}_{variable}; rename one")
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
