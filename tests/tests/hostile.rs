//! Payloads that mean ill: what they try must fail, cost only themselves, and leave nothing.

use std::collections::BTreeSet;

use pilot_tests::baseline::descendants;
use pilot_tests::run::{Ran, Site, as_root, flow, good, sh, signal};
use rustix::process::Signal;

/// Runs payloads beside a good one and after another; both must succeed.
fn beside_good(site: &Site, payloads: &[String]) -> Ran {
    let mut all = payloads.to_vec();
    all.push(good());
    let ran = site.run(&flow(&all));
    ran.assert_good(site);
    ran
}

/// A script that tries each command and says which succeeded.
fn attempts(commands: &[&str]) -> String {
    let tries = commands.iter().enumerate().map(|(number, command)| {
        format!("if ( {command} ) >/tmp/o 2>/dev/null && [ -s /tmp/o ]; then echo \"succeeded: {number}\"; head -c 300 /tmp/o; fi\n")
    });
    format!("{}echo done", tries.collect::<String>())
}

/// Leaves three processes behind, each of which has said that it runs.
const FORKS: &str =
    "setsid sh -c '(: > /tmp/1; sleep 1000) & (: > /tmp/2; sleep 1000) &' </dev/null >/dev/null 2>&1
(trap '' HUP; : > /tmp/3; sleep 1000; true) >/dev/null 2>&1 &
until [ -e /tmp/1 ] && [ -e /tmp/2 ] && [ -e /tmp/3 ]; do sleep 0.01; done; echo away";

