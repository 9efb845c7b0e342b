//! Parses timestamps as apps write them. In: a JSON value. Out: nanoseconds since the epoch, or nothing if it cannot be a time of
//! this century: the value then stays unchanged. Integers stay exact; their size determines their unit.

/// 2000-01-01 and 2100-01-01 in seconds.
const CENTURY: std::ops::Range<i64> = 946_684_800..4_102_444_800;
const SECOND: i64 = 1_000_000_000;

/// RFC 3339 text, or a number of seconds, milliseconds, microseconds or nanoseconds.
pub fn read(json: &str) -> Option<i64> {
    let time_ns = match json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(text) => rfc3339(text)?,
        None => number(json)?,
    };
    CENTURY.contains(&time_ns.div_euclid(SECOND)).then_some(time_ns)
}

/// Digits with an optional fraction, parsed without floating point.
fn number(json: &str) -> Option<i64> {
    let (whole, fraction) = json.split_once('.').unwrap_or((json, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        // An exponent is rare, and such a number is no more exact than written.
        let seconds: f64 = json.parse().ok().filter(|_| json.contains(['e', 'E']))?;
        return (seconds.abs() < 9e9).then_some((seconds * SECOND as f64) as i64);
    }
    let whole: i64 = whole.parse().ok()?;
    let unit = [SECOND, 1_000_000, 1_000, 1].into_iter().find(|unit| CENTURY.contains(&(whole / (SECOND / unit))))?;
    // Digits of the fraction below a nanosecond are ignored.
    let part = fraction.bytes().fold((0, unit), |(sum, weight), digit| {
        let weight = weight / 10;
        (sum + i64::from(digit - b'0') * weight, weight)
    });
    Some(whole * unit + part.0)
}

/// RFC 3339, 5.6, with any number of fraction digits.
fn rfc3339(text: &str) -> Option<i64> {
    // Date and time of day have a fixed length; a fraction and a zone follow.
    let (time, rest) = text.split_at_checked(19)?;
    let digits = rest.strip_prefix('.').map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    let (fraction, zone) = rest.split_at_checked(if digits > 0 { digits + 1 } else { 0 })?;
    // time-hour is 00 to 23, also in a zone.
    let hours = zone.strip_prefix(['+', '-']).map(|zone| zone.get(..2)?.parse::<u8>().ok());
    if hours.is_some_and(|hours| hours.is_none_or(|hours| hours > 23)) {
        return None;
    }
    let fraction = fraction.get(..fraction.len().min(10))?;
    let time: jiff::Timestamp = format!("{time}{fraction}{zone}").parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_exact_or_rejected() {
        let second = 1_715_940_303;
        for (json, expect) in [
            ("1715940303", Some(second * SECOND)),
            ("1715940303123", Some(second * SECOND + 123_000_000)),
            ("1715940303123456", Some(second * SECOND + 123_456_000)),
            ("1715940303123456789", Some(second * SECOND + 123_456_789)),
            ("1715940303.123", Some(second * SECOND + 123_000_000)),
            ("1715940303123.25", Some(second * SECOND + 123_250_000)),
            ("1715940303.1234567894444", Some(second * SECOND + 123_456_789)),
            ("1.715940303e9", Some(second * SECOND)),
            ("0.123", None),
            ("42", None),
            ("-1715940303", None),
            ("99999999999999999999999", None),
            ("true", None),
            ("\"2024-05-17T10:05:03Z\"", Some(second * SECOND)),
            ("\"2024-05-17 12:05:03+02:00\"", Some(second * SECOND)),
            ("\"2024-05-17T12:05:03.123456789012345+02:00\"", Some(second * SECOND + 123_456_789)),
            ("\"2024-05-17T10:05:03.1Z\"", Some(second * SECOND + 100_000_000)),
            ("\"2024-05-17T12:05:03+25:00\"", None),
            ("\"2024-05-17T12:05:03.5+25:00\"", None),
            ("\"2024-05-17T12:05:03\"", None),
            ("\"0001-01-01T00:00:00Z\"", None),
            ("\"noon\"", None),
            ("\"é.é\"", None),
        ] {
            assert_eq!(read(json), expect, "{json}");
        }
    }
}
