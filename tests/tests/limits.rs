//! Payloads that want more than they were given: the limit holds, is named, and nobody else notices.

use pilot_tests::run::{Site, as_root, flow, good, sh};

fn small(name: &str, script: &str, resources: &str, fields: &str) -> String {
    let script = serde_json::Value::from(script);
    format!(
        "  - {{name: {name}, resources: {{{resources}}}, image: oci:busybox, command: [/bin/sh, -c, {script}], {fields}}}\n"
    )
}

/// Grows without end, by doubling.
const GROW: &str = "awk 'BEGIN {s = \"0123456789abcdef\"; while (1) s = s s}'";

#[test]
fn memory_beyond_the_limit_ends_the_payload() {
    let Some(site) = Site::new("memory_beyond_the_limit_ends_the_payload") else { return };
    let ran = site.run(&flow(&[
        small("grows", GROW, "cpu: 500m, memory: 64Mi", ""),
        small("fits", "head -c 20000000 /dev/zero | tail -c 16000000 | wc -c", "cpu: 500m, memory: 64Mi", ""),
        good(),
    ]));
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_done("fits");
    let enforced = !ran.stdout.contains("memory is limited for each process only");
    if as_root() && enforced {
        ran.assert_failed("grows", &["memory exceeded"]);
        let peak = ran.end_of("grows")["figures"]["memory_peak_bytes"].as_u64().unwrap_or_default();
        assert!((32 << 20..=66 << 20).contains(&peak), "{peak}");
    } else {
        ran.assert_failed("grows", &["exit code"]);
    }
    site.assert_baseline();
}

#[test]
fn a_payload_out_of_time_is_asked_then_killed() {
    let Some(site) = Site::new("a_payload_out_of_time_is_asked_then_killed") else { return };
    let ran = site.run(&flow(&[
        sh(
            "polite",
            "trap 'sleep 0.1; echo saved > /stage/out/x; echo saved; exit 0' TERM; while :; do sleep 0.02; done",
            "walltime: 1s, grace: 900ms, outputs: [{name: x, save: x.txt}]",
        ),
        sh("deaf", "trap '' TERM; while :; do sleep 0.05; done", "walltime: 300ms, grace: 500ms"),
        sh("forked", "trap '' TERM; (trap '' TERM; exec sleep 1000) & wait", "walltime: 300ms, grace: 300ms"),
        sh("quick", "true", "walltime: 60s"),
        good(),
    ]));
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_failed("polite", &["walltime exceeded"]);
    assert_eq!(site.log("polite", "stdout"), "saved\n", "it was not given its grace");
    ran.assert_failed("deaf", &["walltime exceeded", "signal 9"]);
    ran.assert_failed("forked", &["walltime exceeded"]);
    ran.assert_done("quick");
    let wall = ran.end_of("deaf")["figures"]["wall_ms"].as_u64().unwrap_or_default();
    assert!((790..5000).contains(&wall), "{wall}");
    assert_eq!(site.read("out/x.txt"), "", "an output of a payload that was stopped is not a result");
    site.assert_baseline();
}

#[test]
fn disk_beyond_the_limit_ends_the_payload() {
    let Some(site) = Site::new("disk_beyond_the_limit_ends_the_payload") else { return };
    let ran = site.run(&flow(&[
        small("fills", "dd if=/dev/zero of=/work/x bs=1M count=30; sleep 60", "cpu: 500m, memory: 64Mi, disk: 10Mi", ""),
        small("many", "mkdir /work/a; for i in 1 2 3 4 5 6; do dd if=/dev/zero of=/work/a/$i bs=1M count=5; done; sleep 60", "cpu: 500m, memory: 64Mi, disk: 10Mi", ""),
        small("fits", "dd if=/dev/zero of=/work/x bs=1M count=9; sleep 1.5", "cpu: 500m, memory: 64Mi, disk: 10Mi", ""),
        good(),
    ]));
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_failed("fills", &["disk exceeded"]);
    ran.assert_failed("many", &["disk exceeded"]);
    ran.assert_done("fits");
    site.assert_baseline();
}

