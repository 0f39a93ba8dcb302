//! Questions about versions and rights.
//!
//! **Must not know:** pods' shapes.

use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
    SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;

use super::{Asked, Is, Item};
use crate::fault::said_by_api;
use crate::pod::IMAGE_VOLUMES_SINCE;

/// Admission policies written in CEL are always there from here on (KEP-3488).
const POLICIES_SINCE: u32 = 30;
/// In-place resize is always there from here on (KEP-1287).
const RESIZE_SINCE: u32 = 35;

/// A right: verb, resource, subresource, and the name of one object.
type Right<'a> = (&'a str, &'a str, &'a str, &'a str);

/// What is asked about a right.
struct Question<'a> {
    name: &'static str,
    rights: &'a [Right<'a>],
    lack: Is,
    consequence: &'static str,
    remedy: &'static str,
}

async fn minor(asked: &Asked) -> Result<(String, u32), String> {
    let version = asked.client.apiserver_version().await.map_err(|error| said_by_api(&error))?;
    let digits: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
    Ok((version.git_version, digits.parse().unwrap_or(0)))
}

pub(super) async fn version(asked: &Asked) -> Item {
    let (is, found) = match minor(asked).await {
        Ok((version, _)) => (Is::There, format!("Kubernetes {version}, namespace {}", asked.namespace)),
        Err(why) => (Is::Missing, why),
    };
    Item {
        name: "API server",
        is,
        found,
        consequence: "nothing can be asked",
        remedy: "set KUBECONFIG, or --namespace",
    }
}

pub(super) async fn features(asked: &Asked) -> Vec<Item> {
    let since = minor(asked).await.map_or(0, |(_, minor)| minor);
    let item = |name, needs: u32, consequence, remedy| {
        let is = if since >= needs { Is::There } else { Is::Lacking };
        Item { name, is, found: format!("part of Kubernetes from 1.{needs} on"), consequence, remedy }
    };
    vec![
        item(
            "image volumes",
            IMAGE_VOLUMES_SINCE,
            "slots get the shim by a copy that an init container makes",
            "nothing has to be done: `pilot pod --kube-version` prints the pod for this version",
        ),
        item(
            "admission policies",
            POLICIES_SINCE,
            "whoever steals the pilot's token can change every pod of the namespace, within Pod Security",
            "one namespace for each pilot, or a newer cluster",
        ),
        item("in-place resize", RESIZE_SINCE, "slots keep the size that they were made with", ""),
    ]
}

fn attributes(namespace: &str, (verb, resource, subresource, name): Right<'_>) -> ResourceAttributes {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ResourceAttributes {
        namespace: text(namespace),
        verb: text(verb),
        resource: text(resource),
        subresource: text(subresource),
        name: text(name),
        ..ResourceAttributes::default()
    }
}

/// Whose rights are asked about.
#[derive(Clone, Copy)]
enum Whose {
    /// Whoever asks.
    Own,
    /// The pilot's account.
    Account,
}

async fn has(asked: &Asked, whose: Whose, right: Right<'_>) -> Result<bool, String> {
    match whose {
        Whose::Own => may(asked, right).await,
        Whose::Account => account_may(asked, right).await,
    }
}

