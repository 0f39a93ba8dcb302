//! `mode: mount`. These need CAP_SYS_ADMIN.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use csi_driver::grpc::csi;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use tonic::Code;

use crate::kubelet::{Kubelet, may_mount, with};

/// A small file system on a folder, as long as it lives.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn on(path: &Path, bytes: u64) -> Self {
        let size = std::ffi::CString::new(format!("size={bytes}")).expect("options");
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(size.as_c_str())).expect("mount");
        Self(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The driver may still be on its way out of it.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Unmounts what a failed test leaves.
struct Mounted(Kubelet);

impl Drop for Mounted {
    fn drop(&mut self) {
        self.0.end(Signal::KILL);
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let root = self.0.root.path().display().to_string();
        for line in
            text.lines().filter_map(|line| line.split(' ').nth(4)).filter(|path| path.starts_with(&root))
        {
            let _ = unmount(line, UnmountFlags::DETACH);
        }
    }
}

fn is_mounted(path: &str) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    text.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

const MOUNTS: [&str; 4] = ["--register", "false", "--allow-mount", "true"];

#[tokio::test]
async fn a_tmpfs_has_its_size_its_owner_and_its_folders() {
    if !may_mount("a_tmpfs_has_its_size_its_owner_and_its_folders") {
        return;
    }
    let mounted = Mounted(Kubelet::start(&MOUNTS).await);
    let kubelet = &mounted.0;
    let attributes = [("mode", "mount"), ("size", "1Mi"), ("uid", "10000"), ("slots", "1")];
    let request = with(kubelet.pod("pod1"), &attributes);
    kubelet.publish(&request).await.expect("publish");
    assert!(is_mounted(&request.target_path));
    let target = Path::new(&request.target_path);
    let meta = fs::metadata(target).expect("stat");
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (10000, 0o711));
    assert!(target.join("slots/0/work").is_dir());
    kubelet.publish(&request).await.expect("publish again");
    assert!(fs::write(target.join("large"), vec![1; 2 << 20]).is_err());
    let usage = kubelet.stats(&request).await.expect("stats").usage;
    assert_eq!((usage[0].total, usage[0].available), (1 << 20, 0));
    kubelet.unpublish(&request).await.expect("unpublish");
    assert!(!is_mounted(&request.target_path));
    kubelet.assert_gone(&request);
    kubelet.unpublish(&request).await.expect("unpublish again");
}

#[tokio::test]
async fn pods_of_a_tenant_share_a_folder_and_others_see_nothing_of_it() {
    if !may_mount("pods_of_a_tenant_share_a_folder_and_others_see_nothing_of_it") {
        return;
    }
    let mounted = Mounted(Kubelet::start(&MOUNTS).await);
    let kubelet = &mounted.0;
    let shared = [("mode", "mount"), ("source", "shared")];
    let one = with(kubelet.pod("pod1"), &shared);
    let reads = csi::NodePublishVolumeRequest { readonly: true, ..with(kubelet.pod("pod2"), &shared) };
    let other = with(with(kubelet.pod("pod3"), &shared), &[("csi.storage.k8s.io/pod.namespace", "atlas")]);
    for request in [&one, &reads, &other] {
        kubelet.publish(request).await.expect("publish");
    }
    fs::write(Path::new(&one.target_path).join("file"), "shared").expect("write");
    assert_eq!(fs::read_to_string(Path::new(&reads.target_path).join("file")).expect("read"), "shared");
    assert!(fs::write(Path::new(&reads.target_path).join("file"), "x").is_err());
    assert_eq!(fs::read_dir(&other.target_path).expect("read").count(), 0);
    kubelet.unpublish(&one).await.expect("unpublish");
    assert!(Path::new(&reads.target_path).join("file").exists());
    kubelet.unpublish(&reads).await.expect("unpublish");
    kubelet.unpublish(&other).await.expect("unpublish");
    crate::kubelet::until("the end of the shared folder", || kubelet.tenants().is_empty()).await;
}

#[tokio::test]
async fn a_mount_that_is_lost_is_made_again_and_one_in_use_stays() {
    if !may_mount("a_mount_that_is_lost_is_made_again_and_one_in_use_stays") {
        return;
    }
    let mut mounted = Mounted(Kubelet::start(&MOUNTS).await);
    let request = with(mounted.0.pod("pod1"), &[("mode", "mount"), ("size", "1Mi")]);
    mounted.0.publish(&request).await.expect("publish");
    // As after a restart of the machine.
    unmount(&request.target_path, UnmountFlags::empty()).expect("unmount");
    mounted.0.end(Signal::KILL);
    mounted.0.run().await;
    mounted.0.publish(&request).await.expect("publish again");
    assert!(is_mounted(&request.target_path));
    let open = fs::File::create(Path::new(&request.target_path).join("file")).expect("create");
    assert_eq!(mounted.0.unpublish(&request).await.expect_err("in use").code(), Code::Aborted);
    assert!(is_mounted(&request.target_path));
    drop(open);
    mounted.0.end(Signal::KILL);
    mounted.0.run().await;
    mounted.0.unpublish(&request).await.expect("unpublish");
    mounted.0.assert_gone(&request);
}

#[tokio::test]
async fn what_others_mount_on_a_folder_of_ours_is_left_alone() {
    if !may_mount("what_others_mount_on_a_folder_of_ours_is_left_alone") {
        return;
    }
    let mounted = Mounted(Kubelet::start(&["--register", "false"]).await);
    let kubelet = &mounted.0;
    let request = kubelet.pod("pod1");
    kubelet.publish(&request).await.expect("publish");
    let disk = SmallDisk::on(Path::new(&request.target_path), 1 << 20);
    fs::write(Path::new(&request.target_path).join("theirs"), "x").expect("write");
    assert_eq!(kubelet.unpublish(&request).await.expect_err("a mount").code(), Code::FailedPrecondition);
    assert!(Path::new(&request.target_path).join("theirs").exists());
    drop(disk);
    // Nor what they mount below it.
    let below = Path::new(&request.target_path).join("below");
    fs::create_dir(&below).expect("mkdir");
    let disk = SmallDisk::on(&below, 1 << 20);
    fs::write(below.join("theirs"), "x").expect("write");
    kubelet.unpublish(&request).await.expect_err("a mount below");
    // The volume is out of its target already, and the mount went along.
    let parent = Path::new(&request.target_path).parent().expect("parent");
    let aside =
        fs::read_dir(parent).expect("read").flatten().map(|entry| entry.path()).find(|path| path.is_dir());
    let moved = SmallDisk(aside.expect("the volume").join("below"));
    assert!(moved.0.join("theirs").exists());
    drop(moved);
    std::mem::forget(disk);
    kubelet.unpublish(&request).await.expect("unpublish");
    kubelet.assert_gone(&request);
}
