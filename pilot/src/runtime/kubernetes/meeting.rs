//! Meeting a slot's shim: the one of a container that was just asked for, or whoever is there.
//!
//! **Must not know:** what is launched, why a slot is bound.

use std::time::Duration;

use pilot_core::{Epoch, Fault, FaultClass};
use tokio::time::Instant;
use wire::slot::{Nonce, ShimState, ToShim};
use wire::version::PROTOCOL;

use super::live::Live;
use super::view;
use crate::runtime::launching::slot_fault;
use crate::runtime::slots::{Caller, Connection, SlotListener};

/// When the API is asked why no Hello comes: a bad image shows after a second, and a long pull is no reason to ask often.
const LOOKS: [Duration; 4] =
    [Duration::from_millis(1500), Duration::from_secs(12), Duration::from_secs(30), Duration::from_secs(60)];
/// How long the kubelet may go on saying what is not true any more.
const DOUBT: Duration = Duration::from_secs(3);

impl Live {
    /// Makes the slot's socket, once.
    pub(super) fn listen(&mut self) -> Result<(), Fault> {
        if self.listener.is_none() {
            // That of a pilot that was here before.
            let _ = std::fs::remove_file(self.folders.control.join("sock"));
            let listener = SlotListener::bind(&self.folders.control).map_err(|error| slot_fault(&error))?;
            self.listener = Some(listener);
        }
        Ok(())
    }

    /// Waits for the shim of the container that was asked for, and asks the API now and then why it does not come.
    pub(super) async fn until_met(&self, reference: &str) -> Result<Connection, Fault> {
        let listener = self.listener.as_ref().ok_or_else(|| slot_fault(&ShimGone))?;
        let nonces = [self.nonce];
        let met = listener.accept_any(&nonces);
        tokio::pin!(met);
        let began = Instant::now();
        let mut doubted = false;
        for look in 0.. {
            let after = LOOKS.get(look).copied().unwrap_or_else(|| LOOKS[LOOKS.len() - 1] * look as u32);
            tokio::select! {
                caller = &mut met => {
                    return caller.map(|Caller { connection, .. }| connection).map_err(|error| slot_fault(&error));
                }
                () = tokio::time::sleep_until(began + after) => {}
            }
            // An API server that is away says nothing of the image.
            let pod = self.shared.pod.look().await.ok();
            let Some(pod) = pod else { continue };
            let Some(fault) = view::trouble(&pod, &self.shape.name, reference) else { continue };
            if doubted || view::names(&pod, &self.shape.name, reference) {
                return Err(fault);
            }
            // It may be said of a container before this one: then it will not be said for long.
            doubted = true;
            if let Ok(caller) = tokio::time::timeout(DOUBT, &mut met).await {
                return caller
                    .map(|Caller { connection, .. }| connection)
                    .map_err(|error| slot_fault(&error));
            }
            if let Ok(pod) = self.shared.pod.look().await
                && let Some(fault) = view::trouble(&pod, &self.shape.name, reference)
            {
                return Err(fault);
            }
        }
        Err(slot_fault(&ShimGone))
    }

    /// Takes a proven connection.
    pub(super) async fn welcome(&mut self, connection: Connection, epoch: Epoch) -> Result<(), Fault> {
        let orphan_grace_ms = self.shared.orphan_grace_ms;
        let welcome = ToShim::Welcome { protocol: PROTOCOL, epoch: epoch.0, orphan_grace_ms };
        connection.send(&welcome, &[]).await.map_err(|error| slot_fault(&error))?;
        self.connection = Some(connection);
        Ok(())
    }

    /// Waits for a shim that proves itself with `nonce`, or for an idle one.
    pub(super) async fn greet(
        &mut self,
        nonce: Nonce,
        epoch: Epoch,
        wait: Duration,
    ) -> Result<(Nonce, ShimState), Fault> {
        self.listen()?;
        let listener = self.listener.as_ref().ok_or_else(|| slot_fault(&ShimGone))?;
        let met = tokio::time::timeout(wait, listener.accept_any(&[nonce, Nonce::IDLE])).await;
        let caller = met
            .map_err(|_| Fault::new(FaultClass::Slot, "the slot's shim did not say hello"))?
            .map_err(|error| slot_fault(&error))?;
        self.welcome(caller.connection, epoch).await?;
        Ok((caller.nonce, caller.state))
    }
}

/// A shim that was there and is not any more.
#[derive(Debug, thiserror::Error)]
#[error("talk to the slot's shim: it has gone")]
pub(super) struct ShimGone;
