//! Volumes made and removed: once, twice, many, on a full disk, by a driver that is killed.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use csi_driver::grpc::csi;
use csi_driver::grpc::csi::volume_capability::{AccessType, MountVolume};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tonic::Code;

use crate::kubelet::{Kubelet, may_chown, may_mount, unpublishing, until, with};

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).expect("stat").mode() & 0o7777
}

#[tokio::test]
async fn a_volume_is_an_open_folder_that_goes_with_all_that_is_in_it() {
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let request = kubelet.pod("pod1");
    kubelet.publish(&request).await.expect("publish");
    let target = Path::new(&request.target_path);
    assert_eq!(mode(target), 0o777);
    fs::write(target.join("file"), "kept").expect("write");
    fs::create_dir_all(target.join("a/b/c")).expect("mkdir");
    kubelet.publish(&request).await.expect("publish again");
    assert_eq!(fs::read_to_string(target.join("file")).expect("file"), "kept");
    assert_eq!((kubelet.records(), kubelet.tenants().len()), (1, 1));
    assert_eq!(mode(&kubelet.tenants()[0]), 0o700);
    assert_eq!(mode(kubelet.state()), 0o700);
    kubelet.unpublish(&request).await.expect("unpublish");
    kubelet.assert_gone(&request);
    kubelet.unpublish(&request).await.expect("unpublish again");
    assert_eq!(kubelet.records(), 0);
    // The kubelet may do it all again.
    kubelet.publish(&request).await.expect("publish anew");
    kubelet.unpublish(&request).await.expect("unpublish");
}

#[tokio::test]
async fn what_was_never_published_is_unpublished_without_touching_anything() {
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let request = kubelet.pod("pod1");
    let target = Path::new(&request.target_path);
    kubelet.unpublish(&request).await.expect("nothing to do");
    fs::create_dir(target).expect("mkdir");
    fs::write(target.join("theirs"), "x").expect("write");
    kubelet.unpublish(&request).await.expect("nothing to do");
    assert!(target.join("theirs").exists());
    let other = csi::NodePublishVolumeRequest { volume_id: "csi-other".into(), ..request.clone() };
    kubelet.unpublish(&other).await.expect("nothing to do");
    assert!(target.join("theirs").exists());
}

#[tokio::test]
async fn a_second_request_that_differs_is_refused_and_changes_nothing() {
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let request = kubelet.pod("pod1");
    kubelet.publish(&request).await.expect("publish");
    let changed = with(request.clone(), &[("permissions", "0700")]);
    assert_eq!(kubelet.publish(&changed).await.expect_err("other attributes").code(), Code::AlreadyExists);
    let stranger = with(request.clone(), &[("csi.storage.k8s.io/serviceAccount.name", "other")]);
    assert_eq!(kubelet.publish(&stranger).await.expect_err("another tenant").code(), Code::AlreadyExists);
    let elsewhere =
        csi::NodePublishVolumeRequest { target_path: format!("{}2", request.target_path), ..request.clone() };
    assert_eq!(
        kubelet.publish(&elsewhere).await.expect_err("another target").code(),
        Code::FailedPrecondition
    );
    assert_eq!(mode(&request.target_path), 0o777);
    kubelet.unpublish(&elsewhere).await.expect("not there");
    assert!(Path::new(&request.target_path).exists());
}

#[tokio::test]
async fn owners_and_permissions_are_what_the_pod_and_its_fs_group_say() {
    if !may_chown("owners_and_permissions_are_what_the_pod_and_its_fs_group_say") {
        return;
    }
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let mut request = with(kubelet.pod("pod1"), &[("uid", "10000")]);
    if let Some(capability) = &mut request.volume_capability {
        let mount = MountVolume { volume_mount_group: "2000".into(), ..MountVolume::default() };
        capability.access_type = Some(AccessType::Mount(mount));
    }
    kubelet.publish(&request).await.expect("publish");
    let meta = fs::metadata(&request.target_path).expect("stat");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (10000, 2000, 0o2770));
    kubelet.unpublish(&request).await.expect("unpublish");
    let request = csi::NodePublishVolumeRequest {
        readonly: true,
        ..with(kubelet.pod("pod2"), &[("uid", "7"), ("gid", "8")])
    };
    kubelet.publish(&request).await.expect("publish");
    let meta = fs::metadata(&request.target_path).expect("stat");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (7, 8, 0o2550));
    kubelet.unpublish(&request).await.expect("unpublish");
}

