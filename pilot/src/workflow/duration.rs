//! Durations as people write them: `90s`, `5m`, `1h30m`, `1.5h`, `500ms`.
//!
//! Must not know: what is limited.

/// Longest duration: ten years of 365 days, so that no sum of two can overflow anything.
const MS_MAX: u64 = 10 * 365 * 86_400_000;

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DurationError {
    #[error("has no unit; write 90s, 5m, 2h or 1h30m")]
    NoUnit,
    #[error("is not a duration; write 90s, 5m, 2h or 1h30m")]
    Malformed,
    #[error("is not between 1ms and 3650d; write less")]
    Range,
}

/// Units from the longest, as they must follow one another.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Milliseconds. Parts go from long to short, each unit at most once; the number before a unit may have up to three
/// decimals.
pub(crate) fn milliseconds(text: &str) -> Result<u64, DurationError> {
    if text.parse::<f64>().is_ok() {
        return Err(DurationError::NoUnit);
    }
    let mut rest = text;
    let mut total = 0_u64;
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(DurationError::Malformed)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let (_, factor) = units.by_ref().find(|(name, _)| *name == unit).ok_or(DurationError::Malformed)?;
        total = total.checked_add(scaled(number, *factor)?).ok_or(DurationError::Range)?;
        rest = after;
    }
    if total == 0 || total > MS_MAX { Err(DurationError::Range) } else { Ok(total) }
}

fn scaled(number: &str, factor: u64) -> Result<u64, DurationError> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || decimals.is_empty() || decimals.len() > 3 || decimals.contains('.') {
        return Err(DurationError::Malformed);
    }
    let whole: u64 = whole.parse().map_err(|_| DurationError::Range)?;
    let thousandths: u64 = format!("{decimals:0<3}").parse().map_err(|_| DurationError::Malformed)?;
    let whole = whole.checked_mul(factor).ok_or(DurationError::Range)?;
    whole.checked_add(thousandths * factor / 1000).ok_or(DurationError::Range)
}

#[cfg(test)]
mod tests {
    use super::{DurationError, milliseconds};

    #[test]
    fn durations_are_sums_of_parts_from_long_to_short() {
        for (text, ms) in [
            ("90s", 90_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("1d2h3m4s5ms", 93_784_005),
            ("0.001s", 1),
        ] {
            assert_eq!(milliseconds(text), Ok(ms), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_says_why() {
        for (text, why) in [
            ("90", DurationError::NoUnit),
            ("1.5", DurationError::NoUnit),
            ("-5", DurationError::NoUnit),
            ("", DurationError::Range),
            ("0s", DurationError::Range),
            ("4000d", DurationError::Range),
            ("99999999999999999999s", DurationError::Range),
            ("5 m", DurationError::Malformed),
            ("m", DurationError::Malformed),
            ("30m1h", DurationError::Malformed),
            ("1m1m", DurationError::Malformed),
            ("1.s", DurationError::Malformed),
            ("1.2.3s", DurationError::Malformed),
            ("5min", DurationError::Malformed),
            ("-5s", DurationError::Malformed),
            ("∞", DurationError::Malformed),
        ] {
            assert_eq!(milliseconds(text), Err(why), "{text}");
        }
    }
}
