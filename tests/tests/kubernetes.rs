//! The pilot in a pod, on a real node: what a user sees, and what happens when things go wrong. Run by `tests/node/with`.

#[path = "kubernetes/basics.rs"]
mod basics;
#[path = "kubernetes/check.rs"]
mod check;
#[path = "kubernetes/clients.rs"]
mod clients;
#[path = "kubernetes/conformance.rs"]
mod conformance;
#[path = "kubernetes/drain.rs"]
mod drain;
#[path = "kubernetes/gang.rs"]
mod gang;
#[path = "kubernetes/images.rs"]
mod images;
#[path = "kubernetes/lifecycle.rs"]
mod lifecycle;
#[path = "kubernetes/limits.rs"]
mod limits;
#[path = "kubernetes/logins.rs"]
mod logins;
#[path = "kubernetes/mounts.rs"]
mod mounts;
#[path = "kubernetes/neighbour.rs"]
mod neighbour;
#[path = "kubernetes/objects.rs"]
mod objects;
#[path = "kubernetes/outages.rs"]
mod outages;
#[path = "kubernetes/pulls.rs"]
mod pulls;
#[path = "kubernetes/run_logins.rs"]
mod run_logins;
#[path = "kubernetes/security.rs"]
mod security;
#[path = "kubernetes/sizes.rs"]
mod sizes;
#[path = "kubernetes/soak.rs"]
mod soak;
#[path = "kubernetes/workstation.rs"]
mod workstation;
