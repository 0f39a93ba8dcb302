//! Payloads that mean ill, and tokens in the wrong hands.

use std::path::Path;
use std::time::Duration;

use image_store::layout::{Compression, ImageSpec, LayerBuilder};
use pilot_tests::images::{busybox_layer, image, shell};
use pilot_tests::kube::{Host, Namespace, SOON, Shape, command, project, push, push_layout};
use pilot_tests::run::within;

use super::basics::{flow, sh};

/// An image with the program of `tests/kube-hostile`, once more with the setuid bit.
fn hostile_image(namespace: &Namespace) -> String {
    let folder = tempfile::tempdir().expect("tempdir");
    let program = folder.path().join("hostile");
    let sources = ["hostile.c", "reach.c"].map(|name| project().join("tests/kube-hostile").join(name));
    let mut arguments = vec!["-static", "-Os", "-o", program.to_str().expect("path")];
    arguments.extend(sources.iter().map(|source| source.to_str().expect("path")));
    let _made = command(Path::new("/usr/bin/gcc"), &arguments, "").good();
    let bytes = std::fs::read(&program).expect("program");
    let layer = busybox_layer(LayerBuilder::new())
        .expect("busybox-static")
        .file("bin/hostile", 0o755, &bytes)
        .file("bin/setuid", 0o4755, &bytes)
        .finish(Compression::Gzip)
        .expect("layer");
    let layout = folder.path().join("layout");
    let _written = image(&layout, &shell(), vec![layer]).expect("image");
    push_layout(&namespace.node().registry(), "hostile", &layout, &[])
}

/// What may be reached, because a pod's containers share it or because it is the slot's own; everything else is refused.
const REACHED: [&str; 3] = [
    // The pod's network is one: docs/explanation/security.md.
    "loopback-port",
    "api-server",
    // Where the shim, which is the same user, notes what it launched.
    "markers-folder",
];

/// Each attempt and whether it went well.
fn attempts(told: &str) -> Vec<(&str, &str, &str)> {
    told.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(": ")?;
            let (answer, detail) = rest.split_once(' ')?;
            Some((name, answer, detail))
        })
        .collect()
}

