//! Every phase and step meets every event: one table, and nothing may be missing from it.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::*;
use crate::claim::Lease;
use crate::outcome::{Conclusion, Exit, FaultClass, Usage};
use crate::payload::{Demand, Payload};

#[path = "table.rs"]
mod table;
use table::TABLE;

const NOW: Moment = Moment(1_000);
/// Deadlines of the fixtures are at 2,000, leases at 5,000 (renewal) and 9,000 (expiry).
const DUE: Moment = Moment(2_000);
const RENEW: Moment = Moment(5_000);
const EXPIRED: Moment = Moment(9_000);

/// Phases with their steps, as far as these change what an event means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Unused,
    Idle,
    Warm,
    Binding,
    Bound,
    Running,
    Stopping,
    Undoing,
    Flushing,
    Cleaning,
    Pausing,
    LastTry,
    Retired,
}

/// Events, and the faces of Claimed, Stop, Exited and Tick that lead to different edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Is(EventName),
    ClaimedOther,
    ExitedBadly,
    OutOfMemory,
    Kill,
    TickDue,
    TickRenew,
    TickExpired,
}

fn next_place(place: Place) -> Option<Place> {
    Some(match place {
        Place::Unused => Place::Idle,
        Place::Idle => Place::Warm,
        Place::Warm => Place::Binding,
        Place::Binding => Place::Bound,
        Place::Bound => Place::Running,
        Place::Running => Place::Stopping,
        Place::Stopping => Place::Undoing,
        Place::Undoing => Place::Flushing,
        Place::Flushing => Place::Cleaning,
        Place::Cleaning => Place::Pausing,
        Place::Pausing => Place::LastTry,
        Place::LastTry => Place::Retired,
        Place::Retired => return None,
    })
}

fn next_case(case: Case) -> Option<Case> {
    Some(Case::Is(match case {
        Case::Is(EventName::Claimed) => return Some(Case::ClaimedOther),
        Case::ClaimedOther => EventName::Adopted,
        Case::Is(EventName::Adopted) => EventName::Bound,
        Case::Is(EventName::Bound) => EventName::BindFailed,
        Case::Is(EventName::BindFailed) => EventName::Go,
        Case::Is(EventName::Go) => EventName::LaunchFailed,
        Case::Is(EventName::LaunchFailed) => EventName::Exited,
        Case::Is(EventName::Exited) => return Some(Case::ExitedBadly),
        Case::ExitedBadly => return Some(Case::OutOfMemory),
        Case::OutOfMemory => EventName::Stop,
        Case::Is(EventName::Stop) => return Some(Case::Kill),
        Case::Kill => EventName::LeaseRenewed,
        Case::Is(EventName::LeaseRenewed) => EventName::LeaseLost,
        Case::Is(EventName::LeaseLost) => EventName::SlotLost,
        Case::Is(EventName::SlotLost) => EventName::Drained,
        Case::Is(EventName::Drained) => EventName::Cleaned,
        Case::Is(EventName::Cleaned) => EventName::CleanFailed,
        Case::Is(EventName::CleanFailed) => EventName::Tick,
        Case::Is(EventName::Tick) => return Some(Case::TickDue),
        Case::TickDue => return Some(Case::TickRenew),
        Case::TickRenew => return Some(Case::TickExpired),
        Case::TickExpired => return None,
    }))
}

fn all<T: Copy>(first: T, next: fn(T) -> Option<T>) -> impl Iterator<Item = T> {
    std::iter::successors(Some(first), move |item| next(*item))
}

pub(super) fn fault() -> Fault {
    Fault::new(FaultClass::Slot, "fault")
}

pub(super) fn claim(id: u64, image: &str) -> Box<Claim> {
    let payload = Payload {
        name: "payload".into(),
        family: "payload".into(),
        demand: Demand { cpu_millis: 1_000, memory_bytes: 1_000 },
        trust: "alice".into(),
        image: image.into(),
        inputs: [].into(),
        bind_timeout_ms: 1_000,
        walltime_ms: 1_000,
        grace_ms: 300,
        at_most_once: false,
        reusable: true,
    };
    let lease = Some(Lease { renew_at: RENEW, expires_at: EXPIRED });
    Box::new(Claim { id: ClaimId(id), payload, lease, gang: None })
}

