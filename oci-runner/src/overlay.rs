//! Mounts an overlay of layers that are open, by fsconfig(2) as far as that goes.
//!
//! | layers | Linux < 6.8 | later |
//! |---|---|---|
//! | up to about 60 | `lowerdir` | `lowerdir` |
//! | more | mount(2) | `lowerdir+`, one at a time |
//!
//! *Child*: see [`crate::sys`].
//!
//! **Must not know:** what the layers hold.

use std::ffi::CStr;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags};

use crate::apply::{attach_at, folder, number};
use crate::prepare::{LOCKED, Prepared};
use crate::text::{Options, Parameter, Text};

/// Sets a parameter of the new file system.
type Set<'a> = dyn Fn(&CStr, &Parameter) -> Result<(), Errno> + 'a;

impl Prepared {
    /// Answers the root of the new mount, which is part of this namespace.
    pub(crate) fn overlay(&self, lowers: Range<usize>, data: Option<usize>) -> Result<OwnedFd, Errno> {
        // Layers are named by descriptor number relative to this folder: short however deep they lie, nothing in a
        // path needs escaping, and no host path shows in the container's mountinfo.
        rustix::process::chdir(c"/proc/self/fd")?;
        let mut line = Parameter::default();
        if self.push_layers(&mut line, lowers.clone(), data)? {
            return self.configure(|set| set(c"lowerdir", &line));
        }
        let one_by_one = self.configure(|set| {
            for lower in &self.sources[lowers.clone()] {
                set(c"lowerdir+", &Parameter::number(lower.number()?))?;
            }
            let Some(data) = data else { return Ok(()) };
            set(c"datadir+", &Parameter::number(self.sources[data].number()?))
        });
        match one_by_one {
            // That parameter is unknown to kernels that have yet to get it.
            Err(Errno::INVAL) => self.mount_at_once(lowers, data),
            other => other,
        }
    }

    /// With fsconfig(2); `layers` is given what sets a parameter.
    fn configure(&self, layers: impl FnOnce(&Set<'_>) -> Result<(), Errno>) -> Result<OwnedFd, Errno> {
        let context = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |key: &CStr, value: &Parameter| {
            rustix::mount::fsconfig_set_string(context.as_fd(), key, value.as_c_str())
        };
        layers(&set)?;
        if let (Some(upper), Some(work)) = (&self.upper, &self.work) {
            set(c"upperdir", &Parameter::number(number(upper)))?;
            set(c"workdir", &Parameter::number(number(work)))?;
            // What a payload wrote to its root is thrown away with the slot: no need to sync it first.
            rustix::mount::fsconfig_set_flag(context.as_fd(), c"volatile")?;
        }
        rustix::mount::fsconfig_set_flag(context.as_fd(), c"userxattr")?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let read_only =
            if self.upper.is_none() { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        let root =
            rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, LOCKED | read_only)?;
        attach_at(&root, c"/")?;
        Ok(root)
    }

    /// With mount(2), whose options have room for about 1,000 layers.
    fn mount_at_once(&self, lowers: Range<usize>, data: Option<usize>) -> Result<OwnedFd, Errno> {
        let mut options = Options::default();
        let mut fits =
            options.push(b"userxattr,lowerdir=") && self.push_layers(&mut options, lowers, data)?;
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        if let (Some(upper), Some(work)) = (&self.upper, &self.work) {
            fits &= options.push(b",volatile,upperdir=") && options.push_number(number(upper));
            fits &= options.push(b",workdir=") && options.push_number(number(work));
        } else {
            flags |= MountFlags::RDONLY;
        }
        if !fits {
            return Err(Errno::NAMETOOLONG);
        }
        rustix::mount::mount(c"overlay", c"/dev", c"overlay", flags, options.as_c_str())?;
        rustix::fs::openat(CWD, c"/dev", folder(), Mode::empty())
    }

    /// Appends the numbers of the layers, as far as they fit; whether they do.
    fn push_layers<const ROOM: usize>(
        &self,
        line: &mut Text<ROOM>,
        lowers: Range<usize>,
        data: Option<usize>,
    ) -> Result<bool, Errno> {
        let mut fits = true;
        for (place, lower) in self.sources[lowers].iter().enumerate() {
            fits &= (place == 0 || line.push(b":")) && line.push_number(lower.number()?);
        }
        if let Some(data) = data {
            fits &= line.push(b"::") && line.push_number(self.sources[data].number()?);
        }
        Ok(fits)
    }
}
