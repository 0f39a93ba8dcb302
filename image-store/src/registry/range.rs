//! `Content-Range` of an answer to a request for the rest of a blob. Pure.

/// `bytes FIRST-LAST/TOTAL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContentRange {
    first: u64,
    last: u64,
    /// `None` for `*`.
    total: Option<u64>,
}

impl ContentRange {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten()
        };
        let total = if total == "*" { None } else { Some(number(total)?) };
        let (first, last) = (number(first)?, number(last)?);
        (first <= last && total.is_none_or(|total| last < total)).then_some(Self { first, last, total })
    }

    /// Whether this is what is missing of a blob of `size` bytes behind the first `have`.
    pub(crate) fn is_rest(self, have: u64, size: u64) -> bool {
        self.first == have
            && self.last.checked_add(1) == Some(size)
            && self.total.is_none_or(|total| total == size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_rest_that_was_asked_for_is_the_rest() {
        for (text, rest) in [
            ("bytes 10-99/100", true),
            ("bytes 10-99/*", true),
            ("bytes 0-99/100", false),
            ("bytes 10-98/100", false),
            ("bytes 10-99/101", false),
            ("bytes 11-99/100", false),
        ] {
            assert_eq!(ContentRange::parse(text).unwrap().is_rest(10, 100), rest, "{text}");
        }
        for text in
            ["", "bytes */100", "bytes 10-9/100", "bytes 10-100/100", "items 10-99/100", "bytes +1-2/3"]
        {
            assert_eq!(ContentRange::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(bytes )?[0-9*/ -]{0,50}") {
            if let Some(range) = ContentRange::parse(&text) {
                prop_assert!(range.first <= range.last);
                let _ = range.is_rest(range.first, u64::MAX);
            }
        }
    }
}
