//! What this machine allows, found out by doing it in a child, and what to do about what it does not.
//!
//! A file system type or a kernel version says little: distributions backport, administrators forbid, and network
//! file systems differ. So each question is asked by mounting, leasing, cloning for real, in folders of its own that
//! are removed again.
//!
//! **Must not know:** how the report is shown, what the pilot makes of it.

mod attach;
mod gates;

use std::fmt;
use std::fs;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::thread::CapabilitySet;

pub use attach::{AttachTrial, probe_attach};

use crate::cgroup::Delegation;
use crate::error::StartError;
use crate::idmap::{Authority, Caller, IdMap, UID_BASE};
use crate::launch::try_out;
use crate::mounts::{MountStep, RootMount};
use attach::Ground;
use gates::Gates;
use image_store::Attach;

/// One thing the machine allows or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What was asked.
    pub name: &'static str,
    /// Whether it is allowed.
    pub ok: bool,
    /// What was found, with figures.
    pub found: String,
    /// What follows from it.
    pub consequence: &'static str,
    /// What changes it, as a command where there is one; empty when there is nothing to do.
    pub remedy: String,
}

/// Everything found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostReport {
    /// All items, in the order in which they matter.
    pub items: Vec<Item>,
    /// How images can be attached; `None` when containers can't run at all.
    pub attach: Option<Attach>,
}

impl HostReport {
    /// Whether containers can run here.
    pub fn runs_containers(&self) -> bool {
        self.attach.is_some()
    }

    /// The item of that name.
    pub fn item(&self, name: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.name == name)
    }
}

impl fmt::Display for HostReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Item { name, ok, found, consequence, remedy } in &self.items {
            writeln!(f, "{} {name}: {found}", if *ok { "ok  " } else { "no  " })?;
            if !*ok {
                writeln!(f, "       {consequence}")?;
                if !remedy.is_empty() {
                    writeln!(f, "       to change it: {remedy}")?;
                }
            }
        }
        Ok(())
    }
}

/// What the calling process may do.
pub fn caller() -> Caller {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SYS_ADMIN;
    let effective = rustix::thread::capabilities(None).map(|sets| sets.effective);
    Caller {
        euid: rustix::process::geteuid().as_raw(),
        egid: rustix::process::getegid().as_raw(),
        may_map_others: effective.is_ok_and(|effective| effective.contains(needed)),
        uid_map: fs::read_to_string("/proc/self/uid_map").unwrap_or_default(),
        gid_map: fs::read_to_string("/proc/self/gid_map").unwrap_or_default(),
    }
}

/// Finds out what the machine allows for containers whose images are kept in `store` and whose folders are below
/// `local`. Both must exist; folders named `.probe-*` are made in them and removed. Blocks for some milliseconds.
pub fn probe_host(store: &Path, local: &Path) -> HostReport {
    let mut items = vec![kernel()];
    let ids = match IdMap::choose(&caller(), (0, 0), UID_BASE, 0) {
        Ok(ids) => {
            items.push(payload_id(ids));
            Some(ids)
        }
        Err(error) => {
            items.push(item("payload id", Err((error.to_string(), String::new())), "no payload can run"));
            None
        }
    };
    let mut attach = None;
    if let Some(ids) = ids {
        attach = containers(&mut items, store, local, ids);
    }
    items.extend([
        memory_program(),
        seccomp(),
        landlock(),
        leases(local),
        reflink(local),
        huge_pages(),
        cgroups(),
    ]);
    HostReport { items, attach }
}

type Answer = Result<String, (String, String)>;

fn item(name: &'static str, answer: Answer, consequence: &'static str) -> Item {
    let (ok, found, remedy) = match answer {
        Ok(found) => (true, found, String::new()),
        Err((found, remedy)) => (false, found, remedy),
    };
    Item { name, ok, found, consequence, remedy }
}

fn kernel() -> Item {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let answer = if version >= (5, 12) {
        Ok(format!("Linux {release}"))
    } else {
        Err((format!("Linux {release}"), "a kernel of 5.12 or later".to_owned()))
    };
    item("kernel", answer, "containers need mount_setattr of Linux 5.12")
}

fn payload_id(ids: IdMap) -> Item {
    let found = match ids.authority {
        Authority::Own => format!("payloads have the pilot's own host id {}", ids.host_uid),
        Authority::Privileged => {
            format!("the pilot is root; payloads have host ids from {} on, one for each slot", ids.host_uid)
        }
    };
    item("payload id", Ok(found), "")
}

