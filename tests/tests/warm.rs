//! Warm reuse: what a payload leaves behind is not there for the next one in the same container, or that container is not
//! used again; and a container never serves two payloads that must not share one.
//!
//! The same probe runs before and after a hostile payload, in the only slot there is, and must say the same both times.

use std::path::Path;
use std::process::Command;

use image_store::layout::{Compression, LayerBuilder};
use pilot_tests::images::{busybox_layer, image, shell};
use pilot_tests::run::{Ran, Site, flow};
use serde_json::Value;

/// In which container a payload is: its PID namespace, and when PID 1 began. It costs no process.
const WHERE: &str = "readlink /proc/self/ns/pid; awk '{print $22}' /proc/1/stat";

/// Says everything that an earlier payload could have changed.
const PROBE: &str = "echo == files
for d in /tmp /var/tmp /dev/shm /work /stage /stage/in /stage/out /.latebind /.latebind/in; do
  stat -c '%n %a %u %g' $d 2>&1
done
find /tmp /var/tmp /dev/shm /work /stage /.latebind /dev/mqueue -mindepth 1 2>&1 | busybox sort
echo == processes; for p in /proc/[0-9]*; do read c < $p/comm; [ $c = stage-holder ] || echo $c; done
echo == own; pwd; umask; ulimit -a; busybox nice; busybox taskset -p $$ | sed 's/.*: //'; busybox ionice -p $$
env | grep -v LATEBIND_PAYLOAD | busybox sort; hostname; id; cat /proc/self/oom_score_adj /proc/self/timerslack_ns 2>&1
grep -E '^(Sig(Blk|Ign|Cgt)|Cap|NoNewPrivs|Seccomp)' /proc/self/status
ls -l /proc/self/fd | awk 'NF > 8 {print $9, $10}' | grep -v /proc
echo == init; cat /proc/1/limits; awk '{print $18, $19, $41}' /proc/1/stat
busybox taskset -p 1 | sed 's/.*: //'; busybox ionice -p 1; cat /proc/1/oom_score_adj
grep -E '^(Sig(Blk|Ign)|Cap|Umask)' /proc/1/status
echo == ipc; cat /proc/sysvipc/shm /proc/sysvipc/sem /proc/sysvipc/msg; ill show
awk '{print $5, $6}' /proc/self/mountinfo";

/// What busybox can't do.
const ILL: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

static int limit(int pid, int what, unsigned long to) {
    struct rlimit new = {to, to};
    return prlimit(pid, what, &new, NULL);
}

int main(int count, char **words) {
    const char *deed = count > 1 ? words[1] : "";
    if (!strcmp(deed, "show")) {
        printf("flags %o\n", fcntl(1, F_GETFL));
    } else if (!strcmp(deed, "named")) {
        mqd_t queue = mq_open("/left", O_RDONLY);
        long key = syscall(SYS_keyctl, 10 /* search */, -4 /* user keyring */, "user", "left", 0);
        printf("queue %d key %d\n", queue != (mqd_t)-1, key > 0);
        mq_open("/left", O_CREAT | O_RDWR, 0666, NULL);
        syscall(SYS_add_key, "user", "left", "secret", 6, -4);
    } else if (!strcmp(deed, "ipc")) {
        int memory = shmget(4711, 65536, IPC_CREAT | 0666);
        shmat(memory, NULL, 0);
        shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
        semget(4711, 3, IPC_CREAT | 0666);
        int queue = msgget(4711, IPC_CREAT | 0666);
        struct { long type; char text[8]; } message = {1, "left"};
        msgsnd(queue, &message, 8, IPC_NOWAIT);
    } else if (!strcmp(deed, "limits")) {
        /* PID 1, and whoever else is there. */
        for (int pid = 1; pid < 40; pid++) {
            if (pid == getpid() || pid == getppid()) continue;
            limit(pid, RLIMIT_CORE, 0);
            limit(pid, RLIMIT_NICE, 0);
            limit(pid, RLIMIT_FSIZE, 4096);
            limit(pid, RLIMIT_NOFILE, 12);
            limit(pid, RLIMIT_NPROC, 9);
            limit(pid, RLIMIT_STACK, 200000);
            limit(pid, RLIMIT_AS, 1UL << 30);
            setpriority(PRIO_PROCESS, pid, 15);
        }
    } else if (!strcmp(deed, "flags")) {
        for (int fd = 0; fd < 3; fd++) fcntl(fd, F_SETFL, O_NONBLOCK | O_APPEND | O_ASYNC);
        fcntl(1, F_SETPIPE_SZ, 4096);
        fcntl(1, F_SETOWN, 1);
        fcntl(1, F_SETSIG, 9);
    } else if (!strcmp(deed, "self")) {
        prctl(PR_SET_TIMERSLACK, 1000000000UL);
        setpriority(PRIO_USER, 0, 12);
    }
    return 0;
}
"#;

