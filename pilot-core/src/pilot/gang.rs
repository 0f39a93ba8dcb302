//! Books about gangs: which claims belong together, which of them have ended, and what their ends amount to.
//!
//! The end of a member is kept until all have ended, because only then it is known whether it counts: a gang succeeds as a
//! whole or not at all. Leases of members that have ended are renewed meanwhile, as those of others are.
//!
//! It must not know of slots, nor when a gang is started or stopped.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::waiting::renew_if_due;
use super::{Outputs, ReleaseWhy};
use crate::claim::{Claim, ClaimId, GangId, Lease};
use crate::outcome::{Conclusion, Fault, FaultClass, Outcome, StopCause};
use crate::time::Moment;

/// All gangs that are not over.
#[derive(Clone, Debug, Default)]
pub(super) struct Gangs {
    known: BTreeMap<GangId, Ring>,
    of: BTreeMap<ClaimId, GangId>,
}

/// One gang.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    pub(super) size: usize,
    pub(super) members: Vec<Member>,
    /// A member did not succeed, so that the others must end.
    pub(super) broken: bool,
    /// The first member that did not.
    culprit: Option<Arc<str>>,
}

/// One claim of a gang.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) claim: ClaimId,
    name: Arc<str>,
    /// Its user does not want it any more.
    cancelled: bool,
    end: Option<End>,
}

#[derive(Clone, Debug)]
struct End {
    /// Still held, so that the end can be told.
    lease: Option<Lease>,
    how: How,
}

/// How a claim would end if it were for itself.
#[derive(Clone, Debug)]
pub(super) enum How {
    Report(Outcome),
    Release(ReleaseWhy),
}

/// What is said about a gang that is over.
#[derive(Debug)]
pub(super) enum Sentence {
    /// Nobody is to blame, and nothing has run.
    Release(Vec<(ClaimId, ReleaseWhy)>),
    Report(Vec<(ClaimId, Option<Lease>, Outcome)>),
}

impl Gangs {
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub(super) fn ids(&self) -> Vec<GangId> {
        self.known.keys().copied().collect()
    }

    pub(super) fn ring(&self, gang: GangId) -> Option<&Ring> {
        self.known.get(&gang)
    }

    pub(super) fn gang_of(&self, claim: ClaimId) -> Option<GangId> {
        self.of.get(&claim).copied()
    }

    /// Takes note of a claim, if it belongs to a gang.
    pub(super) fn join(&mut self, claim: &Claim) {
        let Some(gang) = claim.gang else { return };
        let size = usize::try_from(gang.size).unwrap_or(usize::MAX);
        let fresh = || Ring { size, members: Vec::new(), broken: false, culprit: None };
        let name = claim.payload.name.clone();
        let member = Member { claim: claim.id, name, cancelled: false, end: None };
        self.known.entry(gang.id).or_insert_with(fresh).members.push(member);
        self.of.insert(claim.id, gang.id);
    }

    fn find(&mut self, claim: ClaimId) -> Option<(&mut Ring, usize)> {
        let ring = self.known.get_mut(self.of.get(&claim)?)?;
        let index = ring.members.iter().position(|member| member.claim == claim)?;
        Some((ring, index))
    }

    /// A member will not succeed.
    pub(super) fn break_up(&mut self, claim: ClaimId) {
        if let Some((ring, index)) = self.find(claim) {
            ring.break_up(index);
        }
    }

    /// A gang can't go on, without a member being to blame.
    pub(super) fn break_up_all(&mut self, gang: GangId) {
        if let Some(ring) = self.known.get_mut(&gang) {
            ring.broken = true;
        }
    }

    /// Keeps the end of a claim until the others have ended; `false` when it is for itself.
    pub(super) fn end(&mut self, claim: ClaimId, lease: Option<Lease>, how: How) -> bool {
        let Some((ring, index)) = self.find(claim) else { return false };
        if !matches!(&how, How::Report(outcome) if outcome.is_success()) {
            ring.break_up(index);
        }
        ring.members[index].end = Some(End { lease, how });
        true
    }

    /// What its user cancels must not come back, and takes the others with it, also when it has ended already.
    pub(super) fn cancel(&mut self, claim: ClaimId) {
        let Some((ring, index)) = self.find(claim) else { return };
        ring.members[index].cancelled = true;
        ring.break_up(index);
    }

    /// A longer lease for a claim that has ended; `false` when it is not one.
    pub(super) fn renew(&mut self, claim: ClaimId, lease: Lease) -> bool {
        let Some((ring, index)) = self.find(claim) else { return false };
        match &mut ring.members[index].end {
            Some(End { lease: Some(held), .. }) if held.expires_at < lease.expires_at => {
                *held = lease;
                true
            }
            _ => false,
        }
    }

