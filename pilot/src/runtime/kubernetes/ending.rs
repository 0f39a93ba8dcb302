//! The end of a payload and of a slot's epoch: outputs committed, traces removed; then the container stays for the next
//! payload, or makes way for the idle image.
//!
//! **Must not know:** why a payload ended, which one comes next.

use std::time::Duration;

use pilot_core::{Drained, Epoch, Fault, FaultClass};
use tokio::time::Instant;
use wire::slot::{FromShim, Nonce, ToShim};

use super::images::salted_idle;
use super::inputs::empty;
use super::live::{Cleaning, Live, Stands};
use super::sizes::paid_by_slot;
use crate::payload::Payload;
use crate::runtime::following::SHIM_WAIT;
use crate::runtime::launching::{Left, lost_clients, slot_fault};

/// How long the API server may be away when the idle image is asked for: less than a try to clean may take.
const ROLL_BACK_WAIT: Duration = Duration::from_secs(15);
/// How long an idle container may take to come: the kubelet's turn, and another slot's pull before it.
const IDLE_WAIT: Duration = Duration::from_secs(25);
/// How long a slot's shim that is to retire may take to be found.
const RETIRE_WAIT: Duration = Duration::from_secs(1);

impl Live {
    /// See [`crate::ports::Runtime::drain`].
    pub(super) async fn drain(&mut self, payload: &Payload, commit: bool) -> Drained {
        self.commit.settle(&self.shared.stages).await;
        if self.runs {
            self.end_payload().await;
        }
        self.shared.stages.leave(payload);
        // Nobody writes any more.
        for stream in self.streams.iter_mut().flatten() {
            stream.finish();
        }
        let made = self.session.take().map(|session| session.end(commit)).unwrap_or_default();
        let outputs = std::mem::take(&mut self.outputs);
        let left = Left { payload, outputs: &outputs, out: &self.folders.out };
        let fault = if commit { lost_clients(self.launched, left, &made) } else { None };
        if !commit || payload.outputs.is_empty() || fault.is_some() {
            self.shared.stages.drop_unfinished(payload, outputs, &made, &self.folders.out);
            return Drained { usage: self.usage, fault };
        }
        if self.shared.serves
            && let Err(error) = std::fs::write(&self.folders.keeping, b"")
        {
            tracing::debug!(slot = %self.slot, %error, "it can't be noted that outputs are being kept");
        }
        self.reveal_outputs(payload).await;
        let paid = paid_by_slot(payload, &made);
        let into = self.shared.share.stages(payload.workflow.as_str(), payload.name.as_str());
        let committed = match into {
            Err(error) => Err(slot_fault(&error)),
            Ok(into) => {
                let places = (self.folders.out.clone(), into);
                self.commit.run(&self.shared.stages, payload, (outputs, made), places).await
            }
        };
        match committed {
            Ok(bytes) => {
                self.usage.output_bytes = bytes;
                self.owed.extend(paid);
                self.retain(payload).await;
                Drained { usage: self.usage, fault: None }
            }
            Err(fault) => Drained { usage: self.usage, fault: Some(fault) },
        }
    }

    /// The launch was given up: its shim ends what runs. One that does not is of no use any more.
    async fn end_payload(&mut self) {
        let ended = async {
            let connection = self.connection.as_ref()?;
            connection.send(&ToShim::Stop { grace_ms: 0 }, &[]).await.ok()?;
            loop {
                match connection.receive().await.ok()?? {
                    FromShim::Exited(_) | FromShim::LaunchRefused { .. } => return Some(()),
                    _ => {}
                }
            }
        };
        match tokio::time::timeout(SHIM_WAIT, ended).await {
            Ok(Some(())) => {}
            gone => (self.stands, self.connection) = (Stands::Broken { gone: gone.is_ok() }, None),
        }
        self.runs = false;
    }

    /// Lets the shim keep what is held in memory, for the pilot that comes after this one.
    async fn retain(&mut self, payload: &Payload) {
        let Some(launch) = self.launched.filter(|_| self.shared.serves && self.reusable) else { return };
        if let Some(connection) = &self.connection {
            self.retaining.retain(&self.shared.stages, connection, launch.id, payload).await;
        }
    }

    /// Asks the shim to clean, once.
    pub(super) async fn begin_clean(&mut self) {
        let Some(connection) = self.connection.as_ref().filter(|_| self.cleaning == Cleaning::No) else {
            return;
        };
        // One that can't be told is found out when its answer does not come.
        let _ = connection.send(&ToShim::Clean, &[]).await;
        self.cleaning = Cleaning::Asked;
    }

