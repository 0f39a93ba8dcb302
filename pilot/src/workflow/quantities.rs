//! Texts that stand for numbers, with a complaint when they don't.
//!
//! Must not know: whose numbers they are.

use wire::slot::GRACE_MS_MAX;

use super::duration;
use super::located::{Located, Text};
use super::problem::{Complaints, shortened};
use crate::units::{Bytes, MilliCpu};

/// Most processors of one payload, in thousandths; the largest machines have a few thousand.
const CPU_MILLICORES_MAX: u64 = 65_536_000;
/// Most bytes of anything: an EiB, so that sums stay far from overflow.
const BYTES_MAX: u64 = 1 << 60;

/// Thousandths of a processor, at least 1.
pub(super) fn millicores(text: &Located<Text>, complaints: &mut Complaints) -> Option<u64> {
    match text.parse::<MilliCpu>() {
        Ok(MilliCpu(value @ 1..=CPU_MILLICORES_MAX)) => return Some(value),
        Ok(_) => complaints.add(
            text.at,
            format!("cpu {:?} is not between 1m and 65536; write 2, 0.5 or 500m", text.as_str()),
        ),
        Err(_) => complaints.add(
            text.at,
            format!("cpu {:?} is no number of processors; write 2, 0.5 or 500m", shortened(text)),
        ),
    }
    None
}

/// Bytes, at least 1.
pub(super) fn bytes(what: &str, text: &Located<Text>, complaints: &mut Complaints) -> Option<u64> {
    match text.parse::<Bytes>() {
        Ok(Bytes(value @ 1..=BYTES_MAX)) => return Some(value),
        Ok(_) => complaints.add(
            text.at,
            format!("{what} {:?} is not between 1 byte and 1Ei; write 512Mi or 1G", text.as_str()),
        ),
        Err(_) => {
            let advice = "write bytes, or a number with Ki, Mi, Gi, Ti, k, M, G or T";
            complaints.add(text.at, format!("{what} {:?} is no size; {advice}", shortened(text)));
        }
    }
    None
}

/// Milliseconds, at least 1.
pub(super) fn milliseconds(what: &str, text: &Located<Text>, complaints: &mut Complaints) -> Option<u64> {
    duration::milliseconds(text)
        .map_err(|error| complaints.add(text.at, format!("{what} {:?} {error}", shortened(text))))
        .ok()
}

/// Milliseconds between SIGTERM and SIGKILL.
pub(super) fn grace_ms(text: &Located<Text>, complaints: &mut Complaints) -> Option<u32> {
    // "0s" is a wish that a duration otherwise can't be: kill at once.
    if text.as_str() == "0s" {
        return Some(0);
    }
    let ms = milliseconds("grace", text, complaints)?;
    match u32::try_from(ms) {
        Ok(ms) if ms <= GRACE_MS_MAX => Some(ms),
        _ => {
            complaints.add(text.at, format!("grace {:?} is longer than a day; write less", shortened(text)));
            None
        }
    }
}
