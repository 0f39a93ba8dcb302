//! Rehearsing the pilot's pod: would it be let in, and what would become of it.
//!
//! **Must not know:** rights.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::{Asked, Is, Item};
use crate::fault::said_by_api;
use crate::pod::{Form, Shape};

pub(super) async fn rehearse(asked: &Asked) -> Vec<Item> {
    let shape = Shape { form: Form::Pod, ..asked.shape.clone() };
    let Ok(pod) = serde_json::from_value::<Pod>(shape.manifest()) else { return Vec::new() };
    let api: Api<Pod> = Api::namespaced(asked.client.clone(), &asked.namespace);
    let rehearsal = PostParams { dry_run: true, ..PostParams::default() };
    let admitted = match api.create(&rehearsal, &pod).await {
        Ok(admitted) => admitted,
        Err(error) => {
            let item = Item {
                name: "the pod",
                is: Is::Missing,
                found: said_by_api(&error),
                consequence: "pilots can't start in this namespace",
                remedy: "make the account and the namespace as deploy/README.md says",
            };
            return vec![item];
        }
    };
    vec![let_in(), as_it_is(&pod, &admitted), pulls(&admitted)]
}

fn let_in() -> Item {
    Item {
        name: "the pod",
        is: Is::There,
        found: "it would be let in (rehearsed with dryRun)".into(),
        consequence: "",
        remedy: "",
    }
}

fn names(pod: &Pod) -> Vec<&str> {
    pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| container.name.as_str()).collect()
}

/// What webhooks put into the pod beside what was asked for.
fn as_it_is(pod: &Pod, admitted: &Pod) -> Item {
    let wanted = names(pod);
    let added: Vec<&str> = names(admitted).into_iter().filter(|name| !wanted.contains(name)).collect();
    let (is, found) = if added.is_empty() {
        (Is::There, "nobody adds containers to it".to_owned())
    } else {
        (Is::Lacking, format!("a webhook adds {}", added.join(", ")))
    };
    Item {
        name: "the pod stays as it is",
        is,
        found,
        consequence: "what is added sees the slots' network, and may keep a pod of a Job from ending",
        remedy: "exempt the namespace from the webhook",
    }
}

/// AlwaysPullImages changes the policy of each container.
fn pulls(admitted: &Pod) -> Item {
    let spec = admitted.spec.iter().flat_map(|spec| &spec.containers);
    let always = spec.into_iter().any(|container| container.image_pull_policy.as_deref() == Some("Always"));
    Item {
        name: "images of the node are used",
        is: if always { Is::Lacking } else { Is::There },
        found: if always { "AlwaysPullImages is on".into() } else { "AlwaysPullImages is off".into() },
        consequence: "each bind asks the registry, and waits while it is away",
        remedy: "",
    }
}

/// From inside: the one right, used once without changing anything.
pub(super) async fn own_pod(asked: &Asked, name: &str) -> Item {
    let api: Api<Pod> = Api::namespaced(asked.client.clone(), &asked.namespace);
    let (is, found) = match api.patch(name, &PatchParams::default(), &Patch::Strategic(json!({}))).await {
        Ok(pod) => {
            let slots = names(&pod).iter().filter(|name| name.starts_with("slot-")).count();
            let policy = pulls(&pod).found;
            (Is::There, format!("pod {name} has {slots} slots; {policy}"))
        }
        Err(error) => (Is::Missing, said_by_api(&error)),
    };
    Item {
        name: "its own pod",
        is,
        found,
        consequence: "no slot can be given an image",
        remedy: "the policies must let the pod's own token through: deploy/README.md",
    }
}