#[test]
fn processes_that_try_to_outlive_their_payload_are_killed() {
    let Some(site) = Site::new("processes_that_try_to_outlive_their_payload_are_killed") else { return };
    let ran = beside_good(
        &site,
        &[
            sh("forks", FORKS, ""),
            // Keeps its standard output, so that a pilot that waits for the end of the pipe would wait for ever.
            sh("holds", "trap '' TERM HUP INT; (trap '' TERM HUP; sleep 1003) & echo holding", ""),
            sh("closes", "exec </dev/null >&- 2>&-; sleep 0.1; exit 9", ""),
        ],
    );
    ran.assert_code(1);
    ran.assert_done("forks");
    let left = ran
        .outcome("forks")
        .split_once("succeeded; ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse::<u32>().ok());
    assert!(left.is_some_and(|left| left >= 3), "{}", ran.outcome("forks"));
    ran.assert_done("holds");
    assert!(ran.outcome("holds").contains("outlived"), "{}", ran.outcome("holds"));
    ran.assert_failed("closes", &["exit code 9"]);
    site.assert_baseline();
}

#[test]
fn a_payload_that_kills_all_it_sees_harms_only_itself() {
    let Some(site) = Site::new("a_payload_that_kills_all_it_sees_harms_only_itself") else { return };
    let ran = beside_good(
        &site,
        &[
            sh(
                "holder",
                // Its number is 2 in a fresh container only.
                "echo before > /stage/out/m; p=$(readlink /stage/out/m); p=${p#/proc/}; kill -9 ${p%%/*}; \
                 echo file > /stage/out/f; sleep 5",
                "outputs: [{name: m, class: mem}, {name: f}]",
            ),
            sh("all", "kill -9 -1; sleep 5; exit 5", ""),
            sh(
                "init",
                "for signal in 9 TERM STOP INT HUP QUIT SEGV CHLD; do kill -$signal 1; done; sleep 0.1; echo alive; exit 5",
                "",
            ),
            sh("itself", "kill -9 $$", ""),
            sh(
                "reads",
                "cat /stage/in/m /stage/in/f",
                "inputs: [{name: m, from: 'stage://holder/m'}, {name: f, from: 'stage://holder/f'}]",
            ),
        ],
    );
    ran.assert_code(1);
    // Without its holder a payload would find its stages gone: it ends, and is told why.
    ran.assert_failed("holder", &["stage holder"]);
    ran.assert_failed("all", &[]);
    ran.assert_failed("init", &["exit code 5"]);
    assert_eq!(site.log("init", "stdout"), "alive\n");
    ran.assert_failed("itself", &["signal 9"]);
    assert_eq!(ran.row("reads")["state"], "not_run");
    site.assert_baseline();
}

#[test]
fn pid_1_can_not_be_robbed() {
    let Some(site) = Site::new("pid_1_can_not_be_robbed") else { return };
    let script = attempts(&[
        "cat /proc/1/environ",
        // Where the payload is root inside, the kernel lets it count the descriptors; nothing leads to what they are.
        "for fd in /proc/1/fd/*; do readlink $fd; done",
        "for fd in 3 4 5 6 7 8 9; do ls /proc/1/fd/$fd/; done",
        "for fd in 0 1 2 3 4 5 6 7 8 9; do cat < /proc/1/fd/$fd; done",
        "cat /proc/1/maps",
        "head -c 1 /proc/1/mem",
        "readlink /proc/1/exe",
        "readlink /proc/1/cwd",
        "ls /proc/1/root/",
        "cat /proc/1/auxv",
        "cat /proc/1/syscall",
        "cat /proc/1/task/1/environ",
        "ls /proc/1/map_files",
        "grep -a LATEBIND_NONCE /proc/*/environ",
        "grep -a LATEBIND_CONTROL /proc/*/environ",
        "env | grep -E 'NONCE|CONTROL|CGROUP'",
        "find / -xdev -type s",
        "find /work /stage /tmp /dev /.latebind -type s",
        "cat /proc/2/exe > /tmp/shim && (echo x >> /proc/2/exe) && echo written",
    ]);
    let ran = beside_good(&site, &[sh("robber", &script, "")]);
    ran.assert_code(0);
    assert_eq!(site.log("robber", "stdout"), "done\n");
    site.assert_baseline();
}

#[test]
fn a_payload_has_no_privilege_and_can_get_none() {
    let Some(site) = Site::new("a_payload_has_no_privilege_and_can_get_none") else { return };
    let script = attempts(&[
        "mount -o remount,rw / && echo x",
        "mount -o remount,rw,bind /.latebind/in && echo x",
        "mount -t tmpfs none /tmp && echo x",
        "mount --bind /tmp /etc && echo x",
        "umount /proc && echo x",
        "umount -l /.latebind && echo x",
        "mknod /work/null c 1 3 && echo x",
        "mknod /work/disk b 254 0 && echo x",
        "busybox unshare -U true && echo x",
        "busybox unshare -m true && echo x",
        "busybox chroot / /bin/true && echo x",
        "hostname other && echo x",
        "chown 1:1 /work && echo x",
        "echo 1 > /proc/sys/kernel/sysrq && echo x",
        "echo x > /sys/kernel/uevent_helper && echo x",
        "echo 0 > /proc/self/setgroups && echo x",
        "echo x > /bin/busybox && echo x",
        "touch /bin/new && echo x",
    ]);
    let status = "grep -E '^(Cap|NoNewPrivs|Groups)' /proc/self/status";
    let ran = beside_good(
        &site,
        &[sh("climber", &script, ""), sh("status", status, "user: '7:8'"), sh("zero", status, "")],
    );
    ran.assert_code(0);
    assert_eq!(site.log("climber", "stdout"), "done\n");
    let none = "0000000000000000";
    for payload in ["status", "zero"] {
        let told = site.log(payload, "stdout");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(told.contains(&format!("{set}:\t{none}")), "{told}");
        }
        assert!(told.contains("NoNewPrivs:\t1"), "{told}");
    }
    site.assert_baseline();
}

