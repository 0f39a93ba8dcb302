//! Logins that a run brings from its workstation: what of them the cluster sees, and that nothing of them stays.

use std::path::PathBuf;

use pilot_tests::kube::{Namespace, SOON};
use pilot_tests::run::within;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::logins::private_image;
use crate::workstation::{Desk, text};

/// alice:wonder
const ALICE: &str = "YWxpY2U6d29uZGVy";
/// bob:builder, for a registry that has nothing to do with the run.
const BOB: &str = "Ym9iOmJ1aWxkZXI=";

/// An auth file as docker writes it, in `folder/config.json`.
fn auth_file(desk: &Desk, folder: &str) -> PathBuf {
    let private = desk.namespace.node().private_registry();
    let all = json!({"auths": {private: {"auth": ALICE}, "other.example": {"auth": BOB}}});
    let folder = desk.path(folder);
    std::fs::create_dir_all(&folder).expect("mkdir");
    std::fs::write(folder.join("config.json"), all.to_string()).expect("write");
    folder.join("config.json")
}

fn workflow(image: &str, script: &str) -> String {
    format!(
        "apiVersion: latebind/v1\nmetadata: {{name: private}}\ndefaults: {{walltime: 400s, resources: {{cpu: 100m, memory: 64Mi}}}}\n\
         payloads:\n  - {{name: secret, image: {image:?}, command: [sh, -c, {script:?}]}}\n"
    )
}

fn desk(test: &str, script: &str) -> Desk {
    let namespace = Namespace::new(test, &[]);
    let image = private_image(namespace.node(), &test.replace('_', "-"));
    Desk::of(namespace, &workflow(&image, script))
}

/// With the auth file named.
fn with_login(desk: Desk) -> Desk {
    let file = auth_file(&desk, "named").display().to_string();
    desk.with(&["--registry-auth", &file])
}

fn secrets(namespace: &Namespace) -> Vec<String> {
    let names = namespace.kubectl(&["get", "secrets", "-o", "name"], "").good();
    names.lines().map(str::to_owned).collect()
}

/// Everything that a credential must not be in.
fn is_told_nowhere(desk: &Desk, pod: &str) {
    let object = desk.namespace.kubectl(&["get", pod, "-o", "json", "--show-managed-fields"], "").good();
    let events = desk.namespace.kubectl(&["get", "events", "-o", "json"], "").good();
    let log = desk.namespace.kubectl(&["logs", pod, "-c", "pilot"], "").good();
    let lines = std::fs::read_dir("/proc").expect("proc").flatten().filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).into_owned())
    });
    let lines: Vec<String> = lines.filter(|line| line.contains("pilot")).collect();
    for text in [object, events, log, text(&desk.path("said")), lines.join("\n")] {
        assert!(!text.contains(ALICE) && !text.contains("wonder") && !text.contains(BOB), "{text}");
    }
}

#[test]
fn a_runs_login_is_in_a_secret_of_its_pod_while_it_runs_and_gone_after_ctrl_c() {
    let desk = with_login(desk("run_login", "echo $SECRET; sleep 300"));
    let mut child = desk.start();
    desk.until_sleeping();
    let pod = desk.pods().first().cloned().expect("a pod");
    let name = pod.trim_start_matches("pod/");
    let (secret, object) = (desk.namespace.get("secret", name), desk.namespace.get("pod", name));
    let owner = &secret["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Pod"), &object["metadata"]["uid"]), "{owner:#}");
    assert_eq!(object["spec"]["imagePullSecrets"], json!([{"name": name}]));
    let go = "go-template={{index .data \".dockerconfigjson\" | base64decode}}";
    let shown: Value =
        serde_json::from_str(&desk.namespace.kubectl(&["get", "secret", name, "-o", go], "").good())
            .expect("json");
    let image = format!("{}/run-login", desk.namespace.node().private_registry());
    assert_eq!(shown, json!({"auths": {image: {"auth": ALICE}}}), "more than the run needs");
    is_told_nowhere(&desk, &pod);
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid")).expect("pid");
    kill_process(pid, Signal::INT).expect("kill");
    assert_eq!(child.wait().expect("wait").code(), Some(130));
    assert_eq!((desk.pods(), secrets(&desk.namespace)), (Vec::new(), Vec::new()));
}

