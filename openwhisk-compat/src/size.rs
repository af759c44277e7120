//! Sizes: strings with units on the wire (contract 2.4), HOCON forms in the configuration (contract 1.3).
//!
//! The two grammars differ in one respect that bites: on the wire `MB` is 1024 x 1024 bytes, in HOCON
//! `MB` is a million bytes and only `m`, `M`, `Mi` and `MiB` are binary. Both are honoured as upstream
//! honours them, each where it belongs: [`ByteSize::parse_wire`] and [`ByteSize::parse_config`].

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The unit a size was written in, and is printed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Byte,
    /// 1024 bytes.
    Kb,
    /// 1024 x 1024 bytes.
    Mb,
    /// 1024 x 1024 x 1024 bytes.
    Gb,
}

impl Unit {
    const fn bytes(self) -> u64 {
        match self {
            Unit::Byte => 1,
            Unit::Kb => 1 << 10,
            Unit::Mb => 1 << 20,
            Unit::Gb => 1 << 30,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Unit::Byte => "B",
            Unit::Kb => "KB",
            Unit::Mb => "MB",
            Unit::Gb => "GB",
        }
    }
}

/// A size in bytes that remembers the unit it was written in, because OpenWhisk prints it back that way.
///
/// Equality, order and hash are by bytes: `1 MB` equals `1024 KB`.
#[derive(Clone, Copy)]
pub struct ByteSize {
    /// Invariant: `count * unit.bytes()` fits in 64 bits; both constructors check.
    count: u64,
    unit: Unit,
}

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The text does not have the form digits, unit.
    #[error("`{0}` is not a size, expected digits and a unit such as `256 m` or `1 GB`")]
    Form(String),
    /// The number of bytes does not fit in 63 bits (what the JVM peers can hold).
    #[error("size `{0}` is too large")]
    TooLarge(String),
}

impl ByteSize {
    /// `count` bytes.
    pub const fn from_bytes(count: u64) -> Self {
        Self { count, unit: Unit::Byte }
    }

    /// `count` times 1024 x 1024 bytes, printed in `MB`.
    pub const fn from_mb(count: u32) -> Self {
        Self { count: count as u64, unit: Unit::Mb }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.count * self.unit.bytes()
    }

    /// Whole megabytes (1024 x 1024 bytes), rounded down.
    pub const fn mb(self) -> u64 {
        self.bytes() >> 20
    }

    /// The same size, printed in bytes.
    pub const fn in_bytes(self) -> Self {
        Self::from_bytes(self.bytes())
    }

    fn checked(count: u64, unit: Unit, text: &str) -> Result<Self, SizeError> {
        match count.checked_mul(unit.bytes()) {
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(Self { count, unit }),
            _ => Err(SizeError::TooLarge(text.to_owned())),
        }
    }

