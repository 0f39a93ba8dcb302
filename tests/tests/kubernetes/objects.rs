//! Objects of payloads in a pod: the pilot has the key, by its run's stream or from a Secret, and no slot has.

use pilot_tests::kube::{Namespace, SOON, Shape};
use pilot_tests::run::within;

use super::basics::{flow, sh};
use super::workstation::{Desk, flow as desk_flow};

#[path = "../../../objects/tests/objects/server.rs"]
#[expect(dead_code, reason = "the tests of `objects` use all of it")]
mod server;

use server::{ACCESS, SECRET, Server, put_of, url};

/// A server on the node's own network, with an object.
fn start(test: &str, namespace: &Namespace) -> Option<Server> {
    let registry = namespace.node().registry();
    let server = Server::start_on(test, registry.split(':').next().expect("host"))?;
    let put = put_of(b"table\n");
    let threads = tokio::runtime::Runtime::new().expect("threads");
    threads.block_on(server.tier().put(&url("s3://data/in"), b"table\n".to_vec().into(), put)).expect("put");
    Some(server)
}

fn bytes_of(server: &Server, name: &str) -> u64 {
    let threads = tokio::runtime::Runtime::new().expect("threads");
    threads.block_on(server.tier().head(&url(name))).expect("it is there").bytes
}

const WORKFLOW: &str = r#"  - name: read
    count: 2
    command: [sh, -c, "cat /stage/in/t; env | grep -c AWS || true"]
    inputs: [{name: t, from: "s3://data/in"}]
  - name: make
    command: [sh, -c, "echo made > /stage/out/m; cat /data/t >> /stage/out/m"]
    inputs: [{name: t, from: "s3://data/in", at: /data/t}]
    outputs: [{name: m, class: mem, max_size: 1Mi, save: "s3://data/out"}]
"#;

#[test]
fn a_workstations_key_goes_with_its_run_and_lies_nowhere() {
    let namespace = Namespace::new("objects_desk", &[]);
    let Some(server) = start("a_workstations_key_goes_with_its_run_and_lies_nowhere", &namespace) else {
        return;
    };
    let endpoint = format!("http://{}", server.address);
    let desk = Desk::of(namespace, &desk_flow(WORKFLOW)).with(&[
        "--s3-endpoint",
        &endpoint,
        "--s3-allow-http",
        "true",
    ]);
    let key = [format!("AWS_ACCESS_KEY_ID={ACCESS}"), format!("AWS_SECRET_ACCESS_KEY={SECRET}")];
    let kubeconfig = desk.namespace.node().state().join("kubeconfig");
    let answer = desk.run_as(&kubeconfig, &key);
    assert_eq!(answer.code, 0, "{}{}", answer.stdout, answer.stderr);
    for index in 0..2 {
        let log = desk.path(&format!("out/logs/read-{index}.stdout"));
        assert_eq!(std::fs::read_to_string(log).expect("log"), "table\n0\n");
    }
    assert_eq!(bytes_of(&server, "s3://data/out"), 11);
    assert_eq!(desk.pods(), Vec::<String>::new());
    let secrets = desk.namespace.kubectl(&["get", "secrets", "-o", "yaml"], "").good();
    assert!(!secrets.contains(SECRET) && !secrets.contains("AWS"), "{secrets}");
}

#[test]
fn a_pilot_that_stays_has_its_key_from_a_secret() {
    let namespace = Namespace::new("objects_stay", &[]);
    let Some(server) = start("a_pilot_that_stays_has_its_key_from_a_secret", &namespace) else { return };
    let literals = [
        format!("--from-literal=AWS_ACCESS_KEY_ID={ACCESS}"),
        format!("--from-literal=AWS_SECRET_ACCESS_KEY={SECRET}"),
        format!("--from-literal=AWS_ENDPOINT_URL=http://{}", server.address),
        "--from-literal=LATEBIND_S3_ALLOW_HTTP=true".to_owned(),
    ];
    let mut words = vec!["create", "secret", "generic", "objects"];
    words.extend(literals.iter().map(String::as_str));
    assert_eq!(namespace.kubectl(&words, "").code, 0);
    let pod = namespace.pod(&Shape { slots: 1, ..Shape::default() }.with(&["--s3-secret", "objects"]));
    let fields = "inputs: [{name: t, from: 's3://data/in'}], outputs: [{name: o, save: 's3://data/stay'}]";
    let script = "cat /stage/in/t > /stage/out/o; tr '\\0' '\\n' < /proc/1/environ | grep -c AWS";
    let run = pod.submit(&flow(&[sh(&namespace, "a", &format!("{script}; true"), fields)]));
    assert!(within(SOON, || pod.output(&run, "a") == "0\n"), "{}", pod.output(&run, "a"));
    let done = || {
        let threads = tokio::runtime::Runtime::new().expect("threads");
        threads.block_on(server.tier().exists(&url("s3://data/stay"))).unwrap_or(false)
    };
    assert!(within(SOON, done));
    assert_eq!(bytes_of(&server, "s3://data/stay"), 6);
}
