use super::*;
use crate::container::Network;
use crate::idmap::{Authority, IdMap};

fn container(program: &Program) -> Container<'_> {
    let ids =
        IdMap { inside_uid: 0, inside_gid: 0, host_uid: 1000, host_gid: 1000, authority: Authority::Own };
    Container {
        root: Root::DataOnly { lowers: vec!["/l/tree".into()], objects: "/s/files".into() },
        rootfs: Rootfs::ReadOnly,
        ids,
        hostname: "slot-0".into(),
        network: Network::Host,
        binds: Vec::new(),
        tmpfs: Vec::new(),
        dirs: Vec::new(),
        shm_bytes: 1 << 20,
        nested_user_namespaces: false,
        program,
        argv: Vec::new(),
        env: Vec::new(),
        fds: Vec::new(),
        cgroup: None,
        dies_with_starting_thread: false,
    }
}

fn bind(source: &str, target: &str, read_only: bool, is_file: bool) -> Bind {
    Bind { source: source.into(), target: target.into(), read_only, is_file, optional: false }
}

fn tmpfs(target: &str) -> Tmpfs {
    Tmpfs { target: target.into(), size_bytes: 4096, inodes: 0, mode: 0o1777 }
}

fn sealed() -> Program {
    Program::Sealed { memory: std::fs::File::open("/dev/null").expect("a descriptor").into() }
}

fn text(container: &Container<'_>) -> Vec<String> {
    plan(container).expect("a plan").iter().map(ToString::to_string).collect()
}

/// The steps that are not the same for every container.
fn own_text(container: &Container<'_>) -> Vec<String> {
    let mut steps = text(container);
    let first =
        steps.iter().position(|step| step.starts_with("bind /sys ")).expect("the last standard step") + 1;
    assert_eq!(steps.pop().as_deref(), Some("enter the new root"));
    steps.drain(first..).collect()
}

const BARE: &str = "\
make every mount private
mount overlay on / lower=/l/tree::/s/files ro,nosuid,nodev
mount proc on /proc
mount tmpfs on /dev size=65536 mode=755 inodes=32
make file /dev/null
bind /dev/null on /dev/null rw,nosuid,noexec
make file /dev/zero
bind /dev/zero on /dev/zero rw,nosuid,noexec
make file /dev/full
bind /dev/full on /dev/full rw,nosuid,noexec
make file /dev/random
bind /dev/random on /dev/random rw,nosuid,noexec
make file /dev/urandom
bind /dev/urandom on /dev/urandom rw,nosuid,noexec
make file /dev/tty
bind /dev/tty on /dev/tty rw,nosuid,noexec
make link /dev/fd -> /proc/self/fd
make link /dev/stdin -> /proc/self/fd/0
make link /dev/stdout -> /proc/self/fd/1
make link /dev/stderr -> /proc/self/fd/2
make link /dev/ptmx -> pts/ptmx
make folder /dev/pts mode=755
mount devpts on /dev/pts
make folder /dev/mqueue mode=755
mount mqueue on /dev/mqueue
make folder /dev/shm mode=755
mount tmpfs on /dev/shm size=1048576 mode=1777
bind /sys on /sys ro,nosuid,nodev
make /dev read-only
enter the new root";

#[test]
fn a_container_without_wishes_has_this_plan() {
    assert_eq!(text(&container(&sealed())).join("\n"), BARE);
}

