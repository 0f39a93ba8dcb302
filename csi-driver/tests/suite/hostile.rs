//! Requests and targets that are not what they should be.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use csi_driver::grpc::csi;
use tonic::Code;

use crate::kubelet::{Kubelet, with};

#[tokio::test]
async fn a_target_that_is_a_link_or_a_file_or_full_is_refused_and_left_alone() {
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let precious = kubelet.root.path().join("precious");
    fs::create_dir(&precious).expect("mkdir");
    fs::write(precious.join("file"), "kept").expect("write");
    let request = kubelet.pod("pod1");
    let target = Path::new(&request.target_path);
    let refused = async || {
        assert_eq!(kubelet.publish(&request).await.expect_err("in the way").code(), Code::FailedPrecondition);
        kubelet.unpublish(&request).await.expect("not ours, so nothing to do");
    };
    symlink(&precious, target).expect("symlink");
    refused().await;
    assert!(target.is_symlink());
    fs::remove_file(target).expect("remove");
    fs::write(target, "theirs").expect("write");
    refused().await;
    fs::remove_file(target).expect("remove");
    fs::create_dir(target).expect("mkdir");
    fs::write(target.join("theirs"), "x").expect("write");
    refused().await;
    assert!(target.join("theirs").exists() && precious.join("file").exists());
    // An empty one loses nothing.
    fs::remove_file(target.join("theirs")).expect("remove");
    kubelet.publish(&request).await.expect("publish over an empty folder");
    // What takes a volume's place afterwards is nobody's to remove.
    fs::rename(target, target.with_file_name("moved")).expect("rename");
    symlink(&precious, target).expect("symlink");
    assert_eq!(kubelet.unpublish(&request).await.expect_err("a link").code(), Code::FailedPrecondition);
    fs::remove_file(target).expect("remove");
    fs::create_dir(target).expect("mkdir");
    fs::write(target.join("theirs"), "x").expect("write");
    assert_eq!(
        kubelet.unpublish(&request).await.expect_err("another folder").code(),
        Code::FailedPrecondition
    );
    assert!(target.join("theirs").exists() && precious.join("file").exists());
}

#[tokio::test]
async fn a_link_on_the_way_is_not_followed() {
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let request = kubelet.pod("pod1");
    let parent = Path::new(&request.target_path).parent().expect("parent").to_owned();
    let elsewhere = kubelet.root.path().join("elsewhere");
    fs::rename(&parent, &elsewhere).expect("rename");
    symlink(&elsewhere, &parent).expect("symlink");
    assert_eq!(kubelet.publish(&request).await.expect_err("a link").code(), Code::FailedPrecondition);
    assert!(!elsewhere.join("mount").exists());
}

#[tokio::test]
async fn targets_outside_of_the_pods_folder_are_refused() {
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let root = kubelet.root.path().display().to_string();
    let good = kubelet.pod("pod1");
    let long = format!("{root}/pods/pod1/{}", "x/".repeat(2048));
    for path in [
        String::new(),
        "/".to_owned(),
        "relative/path".to_owned(),
        "/etc/latebind-test/mount".to_owned(),
        format!("{root}/pods"),
        format!("{root}/pods/mount"),
        format!("{root}/pods/pod1/../../plugins/mount"),
        format!("{root}/pods/pod1//mount"),
        format!("{root}/pods/pod1/a\0b/mount"),
        format!("{root}/plugins/pod1/mount"),
        format!("{root}/pods/pod2/v/mount"),
        long,
    ] {
        let request = csi::NodePublishVolumeRequest { target_path: path.clone(), ..good.clone() };
        assert_eq!(kubelet.publish(&request).await.expect_err(&path).code(), Code::InvalidArgument, "{path}");
    }
    let missing = format!("{root}/pods/pod1/not/there/mount");
    let request = csi::NodePublishVolumeRequest { target_path: missing, ..good };
    assert_eq!(kubelet.publish(&request).await.expect_err("no folder").code(), Code::NotFound);
    assert_eq!(kubelet.records(), 0);
}

#[tokio::test]
async fn hostile_attributes_cost_their_own_request_only() {
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let huge = "x".repeat(4096);
    for value in ["/", "..", "../../../etc", "a\0b", "\n", "-1", huge.as_str()] {
        for name in [
            "mode",
            "uid",
            "gid",
            "permissions",
            "slots",
            "domain",
            "source",
            "size",
            "../x",
            "a\0b",
            huge.as_str(),
        ] {
            let refused =
                kubelet.publish(&with(kubelet.pod("pod1"), &[(name, value)])).await.expect_err(name);
            assert_eq!(refused.code(), Code::InvalidArgument, "{name}: {refused}");
            assert!(refused.message().len() < 600 && !refused.message().contains('\n'), "{refused}");
        }
        for name in ["pod.namespace", "serviceAccount.name", "pod.uid"] {
            let name = format!("csi.storage.k8s.io/{name}");
            let refused =
                kubelet.publish(&with(kubelet.pod("pod1"), &[(&name, value)])).await.expect_err(&name);
            assert_eq!(refused.code(), Code::InvalidArgument, "{name}: {refused}");
        }
        let request = csi::NodePublishVolumeRequest {
            volume_id: format!("{value}/../{value}\0"),
            ..kubelet.pod("pod1")
        };
        assert_eq!(kubelet.publish(&request).await.expect_err("an id").code(), Code::InvalidArgument);
    }
    let mounts = with(kubelet.pod("pod1"), &[("mode", "mount"), ("size", "1Mi")]);
    assert_eq!(kubelet.publish(&mounts).await.expect_err("not allowed").code(), Code::PermissionDenied);
    // An id that is a path is as good as any: it is never one.
    let request = csi::NodePublishVolumeRequest { volume_id: "../../../x".into(), ..kubelet.pod("pod1") };
    kubelet.publish(&request).await.expect("publish");
    kubelet.unpublish(&request).await.expect("unpublish");
    assert_eq!(kubelet.records(), 0);
    kubelet.assert_gone(&request);
}

#[tokio::test]
async fn bytes_that_are_no_request_end_their_connection_only() {
    use std::io::{Read as _, Write as _};
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff",
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(kubelet.socket()).expect("connect");
        // It may be shut before all is written.
        let _ = stream.write_all(bytes);
        stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let _ = stream.read_to_end(&mut Vec::new());
    }
    kubelet.publish(&kubelet.pod("pod1")).await.expect("publish");
}
