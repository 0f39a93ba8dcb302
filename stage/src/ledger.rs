//! The ledger: which stages exist, what they cost, who still needs them.
//!
//! ```text
//!            reserve            commit              last reader released, or the workflow ends
//!  (nothing) -------> Reserved ---------> Committed ------------------------------------------> (gone)
//!                        | discard (producer failed, half-written output dropped)                 ^
//!                        +------------------------------------------------------------------------+
//! ```
//! A reservation counts with the most that the output may become, before any of it is allocated; a commit corrects it
//! to what it is. An object that had readers goes with the last of them; one that never had any stays to the end of
//! its workflow.
//!
//! **Must not know:** descriptors, folders, the kernel. It is asked before memory is touched and told afterwards.

use std::collections::{BTreeMap, BTreeSet};

use crate::{StageName, StageUri};

/// How a stage is kept immutable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Sealed memory.
    Mem,
    /// A leased file.
    File,
    /// Bytes that travel inside a message.
    Value,
}

/// What a stage's bytes take. A file on a memory-medium volume takes memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Medium {
    /// Memory.
    Memory,
    /// Disk.
    Disk,
    /// Nothing here: it is in an object store.
    Object,
}

/// The most that all stages together may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub disk_bytes: u64,
}

/// What is asked for before an output is lent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Its name; the payload in it is the owner.
    pub uri: StageUri,
    /// Its class.
    pub class: Class,
    /// What its bytes take.
    pub medium: Medium,
    /// Its declared `max_size`.
    pub max_bytes: u64,
    /// Those that will read it (payloads, or a name for the copy that the user asked for).
    pub readers: BTreeSet<StageName>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its class.
    pub class: Class,
    /// What its bytes take.
    pub medium: Medium,
    /// What it counts with: the most it may become while reserved, its size once committed.
    pub bytes: u64,
    /// Whether it is a stage yet.
    pub committed: bool,
    /// Readers still to come.
    pub readers: BTreeSet<StageName>,
    /// Whether it had readers at all; if not, it lives as long as its workflow.
    had_readers: bool,
}

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an object that is gone from the ledger must be freed"]
pub enum Fate {
    /// It stays.
    Kept,
    /// It is off the ledger: free it.
    Gone,
}

/// More entries than this are refused: each costs descriptors or inodes.
pub const OBJECTS_MAX: usize = 65_536;

/// An output that may not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// Two outputs of one name.
    #[error("reserve {uri}: it exists already")]
    Exists {
        /// Its name.
        uri: StageUri,
    },
    /// Above what is left. It may fit when other stages are gone.
    #[error("reserve {max_bytes} bytes of {medium:?} for {uri}: {free_bytes} are free of {budget_bytes}")]
    OverBudget {
        /// Its name.
        uri: StageUri,
        /// What would run out.
        medium: Medium,
        /// What was asked for.
        max_bytes: u64,
        /// What is left.
        free_bytes: u64,
        /// What there is in all: more than this never fits.
        budget_bytes: u64,
    },
    /// The table is full.
    #[error("reserve {uri}: there are {OBJECTS_MAX} stages already")]
    TooMany {
        /// Its name.
        uri: StageUri,
    },
}

/// Something was said about an object that the ledger doesn't know like that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// No such entry.
    #[error("find {uri}: there is no such stage")]
    Unknown {
        /// Its name.
        uri: StageUri,
    },
    /// Committed twice.
    #[error("commit {uri}: it is committed already")]
    Committed {
        /// Its name.
        uri: StageUri,
    },
    /// More than was reserved: the caller did not keep `max_size`.
    #[error("commit {uri} with {bytes} bytes: {reserved_bytes} were reserved")]
    AboveReservation {
        /// Its name.
        uri: StageUri,
        /// What it is.
        bytes: u64,
        /// What was reserved.
        reserved_bytes: u64,
    },
    /// Not one of its readers, or released before.
    #[error("release {uri}: \"{reader}\" is no reader of it")]
    NoReader {
        /// Its name.
        uri: StageUri,
        /// Who.
        reader: StageName,
    },
}

