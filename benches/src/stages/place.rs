//! The place of a hand-off as our own side needs it: two payloads in two slots, a session for each, the socket of each.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::Context;
use image_store::layout::{Compression, ImageSpec, LayerBuilder, LayoutWriter};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use stage::broker::{Grant, GrantInput, GrantOutput, SessionId};
use stage::server::BrokerServer;
use stage::{Class, StageName, StageUri};

use crate::ground::Ground;
use crate::site::Site;

/// Two payloads of a pilot, in two slots: they find the place as an input.
pub(super) fn slots(ground: &Ground, place: &Path) -> anyhow::Result<Child> {
    let site = Site::new(ground, "stages")?;
    let layout = site.path("image");
    let program = fs::read(ground.program("handoff"))?;
    let layer = LayerBuilder::new().file("handoff", 0o755, program).finish(Compression::None)?;
    LayoutWriter::create(&layout)?.add_image("latest", &ImageSpec::default(), vec![layer])?;
    let payload = |part: &str| {
        format!(
            "  - {{name: {part}, image: 'oci:{}', command: [/handoff, {part}, /stage/in/place], resources: {{cpu: 1, memory: 64Mi}}, \
             inputs: [{{name: place, from: '{}'}}]}}\n",
            layout.display(),
            place.display()
        )
    };
    let (produce, consume) = (payload("produce"), payload("consume"));
    let file = site.path("handoff.yaml");
    fs::write(
        &file,
        format!("apiVersion: latebind/v1\nmetadata: {{name: bench}}\npayloads:\n{produce}{consume}"),
    )?;
    let mut pilot = site.command(&["run", &file.display().to_string()]);
    pilot.stdout(Stdio::null()).spawn().context("start the pilot")
}

/// A producer's session and a consumer's, in this process' broker.
pub(super) fn sessions(
    broker: &BrokerServer,
    place: &Path,
    number: u32,
    bytes: usize,
) -> anyhow::Result<Vec<SessionId>> {
    let (workflow, x) = (StageName::new("bench")?, StageName::new("x")?);
    let (payload, reader) = (StageName::new("producer")?, StageName::new("consumer")?);
    let uri = StageUri { workflow: workflow.clone(), payload: payload.clone(), output: x.clone() };
    let readers = BTreeSet::from([reader.clone()]);
    let outputs = vec![GrantOutput { name: x.clone(), class: Class::Mem, max_bytes: bytes as u64, readers }];
    let inputs = vec![GrantInput { name: x, uri, live: true }];
    let produces = Grant { workflow: workflow.clone(), payload, outputs, inputs: Vec::new() };
    let consumes = Grant { workflow, payload: reader, outputs: Vec::new(), inputs };
    Ok(vec![
        broker.open_session(listener(&place.join(format!("p{number}")))?, produces)?,
        broker.open_session(listener(&place.join(format!("c{number}")))?, consumes)?,
    ])
}

/// A socket at which a broker hears clients.
///
/// # Errors
/// When it can not be made.
pub fn listener(path: &Path) -> anyhow::Result<OwnedFd> {
    let _ = fs::remove_file(path);
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    listen(&socket, 8)?;
    Ok(socket)
}