/// Whether whoever asks has a right.
async fn may(asked: &Asked, right: Right<'_>) -> Result<bool, String> {
    let resource_attributes = Some(attributes(&asked.namespace, right));
    let spec = SelfSubjectAccessReviewSpec { resource_attributes, ..SelfSubjectAccessReviewSpec::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let api: Api<SelfSubjectAccessReview> = Api::all(asked.client.clone());
    let answer = api.create(&PostParams::default(), &review).await.map_err(|error| said_by_api(&error))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Whether the pilot's account has a right.
async fn account_may(asked: &Asked, right: Right<'_>) -> Result<bool, String> {
    let user = format!("system:serviceaccount:{}:{}", asked.namespace, asked.shape.service_account);
    let resource_attributes = Some(attributes(&asked.namespace, right));
    let spec = SubjectAccessReviewSpec {
        resource_attributes,
        user: Some(user),
        ..SubjectAccessReviewSpec::default()
    };
    let mut review = LocalSubjectAccessReview { spec, ..LocalSubjectAccessReview::default() };
    review.metadata.namespace = Some(asked.namespace.clone());
    let api: Api<LocalSubjectAccessReview> = Api::namespaced(asked.client.clone(), &asked.namespace);
    let answer = api.create(&PostParams::default(), &review).await.map_err(|error| said_by_api(&error))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

fn written((verb, resource, subresource, name): Right<'_>) -> String {
    let slash = if subresource.is_empty() { "" } else { "/" };
    let of = if name.is_empty() { String::new() } else { format!(" {name}") };
    format!("{verb} {resource}{slash}{subresource}{of}")
}

async fn answer(asked: &Asked, whose: Whose, question: Question<'_>) -> Item {
    let Question { name, rights, lack, consequence, remedy } = question;
    let (mut lacking, mut is) = (Vec::new(), Is::There);
    for right in rights {
        match has(asked, whose, *right).await {
            Ok(true) => {}
            Ok(false) => {
                lacking.push(written(*right));
                is = lack;
            }
            Err(why) => {
                let found = format!("whoever asks may not know ({why})");
                return Item { name, is: Is::Unknown, found, consequence, remedy };
            }
        }
    }
    let all: Vec<String> = rights.iter().map(|right| written(*right)).collect();
    let found = if lacking.is_empty() { all.join(", ") } else { format!("without {}", lacking.join(", ")) };
    Item { name, is, found, consequence, remedy }
}

pub(super) async fn users_rights(asked: &Asked) -> Item {
    let question = Question {
        name: "your rights",
        rights: &[
            ("create", "pods", "", ""),
            ("get", "pods", "", ""),
            ("delete", "pods", "", ""),
            ("create", "pods", "exec", ""),
        ],
        // Pilots that an admin has made run all the same.
        lack: Is::Lacking,
        consequence: "`pilot run --backend kubernetes` can't make its pod here",
        remedy: "the role `edit` in this namespace has these rights",
    };
    answer(asked, Whose::Own, question).await
}

pub(super) async fn users_logins(asked: &Asked) -> Item {
    let question = Question {
        name: "your registry logins",
        rights: &[("create", "secrets", "", ""), ("delete", "secrets", "", "")],
        lack: Is::Lacking,
        consequence: "`pilot run --backend kubernetes` can't bring your own logins; private images need a Secret that is there",
        remedy: "the role `edit` in this namespace has these rights; or --registry-login NAME",
    };
    answer(asked, Whose::Own, question).await
}

fn tiers(secret: &str) -> [(&'static str, Vec<Right<'_>>, Is, &'static str, &'static str); 4] {
    [
        (
            "bind",
            vec![("patch", "pods", "", "")],
            Is::Missing,
            "no slot can be given an image",
            "install deploy/base or the chart: deploy/README.md",
        ),
        (
            "prefetch",
            vec![("create", "pods", "", ""), ("delete", "pods", "", "")],
            Is::Lacking,
            "while a slot's image is pulled, the pod's other slots can't change theirs",
            "deploy/components/prefetch, or tiers.prefetch of the chart",
        ),
        (
            "late credentials",
            vec![("patch", "secrets", "", secret)],
            Is::Lacking,
            "payloads can't bring logins of their own; private images need a Secret of the pod",
            "deploy/components/credentials, or tiers.credentials of the chart",
        ),
        (
            "resize",
            vec![("patch", "pods", "resize", "")],
            Is::Lacking,
            "slots keep the size that they were made with",
            "deploy/components/resize, or tiers.resize of the chart",
        ),
    ]
}

/// The name that deploy/ gives the Secret for logins.
const SECRET: &str = "latebind-pull";
/// What nobody needs to run payloads.
const TOO_MUCH: [Right<'static>; 5] = [
    ("get", "pods", "", ""),
    ("list", "pods", "", ""),
    ("get", "secrets", "", ""),
    ("create", "pods", "exec", ""),
    ("patch", "pods", "ephemeralcontainers", ""),
];

pub(super) async fn pilots_rights(asked: &Asked) -> Vec<Item> {
    rights(asked, Whose::Account).await
}

pub(super) async fn own_rights(asked: &Asked, pod: &str) -> Vec<Item> {
    let mut items = rights(asked, Whose::Own).await;
    items.push(super::rehearsal::own_pod(asked, pod).await);
    items
}

async fn rights(asked: &Asked, whose: Whose) -> Vec<Item> {
    let mut items = Vec::new();
    for (name, rights, lack, consequence, remedy) in
        tiers(asked.shape.late_secret.as_deref().unwrap_or(SECRET))
    {
        let question = Question { name, rights: &rights, lack, consequence, remedy };
        items.push(answer(asked, whose, question).await);
    }
    let (mut more, mut unknown) = (Vec::new(), None);
    for right in TOO_MUCH {
        match has(asked, whose, right).await {
            Ok(true) => more.push(written(right)),
            Ok(false) => {}
            Err(why) => unknown = Some(why),
        }
    }
    let (is, found) = match unknown {
        Some(why) => (Is::Unknown, format!("whoever asks may not know ({why})")),
        None if more.is_empty() => (Is::There, "nothing else was found".to_owned()),
        None => (Is::Lacking, format!("it may also {}", more.join(", "))),
    };
    items.push(Item {
        name: "no more than that",
        is,
        found,
        consequence: "who gets hold of the pilot's token has these rights too",
        remedy: "take them from the pilot's account; it needs none of them",
    });
    items
}
