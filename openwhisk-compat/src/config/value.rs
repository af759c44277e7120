//! Types of settings: how each is written.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::sources::Lookup;
use super::{Declaration, Mistake, Sources};
use crate::duration;
use crate::manifest::RuntimesManifest;
use crate::size::ByteSize;

/// A setting's type.
pub(super) trait Value: Sized {
    /// Whether absence without a default is no mistake.
    const OPTIONAL: bool = false;
    /// The form expected, for messages and documents.
    fn form() -> String;
    /// Reads it; `None` after a mistake.
    fn read(declaration: &Declaration, sources: &Sources, mistakes: &mut Vec<Mistake>) -> Option<Self>;
}

/// A type written as one text.
pub(super) trait Scalar: Sized {
    /// The form expected, as in "expected ...".
    fn written() -> String;
    /// # Errors
    /// What is wrong, naming the value unless it is secret.
    fn parse(text: &str) -> Result<Self, String>;
}

impl<T: Scalar> Value for T {
    fn form() -> String {
        T::written()
    }

    fn read(declaration: &Declaration, sources: &Sources, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let text = match sources.lookup(declaration) {
            Lookup::Found { place, text } => Some((place, text)),
            Lookup::Absent => {
                declaration.default.map(|text| ("built-in default".to_owned(), text.to_owned()))
            }
            Lookup::Dangling(mistake) => {
                mistakes.push(mistake);
                return None;
            }
        };
        let Some((place, text)) = text else {
            let what = format!("missing, expected {}", T::written());
            mistakes.push(Mistake { place: declaration.variable(), what });
            return None;
        };
        match T::parse(&text) {
            Ok(value) => Some(value),
            Err(what) => {
                mistakes.push(Mistake { place, what });
                None
            }
        }
    }
}

impl<T: Scalar> Value for Option<T> {
    const OPTIONAL: bool = true;

    fn form() -> String {
        T::written()
    }

    fn read(declaration: &Declaration, sources: &Sources, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        match sources.lookup(declaration) {
            Lookup::Absent if declaration.default.is_none() => Some(None),
            _ => T::read(declaration, sources, mistakes).map(Some),
        }
    }
}

/// A list: elements under indices, or one text with commas.
impl Value for Vec<String> {
    const OPTIONAL: bool = true;

    fn form() -> String {
        "a list: elements at `_0`, `_1`, ..., or separated by commas".to_owned()
    }

    fn read(declaration: &Declaration, sources: &Sources, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        match sources.lookup(declaration) {
            Lookup::Found { text, .. } => {
                let elements = text.split(',').map(str::trim).filter(|element| !element.is_empty());
                Some(elements.map(str::to_owned).collect())
            }
            Lookup::Dangling(mistake) => {
                mistakes.push(mistake);
                None
            }
            Lookup::Absent => Some(indexed(sources.below(declaration).into_iter())),
        }
    }
}

/// Values under `0`, `1`, ..., in the order of their indices; gaps close.
fn indexed(entries: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let mut elements: Vec<(u32, String)> =
        entries.filter_map(|(index, text)| Some((index.parse().ok()?, text))).collect();
    elements.sort_by_key(|(index, _)| *index);
    elements.into_iter().map(|(_, text)| text).collect()
}

/// Lists under names, as in `container-args.extra-args`.
impl Value for BTreeMap<String, Vec<String>> {
    const OPTIONAL: bool = true;

    fn form() -> String {
        "lists by name: elements at `_<name>_0`, `_<name>_1`, ...".to_owned()
    }

    fn read(declaration: &Declaration, sources: &Sources, _: &mut Vec<Mistake>) -> Option<Self> {
        let mut lists: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for (path, text) in sources.below(declaration) {
            let (name, index) = match path.rsplit_once('.') {
                Some((name, index)) if index.bytes().all(|b| b.is_ascii_digit()) => (name, index),
                // One value without an index is a list of one.
                _ => (path.as_str(), "0"),
            };
            lists.entry(name.to_owned()).or_default().push((index.to_owned(), text.clone()));
        }
        Some(lists.into_iter().map(|(name, entries)| (name, indexed(entries.into_iter()))).collect())
    }
}

/// Everything below a path, passed on as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Map(BTreeMap<String, String>);

impl Map {
    /// The value under `name`, written with `-` between words.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Names with `-` as `.`, as Kafka's clients write them.
    pub fn dotted(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(name, value)| (name.replace('-', "."), value.clone())).collect()
    }
}

impl Value for Map {
    const OPTIONAL: bool = true;

    fn form() -> String {
        "any names below".to_owned()
    }

    fn read(declaration: &Declaration, sources: &Sources, _: &mut Vec<Mistake>) -> Option<Self> {
        let mut map: BTreeMap<String, String> = declaration
            .default
            .iter()
            .flat_map(|defaults| defaults.split(", "))
            .filter_map(|entry| entry.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        map.extend(sources.below(declaration));
        Some(Self(map))
    }
}

/// A text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself. Not for logs.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Scalar for Secret {
    fn written() -> String {
        "a text, kept secret".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

/// The runtimes manifest's text, known to be readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestText(String);

impl std::ops::Deref for ManifestText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Scalar for ManifestText {
    fn written() -> String {
        "the manifest, as JSON text".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        match RuntimesManifest::parse(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A number above 0 and at most 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fraction(f64);

impl Fraction {
    /// The number.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl Scalar for Fraction {
    fn written() -> String {
        "a number above 0 and at most 1".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text.trim().parse::<f64>() {
            Ok(number) if number > 0.0 && number <= 1.0 => Ok(Self(number)),
            _ => Err(not_a(text, &Self::written())),
        }
    }
}

/// A setting with a few named values.
pub trait Choice: Sized + 'static {
    /// Names and values.
    const NAMES: &'static [(&'static str, Self)];
}

impl<T: Choice + Copy> Scalar for T {
    fn written() -> String {
        let names: Vec<_> = T::NAMES.iter().map(|(name, _)| format!("`{name}`")).collect();
        match names.as_slice() {
            [init @ .., last] if !init.is_empty() => format!("{} or {last}", init.join(", ")),
            _ => names.concat(),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let found = T::NAMES.iter().find(|(name, _)| *name == text.trim());
        found.map(|(_, value)| *value).ok_or_else(|| not_a(text, &Self::written()))
    }
}

fn not_a(text: &str, form: &str) -> String {
    let shown: String = text.chars().take(80).collect();
    format!("`{shown}` is not usable, expected {form}")
}

impl Choice for bool {
    const NAMES: &'static [(&'static str, Self)] = &[("true", true), ("false", false)];
}

impl Scalar for String {
    fn written() -> String {
        "a text".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Scalar for ByteSize {
    fn written() -> String {
        "a size".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        ByteSize::parse_config(text).map_err(|error| error.to_string())
    }
}

impl Scalar for Duration {
    fn written() -> String {
        "a duration".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        duration::parse(text).map_err(|error| error.to_string())
    }
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Scalar for $type {
            fn written() -> String {
                format!("a whole number up to {}", <$type>::MAX)
            }

            fn parse(text: &str) -> Result<Self, String> {
                text.trim().parse().map_err(|_| not_a(text, &Self::written()))
            }
        }
    )*};
}

numbers!(u16, u32, u64);

impl Scalar for f64 {
    fn written() -> String {
        "a number above 0".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text.trim().parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
            _ => Err(not_a(text, &Self::written())),
        }
    }
}
