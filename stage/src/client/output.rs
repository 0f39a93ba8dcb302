//! An output that is being written.

use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use memmap2::MmapRaw;
use rustix::io::{pwrite, retry_on_intr};

use super::{Client, ClientError};
use crate::memory::now_us;
use crate::{MemoryWriter, StageName};

/// Memory of the broker's that this client may write until it commits it. Dropped, it is abandoned.
#[derive(Debug)]
pub struct Output<'client> {
    client: &'client Client,
    name: StageName,
    /// None once it is committed.
    fd: Option<OwnedFd>,
    bytes: u64,
    at: u64,
    note: Option<String>,
}

/// A writable mapping of an output. It borrows the output, so that none is left when it is committed.
///
/// The pointer is valid for reads and writes of [`len`](Self::len) bytes while this lives. Others may have the same memory
/// mapped: whether a slice may be made of it is the caller's to justify.
#[derive(Debug)]
pub struct Window<'output> {
    map: Option<MmapRaw>,
    output: PhantomData<&'output ()>,
}

impl Window<'_> {
    /// The first byte; dangling for an empty output.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.map.as_ref().map_or(std::ptr::dangling_mut(), MmapRaw::as_mut_ptr)
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.as_ref().map_or(0, MmapRaw::len)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Maps memory of so many bytes for writing.
pub(super) fn map(fd: BorrowedFd<'_>, bytes: u64) -> io::Result<Window<'_>> {
    let map = match bytes {
        0 => None,
        _ => Some(memmap2::MmapOptions::new().map_raw(&fd)?),
    };
    Ok(Window { map, output: PhantomData })
}

impl<'client> Output<'client> {
    pub(super) fn new(
        client: &'client Client,
        name: StageName,
        fd: OwnedFd,
        bytes: u64,
        note: Option<String>,
    ) -> Self {
        Self { client, name, fd: Some(fd), bytes, at: 0, note }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The size that it was created with.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was asked for and could not be had, in one line: huge pages.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The memory's descriptor, for system calls that fill it (read(2), splice(2)).
    ///
    /// # Errors
    /// When it is committed.
    pub fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Copies bytes into it. No page is taken by that: they are all there.
    ///
    /// # Errors
    /// When they go beyond its end.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.bytes) {
            let text = format!("write output \"{}\": it ends at byte {}", self.name, self.bytes);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let (fd, mut done) = (self.fd()?, 0);
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match retry_on_intr(|| pwrite(fd, rest, offset + done as u64))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => done += written,
            }
        }
        Ok(())
    }

    /// Maps it for writing in place.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn window(&self) -> io::Result<Window<'_>> {
        let window = map(self.fd()?, self.bytes)?;
        let Some(map) = &window.map else { return Ok(window) };
        // Wishes, of which a kernel may know nothing (the second is Linux 5.14's). Pages are there already, and mapping them
        // at once takes half of what writing to each for the first time does; without a note of each one's last use,
        // the unmapping that a commit waits for takes half of its time.
        let _ = map.advise(memmap2::Advice::Sequential);
        let _ = map.advise(memmap2::Advice::PopulateWrite);
        Ok(window)
    }

    /// Makes it a stage, as large as it was created. Nobody can change it any more, this process included; what is left here
    /// refuses every call.
    ///
    /// # Errors
    /// [`Busy`](wire::stage::Code::Busy) when another process has it mapped for writing: it is as it was, and may be committed
    /// again.
    pub fn commit(&mut self) -> Result<u64, ClientError> {
        self.commit_first(self.bytes)
    }

    /// Makes its first `bytes` bytes a stage.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), and when it has fewer.
    pub fn commit_first(&mut self, bytes: u64) -> Result<u64, ClientError> {
        self.commit_timed(bytes).map(|(bytes, _)| bytes)
    }

    /// As [`commit_first`](Self::commit_first); gives also how long sealing took, in microseconds.
    ///
    /// # Errors
    /// As there.
    pub fn commit_timed(&mut self, bytes: u64) -> Result<(u64, u64), ClientError> {
        let began = now_us();
        // The broker says what is wrong when this is refused, and does it where it was not done.
        let _ = self.fd.as_ref().map(MemoryWriter::forbid_writing);
        let own_us = now_us().saturating_sub(began);
        let (bytes, seal_us) = self.client.commit(&self.name, bytes)?;
        self.fd = None;
        Ok((bytes, own_us + seal_us))
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        if self.fd.take().is_some() {
            // If the connection has ended, the broker has dropped it already.
            let _ = self.client.abandon(&self.name);
        }
    }
}
