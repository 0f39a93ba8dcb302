//! What the pod's own description says: how slots were made, and why a container does not run.
//!
//! The API lags behind what happens by a second or so, and may never say it. Nothing here makes a slot *bound* or a payload
//! *ended*; it explains failures.
//!
//! **Must not know:** requests, sockets, what is done about a failure.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStateTerminated, ContainerStatus, Pod};
use pilot_core::{Fault, FaultClass};

use crate::mounts::is_file_place;
use crate::units::{Bytes, MilliCpu};

/// How a slot was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotShape {
    /// The container's name.
    pub(super) name: String,
    /// Its processors, in thousandths.
    pub(super) cpu_millis: Option<u64>,
    /// Its memory, in bytes.
    pub(super) memory_bytes: Option<u64>,
    /// Whether payloads can't write to their images.
    pub(super) root_is_read_only: bool,
    /// Who payloads are.
    pub(super) uid: Option<i64>,
    /// Somebody made its images be pulled each time (AlwaysPullImages): each bind asks the registry.
    pub(super) always_pulls: bool,
    /// Where payloads may have inputs mounted.
    pub(super) mounts: Vec<Declared>,
}

/// A mount that the pod declares for a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Declared {
    /// Where in the container.
    pub(super) at: String,
    /// How it is called among the slot's mounts on the volume.
    pub(super) place: String,
    /// For files; otherwise for folders.
    pub(super) is_file: bool,
}

/// The slots of a pod in their order.
pub(super) fn slots(pod: &Pod) -> Vec<SlotShape> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut slots: Vec<(u32, SlotShape)> = containers
        .filter_map(|container| {
            let number = container.name.strip_prefix("slot-")?.parse().ok()?;
            Some((number, shape(container, number)))
        })
        .collect();
    slots.sort_by_key(|(number, _)| *number);
    slots.into_iter().map(|(_, shape)| shape).collect()
}

/// The pod's grace period.
pub(super) fn grace(pod: &Pod) -> Duration {
    /// Kubernetes' default, in seconds.
    const SECONDS: i64 = 30;
    let set = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(SECONDS);
    Duration::from_secs(u64::try_from(set).unwrap_or(0))
}

/// The mounts of a slot's container that lead to the slot's links.
fn mounts(container: &Container, number: u32) -> Vec<Declared> {
    let folder = format!("slots/{number}/mounts/");
    let mounts = container.volume_mounts.iter().flatten();
    let declared = mounts.filter_map(|mount| {
        let place = mount.sub_path.as_deref()?.strip_prefix(&folder)?;
        let plain = !place.is_empty() && !place.contains('/') && place != "..";
        plain.then(|| Declared {
            at: mount.mount_path.clone(),
            place: place.to_owned(),
            is_file: is_file_place(place),
        })
    });
    declared.collect()
}

fn shape(container: &Container, number: u32) -> SlotShape {
    let limit = |name: &str| {
        let resources = container.resources.as_ref()?;
        let limit = resources.limits.as_ref().and_then(|limits| limits.get(name));
        limit.or_else(|| resources.requests.as_ref()?.get(name)).map(|quantity| quantity.0.clone())
    };
    let security = container.security_context.as_ref();
    SlotShape {
        name: container.name.clone(),
        cpu_millis: limit("cpu").and_then(|text| text.parse::<MilliCpu>().ok()).map(|cpu| cpu.0),
        memory_bytes: limit("memory").and_then(|text| text.parse::<Bytes>().ok()).map(|memory| memory.0),
        root_is_read_only: security.and_then(|security| security.read_only_root_filesystem).unwrap_or(false),
        uid: security.and_then(|security| security.run_as_user),
        always_pulls: container.image_pull_policy.as_deref() == Some("Always"),
        mounts: mounts(container, number),
    }
}

fn status<'a>(pod: &'a Pod, slot: &str) -> Option<&'a ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == slot)
}

/// The ids of the containers that a slot is known to have had and that have ended.
pub(super) fn ended_containers(pod: &Pod, slot: &str) -> BTreeSet<String> {
    let Some(status) = status(pod, slot) else { return BTreeSet::new() };
    let states = [status.state.as_ref(), status.last_state.as_ref()].into_iter().flatten();
    states.filter_map(|state| state.terminated.as_ref()?.container_id.clone()).collect()
}

/// The containers that a slot had before its image was changed, as far as `pod`, which answered the change, tells. One that
/// runs is the new one, perhaps, when the change was `asked_before`: then it counts only among those that were `known`.
pub(super) fn containers_before(
    pod: &Pod,
    slot: &str,
    asked_before: bool,
    known: &BTreeSet<String>,
) -> BTreeSet<String> {
    let runs = status(pod, slot).and_then(|status| status.container_id.clone());
    let mut ids = ended_containers(pod, slot);
    ids.extend(runs.filter(|id| !asked_before || known.contains(id)));
    ids
}