fn phase(place: Place, by: Moment) -> Phase {
    let claim = || claim(1, "red");
    let held = || Some(Held { image: "red".into(), trust: "alice".into() });
    let draining = |ending, status, reached, step| Phase::Draining {
        claim: claim(),
        end: End { ending, status, reached, step },
        by,
    };
    let preempted = || Ending::Stopped(StopCause::Preempted);
    let success = ExitStatus::SUCCESS;
    let cleaning = |attempts, step| Phase::Cleaning { claim: ClaimId(1), holds: held(), attempts, step, by };
    match place {
        Place::Unused | Place::Idle => Phase::Idle { holds: None },
        Place::Warm => Phase::Idle { holds: held() },
        Place::Binding => Phase::Binding { claim: claim(), by },
        Place::Bound => Phase::Bound { claim: claim(), by },
        Place::Running => Phase::Running { claim: claim(), by },
        Place::Stopping => draining(preempted(), None, Reached::Launched, DrainStep::Stopping),
        Place::Undoing => draining(preempted(), None, Reached::Binding, DrainStep::Flushing),
        Place::Flushing => {
            draining(Ending::Exited(success), Some(success), Reached::Launched, DrainStep::Flushing)
        }
        Place::Cleaning => cleaning(0, CleanStep::Working),
        Place::Pausing => cleaning(1, CleanStep::Pausing),
        Place::LastTry => cleaning(SlotLimits::default().clean_attempts - 1, CleanStep::Working),
        Place::Retired => Phase::Retired,
    }
}

/// When the slot's own deadline is, when the event comes, and the event.
fn event(case: Case) -> (Moment, Moment, Event) {
    let badly = ExitStatus::Code(3);
    let killed = ExitStatus::Signal { signal: 9, core: false };
    let late = Moment(100_000);
    let event = match case {
        Case::TickDue => return (DUE, DUE, Event::Tick),
        Case::TickRenew => return (late, RENEW, Event::Tick),
        Case::TickExpired => return (late, EXPIRED, Event::Tick),
        Case::ClaimedOther => Event::Claimed(claim(2, "green")),
        Case::ExitedBadly => Event::Exited(badly.into()),
        Case::OutOfMemory => Event::Exited(Exit { status: killed, cause: Some(StopCause::MemoryExceeded) }),
        Case::Kill => Event::Stop { cause: StopCause::Cancelled, grace_ms: 0 },
        Case::Is(name) => match name {
            EventName::Claimed => Event::Claimed(claim(2, "red")),
            EventName::Adopted => Event::Adopted(claim(2, "red")),
            EventName::Bound => Event::Bound,
            EventName::BindFailed => Event::BindFailed(fault()),
            EventName::Go => Event::Go,
            EventName::LaunchFailed => Event::LaunchFailed(fault()),
            EventName::Exited => Event::Exited(ExitStatus::SUCCESS.into()),
            EventName::Stop => Event::Stop { cause: StopCause::Cancelled, grace_ms: 300 },
            EventName::LeaseRenewed => {
                Event::LeaseRenewed(Lease { renew_at: Moment(10_000), expires_at: Moment(20_000) })
            }
            EventName::LeaseLost => Event::LeaseLost,
            EventName::SlotLost => Event::SlotLost(fault()),
            EventName::Drained => Event::Drained(Drained::default()),
            EventName::Cleaned => Event::Cleaned { warm: true },
            EventName::CleanFailed => Event::CleanFailed(fault()),
            EventName::Tick => Event::Tick,
        },
    };
    (DUE, NOW, event)
}

fn slot_in(phase: Phase) -> Slot {
    Slot { id: SlotId(0), epoch: Epoch(7), limits: SlotLimits::default(), adopted: false, phase }
}

fn slot_at(place: Place, by: Moment) -> Slot {
    let epoch = Epoch(if place == Place::Unused { 0 } else { 7 });
    Slot { epoch, ..slot_in(phase(place, by)) }
}

/// The epoch that comes with an event: the slot's, but a payload is adopted in the one in which it was launched.
fn epoch_of(slot: &Slot, event: &Event) -> Epoch {
    if matches!(event, Event::Adopted(_)) { Epoch(7) } else { slot.epoch() }
}

fn case_name(case: Case) -> String {
    match case {
        Case::Is(name) => format!("{name:?}"),
        other => format!("{other:?}"),
    }
}

