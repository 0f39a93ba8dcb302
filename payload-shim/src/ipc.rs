//! System V IPC objects that a payload left. On Kubernetes the slots of a pod share one IPC namespace, so they would
//! outlive it; only what belongs to our uid is touched.
//!
//! **Must not know:** who made them.

use rustix::fs::{CWD, Mode, OFlags, openat};
use wire::slot::CleanReport;

use crate::sys::{self, IpcKind};

/// Removes every object whose owner or creator is `uid`, as shmctl(2) and its kin allow.
pub(crate) fn remove_own(uid: u32, report: &mut CleanReport) {
    for (kind, path) in [
        (IpcKind::Shm, "/proc/sysvipc/shm"),
        (IpcKind::Sem, "/proc/sysvipc/sem"),
        (IpcKind::Msg, "/proc/sysvipc/msg"),
    ] {
        match sys::count_ipc(kind) {
            // Most payloads make none, and reading an empty table costs more than the rest of Clean.
            Ok(0) => continue,
            // Nobody here can have made any: the filter of `confine.rs`, or a kernel without such objects.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => continue,
            Ok(_) | Err(_) => {}
        }
        let Some(table) = read(path) else { continue };
        for id in own_ids(&table, uid) {
            let count = match sys::remove_ipc(kind, id) {
                Ok(()) => &mut report.ipc_objects,
                Err(_) => &mut report.failures,
            };
            *count = count.saturating_add(1);
        }
    }
}

/// The second column is the id in all three tables; owner and creator are found by their headings (proc(5)).
fn own_ids(table: &str, uid: u32) -> Vec<i32> {
    let mut lines = table.lines();
    let Some(heading) = lines.next() else { return Vec::new() };
    let columns: Vec<usize> = heading
        .split_ascii_whitespace()
        .enumerate()
        .filter(|(_, name)| matches!(*name, "uid" | "cuid"))
        .map(|(at, _)| at)
        .collect();
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let own = columns.iter().any(|&at| fields.get(at).is_some_and(|f| f.parse() == Ok(uid)));
            if own { fields.get(1)?.parse().ok() } else { None }
        })
        .collect()
}

fn read(path: &str) -> Option<String> {
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::fs::File::from(file), &mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::own_ids;

    #[test]
    fn only_objects_of_the_uid_are_named() {
        let table = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n\
                     0 3 600 1 1000 5 1000 5 0 1\n 0 4 600 1 7 5 1000 5 0 1\n 0 5 600 1 7 1000 7 1000 0 1\n";
        assert_eq!(own_ids(table, 1000), [3, 4]);
        assert_eq!(own_ids("", 1000), [] as [i32; 0]);
    }
}
