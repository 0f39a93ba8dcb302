//! A spool beside a deliberately stupid model: whatever two pilots, users and the clock do in whatever order, both say the
//! same.

use std::collections::BTreeSet;
use std::sync::Arc;

use pilot_core::{
    Attempts, ClaimId, Conclusion, Decision, ExitStatus, Fault, FaultClass, Jitter, Outcome, StopCause, retry,
};
use proptest::prelude::*;
use spool::{NewPayload, Read, Recovery, Report, RunId, Selection, Spool, State};

use crate::common::{TestClock, exit, open, payload, submission};

const LEASE: u64 = 1_000;
const PILOTS: [&str; 2] = ["one", "two"];

#[derive(Clone, Debug)]
enum Step {
    Submit(Vec<Plan>),
    Claim {
        pilot: usize,
        at_most: u32,
    },
    /// Of all claims that were ever given, the one at this place.
    Report {
        which: prop::sample::Index,
        how: How,
    },
    Renew {
        which: prop::sample::Index,
    },
    Release {
        which: prop::sample::Index,
    },
    Advance(u64),
    Reboot,
    CancelRun(prop::sample::Index),
    CancelPayload(prop::sample::Index),
    Recover {
        pilot: usize,
        running: u32,
        launched: Option<u32>,
        stages: u32,
    },
}

#[derive(Clone, Copy, Debug)]
enum How {
    Success,
    Failure,
    Evicted,
    Cancelled,
    BadImage,
    NeverBegan,
}

#[derive(Clone, Debug)]
struct Plan {
    /// Bits: which of the payloads before it come before it; of those, which are read.
    after: u32,
    reads: u32,
    retries: u32,
    once: bool,
}

