//! Requests of the kubelet, as types that can't be wrong in form. What it says about a pod is believed, what a pod says is not.
//!
//! **Must not know:** which volumes there are.

use std::collections::HashMap;
use std::path::Path;

use crate::attributes::{self, BadAttributes, short};
use crate::grpc::csi;
use crate::target::{BadTarget, Target};
use crate::tenant::{Domains, Tenant, may_join};
use crate::volume::{VolumeId, Wanted};

/// Names in Kubernetes are at most this long.
const NAME_MAX: usize = 253;
/// More of anything than this no pod has.
const CONTEXT_MAX: usize = 64;

/// To make a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRequest {
    /// Which.
    pub id: VolumeId,
    /// Where.
    pub target: Target,
    /// Whose.
    pub tenant: Tenant,
    /// The pod's uid.
    pub pod: String,
    /// What it is to be.
    pub wanted: Wanted,
}

/// Why a request is refused before anything is looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// No id, or none that can be one.
    #[error("volume id must have 1 to 256 bytes and no control characters")]
    Id,
    /// No path, or none that can be a target.
    #[error(transparent)]
    Target(#[from] BadTarget),
    /// What is required and not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The kubelet was not told to say which pod it is, or says nonsense.
    #[error("pod info {0:?} is missing or no name: the CSIDriver object needs podInfoOnMount: true")]
    PodInfo(&'static str),
    /// Not an inline volume.
    #[error(
        "only inline ephemeral volumes exist: the CSIDriver object needs volumeLifecycleModes: [Ephemeral]"
    )]
    NotEphemeral,
    /// A path in the folder of another pod than the one the request is about.
    #[error("target path is in the folder of pod {0:?}, not of the pod that the request is about")]
    OtherPod(String),
    /// Block devices, several nodes, options of mounts, types of file systems.
    #[error("{0} can't be had from this driver")]
    Capability(&'static str),
    /// What the pod wants.
    #[error(transparent)]
    Attributes(#[from] BadAttributes),
    /// A domain that the admin has not put this account into.
    #[error(
        "domain {domain:?} is not open to {namespace}/{account}: an admin lists who may join it, in the driver's settings"
    )]
    Domain {
        /// Which.
        domain: String,
        /// The pod's namespace.
        namespace: String,
        /// Its ServiceAccount.
        account: String,
    },
    /// More than any pod sends.
    #[error("more than 64 entries of volume context")]
    TooMany,
}

/// What requests are read against.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The kubelet's folder of pods.
    pub pods: &'a Path,
    /// Who may be in which domain.
    pub domains: &'a Domains,
}

impl Reading<'_> {
    /// Reads a request to publish.
    ///
    /// # Errors
    /// On the first thing that is wrong.
    pub fn publish(&self, request: &csi::NodePublishVolumeRequest) -> Result<PublishRequest, BadRequest> {
        let id = VolumeId::parse(&request.volume_id).ok_or(BadRequest::Id)?;
        let target = Target::parse(self.pods, &request.target_path)?;
        let capability =
            request.volume_capability.as_ref().ok_or(BadRequest::Missing("volume capability"))?;
        let group = mount_group(capability)?;
        let context = &request.volume_context;
        if context.len() > CONTEXT_MAX {
            return Err(BadRequest::TooMany);
        }
        if context.get("csi.storage.k8s.io/ephemeral").map(String::as_str) != Some("true") {
            return Err(BadRequest::NotEphemeral);
        }
        let namespace = pod_info(context, "csi.storage.k8s.io/pod.namespace", "pod.namespace")?;
        let account = pod_info(context, "csi.storage.k8s.io/serviceAccount.name", "serviceAccount.name")?;
        let pod = pod_info(context, "csi.storage.k8s.io/pod.uid", "pod.uid")?;
        if target.pod() != pod {
            return Err(BadRequest::OtherPod(short(target.pod())));
        }
        let attributes = attributes::read(context, group, request.readonly)?;
        let tenant = match attributes.domain {
            None => Tenant::Account { namespace, account },
            Some(domain) if may_join(self.domains, &domain, &namespace, &account) => Tenant::Domain(domain),
            Some(domain) => return Err(BadRequest::Domain { domain, namespace, account }),
        };
        Ok(PublishRequest { id, target, tenant, pod, wanted: attributes.wanted })
    }

    /// Reads what identifies a published volume.
    ///
    /// # Errors
    /// When it can't be one.
    pub fn place(&self, id: &str, path: &str) -> Result<(VolumeId, Target), BadRequest> {
        let id = VolumeId::parse(id).ok_or(BadRequest::Id)?;
        Ok((id, Target::parse(self.pods, path)?))
    }
}