#[tokio::test]
async fn a_pilots_pod_finds_the_folders_of_its_slots() {
    if !may_chown("a_pilots_pod_finds_the_folders_of_its_slots") {
        return;
    }
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let request = with(kubelet.pod("pod1"), &[("slots", "2"), ("uid", "10000")]);
    kubelet.publish(&request).await.expect("publish");
    let target = Path::new(&request.target_path);
    for (path, expected) in [
        ("pilot", 0o700),
        ("stages", 0o700),
        ("slots", 0o711),
        ("slots/1/control/ran", 0o777),
        ("slots/0/in", 0o755),
    ] {
        let meta = fs::metadata(target.join(path)).expect(path);
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (10000, expected), "{path}");
    }
    assert!(!target.join("slots/2").exists());
    kubelet.unpublish(&request).await.expect("unpublish");
    kubelet.assert_gone(&request);
}

#[tokio::test]
async fn figures_of_a_volume_are_what_is_in_it() {
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let request = kubelet.pod("pod1");
    assert_eq!(kubelet.stats(&request).await.expect_err("not there").code(), Code::NotFound);
    kubelet.publish(&request).await.expect("publish");
    fs::write(Path::new(&request.target_path).join("file"), vec![1; 1 << 20]).expect("write");
    let usage = kubelet.stats(&request).await.expect("stats").usage;
    let [bytes, inodes] = usage.as_slice() else { panic!("{usage:?}") };
    assert!((1 << 20..2 << 20).contains(&bytes.used) && bytes.total > bytes.used, "{bytes:?}");
    assert_eq!(inodes.used, 1);
}

#[tokio::test]
async fn tenants_have_as_much_as_the_admin_lets_them() {
    let kubelet = Kubelet::start(&[
        "--register",
        "false",
        "--volumes",
        "3",
        "--tenant-volumes",
        "2",
        "--tenant-bytes",
        "1Mi",
    ])
    .await;
    let of = |pod: &str, account: &str| {
        with(kubelet.pod(pod), &[("csi.storage.k8s.io/serviceAccount.name", account)])
    };
    kubelet.publish(&of("pod1", "a")).await.expect("first");
    fs::write(Path::new(&of("pod1", "a").target_path).join("file"), vec![1; 2 << 20]).expect("write");
    kubelet.stats(&of("pod1", "a")).await.expect("measured");
    let refused = kubelet.publish(&of("pod2", "a")).await.expect_err("too many bytes");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("--tenant-bytes"), "{refused}");
    kubelet.publish(&of("pod2", "b")).await.expect("another tenant");
    kubelet.publish(&of("pod3", "b")).await.expect("its second");
    let refused = kubelet.publish(&of("pod4", "c")).await.expect_err("too many volumes");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    kubelet.unpublish(&of("pod1", "a")).await.expect("unpublish");
    let refused = kubelet.publish(&of("pod4", "b")).await.expect_err("too many volumes");
    assert!(refused.message().contains("--tenant-volumes"), "{refused}");
    kubelet.publish(&of("pod4", "a")).await.expect("room again");
}

#[tokio::test]
async fn tenants_are_apart_and_a_folder_goes_with_a_tenants_last_volume() {
    let root = tempfile::tempdir().expect("tempdir");
    let settings = root.path().join("settings.yaml");
    fs::write(&settings, "domains:\n  physics: [cms/*]\n").expect("settings");
    let settings = settings.display().to_string();
    let kubelet =
        Kubelet::start_in(root, &["--register", "false", "--collect-ms", "50", "--settings", &settings])
            .await;
    let one = with(kubelet.pod("pod1"), &[]);
    let two = with(kubelet.pod("pod2"), &[("csi.storage.k8s.io/pod.namespace", "atlas")]);
    let three = with(kubelet.pod("pod3"), &[("domain", "physics")]);
    let barred =
        with(kubelet.pod("pod4"), &[("domain", "physics"), ("csi.storage.k8s.io/pod.namespace", "atlas")]);
    for request in [&one, &two, &three] {
        kubelet.publish(request).await.expect("publish");
    }
    assert_eq!(kubelet.publish(&barred).await.expect_err("not in the domain").code(), Code::PermissionDenied);
    assert_eq!(kubelet.tenants().len(), 3);
    for request in [&one, &two, &three] {
        kubelet.unpublish(request).await.expect("unpublish");
    }
    until("the end of the tenants' folders", || kubelet.tenants().is_empty()).await;
}

