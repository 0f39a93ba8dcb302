//! A client that watches: `kubectl get --watch`, each line with the moment at which it came.
//!
//! **Must not know:** why.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::{Context, ensure};
use pilot_tests::kube::Namespace;

use crate::clock::now_ns;
use crate::peers::command;

/// Longest wait for a word.
const PATIENCE: Duration = Duration::from_secs(120);
/// Lines that wait to be looked at.
const LINES: usize = 100_000;

/// The watch; ends when dropped.
#[derive(Debug)]
pub(super) struct Watch {
    child: Child,
    lines: Receiver<(u64, String)>,
}

impl Watch {
    /// Watches objects of `kind`; `words` is what is told of each, as kubectl's jsonpath: its name first.
    pub(super) fn new(namespace: &Namespace, kind: &str, words: &str) -> anyhow::Result<Self> {
        let node = namespace.node();
        let mut kubectl = command(node.program("kubectl"));
        kubectl.arg("--kubeconfig").arg(node.state().join("kubeconfig"));
        kubectl.arg("--cache-dir").arg(node.state().join("kubectl-cache"));
        kubectl.args(["-n", namespace.name(), "get", kind, "--watch", "-o"]);
        kubectl.arg(format!("jsonpath={words}{{\"\\n\"}}"));
        let mut child = kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().context("its output")?;
        let (send, lines) = sync_channel(LINES);
        // It ends with kubectl, whose output it reads.
        let _reader = std::thread::Builder::new().name("watch".into()).spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send((now_ns(), line)).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { child, lines })
    }

    /// The moment at which `word` was told of the object `name`; what was told before is gone.
    pub(super) fn until(&self, name: &str, word: &str) -> anyhow::Result<u64> {
        Ok(self.until_any(&[name.to_owned()], word)?.0)
    }

    /// The same for the first of several, and which one it is.
    pub(super) fn until_any(&self, names: &[String], word: &str) -> anyhow::Result<(u64, String)> {
        loop {
            let told = self.lines.recv_timeout(PATIENCE);
            let (at, line) = told.with_context(|| format!("{word} was not told of {names:?}"))?;
            let mut words = line.split(' ');
            let Some(name) = words.next().and_then(|name| names.iter().find(|other| *other == name)) else {
                continue;
            };
            let words: Vec<&str> = words.collect();
            ensure!(!words.contains(&"Failed"), "{line}");
            if words.contains(&word) {
                return Ok((at, name.clone()));
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
