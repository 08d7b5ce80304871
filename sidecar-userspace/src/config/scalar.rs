//! Single values: a place in the file, the text that stands there, and what it must be.
//!
//! A value that is wrong does not end the reading, so that all mistakes are reported at once.

use std::{borrow::Cow, fmt, marker::PhantomData, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use super::error::{Expected, Mark};

/// One kind of value.
pub trait Scalar {
    type Value;

    /// What is right, to follow the word "expected"; also the schema's title.
    fn expected() -> Expected;

    /// # Errors
    ///
    /// What would have been right: [`expected`](Self::expected), or something closer to the text.
    fn parse(text: &str) -> Result<Self::Value, Expected>;

    fn schema() -> Schema;
}

/// A value in the file.
pub struct Setting<S: Scalar> {
    pub(super) mark: Mark,
    pub(super) text: String,
    pub(super) value: Result<S::Value, Expected>,
}

/// A list in the file.
#[derive(Debug)]
pub struct Marked<T> {
    pub(super) mark: Mark,
    pub(super) value: T,
}

/// Of an alias, where it stands, not what it stands for.
fn mark_of<T>(spanned: &Spanned<T>) -> Mark {
    Mark {
        line: spanned.referenced.line(),
        column: spanned.referenced.column(),
    }
}

impl<'de, S: Scalar> Deserialize<'de> for Setting<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self {
            mark: mark_of(&spanned),
            value: S::parse(&spanned.value),
            text: spanned.value,
        })
    }
}

impl<S: Scalar> fmt::Debug for Setting<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl<S: Scalar> JsonSchema for Setting<S> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        std::any::type_name::<S>().into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut schema = S::schema();
        schema.insert("title".to_owned(), S::expected().into());
        schema
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Marked<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        Ok(Self {
            mark: mark_of(&spanned),
            value: spanned.value,
        })
    }
}

impl<T: JsonSchema> JsonSchema for Marked<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A whole number from `MIN` to `MAX`, which must fit into `T`.
pub struct Number<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

impl<T: TryFrom<u64>, const MIN: u64, const MAX: u64> Scalar for Number<T, MIN, MAX> {
    type Value = T;

    fn expected() -> Expected {
        format!("a whole number from {MIN} to {MAX}").into()
    }

    fn parse(text: &str) -> Result<T, Expected> {
        let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits
            .and_then(|digits| digits.parse().ok())
            .filter(|number| (MIN..=MAX).contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(Self::expected)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// A length of time from `MIN_MS` to `MAX_MS` milliseconds, written as Gateway API writes it (GEP-2257).
pub struct Time<const MIN_MS: u64, const MAX_MS: u64>;

impl<const MIN_MS: u64, const MAX_MS: u64> Scalar for Time<MIN_MS, MAX_MS> {
    type Value = Duration;

    fn expected() -> Expected {
        let (min, max) = (duration_text(MIN_MS), duration_text(MAX_MS));
        format!("a duration such as 500ms, 10s or 1m30s, from {min} to {max}").into()
    }

    fn parse(text: &str) -> Result<Duration, Expected> {
        let ms = duration_ms(text).filter(|ms| (MIN_MS..=MAX_MS).contains(ms));
        ms.map(Duration::from_millis).ok_or_else(Self::expected)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$" })
    }
}

/// A number of bytes from `MIN` to `MAX`, which must fit into `T`.
pub struct Size<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

impl<T: TryFrom<u64>, const MIN: u64, const MAX: u64> Scalar for Size<T, MIN, MAX> {
    type Value = T;

    fn expected() -> Expected {
        let (min, max) = (size_text(MIN), size_text(MAX));
        format!("a size such as 256KiB, 64KB or 4096, from {min} to {max}").into()
    }

    fn parse(text: &str) -> Result<T, Expected> {
        size_bytes(text)
            .filter(|bytes| (MIN..=MAX).contains(bytes))
            .and_then(|bytes| T::try_from(bytes).ok())
            .ok_or_else(Self::expected)
    }

    fn schema() -> Schema {
        let units: Vec<&str> = SIZE_UNITS.iter().map(|(unit, _)| *unit).collect();
        let pattern = format!("^[0-9]+({})?$", units.join("|"));
        json_schema!({
            "type": ["integer", "string"], "minimum": MIN, "maximum": MAX, "pattern": pattern
        })
    }
}

impl Scalar for bool {
    type Value = Self;

    fn expected() -> Expected {
        "true or false".into()
    }

    fn parse(text: &str) -> Result<Self, Expected> {
        text.parse().map_err(|_| <Self as Scalar>::expected())
    }

    fn schema() -> Schema {
        json_schema!({ "type": "boolean" })
    }
}

const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

pub(super) fn duration_ms(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total_ms = 0;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at_checked(digits)?;
        let letters = tail.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, tail) = tail.split_at_checked(letters)?;
        let (_, ms) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
        // Five digits, so that the sum cannot overflow.
        let number = Some(number).filter(|number| number.len() <= 5)?;
        total_ms += number.parse::<u64>().ok()? * ms;
        rest = tail;
        if rest.is_empty() {
            return Some(total_ms);
        }
    }
    None
}

/// As [`Time`] reads it; a zero is `0s`.
pub(super) fn duration_text(mut ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, unit_ms) in DURATION_UNITS {
        if ms >= unit_ms {
            text += &format!("{}{unit}", ms / unit_ms);
            ms %= unit_ms;
        }
    }
    text
}

const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

fn size_bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = if unit.is_empty() { "B" } else { unit };
    let (_, bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*bytes)
}

/// As [`Size`] reads it, in the largest binary unit that leaves no rest.
pub(super) fn size_text(bytes: u64) -> String {
    let binary = SIZE_UNITS.iter().take(3);
    let fitting = binary
        .filter(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit))
        .max_by_key(|(_, unit)| *unit);
    match fitting {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_those_of_gateway_api() {
        for (text, ms) in [
            ("10s", 10_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("0s", 0),
            ("1h1m1s1ms", 3_661_001),
            ("99999h", 359_996_400_000),
        ] {
            assert_eq!(duration_ms(text), Some(ms), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "1 s",
            "1d",
            "100000s",
            "1s1s1s1s1s",
            "1S",
            "é",
        ] {
            assert_eq!(duration_ms(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_do_not_overflow() {
        for (text, bytes) in [
            ("256KiB", 262_144),
            ("64KB", 64_000),
            ("4096", 4096),
            ("1GiB", 1 << 30),
            ("7B", 7),
        ] {
            assert_eq!(size_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "KiB", "1kib", "1.5MiB", "18446744073709551615KiB", "-1"] {
            assert_eq!(size_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_have_bounds() {
        type Port = Number<u16, 1, 65535>;
        assert_eq!(Port::parse("65535"), Ok(65535));
        for text in [
            "",
            "0",
            "65536",
            "-1",
            "+1",
            "1.0",
            "1e3",
            "99999999999999999999",
        ] {
            assert!(Port::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(number in 0..u64::from(u32::MAX)) {
            prop_assert_eq!(size_bytes(&size_text(number)), Some(number));
            prop_assert_eq!(duration_ms(&duration_text(number)), Some(number));
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = (size_bytes(&text), duration_ms(&text), Number::<u8, 0, 9>::parse(&text));
        }
    }
}
