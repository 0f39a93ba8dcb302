//! Inputs from and outputs to places that outlive the pilot, as workflow files name them: `s3://` and `file://`.

use std::process::Stdio;

use pilot_tests::run::{Ran, Site, flow, sh};

#[path = "../../objects/tests/objects/server.rs"]
#[expect(dead_code, reason = "the tests of `objects` use all of it")]
mod server;

use server::{ACCESS, SECRET, Server, put_of, url};

/// Runs a workflow with the server's address by flag and its key by the usual variables.
fn run(site: &Site, server: &Server, workflow: &str, more: &[&str]) -> Ran {
    run_as(site, server, workflow, more, SECRET)
}

fn run_as(site: &Site, server: &Server, workflow: &str, more: &[&str], secret: &str) -> Ran {
    site.write("workflow.yaml", workflow);
    let endpoint = format!("http://{}", server.address);
    let mut arguments = vec!["run", "workflow.yaml", "--output", "json", "--out", "out"];
    arguments.extend(["--s3-endpoint", &endpoint]);
    arguments.extend_from_slice(more);
    let mut pilot = site.pilot(&arguments);
    pilot.env("AWS_ACCESS_KEY_ID", ACCESS).env("AWS_SECRET_ACCESS_KEY", secret);
    Ran::of(pilot.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the pilot"))
}

fn put(server: &Server, name: &str, content: &str) {
    let put = put_of(content.as_bytes());
    let content = content.as_bytes().to_vec();
    let threads = tokio::runtime::Runtime::new().expect("threads");
    threads.block_on(server.tier().put(&url(name), content.into(), put)).expect("put");
}

fn get(server: &Server, name: &str, site: &Site) -> String {
    let into = site.path().join("fetched");
    let threads = tokio::runtime::Runtime::new().expect("threads");
    let fetched = server.tier();
    threads.block_on(fetched.fetch(&url(name), &into, objects::Expect::default())).expect("fetch");
    site.read("fetched")
}

/// What a run leaves on purpose.
fn forget_cache(site: &Site) {
    let _ = std::fs::remove_dir_all(site.path().join("scratch/objects"));
}

#[test]
fn an_object_is_fetched_once_and_read_by_all_and_outputs_of_each_class_become_objects() {
    let test = "an_object_is_fetched_once_and_read_by_all_and_outputs_of_each_class_become_objects";
    let Some(site) = Site::new(test) else { return };
    let Some(server) = Server::start(test) else { return };
    put(&server, "s3://data/in/table", "one\ntwo\n");
    let from = "inputs: [{name: t, from: 's3://data/in/table'}]";
    let read = "stat -L -c %i /stage/in/t; cat /stage/in/t; \
        (echo x >> /stage/in/t) 2>/dev/null; chmod 666 /stage/in/t 2>/dev/null; rm -f /.latebind/in/t 2>/dev/null; true";
    let out = "outputs: [{name: f, save: 's3://data/out/f'}, {name: m, class: mem, save: 's3://data/out/m'}, \
        {name: v, class: value, save: 's3://data/out/v'}]";
    let ran = run(
        &site,
        &server,
        &flow(&[
            sh("a", read, from),
            sh("b", read, from),
            sh("at", "cat /data/table", "inputs: [{name: t, from: 's3://data/in/table', at: /data/table}]"),
            sh("all", "for x in f m v; do echo $x > /stage/out/$x; done", out),
            sh("next", "cat /stage/in/m", "inputs: [{name: m, from: 'stage://all/m'}]"),
        ]),
        &[],
    );
    ran.assert_code(0);
    let seen = site.log("a", "stdout");
    assert_eq!(seen, site.log("b", "stdout"), "two files, or one that was changed");
    assert!(seen.ends_with("\none\ntwo\n"), "{seen}");
    assert_eq!(site.log("at", "stdout"), "one\ntwo\n");
    for name in ["f", "m", "v"] {
        assert_eq!(get(&server, &format!("s3://data/out/{name}"), &site), format!("{name}\n"));
    }
    assert_eq!(site.log("next", "stdout"), "m\n");
    // Run again: what is there is not fetched again, and outputs are replaced.
    let again = "echo newer > /stage/out/f; cat /stage/in/t";
    let fields = format!("{from}, outputs: [{{name: f, save: 's3://data/out/f'}}]");
    let ran = run(&site, &server, &flow(&[sh("a", again, &fields)]), &[]);
    ran.assert_code(0);
    assert_eq!(get(&server, "s3://data/out/f", &site), "newer\n");
    drop(server);
    forget_cache(&site);
    site.assert_baseline();
}

#[test]
fn what_is_wrong_with_an_object_is_told_in_one_line_and_costs_nobody_else() {
    let test = "what_is_wrong_with_an_object_is_told_in_one_line_and_costs_nobody_else";
    let Some(site) = Site::new(test) else { return };
    let Some(server) = Server::start(test) else { return };
    put(&server, "s3://data/large", &"x".repeat(3 << 20));
    let missing = sh("missing", "true", "inputs: [{name: t, from: 's3://data/none'}]");
    let bucket = sh("bucket", "echo x > /stage/out/f", "outputs: [{name: f, save: 's3://other/f'}]");
    let large = sh("large", "true", "inputs: [{name: t, from: 's3://data/large'}]");
    let fine = sh("fine", "echo x > /stage/out/f", "outputs: [{name: f, save: 's3://data/f'}]");
    let ran = run(&site, &server, &flow(&[missing, bucket, large, fine.clone()]), &["--object-cache", "1Mi"]);
    ran.assert_code(1);
    ran.assert_failed("missing", &["s3://data/none", "not there"]);
    ran.assert_failed("bucket", &["save output \"f\"", "s3://other/f", "no such bucket"]);
    ran.assert_failed("large", &["s3://data/large", "1048576"]);
    ran.assert_done("fine");
    let ran = run_as(&site, &server, &flow(&[fine]), &[], "wrong");
    ran.assert_failed("fine", &["s3://data/f", "forbidden"]);
    assert!(!ran.stdout.contains("wrong") && !ran.stderr.contains("wrong"), "{}", ran.stderr);
    drop(server);
    forget_cache(&site);
    site.assert_baseline();
}

#[test]
fn a_file_outside_of_the_results_is_saved_only_where_the_user_allows_it() {
    let Some(site) = Site::new("a_file_outside_of_the_results_is_saved_only_where_the_user_allows_it") else {
        return;
    };
    let folder = site.path().join("kept/deep");
    let save = format!("outputs: [{{name: f, save: 'file://{}/f'}}]", folder.display());
    let workflow = flow(&[sh("a", "echo kept > /stage/out/f", &save)]);
    let ran = site.run(&workflow);
    ran.assert_code(64);
    assert!(ran.stderr.contains("--save-under"), "{}", ran.stderr);
    assert!(!folder.exists());
    let allowed = site.path().join("kept");
    let ran = site.run_with(&workflow, &["--save-under", allowed.to_str().expect("path")]);
    ran.assert_code(0);
    assert_eq!(site.read("kept/deep/f"), "kept\n");
    site.assert_baseline();
}
