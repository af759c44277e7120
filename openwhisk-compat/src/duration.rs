//! Durations of the configuration: HOCON's forms (contract 1.3).

use std::time::Duration;

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration, expected a number and a unit such as `10 minutes`, `50 ms` or `1m`")]
pub struct DurationError(String);

/// Reads `10 minutes`, `50 ms`, `1m`, `0.5 s`; a number without a unit is milliseconds.
///
/// # Errors
/// When `text` has another form, is negative, or is longer than a century (which no setting means).
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    read(text.trim()).ok_or_else(|| DurationError(text.chars().take(80).collect()))
}

fn read(text: &str) -> Option<Duration> {
    const LONGEST_NANOS: u128 = 100 * 366 * 86_400 * 1_000_000_000;
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit_nanos(unit.trim_start())?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // Nine decimals of a day are still below a millisecond; more than 18 digits mean nothing sensible.
    if whole.is_empty() || fraction.is_empty() || whole.len() > 18 || fraction.len() > 18 {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let number = whole.parse::<u128>().ok()? * scale + fraction.parse::<u128>().ok()?;
    let nanos = number.checked_mul(unit)? / scale;
    if nanos > LONGEST_NANOS {
        return None;
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    Some(Duration::new(seconds, u32::try_from(nanos % 1_000_000_000).ok()?))
}

fn unit_nanos(unit: &str) -> Option<u128> {
    const SECOND: u128 = 1_000_000_000;
    Some(match unit {
        "ns" | "nano" | "nanos" | "nanosecond" | "nanoseconds" => 1,
        "us" | "µs" | "micro" | "micros" | "microsecond" | "microseconds" => 1_000,
        "" | "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1_000_000,
        "s" | "second" | "seconds" => SECOND,
        "m" | "minute" | "minutes" => 60 * SECOND,
        "h" | "hour" | "hours" => 3_600 * SECOND,
        "d" | "day" | "days" => 86_400 * SECOND,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms() {
        for (text, millis) in [
            ("10 minutes", 600_000),
            ("50 ms", 50),
            ("1m", 60_000),
            ("2 minutes", 120_000),
            ("60 s", 60_000),
            ("1 hour", 3_600_000),
            ("1d", 86_400_000),
            ("1500", 1500),
            ("0.5 s", 500),
            (" 0 s ", 0),
            ("2000 micros", 2),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "m", "-1 s", "1 fortnight", "1 M", "1,5 s", "1..5 s", "99999999999 d", "infinite"] {
            assert_eq!(parse(text), Err(DurationError(text.to_owned())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}|[0-9]{0,30}[.]?[0-9]{0,30} ?[a-zµ]{0,12}") {
            let _ = parse(&text);
        }
    }
}