/// Reads any bytes as a request to publish, for fuzzing: what is accepted can name nothing outside of its pod's folder.
///
/// # Panics
/// When it can.
#[doc(hidden)]
pub fn fuzz_publish(bytes: &[u8]) {
    use prost::Message as _;
    let Ok(request) = csi::NodePublishVolumeRequest::decode(bytes) else { return };
    let domains: Domains = [("physics".to_owned(), vec!["cms/*".to_owned()])].into();
    let pods = Path::new("/k/pods");
    let Ok(read) = (Reading { pods, domains: &domains }).publish(&request) else { return };
    let below =
        request.target_path.strip_prefix("/k/pods/").and_then(|path| path.strip_prefix(read.pod.as_str()));
    assert!(
        below.is_some_and(|path| path.starts_with('/') && !path.contains("/../") && !path.contains('\0'))
    );
    assert!(!read.target.name().contains('/') && !matches!(read.target.name(), "" | "." | ".."));
    let Wanted { uid, permissions, slots, read_only, gid: _, backing: _ } = read.wanted;
    assert!(uid != Some(0) && permissions & !0o3777 == 0 && slots <= crate::layout::SLOTS_MAX);
    assert!(!read_only || permissions & 0o222 == 0);
}

/// A good request, as bytes: what fuzzing begins with.
#[doc(hidden)]
#[must_use]
pub fn fuzz_seed(attributes: &[(&str, &str)]) -> Vec<u8> {
    use csi::volume_capability::{AccessMode, AccessType, MountVolume};
    use prost::Message as _;
    let info = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.namespace", "cms"),
        ("csi.storage.k8s.io/pod.uid", "1a2b"),
        ("csi.storage.k8s.io/serviceAccount.name", "prod"),
    ];
    let context =
        info.iter().chain(attributes).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let mount = MountVolume { volume_mount_group: "2000".to_owned(), ..MountVolume::default() };
    csi::NodePublishVolumeRequest {
        volume_id: "csi-1".to_owned(),
        target_path: "/k/pods/1a2b/v/mount".to_owned(),
        volume_capability: Some(csi::VolumeCapability {
            access_mode: Some(AccessMode { mode: 1 }),
            access_type: Some(AccessType::Mount(mount)),
        }),
        volume_context: context.collect(),
        ..csi::NodePublishVolumeRequest::default()
    }
    .encode_to_vec()
}

/// Says no to everything that this driver is not; else gives the pod's fsGroup.
fn mount_group(capability: &csi::VolumeCapability) -> Result<&str, BadRequest> {
    use csi::volume_capability::AccessType;
    use csi::volume_capability::access_mode::Mode;
    let mount = match &capability.access_type {
        Some(AccessType::Mount(mount)) => mount,
        Some(AccessType::Block(_)) => return Err(BadRequest::Capability("a block device")),
        None => return Err(BadRequest::Missing("volume capability's access type")),
    };
    let mode =
        capability.access_mode.as_ref().ok_or(BadRequest::Missing("volume capability's access mode"))?.mode();
    match mode {
        Mode::SingleNodeWriter | Mode::SingleNodeReaderOnly | Mode::SingleNodeSingleWriter => {}
        Mode::Unknown => return Err(BadRequest::Missing("volume capability's access mode")),
        Mode::SingleNodeMultiWriter
        | Mode::MultiNodeReaderOnly
        | Mode::MultiNodeSingleWriter
        | Mode::MultiNodeMultiWriter => {
            return Err(BadRequest::Capability("a volume of several pods or nodes"));
        }
    }
    if !mount.fs_type.is_empty() {
        return Err(BadRequest::Capability("a choice of file system (fsType)"));
    }
    if !mount.mount_flags.is_empty() {
        return Err(BadRequest::Capability("a choice of mount options"));
    }
    Ok(&mount.volume_mount_group)
}

