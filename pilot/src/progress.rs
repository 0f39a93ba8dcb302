//! What a run tells those who watch it.
//!
//! **Must not know:** who watches, how it is shown.

use std::sync::Arc;

use pilot_core::{ClaimId, Epoch, EventName, Outcome, PhaseName, SlotId};

use crate::payload::Payload;

/// What happened, for whoever shows it.
#[derive(Clone, Debug)]
pub enum Progress {
    /// An image is stored and checked.
    Prepared {
        /// Its reference.
        image: String,
        /// Bytes that had to be brought in.
        bytes: u64,
    },
    /// A payload was launched.
    Started {
        /// Which.
        payload: Arc<Payload>,
        /// Where.
        slot: SlotId,
        /// Its try, from 1.
        attempt: u32,
    },
    /// A claim ended.
    Ended {
        /// Which payload.
        payload: Arc<Payload>,
        /// Its try, from 1.
        attempt: u32,
        /// How.
        outcome: Outcome,
        /// What else there is to say.
        note: Option<String>,
        /// Whether it will be offered again.
        retry: bool,
    },
    /// A payload will never be offered, because another failed.
    Skipped {
        /// Which.
        payload: Arc<Payload>,
        /// Because of which.
        because: Arc<Payload>,
    },
    /// The queue granted claims.
    Claimed {
        /// How many.
        claims: u32,
    },
    /// A slot changed its phase.
    Moved {
        /// Which slot.
        slot: SlotId,
        /// Its epoch after the change.
        epoch: Epoch,
        /// For which claim.
        claim: ClaimId,
        /// From.
        from: PhaseName,
        /// To.
        to: PhaseName,
        /// What changed it.
        event: EventName,
        /// The claim's payload and its try, from 1; `None` when the claim is over.
        payload: Option<(Arc<Payload>, u32)>,
    },
    /// The pilot was told to end: it takes no more work.
    Stopping,
    /// Time passed; for views that show it.
    Tick,
}