    /// A claim that has ended is not held any more.
    pub(super) fn lose(&mut self, claim: ClaimId) {
        if let Some((ring, index)) = self.find(claim) {
            ring.lose(index);
        }
    }

    pub(super) fn tick(&mut self, now: Moment, out: &mut Outputs) {
        for ring in self.known.values_mut() {
            for index in 0..ring.members.len() {
                let claim = ring.members[index].claim;
                let Some(End { lease, .. }) = &mut ring.members[index].end else { continue };
                if lease.is_some_and(|lease| lease.expires_at.is_due(now)) {
                    ring.lose(index);
                } else {
                    renew_if_due(now, claim, lease, out);
                }
            }
        }
    }

    fn ends(&self) -> impl Iterator<Item = (ClaimId, &End)> {
        let members = self.known.values().flat_map(|ring| &ring.members);
        members.filter_map(|member| Some((member.claim, member.end.as_ref()?)))
    }

    /// When the first lease of a claim that has ended needs attention.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.ends().filter_map(|(_, end)| end.lease).map(|lease| lease.deadline()).min()
    }

    /// Claims that have ended and are not reported yet.
    pub(super) fn kept(&self) -> impl Iterator<Item = ClaimId> {
        self.ends().map(|(claim, _)| claim)
    }

    /// Closes the books on a gang whose members have all ended.
    pub(super) fn close(&mut self, gang: GangId) -> Option<Sentence> {
        let over = self.known.get(&gang)?.members.iter().all(|member| member.end.is_some());
        let ring = if over { self.known.remove(&gang)? } else { return None };
        for member in &ring.members {
            self.of.remove(&member.claim);
        }
        Some(ring.sentence())
    }
}

impl Ring {
    fn break_up(&mut self, index: usize) {
        self.broken = true;
        self.culprit.get_or_insert_with(|| self.members[index].name.clone());
    }

    fn lose(&mut self, index: usize) {
        self.break_up(index);
        if let Some(end) = &mut self.members[index].end {
            let launched = matches!(&end.how, How::Report(outcome) if outcome.launched);
            let lost = Outcome { launched, ..Outcome::before_launch(Conclusion::Lost) };
            *end = End { lease: None, how: How::Report(lost) };
        }
    }

    /// Where one did not succeed, none did; and what has not run then ends as badly as the others, so that the queue can decide
    /// about all of them at once.
    fn sentence(self) -> Sentence {
        let whole = self.members.len() == self.size;
        let culprit = self.blamed();
        let ends =
            self.members.into_iter().filter_map(|member| Some((member.claim, member.cancelled, member.end?)));
        let ends: Vec<_> = ends.collect();
        let succeeded = |how: &How| matches!(how, How::Report(outcome) if outcome.is_success());
        if whole && ends.iter().all(|(_, _, end)| matches!(end.how, How::Release(_))) {
            let released = ends.into_iter().filter_map(|(claim, _, end)| match end.how {
                How::Release(why) => Some((claim, why)),
                How::Report(_) => None,
            });
            return Sentence::Release(released.collect());
        }
        let all = whole && ends.iter().all(|(_, cancelled, end)| succeeded(&end.how) && !cancelled);
        let report = |(claim, cancelled, End { lease, how })| {
            let others = || match &culprit {
                _ if cancelled => Conclusion::Stopped(StopCause::Cancelled),
                Some(name) => Conclusion::GangFailed(Arc::clone(name)),
                None => Conclusion::Failed(Fault::new(FaultClass::Retry, "the rest of its gang was lost")),
            };
            let outcome = match how {
                How::Release(_) => Outcome::before_launch(others()),
                How::Report(outcome) if outcome.conclusion == Conclusion::Lost => outcome,
                How::Report(outcome) if cancelled || (is_others_doing(&outcome.conclusion) && !all) => {
                    Outcome { conclusion: others(), ..outcome }
                }
                How::Report(outcome) => outcome,
            };
            (claim, lease, outcome)
        };
        Sentence::Report(ends.into_iter().map(report).collect())
    }

    /// Whose end is to blame: the first that did not succeed, if that is for the queue to judge; else any that is.
    fn blamed(&self) -> Option<Arc<str>> {
        let own = |member: &&Member| match member.end.as_ref().map(|end| &end.how) {
            Some(How::Report(outcome)) => member.cancelled || !is_others_doing(&outcome.conclusion),
            Some(How::Release(_)) | None => false,
        };
        let first =
            self.members.iter().filter(own).find(|member| Some(&member.name) == self.culprit.as_ref());
        first.or_else(|| self.members.iter().find(own)).map(|member| member.name.clone())
    }
}

/// Whether a member ended so well, or for the sake of the others, that it is not to blame.
fn is_others_doing(conclusion: &Conclusion) -> bool {
    matches!(
        conclusion,
        Conclusion::Succeeded | Conclusion::Stopped(StopCause::GangEnded) | Conclusion::GangFailed(_)
    )
}