/// A place with an image that has `ill` in it; says why not.
fn place(test: &str) -> Option<Site> {
    let site = Site::new(test)?;
    let source = site.write("ill.c", ILL);
    let program = site.path().join("ill");
    #[expect(clippy::disallowed_methods, reason = "the compiler that ./build needs, too")]
    let made = Command::new("cc").args(["-static", "-O1", "-w", "-o"]).arg(&program).arg(&source).output();
    match made {
        Ok(output) if output.status.success() => {}
        other => {
            pilot_tests::skipped(test, &format!("no C compiler with a static library: {other:?}"));
            return None;
        }
    }
    make_image(&site.path().join("image"), &std::fs::read(program).expect("ill"));
    Some(site)
}

fn make_image(dir: &Path, ill: &[u8]) {
    let layer = busybox_layer(LayerBuilder::new()).expect("busybox").dir("var", 0o755).dir("var/tmp", 0o1777);
    let layer = layer.file("bin/ill", 0o755, ill).finish(Compression::None).expect("layer");
    image(dir, &shell(), vec![layer]).expect("image");
}

/// A payload; `fields` in flow style.
fn one(name: &str, script: &str, fields: &str) -> String {
    let script = Value::from(script);
    let of_image = if fields.contains("image:") { "" } else { "image: oci:image, " };
    let resources =
        if fields.contains("resources:") { "" } else { "resources: {cpu: 500m, memory: 128Mi}, " };
    format!("  - {{name: {name}, {of_image}{resources}command: [/bin/sh, -c, {script}], {fields}}}\n")
}

fn run(site: &Site, payloads: &[String], more: &[&str]) -> Ran {
    let mut arguments = vec!["--slots", "1"];
    arguments.extend(more);
    let _ = std::fs::remove_dir_all(site.path().join("out"));
    site.run_with(&flow(payloads), &arguments)
}

