//! What payloads that run together pass to each other: pipes and shared memory. They are no stages, so the broker has none of
//! them and no connection is needed; they are where the slot shows them.
//!
//! **Must not know:** the broker.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, SealFlags, fcntl_get_seals, fstat};
use rustix::io::{pread, pwrite, retry_on_intr};
use wire::stage::{INPUTS, OUTPUTS};

use super::output::{Window, map};
use super::{ClientError, name};
use crate::StageName;
use crate::reader::size;

/// Opens an input of class `pipe`. Waits until its producer has opened it, too, or has ended.
///
/// # Errors
/// When there is no such input, or it is no pipe.
pub fn read_stream(input: &str) -> Result<File, ClientError> {
    stream(Path::new(INPUTS), "read stream", &name("read stream", input)?, OFlags::RDONLY)
}

/// Opens an output of class `pipe`. Waits until its reader has opened it, too, or has ended.
///
/// # Errors
/// When there is no such output, or it is no pipe.
pub fn write_stream(output: &str) -> Result<File, ClientError> {
    stream(Path::new(OUTPUTS), "write stream", &name("write stream", output)?, OFlags::WRONLY)
}

/// Opens an input of class `shared`.
///
/// # Errors
/// When there is no such input, or it is no shared memory.
pub fn shared_input(input: &str) -> Result<Shared, ClientError> {
    Shared::open(Path::new(INPUTS), name("share input", input)?)
}

/// Opens an output of class `shared`.
///
/// # Errors
/// When there is no such output, or it is no shared memory.
pub fn shared_output(output: &str) -> Result<Shared, ClientError> {
    Shared::open(Path::new(OUTPUTS), name("share output", output)?)
}

/// Memory of a fixed size that several payloads read and write at the same time. What they agree on to keep order (locks,
/// atomics) is theirs.
#[derive(Debug)]
pub struct Shared {
    name: StageName,
    fd: OwnedFd,
    bytes: u64,
}

impl Shared {
    fn open(folder: &Path, name: StageName) -> Result<Self, ClientError> {
        let doing = "share memory";
        let is_memory = |seals: SealFlags| {
            // Without these its size could change under a mapping, and whoever touches what is gone is killed (SIGBUS).
            seals.contains(SealFlags::SHRINK | SealFlags::GROW) && !seals.contains(SealFlags::WRITE)
        };
        let path = folder.join(name.as_str());
        let wrong = || {
            let why = format!("\"{name}\" is no shared memory; declare it with class shared");
            ClientError::Invalid { doing, why }
        };
        // Looked at first: who opens a pipe lets the other end go on.
        if kind_of(&path, doing)? != FileType::RegularFile {
            return Err(wrong());
        }
        let fd = open(&path, doing, OFlags::RDWR)?;
        if !fcntl_get_seals(&fd).is_ok_and(is_memory) {
            return Err(wrong());
        }
        let bytes = fstat(&fd).map(|stat| size(&stat));
        let bytes = bytes.map_err(|errno| ClientError::Io { doing, source: errno.into() })?;
        Ok(Self { name, fd, bytes })
    }

    /// Its size, the `max_size` of the output.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its descriptor, readable and writable.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Copies bytes out of it.
    ///
    /// # Errors
    /// When they go beyond its end.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.within(offset, bytes.len())?;
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match retry_on_intr(|| pread(&self.fd, &mut *rest, offset + done as u64))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
        }
        Ok(())
    }

    /// Copies bytes into it.
    ///
    /// # Errors
    /// When they go beyond its end.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.within(offset, bytes.len())?;
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match retry_on_intr(|| pwrite(&self.fd, rest, offset + done as u64))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => done += written,
            }
        }
        Ok(())
    }

    /// Maps it, for reading and writing in place.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn window(&self) -> io::Result<Window<'_>> {
        map(self.fd.as_fd(), self.bytes)
    }

    fn within(&self, offset: u64, length: usize) -> io::Result<()> {
        if offset.checked_add(length as u64).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        let text = format!("use shared memory \"{}\": it ends at byte {}", self.name, self.bytes);
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }
}

fn stream(folder: &Path, doing: &'static str, name: &StageName, way: OFlags) -> Result<File, ClientError> {
    let path = folder.join(name.as_str());
    // Looked at first: to open another file for writing is to have written it.
    if kind_of(&path, doing)? != FileType::Fifo {
        let why = format!("\"{name}\" is no pipe; declare it with class pipe");
        return Err(ClientError::Invalid { doing, why });
    }
    Ok(File::from(open(&path, doing, way)?))
}

fn kind_of(path: &Path, doing: &'static str) -> Result<FileType, ClientError> {
    let stat = rustix::fs::stat(path).map_err(|errno| ClientError::Io { doing, source: errno.into() })?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

fn open(path: &Path, doing: &'static str, flags: OFlags) -> Result<OwnedFd, ClientError> {
    let opened = retry_on_intr(|| rustix::fs::open(path, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty()));
    opened.map_err(|errno| ClientError::Io { doing, source: errno.into() })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsRawFd as _;

    use super::*;
    use crate::SharedMemory;

    fn named(text: &str) -> StageName {
        text.parse().expect("a name")
    }

    #[test]
    fn shared_memory_is_one_for_all_that_open_it_and_nothing_else_is_taken_for_it() {
        let home = tempfile::tempdir().expect("a folder");
        let memory = SharedMemory::create(&named("grid"), 8192).expect("memory");
        let lent = memory.lend().expect("a descriptor");
        let link = format!("/proc/self/fd/{}", lent.as_raw_fd());
        std::os::unix::fs::symlink(link, home.path().join("grid")).expect("a link");
        let open = |name: &str| Shared::open(home.path(), named(name));
        let (one, other) = (open("grid").expect("shared"), open("grid").expect("shared"));
        assert_eq!((one.bytes(), one.window().expect("mapped").len()), (8192, 8192));
        one.write_at(8190, b"ab").expect("written");
        let mut read = [0; 2];
        other.read_at(8190, &mut read).expect("read");
        assert_eq!(&read, b"ab");
        assert!(one.write_at(8191, b"ab").is_err() && other.read_at(u64::MAX, &mut read).is_err());
        std::fs::write(home.path().join("file"), "x").expect("a file");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            home.path().join("pipe"),
            FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .expect("a pipe");
        for name in ["file", "pipe"] {
            assert!(matches!(open(name), Err(ClientError::Invalid { .. })), "{name}");
        }
        assert!(matches!(open("missing"), Err(ClientError::Io { .. })));
    }

    #[test]
    fn a_stream_has_two_ends_and_a_file_is_none() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).expect("a pipe");
        let folder = home.path().to_owned();
        let writes = std::thread::spawn(move || {
            let mut end = stream(&folder, "write stream", &named("pipe"), OFlags::WRONLY).expect("a writer");
            end.write_all(b"through it").expect("written");
        });
        let mut end = stream(home.path(), "read stream", &named("pipe"), OFlags::RDONLY).expect("a reader");
        let mut text = String::new();
        end.read_to_string(&mut text).expect("read");
        writes.join().expect("it ends");
        assert_eq!(text, "through it");
        std::fs::write(home.path().join("file"), "x").expect("a file");
        for name in ["file", "missing"] {
            assert!(stream(home.path(), "read stream", &named(name), OFlags::RDONLY).is_err(), "{name}");
        }
    }
}
