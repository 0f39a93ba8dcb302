//! What a process in a container can and can't do.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;

use oci_runner::{Bind, Container, Ended, Network, Program};

use crate::harness::{Slot, bind, busybox, quiet, run};

#[test]
fn the_root_is_read_only_and_memory_is_writable() {
    quiet(|| {
        let slot = Slot::new();
        let script = "echo x > /etc/x || echo refused; echo y > /tmp/y && cat /tmp/y; echo z > /dev/shm/z && cat /dev/shm/z; \
                      echo d > /dev/new || echo no-device; echo n > /dev/null && echo null";
        let output = run(slot.container(script));
        let lines: Vec<&str> = output.text.lines().filter(|line| !line.starts_with("sh:")).collect();
        assert_eq!(lines, ["refused", "y", "z", "no-device", "null"], "{}", output.text);
        assert!(!slot.path("tree/etc/x").exists());
    });
}

#[test]
fn a_tmpfs_is_limited_in_size() {
    quiet(|| {
        let output = run(Slot::new().container("head -c 2000000 /dev/zero > /tmp/big || echo full"));
        assert!(output.text.ends_with("full\n"), "{}", output.text);
    });
}

#[test]
fn only_its_own_processes_are_there() {
    quiet(|| {
        let output = run(Slot::new().container("echo $$; for p in /proc/[0-9]*; do echo ${p#/proc/}; done"));
        assert_eq!(output.text, "1\n1\n");
    });
}

#[test]
fn no_capability_is_left_and_none_can_come_back() {
    quiet(|| {
        let slot = Slot::new();
        let script = "cat /proc/self/status; cat /proc/sys/user/max_user_namespaces";
        let output = run(slot.container(script));
        let value = |name: &str| {
            let line = output.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("{name} in {}", output.text)).trim().to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(value(set), "0000000000000000", "{set}");
        }
        assert_eq!(value("NoNewPrivs"), "1");
        assert_eq!(value("SigBlk"), "0000000000000000");
        assert_eq!(value("SigIgn"), "0000000000000000");
        assert!(output.text.ends_with("\n0\n"), "{}", output.text);
    });
}

#[test]
fn mounts_can_not_be_changed() {
    quiet(|| {
        let slot = Slot::new();
        fs::create_dir(slot.path("data")).expect("a folder");
        slot.file("data/a", "original");
        let script = "mount -t tmpfs x /tmp || echo refused-mount
            mount -o remount,rw,bind /.latebind/host/0 || echo refused-remount
            umount /.latebind/host/0 || echo refused-umount
            unshare -Urm true || echo refused-unshare
            echo x > /.latebind/host/0/a || echo refused-write
            echo x > /.latebind/y || echo refused-own
            cat /.latebind/host/0/a";
        let binds = vec![bind(&slot.path("data"), "/.latebind/host/0", true)];
        let output = run(Container { binds, ..slot.container(script) });
        for refused in ["mount", "remount", "umount", "unshare", "write", "own"] {
            assert!(output.text.contains(&format!("refused-{refused}\n")), "{refused}: {}", output.text);
        }
        assert!(output.text.ends_with("original"), "{}", output.text);
        assert_eq!(fs::read_to_string(slot.path("data/a")).expect("the file"), "original");
    });
}

#[test]
fn namespaces_of_its_own_give_no_way_to_write_to_a_read_only_bind() {
    quiet(|| {
        let slot = Slot::new();
        let data = slot.owned("data");
        let script = "unshare -Urm sh -c 'mount -t tmpfs x /tmp && echo mounted
            mount -o remount,rw,bind /.latebind/host/0 || echo refused-remount
            echo x > /.latebind/host/0/a || echo refused-write'";
        let mut container = Container {
            binds: vec![bind(&data, "/.latebind/host/0", true)],
            nested_user_namespaces: true,
            ..slot.container(script)
        };
        container.ids.inside_uid = 33;
        let output = run(container);
        for line in ["mounted\n", "refused-remount\n", "refused-write\n"] {
            assert!(output.text.contains(line), "{line}: {}", output.text);
        }
        assert!(!data.join("a").exists());
    });
}

#[test]
fn a_writable_bind_reaches_the_host_under_the_payloads_id() {
    quiet(|| {
        use std::os::unix::fs::MetadataExt as _;
        let slot = Slot::new();
        let work = slot.owned("work");
        let binds = vec![bind(&work, "/work", false)];
        let output = run(Container { binds, ..slot.container("echo result > /work/r && id -u") });
        assert_eq!(output.text, "0\n");
        let result = fs::metadata(work.join("r")).expect("the file");
        assert_eq!((result.uid(), result.gid()), (slot.ids.host_uid, slot.ids.host_gid));
        assert_ne!(result.uid(), 0, "a payload is root on the host");
    });
}

#[test]
fn the_id_of_the_image_is_the_id_inside() {
    quiet(|| {
        let slot = Slot::new();
        let mut container = slot.container("id -u; id -g; id -G; echo x > /tmp/own && echo wrote");
        container.ids.inside_uid = 33;
        container.ids.inside_gid = 34;
        let output = run(container);
        let lines: Vec<&str> = output.text.lines().collect();
        assert_eq!(
            (lines[0], lines[1], *lines.last().unwrap_or(&"")),
            ("33", "34", "wrote"),
            "{}",
            output.text
        );
    });
}

