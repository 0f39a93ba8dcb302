//! A small physics chain: simulate Z bosons that decay to two muons, measure their masses, fit the peak.
//!
//! ```text
//! simulate x N  --events-->  reconstruct  --masses-->  fit  -->  terminal, SVG, JSON
//! [`generate`]               [`events`]                [`model`] [`fit`] [`chart`] [`plot`]
//! ```
//! The programs are ordinary: they read and write the files named in their arguments and know nothing of Latebind.
//! Units are GeV, with c = 1, throughout.
#![forbid(unsafe_code)]

pub mod args;
pub mod chart;
pub mod events;
pub mod fit;
pub mod generate;
pub mod histogram;
pub mod linear;
pub mod masses;
pub mod model;
pub mod plot;
pub mod report;

use std::io;

/// What was put into the simulation, carried along so that the fit can be judged by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Truth {
    /// Mass of the boson.
    pub mass: f64,
    /// Full width at half maximum of its line.
    pub width: f64,
    /// Relative resolution of a muon's momentum.
    pub resolution: f64,
}

impl Truth {
    /// Mass and width of the Z boson as the Particle Data Group has them, and a plausible tracker.
    pub const Z: Self = Self { mass: 91.1876, width: 2.4952, resolution: 0.015 };

    pub(crate) const BYTES: usize = 24;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (slot, value) in bytes.chunks_exact_mut(8).zip([self.mass, self.width, self.resolution]) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let [mass, width, resolution] = floats(bytes)?;
        let plausible = mass > 0.0 && width > 0.0 && resolution >= 0.0;
        if plausible {
            Ok(Self { mass, width, resolution })
        } else {
            Err(malformed("implausible truth values"))
        }
    }
}

/// `N` little-endian doubles from the beginning of `bytes`.
pub(crate) fn floats<const N: usize>(bytes: &[u8]) -> io::Result<[f64; N]> {
    let mut values = [0.0; N];
    for (index, value) in values.iter_mut().enumerate() {
        let at = index * 8;
        let raw = bytes.get(at..at + 8).and_then(|raw| raw.try_into().ok());
        *value = f64::from_le_bytes(raw.ok_or_else(|| malformed("it ends too early"))?);
        if !value.is_finite() {
            return Err(malformed("a value is not a finite number"));
        }
    }
    Ok(values)
}

/// A little-endian integer at `at`.
pub(crate) fn integer(bytes: &[u8], at: usize) -> io::Result<u64> {
    let raw = bytes.get(at..at + 8).and_then(|raw| raw.try_into().ok());
    Ok(u64::from_le_bytes(raw.ok_or_else(|| malformed("it ends too early"))?))
}

pub(crate) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
