//! How a driver ends that can't start.

use std::process::{Command, Stdio};

/// Runs a driver that is to end by itself; its code and what it said.
#[expect(clippy::disallowed_methods, reason = "it is waited for")]
pub(crate) fn run_to_the_end(options: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(crate::kubelet::program());
    let output = command.args(options).stdin(Stdio::null()).output().expect("run the driver");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_can_not_start_says_why_in_a_line() {
    let root = tempfile::tempdir().expect("tempdir");
    let path = root.path().display().to_string();
    let (code, said) = run_to_the_end(&["--kubelet-dir", &path]);
    assert_eq!(code, Some(69));
    assert!(said.contains("--kubelet-dir") && said.lines().count() == 1, "{said}");
    let (code, said) = run_to_the_end(&["--kubelet-dir", "relative"]);
    assert_eq!(code, Some(64));
    assert!(said.starts_with("csi-driver: --kubelet-dir relative: "), "{said}");
    assert_eq!(run_to_the_end(&["--no-such-thing"]).0, Some(64));
    assert_eq!(run_to_the_end(&["--help"]).0, Some(0));
    std::fs::create_dir(root.path().join("pods")).expect("mkdir");
    let socket = root.path().join("plugins/csi.latebind.dev/csi.sock");
    std::fs::create_dir_all(&socket).expect("mkdir");
    let (code, said) = run_to_the_end(&["--kubelet-dir", &path]);
    assert_eq!(code, Some(69));
    assert!(said.contains("something that is no socket is there"), "{said}");
}