#[test]
fn disk_limits_hold_for_what_is_written_outside_of_the_work_folder() {
    let test = "disk_limits_hold_for_what_is_written_outside_of_the_work_folder";
    let Some(site) = Site::new(test) else { return };
    let fill = |name: &str, path: &str, fields: &str| {
        let script = format!("dd if=/dev/zero of={path} bs=1M count=60; sleep 5; echo never");
        small(name, &script, "cpu: 500m, memory: 64Mi, disk: 10Mi", fields)
    };
    let ran = site.run(&flow(&[
        fill("undeclared", "/stage/out/y", ""),
        fill("root", "/etc/y", "rootfs: writable"),
        small(
            "output",
            "head -c 60000000 /dev/zero > /stage/out/x",
            "cpu: 500m, memory: 64Mi, disk: 10Mi",
            "outputs: [{name: x, max_size: 1Mi}]",
        ),
        small(
            "fits",
            "head -c 60000000 /dev/zero > /stage/out/x; sleep 1.5",
            "cpu: 500m, memory: 64Mi, disk: 10Mi",
            "outputs: [{name: x, max_size: 60M}]",
        ),
        good(),
    ]));
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_done("fits");
    ran.assert_failed("output", &[]);
    for payload in ["undeclared", "root"] {
        ran.assert_failed(payload, &["disk exceeded"]);
    }
    site.assert_baseline();
}

/// In which container a payload is.
const WHERE: &str = "readlink /proc/self/ns/pid";
/// Takes 16 MB for itself.
const FITS: &str = "head -c 16000000 /dev/zero | tail -c 16000000 | wc -c";

#[test]
fn what_a_payload_writes_to_memory_has_room_of_its_own() {
    let test = "what_a_payload_writes_to_memory_has_room_of_its_own";
    let Some(site) = Site::new(test) else { return };
    let little = "cpu: 500m, memory: 48Mi";
    let output = "outputs: [{name: x, class: mem, max_size: 200Mi}]";
    let write = format!("{WHERE}; head -c 200000000 /dev/zero > /stage/out/x; {FITS}");
    let ran = site.run_with(
        &flow(&[
            small("large", &write, little, output),
            // In the same container, while that stage is still charged to it: neither is it in the way, nor a gift.
            small("next", &format!("{WHERE}; {FITS}"), little, "after: [large]"),
            small("grows", &format!("{WHERE}; {GROW}"), little, "after: [next]"),
            small("again", &write, little, &format!("after: [next], {output}")),
            small(
                "reads",
                "wc -c < /stage/in/x",
                little,
                "after: [again], inputs: [{name: x, from: 'stage://large/x'}]",
            ),
        ]),
        &["--slots", "1"],
    );
    ran.assert_code(1);
    for payload in ["large", "next", "again", "reads"] {
        ran.assert_done(payload);
    }
    assert_eq!(site.log("reads", "stdout").trim(), "200000000");
    if ran.stdout.contains("memory is limited for each process only") {
        pilot_tests::skipped(test, "a cgroup: without one, nobody counts what is written to memory");
        ran.assert_failed("grows", &["exit code"]);
    } else {
        ran.assert_failed("grows", &["memory exceeded"]);
        let container = |name: &str| site.log(name, "stdout").lines().next().map(str::to_owned);
        assert_eq!(container("large"), container("next"), "the slot stays warm");
        assert_eq!(container("next"), container("grows"));
    }
    site.assert_baseline();
}

#[test]
fn an_output_that_grows_past_its_size_is_stopped_while_it_grows() {
    let Some(site) = Site::new("an_output_that_grows_past_its_size_is_stopped_while_it_grows") else {
        return;
    };
    let little = "cpu: 500m, memory: 200Mi";
    let grow = |path: &str| format!("while :; do head -c 300000 /dev/zero >> {path}; sleep 0.01; done");
    let ran = site.run(&flow(&[
        small("memory", &grow("/stage/out/x"), little, "outputs: [{name: x, class: mem, max_size: 3Mi}]"),
        small("file", &grow("/stage/out/x"), little, "outputs: [{name: ok}, {name: x, max_size: 3Mi}]"),
        small(
            "replaced",
            &format!("echo x > /work/t; mv /work/t /stage/out/x; {}", grow("/stage/out/x")),
            little,
            "outputs: [{name: x, max_size: 3Mi}]",
        ),
        small("value", &grow("/stage/out/x"), little, "outputs: [{name: x, class: value}]"),
        small(
            "keeps",
            "for i in 1 2 3 4 5 6; do head -c 3000000 /dev/zero > /stage/out/x; cp /stage/out/x /stage/out/y; sleep 0.1; done",
            little,
            "outputs: [{name: x, class: mem, max_size: 3Mi}, {name: y, max_size: 3000000}]",
        ),
        good(),
    ]));
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_done("keeps");
    for payload in ["memory", "file", "replaced"] {
        ran.assert_failed(payload, &["output exceeded", "\"x\" has grown to", "max_size is 3.00 MiB"]);
    }
    ran.assert_failed("value", &["output exceeded", "max_size is 64.0 KiB"]);
    site.assert_baseline();
}