#[tokio::test]
async fn five_hundred_volumes_come_and_go_in_little_memory() {
    let kubelet = Kubelet::start(&["--register", "false", "--tenant-volumes", "500"]).await;
    let mut node = kubelet.node().await;
    let requests: Vec<_> = (0..500).map(|number| kubelet.pod(&format!("pod{number}"))).collect();
    for request in &requests {
        node.node_publish_volume(request.clone()).await.expect("publish");
    }
    assert_eq!(kubelet.records(), 500);
    let status = fs::read_to_string(format!("/proc/{}/status", kubelet.pid())).expect("status");
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: u64 = rss.trim().trim_end_matches(" kB").parse().expect("a number");
    // A debug build; the bench says what a release takes.
    assert!(kib < 40 << 10, "{kib} KiB");
    for request in &requests {
        node.node_unpublish_volume(unpublishing(request)).await.expect("unpublish");
    }
    assert_eq!(kubelet.records(), 0);
    requests.iter().for_each(|request| kubelet.assert_gone(request));
}

#[tokio::test]
async fn requests_that_come_at_once_are_answered_as_if_they_came_one_by_one() {
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let mut requests = JoinSet::new();
    let each = |round: usize| kubelet.pod(&format!("pod{}", round % 4));
    for round in 0..64 {
        let (mut node, request) = (kubelet.node().await, each(round));
        requests.spawn(async move { node.node_publish_volume(request).await });
    }
    while let Some(result) = requests.join_next().await {
        result.expect("join").expect("publish");
    }
    assert_eq!(kubelet.records(), 4);
    for round in 0..4 {
        for number in 0..200 {
            fs::write(Path::new(&each(round).target_path).join(number.to_string()), "x").expect("write");
        }
    }
    let mut requests = JoinSet::new();
    for round in 0..64 {
        let (mut node, request) = (kubelet.node().await, unpublishing(&each(round)));
        requests.spawn(async move { node.node_unpublish_volume(request).await });
    }
    while let Some(result) = requests.join_next().await {
        if let Err(error) = result.expect("join") {
            assert_eq!(error.code(), Code::Aborted, "{error}");
        }
    }
    assert_eq!(kubelet.records(), 0);
    (0..4).for_each(|round| kubelet.assert_gone(&each(round)));
}

#[tokio::test]
async fn a_driver_that_is_killed_finds_its_volumes_again() {
    let mut kubelet = Kubelet::start(&["--register", "false"]).await;
    let (lives, goes) = (kubelet.pod("lives"), kubelet.pod("goes"));
    for request in [&lives, &goes] {
        kubelet.publish(request).await.expect("publish");
        fs::write(Path::new(&request.target_path).join("file"), "kept").expect("write");
    }
    kubelet.end(Signal::KILL);
    kubelet.run().await;
    kubelet.publish(&lives).await.expect("publish again");
    assert_eq!(fs::read_to_string(Path::new(&lives.target_path).join("file")).expect("file"), "kept");
    kubelet.unpublish(&goes).await.expect("unpublish");
    kubelet.assert_gone(&goes);
    kubelet.end(Signal::KILL);
    kubelet.run().await;
    kubelet.unpublish(&goes).await.expect("unpublish again");
    kubelet.unpublish(&lives).await.expect("unpublish");
    kubelet.assert_gone(&lives);
}

