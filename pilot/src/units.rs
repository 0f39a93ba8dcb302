//! Quantities as people write them: bytes and processors.
//!
//! The spellings are those of Kubernetes quantities, so that one workflow file serves both backends:
//! `512Mi` and `1G` for memory, `2`, `0.5` and `500m` for processors.

use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// A number of bytes, such as `64Mi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Thousandths of a processor, such as `500m` or `2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MilliCpu(pub u64);

/// A length of time in milliseconds, such as `90s`, `7d` or `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// Text that is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct NotAQuantity {
    text: String,
    what: &'static str,
}

const BYTES: &str = "a size: write bytes, or a number with Ki, Mi, Gi, Ti, k, M, G or T";
const TIME: &str = "a time: write 90s, 5m, 2h, 7d or 1h30m";
const CPU: &str = "a number of processors: write 2, 0.5 or 500m";

impl FromStr for Bytes {
    type Err = NotAQuantity;

    fn from_str(text: &str) -> Result<Self, NotAQuantity> {
        let wrong = || NotAQuantity { text: text.to_owned(), what: BYTES };
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit {
            "" => 1,
            "k" => 1000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(wrong()),
        };
        scaled(number, factor).map(Bytes).ok_or_else(wrong)
    }
}

impl FromStr for MilliCpu {
    type Err = NotAQuantity;

    fn from_str(text: &str) -> Result<Self, NotAQuantity> {
        let wrong = || NotAQuantity { text: text.to_owned(), what: CPU };
        match text.strip_suffix('m') {
            Some(millis) => millis.parse().map(MilliCpu).map_err(|_| wrong()),
            None => scaled(text, 1000).map(MilliCpu).ok_or_else(wrong),
        }
    }
}

impl FromStr for Millis {
    type Err = NotAQuantity;

    fn from_str(text: &str) -> Result<Self, NotAQuantity> {
        // The workflow file has no use for a time of nothing; whoever only wants to look has.
        if matches!(text, "0" | "0s") {
            return Ok(Self(0));
        }
        let wrong = |_| NotAQuantity { text: text.to_owned(), what: TIME };
        crate::workflow::duration::milliseconds(text).map(Self).map_err(wrong)
    }
}

/// `number` times `factor`, exact for whole numbers; a decimal fraction is cut to whole units.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = if whole.is_empty() && !fraction.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    if fraction.len() > 9 {
        return None;
    }
    let parts = if fraction.is_empty() { 0 } else { fraction.parse::<u64>().ok()? };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let extra = u128::from(parts) * u128::from(factor) / scale;
    u64::try_from(u128::from(whole) * u128::from(factor) + extra).ok()
}

/// A scalar that YAML may have read as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Whole(u64),
    Decimal(f64),
    Text(String),
}

impl Scalar {
    fn text(self) -> String {
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Decimal(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Scalar::deserialize(deserializer)?.text().parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for MilliCpu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Scalar::deserialize(deserializer)?.text().parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, MilliCpu, Millis};

    #[test]
    fn times_are_those_of_the_workflow_file_and_nothing() {
        let time = |text: &str| text.parse::<Millis>().ok().map(|time| time.0);
        assert_eq!(time("1h30m"), Some(5_400_000));
        assert_eq!(time("0"), Some(0));
        assert_eq!(time("7"), None);
    }

    #[test]
    fn sizes_and_processors_are_read_as_kubernetes_reads_them() {
        let bytes = |text: &str| text.parse::<Bytes>().ok().map(|b| b.0);
        assert_eq!(bytes("64Mi"), Some(64 << 20));
        assert_eq!(bytes("1.5k"), Some(1500));
        assert_eq!(bytes("0"), Some(0));
        for wrong in ["", "Mi", "1X", "-1", "1e9", "99999999999Ti", "1.2.3", "0x10", " 1"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
        let cpu = |text: &str| text.parse::<MilliCpu>().ok().map(|c| c.0);
        assert_eq!(cpu("2"), Some(2000));
        assert_eq!(cpu("0.25"), Some(250));
        assert_eq!(cpu("500m"), Some(500));
        assert_eq!(cpu("m"), None);
    }
}
