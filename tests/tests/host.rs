//! Wrong files, wrong settings, and machines that can't run containers.

use pilot_tests::run::{Ran, Site, as_root, dist, flow, good, sh};
use pilot_tests::skipped;
use std::process::Command;

/// Runs a workflow file that is wrong; gives the lines of stderr after checking that nothing was made.
fn refused(site: &Site, text: &str) -> Vec<String> {
    let mut all = Vec::new();
    for arguments in [&["run", "wrong.yaml", "--out", "out"][..], &["check", "wrong.yaml"]] {
        site.write("wrong.yaml", text);
        let ran = site.ask(arguments);
        ran.assert_code(64);
        assert!(!site.path().join("out").exists(), "{arguments:?} made the folder for results");
        assert_eq!(std::fs::read_dir(site.path().join("scratch")).expect("scratch").count(), 0);
        assert_eq!(std::fs::read_dir(site.path().join("store")).expect("store").count(), 0);
        let lines: Vec<String> = ran.stderr.lines().map(str::to_owned).collect();
        assert!(all.is_empty() || all == lines, "run and check disagree: {all:?} {lines:?}");
        all = lines;
    }
    all
}

#[test]
fn a_wrong_file_is_told_with_its_place_and_nothing_is_made() {
    let Some(site) = Site::new("a_wrong_file_is_told_with_its_place_and_nothing_is_made") else { return };
    let head = "apiVersion: latebind/v1\nmetadata: {name: w}\n";
    let payload = "  - name: a\n    image: oci:busybox\n    command: [/bin/true]\n";
    for (text, places) in [
        (format!("{head}payloads:\n{payload}    memroy: 1Gi\n"), &["7:5: unknown field \"memroy\""][..]),
        (format!("{head}payloads:\n{payload}    resources: {{memory: lots}}\n"), &["7:25: "]),
        (format!("{head}payloads: [\n"), &["3:11: not a readable workflow"]),
        (format!("{head}payloads:\n\t- name: a\n"), &["4:2: "]),
        (String::new(), &["1:1: the file is empty"]),
        (format!("{head}payloads:\n{payload}    inputs: [{{name: x, from: ./nothing-here}}]\n"), &["7:30: "]),
        (format!("{head}payloads:\n{payload}    inputs: [{{name: x, from: './*.none'}}]\n"), &["7:30: "]),
        (format!("{head}payloads:\n{payload}    inputs: [{{name: x, from: 'stage://b/x'}}]\n"), &["7:30: "]),
        (
            format!("{head}payloads:\n{payload}    wall: 5\n    count: 0\n"),
            &["7:5: unknown field \"wall\"", "8:12: "],
        ),
    ] {
        let told = refused(&site, &text);
        assert_eq!(told.len(), places.len(), "{text}\n{told:?}");
        for (line, place) in told.iter().zip(places) {
            assert!(line.starts_with(&format!("pilot: wrong.yaml:{place}")), "{line}\n{place}\n{text}");
        }
    }
    let cycle = refused(
        &site,
        &flow(&[sh("a", "true", "after: [c]"), sh("b", "true", "after: [a]"), sh("c", "true", "after: [b]")]),
    );
    assert!(["a -> c -> b -> a", "5:12: "].iter().all(|word| cycle[0].contains(word)), "{cycle:?}");
    site.assert_baseline();
}

#[test]
fn wrong_settings_and_arguments_are_told_in_one_line() {
    let Some(site) = Site::new("wrong_settings_and_arguments_are_told_in_one_line") else { return };
    site.write("w.yaml", &flow(&[good()]));
    site.write("settings.yaml", "slotz: 3\n");
    for (arguments, word) in [
        (&["run", "w.yaml", "--slots", "0"][..], "--slots"),
        (&["run", "w.yaml", "--shim", "/no/shim"], "./build"),
        (&["run", "w.yaml", "--settings", "settings.yaml"], "slotz"),
        (&["run", "w.yaml", "--settings", "absent.yaml"], "absent.yaml"),
        (&["run", "w.yaml", "--show", "other"], "other"),
        (&["run", "absent.yaml"], "absent.yaml"),
    ] {
        let ran = site.ask(arguments);
        ran.assert_code(64);
        assert_eq!(ran.stderr.lines().count(), 1, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(word), "{arguments:?}: {}", ran.stderr);
    }
    for arguments in [
        &["run"][..],
        &["walk"],
        &["run", "w.yaml", "--memory", "much"],
        &["run", "w.yaml", "--attach", "glue"],
    ] {
        site.ask(arguments).assert_code(64);
    }
    site.ask(&["--help"]).assert_code(0);
    site.ask(&["--version"]).assert_code(0);
    site.assert_baseline();
}

