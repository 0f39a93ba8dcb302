//! The folders that the CSI driver makes for a pilot's pod are those that the pilot makes on a volume that has none. Neither crate
//! knows the other.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// All folders below, by relative path, with their modes.
fn folders(root: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("folder").flatten() {
            assert!(entry.file_type().expect("type").is_dir(), "{} is no folder", entry.path().display());
            let mode = entry.metadata().expect("stat").mode() & 0o7777;
            let path = entry.path().strip_prefix(root).expect("below").display().to_string();
            found.insert(path, mode);
            open.push(entry.path());
        }
    }
    found
}

#[test]
fn the_driver_makes_what_the_pilot_would_make() {
    let root = tempfile::tempdir().expect("tempdir");
    let (pilots, drivers) = (root.path().join("pilots"), root.path().join("drivers"));
    for folder in [&pilots, &drivers] {
        fs::create_dir(folder).expect("mkdir");
    }
    pilot::runtime::kubernetes::prepare_share(&pilots, 3, &[]).expect("prepare");
    for made in csi_driver::layout::folders(3) {
        fs::create_dir(drivers.join(&made.path)).expect("mkdir");
        let mode = fs::Permissions::from_mode(made.mode);
        fs::set_permissions(drivers.join(&made.path), mode).expect("chmod");
    }
    assert_eq!(folders(&drivers), folders(&pilots));
    // A pilot that starts there changes nothing.
    let before = folders(&drivers);
    pilot::runtime::kubernetes::prepare_share(&drivers, 3, &[]).expect("prepare");
    assert_eq!(folders(&drivers), before);
}
