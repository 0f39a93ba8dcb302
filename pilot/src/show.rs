//! From what the driver says to what is shown: names, figures, words.
//!
//! **Must not know:** how it is drawn, what is decided.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pilot_core::{Conclusion, Outcome, Usage};

use crate::driver::Progress;
use crate::payload::Payload;
use crate::ports::StageFigures;
use crate::queue::workflow::{Standing, WorkflowQueue};
use crate::ui::{Figures, Reporter, RowState, Saved, Summary, SummaryRow, UiEvent};
use crate::workflow::Plan;

/// Feeds a [`Reporter`].
#[derive(Debug)]
pub struct Show {
    reporter: Reporter,
    workflow: String,
    /// Image as in the file, by payload.
    images: Vec<String>,
    /// Array of each payload.
    arrays: Vec<Option<String>>,
    logs: PathBuf,
    /// Words of the last end, by payload.
    ends: BTreeMap<String, String>,
}

impl Show {
    /// Shows this plan's run.
    #[must_use]
    pub fn new(reporter: Reporter, plan: &Plan, logs: PathBuf) -> Self {
        let array = |payload: &crate::workflow::PlannedPayload| {
            payload.element.is_some().then(|| payload.spec.name.clone())
        };
        Self {
            reporter,
            workflow: plan.workflow.clone(),
            images: plan.payloads.iter().map(|payload| payload.spec.image.clone()).collect(),
            arrays: plan.payloads.iter().map(array).collect(),
            logs,
            ends: BTreeMap::new(),
        }
    }

    fn tell(&mut self, at: Duration, event: &UiEvent) {
        // Whoever closed our output does not want to hear of it; the payloads go on.
        let _ = self.reporter.report(millis(at), event);
    }

    /// The workflow was accepted.
    pub fn started(&mut self) {
        let total = self.images.len() as u64;
        let event = UiEvent::WorkflowStarted { workflow: self.workflow.clone(), total };
        self.tell(Duration::ZERO, &event);
    }

    /// Something worth knowing from the start.
    pub fn note(&mut self, text: String) {
        self.tell(Duration::ZERO, &UiEvent::Note { text });
    }

    /// Something happened.
    pub fn progress(&mut self, at: Duration, progress: Progress) {
        let event = match progress {
            Progress::Tick => {
                let _ = self.reporter.tick(millis(at));
                return;
            }
            // For boards, which show slots and not a workflow.
            Progress::Claimed { .. } | Progress::Moved { .. } | Progress::Stopping => return,
            Progress::Prepared { image, bytes } => UiEvent::Prepared { image, bytes },
            Progress::Started { payload, slot, attempt } => {
                UiEvent::PayloadStarted { name: payload.name.to_string(), slot: slot.0, attempt }
            }
            Progress::Ended { payload, attempt, outcome, note, retry } => {
                let words = words(&outcome, note.as_deref());
                let name = payload.name.to_string();
                self.ends.insert(name.clone(), words.clone());
                let ok = outcome.is_success();
                let (because, figures) = (culprit(&outcome), figures(&outcome.usage));
                UiEvent::PayloadEnded { name, attempt, ok, retry, outcome: words, because, figures }
            }
            Progress::Skipped { payload, because } => {
                let reason = format!("{} failed", because.name);
                self.ends.insert(payload.name.to_string(), format!("not started: {reason}"));
                UiEvent::PayloadSkipped { name: payload.name.to_string(), reason }
            }
        };
        self.tell(at, &event);
    }

    /// The end. Payloads in the order of the plan.
    pub fn summary(&mut self, at: Duration, ends: impl IntoIterator<Item = End>, stages: StageFigures) {
        let mut summary = Summary {
            workflow: self.workflow.clone(),
            wall_ms: millis(at),
            rows: Vec::new(),
            saved: Vec::new(),
            stages,
        };
        for (index, End { payload, state, tries, outcome }) in ends.into_iter().enumerate() {
            let name = payload.name.to_string();
            let log = self.logs.join(format!("{name}.stderr"));
            if state == RowState::Done {
                summary.saved.extend(saved(&payload));
            }
            summary.rows.push(SummaryRow {
                array: self.arrays.get(index).cloned().flatten(),
                state,
                tries,
                outcome: self.ends.get(&name).cloned().unwrap_or_else(|| "not started".to_owned()),
                figures: outcome.map(|outcome| figures(&outcome.usage)).unwrap_or_default(),
                image: self.images.get(index).cloned().unwrap_or_default(),
                log: log.exists().then(|| log.display().to_string()),
                name,
            });
        }
        self.tell(at, &UiEvent::Summary(summary));
    }
}

/// How a payload ended.
#[derive(Clone, Debug)]
pub struct End {
    /// Which.
    pub payload: Arc<Payload>,
    /// How it stands.
    pub state: RowState,
    /// How often it was started.
    pub tries: u32,
    /// Of the last try.
    pub outcome: Option<Outcome>,
}

/// How the payloads of a queue stand.
pub fn ends(queue: &WorkflowQueue) -> impl Iterator<Item = End> + '_ {
    queue.entries().iter().enumerate().filter_map(|(index, entry)| {
        let (standing, tries, outcome) = queue.standing(index)?;
        let state = match standing {
            Standing::Succeeded => RowState::Done,
            Standing::Failed => RowState::Failed,
            Standing::Waiting | Standing::Ready { .. } | Standing::Claimed(_) | Standing::Skipped { .. } => {
                RowState::NotRun
            }
        };
        Some(End { payload: Arc::clone(&entry.payload), state, tries, outcome })
    })
}

fn saved(payload: &Payload) -> impl Iterator<Item = Saved> + '_ {
    payload.outputs.iter().filter_map(|output| {
        let path = output.save.as_ref()?.file()?;
        let bytes = bytes_of(path).ok()?;
        let stage = format!("stage://{}/{}/{}", payload.workflow, payload.name, output.name);
        Some(Saved { stage, path: path.display().to_string(), bytes })
    })
}

/// What a file has, or all files in a folder.
fn bytes_of(path: &Path) -> std::io::Result<u64> {
    let meta = std::fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    std::fs::read_dir(path)?.map(|entry| bytes_of(&entry?.path())).sum()
}

/// The payload of its gang that did not succeed, where that ended one.
pub(crate) fn culprit(outcome: &Outcome) -> Option<String> {
    match &outcome.conclusion {
        Conclusion::GangFailed(culprit) => Some(culprit.to_string()),
        Conclusion::Succeeded
        | Conclusion::Exited(_)
        | Conclusion::Stopped(_)
        | Conclusion::Failed(_)
        | Conclusion::Lost => None,
    }
}

/// How a payload ended, in one line.
pub(crate) fn words(outcome: &Outcome, note: Option<&str>) -> String {
    let mut text = match &outcome.conclusion {
        Conclusion::Stopped(cause) => match outcome.status {
            Some(status) if !status.is_success() => format!("{cause} ({status})"),
            _ => cause.to_string(),
        },
        other => other.to_string(),
    };
    if let Some(note) = note {
        text.push_str("; ");
        text.push_str(note);
    }
    text
}

pub(crate) fn figures(usage: &Usage) -> Figures {
    if *usage == Usage::default() {
        return Figures::default();
    }
    Figures {
        wall_ms: Some(usage.wall_us / 1000),
        cpu_ms: Some((usage.user_us + usage.system_us) / 1000),
        // Without a cgroup the largest process is the best there is to say.
        memory_peak_bytes: usage.memory_peak_bytes.or(Some(usage.max_rss_kib * 1024)),
    }
}

fn millis(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}