/// Runs a hostile payload between two probes; gives whether all three had one container.
fn stays_clean(site: &Site, deed: &str, script: &str, fields: &str) -> bool {
    let probe = format!("{WHERE}; {PROBE}");
    // The second probe waits for nothing but the slot: the payload before it may fail.
    let ran = run(
        site,
        &[
            one("before", &probe, ""),
            one("ill", &format!("{WHERE}\n{script}"), &format!("after: [before], {fields}")),
            one("later", &probe, "after: [before]"),
        ],
        &[],
    );
    let order: Vec<String> = ran
        .events()
        .iter()
        .filter(|event| event["event"] == "payload_ended")
        .map(|event| event["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(order, ["before", "ill", "later"], "{deed}: {}", ran.stderr);
    let split = |name: &str| {
        let text = site.log(name, "stdout");
        let mut lines = text.lines();
        let place = format!("{:?} {:?}", lines.next(), lines.next());
        (place, lines.collect::<Vec<_>>().join("\n"))
    };
    ran.assert_done("before");
    ran.assert_done("later");
    let ((first, before), (last, after)) = (split("before"), split("later"));
    assert!(before.contains("== ipc"), "{deed}: {before}");
    let differs: Vec<_> =
        before.lines().zip(after.lines()).filter(|(before, after)| before != after).collect();
    let one_container = first == last && first == split("ill").0;
    assert!(
        before == after,
        "{deed}: the next payload sees it (one container: {one_container}): {differs:?}"
    );
    assert_eq!(site.log("later", "stderr"), site.log("before", "stderr"), "{deed}");
    one_container
}

#[test]
fn what_a_payload_leaves_is_not_there_for_the_next_one() {
    let Some(site) = place("what_a_payload_leaves_is_not_there_for_the_next_one") else { return };
    let deeds = [
        ("nothing", "true"),
        (
            "daemons",
            "setsid sh -c '(trap \"\" TERM HUP; sleep 1000) & (cd /tmp; exec sleep 1001) & sleep 1002' </dev/null >/dev/null 2>&1 &
             (setsid sleep 1003 &) ; sleep 0.2",
        ),
        (
            "files",
            "for d in /tmp /var/tmp /dev/shm /work /stage /stage/in /.latebind /.latebind/in /dev; do
               echo x > $d/left; mkdir -p $d/.a/b; ln -s / $d/link; mkfifo $d/pipe; : > \"$d/-rf\"; : > \"$d/$(printf 'a\\nb')\"
               : > \"$d/$(printf '\\377\\376')\"; : > \"$d/$(head -c 255 /dev/zero | busybox tr '\\0' n)\"; ln $d/left $d/hard
             done 2>/dev/null; true",
        ),
        ("files in out", "mkdir -p /stage/out/a/b; : > /stage/out/a/b/c; ln -s / /stage/out/l; mkfifo /stage/out/p; : > /stage/out/x"),
        (
            "deep",
            "cd /work; for i in $(seq 1 400); do mkdir -p a && cd a; done; : > x; cd /tmp; for i in $(seq 1 400); do mkdir a && cd a; done; true",
        ),
        (
            "closed",
            "for d in /work /tmp /dev/shm /stage/out; do mkdir -p $d/a/b/c; : > $d/a/b/c/x; chmod 000 $d/a/b/c $d/a/b $d/a; done; true",
        ),
        ("modes", "chmod 000 /work /tmp /dev/shm /stage/out /stage/in /stage; true"),
        ("renamed", "mv /work/. /tmp/w; mv /stage/out /stage/o; rmdir /stage/in /stage/out /tmp; true"),
        ("environment", "export LEFT=1; umask 0; cd /tmp; ulimit -n 20; ulimit -s 100; exit 3"),
        ("ipc", "ill ipc; ill ipc"),
        ("limits", "ill limits; true"),
        ("priorities", "busybox renice -n 15 -p 1; busybox taskset -p 1 1; busybox ionice -c 3 -p 1; echo 900 > /proc/1/oom_score_adj; ill self; true"),
        ("flags", "ill flags"),
        ("stdio", "exec <&- >&- 2>&-; exit 0"),
        ("full pipe", "yes | head -c 65536; (yes & ) ; sleep 0.1"),
        ("holder", "for p in /proc/[0-9]*; do grep -q stage-holder $p/comm && kill -9 ${p#/proc/}; done; sleep 1; true"),
        ("all", "kill -9 -1; sleep 5"),
        ("signals", "for s in 1 2 3 10 12 13 15 17 18 19 20; do kill -$s 1; done; kill -STOP 1; sleep 0.1; true"),
        (
            "locks",
            "for d in /tmp /work /stage/out; do (busybox flock $d sleep 1000 &); done; sleep 0.1; busybox flock -n /etc/motto true; true",
        ),
        (
            "deleted program",
            "cp /bin/busybox /tmp/bb; (/tmp/bb sleep 1000 &); sleep 0.1; rm /tmp/bb; cp /bin/busybox /dev/shm/bb; (/dev/shm/bb sleep 1001 & ); true",
        ),
        ("mounts", "mount -t tmpfs none /tmp; umount /work; mount --bind /tmp /etc; hostname other; true"),
    ];
    let mut cold = Vec::new();
    for (deed, script) in deeds {
        if !stays_clean(&site, deed, script, "") {
            cold.push(deed);
        }
    }
    // A slot that is made anew is as good, but what harms nobody must not cost that.
    for harmless in ["nothing", "daemons", "files", "environment", "stdio", "flags", "full pipe", "locks"] {
        assert!(!cold.contains(&harmless), "{harmless} costs a container; so do {cold:?}");
    }
    // An output that was not declared, and one of a payload that fails, are nobody's.
    let memory = "outputs: [{name: y}, {name: m, class: mem}]";
    assert!(stays_clean(&site, "outputs", "echo x > /stage/out/y; echo m > /stage/out/m; exit 4", memory));
    site.assert_baseline();
}

#[test]
fn message_queues_and_keys_do_not_wait_for_the_next_payload() {
    let Some(site) = place("message_queues_and_keys_do_not_wait_for_the_next_payload") else { return };
    let named = |fields: &str| one("a", "ill named", fields) + &one("b", "ill named", "after: [a]");
    run(&site, &[named("")], &[]).assert_code(0);
    assert_eq!(site.log("a", "stdout"), "queue 0 key 0\n");
    assert_eq!(site.log("b", "stdout"), "queue 0 key 0\n", "the same container");
    run(&site, &[named("trust_group: other")], &[]).assert_code(0);
    assert_eq!(site.log("b", "stdout"), "queue 0 key 0\n", "another container");
    site.assert_baseline();
}

#[test]
fn the_memory_that_a_payload_used_is_not_the_next_ones() {
    let Some(site) = place("the_memory_that_a_payload_used_is_not_the_next_ones") else { return };
    let ran = run(
        &site,
        &[
            one("much", &format!("{WHERE}; head -c 60000000 /dev/zero | tail -c 50000000 | wc -c"), ""),
            one("little", &format!("{WHERE}; sleep 1.5"), "after: [much]"),
        ],
        &[],
    );
    ran.assert_code(0);
    let peak = |name: &str| ran.end_of(name)["figures"]["memory_peak_bytes"].as_u64();
    let place = |name: &str| site.log(name, "stdout").lines().take(2).collect::<Vec<_>>().join(" ");
    assert_eq!(place("much"), place("little"), "one container");
    match (peak("much"), peak("little")) {
        (Some(much), Some(little)) => {
            assert!(much > 40_000_000, "{much}");
            assert!(little < 30_000_000, "{little} of {much}");
        }
        _ => pilot_tests::skipped("the_memory_that_a_payload_used_is_not_the_next_ones", "no cgroup"),
    }
    site.assert_baseline();
}

#[test]
fn a_container_serves_only_payloads_that_may_share_one() {
    let Some(site) = place("a_container_serves_only_payloads_that_may_share_one") else { return };
    make_image(&site.path().join("other"), b"another image");
    std::fs::create_dir(site.path().join("data")).expect("mkdir");
    let shared = |first: &str, second: &str, more: &[&str]| {
        let second = format!("after: [a], {second}");
        let ran = run(&site, &[one("a", WHERE, first), one("b", WHERE, &second)], more);
        ran.assert_code(0);
        site.log("a", "stdout") == site.log("b", "stdout")
    };
    assert!(shared("", "", &[]), "two alike");
    assert!(
        shared("env: {A: x}, cwd: /tmp", "outputs: [], walltime: 9s, grace: 1s", &[]),
        "what is made anew each time"
    );
    assert!(shared("trust_group: g", "trust_group: g", &[]));
    let apart = [
        ("", "trust_group: other"),
        ("trust_group: g", "trust_group: h"),
        ("", "image: oci:other"),
        ("", "user: '1234:1235'"),
        ("", "resources: {cpu: 500m, memory: 129Mi}"),
        ("", "resources: {cpu: 400m, memory: 128Mi}"),
        ("", "inputs: [{name: d, from: ./data}]"),
        ("inputs: [{name: d, from: ./data}]", "inputs: [{name: d, from: ./image}]"),
        ("", "network: none"),
        ("", "rootfs: writable"),
        ("rootfs: writable", ""),
        ("rootfs: writable", "rootfs: writable"),
    ];
    for (first, second) in apart {
        assert!(!shared(first, second, &[]), "{{{first}}} and {{{second}}} had one container");
    }
    assert!(!shared("", "", &["--reuse", "false"]), "with --reuse false");
    site.assert_baseline();
}
