//! Which launches have had their run: a file in the control folder, so that it outlives this process and its container.
//!
//! # Guarantees
//! - A launch is written down before its fork. What was written down is not launched again, also after a restart.
//! - The file never grows beyond [`RECORDS_MAX`] records: the oldest is replaced. A pilot that does not know whether its
//!   launch arrived asks again with that launch's id, the latest it gave; no older one can come again.
//!
//! A record is written in one piece that crosses no page, so a crash leaves it whole or not there.
//!
//! **Must not know:** what is launched, who asks.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, pread, pwrite};
use wire::slot::LaunchId;

use crate::failure::Failure;

/// The folder, below the control folder. The pilot makes it.
pub(crate) const FOLDER: &str = "ran";
/// The file in it.
pub(crate) const MARKER: &str = "latest";
/// The same, below the control folder.
const FILE: &str = "ran/latest";
/// Launches that are remembered.
pub(crate) const RECORDS_MAX: usize = 1024;
/// Sequence number, id, and zeros up to a power of two.
const RECORD_BYTES: usize = 32;

/// The record of launches.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    file: Option<OwnedFd>,
    /// Where they are in the file; a sequence number modulo the size is a place.
    ids: Vec<Option<LaunchId>>,
    /// Sequence number of the next record; 0 is none.
    next: u64,
}

impl Ran {
    /// Writes down that this id has its run.
    ///
    /// # Errors
    /// `EEXIST` when it had one; anything else when it can't be written, and then it must not run either.
    pub(crate) fn add(&mut self, control: BorrowedFd<'_>, id: LaunchId) -> Result<(), Failure> {
        if self.file.is_none() {
            self.open(control).map_err(Failure::at("marker"))?;
        }
        if self.ids.contains(&Some(id)) {
            return Err(Failure::at("marker")(Errno::EXIST));
        }
        let place = place(self.next);
        let mut record = [0; RECORD_BYTES];
        record[..8].copy_from_slice(&self.next.to_le_bytes());
        record[8..24].copy_from_slice(&id.0);
        let file = self.file.as_ref().ok_or(Failure::at("marker")(Errno::BADF))?;
        match pwrite(file, &record, (place * RECORD_BYTES) as u64) {
            Ok(RECORD_BYTES) => {}
            Ok(_) => return Err(Failure::at("marker")(Errno::NOSPC)),
            Err(errno) => return Err(Failure::at("marker")(errno)),
        }
        if let Some(known) = self.ids.get_mut(place) {
            *known = Some(id);
        }
        self.next = self.next.saturating_add(1);
        Ok(())
    }

    fn open(&mut self, control: BorrowedFd<'_>) -> Result<(), Errno> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(control, FILE, flags, Mode::from(0o600))?;
        let mut bytes = vec![0; RECORDS_MAX * RECORD_BYTES];
        let mut length = 0;
        while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match pread(&file, rest, length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        bytes.truncate(length);
        (self.ids, self.next) = records(&bytes);
        self.file = Some(file);
        Ok(())
    }
}

fn place(sequence: u64) -> usize {
    usize::try_from(sequence % RECORDS_MAX as u64).unwrap_or(0)
}

/// Every id in the file, and the sequence number after the last.
fn records(bytes: &[u8]) -> (Vec<Option<LaunchId>>, u64) {
    let mut ids = vec![None; RECORDS_MAX];
    let mut last = 0;
    for (record, known) in bytes.as_chunks::<RECORD_BYTES>().0.iter().zip(&mut ids) {
        let (words, _) = record.as_chunks::<8>();
        let sequence = words.first().copied().map_or(0, u64::from_le_bytes);
        let id = record.get(8..24).and_then(|id| id.try_into().ok()).map(LaunchId);
        if sequence != 0 {
            *known = id;
            last = last.max(sequence);
        }
    }
    // A payload in a pod can write here: a number that it made up must not be our undoing.
    (ids, last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn id(number: usize) -> LaunchId {
        LaunchId((number as u128).to_be_bytes())
    }

    fn ran_before(ran: &mut Ran, control: &std::fs::File, number: usize) -> bool {
        match ran.add(control.as_fd(), id(number)) {
            Ok(()) => false,
            Err(failure) => {
                assert_eq!(failure, Failure::at("marker")(Errno::EXIST));
                true
            }
        }
    }

    #[test]
    fn an_id_is_taken_once_also_by_the_next_process_and_the_file_does_not_grow() {
        let folder = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(folder.path().join("ran")).expect("mkdir");
        let control = std::fs::File::open(folder.path()).expect("open");
        let mut ran = Ran::default();
        for number in 0..RECORDS_MAX + 10 {
            assert!(!ran_before(&mut ran, &control, number));
            assert!(ran_before(&mut ran, &control, number));
        }
        for mut again in [ran, Ran::default()] {
            for number in [10, 500, RECORDS_MAX, RECORDS_MAX + 9] {
                assert!(ran_before(&mut again, &control, number), "{number}");
            }
        }
        let mut next = Ran::default();
        assert!(!ran_before(&mut next, &control, 999_999));
        assert!(ran_before(&mut next, &control, RECORDS_MAX + 9), "the newest was replaced");
        assert!(ran_before(&mut Ran::default(), &control, 999_999));
        let length = std::fs::metadata(folder.path().join(FILE)).expect("stat").len();
        assert_eq!(length, (RECORDS_MAX * RECORD_BYTES) as u64);
    }

    #[test]
    fn what_cannot_be_written_down_does_not_run() {
        let folder = tempfile::tempdir().expect("tempdir");
        let control = std::fs::File::open(folder.path()).expect("open");
        let failure = Ran::default().add(control.as_fd(), id(1)).expect_err("added");
        assert_eq!(failure, Failure::at("marker")(Errno::NOENT));
    }

    #[test]
    fn a_file_that_was_cut_off_gives_its_whole_records() {
        let mut bytes = vec![0; RECORD_BYTES * 3 - 1];
        for (place, chunk) in bytes.chunks_mut(RECORD_BYTES).enumerate() {
            chunk[..8].copy_from_slice(&(place as u64).to_le_bytes());
            chunk[8] = 7;
        }
        let (ids, next) = records(&bytes);
        assert_eq!((ids.iter().flatten().count(), next), (1, 2));
    }
}
