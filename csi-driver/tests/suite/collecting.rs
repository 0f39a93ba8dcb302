//! Volumes whose pods are gone.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use tonic::Code;

use crate::kubelet::{Kubelet, until};

fn parent(path: &str) -> &Path {
    Path::new(path).parent().expect("parent")
}

#[tokio::test]
async fn volumes_of_pods_that_are_gone_go_and_others_stay() {
    let mut kubelet =
        Kubelet::start(&["--register", "false", "--collect-ms", "50", "--grace-ms", "200"]).await;
    let (stays, wiped, forgotten) = (kubelet.pod("stays"), kubelet.pod("wiped"), kubelet.pod("forgotten"));
    for request in [&stays, &wiped, &forgotten] {
        kubelet.publish(request).await.expect("publish");
        fs::write(Path::new(&request.target_path).join("file"), "kept").expect("write");
    }
    fs::remove_dir_all(kubelet.root.path().join("pods/wiped")).expect("wipe");
    fs::remove_file(parent(&forgotten.target_path).join("vol_data.json")).expect("forget");
    until("the end of two volumes", || kubelet.records() == 1).await;
    assert!(!Path::new(&forgotten.target_path).exists());
    assert!(Path::new(&stays.target_path).join("file").exists());
    // What went while no driver was there, too.
    kubelet.end(Signal::TERM);
    fs::remove_dir_all(kubelet.root.path().join("pods/stays")).expect("wipe");
    kubelet.run().await;
    until("the end of the last volume", || kubelet.records() == 0).await;
}

#[tokio::test]
async fn a_volume_that_the_kubelet_forgets_for_a_moment_stays() {
    let kubelet = Kubelet::start(&["--register", "false", "--collect-ms", "20"]).await;
    let request = kubelet.pod("pod1");
    kubelet.publish(&request).await.expect("publish");
    let note = parent(&request.target_path).join("vol_data.json");
    fs::remove_file(&note).expect("forget");
    // Any of these may fall between two looks.
    for _ in 0..20 {
        kubelet.stats(&request).await.expect("still there");
    }
    fs::write(&note, "{}").expect("note");
    kubelet.unpublish(&request).await.expect("unpublish");
    assert_eq!(kubelet.stats(&request).await.expect_err("gone").code(), Code::NotFound);
}