#[test]
fn the_login_of_a_workstation_that_is_killed_goes_with_its_pod() {
    let desk = with_login(desk("run_login_killed", "sleep 300"));
    let mut child = desk.start();
    desk.until_sleeping();
    child.kill().expect("kill");
    child.wait().expect("wait");
    let _gone =
        desk.namespace.kubectl(&["delete", "pods", "-l", "app.kubernetes.io/name=latebind-pilot"], "").good();
    let gone = || secrets(&desk.namespace).is_empty();
    assert!(within(SOON, gone), "{:?}", secrets(&desk.namespace));
}

#[test]
fn the_usual_auth_file_is_used_as_on_this_machine_and_an_image_that_is_pushed_with_it_runs() {
    let namespace = Namespace::new("run_usual", &[]);
    let to = format!("{}/usual", namespace.node().private_registry());
    let image = private_image(namespace.node(), "run-usual");
    let workflow = workflow(&image, "echo $SECRET")
        + "  - {name: pushed, image: \"oci:busybox\", command: [echo, pushed]}\n";
    let desk = Desk::of(namespace, &workflow).with(&["--push", &to]);
    let folder = auth_file(&desk, "usual");
    let docker = format!("DOCKER_CONFIG={}", folder.parent().expect("folder").display());
    let kubeconfig = desk.namespace.node().state().join("kubeconfig");
    let answer = desk.run_as(&kubeconfig, &[docker]);
    assert_eq!(answer.code, 0, "{}{}", answer.stdout, answer.stderr);
    assert_eq!(text(&desk.path("out/logs/secret.stdout")), "run-usual\n");
    assert_eq!(text(&desk.path("out/logs/pushed.stdout")), "pushed\n");
    assert_eq!((desk.pods(), secrets(&desk.namespace)), (Vec::new(), Vec::new()));
}

#[test]
fn a_private_image_without_a_login_is_refused_in_the_pod() {
    let desk = desk("run_no_login", "true");
    let none = format!("DOCKER_CONFIG={}", desk.path("none").display());
    let answer = desk.run_as(&desk.namespace.node().state().join("kubeconfig"), &[none]);
    assert_eq!(answer.code, 1, "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stdout.contains(": 401: "), "{}", answer.stdout);
}

/// Somebody who may make pods here and no Secrets.
fn without_secrets(desk: &Desk) -> PathBuf {
    let kubectl = |words: &[&str]| desk.namespace.kubectl(words, "").good();
    kubectl(&["create", "serviceaccount", "user"]);
    let verbs = ["--verb=create,get,delete", "--resource=pods,pods/exec"];
    kubectl(&[&["create", "role", "user"], &verbs[..]].concat());
    let account = format!("--serviceaccount={}:user", desk.namespace.name());
    kubectl(&["create", "rolebinding", "user", "--role=user", &account]);
    let token = kubectl(&["create", "token", "user"]).trim().to_owned();
    let config = desk.namespace.node().kubectl(&["config", "view", "--raw", "-o", "json"], "").good();
    let config: Value = serde_json::from_str(&config).expect("json");
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": config["clusters"][0]["cluster"]}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(desk.path("user.kubeconfig"), kubeconfig.to_string()).expect("write");
    desk.path("user.kubeconfig")
}

#[test]
fn who_may_not_make_secrets_is_told_in_one_line_and_runs_without_unless_the_login_was_named() {
    let desk = desk("run_may_not", "true");
    let kubeconfig = without_secrets(&desk);
    let file = auth_file(&desk, "usual");
    let docker = [format!("DOCKER_CONFIG={}", file.parent().expect("folder").display())];
    let answer = desk.run_as(&kubeconfig, &docker);
    assert_eq!(answer.code, 1, "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stdout.contains("stays here, because you may not make Secrets"), "{}", answer.stdout);
    assert!(answer.stdout.contains(": 401: "), "{}", answer.stdout);
    let desk = with_login(desk);
    let answer = desk.run_as(&kubeconfig, &[]);
    assert_eq!((answer.code, answer.stderr.lines().count()), (69, 1), "{}", answer.stderr);
    assert!(answer.stderr.contains("secrets is forbidden"), "{}", answer.stderr);
    assert!(answer.stderr.contains("--registry-login"), "{}", answer.stderr);
    assert_eq!((desk.pods(), secrets(&desk.namespace)), (Vec::new(), Vec::new()));
}