    /// Reads the form used in messages and in the runtimes manifest: optional blank, digits, optional
    /// blank, one of `GB MB KB B G M K` in any case, optional blank (contract 2.4).
    pub fn parse_wire(text: &str) -> Result<Self, SizeError> {
        let form = || SizeError::Form(text.to_owned());
        let blank = |s: &str| s.chars().next().filter(char::is_ascii_whitespace).map_or(0, char::len_utf8);
        let rest = &text[blank(text)..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = rest.split_at(digits);
        if number.is_empty() {
            return Err(form());
        }
        let rest = &rest[blank(rest)..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, rest) = rest.split_at(letters);
        if blank(rest) != rest.len() {
            return Err(form());
        }
        let unit = match unit.to_ascii_uppercase().as_str() {
            "B" => Unit::Byte,
            "K" | "KB" => Unit::Kb,
            "M" | "MB" => Unit::Mb,
            "G" | "GB" => Unit::Gb,
            _ => return Err(form()),
        };
        let count = number.parse().map_err(|_| SizeError::TooLarge(text.to_owned()))?;
        Self::checked(count, unit, text)
    }

    /// Reads the form used in the configuration: HOCON's sizes, as upstream reads them.
    ///
    /// A number, possibly with a fraction, then a unit. `b`, `byte(s)` and no unit at all are bytes; `k`,
    /// `K`, `Ki`, `KiB`, `kibibyte(s)` and so on are powers of 1024; `kB`, `kilobyte(s)`, `MB`,
    /// `megabyte(s)`, `GB`, ... are powers of 1000. The result prints in bytes.
    pub fn parse_config(text: &str) -> Result<Self, SizeError> {
        let form = || SizeError::Form(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor = config_unit(unit.trim_start()).ok_or_else(form)?;
        let too_large = || SizeError::TooLarge(text.to_owned());
        let bytes = if number.bytes().all(|b| b.is_ascii_digit()) {
            if number.is_empty() {
                return Err(form());
            }
            number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(too_large)?
        } else {
            fraction_of(number, factor).ok_or_else(form)?
        };
        Self::checked(bytes, Unit::Byte, text)
    }
}

/// `number` (digits, one point, digits) times `factor`, rounded down, without going through floats.
fn fraction_of(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.')?;
    // More digits than this cannot change the whole number of bytes below 2^63.
    if fraction.is_empty() || fraction.contains('.') || whole.len() > 19 || fraction.len() > 18 {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u128 = fraction.parse().ok()?;
    u64::try_from((whole * scale + fraction).checked_mul(u128::from(factor))? / scale).ok()
}

/// The factor of a HOCON size unit; `None` for an unknown one.
fn config_unit(unit: &str) -> Option<u64> {
    const K: u64 = 1 << 10;
    Some(match unit {
        "" | "b" | "B" | "byte" | "bytes" => 1,
        "k" | "K" | "Ki" | "KiB" | "kibibyte" | "kibibytes" => K,
        "m" | "M" | "Mi" | "MiB" | "mebibyte" | "mebibytes" => K * K,
        "g" | "G" | "Gi" | "GiB" | "gibibyte" | "gibibytes" => K * K * K,
        "t" | "T" | "Ti" | "TiB" | "tebibyte" | "tebibytes" => K * K * K * K,
        "kB" | "kilobyte" | "kilobytes" => 1_000,
        "MB" | "megabyte" | "megabytes" => 1_000_000,
        "GB" | "gigabyte" | "gigabytes" => 1_000_000_000,
        "TB" | "terabyte" | "terabytes" => 1_000_000_000_000,
        _ => return None,
    })
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.count, self.unit.name())
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for ByteSize {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for ByteSize {}

impl std::hash::Hash for ByteSize {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

impl PartialOrd for ByteSize {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByteSize {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes().cmp(&other.bytes())
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    /// The wire form, see [`ByteSize::parse_wire`].
    fn from_str(text: &str) -> Result<Self, SizeError> {
        Self::parse_wire(text)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse_wire(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wire_sizes_keep_their_unit() {
        for (text, bytes, printed) in [
            ("1073741824 B", 1 << 30, "1073741824 B"),
            ("1 MB", 1 << 20, "1 MB"),
            (" 256m ", 256 << 20, "256 MB"),
            ("2gB", 2 << 30, "2 GB"),
            ("7 k", 7 << 10, "7 KB"),
            ("0B", 0, "0 B"),
        ] {
            let size = ByteSize::parse_wire(text).expect(text);
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, printed), "{text}");
        }
    }

    #[test]
    fn wire_sizes_refuse_other_forms() {
        for text in ["", "MB", "1", "-1 MB", "1.5 MB", "1 TB", "  1 MB", "1  MB", "1 MB x", "1 MiB", "١ MB"]
        {
            assert_eq!(ByteSize::parse_wire(text), Err(SizeError::Form(text.to_owned())), "{text}");
        }
        for text in ["99999999999999999999 B", "9223372036854775808 B", "9007199254740992 MB"] {
            assert_eq!(ByteSize::parse_wire(text), Err(SizeError::TooLarge(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn configuration_sizes_are_hocon() {
        for (text, bytes) in [
            ("1024 m", 1 << 30),
            ("1m", 1 << 20),
            ("1 MiB", 1 << 20),
            ("1g", 1 << 30),
            ("1 G", 1 << 30),
            ("16 k", 16 << 10),
            ("16384", 16384),
            (" 256 MB ", 256_000_000),
            ("1 kB", 1_000),
            ("2 kibibytes", 2048),
            ("0.5 m", 512 << 10),
            (".5 k", 512),
            ("0", 0),
        ] {
            assert_eq!(ByteSize::parse_config(text).map(ByteSize::bytes), Ok(bytes), "{text}");
        }
        assert_eq!(ByteSize::parse_config("2048 m").expect("a size").to_string(), "2147483648 B");
        for text in ["", "m", "1 mb", "1 X", "-1 m", "1..5 m", "1. m", "1,5 m", "1 m m"] {
            assert_eq!(ByteSize::parse_config(text), Err(SizeError::Form(text.to_owned())), "{text}");
        }
        for text in ["99999999999999999999", "9999999999 g"] {
            assert_eq!(ByteSize::parse_config(text), Err(SizeError::TooLarge(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn sizes_compare_by_bytes() {
        assert_eq!(ByteSize::from_mb(1), ByteSize::from_bytes(1 << 20));
        assert!(ByteSize::from_mb(1) > ByteSize::from_bytes(1));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_prints_back(text in "\\PC{0,24}|[ ]?[0-9]{1,21}[ .]?[0-9]{0,3}[ ]?[a-zA-Z]{0,9}[ ]?") {
            if let Ok(size) = ByteSize::parse_wire(&text) {
                prop_assert_eq!(ByteSize::parse_wire(&size.to_string()), Ok(size));
            }
            if let Ok(size) = ByteSize::parse_config(&text) {
                prop_assert!(i64::try_from(size.bytes()).is_ok());
            }
        }
    }
}
