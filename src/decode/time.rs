//! Event times as feeds write them.

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use serde_json::Value;

use crate::record::Timestamp;

/// 9999-12-31T23:59:59.999999Z, microseconds.
const MAX_US: i64 = 253_402_300_799_999_999;

/// Why a value is no event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Neither form is recognised.
    #[error("expected RFC 3339 (2024-05-01T12:00:00Z) or seconds, milliseconds or microseconds since 1970")]
    Form,
    /// A time that no post has.
    #[error("the time is before 1970 or after 9999")]
    Range,
}

/// Reads a number or a string.
pub(super) fn parse(value: &Value) -> Result<Timestamp, TimeError> {
    match value {
        Value::Number(n) => match n.as_i64() {
            Some(i) => epoch(i),
            None => epoch_fraction(n.as_f64().ok_or(TimeError::Form)?),
        },
        Value::String(s) => parse_text(s),
        _ => Err(TimeError::Form),
    }
}

/// Reads RFC 3339 and its usual variations (a space for the `T`, no zone: UTC, a date alone), Twitter's
/// `Wed Oct 10 20:19:24 +0000 2018`, RFC 2822, or digits since the epoch.
///
/// # Errors
/// [`TimeError::Form`] for anything else, [`TimeError::Range`] outside 1970 to 9999.
pub fn parse_text(s: &str) -> Result<Timestamp, TimeError> {
    let s = s.trim();
    if s.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+') {
        if let Ok(i) = s.parse::<i64>() {
            return epoch(i);
        }
        if !s.contains([':', 'e', 'E'])
            && let Ok(x) = s.parse::<f64>()
        {
            return epoch_fraction(x);
        }
    }
    if let Ok(t) = DateTime::parse_from_rfc3339(s) {
        return in_range(Timestamp(t.timestamp_micros()));
    }
    let zoned = ["%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z", "%a %b %d %H:%M:%S %z %Y"];
    let zoned = zoned.iter().find_map(|f| DateTime::parse_from_str(s, f).ok());
    if let Some(t) = zoned.or_else(|| DateTime::parse_from_rfc2822(s).ok()) {
        return in_range(Timestamp(t.timestamp_micros()));
    }
    let bare = s.strip_suffix("UTC").or_else(|| s.strip_suffix('Z')).unwrap_or(s).trim_end();
    let local = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"]
        .iter()
        .find_map(|f| NaiveDateTime::parse_from_str(bare, f).ok())
        .or_else(|| NaiveDate::parse_from_str(bare, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0));
    local.map_or(Err(TimeError::Form), |t| in_range(Timestamp(t.and_utc().timestamp_micros())))
}

/// The unit of an integer is told by its size: below 10^11 seconds (to the year 5138), below 10^14
/// milliseconds (from 1973), below 10^17 microseconds, else nanoseconds.
fn epoch(n: i64) -> Result<Timestamp, TimeError> {
    let micros = match n {
        i64::MIN..0 => return Err(TimeError::Range),
        0..100_000_000_000 => n * 1_000_000,
        100_000_000_000..100_000_000_000_000 => n * 1_000,
        100_000_000_000_000..100_000_000_000_000_000 => n,
        _ => n / 1_000,
    };
    in_range(Timestamp(micros))
}

/// A number with a fraction: seconds or milliseconds by the same rule, exact to the microsecond.
fn epoch_fraction(x: f64) -> Result<Timestamp, TimeError> {
    if !x.is_finite() {
        return Err(TimeError::Form);
    }
    if !(0.0..9.2e18).contains(&x) {
        return Err(TimeError::Range);
    }
    let factor = match x {
        x if x < 1e11 => 1e6,
        x if x < 1e14 => 1e3,
        x if x < 1e17 => 1.0,
        _ => 1e-3,
    };
    in_range(Timestamp((x * factor).round() as i64))
}

/// Refuses times that no post has.
pub(super) fn in_range(t: Timestamp) -> Result<Timestamp, TimeError> {
    if (0..=MAX_US).contains(&t.0) { Ok(t) } else { Err(TimeError::Range) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn every_form_of_one_instant_is_the_same_time() {
        for v in [
            json!("2018-10-10T20:19:24Z"),
            json!("2018-10-10T22:19:24.000+02:00"),
            json!("2018-10-10T22:19:24+0200"),
            json!("2018-10-10 20:19:24+00"),
            json!("2018-10-10 20:19:24"),
            json!(" 2018-10-10 20:19:24 UTC "),
            json!("2018-10-10T20:19:24"),
            json!("Wed Oct 10 20:19:24 +0000 2018"),
            json!("Wed, 10 Oct 2018 20:19:24 GMT"),
            json!(1_539_202_764),
            json!("1539202764"),
            json!(1_539_202_764.0),
            json!("1539202764.0"),
            json!(1_539_202_764_000_i64),
            json!("1539202764000"),
            json!(1_539_202_764_000_000_i64),
            json!(1_539_202_764_000_000_000_i64),
        ] {
            assert_eq!(parse(&v), Ok(Timestamp(1_539_202_764_000_000)), "{v}");
        }
    }

    #[test]
    fn fractions_are_kept_to_the_microsecond() {
        assert_eq!(parse(&json!(1_539_202_764.123_456)), Ok(Timestamp(1_539_202_764_123_456)));
        assert_eq!(parse(&json!("2018-10-10T20:19:24.1234567Z")), Ok(Timestamp(1_539_202_764_123_456)));
        assert_eq!(parse(&json!("2018-10-10")), Ok(Timestamp(1_539_129_600_000_000)));
        assert_eq!(parse(&json!(0)), Ok(Timestamp(0)));
    }

    #[test]
    fn other_times_are_refused() {
        for v in [
            json!(-1),
            json!(-1.5),
            json!("1969-12-31T23:59:59Z"),
            json!("0001-01-01T00:00:00Z"),
            json!("-5"),
        ] {
            assert_eq!(parse(&v), Err(TimeError::Range), "{v}");
        }
        for v in [
            json!("yesterday"),
            json!(""),
            json!(true),
            json!([1]),
            json!("2018-13-01"),
            json!("1e9"),
            json!("+010000-01-01T00:00:00Z"),
        ] {
            assert!(parse(&v).is_err(), "{v}");
        }
        assert!(parse(&json!(9e300)).is_err());
        assert!(parse(&json!(u64::MAX)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn what_we_write_we_read(us in 0..=MAX_US) {
            let t = Timestamp(us);
            proptest::prop_assert_eq!(parse_text(&t.to_string()), Ok(t));
        }

        #[test]
        fn any_text_is_read_or_refused(s in "\\PC{0,40}|[0-9T:+. -]{0,30}") {
            if let Ok(t) = parse_text(&s) {
                proptest::prop_assert!((0..=MAX_US).contains(&t.0));
            }
        }
    }
}
