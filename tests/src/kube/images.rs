//! Images in the node's registries: the pilot's own, and a few for payloads.
//!
//! **Must not know:** pods.

use std::sync::OnceLock;

use image_store::layout::ImageSpec;

use super::{Node, command, project};
use crate::images::busybox_image;
use crate::run::dist;

/// References of the images, by digest.
#[derive(Clone, Debug)]
pub struct Images {
    /// The pilot's.
    pub pilot: String,
    /// The shim's, which idle slots have.
    pub shim: String,
    /// Busybox with a shell.
    pub busybox: String,
}

/// The images; made and pushed once for each test process.
///
/// # Panics
/// When the programs are not built, or a tool is missing.
#[must_use]
pub fn images(node: &Node) -> &'static Images {
    static MADE: OnceLock<Images> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("tempdir");
        let out = folder.path().to_str().expect("path");
        let build = project().join("deploy/image/build");
        let to = format!("{}/latebind", node.registry());
        let built = dist();
        let env = format!("LATEBIND_DIST={}", built.display());
        let arguments = [env.as_str(), build.to_str().expect("path"), "--plain-http", out, &to];
        let names = command(std::path::Path::new("/usr/bin/env"), &arguments, "").good();
        let mut names = names.lines().map(str::to_owned);
        let (pilot, shim) = names.next().zip(names.next()).expect("two names");
        let busybox = push(node, "busybox", &busybox_spec());
        Images { pilot, shim, busybox }
    })
}

/// What the busybox image says of itself.
#[must_use]
pub fn busybox_spec() -> ImageSpec {
    crate::images::shell()
}

/// Pushes busybox under a name, with `spec`; gives its reference by digest, as workflow files name it.
///
/// # Panics
/// When busybox or skopeo is missing.
#[must_use]
pub fn push(node: &Node, name: &str, spec: &ImageSpec) -> String {
    let folder = tempfile::tempdir().expect("tempdir");
    busybox_image(folder.path(), spec).expect("busybox-static");
    push_layout(&node.registry(), name, folder.path(), &[])
}

/// Pushes an OCI layout.
///
/// # Panics
/// When skopeo is missing, or the registry says no.
#[must_use]
pub fn push_layout(registry: &str, name: &str, layout: &std::path::Path, options: &[&str]) -> String {
    let digest = tempfile::NamedTempFile::new().expect("tempfile");
    let digest_file = digest.path().to_str().expect("path").to_owned();
    let (from, to) =
        (format!("oci:{}:latest", layout.display()), format!("docker://{registry}/{name}:latest"));
    let mut all =
        vec!["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--digestfile", &digest_file];
    all.extend(options);
    all.extend([from.as_str(), to.as_str()]);
    let _pushed = command(std::path::Path::new("/usr/bin/skopeo"), &all, "").good();
    let digest = std::fs::read_to_string(digest.path()).expect("digest");
    format!("docker://{registry}/{name}@{}", digest.trim())
}