fn place_name(phase: &Phase) -> String {
    match phase {
        Phase::Idle { holds: Some(_) } => "Idle(warm)".to_owned(),
        Phase::Draining { end, .. } => format!("{:?}({})", end.step, ending_name(&end.ending)),
        Phase::Cleaning { step, .. } => format!("Cleaning({step:?})"),
        Phase::Idle { holds: None } => "Idle".to_owned(),
        Phase::Binding { .. } => "Binding".to_owned(),
        Phase::Bound { .. } => "Bound".to_owned(),
        Phase::Running { .. } => "Running".to_owned(),
        Phase::Retired => "Retired".to_owned(),
    }
}

fn ending_name(ending: &Ending) -> String {
    match ending {
        Ending::Exited(status) => status.to_string(),
        Ending::Stopped(cause) => cause.to_string(),
        Ending::BindFailed(_) => "bind failed".to_owned(),
        Ending::LaunchFailed(_) => "launch failed".to_owned(),
        Ending::SlotLost(_) => "slot lost".to_owned(),
        Ending::WaitedTooLong => "waited too long".to_owned(),
        Ending::LeaseLost => "lease lost".to_owned(),
    }
}

fn action_name(action: &Action) -> String {
    match action {
        Action::Order(Order::Bind(_)) => "Bind".to_owned(),
        Action::Order(Order::Launch(_)) => "Launch".to_owned(),
        Action::Order(Order::Signal(Signal::Term { .. })) => "Term".to_owned(),
        Action::Order(Order::Signal(Signal::Kill)) => "Kill".to_owned(),
        Action::Order(Order::Drain { commit: true }) => "Drain+commit".to_owned(),
        Action::Order(Order::Drain { commit: false }) => "Drain".to_owned(),
        Action::Order(Order::Clean) => "Clean".to_owned(),
        Action::Renew => "Renew".to_owned(),
        Action::Report(outcome) => match &outcome.conclusion {
            Conclusion::Failed(fault) => format!("Report(failed: {fault})"),
            other => format!("Report({other})"),
        },
        Action::Release(why) => format!("Release({why})"),
    }
}

/// One row: `place | case | new place | actions`, or `place | case | - | why it is ignored`.
fn row(place: Place, case: Case) -> String {
    let (by, now, event) = event(case);
    let before = slot_at(place, by);
    let mut slot = before.clone();
    let verdict = slot.handle(now, epoch_of(&before, &event), event);
    let (to, what) = match verdict {
        Verdict::Ignored(why) => {
            assert_eq!(slot, before, "{place:?} ignored {case:?} but changed");
            ("-".to_owned(), format!("{why:?}"))
        }
        Verdict::Acted(actions) => {
            let actions: Vec<String> = actions.iter().map(action_name).collect();
            (place_name(slot.phase()), actions.join(", "))
        }
    };
    format!("{:8} | {:12} | {to:33} | {what}", format!("{place:?}"), case_name(case)).trim_end().to_owned()
}

#[test]
fn every_phase_answers_every_event_as_the_table_says() {
    let mut actual = String::new();
    let expected: Vec<&str> = TABLE.lines().filter(|line| line.contains('|')).collect();
    let mut wrong = Vec::new();
    let mut index = 0;
    for place in all(Place::Unused, next_place) {
        for case in all(Case::Is(EventName::Claimed), next_case) {
            let row = row(place, case);
            if expected.get(index) != Some(&row.as_str()) {
                wrong.push(format!("is:     {row}\n  table: {}", expected.get(index).unwrap_or(&"nothing")));
            }
            writeln!(actual, "{row}").unwrap_or_default();
            index += 1;
        }
    }
    assert!(wrong.is_empty(), "{}\n\nthe whole table as it is:\n{actual}", wrong.join("\n"));
    assert_eq!(index, expected.len(), "the table has rows that nothing leads to");
}

#[test]
fn the_diagram_has_a_sentence_for_each_edge_of_the_table_and_no_other() {
    let mut walked = BTreeSet::new();
    for place in all(Place::Unused, next_place) {
        for case in all(Case::Is(EventName::Claimed), next_case) {
            let (by, now, event) = event(case);
            let mut slot = slot_at(place, by);
            let from = slot.name();
            let _ = slot.handle(now, epoch_of(&slot, &event), event);
            if slot.name() != from {
                walked.insert(format!("{from:?} -> {:?}", slot.name()));
            }
        }
    }
    let sentences = include_str!("../slot.rs").lines().filter_map(|line| line.strip_prefix("//! - "));
    let told: BTreeSet<String> =
        sentences.filter_map(|line| line.split_once(':')).map(|(edge, _)| edge.to_owned()).collect();
    assert_eq!(walked, told);
}

