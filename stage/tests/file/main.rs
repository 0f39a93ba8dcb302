//! Class `file` against the kernel.

#[expect(dead_code, reason = "each suite uses a part of it")]
#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod landing;
mod room;

use common::{OTHER_UID, alone, root, sh, skipped};

/// The rules must not lean on root's rights: the suite once more as a user without any.
#[test]
fn the_suite_passes_without_rights() {
    const MARK: &str = "STAGE_SUITE_AS_OTHER";
    #[expect(clippy::disallowed_methods, reason = "a mark for the test's own child")]
    if std::env::var(MARK).is_ok() {
        return;
    }
    let _alone = alone();
    if !root() {
        return skipped(
            "the_suite_passes_without_rights",
            "root, for a second uid (this run has no rights already)",
        );
    }
    let suite = std::env::current_exe().expect("own path");
    if !sh(&format!("test -x {}", suite.display()), Some(OTHER_UID)).status.success() {
        return skipped("the_suite_passes_without_rights", "a target folder that others may enter");
    }
    let run = sh(&format!("{MARK}=1 {}", suite.display()), Some(OTHER_UID));
    let said = [run.stdout, run.stderr].concat();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&said));
}
