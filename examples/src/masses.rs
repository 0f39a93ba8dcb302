//! The file that `reconstruct` writes.
//!
//! All numbers are little endian.
//! ```text
//!  0  8 bytes  "LBMASSES"
//!  8  u64      number of masses
//! 16  3 x f64  generated mass, width; relative momentum resolution
//! 40  f64 ...  invariant masses
//! ```

use std::io::{self, Write};

use crate::{Truth, floats, integer, malformed};

const MAGIC: &[u8; 8] = b"LBMASSES";
const HEADER_BYTES: usize = 16 + Truth::BYTES;

/// A whole file.
#[derive(Clone, Debug, PartialEq)]
pub struct MassFile {
    /// What was put into the simulation.
    pub truth: Truth,
    /// Invariant mass of each event.
    pub masses: Vec<f64>,
}

impl MassFile {
    /// Writes header and masses.
    ///
    /// # Errors
    /// Whatever the writer answers.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(MAGIC)?;
        to.write_all(&(self.masses.len() as u64).to_le_bytes())?;
        to.write_all(&self.truth.to_bytes())?;
        for mass in &self.masses {
            to.write_all(&mass.to_le_bytes())?;
        }
        to.flush()
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// `InvalidData` when it is no such file, is cut short or has bytes left over.
    pub fn read(bytes: &[u8]) -> io::Result<Self> {
        if !bytes.starts_with(MAGIC) || bytes.len() < HEADER_BYTES {
            return Err(malformed("it is no mass file"));
        }
        let (header, masses) = bytes.split_at(HEADER_BYTES);
        if integer(header, 8)?.checked_mul(8) != Some(masses.len() as u64) {
            return Err(malformed("its length does not fit its number of masses"));
        }
        let masses =
            masses.chunks_exact(8).map(|raw| floats(raw).map(|[mass]| mass)).collect::<io::Result<_>>()?;
        Ok(Self { truth: Truth::from_bytes(&header[16..])?, masses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_back_as_it_was_written_and_not_when_it_is_cut() {
        let file = MassFile { truth: Truth::Z, masses: vec![91.0, 90.5] };
        let mut bytes = Vec::new();
        file.write(&mut bytes).expect("write");
        assert_eq!(MassFile::read(&bytes).expect("read"), file);
        for end in 0..bytes.len() {
            assert!(MassFile::read(&bytes[..end]).is_err(), "cut at {end}");
        }
    }
}
