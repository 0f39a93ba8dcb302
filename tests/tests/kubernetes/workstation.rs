//! `pilot run --backend kubernetes` from a workstation: the files of `pilot run`, a pod that is made for them, nothing left.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use pilot_tests::images::{busybox_image, shell};
use pilot_tests::kube::{Answer, Namespace, SOON, command, images};
use pilot_tests::run::{dist, within};
use rustix::process::{Pid, Signal, kill_process};

/// A folder on this machine with an image, inputs and a workflow.
pub(crate) struct Desk {
    folder: tempfile::TempDir,
    pub(crate) namespace: Namespace,
    /// More arguments of `pilot run`.
    pub(crate) more: Vec<String>,
}

/// A workflow of these payloads, in the image that lies beside it.
pub(crate) fn flow(payloads: &str) -> String {
    let head = "apiVersion: latebind/v1\nmetadata: {name: desk}\n";
    let defaults = "defaults: {image: 'oci:busybox', walltime: 60s, resources: {cpu: 100m, memory: 64Mi}}\n";
    format!("{head}{defaults}payloads:\n{payloads}")
}

const WORKFLOW: &str = r#"  - name: make
    command: [sh, -c, "cat /stage/in/file /stage/in/folder/deep/other > /stage/out/both; echo made >&2"]
    inputs: [{name: file, from: ./data/file}, {name: folder, from: ./data/folder}]
    outputs: [{name: both, max_size: 1Mi, save: both.txt}]
  - name: count
    command: [sh, -c, "wc -c < /stage/in/both"]
    inputs: [{name: both, from: "stage://make/both"}]
"#;

impl Desk {
    fn new(test: &str, workflow: &str) -> Self {
        Self::of(Namespace::new(test, &[]), workflow)
    }

    pub(crate) fn of(namespace: Namespace, workflow: &str) -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path();
        busybox_image(&path.join("busybox"), &shell()).expect("busybox-static");
        std::fs::create_dir_all(path.join("data/folder/deep")).expect("mkdir");
        std::fs::write(path.join("data/file"), "one\n").expect("write");
        std::fs::write(path.join("data/folder/deep/other"), "two\n").expect("write");
        std::fs::write(path.join("w.yaml"), workflow).expect("write");
        let node = namespace.node();
        let plain =
            [node.registry(), node.private_registry()].map(|host| format!("{host:?}: {{insecure: true}}"));
        let rules = format!("registries: {{{}}}\n", plain.join(", "));
        std::fs::write(path.join("registries.yaml"), rules).expect("write");
        Self { folder, namespace, more: Vec::new() }
    }

    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.more.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn arguments(&self) -> Vec<String> {
        let Images { pilot, shim } = Images::of(&self.namespace);
        let path = |name: &str| self.path(name).display().to_string();
        let words = [
            "run",
            "--backend",
            "kubernetes",
            "--namespace",
            self.namespace.name(),
            "--slots",
            "2",
            "--cpu",
            "400m",
            "--memory",
            "256Mi",
            "--pilot-image",
            &pilot,
            "--idle-image",
            &shim,
            "--registries-config",
            "registries",
            "--pod-grace",
            "20",
        ];
        let mut words: Vec<String> = words.map(str::to_owned).to_vec();
        words.extend(["--registries".into(), path("registries.yaml"), "--out".into(), path("out")]);
        if !self.more.iter().any(|word| word == "--push") {
            words.extend(["--push".into(), format!("{}/desk", self.namespace.node().registry())]);
        }
        words.extend(self.more.iter().cloned());
        words.push(path("w.yaml"));
        words
    }

    pub(crate) fn run(&self) -> Answer {
        self.run_as(&self.namespace.node().state().join("kubeconfig"), &[])
    }

    /// As somebody else, with these variables.
    pub(crate) fn run_as(&self, kubeconfig: &Path, env: &[String]) -> Answer {
        let (program, kubeconfig) = (dist().join("pilot"), format!("KUBECONFIG={}", kubeconfig.display()));
        let mut words = vec![kubeconfig];
        words.extend(env.iter().cloned());
        words.push(program.display().to_string());
        words.extend(self.arguments());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        command(Path::new("/usr/bin/env"), &words, "")
    }

    #[expect(clippy::disallowed_methods, reason = "it is to be killed while it runs")]
    pub(crate) fn start(&self) -> Child {
        Command::new(dist().join("pilot"))
            .args(self.arguments())
            .env("KUBECONFIG", self.namespace.node().state().join("kubeconfig"))
            .stdout(std::fs::File::create(self.path("said")).expect("create"))
            .spawn()
            .expect("pilot")
    }

    pub(crate) fn pods(&self) -> Vec<String> {
        let names = self.namespace.kubectl(&["get", "pods", "-o", "name"], "").good();
        names.lines().map(str::to_owned).collect()
    }

    /// Waits until a payload of the workflow runs in the pod.
    pub(crate) fn until_sleeping(&self) {
        let runs = || {
            let Some(pod) = self.pods().first().cloned() else { return false };
            let ps = ["exec", pod.as_str(), "-c", "slot-0", "--", "ps"];
            self.namespace.kubectl(&ps, "").stdout.contains("sleep 300")
        };
        assert!(within(SOON, runs), "no payload runs");
    }
}

