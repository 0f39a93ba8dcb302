//! The exchange of stages on the volumes of pilots: which volumes have a gate to it, and where.
//!
//! ```text
//!   target/                 the pilot's own, in its pod alone
//!   target/exchange/sock    made by the driver, in a folder of the driver's
//!   STATE/tenants/KEY/stages/   links to what the tenant's pilots offered
//! ```
//! The tenant's folder and its volumes lie below the kubelet's folder, in one mount: only so can a file be linked from one to
//! another. What an earlier driver had there is gone with it; pilots offer what they hold again.
//!
//! **Must not know:** what is offered, who asks for it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, fchmod, fstat, mkdirat, openat};
use rustix::io::Errno;
use stage::exchange::{Counts, Exchange, Gate, Quota};

use crate::journal::folder;
use crate::target::FOLDER;
use crate::volume::{Backing, Volume, VolumeId};

/// The folder of a volume in which the socket is, and the socket.
const EXCHANGE: &str = "exchange";
const SOCKET: &str = "sock";
/// The folder of a tenant's in which its stages are.
pub const STAGES: &str = "stages";
/// Most stages of a tenant on the node; a link each, and some memory for their names.
const STAGES_MAX: usize = 100_000;

/// All gates of the node.
#[derive(Debug)]
pub struct Gates {
    exchange: Exchange,
    open: BTreeMap<VolumeId, u64>,
    tenant_bytes: u64,
}

/// Whether pilots share stages on a volume: on those that are made for one, and where a file can be linked.
#[must_use]
pub fn has_gate(volume: &Volume) -> bool {
    let wanted = &volume.wanted;
    wanted.slots > 0 && wanted.backing == Backing::Folder && !wanted.read_only
}

impl Gates {
    /// None open. A tenant's stages may have so many bytes together.
    ///
    /// # Errors
    /// When the exchange can't be started.
    pub fn start(tenant_bytes: u64) -> io::Result<Self> {
        Ok(Self { exchange: Exchange::start()?, open: BTreeMap::new(), tenant_bytes })
    }

    /// Opens a volume's gate, if it is to have one and has none. `root` is what the volume shows, `tenant` the tenant's folder,
    /// `domain` a name of the tenant that nobody can guess.
    ///
    /// # Errors
    /// When the socket can't be made, such as where a pilot has put something in its place.
    pub fn open(&mut self, volume: &Volume, root: OwnedFd, tenant: &OwnedFd, domain: &str) -> io::Result<()> {
        if !has_gate(volume) || self.open.contains_key(&volume.id) {
            return Ok(());
        }
        let gate = Gate {
            domain: domain.to_owned(),
            socket_in: own_folder(root.as_fd())?,
            socket: SOCKET.to_owned(),
            root,
            objects: Arc::new(folder(tenant.as_fd(), STAGES)?),
            quota: Quota { objects: STAGES_MAX, bytes: self.tenant_bytes },
        };
        self.open.insert(volume.id.clone(), self.exchange.open(gate)?);
        Ok(())
    }

    /// Closes a volume's gate. What its pilots offered stays as long as the tenant has another.
    pub fn close(&mut self, id: &VolumeId) {
        if let Some(number) = self.open.remove(id) {
            self.exchange.close(number);
        }
    }

    /// What is there.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.exchange.counts()
    }
}

/// The folder for the socket, which only the driver may write to: whoever could would have it change files of its own. The
/// volume's owner may have put another one there.
fn own_folder(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    match mkdirat(root, EXCHANGE, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let made = openat(root, EXCHANGE, FOLDER, Mode::empty())?;
    if fstat(&made)?.st_uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("the volume's folder \"exchange\" is somebody else's"));
    }
    fchmod(&made, Mode::from_raw_mode(0o755))?;
    Ok(made)
}