/// All stages of a pilot.
#[derive(Clone, Debug)]
pub struct Ledger {
    budget: Budget,
    objects: BTreeMap<StageUri, Object>,
    memory_bytes: u64,
    disk_bytes: u64,
    object_bytes: u64,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self { budget, objects: BTreeMap::new(), memory_bytes: 0, disk_bytes: 0, object_bytes: 0 }
    }

    /// What reserved and committed objects take.
    #[must_use]
    pub fn used_bytes(&self, medium: Medium) -> u64 {
        match medium {
            Medium::Memory => self.memory_bytes,
            Medium::Disk => self.disk_bytes,
            Medium::Object => self.object_bytes,
        }
    }

    /// What is left of the budget.
    #[must_use]
    pub fn free_bytes(&self, medium: Medium) -> u64 {
        self.budget_bytes(medium).saturating_sub(self.used_bytes(medium))
    }

    /// One entry.
    #[must_use]
    pub fn object(&self, uri: &StageUri) -> Option<&Object> {
        self.objects.get(uri)
    }

    /// All entries, by name.
    pub fn objects(&self) -> impl Iterator<Item = (&StageUri, &Object)> {
        self.objects.iter()
    }

    /// Makes room for an output before anything of it is allocated.
    ///
    /// # Errors
    /// When the name is taken, the budget does not allow it, or the table is full. Nothing is changed then.
    pub fn reserve(&mut self, asked: Reservation) -> Result<(), ReserveError> {
        let Reservation { uri, class, medium, max_bytes, readers } = asked;
        if self.objects.contains_key(&uri) {
            return Err(ReserveError::Exists { uri });
        }
        if self.objects.len() >= OBJECTS_MAX {
            return Err(ReserveError::TooMany { uri });
        }
        if max_bytes > self.free_bytes(medium) {
            let asked = Reservation { uri, class, medium, max_bytes, readers };
            return Err(self.over_budget(&asked));
        }
        *self.used_mut(medium) += max_bytes;
        let had_readers = !readers.is_empty();
        let object = Object { class, medium, bytes: max_bytes, committed: false, readers, had_readers };
        self.objects.insert(uri, object);
        Ok(())
    }

    /// Why there is no room for an output.
    pub(crate) fn over_budget(&self, asked: &Reservation) -> ReserveError {
        let Reservation { uri, medium, max_bytes, .. } = asked;
        ReserveError::OverBudget {
            uri: uri.clone(),
            medium: *medium,
            max_bytes: *max_bytes,
            free_bytes: self.free_bytes(*medium),
            budget_bytes: self.budget_bytes(*medium),
        }
    }

    /// The output is a stage of `bytes` bytes. It is gone at once when all its readers were released before.
    ///
    /// # Errors
    /// When it was not reserved, is committed already, or is larger than was reserved.
    pub fn commit(&mut self, uri: &StageUri, bytes: u64) -> Result<Fate, LedgerError> {
        let object = self.objects.get_mut(uri).ok_or_else(|| LedgerError::Unknown { uri: uri.clone() })?;
        if object.committed {
            return Err(LedgerError::Committed { uri: uri.clone() });
        }
        let (medium, reserved_bytes) = (object.medium, object.bytes);
        if bytes > reserved_bytes {
            return Err(LedgerError::AboveReservation { uri: uri.clone(), bytes, reserved_bytes });
        }
        object.committed = true;
        object.bytes = bytes;
        *self.used_mut(medium) -= reserved_bytes - bytes;
        Ok(self.settle(uri))
    }

    /// Counts memory that is nobody's stage any more and is held all the same.
    pub fn charge(&mut self, bytes: u64) {
        self.memory_bytes = self.memory_bytes.saturating_add(bytes);
    }

    /// It is gone.
    pub fn uncharge(&mut self, bytes: u64) {
        self.memory_bytes = self.memory_bytes.saturating_sub(bytes);
    }

    /// Its bytes now take another medium: it was spilled, or went to an object store, or came back.
    ///
    /// # Errors
    /// When there is no such object. The budget is not asked: the bytes are there already.
    pub fn relocate(&mut self, uri: &StageUri, medium: Medium) -> Result<(), LedgerError> {
        let object = self.objects.get_mut(uri).ok_or_else(|| LedgerError::Unknown { uri: uri.clone() })?;
        let (was, bytes) = (std::mem::replace(&mut object.medium, medium), object.bytes);
        *self.used_mut(was) -= bytes;
        *self.used_mut(medium) += bytes;
        Ok(())
    }

    /// A reader has finished, or will never come.
    ///
    /// # Errors
    /// When it is no reader of this object.
    pub fn release(&mut self, uri: &StageUri, reader: &StageName) -> Result<Fate, LedgerError> {
        let object = self.objects.get_mut(uri).ok_or_else(|| LedgerError::Unknown { uri: uri.clone() })?;
        if !object.readers.remove(reader) {
            return Err(LedgerError::NoReader { uri: uri.clone(), reader: reader.clone() });
        }
        Ok(self.settle(uri))
    }

    /// One more reader needs an object.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn add_reader(&mut self, uri: &StageUri, reader: &StageName) -> Result<(), LedgerError> {
        let object = self.objects.get_mut(uri).ok_or_else(|| LedgerError::Unknown { uri: uri.clone() })?;
        object.readers.insert(reader.clone());
        object.had_readers = true;
        Ok(())
    }

    /// Drops an object whatever its state: its producer failed, or it was lost. Its producer may reserve it again.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn discard(&mut self, uri: &StageUri) -> Result<Object, LedgerError> {
        self.remove(uri).ok_or_else(|| LedgerError::Unknown { uri: uri.clone() })
    }

    /// Drops everything of a workflow; gives what must be freed.
    pub fn end_workflow(&mut self, workflow: &StageName) -> Vec<(StageUri, Object)> {
        let uris: Vec<StageUri> =
            self.objects.keys().filter(|uri| uri.workflow == *workflow).cloned().collect();
        uris.into_iter().filter_map(|uri| self.remove(&uri).map(|object| (uri, object))).collect()
    }

    fn settle(&mut self, uri: &StageUri) -> Fate {
        let unwanted =
            self.objects.get(uri).is_some_and(|o| o.committed && o.had_readers && o.readers.is_empty());
        if unwanted && self.remove(uri).is_some() { Fate::Gone } else { Fate::Kept }
    }

    fn remove(&mut self, uri: &StageUri) -> Option<Object> {
        let object = self.objects.remove(uri)?;
        *self.used_mut(object.medium) -= object.bytes;
        Some(object)
    }

    fn budget_bytes(&self, medium: Medium) -> u64 {
        match medium {
            Medium::Memory => self.budget.memory_bytes,
            Medium::Disk => self.budget.disk_bytes,
            Medium::Object => u64::MAX,
        }
    }

    fn used_mut(&mut self, medium: Medium) -> &mut u64 {
        match medium {
            Medium::Memory => &mut self.memory_bytes,
            Medium::Disk => &mut self.disk_bytes,
            Medium::Object => &mut self.object_bytes,
        }
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
