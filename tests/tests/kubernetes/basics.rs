//! What works when nothing goes wrong.

use pilot_tests::kube::{Namespace, Shape, images};

/// A workflow of payloads in flow style.
pub(crate) fn flow(payloads: &[String]) -> String {
    let head = "apiVersion: latebind/v1\nmetadata: {name: w}\ndefaults: {walltime: 60s, resources: {cpu: 100m, memory: 64Mi}}\n";
    format!("{head}payloads:\n{}", payloads.concat())
}

/// A payload that runs `script` in busybox's shell.
pub(crate) fn sh(namespace: &Namespace, name: &str, script: &str, fields: &str) -> String {
    let image = &images(namespace.node()).busybox;
    let script = serde_json::Value::from(script);
    format!("  - {{name: {name}, image: {image:?}, command: [/bin/sh, -c, {script}], {fields}}}\n")
}

#[test]
fn a_payload_gets_its_image_when_the_pod_is_there_already() {
    let namespace = Namespace::new("late", &[]);
    let pod = namespace.pod(&Shape::default());
    let make = sh(&namespace, "make", "id -u; echo 42 > /stage/out/x", "outputs: [{name: x, max_size: 1Mi}]");
    let read = sh(&namespace, "read", "cat /stage/in/x", "inputs: [{name: x, from: 'stage://make/x'}]");
    let run = pod.run_well(&flow(&[make, read]));
    assert_eq!(pod.output(&run, "make"), "10001\n");
    assert_eq!(pod.output(&run, "read"), "42\n");
}

#[test]
fn outputs_that_a_payload_kept_to_itself_are_kept() {
    let namespace = Namespace::new("hidden", &[]);
    let pod = namespace.pod(&Shape::default());
    let script = "umask 077; cd /stage/out; echo one > t; mv t f; echo two > t; mv t v; mkdir d/e; echo three > d/e/g; chmod 0 d/e";
    let outputs = "outputs: [{name: f, max_size: 1Mi}, {name: v, class: value}, {name: d, class: folder, max_size: 1Mi}]";
    let inputs = "inputs: [{name: f, from: 'stage://make/f'}, {name: v, from: 'stage://make/v'}, {name: d, from: 'stage://make/d'}]";
    let run = pod.run_well(&flow(&[
        sh(&namespace, "make", script, outputs),
        sh(&namespace, "read", "cd /stage/in; cat f v d/e/g", inputs),
    ]));
    assert_eq!(pod.output(&run, "read"), "one\ntwo\nthree\n");
}

#[test]
fn a_run_that_names_no_folder_gets_one_on_the_share() {
    let namespace = Namespace::new("out", &[]);
    let pod = namespace.pod(&Shape::default());
    let make =
        sh(&namespace, "make", "echo 42 > /stage/out/x", "outputs: [{name: x, max_size: 1Mi, save: answer}]");
    let run = pod.pilot(&["submit", "/dev/stdin", "--quiet"], &flow(&[make])).good();
    let answer = pod.wait(run.trim(), std::time::Duration::from_secs(60));
    assert_eq!(answer.code, 0, "{}{}", answer.stdout, answer.stderr);
    let saved = format!("{}/pilot/w-{}.out/answer", pod.host().share().display(), run.trim());
    assert_eq!(std::fs::read_to_string(&saved).expect(&saved), "42\n");
}
