//! Late-bound pull credentials: a payload's own login reaches the kubelet through one Secret that the pod names and that an
//! admin made beforehand, for as long as the bind takes.
//!
//! **Must not know:** slots, how images are looked up.

use std::sync::Arc;

use pilot_core::{Fault, FaultClass};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::Shared;
use super::images::PodImage;
use super::live::API_WAIT;
use crate::payload::Payload;

/// A login that is in the Secret.
#[derive(Debug)]
pub(super) struct LateLogins {
    shared: Arc<Shared>,
    /// One bind at a time: the Secret has room for all its slots' logins, but not for two for one registry.
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Shared {
    /// Puts the payload's login where the kubelet finds it; `None` when it brings none.
    pub(super) async fn late_logins(
        self: &Arc<Self>,
        payload: &Payload,
        image: &PodImage,
        until: Instant,
    ) -> Result<Option<LateLogins>, Fault> {
        let Some(file) = self.images.login_of(payload) else { return Ok(None) };
        let Some(secret) = &self.pull_secret else {
            let text =
                "it brings a login, and this pod has no Secret for logins; see deploy/README.md, credentials";
            return Err(Fault::new(FaultClass::Payload, text));
        };
        let wrong = |error: &dyn std::fmt::Display| {
            Fault::new(FaultClass::Payload, format!("read login {}: {error}", file.display()))
        };
        let text = std::fs::read(file).map_err(|error| wrong(&error))?;
        let all: Value = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
        let turn = Arc::clone(&self.login_turn).lock_owned().await;
        self.pod.set_logins(secret, &only(&all, image.host()), until).await?;
        Ok(Some(LateLogins { shared: Arc::clone(self), _turn: turn }))
    }
}

impl LateLogins {
    /// Takes the login away again: the image is on the node, or will not be.
    pub(super) async fn withdraw(self) {
        let Some(secret) = &self.shared.pull_secret else { return };
        let none = json!({"auths": {}});
        if let Err(fault) = self.shared.pod.set_logins(secret, &none, Instant::now() + API_WAIT).await {
            tracing::warn!(%fault, "a login stays in the Secret until the next one takes its place");
        }
    }
}

/// The logins of an auth file for one registry: the others are none of the kubelet's business.
fn only(all: &Value, host: &str) -> Value {
    let auths = all.get("auths").and_then(Value::as_object).into_iter().flatten();
    let of_host = |key: &str| {
        let key = key.trim_start_matches("https://").trim_start_matches("http://");
        let named = key.split('/').next().unwrap_or_default();
        named == host || host == "docker.io" && matches!(named, "index.docker.io" | "registry-1.docker.io")
    };
    let kept: Map<String, Value> =
        auths.filter(|(key, _)| of_host(key)).map(|(key, value)| (key.clone(), value.clone())).collect();
    json!({"auths": kept})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_logins_of_the_images_registry_are_shown() {
        let all = json!({"auths": {
            "registry.example": {"auth": "a"}, "https://other.example/v2/": {"auth": "b"},
            "registry.example/team": {"auth": "c"}, "https://index.docker.io/v1/": {"auth": "d"},
        }, "credHelpers": {"x": "y"}});
        let one = only(&all, "registry.example");
        assert_eq!(
            one,
            json!({"auths": {"registry.example": {"auth": "a"}, "registry.example/team": {"auth": "c"}}})
        );
        assert_eq!(only(&all, "docker.io"), json!({"auths": {"https://index.docker.io/v1/": {"auth": "d"}}}));
        assert_eq!(only(&json!([]), "x"), json!({"auths": {}}));
    }
}
