use super::super::model::{Network, OutputClass, Rootfs};
use super::super::tests::{plan, with_payloads};
use super::super::{InputSource, Plan, PlannedPayload, PlannedResources, User};

fn planned(lines: &str) -> Plan {
    plan(&with_payloads(lines)).expect("the workflow is right")
}

/// `name<-payload/output` or `name<-path`, in order.
fn inputs(plan: &Plan, payload: &PlannedPayload) -> Vec<String> {
    payload
        .inputs
        .iter()
        .map(|input| {
            let source = match &input.source {
                InputSource::Host(path) => path.display().to_string(),
                InputSource::Object(url) => url.clone(),
                InputSource::Stage { producer, output } => {
                    let name = plan.stage_name(*producer, *output).expect("it exists");
                    name.trim_start_matches("stage://w/").to_owned()
                }
            };
            format!("{}<-{source}", input.name)
        })
        .collect()
}

#[test]
fn a_payload_with_an_image_has_sensible_defaults() {
    let plan = planned("- {name: a, image: oci:x}\n");
    let [payload] = &plan.payloads[..] else { panic!("one payload") };
    assert_eq!((payload.id, payload.name.as_str(), payload.element), (0, "a", None));
    assert!(payload.inputs.is_empty() && payload.needs.is_empty() && payload.environment().is_empty());
    let spec = &payload.spec;
    assert_eq!((spec.image.as_str(), &spec.command, &spec.args, &spec.cwd), ("oci:x", &None, &None, &None));
    assert_eq!((spec.user, spec.rootfs, spec.network), (User::Unsaid, Rootfs::ReadOnly, Network::Host));
    let resources = PlannedResources { cpu_millicores: 1000, memory_bytes: 1 << 30, disk_bytes: 1 << 30 };
    assert_eq!(spec.resources, resources);
    assert_eq!((spec.walltime_ms, spec.grace_ms, spec.retries, spec.at_most_once), (None, 10_000, 0, false));
    assert_eq!((spec.at.line, spec.at.column), (4, 3));
}

#[test]
fn what_a_payload_says_wins_over_the_defaults_field_by_field() {
    let text = r#"apiVersion: latebind/v1
metadata: {name: w}
defaults: {image: i, retries: 2, walltime: 1m, env: {A: 1, B: 2}, resources: {cpu: 2, memory: 2Gi}, trust_group: g}
payloads:
- {name: a, env: {B: 3}, resources: {memory: 1k}, grace: 0s}
- {name: b, image: j, at_most_once: true, walltime: 2m, trust_group: h, user: 7}
- {name: c, user: image}
"#;
    let plan = plan(text).expect("the workflow is right");
    let (a, b) = (&plan.payloads[0].spec, &plan.payloads[1].spec);
    assert_eq!((a.image.as_str(), b.image.as_str()), ("i", "j"));
    assert_eq!((a.retries, b.retries), (2, 0), "a payload that runs once takes no retries from the defaults");
    assert_eq!((a.walltime_ms, b.walltime_ms), (Some(60_000), Some(120_000)));
    assert_eq!((a.env["A"].as_str(), a.env["B"].as_str()), ("1", "3"));
    assert_eq!((a.resources.cpu_millicores, a.resources.memory_bytes), (2000, 1000));
    assert_eq!((a.trust_group.as_deref(), b.trust_group.as_deref()), (Some("g"), Some("h")));
    assert_eq!((a.grace_ms, b.user), (0, User::Ids { uid: 7, gid: None }));
    assert_eq!((a.user, plan.payloads[2].spec.user), (User::Unsaid, User::Image));
}

#[test]
fn scalars_keep_their_spelling() {
    let plan = planned(
        r#"- {name: a, image: i, command: [sleep, 1.50], args: [yes, 0x10, true, 1e3], env: {A: 007, B: on}}
"#,
    );
    let spec = &plan.payloads[0].spec;
    assert_eq!(spec.command.as_deref(), Some(&["sleep".to_owned(), "1.50".to_owned()][..]));
    assert_eq!(spec.args.as_deref(), Some(&["yes", "0x10", "true", "1e3"].map(str::to_owned)[..]));
    assert_eq!((spec.env["A"].as_str(), spec.env["B"].as_str()), ("007", "on"));
}