impl How {
    fn outcome(self) -> Outcome {
        let launched = |conclusion| Outcome { launched: true, ..Outcome::before_launch(conclusion) };
        match self {
            Self::Success => exit(0),
            Self::Failure => launched(Conclusion::Exited(ExitStatus::Code(3))),
            Self::Evicted => launched(Conclusion::Stopped(StopCause::Evicted)),
            Self::Cancelled => launched(Conclusion::Stopped(StopCause::Cancelled)),
            Self::BadImage => {
                Outcome::before_launch(Conclusion::Failed(Fault::new(FaultClass::Payload, "bad image")))
            }
            Self::NeverBegan => {
                Outcome::before_launch(Conclusion::Failed(Fault::new(FaultClass::Slot, "slot")))
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let plan = (any::<u32>(), any::<u32>(), 0..3_u32, prop::bool::weighted(0.2))
        .prop_map(|(after, reads, retries, once)| Plan { after: after & (after >> 7), reads, retries, once });
    let how = prop_oneof![
        6 => Just(How::Success),
        2 => Just(How::Failure),
        1 => Just(How::Evicted),
        1 => Just(How::Cancelled),
        1 => Just(How::BadImage),
        1 => Just(How::NeverBegan),
    ];
    let which = any::<prop::sample::Index>;
    prop_oneof![
        2 => prop::collection::vec(plan, 0..8).prop_map(Step::Submit),
        8 => (0..2_usize, 0..5_u32).prop_map(|(pilot, at_most)| Step::Claim { pilot, at_most }),
        9 => (which(), how).prop_map(|(which, how)| Step::Report { which, how }),
        2 => which().prop_map(|which| Step::Renew { which }),
        2 => which().prop_map(|which| Step::Release { which }),
        4 => prop_oneof![Just(1), Just(250), Just(500), Just(999), Just(1000), Just(70_000)].prop_map(Step::Advance),
        1 => Just(Step::Reboot),
        1 => which().prop_map(Step::CancelRun),
        1 => which().prop_map(Step::CancelPayload),
        1 => (0..2_usize, any::<u32>(), any::<Option<u32>>(), any::<u32>())
            .prop_map(|(pilot, running, launched, stages)| Step::Recover { pilot, running, launched, stages }),
    ]
}

#[derive(Clone, Debug)]
struct Piece {
    run: usize,
    name: String,
    new: NewPayload,
    state: State,
    from_ms: u64,
    tries: u32,
    attempts: Attempts,
    held: Option<Grip>,
}

#[derive(Clone, Debug)]
struct Grip {
    claim: ClaimId,
    pilot: usize,
    until_ms: u64,
    cancelled: bool,
}

/// Everything in one list; every question is a walk through all of it.
#[derive(Debug, Default)]
struct Model {
    pieces: Vec<Piece>,
    homes: Vec<(bool, Option<usize>)>,
    now_ms: u64,
}

impl Model {
    fn submit(&mut self, payloads: &[NewPayload]) {
        let run = self.homes.len();
        self.homes.push((payloads.iter().any(|new| !new.reads.is_empty()), None));
        for new in payloads {
            let state = if new.after.is_empty() { State::Ready } else { State::Waiting };
            self.pieces.push(Piece {
                run,
                name: new.name.clone(),
                new: new.clone(),
                state,
                from_ms: 0,
                tries: 0,
                attempts: Attempts::default(),
                held: None,
            });
        }
    }

    fn at(&self, run: usize, index: usize) -> usize {
        let first = self.pieces.iter().position(|piece| piece.run == run).expect("a run with payloads");
        first + index
    }

    fn producers(&self, index: usize) -> Vec<usize> {
        let piece = &self.pieces[index];
        piece.new.after.iter().map(|&after| self.at(piece.run, after)).collect()
    }

    fn read_from(&self, index: usize) -> Vec<usize> {
        let piece = &self.pieces[index];
        piece.new.reads.iter().map(|read| self.at(piece.run, read.producer)).collect()
    }

    fn settle_waiting(&mut self) {
        for index in 0..self.pieces.len() {
            let done = |&producer: &usize| self.pieces[producer].state == State::Succeeded;
            if self.pieces[index].state == State::Waiting && self.producers(index).iter().all(done) {
                self.pieces[index].state = State::Ready;
                self.pieces[index].from_ms = 0;
            }
        }
    }

    fn skip(&mut self) -> BTreeSet<String> {
        let mut skipped = BTreeSet::new();
        loop {
            let bad = |&producer: &usize| {
                let state = self.pieces[producer].state;
                state.is_final() && state != State::Succeeded
            };
            let doomed = (0..self.pieces.len()).find(|&index| {
                self.pieces[index].state == State::Waiting && self.producers(index).iter().any(bad)
            });
            let Some(index) = doomed else { return skipped };
            self.pieces[index].state = State::Skipped;
            skipped.insert(self.pieces[index].name.clone());
        }
    }

    fn conclude(&mut self, index: usize, outcome: &Outcome) -> (bool, BTreeSet<String>) {
        let piece = &mut self.pieces[index];
        let grip = piece.held.take().expect("a claim");
        if outcome.is_success() {
            piece.state = State::Succeeded;
            self.settle_waiting();
            return (false, BTreeSet::new());
        }
        if !grip.cancelled
            && let Decision::Retry { after_ms, attempts } = retry::decide(
                outcome,
                piece.attempts,
                piece.new.retries,
                piece.new.at_most_once,
                Jitter::NONE,
            )
        {
            piece.attempts = attempts;
            piece.state = State::Ready;
            piece.from_ms = self.now_ms + after_ms;
            return (true, BTreeSet::new());
        }
        piece.state = match outcome.conclusion {
            _ if grip.cancelled => State::Cancelled,
            Conclusion::Stopped(StopCause::Cancelled) => State::Cancelled,
            Conclusion::Lost => State::Lost,
            _ => State::Failed,
        };
        (false, self.skip())
    }

    fn give_back(&mut self, index: usize) {
        let piece = &mut self.pieces[index];
        let grip = piece.held.take().expect("a claim");
        piece.tries -= 1;
        piece.from_ms = 0;
        piece.state = if grip.cancelled { State::Cancelled } else { State::Ready };
        self.skip();
    }

    fn end_overdue(&mut self) {
        for index in 0..self.pieces.len() {
            if self.pieces[index].held.as_ref().is_some_and(|grip| grip.until_ms <= self.now_ms) {
                self.conclude(index, &lost());
            }
        }
    }

    /// What a claim of this pilot would find.
    fn claimable(&mut self, pilot: usize, at_most: u32) -> Vec<usize> {
        self.end_overdue();
        let mut found = Vec::new();
        for index in 0..self.pieces.len() {
            let piece = &self.pieces[index];
            let ready = piece.state == State::Ready && piece.from_ms <= self.now_ms;
            let home = &mut self.homes[piece.run];
            if found.len() < at_most as usize && ready && home.1.is_none_or(|home| home == pilot) {
                if home.0 {
                    home.1 = Some(pilot);
                }
                found.push(index);
            }
        }
        found
    }

    fn holder(&self, claim: ClaimId) -> Option<usize> {
        self.pieces.iter().position(|piece| piece.held.as_ref().is_some_and(|grip| grip.claim == claim))
    }

    fn cancel(&mut self, indices: &[usize]) {
        for &index in indices {
            let piece = &mut self.pieces[index];
            match &mut piece.held {
                Some(grip) => grip.cancelled = true,
                None if !piece.state.is_final() => piece.state = State::Cancelled,
                None => {}
            }
        }
        self.skip();
    }

    fn remake(&mut self, pilot: usize, has_stage: impl Fn(&str) -> bool) {
        for run in 0..self.homes.len() {
            if self.homes[run].1 != Some(pilot) {
                continue;
            }
            let mut lost: BTreeSet<usize> = BTreeSet::new();
            loop {
                let unheld = |piece: &Piece| matches!(piece.state, State::Waiting | State::Ready);
                let mut more = None;
                for index in (0..self.pieces.len()).filter(|&index| self.pieces[index].run == run) {
                    if !unheld(&self.pieces[index]) && !lost.contains(&index) {
                        continue;
                    }
                    for producer in self.read_from(index) {
                        let gone = !has_stage(&self.pieces[producer].name);
                        if self.pieces[producer].state == State::Succeeded
                            && gone
                            && !lost.contains(&producer)
                        {
                            more = Some(producer);
                        }
                    }
                }
                let Some(more) = more else { break };
                lost.insert(more);
            }
            let may_not = |&index: &usize| {
                let Piece { new, attempts, .. } = &self.pieces[index];
                new.at_most_once || attempts.failed >= new.retries
            };
            let mut hopeless: BTreeSet<usize> = lost.iter().copied().filter(may_not).collect();
            while let Some(more) = lost.iter().copied().find(|index| {
                !hopeless.contains(index) && self.read_from(*index).iter().any(|from| hopeless.contains(from))
            }) {
                hopeless.insert(more);
            }
            for index in 0..self.pieces.len() {
                let unheld = matches!(self.pieces[index].state, State::Waiting | State::Ready);
                if unheld && self.read_from(index).iter().any(|from| hopeless.contains(from)) {
                    self.pieces[index].state = State::Failed;
                }
            }
            self.skip();
            let mut again: BTreeSet<usize> = BTreeSet::new();
            loop {
                let runs = |index: usize| {
                    matches!(self.pieces[index].state, State::Waiting | State::Ready)
                        || again.contains(&index)
                };
                let readers =
                    (0..self.pieces.len()).filter(|&index| self.pieces[index].run == run && runs(index));
                let read: BTreeSet<usize> = readers.flat_map(|index| self.read_from(index)).collect();
                let more: Vec<usize> =
                    read.intersection(&lost).copied().filter(|index| !again.contains(index)).collect();
                if more.is_empty() {
                    break;
                }
                again.extend(more);
            }
            for &index in &again {
                self.pieces[index].state = State::Waiting;
                self.pieces[index].attempts.failed += 1;
            }
            for index in 0..self.pieces.len() {
                let reads_again = self.read_from(index).iter().any(|from| again.contains(from));
                if self.pieces[index].state == State::Ready && reads_again {
                    self.pieces[index].state = State::Waiting;
                }
            }
            self.settle_waiting();
        }
    }
}

fn lost() -> Outcome {
    Outcome { launched: true, ..Outcome::before_launch(Conclusion::Lost) }
}

/// Some of the names, by a hash of each.
fn chosen(bits: u32, name: &str) -> bool {
    let sum: u32 = name.bytes().map(u32::from).sum();
    bits >> (sum % 32) & 1 == 1
}

struct Pair {
    spool: [Spool; 2],
    clock: Arc<TestClock>,
    model: Model,
    claims: Vec<ClaimId>,
    boots: u32,
    _folder: tempfile::TempDir,
}

impl Pair {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let clock = TestClock::new();
        let spool = [open(folder.path(), &clock), open(folder.path(), &clock)];
        let model = Model { now_ms: 1_000_000, ..Model::default() };
        Self { spool, clock, model, claims: Vec::new(), boots: 1, _folder: folder }
    }

    fn claim_at(&self, which: prop::sample::Index) -> ClaimId {
        if self.claims.is_empty() { ClaimId(5) } else { *which.get(&self.claims) }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Submit(plans) => self.submit(plans),
            Step::Claim { pilot, at_most } => self.claim(*pilot, *at_most),
            Step::Report { which, how } => self.report(self.claim_at(*which), &how.outcome()),
            Step::Renew { which } => {
                let claim = self.claim_at(*which);
                let renewed = self.spool[0].renew(claim, LEASE).expect("renew");
                let holder = self.model.holder(claim);
                assert_eq!(renewed, holder.is_some());
                if let Some(grip) = holder.and_then(|index| self.model.pieces[index].held.as_mut()) {
                    grip.until_ms = self.model.now_ms + LEASE;
                }
            }
            Step::Release { which } => {
                let claim = self.claim_at(*which);
                let holder = self.model.holder(claim);
                assert_eq!(self.spool[1].release(claim).expect("release"), holder.is_some());
                if let Some(index) = holder {
                    self.model.give_back(index);
                }
            }
            Step::Advance(ms) => {
                self.clock.advance(*ms);
                self.model.now_ms += ms;
            }
            Step::Reboot => self.reboot(),
            Step::CancelRun(which) if !self.model.homes.is_empty() => {
                let run = which.index(self.model.homes.len());
                let id = RunId(run as u64 + 1);
                self.spool[0].cancel(&Selection::Run(id)).expect("cancel");
                let pieces = 0..self.model.pieces.len();
                let of_run: Vec<usize> =
                    pieces.filter(|&index| self.model.pieces[index].run == run).collect();
                self.model.cancel(&of_run);
            }
            Step::CancelPayload(which) if !self.model.pieces.is_empty() => {
                let index = which.index(self.model.pieces.len());
                let piece = &self.model.pieces[index];
                let row = self.spool[1].payload(RunId(piece.run as u64 + 1), &piece.name);
                let id = row.expect("payload").expect("there").id;
                self.spool[1].cancel(&Selection::Payload(id)).expect("cancel");
                self.model.cancel(&[index]);
            }
            Step::CancelRun(_) | Step::CancelPayload(_) => {}
            Step::Recover { pilot, running, launched, stages } => {
                self.recover(*pilot, *running, *launched, *stages);
            }
        }
    }

    fn submit(&mut self, plans: &[Plan]) {
        let run = self.model.homes.len();
        let new = |(index, plan): (usize, &Plan)| {
            let after: Vec<usize> = (0..index).filter(|bit| plan.after >> bit & 1 == 1).collect();
            let reads = after.iter().filter(|&&bit| plan.reads >> bit & 1 == 1);
            let reads = reads.map(|&producer| Read { producer, output: "data".to_owned() }).collect();
            let name = format!("{}-{run}", char::from(b'a' + u8::try_from(index).expect("few")));
            NewPayload { reads, retries: plan.retries, at_most_once: plan.once, ..payload(&name, &after) }
        };
        let payloads: Vec<NewPayload> = plans.iter().enumerate().map(new).collect();
        self.spool[0].submit(&submission("w", payloads.clone())).expect("submit");
        self.model.submit(&payloads);
    }

    fn claim(&mut self, pilot: usize, at_most: u32) {
        let offers = self.spool[pilot].claim(PILOTS[pilot], at_most, LEASE).expect("claim");
        let found = self.model.claimable(pilot, at_most);
        let names: Vec<&str> =
            found.iter().map(|&index| self.model.pieces[index].new.spec.as_str()).collect();
        assert_eq!(offers.iter().map(|offer| offer.spec.as_str()).collect::<Vec<_>>(), names);
        for (offer, index) in offers.iter().zip(found) {
            assert!(self.claims.iter().all(|known| *known < offer.claim), "numbers only rise");
            self.claims.push(offer.claim);
            let piece = &mut self.model.pieces[index];
            piece.state = State::Claimed;
            piece.tries += 1;
            assert_eq!(offer.attempt, piece.tries);
            let until_ms = self.model.now_ms + LEASE;
            piece.held = Some(Grip { claim: offer.claim, pilot, until_ms, cancelled: false });
        }
    }

    fn report(&mut self, claim: ClaimId, outcome: &Outcome) {
        let report = self.spool[1].report(claim, outcome).expect("report");
        let Some(index) = self.model.holder(claim) else {
            assert_eq!(report, Report::NotHeld);
            return;
        };
        let (retried, skipped) = self.model.conclude(index, outcome);
        match report {
            Report::Retried => assert!(retried),
            Report::Final { skipped: told } => {
                assert!(!retried);
                let told: BTreeSet<String> = told
                    .iter()
                    .map(|skipped| skipped.spec.trim_start_matches("spec of ").to_owned())
                    .collect();
                assert_eq!(told, skipped);
            }
            Report::NotHeld => panic!("{claim} is held"),
        }
    }

    fn reboot(&mut self) {
        self.boots += 1;
        self.clock.reboot(&format!("boot {}", self.boots));
        // The same moment in both counts.
        self.clock.advance(1_000_000 - 100);
        self.model.now_ms = 1_000_000;
        for piece in &mut self.model.pieces {
            piece.from_ms = 0;
            if let Some(grip) = &mut piece.held {
                grip.until_ms = 0;
            }
        }
        // It is found out with the first transaction.
        self.spool[0].transact(|_| Ok(())).expect("transact");
    }

    fn recover(&mut self, pilot: usize, running: u32, launched: Option<u32>, stages: u32) {
        let some = |bits: u32| -> Vec<ClaimId> {
            self.claims.iter().copied().filter(|claim| chosen(bits, &claim.0.to_string())).collect()
        };
        let (runs, begun) = (some(running), launched.map(some));
        let recovery = Recovery {
            claimant: PILOTS[pilot].into(),
            running: &runs,
            launched: begun.as_deref(),
            lease_ms: LEASE,
        };
        let name_in = |uri: &str| uri.split('/').nth(3).expect("a payload").to_owned();
        let recovered =
            self.spool[pilot].recover(&recovery, &mut |uri| chosen(stages, &name_in(uri))).expect("recover");
        let mut kept = Vec::new();
        let mut held: Vec<(ClaimId, usize)> = Vec::new();
        for (index, piece) in self.model.pieces.iter().enumerate() {
            held.extend(piece.held.iter().filter(|grip| grip.pilot == pilot).map(|grip| (grip.claim, index)));
        }
        held.sort();
        for (claim, index) in held {
            if runs.contains(&claim) {
                kept.push(claim);
                let until_ms = self.model.now_ms + LEASE;
                let grip = self.model.pieces[index].held.as_mut().expect("held");
                grip.until_ms = until_ms;
            } else if begun.as_ref().is_none_or(|begun| begun.contains(&claim)) {
                self.model.conclude(index, &lost());
            } else {
                self.model.give_back(index);
            }
        }
        assert_eq!(recovered.kept.iter().map(|offer| offer.claim).collect::<Vec<_>>(), kept);
        self.model.remake(pilot, |name| chosen(stages, name));
    }

    /// Both say the same of everything.
    fn compare(&self) {
        for run in 0..self.model.homes.len() {
            let id = RunId(run as u64 + 1);
            let pieces: Vec<&Piece> = self.model.pieces.iter().filter(|piece| piece.run == run).collect();
            let rows = self.spool[0].payloads(id, &[], None, 100).expect("payloads");
            let said: Vec<_> = rows
                .iter()
                .map(|row| (row.name.as_str(), row.state, row.attempt, row.cancel_asked))
                .collect();
            let expected: Vec<_> = pieces
                .iter()
                .map(|piece| {
                    let cancelled = piece.held.as_ref().is_some_and(|grip| grip.cancelled);
                    (piece.name.as_str(), piece.state, piece.tries, cancelled)
                })
                .collect();
            assert_eq!(said, expected, "run {id}");
            let shown = self.spool[1].run(id).expect("run").expect("there");
            for state in State::ALL {
                let count = pieces.iter().filter(|piece| piece.state == state).count() as u64;
                assert_eq!(shown.counts.of(state), count, "run {id}, {state}");
            }
            assert_eq!(shown.ended_wall_ms.is_some(), shown.counts.open() == 0, "run {id}");
            assert_eq!(shown.home.as_deref(), self.model.homes[run].1.map(|pilot| PILOTS[pilot]));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn a_spool_says_what_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        let mut pair = Pair::new();
        pair.submit(&[
            Plan { after: 0, reads: 0, retries: 1, once: false },
            Plan { after: 1, reads: 1, retries: 0, once: false },
            Plan { after: 3, reads: 2, retries: 0, once: false },
        ]);
        for step in &steps {
            pair.step(step);
            pair.compare();
        }
    }
}