    /// See [`crate::ports::Runtime::clean`].
    pub(super) async fn clean(&mut self) -> Result<bool, Fault> {
        self.commit.settle(&self.shared.stages).await;
        if self.runs {
            self.end_payload().await;
        }
        self.outputs.clear();
        self.session = None;
        if self.stands == Stands::Bound && self.clean_warm().await {
            self.usage = pilot_core::Usage::default();
            // A slot of another size is another slot to the next payload.
            return Ok(!self.shrink().await && self.reusable);
        }
        match self.stands {
            Stands::Idle => Ok(false),
            // Nothing of the payload runs; what it left on disk goes with the next shim's first word.
            Stands::Broken { gone: true } => match self.replace(false).await {
                Err(fault) if fault.class == FaultClass::Retry => {
                    // No reason to give the slot up: the next bind changes the image, and cleans, in any case.
                    tracing::debug!(slot = %self.slot, %fault, "the slot keeps its image until it is bound again");
                    Ok(false)
                }
                done => done.map(|()| false),
            },
            Stands::Bound | Stands::Broken { gone: false } => self.replace(true).await.map(|()| false),
        }
    }

    /// Cleans up after a payload and keeps the container; `false` when it can't stay.
    async fn clean_warm(&mut self) -> bool {
        // Given up half-way before: an answer may still be on its way, and would be taken for that to a later question.
        if self.cleaning == Cleaning::Awaited {
            return false;
        }
        self.begin_clean().await;
        self.cleaning = Cleaning::Awaited;
        let Some(connection) = &self.connection else { return false };
        let report = match tokio::time::timeout(SHIM_WAIT, connection.cleaned()).await {
            Ok(Ok(Some(report))) => report,
            other => {
                tracing::debug!(slot = %self.slot, ?other, "the shim did not clean");
                return false;
            }
        };
        self.cleaning = Cleaning::No;
        empty(&self.folders.inputs);
        empty(&self.folders.out);
        let pristine = report.failures == 0 && self.is_pristine();
        if !pristine {
            tracing::debug!(slot = %self.slot, ?report, "the slot can't stay warm");
        }
        pristine
    }

    /// Puts the idle image in the slot; if it must be `sure`, waits until it is there and has cleaned.
    async fn replace(&mut self, sure: bool) -> Result<(), Fault> {
        self.former = self.connection.take();
        self.cleaning = Cleaning::No;
        self.nonce = Nonce::IDLE;
        self.retaining.begin_anew();
        self.write_record(None);
        self.hide_mounts()?;
        let idle = salted_idle(&self.shared.idle_image, Epoch(0));
        let until = Instant::now() + ROLL_BACK_WAIT;
        self.shared.pod.set_image(&self.shape.name, &idle, &Nonce::IDLE.to_hex(), until).await?;
        empty(&self.folders.inputs);
        empty(&self.folders.out);
        if sure {
            self.greet(Nonce::IDLE, Epoch(0), IDLE_WAIT).await?;
            self.folders.renew_markers().map_err(|error| slot_fault(&error))?;
            let report = self.clean_by_shim().await;
            if report.is_none_or(|report| report.failures > 0) || !self.is_pristine() {
                let text = "what a payload left in the slot can't be removed";
                return Err(Fault::new(FaultClass::Slot, text));
            }
        }
        self.stands = Stands::Idle;
        self.shrink().await;
        Ok(())
    }

    /// Tells whoever is PID 1 of the slot to end for good, if that can be done at once.
    pub(super) async fn retire(&mut self) {
        if self.runs {
            self.end_payload().await;
        }
        if self.connection.is_none() {
            let nonce = self.nonce;
            if let Err(fault) = self.greet(nonce, Epoch(0), RETIRE_WAIT).await {
                tracing::debug!(slot = %self.slot, %fault, "nobody is there to retire");
                return;
            }
        }
        if let Some(connection) = self.connection.take() {
            let retired = tokio::time::timeout(SHIM_WAIT, connection.retire()).await;
            tracing::debug!(slot = %self.slot, ok = matches!(retired, Ok(Ok(()))), "told to retire");
        }
        self.stands = Stands::Broken { gone: true };
        if self.shared.serves {
            // A pilot that comes after this one finds nothing to adopt here.
            let _ = std::fs::remove_file(&self.folders.record);
        }
    }
}