#[test]
fn memory_that_grows_faster_than_anyone_looks_meets_the_limit_of_its_slot() {
    let test = "memory_that_grows_faster_than_anyone_looks_meets_the_limit_of_its_slot";
    let Some(site) = Site::new(test) else { return };
    let ran = site.run_with(
        &flow(&[
            small(
                "floods",
                "cat /dev/zero > /stage/out/x",
                "cpu: 500m, memory: 48Mi",
                "outputs: [{name: x, class: mem, max_size: 16Mi}]",
            ),
            small("next", FITS, "cpu: 500m, memory: 48Mi", ""),
            good(),
        ]),
        &["--slots", "1"],
    );
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_done("next");
    // Whichever came first.
    ran.assert_failed("floods", &["exceeded"]);
    let peak = ran.end_of("floods")["figures"]["memory_peak_bytes"].as_u64();
    if ran.stdout.contains("memory is limited for each process only") {
        pilot_tests::skipped(test, "a cgroup, which is what stops it");
    } else {
        assert!(peak.is_some_and(|peak| peak <= 65 << 20), "{peak:?}");
    }
    site.assert_baseline();
}

#[test]
fn a_full_tmp_is_the_payloads_own() {
    let Some(site) = Site::new("a_full_tmp_is_the_payloads_own") else { return };
    let ran = site.run(&flow(&[
        small("fills", "dd if=/dev/zero of=/tmp/x bs=1M count=200", "cpu: 500m, memory: 48Mi", ""),
        small("shm", "dd if=/dev/zero of=/dev/shm/x bs=1M count=200", "cpu: 500m, memory: 48Mi", ""),
        small("stage", "dd if=/dev/zero of=/stage/x bs=64k count=200", "cpu: 500m, memory: 48Mi", ""),
        sh("beside", "sleep 0.3; dd if=/dev/zero of=/tmp/x bs=1M count=20 && ls /tmp", ""),
        good(),
    ]));
    ran.assert_code(1);
    ran.assert_good(&site);
    ran.assert_done("beside");
    for payload in ["fills", "shm"] {
        let full = site.log(payload, "stderr").contains("No space left");
        // Where a cgroup counts the pages, it may be what says no first.
        let said = full || ran.outcome(payload).contains("memory exceeded");
        assert!(said, "{payload}: {} {}", ran.outcome(payload), site.log(payload, "stderr"));
        ran.assert_failed(payload, &[]);
    }
    ran.assert_failed("stage", &["exit code 1"]);
    site.assert_baseline();
}

#[test]
fn a_flood_on_standard_output_is_cut_and_counted() {
    let Some(site) = Site::new("a_flood_on_standard_output_is_cut_and_counted") else { return };
    let ran = site.run_with(
        &flow(&[
            sh("floods", "yes | head -c 60000000; yes | head -c 3000000 >&2", ""),
            sh("binary", "head -c 1000 /dev/urandom", ""),
            good(),
        ]),
        &["--log-max", "1Mi"],
    );
    ran.assert_code(0);
    ran.assert_good(&site);
    let (out, err) = (site.log("floods", "stdout"), site.log("floods", "stderr"));
    for (log, written) in [(&out, 60_000_000), (&err, 3_000_000)] {
        let line = format!("\n[latebind: {} more bytes were dropped]\n", written - (1 << 20));
        assert!(log.ends_with(&line), "{}", &log[log.len() - 80..]);
        assert_eq!(log.len(), (1 << 20) + line.len());
    }
    let kept = std::fs::read(site.path().join("out/logs/binary.stdout")).expect("log");
    assert_eq!(kept.len(), 1000);
    assert!(ran.stdout.len() < 20_000, "the flood reached the pilot's own output");
    site.assert_baseline();
}

