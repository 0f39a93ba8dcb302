//! The pilot in a pod, on a real node: what a user sees, and what happens when things go wrong. Run by `tests/node/with`.

#[path = "kubernetes/basics.rs"]
mod basics;
#[path = "kubernetes/conformance.rs"]
mod conformance;
#[path = "kubernetes/images.rs"]
mod images;
#[path = "kubernetes/lifecycle.rs"]
mod lifecycle;
#[path = "kubernetes/neighbour.rs"]
mod neighbour;
#[path = "kubernetes/workstation.rs"]
mod workstation;