#[test]
fn an_event_of_another_epoch_changes_nothing() {
    for place in all(Place::Idle, next_place) {
        for case in all(Case::Is(EventName::Claimed), next_case) {
            for epoch in [Epoch(6), Epoch(8)] {
                let (by, now, event) = event(case);
                let before = slot_at(place, by);
                let mut slot = before.clone();
                let adopts = matches!(event, Event::Adopted(_));
                let why = if adopts { Why::NotInThisPhase } else { Why::Stale };
                assert_eq!(slot.handle(now, epoch, event), Verdict::Ignored(why));
                assert_eq!(slot, before);
            }
        }
    }
}

#[test]
fn a_claim_raises_the_epoch_an_adoption_sets_it_and_nothing_else_does() {
    for place in all(Place::Unused, next_place) {
        for case in all(Case::Is(EventName::Claimed), next_case) {
            let (by, now, event) = event(case);
            let mut slot = slot_at(place, by);
            let before = slot.epoch();
            let idle = slot.name() == PhaseName::Idle;
            let expected = match event {
                Event::Claimed(_) if idle => before.next(),
                Event::Adopted(_) if place == Place::Unused => Epoch(7),
                _ => before,
            };
            let _ = slot.handle(now, epoch_of(&slot, &event), event);
            assert_eq!(slot.epoch(), expected, "{place:?} {case:?}");
        }
    }
}

#[test]
fn a_warm_slot_is_bound_anew_for_another_trust_group() {
    let mut slot = slot_in(phase(Place::Warm, DUE));
    let mut stranger = claim(2, "red");
    stranger.payload.trust = "bob".into();
    let _ = slot.handle(NOW, Epoch(7), Event::Claimed(stranger));
    assert_eq!(slot.name(), PhaseName::Binding);
}

#[test]
fn a_warm_slot_is_bound_anew_for_a_payload_that_writes_to_its_root() {
    let mut slot = slot_in(phase(Place::Warm, DUE));
    let mut writer = claim(2, "red");
    writer.payload.reusable = false;
    let _ = slot.handle(NOW, Epoch(7), Event::Claimed(writer));
    assert_eq!(slot.name(), PhaseName::Binding);
}

#[test]
fn go_after_the_lease_expired_launches_nothing() {
    let mut slot = slot_in(phase(Place::Bound, Moment(100_000)));
    let verdict = slot.handle(EXPIRED, Epoch(7), Event::Go);
    assert_eq!(verdict, Verdict::Acted(vec![Action::Order(Order::Drain { commit: false })]));
}

#[test]
fn a_lease_that_ran_out_unnoticed_makes_a_success_a_loss() {
    let mut slot = slot_in(phase(Place::Flushing, Moment(100_000)));
    let Verdict::Acted(actions) = slot.handle(EXPIRED, Epoch(7), Event::Drained(Drained::default())) else {
        panic!("a drained slot goes on");
    };
    assert_eq!(actions.iter().map(action_name).collect::<Vec<_>>(), ["Report(lost its lease)", "Clean"]);
}

#[test]
fn an_output_that_is_missing_makes_a_success_a_failure() {
    let mut slot = slot_in(phase(Place::Flushing, DUE));
    let fault = Fault::new(FaultClass::Payload, "output is missing");
    let drained = Drained { usage: Usage { wall_us: 9, ..Usage::default() }, fault: Some(fault.clone()) };
    let Verdict::Acted(actions) = slot.handle(NOW, Epoch(7), Event::Drained(drained)) else {
        panic!("a drained slot goes on");
    };
    let Some(Action::Report(outcome)) = actions.first() else { panic!("the first action is the report") };
    assert_eq!(outcome.conclusion, Conclusion::Failed(fault));
    assert_eq!(
        (outcome.usage.wall_us, outcome.launched, outcome.status),
        (9, true, Some(ExitStatus::SUCCESS))
    );
}

#[test]
fn a_payload_that_could_not_be_launched_after_all_goes_back_unharmed() {
    let mut slot = slot_in(phase(Place::Stopping, DUE));
    let _ = slot.handle(NOW, Epoch(7), Event::LaunchFailed(fault()));
    let Verdict::Acted(actions) = slot.handle(NOW, Epoch(7), Event::Drained(Drained::default())) else {
        panic!("a drained slot goes on");
    };
    assert_eq!(actions.iter().map(action_name).collect::<Vec<_>>(), ["Release(preempted)", "Clean"]);
}

