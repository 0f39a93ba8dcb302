//! What a cluster allows, found out by asking it, and what each lack costs.
//!
//! From a workstation it is asked with the user's kubeconfig: may the user do what `pilot run` does, would the pod be let in,
//! and what may the pilot's account do. From inside a pilot's pod it is asked with the pod's own account. Nothing is made: a
//! pod is only rehearsed (`dryRun`).
//!
//! **Must not know:** how the report is shown.

mod questions;
mod rehearsal;

use std::fmt;

use kube::Client;

use crate::pod::Shape;

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// It is.
    There,
    /// It is not, and nothing goes without it.
    Missing,
    /// It is not, and something goes less well without it.
    Lacking,
    /// Whoever asks may not know.
    Unknown,
}

/// One thing that a cluster allows or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What was asked.
    pub name: &'static str,
    /// The answer.
    pub is: Is,
    /// What was found.
    pub found: String,
    /// What follows from a lack.
    pub consequence: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

/// All answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterReport {
    /// In the order in which they were asked.
    pub items: Vec<Item>,
}

impl ClusterReport {
    /// Whether pilots run here.
    #[must_use]
    pub fn runs_pilots(&self) -> bool {
        self.items.iter().all(|item| item.is != Is::Missing)
    }
}

impl fmt::Display for ClusterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Item { name, is, found, consequence, remedy } in &self.items {
            let word = match is {
                Is::There => "ok ",
                Is::Missing => "NO ",
                Is::Lacking => "no ",
                Is::Unknown => "?  ",
            };
            writeln!(f, "{word} {name}: {found}")?;
            if *is != Is::There {
                writeln!(f, "       {consequence}")?;
                if !remedy.is_empty() {
                    writeln!(f, "       to change it: {remedy}")?;
                }
            }
        }
        Ok(())
    }
}

/// Who asks, and about what.
#[expect(missing_debug_implementations, reason = "a client has none")]
pub struct Asked {
    /// Speaks to the API server.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
    /// The pod as it would be made; its images need not exist.
    pub shape: Shape,
    /// The pod that whoever asks is in.
    pub inside: Option<String>,
}

/// Asks.
pub async fn probe(asked: &Asked) -> ClusterReport {
    let mut items = vec![questions::version(asked).await];
    if items.iter().any(|item| item.is == Is::Missing) {
        return ClusterReport { items };
    }
    items.extend(questions::features(asked).await);
    match &asked.inside {
        Some(pod) => items.extend(questions::own_rights(asked, pod).await),
        None => {
            let own = questions::users_rights(asked).await;
            let may_rehearse = own.is == Is::There;
            items.push(own);
            items.push(questions::users_logins(asked).await);
            items.extend(questions::pilots_rights(asked).await);
            if may_rehearse {
                items.extend(rehearsal::rehearse(asked).await);
            }
        }
    }
    ClusterReport { items }
}