#[test]
fn a_slot_of_the_pilot_has_this_plan() {
    let program = sealed();
    let container = Container {
        tmpfs: vec![tmpfs("/stage"), tmpfs("/tmp")],
        dirs: vec![Dir { target: "/stage/in".into(), mode: 0o755 }],
        binds: vec![
            bind("/p/work", "/work", false, false),
            bind("/p/out", "/stage/out", false, false),
            bind("/p/in", "/.latebind/in", true, false),
            bind("/data/a.txt", "/.latebind/host/0", true, true),
            bind("/data/b", "/.latebind/host/1", true, false),
            Bind { optional: true, ..bind("/etc/hosts", "/etc/hosts", true, true) },
        ],
        ..container(&program)
    };
    let expected = "\
mount tmpfs on /stage size=4096 mode=1777
mount tmpfs on /tmp size=4096 mode=1777
mount tmpfs on /.latebind size=1048576 mode=755
bind /p/work on /work rw,nosuid,nodev
make folder /stage/in mode=755
make folder /stage/out mode=755
bind /p/out on /stage/out rw,nosuid,nodev
make folder /.latebind/in mode=755
bind /p/in on /.latebind/in ro,nosuid,nodev
bind /etc/hosts on /etc/hosts ro,nosuid,nodev if both exist
make folder /.latebind/host mode=755
make file /.latebind/host/0
bind /data/a.txt on /.latebind/host/0 ro,nosuid,nodev
make folder /.latebind/host/1 mode=755
bind /data/b on /.latebind/host/1 ro,nosuid,nodev
make /.latebind read-only
make /dev read-only";
    assert_eq!(own_text(&container).join("\n"), expected);
}

#[test]
fn a_program_that_can_not_run_from_memory_is_bound_read_only() {
    let program = Program::File { path: "/host/shim".into() };
    let expected = [
        "mount tmpfs on /.latebind size=1048576 mode=755",
        "make file /.latebind/program",
        "bind /host/shim on /.latebind/program ro,nosuid,nodev",
        "make /.latebind read-only",
        "make /dev read-only",
    ];
    assert_eq!(own_text(&container(&program)), expected);
}

fn root_text(root: Root, rootfs: Rootfs) -> String {
    let program = sealed();
    text(&Container { root, rootfs, ..container(&program) })[1].clone()
}

#[test]
fn each_way_to_attach_has_its_root() {
    let writable = || Rootfs::Writable { upper: "/l/0/upper".into(), work: "/l/0/work".into() };
    let layers = |names: &[&str]| Root::Overlay { lowers: names.iter().map(PathBuf::from).collect() };
    let tree = || Root::Copy { tree: "/t".into() };
    for (root, rootfs, expected) in [
        (layers(&["/b", "/a"]), Rootfs::ReadOnly, "mount overlay on / lower=/b:/a ro,nosuid,nodev"),
        (layers(&["/a"]), Rootfs::ReadOnly, "bind /a on / ro,nosuid,nodev"),
        (
            layers(&["/a"]),
            writable(),
            "mount overlay on / lower=/a upper=upper work=work in /l/0 rw,nosuid,nodev",
        ),
        (tree(), Rootfs::ReadOnly, "bind /t on / ro,nosuid,nodev"),
        (tree(), writable(), "bind /l/0/upper on / rw,nosuid,nodev"),
    ] {
        assert_eq!(root_text(root, rootfs), expected);
    }
}

#[test]
fn targets_that_lead_elsewhere_are_refused() {
    let program = sealed();
    for target in ["", "/", "work", "/a/../etc", "../x"] {
        let container = Container { binds: vec![bind("/x", target, true, false)], ..container(&program) };
        assert_eq!(plan(&container), Err(PlanError::Target(target.into())), "{target:?}");
    }
}

#[test]
fn folders_are_made_in_memory_only() {
    let program = sealed();
    for target in ["/etc/x", "/sys/x", "/bound/x"] {
        let container = Container {
            binds: vec![bind("/x", "/bound", false, false)],
            dirs: vec![Dir { target: target.into(), mode: 0o755 }],
            ..container(&program)
        };
        assert_eq!(plan(&container), Err(PlanError::DirOutsideTmpfs(target.into())), "{target:?}");
    }
}

#[test]
fn upper_and_work_folder_must_be_neighbours() {
    let program = sealed();
    let rootfs = Rootfs::Writable { upper: "/a/upper".into(), work: "/b/work".into() };
    let error = plan(&Container { rootfs, ..container(&program) });
    assert!(matches!(error, Err(PlanError::UpperAndWorkApart { .. })), "{error:?}");
    let program = sealed();
    let root = Root::Overlay { lowers: Vec::new() };
    assert_eq!(plan(&Container { root, ..container(&program) }), Err(PlanError::NoLayers));
}
