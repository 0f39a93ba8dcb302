//! Starting a slot's container: the id, the cgroup, the folders and the plan of one payload become a process.
//!
//! **Must not know:** what is said on the socket, outputs, logs.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_store::Place;
use oci_runner::cgroup::{Cgroup, Limits, cgroup_name};
use oci_runner::{Authority, Container, IdMap, Root, Rootfs, Running};
use pilot_core::{Fault, FaultClass};
use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;

use super::Shared;
use super::container::{Layout, layout};
use super::images::Stored;
use super::live::Live;
use super::mounted;
use crate::payload::Payload;
use crate::runtime::launching::{hostname, slot_fault};
use crate::runtime::watch;

/// Descriptor numbers that PID 1 finds.
const CONTROL_FD: i32 = 3;
const CGROUP_FD: i32 = 4;

/// All that a start needs, gathered so that it can move to a thread that may block.
struct Start {
    shared: Arc<Shared>,
    /// Keeps the image from being removed.
    image: Arc<Stored>,
    root: Root,
    ids: IdMap,
    layout: Layout,
    cgroup: Cgroup,
    control: PathBuf,
    nonce: String,
    hostname: String,
}

impl Live {
    /// Makes the cgroup and starts the container. What exists afterwards is in the fields, also after a failure.
    pub(super) async fn start(&mut self, payload: &Payload) -> Result<(), Fault> {
        let image = self.shared.images.stored(payload)?;
        let who = self.shared.images.user(&image, payload)?;
        let ids = IdMap::choose(&self.shared.caller, who, self.shared.uid_base, self.slot.0)
            .map_err(|error| slot_fault(&error))?;
        if ids.authority == Authority::Privileged {
            // Programs that look after their HOME want to own it.
            own(&self.folders.work, &ids).map_err(|error| slot_fault(&error))?;
        }
        let mut layout = layout(payload, &self.folders);
        let mounted = mounted::wanted(payload, &self.shared.stages)?;
        let places = mounted::places(&mounted);
        let mut root = image.root.clone();
        if !places.is_empty() {
            let fitted = self.shared.images.fitted(&image, places.clone()).await?;
            layout.binds.extend(mounted::binds(&mounted, &fitted.points)?);
            root = fitted.root.clone();
        }
        if payload.writable_root {
            self.prepare_writable(&image, &ids, &mut layout, places).await?;
        }
        let limits = Limits {
            memory_bytes: Some(payload.memory_bytes()),
            cpu_millis: Some(payload.resources.cpu_millis),
            pids: None,
        };
        let name = cgroup_name(self.shared.folders.id(), self.slot.0);
        let (cgroup, enforced) =
            Cgroup::create(&self.shared.cgroups, &name, &limits).map_err(|error| slot_fault(&error))?;
        self.memory_guard = enforced.memory;
        self.memory_limit = Some(payload.memory_bytes());
        let start = Start {
            shared: Arc::clone(&self.shared),
            image,
            root,
            ids,
            layout,
            cgroup,
            control: self.folders.control.clone(),
            nonce: self.nonce.to_hex(),
            // The container may outlive the payload.
            hostname: hostname(self.slot),
        };
        // Starting blocks for a millisecond or two: longer than a scheduler thread should be held.
        self.starting = Some(tokio::task::spawn_blocking(move || start.run()));
        self.started().await
    }

    /// Takes over what a start has made. Dropped and called again, it goes on waiting for the same start.
    pub(super) async fn started(&mut self) -> Result<(), Fault> {
        let Some(starting) = &mut self.starting else { return Ok(()) };
        let started = starting.await;
        self.starting = None;
        let (cgroup, running) =
            started.map_err(|_| Fault::new(FaultClass::Pilot, "starting a container panicked"))?;
        self.cgroup = Some(cgroup);
        let running = running?;
        if self.shared.folders.serves() {
            self.process = running.identity().ok();
        }
        let pidfd = running.as_fd().try_clone_to_owned().and_then(|fd| watch(fd, Interest::READABLE));
        self.container = Some(running);
        self.ended = Some(pidfd.map_err(|error| slot_fault(&error))?);
        Ok(())
    }

    /// A writable root needs folders of the payload's id, and without overlay a copy of the image's tree.
    async fn prepare_writable(
        &self,
        image: &Stored,
        ids: &IdMap,
        layout: &mut Layout,
        places: Vec<Place>,
    ) -> Result<(), Fault> {
        let (shared, folders, id) = (Arc::clone(&self.shared), self.folders.clone(), image.id);
        let (copies, ids) = (matches!(image.root, Root::Copy { .. }), *ids);
        let upper = tokio::task::spawn_blocking(move || {
            if copies {
                let tree = shared.images.private_copy(&id, &folders.scratch, &places)?;
                // The copy takes the empty folder's place, beside the other one.
                std::fs::rename(tree, &folders.upper).map_err(|error| slot_fault(&error))?;
            }
            if ids.authority == Authority::Privileged {
                for path in [&folders.upper, &folders.overlay] {
                    own(path, &ids).map_err(|error| slot_fault(&error))?;
                }
            }
            Ok(folders.upper)
        });
        let upper = upper.await.map_err(|_| Fault::new(FaultClass::Pilot, "copying an image panicked"))??;
        layout.rootfs = Rootfs::Writable { upper, work: self.folders.overlay.clone() };
        Ok(())
    }
}

impl Start {
    /// Gives the cgroup back in any case: whoever started must remove it.
    fn run(self) -> (Cgroup, Result<Running, Fault>) {
        let Self { shared, image: _image, root, ids, layout, cgroup, control, nonce, hostname } = self;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let control = match rustix::fs::open(&control, flags, Mode::empty()) {
            Ok(control) => control,
            Err(errno) => {
                let fault = Fault::new(FaultClass::Slot, format!("open the control folder: {errno}"));
                return (cgroup, Err(fault));
            }
        };
        let mut env = vec![format!("LATEBIND_CONTROL=fd:{CONTROL_FD}"), format!("LATEBIND_NONCE={nonce}")];
        let mut fds = vec![(control.as_fd(), CONTROL_FD)];
        if let Some(figures) = cgroup.dir_fd() {
            env.push(format!("LATEBIND_CGROUP=fd:{CGROUP_FD}"));
            fds.push((figures, CGROUP_FD));
        }
        let container = Container {
            root,
            rootfs: layout.rootfs,
            ids,
            hostname,
            network: layout.network,
            binds: layout.binds,
            tmpfs: layout.tmpfs,
            dirs: layout.dirs,
            shm_bytes: layout.shm_bytes,
            nested_user_namespaces: false,
            program: &shared.shim,
            argv: vec!["payload-shim".into()],
            env,
            fds,
            cgroup: cgroup.exists().then_some(&cgroup),
            dies_with_starting_thread: false,
        };
        let running = oci_runner::start(&container).map_err(|error| slot_fault(&error));
        drop(container);
        (cgroup, running)
    }
}

/// What a payload may write must belong to the id that it has outside.
fn own(path: &Path, ids: &IdMap) -> std::io::Result<()> {
    std::os::unix::fs::lchown(path, Some(ids.host_uid), Some(ids.host_gid))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            own(&entry?.path(), ids)?;
        }
    }
    Ok(())
}
