//! When to ask again: `Retry-After`, and waits that double. Pure: the clock is the server's own `Date` header,
//! so a wrong clock here changes nothing.

use std::time::Duration;

/// What `Retry-After` asks for: seconds, or a date that is compared with the answer's own.
pub(crate) fn retry_after(value: &str, date: Option<&str>) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit mean "never", which the caller's limit catches.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let (then, now) = (http_date(value)?, http_date(date?)?);
    Some(Duration::from_secs(then.saturating_sub(now)))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that servers must write.
pub(crate) fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.trim().split_once(", ")?;
    let mut words = rest.split(' ');
    let mut number = |most: u64| words.next().and_then(|w| w.parse::<u64>().ok()).filter(|n| *n <= most);
    let day = number(31)?;
    let month = words.next().and_then(|name| MONTHS.iter().position(|month| *month == name))? as u64 + 1;
    let year = words.next()?.parse::<u64>().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut clock = words.next()?.split(':');
    let mut part = |most: u64| clock.next().and_then(|w| w.parse::<u64>().ok()).filter(|n| *n <= most);
    let (hour, minute, second) = (part(23)?, part(59)?, part(60)?);
    if words.next() != Some("GMT") {
        return None;
    }
    Some(days_from_1970(year, month, day)? * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Days of a Gregorian date since 1970-01-01, counted in years that begin in March.
fn days_from_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    // 719_469 = the same sum for 1970-01-01.
    days.checked_sub(719_469)
}

/// The wait before try number `tried + 1`: doubles from `first` up to `most`; the jitter, 0 to 1, takes up to a
/// quarter off, so that pilots that failed together don't come back together.
pub(crate) fn backoff(tried: u32, first: Duration, most: Duration, jitter: f64) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(tried.min(20)));
    doubled.min(most).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_counted_from_1970() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Tue, 29 Feb 2000 23:59:60 GMT", 951_868_800),
            ("Sat, 21 Nov 2026 09:00:00 GMT", 1_795_251_600),
        ] {
            assert_eq!(http_date(text), Some(seconds), "{text}");
        }
        for text in ["", "tomorrow", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, 32 Nov 1994 08:49:37 GMT"] {
            assert_eq!(http_date(text), None, "{text}");
        }
    }

    #[test]
    fn both_forms_of_retry_after_are_understood() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (value, date, seconds) in [
            ("0", None, Some(0)),
            (" 120 ", None, Some(120)),
            ("99999999999999999999", None, Some(u64::from(u32::MAX))),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(date), Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(date), Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", None, None),
            ("-1", None, None),
            ("", None, None),
        ] {
            assert_eq!(retry_after(value, date), seconds.map(Duration::from_secs), "{value:?}");
        }
    }

    #[test]
    fn waits_double_up_to_their_limit() {
        let (first, most) = (Duration::from_millis(500), Duration::from_secs(30));
        let waits: Vec<u128> = (0..8).map(|n| backoff(n, first, most, 0.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(backoff(0, first, most, 1.0).as_millis(), 375);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(value in "\\PC{0,40}", date in "\\PC{0,40}") {
            let _ = retry_after(&value, Some(&date));
        }

        #[test]
        fn a_date_that_is_read_ascends_with_its_parts(day in 1_u64..28, hour in 0_u64..23) {
            let text = |day, hour| format!("Mon, {day:02} Mar 2027 {hour:02}:00:00 GMT");
            let (one, next) = (http_date(&text(day, hour)).unwrap(), http_date(&text(day + 1, hour)).unwrap());
            prop_assert_eq!(next - one, 86_400);
            prop_assert_eq!(http_date(&text(day, hour + 1)).unwrap() - one, 3600);
        }
    }
}
