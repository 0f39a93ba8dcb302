//! Images made on the spot: busybox with a name for each of its programs.

use std::path::{Path, PathBuf};

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
