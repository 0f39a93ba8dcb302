//! Images made on the spot: busybox with a name for each of its programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use image_store::layout::{Compression, ImageSpec, LayerBlob, LayerBuilder, LayoutWriter};

/// Programs of busybox that the tests call by name.
const APPLETS: [&str; 41] = [
    "awk", "cat", "chmod", "chown", "cp", "cut", "dd", "df", "echo", "env", "false", "find", "grep", "head",
    "hostname", "id", "ifconfig", "kill", "ln", "ls", "mkdir", "mkfifo", "mknod", "mount", "mv", "od", "ps",
    "pwd", "readlink", "rm", "sed", "seq", "setsid", "sh", "sleep", "stat", "tail", "true", "umount", "wc",
    "yes",
];

/// What the image says of itself where a test does not say otherwise: its program is a shell.
#[must_use]
pub fn shell() -> ImageSpec {
    ImageSpec { cmd: vec!["/bin/sh".into()], ..ImageSpec::default() }
}

/// Where Debian's busybox-static lies, if it is installed.
#[must_use]
pub fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|path| path.is_file())
}

/// The layer with busybox in it, not yet finished, so that a test may add to it.
///
/// # Errors
/// When busybox is not installed.
pub fn busybox_layer(builder: LayerBuilder) -> anyhow::Result<LayerBuilder> {
    let busybox = busybox().ok_or_else(|| anyhow::anyhow!("busybox-static is not installed"))?;
    let mut layer = builder
        .dir("bin", 0o755)
        .dir("etc", 0o755)
        .file("etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\nphysicist:x:1234:1235::/home/p:/bin/sh\n")
        .file("etc/group", 0o644, "root:x:0:\nphysicists:x:1235:\n")
        .file("etc/motto", 0o644, "as it was\n")
        .file("bin/busybox", 0o755, std::fs::read(busybox)?);
    for applet in APPLETS {
        layer = layer.symlink(format!("bin/{applet}"), "busybox");
    }
    Ok(layer)
}

/// Writes the image `oci:<dir>` with busybox in it.
///
/// # Errors
/// When busybox is not installed or the layout can't be written.
pub fn busybox_image(dir: &Path, spec: &ImageSpec) -> anyhow::Result<()> {
    let layer = busybox_layer(LayerBuilder::new())?.finish(Compression::None)?;
    image(dir, spec, vec![layer])?;
    Ok(())
}

/// Writes the image `oci:<dir>` with busybox and the program `stages`, which uses the C client (tests/programs/stages.c).
///
/// # Errors
/// When busybox or a compiler is not installed or the layout can't be written.
///
/// # Panics
/// When the program can't be compiled: that is no reason to skip.
pub fn clients_image(dir: &Path) -> anyhow::Result<()> {
    // The source tree may lie where the user of this process can't go.
    let folder = tempfile::tempdir()?;
    let [source, program] = ["stages.c", "stages"].map(|name| folder.path().join(name));
    std::fs::write(&source, include_str!("../programs/stages.c"))?;
    let header = include_str!("../../clients/c/latebind_stage.h");
    std::fs::write(folder.path().join("latebind_stage.h"), header)?;
    #[expect(clippy::disallowed_methods, reason = "the payload is made on the spot")]
    let mut compiler = Command::new("cc");
    compiler.args(["-static", "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]);
    compiler.arg(&program).arg(&source);
    let compiled = compiler.output().context("cc is not installed")?;
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let layer = busybox_layer(LayerBuilder::new())?.file("bin/stages", 0o755, std::fs::read(&program)?);
    image(dir, &shell(), vec![layer.finish(Compression::None)?])?;
    Ok(())
}

/// Writes the image `oci:<dir>` of these layers; gives the path of its manifest and of each layer's blob.
///
/// # Errors
/// When the layout can't be written.
pub fn image(dir: &Path, spec: &ImageSpec, layers: Vec<LayerBlob>) -> anyhow::Result<Vec<PathBuf>> {
    let mut layout = LayoutWriter::create(dir)?;
    let digests: Vec<_> = layers.iter().map(LayerBlob::digest).collect();
    let written = layout.add_image("latest", spec, layers)?;
    let blobs = std::iter::once(&written.manifest).chain(&digests);
    Ok(blobs.map(|digest| layout.blob_path(digest)).collect())
}