#[test]
fn an_array_is_expanded_and_its_elements_know_their_number() {
    let plan = planned(
        r#"- {name: a, image: i, count: 3, env: {X: y}, outputs: [{name: o, class: mem, max_size: 1k, save: 'r/o-{index}'}]}
- {name: b, image: i}
"#,
    );
    let names: Vec<&str> = plan.payloads.iter().map(|payload| payload.name.as_str()).collect();
    assert_eq!(names, ["a-0", "a-1", "a-2", "b"]);
    assert!(plan.payloads.iter().enumerate().all(|(id, payload)| payload.id == id));
    let last = &plan.payloads[2];
    let env: Vec<(String, String)> = last.environment().into_iter().collect();
    let expected = [("LATEBIND_COUNT", "3"), ("LATEBIND_INDEX", "2"), ("X", "y")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(env, expected);
    let output = &last.spec.outputs[0];
    assert_eq!((output.class, output.max_bytes), (OutputClass::Mem, 1000));
    assert_eq!(last.save_to(output), Some("r/o-2".into()));
}

#[test]
fn an_array_of_one_is_an_array() {
    let plan = planned(
        r#"- {name: a, image: i, count: 1, outputs: [{name: o}]}
- {name: b, image: i, inputs: [{name: x, from: 'stage://a/o'}]}
"#,
    );
    assert_eq!(plan.payloads[0].name, "a-0");
    assert_eq!(inputs(&plan, &plan.payloads[1]), ["x-0<-a-0/o"]);
}

#[test]
fn an_arrays_output_goes_to_one_payload_as_numbered_inputs() {
    let plan = planned(
        r#"- {name: s, image: i, count: 3, outputs: [{name: n}, {name: e}]}
- {name: f, image: i, inputs: [{name: e, from: 'stage://s/e'}, {name: one, from: 'stage://s-1/n'}]}
"#,
    );
    let fit = &plan.payloads[3];
    assert_eq!(inputs(&plan, fit), ["e-0<-s-0/e", "e-1<-s-1/e", "e-2<-s-2/e", "one<-s-1/n"]);
    assert_eq!(fit.needs, [0, 1, 2]);
}

#[test]
fn scatter_pairs_arrays_of_one_count_and_deals_out_a_longer_one() {
    let plan = planned(
        r#"- {name: s, image: i, count: 5, outputs: [{name: e}]}
- {name: p, image: i, count: 5, inputs: [{name: e, from: 'stage://s/e', scatter: true}]}
- {name: m, image: i, count: 2, inputs: [{name: e, from: 'stage://s/e', scatter: true}]}
- {name: all, image: i, count: 2, inputs: [{name: e, from: 'stage://s/e'}]}
"#,
    );
    let of = |id: usize| inputs(&plan, &plan.payloads[id]);
    assert_eq!(of(5), ["e<-s-0/e"]);
    assert_eq!(of(9), ["e<-s-4/e"]);
    assert_eq!(of(10), ["e-0<-s-0/e", "e-1<-s-2/e", "e-2<-s-4/e"]);
    assert_eq!(of(11), ["e-0<-s-1/e", "e-1<-s-3/e"]);
    assert_eq!(plan.payloads[11].needs, [1, 3]);
    assert_eq!(of(12).len(), 5);
    assert_eq!(of(12), of(13));
}

#[test]
fn files_are_named_singly_as_folders_and_by_pattern() {
    let plan = planned(
        r#"- {name: a, image: i, inputs: [{name: f, from: ./data}, {name: d, from: 'file:many'}, {name: abs, from: 'file:///flow/data'}, {name: p, from: './many/*'}]}
- {name: b, image: i, count: 2, inputs: [{name: p, from: './many/*', scatter: true}]}
"#,
    );
    let of = |id: usize| inputs(&plan, &plan.payloads[id]);
    let all = [
        "f<-/flow/data",
        "d<-/flow/many",
        "abs<-/flow/data",
        "p-0<-/flow/many/a",
        "p-1<-/flow/many/b",
        "p-2<-/flow/many/c",
        "p-3<-/flow/many/d",
        "p-4<-/flow/many/e",
    ];
    assert_eq!(of(0), all);
    assert_eq!(of(1), ["p-0<-/flow/many/a", "p-1<-/flow/many/c", "p-2<-/flow/many/e"]);
    assert_eq!(of(2), ["p-0<-/flow/many/b", "p-1<-/flow/many/d"]);
}

#[test]
fn after_orders_payloads_without_data() {
    let plan = planned(
        r#"- {name: c, image: i, after: [a, b, a-1]}
- {name: a, image: i, count: 2}
- {name: b, image: i, after: [a-0]}
"#,
    );
    assert_eq!(plan.payloads[0].needs, [1, 2, 3]);
    assert_eq!(plan.payloads[3].needs, [1]);
}

#[test]
fn the_largest_array_is_planned() {
    let plan = planned(
        r#"- {name: a, image: i, count: 100000, outputs: [{name: o}]}
- {name: b, image: i, count: 100000, inputs: [{name: o, from: 'stage://a/o', scatter: true}]}
"#,
    );
    assert_eq!(plan.payloads.len(), 200_000);
    assert_eq!(plan.payloads[199_999].needs, [99_999]);
}

#[test]
fn an_object_is_one_thing_and_each_element_of_an_array_may_have_its_own() {
    let plan = planned(
        "- {name: a, image: i, count: 2, inputs: [{name: x, from: 's3://data/all'}, {name: y, from: 's3://data/part-{index}'}], outputs: [{name: o, save: 's3://data/out/{index}'}]}\n",
    );
    assert_eq!(inputs(&plan, &plan.payloads[0]), ["x<-s3://data/all", "y<-s3://data/part-0"]);
    assert_eq!(inputs(&plan, &plan.payloads[1]), ["x<-s3://data/all", "y<-s3://data/part-1"]);
    let last = &plan.payloads[1];
    assert_eq!(last.save_to(&last.spec.outputs[0]).as_deref(), Some("s3://data/out/1"));
}
