//! The folders that a pilot's pod expects on its shared volume, so that no container has to make them first.
//!
//! The same list as `pilot prepare-share` makes (`pilot/src/runtime/kubernetes/folders.rs`); `tests/tests/csi_layout.rs` holds
//! them against each other. Folders that every uid may write to lie in folders which only one slot mounts.
//!
//! **Must not know:** how folders are made.

/// More slots than this no pod has.
pub const SLOTS_MAX: u32 = 256;

/// A folder below the volume's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its path, relative; parents come before what is in them.
    pub path: String,
    /// Its permissions.
    pub mode: u32,
}

/// All folders for so many slots; none for none.
#[must_use]
pub fn folders(slots: u32) -> Vec<Made> {
    if slots == 0 {
        return Vec::new();
    }
    let made = |path: &str, mode| Made { path: path.to_owned(), mode };
    let mut all = vec![
        made("pilot", 0o700),
        made("pilot/tmp", 0o700),
        made("pilot/slots", 0o700),
        made("stages", 0o700),
        made("slots", 0o711),
    ];
    for slot in 0..slots {
        all.push(made(&format!("pilot/slots/{slot}"), 0o700));
        for (name, mode) in [
            ("", 0o711),
            ("/control", 0o711),
            ("/control/ran", 0o777),
            ("/in", 0o755),
            ("/links", 0o777),
            ("/out", 0o777),
            ("/work", 0o777),
        ] {
            all.push(Made { path: format!("slots/{slot}{name}"), mode });
        }
    }
    all
}
