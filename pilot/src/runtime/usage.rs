//! How much disk a payload's work folder takes, by looking.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Entries looked at before giving up: a folder with more takes seconds to walk, and the next look comes in one.
const ENTRIES_MAX: usize = 1_000_000;

/// Bytes allocated below `folder`, links not followed. What vanishes meanwhile counts nothing.
pub(super) fn bytes_below(folder: &Path) -> u64 {
    let (mut total, mut seen, mut open) = (0_u64, 0_usize, vec![folder.to_path_buf()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            seen += 1;
            if seen > ENTRIES_MAX {
                return total;
            }
            let Ok(meta) = entry.metadata() else { continue };
            total = total.saturating_add(meta.blocks() * 512);
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    total
}
