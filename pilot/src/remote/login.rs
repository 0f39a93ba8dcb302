//! The login of one run: what the user's own logins open of the workflow's images, in a Secret that belongs to the run's pod.
//!
//! ```text
//!   logins of the workflow's images ─> rehearsed ─> pod made ─> Secret made, owned by the pod ─> removed, or gone with the pod
//! ```
//! The pod comes first: its uid makes it the Secret's owner from the first moment, so that a login never lies in the cluster
//! without anything that will take it away. The node waits with the pod's containers until the Secret is there, which is for
//! the length of one request. A workstation that is killed just then leaves a pod that waits; the other way round it would
//! leave a login.
//!
//! **Must not know:** pods' shapes, how a run goes on.

use std::collections::BTreeSet;

use image_store::{LoginExcerpt, Logins, Reference, RegistryAccess, Repository};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use pilot_core::RunExit;
use serde_json::{Value, json};

use super::cluster::{Refusal, refusal};
use crate::fault::{chain, said_by_api};
use crate::pod::LABEL;
use crate::queue::workflow::Entry;

/// The API server's word that somebody lacks a right.
const FORBIDDEN: u16 = 403;

/// Logins for the images of one run.
#[derive(Debug)]
pub(crate) struct RunLogin {
    excerpt: LoginExcerpt,
    /// The user named the auth file, and did not just happen to have it.
    named: bool,
}

/// The pod whose Secret it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) name: &'a str,
    pub(crate) uid: &'a str,
}

impl RunLogin {
    /// What `access` knows of the entries' images; `None` when that is nothing. What can't be handed on is `told`.
    pub(crate) async fn find(
        access: &RegistryAccess,
        entries: &[Entry],
        mut told: impl FnMut(String),
    ) -> Result<Option<Self>, Refusal> {
        let named = matches!(access.logins, Logins::File(_));
        let references = entries.iter().filter_map(|entry| entry.payload.image.parse::<Reference>().ok());
        let wanted: BTreeSet<Repository> = references.filter_map(|it| it.repository().cloned()).collect();
        let access = access.clone();
        let found = tokio::task::spawn_blocking(move || access.excerpt(&wanted)).await;
        let panicked = |_| ("look for logins: it panicked".to_owned(), RunExit::OwnFault);
        let excerpt = found.map_err(panicked)?.map_err(|error| (chain(&error), RunExit::BadInput))?;
        for host in &excerpt.left_out {
            told(format!(
                "the login for {host} is a token, which nodes can't use; its private images need a login with a password"
            ));
        }
        Ok((!excerpt.is_empty()).then_some(Self { excerpt, named }))
    }

    /// Asks whether the Secret could be made, and makes nothing. A login that nobody named stays here when it may not be: the
    /// images may be public, and those that are not are refused in the pod.
    pub(crate) async fn rehearse(
        self,
        client: &Client,
        namespace: &str,
        pod: &str,
        mut told: impl FnMut(String),
    ) -> Result<Option<Self>, Refusal> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let asked = secrets.create(&params, &secret(pod, None, "{\"auths\":{}}")?).await;
        match asked {
            Ok(_) => Ok(Some(self)),
            Err(kube::Error::Api(status)) if status.code == FORBIDDEN && !self.named => {
                let images: Vec<&str> = self.excerpt.repositories().collect();
                told(format!(
                    "your login for {} stays here, because you may not make Secrets in namespace {namespace}",
                    images.join(", ")
                ));
                Ok(None)
            }
            Err(error) => Err(not_made(namespace, &error)),
        }
    }

    /// Makes the Secret.
    pub(crate) async fn hand_over(
        &self,
        client: &Client,
        namespace: &str,
        owner: Owner<'_>,
    ) -> Result<(), Refusal> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let secret = secret(owner.name, Some(owner), &self.excerpt.auth_file())?;
        let made = secrets.create(&PostParams::default(), &secret).await;
        made.map(drop).map_err(|error| not_made(namespace, &error))
    }
}

/// Takes the Secret of a pod away; whatever keeps it is no matter, since it goes with the pod.
pub(crate) async fn withdraw(secrets: &Api<Secret>, pod: &str) {
    if let Err(error) = secrets.delete(pod, &DeleteParams::default()).await {
        tracing::debug!(pod, error = said_by_api(&error), "the run's login goes when its pod does");
    }
}

fn not_made(namespace: &str, error: &kube::Error) -> Refusal {
    let (text, exit) = refusal(&format!("bring the images' login to namespace {namespace}"), error);
    (format!("{text}; with --registry-login the pod uses a Secret that is there already"), exit)
}

/// The Secret; it has its pod's name.
fn secret(pod: &str, owner: Option<Owner<'_>>, auth_file: &str) -> Result<Secret, Refusal> {
    let owners: Vec<Value> = owner
        .iter()
        .map(|Owner { name, uid }| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}))
        .collect();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {
            "name": pod,
            "labels": {LABEL.0: LABEL.1, "app.kubernetes.io/instance": pod},
            "ownerReferences": owners,
        },
        "type": "kubernetes.io/dockerconfigjson",
        "immutable": true,
        "stringData": {".dockerconfigjson": auth_file},
    });
    serde_json::from_value(secret).map_err(|error| (format!("write a Secret: {error}"), RunExit::OwnFault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_belongs_to_its_pod_and_says_what_it_is() {
        let owner = Owner { name: "pilot-1", uid: "u-1" };
        let made = secret(owner.name, Some(owner), "{}").expect("a Secret");
        assert_eq!(made.metadata.name.as_deref(), Some("pilot-1"));
        let owners = made.metadata.owner_references.expect("an owner");
        assert_eq!((owners[0].kind.as_str(), owners[0].uid.as_str()), ("Pod", "u-1"));
        assert_eq!(made.type_.as_deref(), Some("kubernetes.io/dockerconfigjson"));
        assert_eq!(made.immutable, Some(true));
    }
}
