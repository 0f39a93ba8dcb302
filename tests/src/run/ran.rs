//! What a run of the pilot gave, and what tests ask of it.

use std::os::unix::process::ExitStatusExt;
use std::process::Child;

use serde_json::Value;

use super::Site;

/// What a run of the pilot gave.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; 128 + the signal's number when one ended it.
    pub code: i32,
    /// All of its stdout.
    pub stdout: String,
    /// All of its stderr.
    pub stderr: String,
}

impl Ran {
    pub(crate) fn from(output: &std::process::Output) -> Self {
        let code = output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal));
        Self {
            code: code.unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Waits for a pilot that was started.
    ///
    /// # Panics
    /// When it can't be waited for.
    #[must_use]
    pub fn of(child: Child) -> Self {
        Self::from(&child.wait_with_output().expect("wait for the pilot"))
    }

    /// The JSON objects it printed.
    ///
    /// # Panics
    /// When a line is not JSON.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        self.stdout.lines().map(parse).collect()
    }

    /// All events of one kind about one payload.
    #[must_use]
    pub fn events_of(&self, kind: &str, payload: &str) -> Vec<Value> {
        let of = |event: &Value| event["event"] == kind && event["name"] == payload;
        self.events().into_iter().filter(of).collect()
    }

    /// The last end of a payload, as JSON.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn end_of(&self, payload: &str) -> Value {
        let last = self.events_of("payload_ended", payload).pop();
        last.unwrap_or_else(|| panic!("{payload} has no end in\n{}\n{}", self.stdout, self.stderr))
    }

    /// How a payload's last try ended, in words.
    ///
    /// # Panics
    /// When it has no end.
    #[must_use]
    pub fn outcome(&self, payload: &str) -> String {
        self.end_of(payload)["outcome"].as_str().expect("outcome").to_owned()
    }

    /// A payload's row in the closing summary.
    ///
    /// # Panics
    /// When there is none, or the summary is not the last event.
    #[must_use]
    pub fn row(&self, payload: &str) -> Value {
        let events = self.events();
        let summary = events.last().filter(|event| event["event"] == "summary");
        let rows = summary.and_then(|summary| summary["rows"].as_array());
        let row = rows.and_then(|rows| rows.iter().find(|row| row["name"] == payload));
        row.unwrap_or_else(|| panic!("{payload} is not in the summary\n{}\n{}", self.stdout, self.stderr))
            .clone()
    }

    /// Fails unless this payload succeeded.
    ///
    /// # Panics
    /// Then.
    pub fn assert_done(&self, payload: &str) {
        assert_eq!(self.row(payload)["state"], "done", "{payload}:\n{}\n{}", self.stdout, self.stderr);
    }

    /// Fails unless this payload failed for good, in words that hold all of `words`, and in one line.
    ///
    /// # Panics
    /// Then.
    pub fn assert_failed(&self, payload: &str, words: &[&str]) {
        assert_eq!(self.row(payload)["state"], "failed", "{payload}:\n{}\n{}", self.stdout, self.stderr);
        let outcome = self.outcome(payload);
        assert_eq!(self.end_of(payload)["ok"], false, "{payload}: {outcome}");
        assert!(!outcome.contains('\n'), "{payload} needs more than a line: {outcome:?}");
        for word in words {
            assert!(outcome.contains(word), "{payload}: no {word:?} in {outcome:?}\n{}", self.stderr);
        }
    }

    /// Fails unless the neighbour `good` ran to its end and its output was saved in `site`.
    ///
    /// # Panics
    /// Then.
    pub fn assert_good(&self, site: &Site) {
        self.assert_done("good");
        assert_eq!(site.log("good", "stdout"), "fine\n");
        assert_eq!(site.read("out/good.txt"), "data\n");
    }

    /// Fails unless the pilot ended with this code.
    ///
    /// # Panics
    /// Then.
    pub fn assert_code(&self, code: i32) {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
    }
}