struct Images {
    pilot: String,
    shim: String,
}

impl Images {
    fn of(namespace: &Namespace) -> Self {
        let images = images(namespace.node());
        Self { pilot: images.pilot.clone(), shim: images.shim.clone() }
    }
}

pub(crate) const SLEEPS: &str = r#"
apiVersion: latebind/v1
metadata: {name: sleeps}
payloads:
  - {name: sleep, image: "oci:busybox", command: [sleep, "300"], resources: {cpu: 100m, memory: 64Mi}}
"#;

pub(crate) fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_workflow_of_this_machine_runs_in_a_pod_and_its_results_come_back() {
    let desk = Desk::new("desk", &flow(WORKFLOW));
    let answer = desk.run();
    assert_eq!(answer.code, 0, "{}{}", answer.stdout, answer.stderr);
    assert_eq!(text(&desk.path("out/both.txt")), "one\ntwo\n");
    assert_eq!(text(&desk.path("out/logs/count.stdout")), "8\n");
    assert_eq!(text(&desk.path("out/logs/make.stderr")), "made\n");
    assert!(answer.stdout.contains("2 done"), "{}", answer.stdout);
    assert_eq!(desk.pods(), Vec::<String>::new(), "the pod goes with the run");
}

const MOUNTS: &str = r#"  - name: make
    command: [sh, -c, "cat /etc/file /opt/folder/deep/other > /stage/out/both"]
    inputs: [{name: file, from: ./data/file, at: /etc/file}, {name: folder, from: ./data/folder, at: /opt/folder}]
    outputs: [{name: both, max_size: 1Mi}]
  - name: read
    command: [sh, -c, "cat /data/both; ls -A /opt/folder; wc -c < /etc/file"]
    inputs: [{name: both, from: "stage://make/both", at: /data/both}]
"#;

#[test]
fn a_pod_that_is_made_for_a_workflow_has_the_mounts_that_it_wants() {
    let desk = Desk::new("deskmounts", &flow(MOUNTS));
    let answer = desk.run();
    assert_eq!(answer.code, 0, "{}{}", answer.stdout, answer.stderr);
    assert_eq!(text(&desk.path("out/logs/read.stdout")), "one\ntwo\n0\n");
    assert_eq!(desk.pods(), Vec::<String>::new());
}

const FOLDERS: &str = r#"  - name: make
    command: [sh, -c, "cd /stage/out/d; mkdir -p a/b empty; echo one > a/one; ln -s ../one a/b/up; ln -s /etc/passwd /work/x"]
    outputs: [{name: d, class: folder, max_size: 1Mi, save: tree}]
  - name: read
    command: [sh, -c, "cd /stage/in/d; find . | sort; cat a/b/up; (echo y > a/one) 2>/dev/null; rm -rf a 2>/dev/null; true"]
    inputs: [{name: d, from: "stage://make/d"}]
  - name: mounted
    command: [sh, -c, "cat /opt/tree/a/b/up"]
    after: [read]
    inputs: [{name: d, from: "stage://make/d", at: /opt/tree}]
"#;

#[test]
fn a_folder_is_handed_on_in_a_pod_and_comes_back() {
    let desk = Desk::new("deskfolders", &flow(FOLDERS));
    let answer = desk.run();
    assert_eq!(answer.code, 0, "{}{}", answer.stdout, answer.stderr);
    let read = text(&desk.path("out/logs/read.stdout"));
    assert_eq!(read, ".\n./a\n./a/b\n./a/b/up\n./a/one\n./empty\none\n");
    assert_eq!(text(&desk.path("out/logs/mounted.stdout")), "one\n");
    assert_eq!(text(&desk.path("out/tree/a/b/up")), "one\n");
    assert!(desk.path("out/tree/empty").is_dir());
    assert_eq!(desk.pods(), Vec::<String>::new());
}

