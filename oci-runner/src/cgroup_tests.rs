use super::*;

const HYBRID_CGROUP: &str = "8:pids:/\n5:cpu,cpuacct:/a\n4:memory:/jobs/7\n1:name=systemd:/\n0::/x\n";
const HYBRID_MOUNTS: &str = "\
30 20 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 20 0:27 /jobs /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory
32 20 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 20 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

fn found(cgroup: &str, mountinfo: &str) -> Vec<(String, Kind)> {
    let delegation = Delegation::parse(cgroup, mountinfo);
    delegation.folders().map(|(path, kind)| (path.display().to_string(), kind)).collect()
}

#[test]
fn each_controller_of_a_hybrid_host_is_found_where_it_is_mounted() {
    let expected = [
        ("/sys/fs/cgroup/pids/", Kind::Pids),
        ("/sys/fs/cgroup/cpu,cpuacct/a", Kind::Cpu),
        ("/sys/fs/cgroup/memory/7", Kind::Memory),
        ("/sys/fs/cgroup/unified/x", Kind::V2),
    ];
    assert_eq!(found(HYBRID_CGROUP, HYBRID_MOUNTS), expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn a_cgroup_outside_what_is_mounted_is_not_used() {
    assert_eq!(found("4:memory:/other\n", HYBRID_MOUNTS), []);
    assert_eq!(found("garbage\n::\n", HYBRID_MOUNTS), []);
}

#[test]
fn a_pilot_in_its_leaf_divides_the_cgroup_above() {
    let mounts = "33 20 0:29 / /cg rw - cgroup2 cgroup2 rw\n";
    for (own, folder) in
        [("/user/latebind-pilot", "/cg/user"), ("/latebind-pilot", "/cg/"), ("/user", "/cg/user")]
    {
        assert_eq!(found(&format!("0::{own}\n"), mounts), [(folder.to_owned(), Kind::V2)]);
    }
}

/// A folder with the files of a v2 cgroup; real files take any write, so only names and values are tested here.
fn fake_v2(files: &[&str]) -> (tempfile::TempDir, Delegation) {
    let home = tempfile::tempdir().expect("a folder");
    let mountinfo = format!("33 20 0:29 / {} rw - cgroup2 cgroup2 rw", home.path().display());
    let delegation = Delegation::parse("0::/own\n", &mountinfo);
    let slot = home.path().join("own/slot-1");
    fs::create_dir_all(&slot).expect("a folder");
    for file in files {
        fs::write(slot.join(file), "").expect("a file");
    }
    (home, delegation)
}

#[test]
fn limits_of_a_v2_slot_are_written_in_the_kernels_units() {
    let (home, delegation) = fake_v2(&["memory.swap.max"]);
    let limits = Limits { memory_bytes: Some(1 << 30), cpu_millis: Some(1500), pids: Some(64) };
    let (mut cgroup, enforced) = Cgroup::create(&delegation, "slot-1", &limits).expect("a cgroup");
    let slot = home.path().join("own/slot-1");
    let read = |file: &str| fs::read_to_string(slot.join(file)).expect(file);
    for (file, value) in [
        ("memory.max", "1073741824"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("cpu.max", "150000 100000"),
        ("pids.max", "64"),
    ] {
        assert_eq!(read(file), value, "{file}");
    }
    assert_eq!(enforced, Enforcement { memory: Guard::Cgroup, cpu: Guard::Cgroup, pids: Guard::Cgroup });
    fs::remove_dir_all(&slot).expect("removal");
    cgroup.remove().expect("a folder that is gone is removed");
}

#[test]
fn figures_of_a_v2_slot_are_read_by_key() {
    let (home, delegation) = fake_v2(&[]);
    let slot = home.path().join("own/slot-1");
    for (file, text) in [
        ("memory.peak", "4096\n"),
        ("memory.current", "1024\n"),
        ("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 1\n"),
        ("cpu.stat", "usage_usec 77\nuser_usec 7\n"),
        ("pids.current", "5\n"),
    ] {
        fs::write(slot.join(file), text).expect("a file");
    }
    let (cgroup, _) = Cgroup::create(&delegation, "slot-1", &Limits::default()).expect("a cgroup");
    let expected = Figures {
        memory_peak_bytes: Some(4096),
        peak_since_reset: false,
        memory_bytes: Some(1024),
        oom_kills: Some(2),
        cpu_us: Some(77),
        pids: Some(5),
    };
    assert_eq!(cgroup.figures(), expected);
    fs::remove_dir_all(&slot).expect("removal");
}

#[test]
fn a_cgroup_of_another_process_is_found_by_its_name() {
    let (home, delegation) = fake_v2(&[]);
    let slot = home.path().join("own/slot-1");
    fs::write(slot.join("cgroup.procs"), "7\n0\n4294967295\n").expect("a file");
    fs::write(slot.join("memory.current"), "1024\n").expect("a file");
    let mut cgroup = Cgroup::reopen(&delegation, "slot-1").expect("a cgroup");
    assert!(cgroup.exists() && cgroup.dir_fd().is_some());
    assert_eq!(cgroup.processes().expect("processes"), [7, 0, u32::MAX]);
    assert_eq!(cgroup.figures().memory_bytes, Some(1024));
    fs::remove_dir_all(&slot).expect("removal");
    cgroup.remove().expect("a folder that is gone is removed");
    let none = Cgroup::reopen(&delegation, "slot-2").expect("an answer");
    assert!(!none.exists() && none.processes().expect("an answer").is_empty());
    assert!(Cgroup::reopen(&delegation, "../slot-2").is_err());
}

#[test]
fn limits_that_are_taken_back_are_the_kernels_word_for_none() {
    let (home, delegation) = fake_v2(&["memory.swap.max"]);
    let limits = Limits { memory_bytes: Some(1 << 30), cpu_millis: Some(1500), pids: Some(64) };
    let (cgroup, _) = Cgroup::create(&delegation, "slot-1", &limits).expect("a cgroup");
    let enforced = cgroup.set_limits(&Limits::default());
    let slot = home.path().join("own/slot-1");
    for (file, value) in
        [("memory.max", "max"), ("memory.swap.max", "max"), ("cpu.max", "max 100000"), ("pids.max", "max")]
    {
        assert_eq!(fs::read_to_string(slot.join(file)).expect(file), value, "{file}");
    }
    assert_eq!(
        enforced,
        Enforcement { memory: Guard::NotAsked, cpu: Guard::NotAsked, pids: Guard::NotAsked }
    );
    fs::remove_dir_all(&slot).expect("removal");
}

#[test]
fn memory_alone_is_limited_anew_and_what_stays_charged_is_told() {
    let (home, delegation) = fake_v2(&["memory.swap.max"]);
    let limits = Limits { memory_bytes: Some(1 << 30), cpu_millis: Some(1500), pids: Some(64) };
    let (cgroup, _) = Cgroup::create(&delegation, "slot-1", &limits).expect("a cgroup");
    let slot = home.path().join("own/slot-1");
    assert_eq!(cgroup.shared_memory_bytes(), None);
    fs::write(slot.join("memory.stat"), "anon 1\nfile 9000\nshmem 8192\nshmem_thp 3\n").expect("a file");
    assert_eq!(cgroup.shared_memory_bytes(), Some(8192));
    assert!(cgroup.limit_memory(1 << 31));
    for (file, value) in [("memory.max", "2147483648"), ("cpu.max", "150000 100000"), ("pids.max", "64")] {
        assert_eq!(fs::read_to_string(slot.join(file)).expect(file), value, "{file}");
    }
    fs::remove_dir_all(&slot).expect("removal");
    let none = Cgroup::create(&Delegation::default(), "slot", &Limits::default()).expect("an answer").0;
    assert!(!none.limit_memory(1 << 30) && none.shared_memory_bytes().is_none());
}

#[test]
fn without_a_cgroup_there_is_no_peak_to_reset() {
    let none = Cgroup::create(&Delegation::default(), "slot", &Limits::default()).expect("an answer").0;
    assert!(!none.reset_peak() && !none.figures().peak_since_reset);
    none.kill_all().expect("nothing to kill");
}

#[test]
fn what_is_not_delegated_is_reported_as_not_enforced() {
    let limits = Limits { memory_bytes: Some(1), cpu_millis: Some(1), pids: None };
    let (cgroup, enforced) = Cgroup::create(&Delegation::default(), "slot", &limits).expect("an answer");
    assert_eq!(enforced, Enforcement { memory: Guard::Rlimit, cpu: Guard::Nobody, pids: Guard::NotAsked });
    assert!(!cgroup.exists() && cgroup.dir_fd().is_none() && cgroup.figures() == Figures::default());
}

#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    for name in ["", "..", "a/b", ".hidden"] {
        assert!(Cgroup::create(&Delegation::default(), name, &Limits::default()).is_err(), "{name:?}");
    }
}