#[test]
fn check_explains_the_machine_to_people_and_programs() {
    let Some(site) = Site::new("check_explains_the_machine_to_people_and_programs") else { return };
    site.write("w.yaml", &flow(&[good()]));
    let people = site.ask(&["check", "w.yaml"]);
    people.assert_code(0);
    assert!(people.stdout.contains("ok   user namespaces"), "{}", people.stdout);
    assert!(people.stdout.contains("1 payloads, no mistakes found"), "{}", people.stdout);
    let machine = site.ask(&["check", "--output", "json"]);
    machine.assert_code(0);
    let told: serde_json::Value = serde_json::from_str(&machine.stdout).expect("JSON");
    assert_eq!(told["runs_containers"], true);
    assert!(told["items"].as_array().is_some_and(|items| items.len() > 5), "{told}");
    site.assert_baseline();
}

/// Runs the pilot where the kernel grants no user namespace: in one whose limit for more of them is 0.
fn without_namespaces(site: &Site, arguments: &[&str]) -> Result<Ran, String> {
    let pilot = site.pilot(arguments);
    let inside = "echo 0 > /proc/sys/user/max_user_namespaces || exit 99; exec \"$@\"";
    #[expect(clippy::disallowed_methods, reason = "tests start the pilot")]
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--mount-proc=/proc",
        "--pid",
        "--fork",
        "sh",
        "-c",
        inside,
        "sh",
    ]);
    command.arg(pilot.get_program()).args(pilot.get_args()).current_dir(site.path()).env("HOME", site.path());
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.code() == Some(99) || !output.stderr.is_empty() && output.stderr.starts_with(b"unshare:")
    {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[test]
fn a_machine_without_user_namespaces_is_explained() {
    let test = "a_machine_without_user_namespaces_is_explained";
    let Some(site) = Site::new(test) else { return };
    site.write("w.yaml", &flow(&[good()]));
    let checked = match without_namespaces(&site, &["check"]) {
        Ok(checked) => checked,
        Err(missing) => return skipped(test, &missing),
    };
    checked.assert_code(69);
    let told = format!("{}{}", checked.stdout, checked.stderr);
    assert!(told.contains("user.max_user_namespaces"), "{told}");
    assert!(told.contains("sysctl -w user.max_user_namespaces="), "{told}");
    assert!(told.contains("can't run payloads"), "{told}");
    let json = without_namespaces(&site, &["check", "--output", "json"]).expect("unshare");
    json.assert_code(69);
    let told: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(told["runs_containers"], false);
    let ran = without_namespaces(&site, &["run", "w.yaml", "--out", "out"]).expect("unshare");
    ran.assert_code(69);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("pilot check"), "{}", ran.stderr);
    assert!(!site.path().join("out/good.txt").exists());
    site.assert_baseline();
}

#[test]
fn folders_of_another_user_are_not_used() {
    let test = "folders_of_another_user_are_not_used";
    let Some(site) = Site::new(test) else { return };
    if !as_root() {
        return skipped(test, "not root, so no folder can be given away");
    }
    site.write("w.yaml", &flow(&[good()]));
    let state = site.path().join("state");
    std::os::unix::fs::chown(&state, Some(12_345), None).expect("chown");
    let ran = site.ask(&["run", "w.yaml", "--out", "out"]);
    std::os::unix::fs::chown(&state, Some(0), None).expect("chown");
    ran.assert_code(64);
    assert!(ran.stderr.contains("uid 12345") && ran.stderr.contains("--state-dir"), "{}", ran.stderr);
    site.assert_baseline();
}

#[test]
fn the_pilot_runs_from_any_folder_with_its_shim_beside_it() {
    let Some(site) = Site::new("the_pilot_runs_from_any_folder_with_its_shim_beside_it") else { return };
    for program in ["pilot", "payload-shim"] {
        std::fs::copy(dist().join(program), site.path().join(program)).expect("copy");
    }
    site.write("w.yaml", &flow(&[good()]));
    let by_hand = site.pilot(&["run", "w.yaml", "--output", "json", "--out", "out"]);
    #[expect(clippy::disallowed_methods, reason = "tests start the pilot")]
    let output =
        Command::new(site.path().join("pilot")).args(by_hand.get_args()).current_dir(site.path()).output();
    assert!(output.expect("start").status.success());
    assert_eq!(site.read("out/good.txt"), "data\n");
    site.assert_baseline();
}
