//! csi-sanity, the conformance suite of CSI, against the driver as it is.
//!
//! The driver has no controller, and the suite needs volumes to publish: a stand-in says of them what a kubelet would say of a
//! pod's inline volume. `tests/csi/build` builds the suite. It needs no root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use csi_driver::grpc::csi;
use csi_driver::grpc::csi::controller_server::{Controller, ControllerServer};
use csi_driver::grpc::csi::identity_server::IdentityServer;
use csi_driver::identity::Identity;
use csi_driver::metrics::Metrics;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};

use crate::kubelet::{Kubelet, skipped};

/// What applies to a node plugin without staging, expansion and health: all of it passes.
const APPLIES: [&str; 15] = [
    "Identity Service GetPluginCapabilities should return appropriate capabilities",
    "Identity Service GetPluginInfo should return appropriate information",
    "Identity Service Probe should return appropriate information",
    "Node Service NodeGetCapabilities should return appropriate capabilities",
    "Node Service NodeGetInfo should return appropriate values",
    "Node Service NodeGetVolumeStats should fail when no volume id is provided",
    "Node Service NodeGetVolumeStats should fail when no volume path is provided",
    "Node Service NodeGetVolumeStats should fail when volume does not exist on the specified path",
    "Node Service NodeGetVolumeStats should fail when volume is not found",
    "Node Service NodePublishVolume should fail when no target path is provided",
    "Node Service NodePublishVolume should fail when no volume capability is provided",
    "Node Service NodePublishVolume should fail when no volume id is provided",
    "Node Service NodeUnpublishVolume should fail when no target path is provided",
    "Node Service NodeUnpublishVolume should fail when no volume id is provided",
    "Node Service NodeUnpublishVolume should remove target path",
];

/// What does not, by how its name begins; docs/reference/csi-driver.md says why.
const ABSENT: [&str; 8] = [
    "Node Service NodeStageVolume",
    "Node Service NodeUnstageVolume",
    "Node Service NodeExpandVolume",
    "Node Service NodeGetVolumeHealth",
    "Node Service NodeGetStorageHealth",
    "Node Service NodePublishVolume with single node multi writer capability",
    "Node Service should work",
    "Node Service should be idempotent",
];

/// Where the suite is, if somebody built it.
#[expect(
    clippy::disallowed_methods,
    reason = "what is started is waited for; tests are told by the environment"
)]
fn suite() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("LATEBIND_TEST_CSI_SANITY") {
        return Some(program.into());
    }
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/csi/build");
    let output = Command::new(build).arg("--there").stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

#[tokio::test]
async fn csi_sanity_passes() {
    let Some(suite) = suite() else {
        skipped("csi_sanity_passes", "csi-sanity, which tests/csi/build builds (Go)");
        return;
    };
    let kubelet = Kubelet::start(&["--register", "false"]).await;
    let root = kubelet.root.path();
    let controller = root.join("controller.sock");
    let listener = tokio::net::UnixListener::bind(&controller).expect("bind");
    let mut serving = JoinSet::new();
    serving.spawn(
        Server::builder()
            .add_service(ControllerServer::new(StandIn))
            // The suite asks whoever it talks to who they are.
            .add_service(IdentityServer::new(Identity {
                name: "stand-in".to_owned(),
                metrics: Arc::new(Metrics::new(false)),
            }))
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
    let report = root.join("report.json");
    let output = tokio::process::Command::new(suite)
        .arg(format!("--csi.endpoint=unix:{}", kubelet.socket().display()))
        .arg(format!("--csi.controllerendpoint=unix:{}", controller.display()))
        .arg(format!("--csi.mountdir={}", root.join("pods/sanity").display()))
        .arg(format!("--csi.stagingdir={}", root.join("staging").display()))
        .arg(format!("--ginkgo.json-report={}", report.display()))
        // These would test the stand-in.
        .arg(r"--ginkgo.skip=\[(Group)?Controller")
        .arg("--ginkgo.no-color")
        .stdin(Stdio::null())
        .output()
        .await
        .expect("run csi-sanity");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let states = states(&report);
    let of = |state: &str| -> Vec<&str> {
        let ours = states.iter().filter(|(name, found)| *found == state && !name.contains("[Controller"));
        ours.map(|(name, _)| name.as_str()).filter(|name| !name.contains("[GroupController")).collect()
    };
    assert_eq!(of("passed"), APPLIES);
    let unexpected: Vec<_> = of("skipped")
        .into_iter()
        .filter(|name| !ABSENT.iter().any(|absent| name.starts_with(absent)))
        .collect();
    assert_eq!(unexpected, Vec::<&str>::new(), "skipped without a reason");
    assert_eq!(kubelet.records(), 0);
}

/// Each test by its full name, and its state.
fn states(report: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read(report).expect("report");
    let report: Value = serde_json::from_slice(&text).expect("JSON");
    let specs = report[0]["SpecReports"].as_array().expect("specs");
    let leaves = specs.iter().filter(|spec| spec["LeafNodeType"] == "It");
    leaves
        .map(|spec| {
            let above = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
            let names = above.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str).collect::<Vec<_>>();
            (names.join(" "), spec["State"].as_str().unwrap_or_default().to_owned())
        })
        .collect()
}

/// The stand-in for who makes volumes: a pod's inline volume as the kubelet describes it.
#[derive(Debug)]
struct StandIn;

fn absent<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the stand-in makes volumes and nothing else"))
}

#[async_trait]
impl Controller for StandIn {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let context = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "sanity"),
            ("csi.storage.k8s.io/pod.namespace", "sanity"),
            ("csi.storage.k8s.io/pod.uid", "sanity"),
            ("csi.storage.k8s.io/serviceAccount.name", "sanity"),
        ];
        let volume = csi::Volume {
            volume_id: request.get_ref().name.clone(),
            volume_context: context.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..csi::Volume::default()
        };
        Ok(Response::new(csi::CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        _: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        Ok(Response::new(csi::DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        absent()
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        absent()
    }

    async fn validate_volume_capabilities(
        &self,
        _: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        absent()
    }

    async fn list_volumes(
        &self,
        _: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        absent()
    }

    async fn controller_list_volume_health(
        &self,
        _: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerListVolumeHealthResponse>, Status> {
        absent()
    }

    async fn controller_get_volume_health(
        &self,
        _: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeHealthResponse>, Status> {
        absent()
    }

    async fn get_capacity(
        &self,
        _: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        absent()
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities: Vec::new() }))
    }

    async fn create_snapshot(
        &self,
        _: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        absent()
    }

    async fn delete_snapshot(
        &self,
        _: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        absent()
    }

    async fn list_snapshots(
        &self,
        _: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        absent()
    }

    async fn get_snapshot(
        &self,
        _: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        absent()
    }

    async fn controller_expand_volume(
        &self,
        _: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        absent()
    }

    async fn controller_get_volume(
        &self,
        _: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        absent()
    }

    async fn controller_modify_volume(
        &self,
        _: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        absent()
    }
}
