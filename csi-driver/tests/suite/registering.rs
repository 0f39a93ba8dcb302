//! Registration, readiness, metrics: what the kubelet and a scraper see.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use csi_driver::grpc::csi;
use csi_driver::grpc::registration::registration_client::RegistrationClient;
use csi_driver::grpc::registration::{InfoRequest, RegistrationStatus};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::kubelet::{Kubelet, connect, until};

async fn ask(addr: &str, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(addr).await.expect("connect");
    let question = format!("GET {path} HTTP/1.1\r\nHost: driver\r\n\r\n");
    stream.write_all(question.as_bytes()).await.expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answer");
    answer
}

/// Where metrics are, as the log says.
async fn addr(kubelet: &Kubelet) -> String {
    let find = || {
        let said = kubelet.said();
        let line = said.lines().rfind(|line| line.contains("addr="))?;
        line.split("addr=").nth(1).map(|addr| addr.trim().to_owned())
    };
    until("the address of metrics", || find().is_some()).await;
    find().expect("an address")
}

#[tokio::test]
async fn a_driver_registers_itself_and_is_ready_when_the_kubelet_says_so() {
    let mut kubelet = Kubelet::start(&["--metrics", "127.0.0.1:0"]).await;
    let addr = addr(&kubelet).await;
    assert!(ask(&addr, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(ask(&addr, "/readyz").await.starts_with("HTTP/1.1 503"));
    assert_eq!(fs::metadata(kubelet.registration()).expect("socket").permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(kubelet.socket()).expect("socket").permissions().mode() & 0o777, 0o600);
    let mut registration = RegistrationClient::new(connect(&kubelet.registration()).await.expect("connect"));
    let info = registration.get_info(InfoRequest {}).await.expect("info").into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.latebind.dev"));
    assert_eq!(info.endpoint, kubelet.socket().display().to_string());
    let status = RegistrationStatus { plugin_registered: false, error: "no".into() };
    registration.notify_registration_status(status).await.expect("notify");
    assert!(ask(&addr, "/readyz").await.starts_with("HTTP/1.1 503"));
    let status = RegistrationStatus { plugin_registered: true, error: String::new() };
    registration.notify_registration_status(status).await.expect("notify");
    assert!(ask(&addr, "/readyz").await.starts_with("HTTP/1.1 200"));
    kubelet.publish(&kubelet.pod("pod1")).await.expect("publish");
    let figures = ask(&addr, "/metrics").await;
    assert!(figures.contains("latebind_csi_volumes{backing=\"folder\"} 1"), "{figures}");
    assert!(
        figures.contains("latebind_csi_stages 0") && figures.contains("latebind_csi_stage_bytes 0"),
        "{figures}"
    );
    assert!(
        figures.contains("latebind_csi_calls_total{method=\"NodePublishVolume\",code=\"0\"} 1"),
        "{figures}"
    );
    // A kubelet keeps its connections open.
    let held = kubelet.node().await;
    assert_eq!(kubelet.end(Signal::TERM), Some(0));
    assert!(!kubelet.registration().exists() && !kubelet.socket().exists());
    drop((held, registration));
}

#[tokio::test]
async fn sockets_come_back_when_a_kubelet_wipes_their_folder() {
    let kubelet = Kubelet::start(&[]).await;
    let inode = |path: &std::path::Path| fs::metadata(path).map(|meta| meta.ino()).ok();
    let mut node = kubelet.node().await;
    let before = inode(&kubelet.registration());
    fs::remove_file(kubelet.registration()).expect("wipe");
    fs::remove_file(kubelet.socket()).expect("wipe");
    until("the socket for registration", || kubelet.registration().exists()).await;
    until("the socket for calls", || kubelet.socket().exists()).await;
    let mut registration = RegistrationClient::new(connect(&kubelet.registration()).await.expect("connect"));
    registration.get_info(InfoRequest {}).await.expect("info");
    // A whole folder that goes and comes.
    let folder = kubelet.root.path().join("plugins_registry");
    fs::remove_dir_all(&folder).expect("wipe");
    until("word of it", || kubelet.said().contains("the socket is gone")).await;
    fs::create_dir(&folder).expect("mkdir");
    until("the socket for registration", || kubelet.registration().exists()).await;
    assert_ne!(before, None);
    // Connections from before go on.
    node.node_get_info(csi::NodeGetInfoRequest {}).await.expect("info");
    kubelet.publish(&kubelet.pod("pod1")).await.expect("publish");
}

#[tokio::test]
async fn two_drivers_on_one_folder_do_not_get_in_each_others_way() {
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let second = crate::end::run_to_the_end(&["--kubelet-dir", &kubelet.root.path().display().to_string()]);
    assert_eq!(second.0, Some(69));
    assert!(second.1.contains("another csi-driver works with this state folder"), "{}", second.1);
    kubelet.publish(&kubelet.pod("pod1")).await.expect("publish");
}
