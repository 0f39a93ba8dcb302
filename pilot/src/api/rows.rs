//! From a board to the rows of a status.
//!
//! **Must not know:** who asks.

use std::time::Duration;

use pilot_core::{PhaseName, SlotId};
use wire::pilot::{
    EndingCount, FromPilot, ImageRow, PilotRow, SlotPayload, SlotPhase, SlotRow, StageRow, TEXT_BYTES_MAX,
};

use super::Control;
use crate::board::{Board, LiveBoard, Seat};

/// Most stages in one status.
const STAGES_MAX: usize = 1024;

/// Everything but the `End`.
pub(super) fn status<C: Control>(board: &LiveBoard, control: &C) -> Vec<FromPilot> {
    let mut rows = board.read(|at, board| {
        let mut rows = vec![FromPilot::Pilot(pilot(at, board))];
        rows.extend((0..).zip(board.seats()).map(|(slot, seat)| FromPilot::Slot(seat_row(at, slot, seat))));
        rows.extend(board.images().iter().map(|(image, used)| {
            FromPilot::Image(ImageRow {
                image: short(image),
                brought_bytes: used.brought_bytes,
                launches: used.launches,
            })
        }));
        rows
    });
    // The board's lock is free again: asking the kernel may take its time.
    for row in &mut rows {
        if let FromPilot::Slot(row) = row
            && row.payload.is_some()
        {
            row.memory_bytes = control.memory_bytes(SlotId(row.slot));
        }
    }
    let stages = control.stages().into_iter().take(STAGES_MAX);
    rows.extend(stages.map(|row| FromPilot::Stage(StageRow { stage: short(&row.stage), ..row })));
    rows
}

fn pilot(at: Duration, board: &Board) -> PilotRow {
    let (identity, totals, held) = (board.identity(), board.totals(), board.stages());
    let ended = totals.ended.iter().map(|((conclusion, cause), count)| EndingCount {
        conclusion: (*conclusion).to_owned(),
        cause: (*cause).to_owned(),
        count: *count,
    });
    PilotRow {
        name: short(&identity.name),
        age_ms: millis(at),
        ready: board.ready(),
        slots: identity.slots,
        cpu_millis: identity.cpu_millis,
        memory_bytes: identity.memory_bytes,
        claims: totals.claims,
        ended: ended.collect(),
        retries: totals.retries,
        skipped: totals.skipped,
        cold_starts: totals.cold_starts,
        warm_starts: totals.warm_starts,
        adopted: totals.adopted,
        images: totals.images,
        image_bytes: totals.image_bytes,
        stages: held.stages,
        stage_bytes: held.bytes,
    }
}

fn seat_row(at: Duration, slot: u32, seat: &Seat) -> SlotRow {
    let payload = seat.payload.as_ref().map(|(payload, attempt)| SlotPayload {
        workflow: payload.workflow.to_string(),
        name: payload.name.to_string(),
        image: short(&payload.image),
        attempt: *attempt,
        cpu_millis: payload.resources.cpu_millis,
        memory_limit_bytes: payload.memory_bytes(),
    });
    SlotRow {
        slot,
        epoch: seat.epoch.0,
        phase: phase(seat.phase),
        since_ms: millis(at.saturating_sub(seat.since)),
        payload,
        memory_bytes: None,
    }
}

const fn phase(name: PhaseName) -> SlotPhase {
    match name {
        PhaseName::Idle => SlotPhase::Idle,
        PhaseName::Binding => SlotPhase::Binding,
        PhaseName::Bound => SlotPhase::Bound,
        PhaseName::Running => SlotPhase::Running,
        PhaseName::Draining => SlotPhase::Draining,
        PhaseName::Cleaning => SlotPhase::Cleaning,
        PhaseName::Retired => SlotPhase::Retired,
    }
}

/// What fits in a row's text, without what can't be in it.
pub(super) fn short(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    text.get(..end).unwrap_or_default().replace('\0', " ")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
