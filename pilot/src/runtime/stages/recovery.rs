//! Stages in files that are found again by the next pilot of this name.
//!
//! **Must not know:** what runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stage::broker::Broker;
use stage::server::Made;
use stage::{StageName, StageUri};

use super::folders::{NOTE, tidy};
use super::{Files, Lies, Stages};
use crate::payload::Payload;

/// One stage as it is noted.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    output: StageName,
    bytes: u64,
    /// It is a folder, whose files have so many bytes together.
    #[serde(default)]
    folder: bool,
    /// It was made in memory.
    #[serde(default)]
    was_memory: bool,
    readers: BTreeSet<StageName>,
}

impl Stages {
    /// Writes down which of a payload's files are held, and for whom. Without it they are made again after a restart.
    pub(super) fn note(&self, payload: &Payload, stages: &Path) {
        self.note_held(&self.lock(), (&payload.workflow, &payload.name), stages);
    }

    /// The same while what is held can't change.
    pub(super) fn note_held(
        &self,
        held: &Files,
        (workflow, payload): (&StageName, &StageName),
        stages: &Path,
    ) {
        let of_it = held.iter().filter(|(uri, lies)| {
            lies.away.is_none() && (&uri.workflow, &uri.payload) == (workflow, payload)
        });
        let known = of_it.map(|(uri, lies)| (uri.clone(), lies.path.is_dir(), lies.was_memory));
        let known: Vec<(StageUri, bool, bool)> = known.collect();
        let noted = move |broker: &mut Broker| -> Vec<Noted> {
            let known = known.into_iter().filter_map(|(uri, folder, was_memory)| {
                let object = broker.ledger().object(&uri)?;
                let (bytes, readers) = (object.bytes, object.readers.clone());
                Some(Noted { output: uri.output, bytes, folder, was_memory, readers })
            });
            known.collect()
        };
        let noted = self.broker.ask(noted).unwrap_or_default();
        if noted.is_empty() {
            return;
        }
        let write = || -> std::io::Result<()> {
            let fresh = stages.join(".held.new");
            std::fs::write(&fresh, serde_json::to_vec(&noted)?)?;
            std::fs::rename(fresh, stages.join(NOTE))
        };
        if let Err(error) = write() {
            tracing::warn!(folder = %stages.display(), %error, "its stages will not survive this pilot");
        }
    }

    /// Finds what an earlier pilot of this name held; removes what it did not finish.
    pub(in crate::runtime) fn recover(&self, root: &Path) {
        for (workflow, folder) in folders(root) {
            for (payload, folder) in folders(&folder) {
                let noted = std::fs::read(folder.join(NOTE)).unwrap_or_default();
                let noted: Vec<Noted> = serde_json::from_slice(&noted).unwrap_or_default();
                for entry in &noted {
                    self.recover_file(&workflow, &payload, entry, &folder);
                }
                let is_held = |name: &str| noted.iter().any(|entry| entry.output.as_str() == name);
                for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                    if !entry.file_name().to_str().is_some_and(|name| name == NOTE || is_held(name)) {
                        let path = entry.path();
                        let _ = std::fs::remove_file(&path).or_else(|_| oci_runner::remove_tree(&path));
                    }
                }
                tidy(&folder);
            }
        }
        self.recover_away();
    }

    fn recover_file(&self, workflow: &StageName, payload: &StageName, noted: &Noted, folder: &Path) {
        let Noted { output, bytes, folder: is_folder, was_memory, readers } = noted;
        let uri = StageUri { workflow: workflow.clone(), payload: payload.clone(), output: output.clone() };
        let there = std::fs::symlink_metadata(folder.join(output.as_str())).is_ok_and(|meta| {
            if *is_folder { meta.is_dir() } else { meta.is_file() && meta.len() == *bytes }
        });
        if !there || readers.is_empty() {
            return;
        }
        let mut held = self.lock();
        let made = if *is_folder { Ok(Made::Folder { bytes: *bytes }) } else { self.made(&uri, *bytes) };
        let Ok(made) = made else { return };
        if let Ok(Ok(true)) = self.broker.insert(&uri, made, readers) {
            let path = folder.join(output.as_str());
            held.insert(uri, Lies { path, was_memory: *was_memory, away: None });
        }
    }
}

/// The folders in a folder whose names can be those of a workflow or payload.
fn folders(root: &Path) -> Vec<(StageName, PathBuf)> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    named
        .filter_map(|entry| {
            let name = StageName::new(entry.file_name().to_str()?).ok()?;
            Some((name, entry.path()))
        })
        .collect()
}