/// Opens one file under ever new names until the kernel says no.
const OPEN_ALL: &str = "awk 'BEGIN {
    for (i = 0; i < 200000; i++) {
        n = i; path = \"/etc\"; for (b = 0; b < 18; b++) { path = path (n % 2 ? \"/.\" : \"/\"); n = int(n / 2) }
        path = path \"/motto\"
        if ((getline line < path) < 0) { print \"stopped\"; exit 0 }
    } print \"never stopped\" }'";

#[test]
fn a_payload_that_opens_every_descriptor_takes_none_from_others() {
    let Some(site) = Site::new("a_payload_that_opens_every_descriptor_takes_none_from_others") else {
        return;
    };
    let ran = site.run(&flow(&[
        sh("opens", &format!("ulimit -n 2000; {OPEN_ALL}; ls /proc/self/fd | wc -l"), ""),
        sh("beside", "sleep 0.2; cat /etc/motto", ""),
        good(),
    ]));
    ran.assert_code(0);
    ran.assert_good(&site);
    assert_eq!(site.log("opens", "stdout").lines().next(), Some("stopped"));
    assert_eq!(site.log("beside", "stdout"), "as it was\n");
    site.assert_baseline();
}

#[test]
fn a_payload_starts_with_no_descriptor_but_its_own() {
    let Some(site) = Site::new("a_payload_starts_with_no_descriptor_but_its_own") else { return };
    let ran = site.run(&flow(&[
        sh("plain", "ls -l /proc/self/fd | awk 'NF > 8 {print $9}'", ""),
        sh(
            "memory",
            "ls -l /proc/self/fd; echo x > /stage/out/m; echo out $LATEBIND_FD_OUT_M",
            "outputs: [{name: m, class: mem}]",
        ),
    ]));
    ran.assert_code(0);
    // The last is the folder that ls itself has open.
    assert_eq!(site.log("plain", "stdout"), "0\n1\n2\n3\n");
    let told = site.log("memory", "stdout");
    assert_eq!(told.lines().filter(|line| line.contains("memfd:")).count(), 1, "{told}");
    // A line for the total, the three, the folder that ls has open, the memory, and the last.
    assert_eq!(told.lines().count(), 7, "{told}");
    site.assert_baseline();
}

#[test]
fn what_would_never_fit_is_refused_before_anything_starts() {
    let Some(site) = Site::new("what_would_never_fit_is_refused_before_anything_starts") else { return };
    for (resources, word) in [("cpu: 10", "--cpu"), ("memory: 2Gi", "--memory")] {
        let file = flow(&[small("big", "true", resources, ""), good()]);
        let ran = site.run_with(&file, &["--cpu", "2", "--memory", "1Gi"]);
        ran.assert_code(64);
        assert!(ran.stderr.contains("big asks for") && ran.stderr.contains(word), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(!site.path().join("out").exists());
    }
    // What it writes to memory is asked for, too.
    let output = "outputs: [{name: x, class: mem, max_size: 1Gi}]";
    let file = flow(&[small("mem", "true", "memory: 64Mi", output), good()]);
    let ran = site.run_with(&file, &["--memory", "1Gi"]);
    ran.assert_code(64);
    let sum = "1140850688 bytes of memory (67108864 of its own, 1073741824 for outputs in memory)";
    assert!(ran.stderr.contains(sum), "{}", ran.stderr);
    site.assert_baseline();
}

#[test]
fn payloads_wait_for_room_and_all_run() {
    let Some(site) = Site::new("payloads_wait_for_room_and_all_run") else { return };
    let ran = site.run_with(
        &flow(&[small(
            "each",
            "cat /proc/uptime; sleep 0.1; cat /proc/uptime",
            "cpu: 500m, memory: 400Mi",
            "count: 4",
        )]),
        &["--memory", "500Mi", "--slots", "4"],
    );
    ran.assert_code(0);
    let mut spans: Vec<(f64, f64)> = (0..4)
        .map(|index| {
            let text = site.log(&format!("each-{index}"), "stdout");
            let mut times = text.lines().filter_map(|line| line.split(' ').next()?.parse::<f64>().ok());
            (times.next().expect("start"), times.next().expect("end"))
        })
        .collect();
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "two ran at once: {spans:?}");
    site.assert_baseline();
}
