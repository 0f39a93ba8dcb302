use proptest::prelude::*;

use super::*;
use crate::retry::Attempts;

#[test]
fn exit_codes_are_those_of_the_documented_table() {
    let codes: Vec<u8> = RunExit::ALL.iter().map(|exit| exit.code()).collect();
    assert_eq!(codes, [0, 1, 64, 69, 70, 130, 143]);
    let source = include_str!("outcome.rs");
    for exit in RunExit::ALL {
        let row = format!("/// | {} | {} |", exit.code(), exit.meaning());
        assert!(source.contains(&row), "the table in the doc comment lacks {row:?}");
    }
}

#[test]
fn a_run_is_as_bad_as_its_worst_payload() {
    let outcome = |conclusion| Outcome::before_launch(conclusion);
    let fault = |class| Conclusion::Failed(Fault::new(class, "x"));
    let table = [
        (Conclusion::Succeeded, 0),
        (Conclusion::Exited(ExitStatus::Code(3)), 1),
        (Conclusion::Exited(ExitStatus::Signal { signal: 11, core: true }), 1),
        (Conclusion::Stopped(StopCause::Walltime), 1),
        (Conclusion::Lost, 1),
        (fault(FaultClass::Retry), 1),
        (fault(FaultClass::Payload), 1),
        (fault(FaultClass::Slot), 1),
        (fault(FaultClass::Pilot), 70),
    ];
    for (conclusion, code) in table {
        assert_eq!(RunExit::of(&outcome(conclusion.clone())).code(), code, "{conclusion}");
    }
    assert!(RunExit::ALL.is_sorted(), "the largest code is the worst");
}

#[test]
fn a_signal_reads_as_in_a_shell() {
    assert_eq!(ExitStatus::Signal { signal: 9, core: false }.shell_code(), 137);
    assert_eq!(ExitStatus::Signal { signal: 4_000, core: false }.shell_code(), 255);
    assert_eq!(ExitStatus::Code(7).shell_code(), 7);
}

fn fault_class() -> impl Strategy<Value = FaultClass> {
    use FaultClass::{Payload, Pilot, Retry, Slot};
    prop::sample::select(vec![Retry, Payload, Slot, Pilot])
}

fn status() -> impl Strategy<Value = ExitStatus> {
    let signal = |(signal, core)| ExitStatus::Signal { signal, core };
    prop_oneof![any::<u8>().prop_map(ExitStatus::Code), any::<(i32, bool)>().prop_map(signal)]
}

fn cause() -> impl Strategy<Value = StopCause> {
    use StopCause::*;
    let own = [Cancelled, Walltime, MemoryExceeded, DiskExceeded, OutputExceeded];
    let all = [&own[..], &[Evicted, Expired, Preempted, PilotStopping, GangEnded]].concat();
    prop::sample::select(all)
}

fn conclusion() -> impl Strategy<Value = Conclusion> {
    let fault = (fault_class(), any::<String>());
    prop_oneof![
        Just(Conclusion::Succeeded),
        status().prop_map(Conclusion::Exited),
        cause().prop_map(Conclusion::Stopped),
        fault.prop_map(|(class, message)| Conclusion::Failed(Fault::new(class, message))),
        Just(Conclusion::Lost),
    ]
}

fn usage() -> impl Strategy<Value = Usage> {
    let times = any::<[u64; 5]>();
    let counts = any::<(Option<u64>, bool, Option<u64>, u32)>();
    (times, counts).prop_map(|(times, (memory_peak_bytes, memory_peak_sampled, oom_kills, leftover))| {
        let [wall_us, user_us, system_us, max_rss_kib, output_bytes] = times;
        Usage {
            wall_us,
            user_us,
            system_us,
            max_rss_kib,
            memory_peak_bytes,
            memory_peak_sampled,
            oom_kills,
            leftover_processes: leftover,
            output_bytes,
        }
    })
}

fn kept<T: Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    let mut tree = serde_json::to_value(value).expect("to JSON");
    if let Some(object) = tree.as_object_mut() {
        object.insert("from-the-future".into(), 7.into());
    }
    serde_json::from_value(tree).expect("from JSON")
}

proptest! {
    #[test]
    fn what_a_journal_keeps_comes_back_as_it_was_beside_fields_it_does_not_know(
        conclusion in conclusion(),
        status in prop::option::of(status()),
        usage in usage(),
        launched: bool,
        cause in prop::option::of(cause()),
        counts: (u32, u32),
    ) {
        if let Some(status) = status {
            let exit = Exit { status, cause };
            prop_assert_eq!(kept(&exit), exit);
        }
        let attempts = Attempts { failed: counts.0, disrupted: counts.1 };
        prop_assert_eq!(kept(&attempts), attempts);
        prop_assert_eq!(kept(&usage), usage);
        let outcome = Outcome { conclusion, launched, status, usage };
        prop_assert_eq!(kept(&outcome), outcome);
    }
}

#[test]
fn names_in_a_journal_are_kebab_case_and_figures_may_be_missing() {
    let text = r#"{"conclusion":{"failed":{"class":"slot","message":"no room"}},"launched":true,
        "status":{"signal":{"signal":9,"core":false}},"usage":{"wall-us":3,"memory-peak-sampled":true}}"#;
    let outcome: Outcome = serde_json::from_str(text).expect("an outcome");
    let usage = Usage { wall_us: 3, memory_peak_sampled: true, ..Usage::default() };
    let status = Some(ExitStatus::Signal { signal: 9, core: false });
    let conclusion = Conclusion::Failed(Fault::new(FaultClass::Slot, "no room"));
    assert_eq!(outcome, Outcome { conclusion, launched: true, status, usage });
    let stopped = Conclusion::Stopped(StopCause::MemoryExceeded);
    assert_eq!(serde_json::to_string(&stopped).expect("to JSON"), r#"{"stopped":"memory-exceeded"}"#);
    let bare: Outcome =
        serde_json::from_str(r#"{"conclusion":"succeeded","launched":true}"#).expect("an outcome");
    assert_eq!(bare.usage, Usage::default());
}
