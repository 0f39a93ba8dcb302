//! Doors for fuzzers to the parsers of hostile input. Each takes any bytes and must neither panic nor hang
//! nor use memory out of proportion. Nothing is written.

use crate::entry::EntryKind;
use crate::layer::normalise;
use crate::limits::Limits;
use crate::mount_points;
use crate::tar_stream::TarStream;
use crate::tree::Tree;
use crate::{spec, tree_format};

/// Bounds small enough for many runs a second.
fn limits() -> Limits {
    Limits { entries: 10_000, unpacked_bytes: 16 << 20, path_depth: 64, ..Limits::default() }
}

/// A layer's tar, merged over a tree that already has links and directories; what comes out is encoded and
/// must decode to the same names.
pub fn fuzz_layer(bytes: &[u8]) {
    let limits = limits();
    let mut tree = Tree::new();
    let below = crate::layout::LayerBuilder::new()
        .dir("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .symlink("loop", "loop")
        .symlink("out", "../../..")
        .file("usr/lib/x", 0o644, "")
        .tar();
    for (number, tar) in (0..).zip([&below[..], bytes]) {
        let mut left_out = crate::LeftOut::default();
        let mut stream = TarStream::new(tar, limits.clone());
        let mut entries = 0;
        while let Ok(Some(raw)) = stream.next_entry() {
            entries += 1;
            if entries > limits.entries || raw.size > limits.unpacked_bytes {
                break;
            }
            if std::io::copy(&mut stream, &mut std::io::sink()).is_err() {
                break;
            }
            let Ok(entry) = normalise(raw, &mut left_out) else { break };
            let hard_link = matches!(entry.kind, EntryKind::HardLink(_));
            let applied = tree.apply(number, entry, &limits);
            assert!(hard_link || applied.is_ok() || tree.names() <= entries * 64 + 8);
        }
    }
    let stored = tree_format::encode(&tree).unwrap_or_default();
    if let Ok(again) = tree_format::decode(&stored) {
        assert!(again.names() <= tree.names());
    }
    let _ = mount_points::ensure(&mut tree, &["/app/x".to_owned()]);
}

/// Index, manifest, configuration and `manifest.json`.
pub fn fuzz_documents(bytes: &[u8]) {
    let _ = spec::parse_index(bytes);
    let _ = spec::parse_manifest(bytes);
    let _ = spec::parse_config(bytes);
    let _ = spec::parse_saved(bytes);
}

/// A stored tree behind its digest and compression.
pub fn fuzz_tree(bytes: &[u8]) {
    let _ = tree_format::decode_frame(bytes);
    if let Ok(tree) = tree_format::decode_nodes(bytes) {
        let again = tree_format::encode(&tree).unwrap_or_default();
        assert!(tree_format::decode(&again).is_ok());
    }
}

/// An image reference.
pub fn fuzz_reference(text: &str) {
    if let Ok(reference) = text.parse::<crate::Reference>() {
        let again = reference.to_string().parse::<crate::Reference>();
        assert_eq!(again.as_ref(), Ok(&reference));
    }
}
