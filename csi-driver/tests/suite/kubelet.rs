//! What a test needs of a kubelet: its folders, its way of calling, its end of registration.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use csi_driver::grpc::csi;
use csi_driver::grpc::csi::identity_client::IdentityClient;
use csi_driver::grpc::csi::node_client::NodeClient;
use csi_driver::grpc::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take on a machine that has much else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The driver's program: another one than Cargo's where that is out of a user's reach (`tests/unprivileged`).
pub(crate) fn program() -> PathBuf {
    std::env::var_os("LATEBIND_TEST_CSI_DRIVER")
        .map_or_else(|| env!("CARGO_BIN_EXE_csi-driver").into(), PathBuf::from)
}

/// A kubelet's folder, and a driver that works for it.
pub(crate) struct Kubelet {
    pub(crate) root: TempDir,
    options: Vec<String>,
    driver: Option<Child>,
}

impl Kubelet {
    /// Makes the folders and starts a driver with options beyond what every test needs.
    pub(crate) async fn start(options: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("tempdir"), options).await
    }

    pub(crate) async fn start_in(root: TempDir, options: &[&str]) -> Self {
        for folder in ["pods", "plugins", "plugins_registry"] {
            std::fs::create_dir_all(root.path().join(folder)).expect("mkdir");
        }
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut kubelet = Self { root, options, driver: None };
        kubelet.run().await;
        kubelet
    }

    /// Starts a driver, and waits until it answers.
    #[expect(clippy::disallowed_methods, reason = "the kubelet owns the driver and ends it in Drop")]
    pub(crate) async fn run(&mut self) {
        let mut command = Command::new(program());
        command.args(["--node-id", "node1", "--kubelet-dir"]).arg(self.root.path());
        command.args(&self.options).stdin(Stdio::null()).stdout(Stdio::null());
        // A test that fails shows what the driver said.
        command.stderr(std::fs::File::options().create(true).append(true).open(self.log()).expect("log"));
        self.driver = Some(command.spawn().expect("start the driver"));
        let ready = async {
            loop {
                if let Ok(mut identity) = self.identity().await {
                    let answer = identity.probe(csi::ProbeRequest {}).await;
                    if answer.is_ok_and(|answer| answer.into_inner().ready == Some(true)) {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, ready).await.is_err() {
            panic!("the driver does not answer: {}", self.said());
        }
    }

    fn log(&self) -> PathBuf {
        self.root.path().join("log")
    }

    /// What the driver wrote.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.driver.as_ref().expect("a driver").id()
    }

    /// Ends the driver with a signal, and gives its code.
    pub(crate) fn end(&mut self, signal: Signal) -> Option<i32> {
        let mut driver = self.driver.take()?;
        let pid = Pid::from_child(&driver);
        kill_process(pid, signal).expect("signal");
        driver.wait().expect("wait").code()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.path().join("plugins/csi.latebind.dev/csi.sock")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.path().join("plugins/csi.latebind.dev/state")
    }

    pub(crate) fn registration(&self) -> PathBuf {
        self.root.path().join("plugins_registry/csi.latebind.dev-reg.sock")
    }

    pub(crate) async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(connect(&self.socket()).await.expect("connect"))
    }

    pub(crate) async fn identity(&self) -> Result<IdentityClient<Channel>, tonic::transport::Error> {
        Ok(IdentityClient::new(connect(&self.socket()).await?))
    }

    /// Makes a pod's folder for a volume, as the kubelet does, and gives a request for it.
    pub(crate) fn pod(&self, pod: &str) -> csi::NodePublishVolumeRequest {
        let folder = self.root.path().join("pods").join(pod).join("volumes/kubernetes.io~csi/share");
        std::fs::create_dir_all(&folder).expect("mkdir");
        std::fs::write(folder.join("vol_data.json"), "{}").expect("note");
        let context = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "fit"),
            ("csi.storage.k8s.io/pod.namespace", "cms"),
            ("csi.storage.k8s.io/pod.uid", pod),
            ("csi.storage.k8s.io/serviceAccount.name", "prod"),
        ];
        csi::NodePublishVolumeRequest {
            volume_id: format!("csi-{pod}"),
            target_path: folder.join("mount").display().to_string(),
            volume_capability: Some(csi::VolumeCapability {
                access_mode: Some(AccessMode { mode: 1 }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            volume_context: context.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..csi::NodePublishVolumeRequest::default()
        }
    }

    pub(crate) async fn publish(&self, request: &csi::NodePublishVolumeRequest) -> Result<(), Status> {
        self.node().await.node_publish_volume(request.clone()).await.map(drop)
    }

    pub(crate) async fn unpublish(&self, request: &csi::NodePublishVolumeRequest) -> Result<(), Status> {
        self.node().await.node_unpublish_volume(unpublishing(request)).await.map(drop)
    }

    pub(crate) async fn stats(
        &self,
        request: &csi::NodePublishVolumeRequest,
    ) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        let asked = csi::NodeGetVolumeStatsRequest {
            volume_id: request.volume_id.clone(),
            volume_path: request.target_path.clone(),
            staging_target_path: String::new(),
        };
        self.node().await.node_get_volume_stats(asked).await.map(tonic::Response::into_inner)
    }

    /// How many volumes the driver has records of.
    pub(crate) fn records(&self) -> usize {
        std::fs::read_dir(self.state().join("volumes")).expect("records").count()
    }

    /// The folders of tenants.
    pub(crate) fn tenants(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.state().join("tenants")).expect("tenants");
        entries.map(|entry| entry.expect("entry").path()).collect()
    }

    /// Nothing is left of a volume but what the kubelet made.
    pub(crate) fn assert_gone(&self, request: &csi::NodePublishVolumeRequest) {
        let folder = Path::new(&request.target_path).parent().expect("folder");
        let left: Vec<_> =
            std::fs::read_dir(folder).expect("folder").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["vol_data.json"], "{}", self.said());
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        if let Some(mut driver) = self.driver.take() {
            // It may have ended by itself.
            let _ = driver.kill();
            let _ = driver.wait();
        }
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr().lock(), "the driver said:\n{}", self.said());
        }
    }
}

pub(crate) fn unpublishing(request: &csi::NodePublishVolumeRequest) -> csi::NodeUnpublishVolumeRequest {
    csi::NodeUnpublishVolumeRequest {
        volume_id: request.volume_id.clone(),
        target_path: request.target_path.clone(),
    }
}

pub(crate) async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let dial = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The name is only for the form: the socket is what is dialled.
    Endpoint::from_static("http://driver").connect_with_connector(dial).await
}

/// With attributes of the pod's choosing.
pub(crate) fn with(
    mut request: csi::NodePublishVolumeRequest,
    attributes: &[(&str, &str)],
) -> csi::NodePublishVolumeRequest {
    let more: HashMap<String, String> =
        attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    request.volume_context.extend(more);
    request
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let wait = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what} does not come");
}

/// Says that a test could not run, in the form that `tests/run` counts.
pub(crate) fn skipped(test: &str, missing: &str) {
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED: {test}: {missing}");
}

/// Whether this test may mount; tells if not.
pub(crate) fn may_mount(test: &str) -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    let may = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    if !may {
        skipped(test, "CAP_SYS_ADMIN, to mount");
    }
    may
}

/// Whether this test may give files to others; tells if not.
pub(crate) fn may_chown(test: &str) -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    let may = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::CHOWN));
    if !may {
        skipped(test, "CAP_CHOWN, to give folders to others");
    }
    may
}
