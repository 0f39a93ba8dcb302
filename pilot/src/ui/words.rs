//! Figures and foreign text as a person reads them.
//!
//! Must not know: where they are shown.

use std::borrow::Cow;

/// A size with three digits that matter: `512 B`, `1.50 KiB`, `27.3 MiB`, `980 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // 999.5 would be shown as four digits; the next unit shows it as 0.98.
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// A duration: `7 ms`, `1.25 s`, `42.0 s`, `3m 05s`, `2h 07m`, `3d 04h`.
pub fn duration(ms: u64) -> String {
    let seconds = (ms + 500) / 1000;
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..10_000 => format!("{:.2} s", ms as f64 / 1000.0),
        10_000..59_950 => format!("{:.1} s", ms as f64 / 1000.0),
        59_950..3_599_500 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3_599_500..86_370_000 => {
            let minutes = (ms + 30_000) / 60_000;
            format!("{}h {:02}m", minutes / 60, minutes % 60)
        }
        _ => {
            let hours = (ms / 60_000 + 30) / 60;
            format!("{}d {:02}h", hours / 24, hours % 24)
        }
    }
}

/// Time since the start, for live lines and prefixes: whole seconds below a minute.
pub(crate) fn elapsed(ms: u64) -> String {
    if ms < 60_000 { format!("{} s", ms / 1000) } else { duration(ms / 1000 * 1000) }
}

fn three_digits(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Foreign text that can't move the cursor, change colours or retitle the terminal: control characters are shown as
/// escapes, except tabs.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| c == '\t' || !c.is_control();
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if harmless(c) { c.to_string() } else { c.escape_default().to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

/// At most `columns` characters; what is cut is marked.
pub(crate) fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    if text.chars().count() <= columns {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().take(columns.saturating_sub(1)).chain(['…']).take(columns).collect())
}

#[cfg(test)]
mod tests {
    use super::{bytes, cut, duration, elapsed, printable};

    #[test]
    fn sizes_have_three_digits() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (28_626_124, "27.3 MiB"),
            (1_048_063, "1.00 MiB"),
            (1 << 30, "1.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn durations_grow_coarser() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1250, "1.25 s"),
            (42_040, "42.0 s"),
            (59_949, "59.9 s"),
            (59_950, "1m 00s"),
            (185_000, "3m 05s"),
            (3_599_499, "59m 59s"),
            (3_599_500, "1h 00m"),
            (7_620_000, "2h 07m"),
            (86_369_999, "23h 59m"),
            (86_370_000, "1d 00h"),
            (273_600_000, "3d 04h"),
        ] {
            assert_eq!(duration(ms), text);
        }
        assert_eq!((elapsed(1999), elapsed(61_999)), ("1 s".to_owned(), "1m 01s".to_owned()));
    }

    #[test]
    fn foreign_text_can_not_steer_the_terminal() {
        assert_eq!(printable("plain\ttext é"), "plain\ttext é");
        assert_eq!(printable("\u{1b}[2J\r\n\u{9b}x"), "\\u{1b}[2J\\r\\n\\u{9b}x");
    }

    #[test]
    fn long_text_is_cut_with_a_mark() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abcdef", 0), "");
    }
}
