//! What the host allows, and all of this once more for an ordinary user.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_runner::{Attach, probe_host};

use crate::harness::{is_root, quiet, test_name};

const ORDINARY: u32 = 1000;

#[expect(clippy::disallowed_methods, reason = "a test owns what it starts and waits for it")]
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

#[test]
fn the_report_names_everything_once_and_leaves_nothing() {
    quiet(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let report = probe_host(folder.path(), folder.path());
        let mut names: Vec<&str> = report.items.iter().map(|item| item.name).collect();
        assert!(names.contains(&"user namespaces") && names.contains(&"cgroups"), "{report}");
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{report}");
        assert!(report.items.iter().all(|item| item.ok || !item.consequence.is_empty()), "{report}");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
        if report.item("data-only overlay").is_some_and(|item| item.ok) {
            assert_eq!(report.attach, Some(Attach::DataOnly));
        }
    });
}

#[test]
fn a_folder_that_can_not_be_written_is_named() {
    quiet(|| {
        let report = probe_host(Path::new("/proc/nowhere"), Path::new("/proc/nowhere"));
        assert!(!report.runs_containers(), "{report}");
        let namespaces = report.item("user namespaces").expect("the item");
        assert!(namespaces.found.contains("store and local folders"), "{report}");
    });
}

/// An example of this crate, which cargo builds beside the tests.
fn example(name: &str) -> Option<PathBuf> {
    let tests = std::env::current_exe().ok()?;
    Some(tests.parent()?.parent()?.join("examples").join(name)).filter(|path| path.exists())
}

#[test]
fn a_host_without_user_namespaces_is_explained() {
    quiet(explain_a_host_without_user_namespaces);
}

fn explain_a_host_without_user_namespaces() {
    let (Some(report), true) = (example("host_report"), Path::new("/usr/bin/unshare").exists()) else {
        eprintln!("SKIPPED: {}: unshare(1) and the example host_report", test_name());
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("an open folder");
    // The limit is one of the namespace: inside it there are none, outside nothing changes.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$1\" \"$1\"";
    let mut unshare = command("/usr/bin/unshare");
    unshare.args(["-Ur", "sh", "-c", script]).arg(report).arg(folder.path());
    let output = unshare.output().expect("a report");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if errors.contains("unshare failed") {
        eprintln!("SKIPPED: {}: user namespaces to begin with", test_name());
        return;
    }
    assert!(text.contains("no   user namespaces: user.max_user_namespaces is 0"), "{text}{errors}");
    assert!(text.contains("sudo sysctl -w user.max_user_namespaces="), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_ordinary_user_has_all_of_this_too() {
    quiet(become_an_ordinary_user);
}

fn become_an_ordinary_user() {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !is_root() || !setpriv.exists() {
        eprintln!("SKIPPED: {}: root and setpriv(1), to become somebody else", test_name());
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("an open folder");
    chown(folder.path(), Some(ORDINARY), Some(ORDINARY)).expect("a new owner");
    // A copy, because the build folder may lie where only root goes.
    let tests = folder.path().join("tests");
    fs::copy(std::env::current_exe().expect("this program"), &tests).expect("a copy");
    fs::set_permissions(&tests, fs::Permissions::from_mode(0o755)).expect("a program");
    let id = ORDINARY.to_string();
    let mut again = command(setpriv);
    again.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(&tests).env("TMPDIR", folder.path());
    again.args(["--skip", "an_ordinary_user_has_all_of_this_too", "--nocapture"]);
    let output = again.output().expect("a run of these tests");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("test result: ok"), "{text}");
    for line in text.lines().filter(|line| line.starts_with("SKIPPED")) {
        eprintln!("{line} (as uid {ORDINARY})");
    }
}
