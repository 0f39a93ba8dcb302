//! Pilots of one tenant share stages through the driver, also over its death, and no other tenant takes part.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use csi_driver::grpc::csi::NodePublishVolumeRequest;
use rustix::process::Signal;
use stage::StageUri;
use stage::exchange::{ExchangeClient, Fetched, Offered};

use crate::kubelet::{Kubelet, with};

/// A pilot's volume in a pod of its own.
async fn volume(kubelet: &Kubelet, pod: &str, more: &[(&str, &str)]) -> (NodePublishVolumeRequest, PathBuf) {
    let own = rustix::process::geteuid().as_raw();
    let uid = if own == 0 { "10000".to_owned() } else { own.to_string() };
    let request = with(with(kubelet.pod(pod), &[("slots", "2"), ("uid", &uid)]), more);
    kubelet.publish(&request).await.expect("publish");
    let target = PathBuf::from(&request.target_path);
    (request, target)
}

fn pilot(volume: &Path) -> ExchangeClient {
    ExchangeClient::connect(&volume.join("exchange/sock"), "spool").expect("connect")
}

fn uri(name: &str) -> StageUri {
    format!("stage://w.1/{name}/x").parse().expect("a name")
}

fn file(volume: &Path, name: &str, text: &str) -> String {
    let path = volume.join("stages").join(name);
    fs::write(&path, text).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("chmod");
    format!("stages/{name}")
}

#[tokio::test]
async fn pods_of_one_tenant_hand_files_to_each_other_and_other_tenants_see_nothing() {
    let mut kubelet = Kubelet::start(&[]).await;
    let (first, a) = volume(&kubelet, "pod-a", &[]).await;
    let (second, b) = volume(&kubelet, "pod-b", &[]).await;
    let (third, c) = volume(&kubelet, "pod-c", &[("csi.storage.k8s.io/serviceAccount.name", "other")]).await;
    let (maker, taker, stranger) = (pilot(&a), pilot(&b), pilot(&c));
    assert_eq!(maker.domain(), taker.domain());
    assert_ne!(maker.domain(), stranger.domain());
    maker.offer(&uri("p"), &Offered::File(&file(&a, "f", "in a file"))).expect("offer");
    maker.offer(&uri("v"), &Offered::Value(b"a value")).expect("offer");
    assert!(matches!(taker.fetch(&uri("p"), "stages/g"), Ok(Fetched::File(9))));
    let inode = |path: PathBuf| fs::metadata(path).expect("stat").ino();
    assert_eq!(inode(a.join("stages/f")), inode(b.join("stages/g")), "it was copied");
    assert!(stranger.fetch(&uri("p"), "stages/g").expect_err("not its own").is_missing());
    assert!(stranger.list().expect("list").is_empty());

    // The driver dies; what pilots hold they offer again.
    kubelet.end(Signal::KILL);
    assert!(maker.list().expect_err("it is gone").is_lost());
    kubelet.run().await;
    let (maker, taker) = (pilot(&a), pilot(&b));
    assert!(maker.list().expect("list").is_empty());
    maker.offer(&uri("p"), &Offered::File("stages/f")).expect("offer");

    // The pod goes, what it offered stays for its tenant's others.
    kubelet.unpublish(&first).await.expect("unpublish");
    kubelet.assert_gone(&first);
    assert!(maker.list().expect_err("its volume is gone").is_lost());
    assert!(matches!(taker.fetch(&uri("p"), "stages/again"), Ok(Fetched::File(9))));
    assert_eq!(fs::read_to_string(b.join("stages/again")).expect("read"), "in a file");
    for (request, left) in [(&second, 1), (&third, 0)] {
        kubelet.unpublish(request).await.expect("unpublish");
        kubelet.assert_gone(request);
        assert!(kubelet.tenants().len() <= left + 1);
    }
    assert_eq!(kubelet.records(), 0);
}

#[tokio::test]
async fn only_a_pilots_writable_folder_has_a_gate() {
    let kubelet = Kubelet::start(&[]).await;
    let plain = kubelet.pod("pod-a");
    kubelet.publish(&plain).await.expect("publish");
    assert!(!Path::new(&plain.target_path).join("exchange").exists());
    let mut request = kubelet.pod("pod-b");
    request.readonly = true;
    kubelet.publish(&request).await.expect("publish");
    assert!(!Path::new(&request.target_path).join("exchange").exists());
}

#[tokio::test]
async fn a_pilot_that_puts_something_else_in_the_sockets_place_gets_no_gate_and_harms_nobody() {
    let mut kubelet = Kubelet::start(&[]).await;
    let (_, a) = volume(&kubelet, "pod-a", &[]).await;
    let (_, b) = volume(&kubelet, "pod-b", &[]).await;
    kubelet.end(Signal::KILL);
    // Its root is the pilot's, so it can move the driver's folder away.
    fs::rename(a.join("exchange"), a.join("away")).expect("rename");
    std::os::unix::fs::symlink(&b, a.join("exchange")).expect("link");
    kubelet.run().await;
    assert!(kubelet.said().contains("can't share stages"), "{}", kubelet.said());
    assert!(!b.join("sock").exists(), "a link was followed");
    pilot(&b).offer(&uri("p"), &Offered::Value(b"there")).expect("others go on");
}
