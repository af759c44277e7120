//! What an action executes (contract 4.3).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{AttachmentRef, ImageName, StoredCode};

/// The kind of actions that bring their own image.
pub const BLACKBOX: &str = "blackbox";
/// The kind of sequences, which controllers execute.
pub const SEQUENCE: &str = "sequence";

/// `exec` as a document has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredExec {
    /// The kind, perhaps `family:default`.
    pub kind: String,
    /// The image of a blackbox action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The code; absent for sequences and for blackbox actions whose image holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<StoredCode>,
    /// The code of very old Java documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jar: Option<AttachmentRef>,
    /// Whether the code is base-64 of an archive or binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<bool>,
    /// The entry point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<String>,
    /// The steps of a sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub components: Option<Vec<String>>,
}

/// What to execute, ready for `/init`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The kind, with defaults resolved: a manifest kind, or [`BLACKBOX`].
    pub kind: String,
    /// The image of a blackbox action; other kinds have theirs in the manifest.
    pub image: Option<ImageName>,
    /// The code; base-64 when `binary`. Absent for blackbox actions whose image holds it.
    pub code: Option<Code>,
    /// Whether the code is base-64.
    pub binary: bool,
    /// The entry point; `None` means `main`.
    pub main: Option<String>,
}

impl Exec {
    /// Whether the action brings its own image.
    pub fn is_blackbox(&self) -> bool {
        self.kind == BLACKBOX
    }

    /// The entry point.
    pub fn main(&self) -> &str {
        self.main.as_deref().unwrap_or("main")
    }
}

/// An action's code: shared, and cheap to compare with another, since the pool does so for every activation.
#[derive(Clone)]
pub struct Code {
    text: Arc<str>,
    /// Of `text`; two codes with different fingerprints differ.
    fingerprint: u64,
}

impl Code {
    /// Keeps `text`.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
        let text = text.into();
        let fingerprint = BuildHasherDefault::<DefaultHasher>::default().hash_one(&text);
        Self { text, fingerprint }
    }

    /// The text, as it goes to `/init`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Code {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text)
            || (self.fingerprint == other.fingerprint && self.text == other.text)
    }
}

impl Eq for Code {}

impl fmt::Debug for Code {
    /// The length only: code is long, and not for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({} bytes)", self.text.len())
    }
}

/// Whether inline code is base-64 rather than source: trimmed, its length is a positive multiple of 4, its
/// characters are the alphabet's, and at most two `=` end it.
pub(super) fn is_base64(text: &str) -> bool {
    let text = text.trim();
    let body = text.trim_end_matches('=');
    !text.is_empty()
        && text.len().is_multiple_of(4)
        && text.len() - body.len() <= 2
        && body.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_told_from_source() {
        for text in ["UEsDBA==", "abcd", " QUJD \n", "QQ==", "QUI=", "ab+/"] {
            assert!(is_base64(text), "{text}");
        }
        for text in
            ["", "  ", "abc", "def main(args): return {}", "ab-_", "Q===", "====", "QQ==QQ==", "abcdé"]
        {
            assert!(!is_base64(text), "{text}");
        }
    }

    #[test]
    fn codes_compare_by_text() {
        let code = Code::new("a");
        assert_eq!(code, code.clone());
        assert_eq!(code, Code::new("a"));
        assert_ne!(code, Code::new("b"));
        assert_eq!(format!("{code:?}"), "Code(1 bytes)");
    }
}