fn containers(items: &mut Vec<Item>, store: &Path, local: &Path, ids: IdMap) -> Option<Attach> {
    let trials = probe_attach(store, local, ids);
    let of = |wanted: Attach| trials.iter().find(|trial| trial.attach == wanted);
    let copy = of(Attach::Copy).map(|trial| &trial.outcome);
    let namespaces = match copy {
        Some(Ok(())) => Ok("made and entered".to_owned()),
        Some(Err(error)) => Err(Gates::read().explain(error)),
        None => Err(("not tried".to_owned(), String::new())),
    };
    let possible = namespaces.is_ok();
    items.push(item("user namespaces", namespaces, "no container can run"));
    if !possible {
        return None;
    }
    let proc = proc_mount(local, ids);
    let mounts_proc = proc.ok;
    items.push(proc);
    for (name, attach, consequence, remedy) in [
        (
            "overlay",
            Attach::Overlay,
            "images are copied as a whole, and payloads share no page cache between images",
            "Linux 5.11 or later, and store and local folders on a local file system or NFS",
        ),
        (
            "data-only overlay",
            Attach::DataOnly,
            "images are attached by overlay of whole layers, or by copy",
            "Linux 6.16 or later, and the store on a local file system or NFS",
        ),
    ] {
        let answer = match of(attach).map(|trial| &trial.outcome) {
            Some(Ok(())) => Ok("mounted and read".to_owned()),
            Some(Err(error)) => Err((chain(error), remedy.to_owned())),
            None => Err(("not tried".to_owned(), String::new())),
        };
        items.push(item(name, answer, consequence));
    }
    trials.iter().find(|trial| trial.outcome.is_ok()).map(|trial| trial.attach).filter(|_| mounts_proc)
}

fn proc_mount(local: &Path, ids: IdMap) -> Item {
    let consequence = "no container can run: it would have to show the host's processes";
    let tried = Ground::make(local).and_then(|ground| {
        let tree = ground.folder("tree")?;
        fs::create_dir(tree.join("proc"))?;
        let steps = [
            MountStep::Private,
            MountStep::Root(RootMount::Bind { tree, read_only: true }),
            MountStep::Proc { target: "/proc".into() },
            MountStep::Enter,
        ];
        Ok(try_out(&steps, ids, c"/proc/1/status", b"Name:"))
    });
    let answer = match tried {
        Ok(Ok(())) => Ok("mounted in a pid namespace of its own".to_owned()),
        Ok(Err(error)) => Err((chain(&error), "a host whose /proc is not hidden by other mounts".to_owned())),
        Err(error) => Err((error.to_string(), format!("make {} writable", local.display()))),
    };
    item("proc", answer, consequence)
}

fn memory_program() -> Item {
    let answer = match crate::program::executable_memory() {
        Ok(_) => Ok("allowed".to_owned()),
        Err(errno) => Err((errno.to_string(), "sysctl -w vm.memfd_noexec=1".to_owned())),
    };
    item("programs in sealed memory", answer, "the shim is bound read-only from its file instead")
}

fn seccomp() -> Item {
    let answer = if crate::sys::seccomp_filters() {
        Ok("filters can be set".to_owned())
    } else {
        Err(("not in this kernel".to_owned(), "a kernel with CONFIG_SECCOMP_FILTER".to_owned()))
    };
    item("seccomp", answer, "payloads can use every system call of an ordinary user")
}

fn landlock() -> Item {
    let answer = match crate::sys::landlock_abi() {
        Some(abi) => Ok(format!("ABI {abi}")),
        None => {
            Err(("not in this kernel or not enabled".to_owned(), "boot with lsm=landlock,...".to_owned()))
        }
    };
    item("Landlock", answer, "the shim can't scope signals and abstract sockets")
}

fn leases(local: &Path) -> Item {
    let tried = Ground::make(local).and_then(|ground| {
        let path = ground.file("leased", b"x")?;
        let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(crate::sys::read_lease(std::os::fd::AsFd::as_fd(&file))?)
    });
    let answer = match tried {
        Ok(()) => Ok(format!("granted in {}", local.display())),
        Err(error) => Err((error.to_string(), "a state folder on a local file system or tmpfs".to_owned())),
    };
    item("read leases", answer, "file outputs are committed by copy")
}

fn huge_pages() -> Item {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let setting = fs::read_to_string(SETTING).unwrap_or_default();
    let chosen = setting.split(['[', ']']).nth(1).unwrap_or("not in this kernel");
    let answer = match chosen {
        "always" | "within_size" | "advise" | "force" => Ok(format!("{chosen}, for shared memory")),
        other => Err((format!("{other}, for shared memory"), format!("as root: echo advise > {SETTING}"))),
    };
    item(
        "huge pages",
        answer,
        "large stages in memory are written, sealed and mapped in small pages, many times slower",
    )
}

fn reflink(local: &Path) -> Item {
    let tried = Ground::make(local).and_then(|ground| {
        let (from, to) = (ground.file("from", &[1; 4096])?, ground.file("to", b"")?);
        let from = fs::File::open(from)?;
        let to = fs::OpenOptions::new().write(true).open(to)?;
        Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
    });
    let answer = match tried {
        Ok(()) => Ok(format!("possible in {}", local.display())),
        Err(error) => Err((error.to_string(), "a state folder on xfs, btrfs or bcachefs".to_owned())),
    };
    item("reflink", answer, "what must be copied is copied byte by byte")
}

fn cgroups() -> Item {
    let found = Delegation::look();
    let answer = if found.is_empty() {
        Err((
            "no cgroup is delegated to the pilot".to_owned(),
            "systemd-run --user --scope -p Delegate=yes pilot ...".to_owned(),
        ))
    } else {
        Ok(format!("{} delegated", found.version()))
    };
    item("cgroups", answer, "memory is limited for each process only, processor time not at all")
}

/// An error with its causes, on one line.
fn chain(error: &StartError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