/// Why the kubelet can't make a slot's container from `image`, if it says so.
pub(super) fn trouble(pod: &Pod, slot: &str, image: &str) -> Option<Fault> {
    let status = status(pod, slot)?;
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let said = waiting.message.as_deref().unwrap_or_default();
    let class = match reason {
        "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" => pull_class(said),
        "InvalidImageName" | "ErrImageNeverPull" | "ImageInspectError" | "SignatureValidationFailed" => {
            FaultClass::Payload
        }
        "CreateContainerError" | "RunContainerError" | "StartError" => start_class(said),
        "CreateContainerConfigError" => FaultClass::Slot,
        "CrashLoopBackOff" => FaultClass::Slot,
        // PodInitializing, ContainerCreating: on its way.
        _ => return None,
    };
    // What is said of an image that was asked for before is no news. Of a whole name only the digest can be looked for: the
    // container runtime leaves out the tag, and a webhook may have made another repository of it. The status names the
    // container before.
    let digest = image.rsplit('@').next().unwrap_or(image);
    let about_it = said.contains(digest) || !reason.contains("Image");
    let said = match said.strip_prefix("rpc error: code = ").and_then(|rest| rest.split_once(" desc = ")) {
        Some((_code, said)) => shortened(said),
        None => shortened(said),
    };
    let text = match reason {
        "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" => {
            format!("the node can't pull the image, which the pilot has seen ({reason}): {said}")
        }
        _ => format!("the node can't start the image's container ({reason}): {said}"),
    };
    about_it.then(|| Fault::new(class, text))
}

/// Whether what is said of a slot that waits is certainly about `image`.
pub(super) fn names(pod: &Pod, slot: &str, image: &str) -> bool {
    let digest = image.rsplit('@').next().unwrap_or(image);
    let state = status(pod, slot).and_then(|status| status.state.as_ref());
    let said = state.and_then(|state| state.waiting.as_ref()?.message.as_deref());
    said.is_some_and(|said| said.contains(digest))
}

/// A registry that says no will say no again; everything else may pass.
fn pull_class(said: &str) -> FaultClass {
    const FINAL: [&str; 7] = [
        "not found",
        "manifest unknown",
        "unauthorized",
        "authorization failed",
        "denied",
        "no match for platform",
        "invalid",
    ];
    let said = said.to_lowercase();
    if FINAL.iter().any(|word| said.contains(word)) { FaultClass::Payload } else { FaultClass::Retry }
}

/// All that is mounted in a slot is the pod's own and was there before: where it can't be mounted, the image has something in
/// the way, in every slot and on every node.
fn start_class(said: &str) -> FaultClass {
    let said = said.to_lowercase();
    let in_the_way = said.contains("to rootfs at") || said.contains("not a directory");
    if in_the_way { FaultClass::Payload } else { FaultClass::Slot }
}

/// What a slot's container may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// In thousandths of a processor.
    pub(super) cpu_millis: u64,
    /// In bytes.
    pub(super) memory_bytes: u64,
}

/// How far a change of size has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resizing {
    /// The node has set it aside: the slot's next container gets it.
    Done,
    UnderWay,
    /// There is no room.
    Refused(Fault),
}

/// What the node has set aside for a slot. What is asked for in the pod's spec need not have been granted.
pub(super) fn allocated(pod: &Pod, slot: &str) -> Option<Size> {
    let status = status(pod, slot)?;
    let in_force = || status.resources.as_ref()?.requests.as_ref();
    let amounts = status.allocated_resources.as_ref().or_else(in_force)?;
    Some(Size {
        cpu_millis: amounts.get("cpu")?.0.parse::<MilliCpu>().ok()?.0,
        memory_bytes: amounts.get("memory")?.0.parse::<Bytes>().ok()?.0,
    })
}

/// What the node says of a slot's new size, which the pod has had since `generation`.
pub(super) fn resizing(pod: &Pod, slot: &str, size: Size, generation: Option<i64>) -> Resizing {
    if allocated(pod, slot) == Some(size) {
        return Resizing::Done;
    }
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let about_it = |seen: Option<i64>| seen.is_none() || seen >= generation;
    let mut pending =
        conditions.filter(|condition| condition.type_ == "PodResizePending" && condition.status == "True");
    match pending.find(|condition| about_it(condition.observed_generation)) {
        None => Resizing::UnderWay,
        Some(condition) => {
            let said = condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or_default();
            let text = format!(
                "resize the slot to {}m cpu and {} bytes of memory: {}",
                size.cpu_millis,
                size.memory_bytes,
                shortened(said)
            );
            Resizing::Refused(Fault::new(FaultClass::Retry, text))
        }
    }
}

/// How the container ended that a slot had and that is none of `before`.
pub(super) fn ended<'a>(
    pod: &'a Pod,
    slot: &str,
    before: &BTreeSet<String>,
) -> Option<&'a ContainerStateTerminated> {
    let status = status(pod, slot)?;
    let states: [Option<&ContainerState>; 2] = [status.state.as_ref(), status.last_state.as_ref()];
    states
        .into_iter()
        .flatten()
        .filter_map(|state| state.terminated.as_ref())
        .find(|ended| ended.container_id.as_ref().is_some_and(|id| !before.contains(id)))
}

/// Whether a container was ended for memory.
pub(super) fn out_of_memory(ended: &ContainerStateTerminated) -> bool {
    ended.reason.as_deref() == Some("OOMKilled")
}

/// One line for people.
pub(super) fn end_words(ended: &ContainerStateTerminated) -> String {
    let reason = ended.reason.as_deref().unwrap_or("no reason");
    let said = ended.message.as_deref().map(|text| format!(": {}", shortened(text))).unwrap_or_default();
    format!("{reason}, exit code {}{said}", ended.exit_code)
}

/// What was to be done stands at the beginning, and why it can't be at the end; between them programs name each other.
fn shortened(text: &str) -> String {
    const KEPT: [usize; 2] = [140, 160];
    let line: Vec<char> = text.replace('\n', " ").chars().collect();
    if line.len() <= KEPT[0] + KEPT[1] {
        return line.into_iter().collect();
    }
    let (head, tail) = (&line[..KEPT[0]], &line[line.len() - KEPT[1]..]);
    head.iter().chain(&[' ', '.', '.', ' ']).chain(tail).collect()
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
