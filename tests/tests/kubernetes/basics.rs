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
