//! `--name value` arguments, as few as these programs need.

use std::collections::BTreeMap;
use std::str::FromStr;

/// Parsed arguments.
#[derive(Debug, Default)]
pub struct Args(BTreeMap<String, String>);

impl Args {
    /// Reads `--name value` pairs and refuses names that are not in `known`.
    ///
    /// # Errors
    /// A line for the user.
    pub fn parse(words: impl Iterator<Item = String>, known: &[&str]) -> Result<Self, String> {
        let mut words = words;
        let mut values = BTreeMap::new();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--").filter(|name| known.contains(name)) else {
                return Err(format!("unknown argument {word:?}; known: --{}", known.join(" --")));
            };
            let value = words.next().ok_or_else(|| format!("--{name} needs a value"))?;
            values.insert(name.to_owned(), value);
        }
        Ok(Self(values))
    }

    /// The value of `--name`, or `default`.
    #[must_use]
    pub fn text(&self, name: &str, default: &str) -> String {
        self.0.get(name).map_or(default, String::as_str).to_owned()
    }

    /// The value of `--name` as a number, or `default`.
    ///
    /// # Errors
    /// A line for the user when it is no such number.
    pub fn number<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        let Some(text) = self.0.get(name) else { return Ok(default) };
        text.parse().map_err(|_| format!("--{name} {text:?} is not a number that fits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, String> {
        Args::parse(words.iter().map(|word| (*word).to_owned()), &["events", "out"])
    }

    #[test]
    fn names_have_values_and_defaults() {
        let args = parse(&["--events", "7"]).expect("good");
        assert_eq!(args.number("events", 1_u64), Ok(7));
        assert_eq!(args.text("out", "here"), "here");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        assert!(parse(&["--event", "7"]).expect_err("unknown").contains("--events"));
        assert!(parse(&["--out"]).expect_err("no value").contains("--out"));
        let args = parse(&["--events", "-1"]).expect("good");
        assert!(args.number("events", 1_u64).expect_err("negative").contains("-1"));
    }
}
