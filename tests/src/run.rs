//! A place in which a test runs the real `pilot`: its own folders, a busybox image, and a look before and after.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub use self::ran::Ran;
use crate::baseline::Baseline;

mod ran;

/// The word in the names of the pilot's cgroups.
pub const CGROUPS: &str = "latebind-";
/// Longest wait for something that takes milliseconds on a machine at rest.
pub const SOON: Duration = Duration::from_secs(20);

/// Where `./build` puts its programs. `tests/run` names it; by hand it is `target/dist`.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the tests' one setting")]
pub fn dist() -> PathBuf {
    std::env::var("LATEBIND_DIST")
        .map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dist"), PathBuf::from)
}

/// Whether these tests run as root, where the pilot gives its slots uids of their own and cgroups.
#[must_use]
pub fn as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Asks until the answer is yes; `false` when it did not come in time.
#[expect(clippy::disallowed_methods, reason = "a deadline for a test that would hang")]
pub fn within(longest: Duration, mut asked: impl FnMut() -> bool) -> bool {
    let end = std::time::Instant::now() + longest;
    loop {
        if asked() {
            return true;
        }
        if std::time::Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A payload, as an item of `payloads`, that runs `script` in busybox's shell; `fields` are further ones in flow style.
#[must_use]
pub fn sh(name: &str, script: &str, fields: &str) -> String {
    payload(name, &format!("image: oci:busybox, command: [/bin/sh, -c, {}], {fields}", Value::from(script)))
}

/// A payload of these fields in flow style.
#[must_use]
pub fn payload(name: &str, fields: &str) -> String {
    format!("  - {{name: {name}, resources: {{cpu: 500m, memory: 128Mi}}, {fields}}}\n")
}

/// A workflow `w` of these payloads.
#[must_use]
pub fn flow(payloads: &[String]) -> String {
    // No test waits longer than this for a payload that does not end as it should.
    let head = "apiVersion: latebind/v1\nmetadata: {name: w}\ndefaults: {walltime: 45s}\npayloads:\n";
    format!("{head}{}", payloads.concat())
}

/// A payload that must succeed whatever its neighbours do; see [`Ran::assert_good`].
#[must_use]
pub fn good() -> String {
    sh("good", "echo fine && echo data > /stage/out/kept", "outputs: [{name: kept, save: good.txt}]")
}

/// Tests that look at the whole machine run one after the other; cargo runs the suites one by one.
static ALONE: Mutex<()> = Mutex::new(());

/// Longest run of a pilot in a test, in seconds; the slowest takes a few.
const RUN_LIMIT_S: &str = "120";

/// A test's own folders.
#[derive(Debug)]
pub struct Site {
    folder: tempfile::TempDir,
    before: Baseline,
    _alone: MutexGuard<'static, ()>,
}

impl Site {
    /// Makes the place, or says why a test that needs it must be skipped.
    ///
    /// # Panics
    /// When the programs are not built: that is no reason to skip.
    #[must_use]
    pub fn new(test: &str) -> Option<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(dist().join("pilot").is_file(), "{} is missing: run ./build", dist().join("pilot").display());
        if crate::images::busybox().is_none() {
            crate::skipped(test, "busybox-static is not installed");
            return None;
        }
        if let Err(why) = user_namespaces() {
            crate::skipped(test, &why);
            return None;
        }
        let folder = tempfile::Builder::new().prefix("latebind-test-").tempdir().expect("tempdir");
        for name in ["state", "scratch", "store"] {
            std::fs::create_dir(folder.path().join(name)).expect("mkdir");
        }
        crate::images::busybox_image(&folder.path().join("busybox"), &crate::images::shell()).expect("image");
        let before = look(folder.path());
        Some(Self { folder, before, _alone: alone })
    }

    /// The same with an image that has the program `stages` as well.
    ///
    /// # Panics
    /// As [`Site::new`].
    #[must_use]
    pub fn with_clients(test: &str) -> Option<Self> {
        let site = Self::new(test)?;
        site.add_clients(test).then_some(site)
    }

    /// Puts the program `stages` into the image; `false`, said loudly, when it can't be made here.
    ///
    /// # Panics
    /// When the folder can't be changed.
    #[must_use]
    pub fn add_clients(&self, test: &str) -> bool {
        let image = self.path().join("busybox");
        std::fs::remove_dir_all(&image).expect("remove");
        match crate::images::clients_image(&image) {
            Ok(()) => true,
            Err(why) => {
                crate::skipped(test, &format!("{why:#}"));
                false
            }
        }
    }

    /// The place's folder; a workflow written there may name `oci:busybox`.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file in the place.
    ///
    /// # Panics
    /// When it can't.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).expect("write");
        path
    }

    /// The text of a file in the place; empty when it is not there.
    #[must_use]
    pub fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A pilot with its folders set, not yet started. It has at least two slots, so that a payload beside a bad one runs
    /// beside it.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "tests start the pilot")]
    pub fn pilot(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(dist().join("pilot"));
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null());
        for name in ["state-dir", "scratch-dir", "store"] {
            let (flag, folder) = (format!("--{name}"), name.trim_end_matches("-dir"));
            if !arguments.contains(&flag.as_str()) {
                command.arg(flag).arg(self.path().join(folder));
            }
        }
        if !arguments.contains(&"--slots") {
            command.args(["--slots", "2"]);
        }
        let foreign =
            ["RUST_LOG", "XDG_CONFIG_HOME", "LATEBIND_SETTINGS", "LATEBIND_ATTACH", "LATEBIND_OUTPUT"];
        for name in foreign {
            command.env_remove(name);
        }
        command.env("HOME", self.path());
        command
    }

    /// Runs the pilot with these arguments to its end.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn ask(&self, arguments: &[&str]) -> Ran {
        // A pilot that hangs is a failed test and not a hanging one: timeout(1) ends it and answers 124.
        let pilot = self.pilot(arguments);
        #[expect(clippy::disallowed_methods, reason = "tests start the pilot")]
        let mut command = Command::new("timeout");
        command.args(["-k", "10", RUN_LIMIT_S]).arg(pilot.get_program()).args(pilot.get_args());
        for (name, value) in pilot.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.current_dir(self.path()).stdin(Stdio::null());
        Ran::from(&command.output().expect("start the pilot"))
    }

    /// Runs a workflow to its end with JSON output.
    ///
    /// # Panics
    /// When the pilot can't be started.
    #[must_use]
    pub fn run(&self, workflow: &str) -> Ran {
        self.run_with(workflow, &[])
    }

    /// As [`Site::run`], with more arguments.
    ///
    /// # Panics
    /// When the pilot can't be started.
    #[must_use]
    pub fn run_with(&self, workflow: &str, more: &[&str]) -> Ran {
        self.write("workflow.yaml", workflow);
        let mut arguments = vec!["run", "workflow.yaml", "--output", "json", "--out", "out"];
        arguments.extend_from_slice(more);
        self.ask(&arguments)
    }

    /// Starts a workflow and returns at once.
    ///
    /// # Panics
    /// When the pilot can't be started.
    #[must_use]
    pub fn start(&self, workflow: &str) -> Child {
        self.write("workflow.yaml", workflow);
        let arguments = ["run", "workflow.yaml", "--output", "json", "--out", "out"];
        self.pilot(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the pilot")
    }

    /// A payload's kept output, `stdout` or `stderr`.
    #[must_use]
    pub fn log(&self, payload: &str, stream: &str) -> String {
        self.read(&format!("out/logs/{payload}.{stream}"))
    }

    /// Waits until a payload has written `text` to its standard output.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_for(&self, payload: &str, text: &str) {
        let came = within(SOON, || self.log(payload, "stdout").contains(text));
        assert!(came, "{payload} never wrote {text:?}: {:?}", self.log(payload, "stdout"));
    }

    /// Fails when anything is left that was not there before: the last line of every test.
    ///
    /// # Panics
    /// When something is left.
    pub fn assert_baseline(&self) {
        // Trees are a cache of the state folder and are meant to stay.
        let _ = std::fs::remove_dir_all(self.path().join("state/trees"));
        let _ = std::fs::remove_dir(self.path().join("state/pilots"));
        let _ = std::fs::remove_dir(self.path().join("scratch/pilots"));
        self.before.assert_unchanged(CGROUPS);
    }
}

fn look(folder: &Path) -> Baseline {
    Baseline::take(&[&folder.join("state"), &folder.join("scratch")], CGROUPS)
}

/// Asks the kernel for a user namespace, as a payload's container would.
fn user_namespaces() -> Result<(), String> {
    #[expect(clippy::disallowed_methods, reason = "asks util-linux")]
    let tried = Command::new("unshare").args(["--user", "--map-root-user", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("no user namespaces: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("unshare(1): {error}")),
    }
}

/// Sends a signal to a process that this test started.
///
/// # Panics
/// When it is gone.
pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("signal the pilot");
}
