//! What `pilot check --cluster` finds, and that the chart's pod is the one that `pilot pod` prints.

use pilot_tests::kube::{Answer, Namespace, Pod, Shape, command, images, project};
use serde_json::Value;

fn items(answer: &Answer) -> Vec<Value> {
    let report: Value = serde_json::from_str(&answer.stdout).expect("json");
    report["items"].as_array().cloned().expect("items")
}

fn is<'a>(items: &'a [Value], name: &str) -> &'a str {
    let item = items.iter().find(|item| item["name"] == name);
    item.and_then(|item| item["is"].as_str()).unwrap_or_else(|| panic!("no item {name}: {items:#?}"))
}

const CHECK: [&str; 4] = ["check", "--cluster", "--output", "json"];

#[test]
fn the_tiers_that_are_installed_are_found_and_each_lack_says_what_it_costs() {
    let namespace = Namespace::new("tiers", &["tiers.prefetch=true"]);
    let mut words = CHECK.to_vec();
    words.extend(["--namespace", namespace.name()]);
    let answer = namespace.pilot(&words, "");
    assert_eq!(answer.code, 0, "{}", answer.stdout);
    let found = items(&answer);
    for there in [
        "bind",
        "prefetch",
        "your rights",
        "your registry logins",
        "the pod",
        "no more than that",
        "images of the node are used",
    ] {
        assert_eq!(is(&found, there), "there", "{there}");
    }
    for lacking in ["resize", "late credentials"] {
        assert_eq!(is(&found, lacking), "lacking", "{lacking}");
    }
}

#[test]
fn who_may_not_ask_is_told_so_and_a_namespace_without_the_account_is_refused() {
    let namespace = Namespace::new("strangers", &[]);
    let kubeconfig = namespace.node().state().join("alice.kubeconfig");
    let env = format!("KUBECONFIG={}", kubeconfig.display());
    let program = pilot_tests::run::dist().join("pilot");
    let mut words = vec![env.as_str(), program.to_str().expect("path")];
    words.extend(CHECK);
    words.extend(["--namespace", namespace.name()]);
    let found = items(&command("/usr/bin/env".as_ref(), &words, ""));
    assert_eq!((is(&found, "bind"), is(&found, "your rights")), ("unknown", "lacking"));
    assert_eq!(is(&found, "your registry logins"), "lacking");
    let mut words = CHECK.to_vec();
    words.extend(["--namespace", "no-such-namespace"]);
    let answer = namespace.pilot(&words, "");
    assert_eq!(answer.code, 69, "{}", answer.stdout);
    assert_eq!(is(&items(&answer), "bind"), "missing");
}

#[test]
fn a_pilot_finds_its_own_rights() {
    let namespace = Namespace::new("within", &[]);
    let pod = namespace.pod(&Shape::default());
    let answer = pod.pilot(&CHECK, "");
    assert_eq!(answer.code, 0, "{}{}", answer.stdout, answer.stderr);
    let found = items(&answer);
    assert_eq!(
        (is(&found, "bind"), is(&found, "its own pod"), is(&found, "prefetch")),
        ("there", "there", "lacking")
    );
}

/// A list of objects by their names.
fn by_name(list: &Value) -> std::collections::BTreeMap<String, Value> {
    let all = list.as_array().cloned().unwrap_or_default();
    all.into_iter().map(|item| (item["name"].as_str().unwrap_or_default().to_owned(), item)).collect()
}

#[test]
fn the_charts_pod_is_the_one_that_pilot_pod_prints() {
    let namespace = Namespace::new("chart", &[]);
    let made = images(namespace.node());
    let chart = project().join("deploy/chart/latebind");
    let (pilot, shim) = (format!("images.pilot={}", made.pilot), format!("images.shim={}", made.shim));
    let words = [
        "template",
        "x",
        chart.to_str().expect("path"),
        "--kube-version",
        "1.36",
        "--set",
        &pilot,
        "--set",
        &shim,
        "--set",
        "registriesConfigMap=registries",
        "--set",
        "registryLogin=team,s3Secret=objects",
        "--set",
        "mounts={/data/calib,/etc/app.json:file}",
        "--show-only",
        "templates/deployment.yaml",
    ];
    let yaml = command(&namespace.node().program("helm"), &words, "").good();
    let json =
        namespace.node().kubectl(&["create", "--dry-run=client", "-o", "json", "-f", "-"], &yaml).good();
    let deployment: Value = serde_json::from_str(&json).expect("json");
    let mut more = vec!["--registry-login", "team", "--s3-secret", "objects"];
    more.extend(["--mount", "/data/calib", "--mount", "/etc/app.json:file"]);
    let (theirs, ours) = (
        &deployment["spec"]["template"]["spec"],
        &Pod::manifest(&namespace, &Shape::default().with(&more))["spec"],
    );
    for slot in ["slot-0", "slot-1"] {
        let fit = |spec: &Value| {
            let mut slot = by_name(&spec["containers"])[slot].clone();
            // A matter of taste.
            slot["resources"] = Value::Null;
            slot
        };
        assert_eq!(fit(theirs), fit(ours));
    }
    let variables = |spec: &Value| by_name(&by_name(&spec["containers"])["pilot"]["env"]);
    let (there, here) = (variables(theirs), variables(ours));
    let missing: Vec<&String> = here.keys().filter(|name| !there.contains_key(*name)).collect();
    assert_eq!(missing, Vec::<&String>::new());
    let from = |spec: &Value| by_name(&spec["containers"])["pilot"]["envFrom"].clone();
    assert_eq!(from(theirs), from(ours));
    let prepared = |spec: &Value| by_name(&by_name(&spec["initContainers"])["prepare"]["env"]);
    assert_eq!(prepared(theirs), prepared(ours));
    assert_eq!(by_name(&theirs["volumes"]), by_name(&ours["volumes"]));
    for field in [
        "serviceAccountName",
        "automountServiceAccountToken",
        "enableServiceLinks",
        "securityContext",
        "restartPolicy",
    ] {
        assert_eq!(theirs[field], ours[field], "{field}");
    }
}
