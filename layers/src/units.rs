//! Durations and sizes as an operator writes them: `"30s"`, `"64KiB"`.
//!
//! A duration is a decimal number and one of `ns`, `us`, `ms`, `s`, `m`, `h`, `d`; several may follow each other,
//! largest first by habit (`"1h30m"`). A size is a decimal number and one of `B`, `KiB`, `MiB`, `GiB` (powers of
//! 1024) or `KB`, `MB`, `GB` (powers of 1000). A bare number is refused: a value without unit is a guess.

use std::{fmt, time::Duration};

/// A text that is no duration or no size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidUnit {
    text: String,
    wanted: &'static str,
}

impl fmt::Display for InvalidUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not {}", self.text, self.wanted)
    }
}

impl std::error::Error for InvalidUnit {}

const DURATION: &str =
    "a duration; write a number with a unit, such as \"250ms\", \"30s\" or \"1h30m\"";
const SIZE: &str =
    "a size; write a whole number with a unit, such as \"512B\", \"64KiB\" or \"2MiB\"";

/// Nanoseconds per unit, in the order in which [`format_duration`] tries them.
const TIME_UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Bytes per unit; the powers of 1024 come first because [`format_size`] uses only them.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

/// Reads a duration such as `"30s"`, `"1.5s"` or `"1h30m"`.
///
/// # Errors
/// [`InvalidUnit`] if a unit is missing or unknown, or the value does not fit a [`Duration`].
pub fn parse_duration(text: &str) -> Result<Duration, InvalidUnit> {
    let invalid = || InvalidUnit { text: text.to_owned(), wanted: DURATION };
    let mut rest = text.trim();
    let mut nanos = 0u128;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let scale = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?.1;
        nanos = scaled(number, scale).and_then(|n| nanos.checked_add(n)).ok_or_else(invalid)?;
        rest = tail;
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).map_err(|_| invalid())?;
    let below = u32::try_from(nanos % 1_000_000_000).map_err(|_| invalid())?;
    Ok(Duration::new(seconds, below))
}

/// `number` (decimal, perhaps with a fraction of at most nine digits) times `scale`, rounded down.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?;
    let parts = fraction.parse::<u64>().ok()?;
    let divisor = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    u128::from(whole)
        .checked_mul(scale)?
        .checked_add(u128::from(parts).checked_mul(scale)? / divisor)
}

/// Reads a size in bytes such as `"64KiB"`.
///
/// # Errors
/// [`InvalidUnit`] if the unit is missing or unknown, or the value does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64, InvalidUnit> {
    let invalid = || InvalidUnit { text: text.to_owned(), wanted: SIZE };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
    let (number, unit) = trimmed.split_at(digits);
    let scale =
        SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(invalid)?.1;
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).ok_or_else(invalid)
}

/// Writes a duration so that [`parse_duration`] reads the same value back, in one unit: `"1500ms"`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    TIME_UNITS
        .iter()
        .find(|(_, scale)| nanos.is_multiple_of(*scale))
        .map_or_else(String::new, |(unit, scale)| format!("{}{unit}", nanos / scale))
}

/// Writes a size so that [`parse_size`] reads the same value back: `"64KiB"`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    if bytes == 0 {
        return "0B".to_owned();
    }
    SIZE_UNITS
        .iter()
        .find(|(_, scale)| bytes.is_multiple_of(*scale))
        .map_or_else(String::new, |(unit, scale)| format!("{}{unit}", bytes / scale))
}

/// For `#[serde(with = "…")]` on a [`Duration`].
#[cfg(feature = "serde")]
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Reads `"30s"`.
    ///
    /// # Errors
    /// When the text is no duration, see [`super::parse_duration`].
    pub fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<Duration, D::Error> {
        super::parse_duration(&String::deserialize(source)?).map_err(D::Error::custom)
    }

    /// Writes `"30s"`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Duration, sink: S) -> Result<S::Ok, S::Error> {
        sink.serialize_str(&super::format_duration(*value))
    }
}

/// For `#[serde(with = "…")]` on an `Option<Duration>`; the text `"off"` is `None`.
#[cfg(feature = "serde")]
pub mod duration_or_off {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Reads `"30s"` or `"off"`.
    ///
    /// # Errors
    /// When the text is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(source)?;
        if text == "off" {
            return Ok(None);
        }
        super::parse_duration(&text).map(Some).map_err(D::Error::custom)
    }

    /// Writes `"30s"` or `"off"`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Option<Duration>, sink: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::duration::serialize(value, sink),
            None => sink.serialize_str("off"),
        }
    }
}

/// For `#[serde(with = "…")]` on a size in bytes, of any integer type that 64 bits convert to.
#[cfg(feature = "serde")]
pub mod size {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Reads `"64KiB"`.
    ///
    /// # Errors
    /// When the text is no size, see [`super::parse_size`], or does not fit the field.
    pub fn deserialize<'de, D: Deserializer<'de>, N: TryFrom<u64>>(
        source: D,
    ) -> Result<N, D::Error> {
        let text = String::deserialize(source)?;
        let bytes = super::parse_size(&text).map_err(D::Error::custom)?;
        N::try_from(bytes).map_err(|_| D::Error::custom(format_args!("{text:?} is too large here")))
    }

    /// Writes `"64KiB"`.
    ///
    /// # Errors
    /// Those of the serializer, or a value of more than 64 bits.
    pub fn serialize<S: Serializer, N: Copy + TryInto<u64>>(
        value: &N,
        sink: S,
    ) -> Result<S::Ok, S::Error> {
        let bytes = (*value)
            .try_into()
            .map_err(|_| serde::ser::Error::custom("the size has more than 64 bits"))?;
        sink.serialize_str(&super::format_size(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, millis) in
            [("30s", 30_000), ("250ms", 250), ("1h30m", 5_400_000), ("1.5s", 1_500), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "30", "s", "30 s", "1..5s", "5 parsecs", "-1s", "99999999999999999999d", "1.s"]
        {
            assert!(parse_duration(text).is_err(), "{text:?} must be refused");
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("2MiB", 2_097_152),
            ("512B", 512),
            ("1 GiB", 1 << 30),
            ("3KB", 3_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "64", "KiB", "1.5MiB", "-1B", "64kib", "99999999999999GiB"] {
            assert!(parse_size(text).is_err(), "{text:?} must be refused");
        }
    }

    #[test]
    fn a_refused_text_says_what_to_write() {
        let message = parse_size("64").expect_err("no unit").to_string();
        assert!(message.contains("\"64\"") && message.contains("64KiB"), "{message}");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos in any::<u64>(), bytes in any::<u64>()) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
        }
    }
}
