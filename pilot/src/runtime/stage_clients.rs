//! The stage broker's socket of a slot: what its payload may make and read through a client library, from its launch until
//! none of its processes is left.
//!
//! The socket lies among the inputs, in a folder that this slot alone has mounted. It is mounted read-only, which does not
//! matter: connecting writes nothing.
//!
//! **Must not know:** how a slot mounts that folder, how a payload ended.

use std::path::Path;
use std::sync::Arc;

use pilot_core::{Fault, FaultClass};
use stage::Class;
use stage::broker::{Ended, Grant, GrantInput, GrantOutput, SessionId};
use wire::stage::ROWS_MAX;

use super::launching::slot_fault;
use super::slots::listen;
use super::stages::Stages;
use crate::fault::chain;
use crate::payload::{Payload, Source, StageClass};

/// Where a payload finds the socket, and its name in the folder of inputs: no input can have it.
pub(super) const SOCKET: &str = "/.latebind/in/.stage";
const NAME: &str = ".stage";
/// Connections that wait to be taken: as many as a payload may have.
const BACKLOG: i32 = 64;

/// A payload's right to make and read stages. Dropped, it ends, and so does what clients made.
#[derive(Debug)]
pub(super) struct ClientSession {
    stages: Arc<Stages>,
    id: SessionId,
}

impl ClientSession {
    /// Listens in the folder of a slot's inputs for the payload that is about to be launched there. `None` when a client
    /// would find nothing to do, or more than fits a message of its protocol.
    pub(super) fn open(
        stages: &Arc<Stages>,
        payload: &Payload,
        inputs: &Path,
    ) -> Result<Option<Self>, Fault> {
        let grant = grant(payload);
        let (made, read) = (grant.outputs.len(), grant.inputs.len());
        if made + read == 0 || made > ROWS_MAX || read > ROWS_MAX {
            return Ok(None);
        }
        // That of a payload before, where nobody has cleaned since.
        let _ = std::fs::remove_file(inputs.join(NAME));
        let listener = listen(inputs, NAME, BACKLOG).map_err(|error| {
            Fault::new(FaultClass::Slot, format!("listen for the payload's stage clients: {error}"))
        })?;
        let id = stages.broker.open_session(listener, grant).map_err(|error| slot_fault(&error))?;
        Ok(Some(Self { stages: Arc::clone(stages), id }))
    }

    /// As [`ClientSession::open`], for a payload that an earlier life of this pilot launched and that still runs. Its clients have
    /// lost their connections; they find this session where the other one was. All that shims have kept must have been taken
    /// back before: what is not there by now, clients are told is gone.
    pub(super) fn resume(stages: &Arc<Stages>, payload: &Payload, inputs: &Path) -> Option<Self> {
        let session = match Self::open(stages, payload, inputs) {
            Ok(session) => session?,
            Err(fault) => {
                tracing::warn!(payload = %payload.name, %fault, "its stage clients find no pilot");
                return None;
            }
        };
        stages.hold_again(payload, session.id);
        Some(session)
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    /// No process of the payload is left. What clients committed stays if `keep`.
    pub(super) fn end(self, keep: bool) -> Ended {
        self.stages.broker.end_session(self.id, keep).unwrap_or_default()
    }
}

impl Drop for ClientSession {
    fn drop(&mut self) {
        // After an end there is nothing to end.
        if let Err(error) = self.stages.broker.end_session(self.id, false) {
            tracing::debug!(error = chain(&error), "a payload's stage session was not ended");
        }
    }
}

/// Files are made by path, and what lies on the host, or came from elsewhere, is no stage.
fn grant(payload: &Payload) -> Grant {
    let outputs = payload.outputs.iter().filter_map(|output| {
        let class = match output.class {
            StageClass::File | StageClass::Folder | StageClass::Pipe | StageClass::Shared => return None,
            StageClass::Memory => Class::Mem,
            StageClass::Value => Class::Value,
        };
        let readers = output.readers.clone();
        Some(GrantOutput { name: output.name.clone(), class, max_bytes: output.max_bytes, readers })
    });
    let inputs = payload.inputs.iter().filter_map(|input| match &input.source {
        Source::Host(_) | Source::Object(_) => None,
        // What passes within a gang is no stage.
        Source::Stage(uri) if payload.gang.contains(&uri.payload) => None,
        Source::Stage(uri) => Some(GrantInput { name: input.name.clone(), uri: uri.clone(), live: false }),
    });
    Grant {
        workflow: payload.workflow.clone(),
        payload: payload.name.clone(),
        outputs: outputs.collect(),
        inputs: inputs.collect(),
    }
}