/// Each place between two steps where a driver can be killed, put together by hand from a volume that is there.
#[tokio::test]
async fn what_a_kill_between_any_two_steps_leaves_is_cleared_up_or_goes_on() {
    let mut kubelet = Kubelet::start(&["--register", "false"]).await;
    for (round, (renamed, born, emptied)) in [
        // Making: the record is written, the folder is not made; is made; is recorded, but has no name yet.
        (true, false, true),
        (true, false, false),
        (true, true, false),
        // Removing: it has lost its name; it is gone, the record is not.
        (true, true, true),
        // Made and named, and nobody was told.
        (false, true, false),
    ]
    .into_iter()
    .enumerate()
    {
        let request = kubelet.pod(&format!("pod{round}"));
        kubelet.publish(&request).await.expect("publish");
        kubelet.end(Signal::KILL);
        let record = fs::read_dir(kubelet.state().join("volumes")).expect("records").flatten().next();
        let record = record.expect("a record").path();
        let mut volume: serde_json::Value =
            serde_json::from_slice(&fs::read(&record).expect("read")).expect("JSON");
        let target = Path::new(&request.target_path);
        let aside = target.with_file_name(volume["aside"].as_str().expect("a name"));
        if renamed {
            fs::rename(target, &aside).expect("rename");
            fs::create_dir_all(aside.join("half/removed")).expect("mkdir");
        }
        if emptied {
            fs::remove_dir_all(&aside).expect("remove");
        }
        if !born {
            volume["birth"] = serde_json::Value::Null;
            fs::write(&record, volume.to_string()).expect("write");
        }
        kubelet.run().await;
        until("the end of what was half done", || {
            !aside.exists() && kubelet.records() == usize::from(!renamed)
        })
        .await;
        assert_eq!(target.exists(), !renamed, "round {round}");
        kubelet.publish(&request).await.expect("publish again");
        kubelet.unpublish(&request).await.expect("unpublish");
        kubelet.assert_gone(&request);
        assert_eq!(kubelet.records(), 0);
    }
}

#[tokio::test]
async fn a_driver_killed_at_any_moment_leaves_a_volume_or_nothing() {
    let mut kubelet = Kubelet::start(&["--register", "false"]).await;
    for round in 0..25_u32 {
        let request = kubelet.pod(&format!("pod{round}"));
        let mut node = kubelet.node().await;
        let asked = request.clone();
        let calls = async move {
            for _ in 0..8 {
                // One of these is cut off.
                let _ = node.node_publish_volume(asked.clone()).await;
                let _ = node.node_unpublish_volume(unpublishing(&asked)).await;
            }
        };
        // Each round dies somewhat later.
        let _ = tokio::time::timeout(Duration::from_micros(700) * round, calls).await;
        kubelet.end(Signal::KILL);
        kubelet.run().await;
        // What is half removed is not ready to be made.
        while let Err(error) = kubelet.publish(&request).await {
            assert_eq!(error.code(), Code::Aborted, "{error}");
        }
        fs::write(Path::new(&request.target_path).join("file"), "x").expect("write");
        kubelet.unpublish(&request).await.expect("unpublish");
        kubelet.assert_gone(&request);
        assert_eq!(kubelet.records(), 0);
    }
}

#[tokio::test]
async fn a_full_disk_refuses_a_volume_and_keeps_nothing_of_it() {
    if !may_mount("a_full_disk_refuses_a_volume_and_keeps_nothing_of_it") {
        return;
    }
    // Dropped in the opposite order: what is on the disk, the disk, its folder.
    let outer = tempfile::tempdir().expect("tempdir");
    let _disk = crate::mounting::SmallDisk::on(outer.path(), 256 << 10);
    let root = tempfile::tempdir_in(outer.path()).expect("tempdir");
    let kubelet = Kubelet::start_in(root, &["--register", "false"]).await;
    let before = kubelet.pod("before");
    kubelet.publish(&before).await.expect("publish");
    let request = kubelet.pod("after");
    let filler = kubelet.root.path().join("filler");
    // Until not even one byte is left.
    let mut file = fs::File::create(&filler).expect("create");
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    let refused = kubelet.publish(&request).await.expect_err("no space");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    kubelet.assert_gone(&request);
    assert_eq!(kubelet.records(), 1);
    kubelet.unpublish(&before).await.expect("unpublish on a full disk");
    kubelet.assert_gone(&before);
    drop(file);
    fs::remove_file(&filler).expect("remove");
    kubelet.publish(&request).await.expect("publish when there is space");
    let closed = Path::new(&request.target_path).join("closed");
    fs::create_dir(&closed).expect("mkdir");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("chmod");
    kubelet.unpublish(&request).await.expect("unpublish");
}
