//! The CSI driver: how long it takes to publish and to unpublish a volume, and what it needs with many of them.
//!
//! Beside it, what no driver that forgets nothing can go below on this disk: a folder made, and a small file that is on the disk
//! before it has its name.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::Context;
use csi_driver::grpc::csi;
use csi_driver::grpc::csi::node_client::NodeClient;
use csi_driver::grpc::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, getuid, kill_process};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

use crate::clock::{now_ns, span_ms};
use crate::ground::Ground;
use crate::peers::command;
use crate::results::Section;
use crate::site::kib;

/// As many as the goal names.
const MANY: u32 = 500;
/// How long a start may take.
const START: Duration = Duration::from_secs(30);

/// A kubelet's folder and a driver that works for it.
struct Node {
    root: PathBuf,
    driver: Child,
}

impl Node {
    fn start(ground: &Ground) -> anyhow::Result<Self> {
        let root = ground.path("kubelet");
        fs::create_dir_all(root.join("pods"))?;
        let mut command = command(ground.csi_driver());
        command.args([
            "--register",
            "false",
            "--node-id",
            "bench",
            "--tenant-volumes",
            "1000",
            "--kubelet-dir",
        ]);
        command.arg(&root).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let driver = command.spawn().context("start csi-driver")?;
        Ok(Self { root, driver })
    }

    async fn client(&self) -> anyhow::Result<NodeClient<Channel>> {
        let socket = self.root.join("plugins/csi.latebind.dev/csi.sock");
        let dial = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://driver");
        let connect = async {
            loop {
                match endpoint.connect_with_connector(dial.clone()).await {
                    Ok(channel) => return NodeClient::new(channel),
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        tokio::time::timeout(START, connect).await.context("csi-driver does not answer")
    }

    /// Makes a pod's folder, as the kubelet does, and the request for its volume.
    fn pod(&self, name: &str, slots: u32) -> anyhow::Result<csi::NodePublishVolumeRequest> {
        let folder = self.root.join("pods").join(name).join("volumes/kubernetes.io~csi/share");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("vol_data.json"), "{}")?;
        let uid = if getuid().is_root() { 10_000 } else { getuid().as_raw() };
        let mut context: Vec<(String, String)> = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.namespace", "bench"),
            ("csi.storage.k8s.io/pod.uid", name),
            ("csi.storage.k8s.io/serviceAccount.name", "bench"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        if slots > 0 {
            context.push(("slots".into(), slots.to_string()));
            context.push(("uid".into(), uid.to_string()));
        }
        Ok(csi::NodePublishVolumeRequest {
            volume_id: format!("csi-{name}"),
            target_path: folder.join("mount").display().to_string(),
            volume_capability: Some(csi::VolumeCapability {
                access_mode: Some(AccessMode { mode: 1 }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            volume_context: context.into_iter().collect(),
            ..csi::NodePublishVolumeRequest::default()
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.driver), Signal::TERM);
        let _ = self.driver.wait();
    }
}

/// Publishes and unpublishes so many volumes one after the other, with no others and with 500 others.
///
/// # Errors
/// When the driver does not start, or refuses.
pub fn measure(ground: &Ground, rounds: u32) -> anyhow::Result<Value> {
    let mut section = Section::begin("csi");
    let node = Node::start(ground)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = node.client().await?;
        section.add("csi-driver", "rss, fresh [KiB]", kib(node.driver.id(), "status", "VmRSS")?);
        for round in 0..rounds {
            turn(&mut section, &node, &mut client, (round, 0, "")).await?;
            turn(&mut section, &node, &mut client, (round, 4, ", 4 slots")).await?;
            least(&mut section, &node.root, round)?;
        }
        let mut many = Vec::new();
        for number in 0..MANY {
            let request = node.pod(&format!("many{number}"), 0)?;
            client.node_publish_volume(request.clone()).await?;
            many.push(request);
        }
        section.add(
            "csi-driver",
            &format!("rss, {MANY} volumes [KiB]"),
            kib(node.driver.id(), "status", "VmRSS")?,
        );
        for round in 0..rounds {
            turn(&mut section, &node, &mut client, (round, 0, ", beside 500")).await?;
        }
        for request in many {
            client.node_unpublish_volume(unpublishing(&request)).await?;
        }
        section.add("csi-driver", "rss at most [KiB]", kib(node.driver.id(), "status", "VmHWM")?);
        anyhow::Ok(())
    })?;
    Ok(section.end())
}

async fn turn(
    section: &mut Section,
    node: &Node,
    client: &mut NodeClient<Channel>,
    (round, slots, kind): (u32, u32, &str),
) -> anyhow::Result<()> {
    let request = node.pod(&format!("pod{round}"), slots)?;
    let unpublish = unpublishing(&request);
    let asked = now_ns();
    client.node_publish_volume(request).await?;
    let published = now_ns();
    client.node_unpublish_volume(unpublish).await?;
    section.add("csi-driver", &format!("publish{kind}"), span_ms(asked, published));
    section.add("csi-driver", &format!("unpublish{kind}"), span_ms(published, now_ns()));
    Ok(())
}

/// A folder, and a record of it that outlives a power cut.
fn least(section: &mut Section, root: &Path, round: u32) -> anyhow::Result<()> {
    let (folder, fresh, record) =
        (root.join(format!("f{round}")), root.join("fresh"), root.join(format!("r{round}")));
    let asked = now_ns();
    fs::create_dir(&folder)?;
    let mut file = fs::File::create(&fresh)?;
    file.write_all(&[b'x'; 400])?;
    file.sync_data()?;
    drop(file);
    fs::rename(&fresh, &record)?;
    let made = now_ns();
    fs::remove_dir(&folder)?;
    fs::remove_file(&record)?;
    section.add("least", "publish", span_ms(asked, made));
    section.add("least", "unpublish", span_ms(made, now_ns()));
    Ok(())
}

fn unpublishing(request: &csi::NodePublishVolumeRequest) -> csi::NodeUnpublishVolumeRequest {
    csi::NodeUnpublishVolumeRequest {
        volume_id: request.volume_id.clone(),
        target_path: request.target_path.clone(),
    }
}