#[test]
fn mounts_that_no_pod_can_have_together_are_told_before_one_is_made() {
    for (test, at, words) in [
        ("desktwo", "/etc/file", "mount a file and a folder at /etc/file in one pod"),
        ("desknested", "/etc/file/below", "mount both /etc/file and /etc/file/below in one pod"),
    ] {
        let another = format!(
            "  - {{name: another, command: [\"true\"], inputs: [{{name: x, from: ./data/folder, at: {at}}}]}}\n"
        );
        let desk = Desk::new(test, &flow(&format!("{MOUNTS}{another}")));
        let answer = desk.run();
        assert_eq!(answer.code, 64, "{}{}", answer.stdout, answer.stderr);
        assert!(answer.stderr.contains(words), "{}", answer.stderr);
        assert_eq!(answer.stderr.lines().count(), 1, "{}", answer.stderr);
        assert_eq!(desk.pods(), Vec::<String>::new());
    }
}

#[test]
fn a_failed_payload_is_told_as_on_this_machine() {
    let workflow = WORKFLOW.replace("wc -c < /stage/in/both", "echo no >&2; exit 3");
    let desk = Desk::new("failing", &flow(&workflow));
    let answer = desk.run();
    assert_eq!(answer.code, 1, "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stdout.contains("exit code 3"), "{}", answer.stdout);
    assert_eq!(text(&desk.path("out/logs/count.stderr")), "no\n");
    assert_eq!(desk.pods(), Vec::<String>::new());
}

#[test]
fn an_image_of_this_machine_needs_a_place_to_be_pushed_to() {
    let desk = Desk::new("nopush", &flow(WORKFLOW));
    let words = desk.arguments();
    let kept: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| !word.contains("/desk") && *word != "--push")
        .collect();
    let answer = desk.namespace.pilot(&kept, "");
    assert_eq!(answer.code, 64, "{}", answer.stderr);
    assert!(answer.stderr.contains("--push"), "{}", answer.stderr);
    assert_eq!(desk.pods(), Vec::<String>::new());
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let desk = Desk::new("interrupted", SLEEPS);
    let mut child = desk.start();
    desk.until_sleeping();
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid")).expect("pid");
    kill_process(pid, Signal::INT).expect("kill");
    assert_eq!(child.wait().expect("wait").code(), Some(130));
    assert_eq!(desk.pods(), Vec::<String>::new());
}

#[test]
fn the_pod_of_a_workstation_that_is_killed_ends_by_itself() {
    let desk = Desk::new("killed", SLEEPS);
    let mut child = desk.start();
    desk.until_sleeping();
    child.kill().expect("kill");
    child.wait().expect("wait");
    let ended = || {
        let pods = desk.namespace.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.phase}"], "");
        pods.stdout == "Succeeded"
    };
    assert!(within(SOON, ended), "{}", desk.namespace.kubectl(&["get", "pods"], "").stdout);
}

/// More than four fifths of what the pilot of a pod has for stages (768Mi): the oldest go to the volume, and their reader has
/// them there.
#[test]
fn stages_that_memory_is_too_small_for_move_to_the_volume() {
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    let mut payloads = String::new();
    for (at, name) in names.iter().enumerate() {
        let after = at.checked_sub(1).map_or(String::new(), |before| format!(", after: [{}]", names[before]));
        payloads += &format!(
            "  - {{name: {name}, command: [sh, -c, '(echo {name}; head -c 96000000 /dev/zero) > /stage/out/m'], \
             resources: {{cpu: 100m, memory: 16Mi}}, outputs: [{{name: m, class: mem, max_size: 96Mi}}]{after}}}\n"
        );
    }
    let inputs = names.map(|name| format!("{{name: {name}, from: 'stage://{name}/m'}}"));
    payloads += &format!(
        "  - {{name: reads, command: [sh, -c, 'for x in a b c d e f g; do head -n 1 /stage/in/$x; wc -c < /stage/in/$x; done'], \
         resources: {{cpu: 100m, memory: 16Mi}}, inputs: [{}], after: [g]}}\n",
        inputs.join(", ")
    );
    let test = "stages_that_memory_is_too_small_for_move_to_the_volume";
    let desk = Desk::new(test, &flow(&payloads)).with(&["--output", "json"]);
    let said = desk.run().good();
    let read = std::fs::read_to_string(desk.path("out/logs/reads.stdout")).expect("its log");
    let wanted: String = names.iter().map(|name| format!("{name}\n96000002\n")).collect();
    assert_eq!(read, wanted, "{said}");
    let summary = said.lines().last().expect("a summary");
    let summary: serde_json::Value = serde_json::from_str(summary).expect("JSON");
    assert!(summary["stages"]["spilled"].as_u64() >= Some(1), "{summary}");
}