#[test]
fn a_user_who_cancels_before_the_launch_gets_a_report() {
    let mut slot = slot_in(phase(Place::Bound, DUE));
    let _ = slot.handle(NOW, Epoch(7), Event::Stop { cause: StopCause::Cancelled, grace_ms: 300 });
    let Verdict::Acted(actions) = slot.handle(NOW, Epoch(7), Event::Drained(Drained::default())) else {
        panic!("a drained slot goes on");
    };
    assert_eq!(actions.iter().map(action_name).collect::<Vec<_>>(), ["Report(cancelled)", "Clean"]);
}

#[test]
fn a_further_stop_only_ever_shortens_the_wait() {
    let mut slot = slot_in(phase(Place::Stopping, DUE));
    let stop = |grace_ms| Event::Stop { cause: StopCause::Evicted, grace_ms };
    assert_eq!(slot.handle(NOW, Epoch(7), stop(60_000)), Verdict::Ignored(Why::Duplicate));
    assert_eq!(slot.deadline(), Some(DUE));
    assert_eq!(slot.handle(NOW, Epoch(7), stop(10)), Verdict::Acted(Vec::new()));
    assert_eq!(slot.deadline(), Some(NOW.after_ms(10)));
}

#[test]
fn what_its_user_cancels_while_it_ends_does_not_come_back() {
    let ways = [(Place::Stopping, true), (Place::Undoing, true), (Place::Flushing, false)];
    for (place, cancelled) in ways {
        let mut slot = slot_in(phase(place, DUE));
        let _ = slot.handle(NOW, Epoch(7), Event::Stop { cause: StopCause::Cancelled, grace_ms: 300 });
        let _ = slot.handle(NOW, Epoch(7), Event::Exited(ExitStatus::Code(1).into()));
        let Verdict::Acted(actions) = slot.handle(NOW, Epoch(7), Event::Drained(Drained::default())) else {
            panic!("a drained slot goes on");
        };
        // What had succeeded before stays so: its outputs may be there.
        let report = if cancelled { "Report(cancelled)" } else { "Report(succeeded)" };
        assert_eq!(actions.iter().map(action_name).collect::<Vec<_>>(), [report, "Clean"], "{place:?}");
    }
}

#[test]
fn a_slot_that_can_not_be_cleaned_is_retired_after_as_many_tries_as_allowed() {
    let mut slot = slot_in(phase(Place::Cleaning, DUE));
    let mut cleans = 1;
    let mut now = NOW;
    while let Some(deadline) = slot.deadline() {
        now = now.max(deadline);
        if let Verdict::Acted(actions) = slot.handle(now, Epoch(7), Event::Tick) {
            cleans += actions.len();
        }
    }
    assert_eq!(slot.name(), PhaseName::Retired);
    assert_eq!(cleans, SlotLimits::default().clean_attempts as usize);
}

#[test]
fn warmth_counts_only_when_no_second_try_to_clean_can_take_it_away() {
    let mut slot = slot_in(phase(Place::LastTry, DUE));
    let _ = slot.handle(NOW, Epoch(7), Event::Cleaned { warm: true });
    assert_eq!(slot.phase(), &Phase::Idle { holds: None });
}

#[test]
fn an_older_renewal_does_not_shorten_a_lease() {
    let mut slot = slot_in(phase(Place::Running, Moment(100_000)));
    let older = Lease { renew_at: Moment(2_000), expires_at: Moment(3_000) };
    assert_eq!(slot.handle(NOW, Epoch(7), Event::LeaseRenewed(older)), Verdict::Ignored(Why::Duplicate));
    assert_eq!(slot.deadline(), Some(RENEW));
}

#[test]
fn a_renewal_that_is_not_answered_is_asked_for_again_a_bounded_number_of_times() {
    let mut slot = slot_in(phase(Place::Running, Moment(100_000)));
    let mut asked = 0;
    while slot.name() == PhaseName::Running {
        let now = slot.deadline().unwrap_or(EXPIRED);
        if slot.handle(now, Epoch(7), Event::Tick) == Verdict::Acted(vec![Action::Renew]) {
            asked += 1;
        }
    }
    assert!((2..=4).contains(&asked), "asked {asked} times in 4 s");
}
