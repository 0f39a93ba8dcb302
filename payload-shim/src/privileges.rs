//! Giving up every privilege for good, before anything else is done.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// One more than the largest capability number that a kernel may know: the sets are 64 bits wide.
const CAPABILITIES_END: u32 = 64;

/// Empties the bounding, ambient, inheritable, permitted and effective sets and sets no-new-privs, so that neither a
/// setuid file nor uid 0 gives anything back at exec (capabilities(7)).
///
/// A process that may not change its bounding set has no capability to lose by it, so `EPERM` there is no fault.
///
/// # Errors
/// When no-new-privs can't be set or a set can't be emptied.
pub fn give_up() -> Result<(), Errno> {
    for number in 0..CAPABILITIES_END {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(
            1 << number,
        )) {
            Ok(()) => {}
            // INVAL: past the last capability of this kernel.
            Err(Errno::PERM | Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    match rustix::thread::clear_ambient_capability_set() {
        // INVAL: Linux before 4.3.
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )?;
    rustix::thread::set_no_new_privs(true)
}