fn pod_info(context: &HashMap<String, String>, key: &str, name: &'static str) -> Result<String, BadRequest> {
    let value = context.get(key).ok_or(BadRequest::PodInfo(name))?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let named =
        (1..=NAME_MAX).contains(&value.len()) && value.bytes().all(fits) && !value.starts_with(['.', '-']);
    if named { Ok(value.clone()) } else { Err(BadRequest::PodInfo(name)) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::grpc::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

    pub(crate) fn request(pods: &str) -> csi::NodePublishVolumeRequest {
        let context = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "fit"),
            ("csi.storage.k8s.io/pod.namespace", "cms"),
            ("csi.storage.k8s.io/pod.uid", "1a2b"),
            ("csi.storage.k8s.io/serviceAccount.name", "prod"),
        ];
        csi::NodePublishVolumeRequest {
            volume_id: "csi-1".to_owned(),
            target_path: format!("{pods}/1a2b/volumes/kubernetes.io~csi/share/mount"),
            volume_capability: Some(csi::VolumeCapability {
                access_mode: Some(AccessMode { mode: 1 }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            volume_context: context.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..csi::NodePublishVolumeRequest::default()
        }
    }

    fn read(change: impl FnOnce(&mut csi::NodePublishVolumeRequest)) -> Result<PublishRequest, BadRequest> {
        let domains: Domains = [("physics".to_owned(), vec!["cms/*".to_owned()])].into();
        let mut request = request("/k/pods");
        change(&mut request);
        Reading { pods: Path::new("/k/pods"), domains: &domains }.publish(&request)
    }

    fn set(name: &str, value: &str) -> impl FnOnce(&mut csi::NodePublishVolumeRequest) {
        move |request| drop(request.volume_context.insert(name.to_owned(), value.to_owned()))
    }

    #[test]
    fn the_tenant_is_what_the_kubelet_says_of_the_pod_or_a_domain_that_is_open_to_it() {
        let account = Tenant::Account { namespace: "cms".into(), account: "prod".into() };
        assert_eq!(read(|_| ()).expect("a request").tenant, account);
        assert_eq!(
            read(set("domain", "physics")).expect("a request").tenant,
            Tenant::Domain("physics".into())
        );
        assert!(matches!(read(set("domain", "biology")), Err(BadRequest::Domain { .. })));
        let other = read(|request| {
            set("domain", "physics")(request);
            set("csi.storage.k8s.io/pod.namespace", "atlas")(request);
        });
        assert!(matches!(other, Err(BadRequest::Domain { .. })));
    }

    #[test]
    fn what_the_driver_is_not_is_refused() {
        assert_eq!(read(|r| r.volume_id.clear()), Err(BadRequest::Id));
        assert_eq!(read(|r| r.volume_id = "a\0b".into()), Err(BadRequest::Id));
        assert_eq!(read(|r| r.volume_id = "x".repeat(257)), Err(BadRequest::Id));
        assert_eq!(read(|r| r.target_path.clear()), Err(BadRequest::Target(BadTarget::Empty)));
        assert_eq!(read(|r| r.volume_capability = None), Err(BadRequest::Missing("volume capability")));
        assert_eq!(
            read(|r| drop(r.volume_context.remove("csi.storage.k8s.io/ephemeral"))),
            Err(BadRequest::NotEphemeral)
        );
        let block = |r: &mut csi::NodePublishVolumeRequest| {
            if let Some(capability) = &mut r.volume_capability {
                capability.access_type = Some(AccessType::Block(BlockVolume {}));
            }
        };
        assert_eq!(read(block), Err(BadRequest::Capability("a block device")));
        for (mode, good) in
            [(0, false), (1, true), (2, true), (3, false), (5, false), (6, true), (7, false), (99, false)]
        {
            let read = read(|r| {
                if let Some(capability) = &mut r.volume_capability {
                    capability.access_mode = Some(AccessMode { mode });
                }
            });
            assert_eq!(read.is_ok(), good, "{mode}: {read:?}");
        }
    }

    #[test]
    fn pod_info_that_is_no_name_is_refused() {
        let huge = "x".repeat(4096);
        for key in ["pod.namespace", "pod.uid", "serviceAccount.name"] {
            for value in ["", "/", "..", "../x", "-1", "a/b", "a\0b", "a b", "\n", &huge] {
                let read = read(set(&format!("csi.storage.k8s.io/{key}"), value));
                assert_eq!(read, Err(BadRequest::PodInfo(key)), "{value:?}");
            }
        }
        assert_eq!(read(set("csi.storage.k8s.io/pod.uid", "3c4d")), Err(BadRequest::OtherPod("1a2b".into())));
        let many = read(|r| r.volume_context.extend((0..100).map(|n| (n.to_string(), String::new()))));
        assert_eq!(many, Err(BadRequest::TooMany));
    }
}