#[test]
fn only_the_descriptors_passed_are_open() {
    quiet(|| {
        let slot = Slot::new();
        let (a, b) = (slot.file("a", "A"), slot.file("b", "B"));
        let (a, b) = (fs::File::open(a).expect("a file"), fs::File::open(b).expect("a file"));
        use std::os::fd::AsRawFd as _;
        // Each under the other's number, so that neither may be moved carelessly.
        let (a_number, b_number) = (a.as_raw_fd(), b.as_raw_fd());
        let script = format!(
            "ls /proc/1/fd; cat /proc/self/fd/{a_number} /proc/self/fd/{b_number}; ls -l /proc/1/fd/0"
        );
        let fds = vec![(a.as_fd(), b_number), (b.as_fd(), a_number)];
        let output = run(Container { fds, ..slot.container(&script) });
        let mut expected = [0, 1, 2, a_number, b_number].map(|number| number.to_string());
        expected.sort();
        let text = output.text.replace('\n', " ");
        assert!(text.starts_with(&format!("{} BA", expected.join(" "))), "{text}");
        assert!(text.trim_end().ends_with("-> /dev/null"), "{text}");
    });
}

#[test]
fn the_program_of_pid_1_can_not_be_overwritten() {
    quiet(|| {
        let slot = Slot::new();
        let file = slot.path("program");
        fs::copy(busybox().expect("checked by quiet"), &file).expect("a copy");
        // Before Linux 6.3 nothing can forbid memory files to run.
        let sealed = matches!(crate::harness::program(), Program::Sealed { .. });
        assert!(sealed || std::path::Path::new("/proc/sys/vm/memfd_noexec").exists());
        let script = "echo x > /proc/1/exe || echo refused; echo alive";
        let by_file = Program::File { path: file.clone() };
        for program in [crate::harness::program(), &by_file] {
            let output = run(Container { program, ..slot.container(script) });
            assert!(output.text.ends_with("refused\nalive\n"), "{program:?}: {}", output.text);
        }
        let bytes = |path: &std::path::Path| fs::read(path).expect("a program");
        assert!(bytes(&file) == bytes(busybox().expect("checked by quiet")), "the program has changed");
    });
}

#[test]
fn links_of_an_image_lead_nowhere_outside() {
    quiet(|| {
        let slot = Slot::new();
        let outside = slot.owned("outside");
        let tree = slot.path("tree");
        let up = format!("../../../../../../../../..{}", outside.display());
        symlink(&outside, tree.join("absolute")).expect("a link");
        fs::remove_dir(tree.join("stage")).expect("removal");
        symlink(&up, tree.join("stage")).expect("a link");
        let data = slot.owned("data");
        for target in ["/absolute", "/stage"] {
            let container = Container { binds: vec![bind(&data, target, false)], ..slot.container("true") };
            let error = crate::harness::start(container).expect_err("no such folder inside");
            assert!(error.to_string().contains(target), "{error}");
        }
        assert_eq!(fs::read_dir(&outside).expect("a folder").count(), 0);
    });
}

#[test]
fn an_optional_bind_is_left_out_when_either_end_is_missing() {
    quiet(|| {
        let slot = Slot::new();
        symlink("../run/nothing", slot.path("tree/etc/resolv.conf")).expect("a link");
        fs::write(slot.path("tree/etc/hosts"), "").expect("a file");
        let hosts = slot.file("hosts", "10.0.0.1 here\n");
        let optional = |source, target| Bind { optional: true, ..bind(source, target, true) };
        let missing = slot.path("missing");
        let binds = vec![
            optional(hosts.as_path(), "/etc/resolv.conf"),
            optional(hosts.as_path(), "/etc/hosts"),
            optional(missing.as_path(), "/work"),
        ];
        let output = run(Container { binds, ..slot.container("cat /etc/hosts; ls /work") });
        assert_eq!(output.text, "10.0.0.1 here\n");
    });
}

#[test]
fn the_network_is_the_hosts_or_a_loopback_of_its_own() {
    quiet(|| {
        let slot = Slot::new();
        let script = "ip -o link | grep -c .; ip -o link show lo | grep -c ,UP";
        let none = run(Container { network: Network::None, ..slot.container(script) });
        assert_eq!(none.text, "1\n1\n");
        let host = run(slot.container("cat /proc/net/dev"));
        let names = |text: &str| {
            text.lines().filter_map(|l| Some(l.split_once(':')?.0.trim().to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(names(&host.text), names(&fs::read_to_string("/proc/net/dev").expect("interfaces")));
    });
}

#[test]
fn name_and_environment_are_those_given() {
    quiet(|| {
        let slot = Slot::new();
        assert_eq!(run(slot.container("cat /proc/sys/kernel/hostname")).text, "slot-7\n");
        let env = Container {
            argv: vec!["env".into()],
            env: vec!["A=1".into(), "B=two words".into()],
            ..slot.container("")
        };
        let output = run(env);
        assert_eq!((output.text.as_str(), output.ended), ("A=1\nB=two words\n", Ended::Exited(0)));
    });
}
