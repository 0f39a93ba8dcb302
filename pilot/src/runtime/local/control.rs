//! What the pilot's own socket may ask of the slots: a program beside a payload, memory in use, the stages that are held.
//!
//! **Must not know:** sockets, who asks.

use std::sync::PoisonError;

use oci_runner::cgroup::cgroup_name;
use pilot_core::SlotId;
use tokio::sync::{mpsc, oneshot};
use wire::pilot::StageRow;

use super::LocalRuntime;
use super::launch::{hostname, invocation};
use crate::api::{Beside, Companion, Control};
use crate::payload::Payload;
use crate::runtime::exec::{ExecRequest, Word};

/// Signals that may wait for one program.
const SIGNALS_MAX: usize = 8;

impl Control for LocalRuntime {
    fn exec(&self, slot: SlotId, payload: &Payload, program: Beside) -> Result<Companion, String> {
        let none = || format!("{} does not run just now", payload.name);
        let here = self.slot(slot).map_err(|fault| fault.to_string())?;
        let image = self.shared.images.stored(payload).map_err(|fault| fault.to_string())?;
        let (_, own, cwd) = invocation(payload, &image);
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
        let talk = here.talk.lock().unwrap_or_else(PoisonError::into_inner);
        // Since whoever asks looked, another payload may have come.
        let here_now =
            talk.as_ref().filter(|talk| talk.payload == (payload.workflow.clone(), payload.name.clone()));
        let sender =
            here_now.map(|talk| &talk.words).filter(|sender| !sender.is_closed()).ok_or_else(none)?;
        sender
            .try_send(Word::Exec(Box::new(request)))
            .map_err(|_| "too much is asked of this slot at once; try again".to_owned())?;
        Ok(Companion { ended: told, signals: Some(signals) })
    }

    fn memory_bytes(&self, slot: SlotId) -> Option<u64> {
        let talk = self.slot(slot).ok()?.talk.lock().unwrap_or_else(PoisonError::into_inner);
        talk.as_ref()?;
        drop(talk);
        let name = cgroup_name(self.shared.folders.id(), slot.0);
        self.shared.cgroups.memory_bytes(&name)
    }

    fn stages(&self) -> Vec<StageRow> {
        let rows = self.shared.stages.list();
        rows.into_iter().map(|(stage, bytes)| StageRow { stage: stage.to_string(), bytes }).collect()
    }
}
