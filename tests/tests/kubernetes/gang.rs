//! Payloads that run together in the slots of one pod.

use pilot_tests::kube::{Namespace, Shape};

use crate::basics::{flow, sh};

const READS: &str = "inputs: [{name: y, from: 'stage://a/x'}]";

#[test]
fn a_pipe_and_shared_memory_join_the_slots_of_a_pod() {
    let namespace = Namespace::new("gang", &[]);
    let pod = namespace.pod(&Shape::default());
    let pipe = "outputs: [{name: x, class: pipe}]";
    let run = pod.run_well(&flow(&[
        sh(&namespace, "a", "seq 1 100000 > /stage/out/x", pipe),
        sh(&namespace, "b", "awk '{n += $1} END {print n}' /stage/in/y", READS),
    ]));
    assert_eq!(pod.output(&run, "b"), "5000050000\n");
    // Neither opens its end.
    let run = pod.run_well(&flow(&[
        sh(&namespace, "a", "sleep 1; yes > /stage/out/x; echo $?", pipe),
        sh(&namespace, "b", "true", READS),
    ]));
    assert_eq!(pod.output(&run, "a"), "141\n");
    let until = |path: &str, word: &str| {
        format!("until [ \"$(head -c 5 {path} | busybox tr -d '\\0')\" = {word} ]; do sleep 0.05; done")
    };
    let say = |path: &str, word: &str| format!("printf {word} | dd of={path} conv=notrunc 2>/dev/null");
    let (out, input) = ("/stage/out/x", "/stage/in/y");
    let run = pod.run_well(&flow(&[
        sh(
            &namespace,
            "a",
            &format!("{}; {}; wc -c < {out}", say(out, "hello"), until(out, "world")),
            "outputs: [{name: x, class: shared, max_size: 64Ki}]",
        ),
        sh(&namespace, "b", &format!("{}; {}", until(input, "hello"), say(input, "world")), READS),
    ]));
    assert_eq!(pod.output(&run, "a"), "65536\n");
}

#[test]
fn one_that_fails_ends_its_gang_and_more_than_the_pod_has_slots_are_refused() {
    let namespace = Namespace::new("gang-fails", &[]);
    let pod = namespace.pod(&Shape::default());
    let text = pod.run_badly(&flow(&[
        sh(&namespace, "a", "exit 3", "outputs: [{name: x, class: pipe}]"),
        sh(&namespace, "b", "cat /stage/in/y; sleep 60", READS),
    ]));
    assert!(text.contains("because \"a\" did not succeed"), "{text}");
    let share = "outputs: [{name: x, class: shared, max_size: 4Ki}]";
    let text = pod.run_badly(&flow(&[
        sh(&namespace, "a", "true", share),
        sh(&namespace, "b", "true", READS),
        sh(&namespace, "c", "true", READS),
    ]));
    assert!(text.contains("its gang needs 3 slots"), "{text}");
}
