use super::*;

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