#[test]
fn nothing_of_the_host_is_mounted_in_a_container() {
    let Some(site) = Site::new("nothing_of_the_host_is_mounted_in_a_container") else { return };
    let script = "cut -d' ' -f5 /proc/self/mountinfo; echo --; ls -di / | awk '{print $1}'; ls -di /.. | awk '{print $1}'; \
        stat -c '%d %i' /etc /../etc; (echo x > /../tmp/mark) && ls /tmp";
    let writable = "cut -d' ' -f5 /proc/self/mountinfo; echo --; stat -c '%d %i' /etc /../etc";
    for attach in ["data-only", "overlay", "copy"] {
        let payloads = [sh("look", script, ""), sh("also", writable, "rootfs: writable")];
        let ran = site.run_with(&flow(&payloads), &["--attach", attach]);
        if ran.code == 69 {
            pilot_tests::skipped("nothing_of_the_host_is_mounted_in_a_container", ran.stderr.trim());
            continue;
        }
        for payload in ["look", "also"] {
            let told = site.log(payload, "stdout");
            let (mounts, rest) = told.split_once("--\n").expect("two parts");
            let places: BTreeSet<&str> = mounts.lines().collect();
            let ours =
                ["/", "/proc", "/dev", "/sys", "/work", "/tmp", "/var", "/stage", "/.latebind", "/etc"];
            let foreign: Vec<_> = places
                .iter()
                .filter(|at| {
                    !ours.iter().any(|our| *at == our || (*our != "/" && at.starts_with(&format!("{our}/"))))
                })
                .collect();
            assert!(foreign.is_empty(), "{attach} {payload}: {foreign:?} are mounted");
            assert_eq!(
                mounts.lines().filter(|at| *at == "/").count(),
                1,
                "{attach} {payload}: something is stacked on /\n{mounts}"
            );
            let mut inodes: Vec<&str> = rest.lines().filter(|line| line.contains(' ')).collect();
            inodes.dedup();
            assert_eq!(inodes.len(), 1, "{attach} {payload}: /.. is not /: {rest}");
        }
        assert!(site.log("look", "stdout").ends_with("mark\n"), "{attach}: /../tmp is another /tmp");
    }
    site.assert_baseline();
}

#[test]
fn a_payload_sees_its_own_processes_and_no_others() {
    let Some(site) = Site::new("a_payload_sees_its_own_processes_and_no_others") else { return };
    let look = "for i in 1 2 3 4 5 6 7 8 9 10; do cat /proc/[0-9]*/cmdline | grep -a -c -e marker-$OTHER; done | sort -u; \
        ls -d /proc/[0-9]* | wc -l; sleep 0.2";
    let one = |name: &str, own: &str, other: &str| {
        sh(name, &format!(": marker-{own}; {look}"), &format!("env: {{OTHER: {other}}}"))
    };
    let ran = site.run(&flow(&[one("a", "a", "b"), one("b", "b", "a")]));
    ran.assert_code(0);
    for payload in ["a", "b"] {
        let told = site.log(payload, "stdout");
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[0], "0", "{told}");
        // PID 1, the stage holder, the shell, ls and wc.
        assert!(lines[1].parse::<u32>().is_ok_and(|count| count <= 5), "{told}");
    }
    site.assert_baseline();
}

#[test]
fn a_slot_of_a_privileged_pilot_has_a_uid_of_its_own() {
    let test = "a_slot_of_a_privileged_pilot_has_a_uid_of_its_own";
    let Some(site) = Site::new(test) else { return };
    if !as_root() {
        pilot_tests::skipped(test, "not root");
        return;
    }
    let wait = "echo ready; sleep 60";
    let child = site.start(&flow(&[sh("a", wait, "grace: 1s"), sh("b", wait, "grace: 1s")]));
    site.wait_for("a", "ready");
    site.wait_for("b", "ready");
    let uids: BTreeSet<u32> = descendants(child.id())
        .iter()
        .filter_map(|process| {
            std::fs::read_to_string(format!("/proc/{}/status", process.split(' ').next()?)).ok()
        })
        .flat_map(|status| {
            status
                .lines()
                .filter(|line| line.starts_with("Uid:") || line.starts_with("Gid:"))
                .flat_map(|line| {
                    line.split_whitespace().skip(1).filter_map(|id| id.parse().ok()).collect::<Vec<u32>>()
                })
                .collect::<Vec<_>>()
        })
        .collect();
    signal(&child, Signal::TERM);
    Ran::of(child).assert_code(143);
    assert_eq!(uids, BTreeSet::from([2_000_000_000, 2_000_000_001]));
    site.assert_baseline();
}
