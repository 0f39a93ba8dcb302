//! What may be said to the launch in a slot while it runs: signals from the driver, helpers from the pilot's own socket.
//!
//! **Must not know:** who asks, what a slot is made of.

use std::sync::{Mutex, PoisonError};

use image_store::ImageConfig;
use pilot_core::{Signal, SlotId};
use stage::StageName;
use tokio::sync::{mpsc, oneshot};

use super::exec::{ExecRequest, Word};
use super::launching::{hostname, invocation};
use crate::api::{Beside, Companion};
use crate::payload::Payload;

/// Words that may wait for one launch: a Term and a Kill, twice each, and helpers.
const WORDS_MAX: usize = 8;
/// Signals that may wait for one program.
const SIGNALS_MAX: usize = 8;

/// A slot's end of the line to its launch.
#[derive(Debug, Default)]
pub(super) struct Talk {
    open: Mutex<Option<Line>>,
}

#[derive(Debug)]
struct Line {
    words: mpsc::Sender<Word>,
    /// Workflow and name.
    payload: (StageName, StageName),
}

impl Talk {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Line>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the line to a payload that is launched.
    pub(super) fn open(&self, payload: &Payload) -> mpsc::Receiver<Word> {
        let (words, heard) = mpsc::channel(WORDS_MAX);
        *self.lock() = Some(Line { words, payload: (payload.workflow.clone(), payload.name.clone()) });
        heard
    }

    /// Nobody listens any more.
    pub(super) fn close(&self) {
        self.lock().take();
    }

    /// Whether somebody listens.
    pub(super) fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// Passes a signal on.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(Line { words, .. }) = &*self.lock() {
            // Full or closed: the launch has ended or has been told often enough.
            let _ = words.try_send(Word::Signal(signal));
        }
    }

    /// Asks for a program beside the payload, in its environment; see [`crate::api::Control::exec`].
    pub(super) fn exec(
        &self,
        slot: SlotId,
        payload: &Payload,
        image: &ImageConfig,
        program: Beside,
    ) -> Result<Companion, String> {
        let (_, own, cwd) = invocation(payload, image);
        let name = |variable: &[u8]| variable.split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
        let mut env: Vec<Vec<u8>> = own.into_iter().map(String::into_bytes).collect();
        env.push(format!("HOSTNAME={}", hostname(slot)).into_bytes());
        env.retain(|variable| !program.env.iter().any(|given| name(given) == name(variable)));
        env.extend(program.env);
        let (ended, told) = oneshot::channel();
        let (signals, heard) = mpsc::channel(SIGNALS_MAX);
        let request = ExecRequest {
            argv: program.argv,
            env,
            cwd: program.cwd.unwrap_or_else(|| cwd.into_bytes()),
            fds: program.fds,
            ended,
            signals: heard,
        };
        let open = self.lock();
        // Since whoever asks looked, another payload may have come.
        let here =
            open.as_ref().filter(|line| line.payload == (payload.workflow.clone(), payload.name.clone()));
        let words = here
            .map(|line| &line.words)
            .filter(|words| !words.is_closed())
            .ok_or_else(|| format!("{} does not run just now", payload.name))?;
        words
            .try_send(Word::Exec(Box::new(request)))
            .map_err(|_| "too much is asked of this slot at once; try again".to_owned())?;
        Ok(Companion { ended: told, signals: Some(signals) })
    }
}
