//! Stages as the payload meets them: links under `/stage`, descriptors from 10 up, variables that tell their numbers.
//!
//! **Must not know:** what a stage holds, how it is made immutable, who made it.

use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdir, openat, openat2, statat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use wire::slot::{FdRole, InputLink, STAGES_MAX};

use crate::failure::Failure;

/// Folder of the links to inputs.
pub const FOLDER_IN: &str = "/stage/in";
/// Folder of outputs: files that the pilot made, and links to memory.
pub const FOLDER_OUT: &str = "/stage/out";
/// Number of the first stage descriptor in the payload; programs in shells use 3 to 9 for themselves.
pub const FIRST_FD: i32 = 10;

/// Which way a stage goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The payload reads it.
    In,
    /// The payload writes it.
    Out,
}

/// A stage with its descriptor.
#[derive(Debug)]
pub struct Stage<F = OwnedFd> {
    /// Which way.
    pub way: Way,
    /// Its name, one path component.
    pub name: String,
    /// The stage.
    pub fd: F,
}

impl<F> Stage<F> {
    /// Name of the variable that tells the payload the descriptor's number.
    #[must_use]
    pub fn variable(&self) -> String {
        let way = match self.way {
            Way::In => "IN",
            Way::Out => "OUT",
        };
        let name: String = self
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .collect();
        format!("{VARIABLE_PREFIX}{way}_{name}")
    }
}

/// How those variables begin. The launch's own variables of this form are dropped: they would lie.
pub const VARIABLE_PREFIX: &str = "LATEBIND_FD_";

/// The descriptors of a launch, sorted by what they are for.
#[derive(Debug)]
pub struct Sorted<F = OwnedFd> {
    /// Descriptors 0, 1 and 2, if given.
    pub stdio: [Option<F>; 3],
    /// Stages in the order in which they were lent.
    pub stages: Vec<Stage<F>>,
    /// Inputs that are files in the slot, and that the payload inherits all the same.
    pub files: Vec<Stage<OwnedFd>>,
}

/// Sorts descriptors by role.
///
/// # Errors
/// What is wrong with the roles: one twice, two that would share a link or a variable, too many.
pub fn sort<F>(given: Vec<(FdRole, F)>, links: &[InputLink]) -> Result<Sorted<F>, String> {
    let mut sorted = Sorted { stdio: [None, None, None], stages: Vec::new(), files: Vec::new() };
    for (role, fd) in given {
        let (at, name) = match role {
            FdRole::Stdin => (0, "stdin"),
            FdRole::Stdout => (1, "stdout"),
            FdRole::Stderr => (2, "stderr"),
            FdRole::StageIn(name) => {
                sorted.stages.push(Stage { way: Way::In, name, fd });
                continue;
            }
            FdRole::StageOut(name) => {
                sorted.stages.push(Stage { way: Way::Out, name, fd });
                continue;
            }
            FdRole::Launch => return Err("a second descriptor with the role of the launch".into()),
        };
        let [stdin, stdout, stderr] = &mut sorted.stdio;
        let place = [stdin, stdout, stderr].into_iter().nth(at);
        if place.is_some_and(|place| place.replace(fd).is_some()) {
            return Err(format!("two descriptors for {name}"));
        }
    }
    if sorted.stages.len() + links.len() > STAGES_MAX {
        return Err(format!("more than {STAGES_MAX} stages"));
    }
    unambiguous(&sorted.stages, links)?;
    Ok(sorted)
}

fn unambiguous<F>(stages: &[Stage<F>], links: &[InputLink]) -> Result<(), String> {
    let mut variables: Vec<(String, &str)> = stages.iter().map(|s| (s.variable(), s.name.as_str())).collect();
    variables.sort();
    for pair in variables.windows(2) {
        if let [(one, first), (other, second)] = pair
            && one == other
        {
            return Err(format!("stages {first} and {second} would share the variable {one}"));
        }
    }
    let inputs = stages.iter().filter(|s| s.way == Way::In).map(|s| s.name.as_str());
    let mut names: Vec<&str> = inputs.chain(links.iter().map(|link| link.name.as_str())).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| matches!(pair, [one, other] if one == other)) {
        Some(pair) => Err(format!("two inputs with the name {}", pair.first().copied().unwrap_or_default())),
        None => Ok(()),
    }
}

/// Opens those inputs that are links to files and have these names.
///
/// # Errors
/// When one is no file, or can't be read.
pub fn open_files(links: &[InputLink], names: &[String]) -> Result<Vec<Stage>, Failure> {
    let at = Failure::at("input");
    let wanted = links.iter().filter(|link| names.contains(&link.name));
    let open = |link: &InputLink| {
        // Without O_NONBLOCK a pipe would be waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = openat(CWD, link.target.as_slice(), flags, Mode::empty()).map_err(&at)?;
        let stat = fstat(&fd).map_err(&at)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(at(Errno::INVAL));
        }
        Ok(Stage { way: Way::In, name: link.name.clone(), fd })
    };
    wanted.map(open).collect()
}

/// A link to be made.
#[derive(Debug)]
pub struct Link {
    /// In which folder.
    pub way: Way,
    /// Its name.
    pub name: String,
    /// Where it leads.
    pub target: Vec<u8>,
}

/// Makes the folders if missing, and the links. A symlink of that name from before a restart is replaced; anything
/// else of that name is an error.
///
/// # Errors
/// The first that can't be made; the others stay.
pub fn make_links(links: &[Link]) -> Result<(), Failure> {
    // Also without links: a payload may look into the folders. Missing ones are then no reason to refuse it.
    let folder_in = folder(FOLDER_IN);
    let folder_out = folder(FOLDER_OUT);
    for link in links {
        let folder = match link.way {
            Way::In => &folder_in,
            Way::Out => &folder_out,
        };
        let folder = folder.as_ref().map_err(|errno| Failure::at("link")(*errno))?;
        let made = match symlinkat(link.target.as_slice(), folder, &link.name) {
            Err(Errno::EXIST) if is_symlink(folder, &link.name) => {
                unlinkat(folder, &link.name, AtFlags::empty())
                    .and_then(|()| symlinkat(link.target.as_slice(), folder, &link.name))
            }
            other => other,
        };
        made.map_err(Failure::at("link"))?;
    }
    Ok(())
}

/// Removes links that [`make_links`] made, as far as they are there.
pub fn remove_links(links: &[Link]) {
    for link in links {
        let path = match link.way {
            Way::In => FOLDER_IN,
            Way::Out => FOLDER_OUT,
        };
        if let Ok(folder) = open(path)
            && is_symlink(&folder, &link.name)
        {
            // What can't be removed is found by Clean, which counts it.
            let _ = unlinkat(&folder, &link.name, AtFlags::empty());
        }
    }
}

fn is_symlink(folder: &OwnedFd, name: &str) -> bool {
    statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

fn folder(path: &str) -> Result<OwnedFd, Errno> {
    match open(path) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let made = mkdir(path, Mode::from(0o755))
        .or_else(|_| mkdir("/stage", Mode::from(0o755)).and_then(|()| mkdir(path, Mode::from(0o755))));
    match (open(path), made) {
        // Why it could not be made says more than that it is missing.
        (Err(Errno::NOENT), Err(errno)) => Err(errno),
        (opened, _) => opened,
    }
}

/// Never through a symlink: a payload before this one may have put one there.
fn open(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        // Linux before 5.6, or a seccomp filter older than the call.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(CWD, path, flags, Mode::empty()),
        other => other,
    }
}

#[cfg(test)]
#[path = "stages_tests.rs"]
mod tests;
