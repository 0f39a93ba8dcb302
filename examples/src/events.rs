//! The file that `simulate` writes.
//!
//! All numbers are little endian.
//! ```text
//!  0  8 bytes  "LBZMUMU1"
//!  8  u64      events: accepted, so the number of records
//! 16  u64      generated: before the acceptance cuts
//! 24  u64      seed
//! 32  3 x f64  generated mass, width; relative momentum resolution
//! 56  records  6 x f64 each: px py pz of the negative, then of the positive muon, as measured
//! ```

use std::io::{self, Write};

use crate::{Truth, floats, integer, malformed};

const MAGIC: &[u8; 8] = b"LBZMUMU1";
const HEADER_BYTES: usize = 32 + Truth::BYTES;
const RECORD_BYTES: usize = 48;

/// Rest mass of a muon.
pub const MUON_MASS: f64 = 0.105_658_4;

/// Momenta of the two muons of an event: px, py, pz each.
pub type Event = [[f64; 3]; 2];

/// A whole file.
#[derive(Clone, Debug, PartialEq)]
pub struct EventFile {
    /// What was put in.
    pub truth: Truth,
    /// How many decays were generated to get these.
    pub generated: u64,
    /// Where the random numbers began.
    pub seed: u64,
    /// What the detector saw.
    pub events: Vec<Event>,
}

impl EventFile {
    /// Writes header and records.
    ///
    /// # Errors
    /// Whatever the writer answers.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(MAGIC)?;
        for count in [self.events.len() as u64, self.generated, self.seed] {
            to.write_all(&count.to_le_bytes())?;
        }
        to.write_all(&self.truth.to_bytes())?;
        for value in self.events.iter().flatten().flatten() {
            to.write_all(&value.to_le_bytes())?;
        }
        to.flush()
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// `InvalidData` when it is no such file, is cut short or has bytes left over.
    pub fn read(bytes: &[u8]) -> io::Result<Self> {
        if !bytes.starts_with(MAGIC) || bytes.len() < HEADER_BYTES {
            return Err(malformed("it is no event file"));
        }
        let (header, records) = bytes.split_at(HEADER_BYTES);
        let count = integer(header, 8)?;
        if count.checked_mul(RECORD_BYTES as u64) != Some(records.len() as u64) {
            return Err(malformed("its length does not fit its number of events"));
        }
        let events = records
            .chunks_exact(RECORD_BYTES)
            .map(|record| floats(record).map(|[a, b, c, d, e, f]| [[a, b, c], [d, e, f]]))
            .collect::<io::Result<_>>()?;
        let truth = Truth::from_bytes(&header[32..])?;
        Ok(Self { truth, generated: integer(header, 16)?, seed: integer(header, 24)?, events })
    }
}

/// Invariant mass of two muons.
#[must_use]
pub fn invariant_mass(event: &Event) -> f64 {
    let energy: f64 = event.iter().map(|p| (MUON_MASS * MUON_MASS + square(p)).sqrt()).sum();
    let total = [0, 1, 2].map(|axis| event[0][axis] + event[1][axis]);
    (energy * energy - square(&total)).max(0.0).sqrt()
}

fn square(p: &[f64; 3]) -> f64 {
    p.iter().map(|x| x * x).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> EventFile {
        let events = vec![[[1.0, 2.0, 3.0], [-4.0, 5.5, -6.0]]; 3];
        EventFile { truth: Truth::Z, generated: 5, seed: 7, events }
    }

    #[test]
    fn a_file_reads_back_as_it_was_written() {
        let mut bytes = Vec::new();
        file().write(&mut bytes).expect("write");
        assert_eq!(bytes.len(), 56 + 3 * 48);
        assert_eq!(EventFile::read(&bytes).expect("read"), file());
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let mut bytes = Vec::new();
        file().write(&mut bytes).expect("write");
        for end in 0..bytes.len() {
            assert!(EventFile::read(&bytes[..end]).is_err(), "cut at {end}");
        }
        bytes[8..16].fill(0xff);
        assert!(EventFile::read(&bytes).is_err(), "an absurd count");
    }

    #[test]
    fn back_to_back_muons_have_the_mass_of_their_energy() {
        let p = (45.0_f64 * 45.0 - MUON_MASS * MUON_MASS).sqrt();
        let mass = invariant_mass(&[[p, 0.0, 0.0], [-p, 0.0, 0.0]]);
        assert!((mass - 90.0).abs() < 1e-9, "{mass}");
    }
}
