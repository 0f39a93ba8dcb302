//! The `pilot` program itself, with folders of its own: what a user types, timed from outside.
//!
//! **Must not know:** what is measured.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::clock::{now_ns, span_ms};
use crate::ground::Ground;
use crate::peers::command;

/// Processors of every pilot that is measured here, and its slots if not said otherwise.
pub const PROCESSORS: u32 = 2;

/// One set of folders.
#[derive(Debug)]
pub struct Site {
    pilot: PathBuf,
    shim: PathBuf,
    folder: PathBuf,
    state: PathBuf,
    slots: u32,
}

impl Site {
    /// Makes the folders, below `ground` and named `name`.
    ///
    /// # Errors
    /// When they can't be made.
    pub fn new(ground: &Ground, name: &str) -> anyhow::Result<Self> {
        let folder = ground.path(name);
        fs::create_dir_all(&folder)?;
        let (pilot, shim) = (ground.pilot(), ground.shim().to_path_buf());
        Ok(Self { pilot, shim, folder, state: ground.memory().join(name), slots: PROCESSORS })
    }

    /// The same folders, for a pilot with `slots`; its payloads share the processors.
    #[must_use]
    pub fn with_slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// A path in its folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `pilot` with `arguments` and all settings; nothing of the caller's environment counts.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(&self.pilot);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &self.folder).current_dir(&self.folder);
        command.args(arguments).arg("--store").arg(self.path("store")).arg("--state-dir").arg(&self.state);
        command.arg("--scratch-dir").arg(self.path("scratch")).arg("--shim").arg(&self.shim);
        command.arg("--slots").arg(self.slots.to_string()).arg("--cpu").arg(PROCESSORS.to_string());
        command.stdin(Stdio::null());
        command
    }

    /// Runs `pilot` with `arguments` to its end; gives the seconds that it took.
    ///
    /// # Errors
    /// When it fails; the text has what it said last.
    pub fn seconds(&self, arguments: &[&str]) -> anyhow::Result<f64> {
        let mut command = self.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let began = now_ns();
        let output = command.output().with_context(|| format!("start {}", self.pilot.display()))?;
        let took = span_ms(began, now_ns()) / 1e3;
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        ensure!(output.status.success(), "pilot {arguments:?}: {}: {last}", output.status);
        Ok(took)
    }

    /// A workflow file: an array of `count` payloads of `program` in `image`.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn workflow(&self, image: &str, program: &str, count: u32) -> anyhow::Result<String> {
        let cpu = PROCESSORS * 1000 / self.slots;
        let text = format!(
            "apiVersion: latebind/v1\nmetadata: {{name: bench}}\npayloads:\n  - name: p\n    image: {image}\n    \
             command: [{program}]\n    count: {count}\n    resources: {{cpu: {cpu}m, memory: 64Mi}}\n"
        );
        self.write(&format!("array-{count}-{cpu}.yaml"), &text)
    }

    /// The same, each payload written out.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn long_workflow(&self, image: &str, program: &str, count: u32) -> anyhow::Result<String> {
        let mut text = format!(
            "apiVersion: latebind/v1\nmetadata: {{name: bench}}\ndefaults: {{image: {image}}}\npayloads:\n"
        );
        for index in 0..count {
            text.push_str(&format!("  - name: p{index}\n    command: [{program}, \"{index}\"]\n"));
        }
        self.write(&format!("long-{count}.yaml"), &text)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.path(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// `pilot serve` on the spool at `spool`, telling its events as JSON.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn serve(&self, spool: &str, more: &[&str]) -> anyhow::Result<Served> {
        let mut command = self.command(&["serve", "--output", "json", "--spool", spool]);
        let mut child = command.args(more).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().context("its output")?;
        Ok(Served { child, lines: BufReader::new(stdout).lines() })
    }
}

/// A pilot that serves; killed when dropped.
#[derive(Debug)]
pub struct Served {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Served {
    /// Reads events until `count` payloads have ended; gives the moment of the last one, on [`now_ns`]'s clock.
    ///
    /// # Errors
    /// When the pilot ends before, or a payload fails.
    pub fn until_ended(&mut self, count: u32) -> anyhow::Result<u64> {
        let mut left = count;
        while left > 0 {
            let line = self.lines.next().context("the pilot ended early")??;
            if line.contains("\"payload_ended\"") {
                ensure!(line.contains("\"ok\":true"), "a payload failed: {line}");
                left -= 1;
            }
        }
        Ok(now_ns())
    }

    /// Reads its first line: it serves.
    ///
    /// # Errors
    /// When it ended instead.
    pub fn until_serving(&mut self) -> anyhow::Result<()> {
        let line = self.lines.next().context("the pilot did not start")??;
        ensure!(line.contains("\"serving\""), "it said {line}");
        Ok(())
    }

    /// As [`kib`], of this pilot.
    ///
    /// # Errors
    /// When there is none.
    pub fn kib(&self, file: &str, key: &str) -> anyhow::Result<f64> {
        kib(self.child.id(), file, key)
    }

    /// As [`cpu_ms`], of this pilot.
    ///
    /// # Errors
    /// When /proc can't be read.
    pub fn cpu_ms(&self) -> anyhow::Result<f64> {
        cpu_ms(self.child.id())
    }

    /// Tells it to stop and waits for its end.
    ///
    /// # Errors
    /// When it can't be told.
    pub fn stop(mut self) -> anyhow::Result<()> {
        // A pilot must not wait for someone to read its last events.
        self.signal(Signal::TERM)?;
        while let Some(Ok(_)) = self.lines.next() {}
        self.child.wait()?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("its pid")?;
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Already waited for: then neither does anything.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of one of a process' files in /proc that is `KEY: NUMBER kB`, in KiB.
///
/// # Errors
/// When there is none.
pub fn kib(pid: u32, file: &str, key: &str) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = value.and_then(|value| value.trim().split(' ').next()?.parse().ok());
    number.with_context(|| format!("{key} in {path}"))
}

/// Processor time of all threads of a process that live, in milliseconds (`schedstat`, to the nanosecond).
///
/// # Errors
/// When /proc can't be read.
pub fn cpu_ms(pid: u32) -> anyhow::Result<f64> {
    let mut sum_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        sum_ns += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(span_ms(0, sum_ns))
}

/// Removes a spool with all that belongs to it, so that the next one of this path is new.
///
/// # Errors
/// When something can't be removed.
pub fn forget_spool(spool: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(spool) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