fn assert_refused(told: &str) {
    let attempts = attempts(told);
    let scoped = attempts.contains(&("landlock", "refused", "scoped"));
    let mut wrong = Vec::new();
    for (name, answer, detail) in &attempts {
        // Nobody takes calls while a payload runs: those that an earlier one made still wait, and there is no room for more.
        if *name == "control-socket" {
            continue;
        }
        let may = REACHED.contains(name) || (*name == "abstract-socket" && !scoped);
        let wanted = if may { "reached" } else { "refused" };
        if *answer != wanted {
            wrong.push(format!("{name} was {answer}: {detail}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{told}");
    assert!(attempts.len() == 86 && told.ends_with("done\n"), "{} attempts\n{told}", attempts.len());
}

/// In which slot a program runs.
fn slot_of(host: &Host, program: &str) -> Option<u32> {
    (0..2).find(|slot| host.slot(*slot).iter().any(|process| process.name == program))
}

#[test]
fn a_hostile_payload_reaches_nothing_and_leaves_nothing() {
    let namespace = Namespace::new("hostile", &[]);
    let pod = namespace.pod(&Shape::default());
    let host = pod.host();
    let image = hostile_image(&namespace);
    let payload = |name: &str, words: &str, fields: &str| {
        format!("  - {{name: {name}, image: {image:?}, command: [{words}], {fields}}}\n")
    };
    let beside = pod.submit(&flow(&[payload("neighbour", "/bin/hostile, neighbour", "walltime: 300s")]));
    pod.until_output(&beside, "neighbour", "listening");
    let neighbours = slot_of(&host, "hostile").expect("a slot");

    let first = pod.run_well(&flow(&[payload("first", "/bin/hostile", "")]));
    assert_refused(&pod.output(&first, "first"));
    let second = pod.run_well(&flow(&[payload("second", "/bin/hostile", "")]));
    // It looks for what the first one left, too.
    assert_refused(&pod.output(&second, "second"));
    host.touch_work(neighbours, "go");
    assert_eq!(pod.wait(&beside, SOON).code, 0, "{:#}", pod.payload(&beside, "neighbour"));
    assert!(pod.output(&beside, "neighbour").ends_with("undisturbed\n"));
    let good = |number| sh(&namespace, &format!("good-{number}"), "ls -A /work /tmp /dev/shm; sleep 1", "");
    let run = pod.run_well(&flow(&[good(0), good(1)]));
    for number in 0..2 {
        let empty = "/dev/shm:\n\n/tmp:\n\n/work:\n";
        assert_eq!(pod.output(&run, &format!("good-{number}")), empty);
    }
}

/// A request as who has this token: the status that it got, and the answer.
fn request(namespace: &Namespace, token: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let ca = namespace.node().state().join("pki/ca.crt");
    let kind = if method == "PATCH" { "application/strategic-merge-patch+json" } else { "application/json" };
    let (kind, token) = (format!("Content-Type: {kind}"), format!("Authorization: Bearer {token}"));
    let url = format!("https://10.96.0.1{path}");
    let fixed = [
        "-s",
        "--noproxy",
        "*",
        "--max-time",
        "20",
        "-w",
        "\n%{http_code}",
        "--cacert",
        ca.to_str().expect("path"),
    ];
    let mut all = fixed.to_vec();
    all.extend(["-X", method, "-H", &kind, "-H", &token, &url]);
    if !body.is_empty() {
        all.extend(["--data-binary", body]);
    }
    // The server may close the connection after a refusal, which curl then complains of.
    let answer = command(Path::new("/usr/bin/curl"), &all, "").stdout;
    let (text, status) = answer.rsplit_once('\n').expect("a status");
    (status.parse().expect("a number"), text.to_owned())
}

/// Requests that no pilot may make; `bind` changes an image.
fn foreign_requests(bind: &str) -> Vec<(&'static str, &'static str, &str)> {
    let nonce =
        r#"{"metadata": {"annotations": {"latebind.dev/slot-0": "00000000000000000000000000000000"}}}"#;
    let pod = r#"{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x"}, "spec": {"containers": []}}"#;
    let eviction = r#"{"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "victim"}}"#;
    let image =
        r#"{"spec": {"containers": [{"name": "pilot", "image": "registry.example/pilot@sha256:0"}]}}"#;
    vec![
        ("PATCH", "/pods/victim", "{}"),
        ("PATCH", "/pods/victim", bind),
        ("PATCH", "/pods/victim", nonce),
        ("PATCH", "/pods/victim?dryRun=All", "{}"),
        ("PATCH", "/pods/victim/status", "{}"),
        ("PATCH", "/pods/victim/resize", "{}"),
        ("PATCH", "/pods/victim/ephemeralcontainers", "{}"),
        ("PUT", "/pods/victim", pod),
        ("GET", "/pods/victim", ""),
        ("GET", "/pods/victim/log", ""),
        ("GET", "/pods", ""),
        ("GET", "/pods?watch=1", ""),
        ("GET", "/secrets", ""),
        ("GET", "/configmaps", ""),
        ("GET", "/api/v1/nodes", ""),
        ("GET", "/api/v1/nodes/n1/proxy/pods", ""),
        ("DELETE", "/pods/victim", ""),
        ("DELETE", "/pods", ""),
        ("POST", "/pods/victim/exec?command=true&container=slot-0", ""),
        ("POST", "/pods/victim/eviction", eviction),
        ("POST", "/pods", pod),
        ("POST", "/serviceaccounts/latebind-pilot/token", "{}"),
        ("PATCH", "/serviceaccounts/latebind-pilot", "{}"),
        // Its own pod, but not a slot's image.
        ("GET", "/pods/thief", ""),
        ("DELETE", "/pods/thief", ""),
        ("PATCH", "/pods/thief", r#"{"metadata": {"labels": {"a": "b"}}}"#),
        ("PATCH", "/pods/thief", image),
    ]
}

#[test]
fn a_token_that_is_stolen_from_a_pilot_is_of_no_use_against_another_pod() {
    let namespace = Namespace::new("stolen_token", &[]);
    let shape = |name: &str| Shape { name: name.into(), slots: 1, cpu: "100m".into(), ..Shape::default() };
    let (thief, victim) = (namespace.pod(&shape("thief")), namespace.pod(&shape("victim")));
    let pid = thief.host().pilot().expect("a pilot").pid;
    let path = format!("/proc/{pid}/root/var/run/secrets/kubernetes.io/serviceaccount/token");
    let token = std::fs::read_to_string(path).expect("token");
    let ours = format!("/api/v1/namespaces/{}", namespace.name());
    let ask = |method: &str, path: &str, body: &str| {
        let path = if path.starts_with("/api") { path.to_owned() } else { format!("{ours}{path}") };
        request(&namespace, &token, method, &path, body)
    };

    // What it is for: its own pod, read by a change of nothing.
    let (status, own) = ask("PATCH", "/pods/thief", "{}");
    assert_eq!(status, 200, "{own}");
    let image = &pilot_tests::kube::images(namespace.node()).busybox;
    let image = image.trim_start_matches("docker://");
    let bind = serde_json::json!({"spec": {"containers": [{"name": "slot-0", "image": image}]}}).to_string();
    // Its version changes with its status too, which the kubelet writes when it likes.
    let stands = || {
        let object = victim.object();
        let meta = ["labels", "annotations", "finalizers", "ownerReferences", "deletionTimestamp"];
        (object["spec"].clone(), meta.map(|field| object["metadata"][field].clone()))
    };
    let before = stands();
    for (method, path, body) in foreign_requests(&bind) {
        let (status, answer) = ask(method, path, body);
        assert!(matches!(status, 403 | 422), "{method} {path} {body}: {status} {answer}");
    }
    assert_eq!(stands(), before);

    let list = format!(
        r#"{{"kind": "SelfSubjectRulesReview", "apiVersion": "authorization.k8s.io/v1", "spec": {{"namespace": "{}"}}}}"#,
        namespace.name()
    );
    let (status, rights) = ask("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &list);
    assert_eq!(status, 201, "{rights}");
    let rights: serde_json::Value = serde_json::from_str(&rights).expect("json");
    // Beside asking about oneself, which everybody may.
    let rules = rights["status"]["resourceRules"].as_array().expect("rules");
    let own = |rule: &&serde_json::Value| !rule["resources"].to_string().contains("selfsubject");
    let rules: Vec<_> = rules.iter().filter(own).collect();
    let [only] = rules.as_slice() else { panic!("{rules:#?}") };
    assert_eq!(
        (&only["resources"], &only["verbs"]),
        (&serde_json::json!(["pods"]), &serde_json::json!(["patch"]))
    );

    // A token lives with its pod.
    let _gone = namespace.kubectl(&["delete", "pod", "thief", "--grace-period=1"], "").good();
    let dead = || ask("PATCH", "/pods/thief", "{}").0 == 401;
    assert!(within(SOON, dead), "the token outlives its pod");
}

#[test]
fn a_token_that_was_renewed_is_taken_up_without_a_restart() {
    let namespace = Namespace::new("renewed", &[]);
    let shape = Shape { slots: 1, cpu: "200m".into(), ..Shape::default() };
    let pod = namespace.pod(&shape);
    let host = pod.host();
    let images = ["one", "two"].map(|word| {
        let spec = ImageSpec { env: vec![format!("WORD={word}")], ..shell() };
        push(namespace.node(), &format!("renewed-{word}"), &spec)
    });
    // Each is another image than the one before, so each needs the token.
    let bind = |number: usize| {
        let image = &images[number % 2];
        pod.submit(&flow(&[format!("  - {{name: p, image: {image:?}, command: [/bin/true]}}\n")]))
    };
    let file = host.volume("projected", "token").join("..data/token");
    let uid = pod.object()["metadata"]["uid"].as_str().expect("uid").to_owned();
    let pilot = host.pilot();

    // One that was read is used for a minute. The kubelet would write it again with every change of the pod.
    assert_eq!(pod.wait(&bind(0), SOON).code, 0);
    assert!(!within(Duration::from_secs(61), || false));
    std::fs::write(&file, "of.no.use").expect("write");
    let run = bind(1);
    let early = pod.wait(&run, Duration::from_secs(10));
    assert_ne!(early.code, 0, "a token of no use was of use");
    assert_eq!(pod.payload(&run, "p")["state"], "claimed", "{:#}", pod.payload(&run, "p"));
    let bound = format!("--bound-object-uid={uid}");
    let ask =
        ["create", "token", "latebind-pilot", "--bound-object-kind=Pod", "--bound-object-name=pilot", &bound];
    std::fs::write(&file, namespace.kubectl(&ask, "").good().trim()).expect("write");
    assert_eq!(pod.wait(&run, Duration::from_secs(100)).code, 0, "{:#}", pod.payload(&run, "p"));
    assert_eq!(pod.payload(&run, "p")["tries"], 1);
    assert_eq!(host.pilot().map(|pilot| pilot.pid), pilot.map(|pilot| pilot.pid), "the pilot was restarted");
}

#[test]
fn what_a_payload_leaves_among_the_launch_markers_is_cleaned_and_its_slot_stays_warm() {
    let namespace = Namespace::new("markers", &[]);
    let pod = namespace.pod(&Shape { slots: 1, cpu: "200m".into(), ..Shape::default() });
    let leave = "cd /.latebind/control/ran && mkdir -p a/b && echo x > a/b/c && chmod 0 a && echo left";
    let run = pod.run_well(&flow(&[sh(&namespace, "leaves", leave, "")]));
    assert_eq!(pod.output(&run, "leaves"), "left\n");
    let bound = crate::neighbour::restarts(&pod, "slot-0");
    let run = pod.run_well(&flow(&[sh(&namespace, "looks", "ls -A /.latebind/control/ran", "")]));
    assert_eq!(pod.output(&run, "looks"), "latest\n");
    assert_eq!(crate::neighbour::restarts(&pod, "slot-0"), bound, "the slot did not stay warm");
}
