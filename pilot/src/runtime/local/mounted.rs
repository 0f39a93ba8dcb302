//! Inputs that a payload finds at paths of its own choosing: where they are on this machine, and what in the container they
//! are mounted on.
//!
//! **Must not know:** how a container is started, how an image is stored.

use std::path::{Path, PathBuf};

use image_store::{MountPoint, Place};
use oci_runner::Bind;
use pilot_core::{Fault, FaultClass};

use crate::mounts::Destination;
use crate::payload::Payload;
use crate::runtime::sources::{identity, source_of};
use crate::runtime::stages::Stages;

/// One of them.
#[derive(Debug)]
pub(super) struct Mounted<'p> {
    input: &'p str,
    at: &'p Destination,
    source: PathBuf,
    is_file: bool,
}

/// What a payload wants mounted. What is not there is the payload's fault if it is a file of this machine.
pub(super) fn wanted<'p>(payload: &'p Payload, stages: &Stages) -> Result<Vec<Mounted<'p>>, Fault> {
    let inputs = payload.inputs.iter().filter_map(|input| Some((input, input.at.as_ref()?)));
    let mounted = inputs.map(|(input, at)| {
        let (source, is_file) = source_of(payload, input, stages)?;
        Ok(Mounted { input: input.name.as_str(), at, source, is_file })
    });
    mounted.collect()
}

/// What the image must have to mount them on.
pub(super) fn places(mounted: &[Mounted<'_>]) -> Vec<Place> {
    let place = |mounted: &Mounted<'_>| Place { path: mounted.at.to_string(), file: mounted.is_file };
    mounted.iter().map(place).collect()
}

/// What another payload must have mounted to follow in the same container.
pub(super) fn key(mounted: &[Mounted<'_>]) -> String {
    let each = mounted.iter().map(|mount| format!(" at {}={}", mount.at, identity(&mount.source)));
    each.collect()
}

/// The mounts, where links of the image lead them.
pub(super) fn binds(mounted: &[Mounted<'_>], points: &[MountPoint]) -> Result<Vec<Bind>, Fault> {
    let mut binds = Vec::with_capacity(mounted.len());
    let mut taken: Vec<Destination> = Vec::with_capacity(mounted.len());
    for (mount, point) in mounted.iter().zip(points) {
        let refused = |why: String| {
            let (input, at) = (mount.input, mount.at);
            let text = format!("mount input \"{input}\" at {at}: {why}");
            Fault::new(FaultClass::Payload, text)
        };
        // Where there are no links, this is what the workflow file was checked for.
        let at: Destination = point.resolved.parse().map_err(|error| {
            refused(format!("links of the image lead it to {}, which {error}", point.resolved))
        })?;
        if let Some(other) = taken.iter().find(|other| at.meets(other)) {
            return Err(refused(format!(
                "links of the image lead it to {at}, where {other} is mounted; choose another path"
            )));
        }
        let (source, target, is_file) = (mount.source.clone(), at.as_str().into(), mount.is_file);
        binds.push(Bind { source, target, read_only: true, is_file, optional: false });
        taken.push(at);
    }
    Ok(binds)
}

/// Whether a program may come with what is mounted, so that the image says nothing about it.
pub(super) fn may_bring(payload: &Payload, program: &str, path: &str, cwd: &str) -> bool {
    let mut mounts = payload.inputs.iter().filter_map(|input| input.at.as_ref());
    let found = Path::new(cwd).join(program);
    let mut folders = path.split(':').map(|folder| Path::new(cwd).join(folder));
    mounts.any(|at| {
        let here = |path: &Path| path.starts_with(at.as_str());
        if program.contains('/') { here(&found) } else { folders.any(|folder| here(&folder)) }
    })
}
