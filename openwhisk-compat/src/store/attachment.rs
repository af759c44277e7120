//! Code that is not in the document itself (contract 4.3, attachments).
//!
//! `attachmentName` is a URI whose scheme says where the bytes are: in the name (`mem:`), attached to the
//! document under the rest of the name (`couch:`), attached under the very name (no scheme, documents older
//! than 2018), or in an external store that this invoker does not speak to (any other scheme).

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::Value;

/// Where the bytes of an attachment are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// Decoded from the name.
    Inline(Vec<u8>),
    /// Attached to the document under this name.
    Attached(String),
}

/// Why an attachment cannot be located or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentError {
    /// A scheme of an external attachment store.
    #[error("attachment '{name}' is in an external store ({scheme}), which is not supported")]
    External {
        /// As in the document.
        name: String,
        /// Its scheme.
        scheme: String,
    },
    /// `mem:` without readable base-64.
    #[error("attachment name '{name}' holds no base-64")]
    Inline {
        /// As in the document, cut to a legible length.
        name: String,
    },
    /// The document's own list of attachments does not have it.
    #[error("the action names attachment '{name}', the document has {found}")]
    Differs {
        /// As in the action.
        name: String,
        /// What the document has.
        found: String,
    },
    /// Text code that is not text.
    #[error("attachment '{name}' is not UTF-8 although the action is not binary")]
    NotText {
        /// As in the action.
        name: String,
    },
}

/// A name for messages: `mem:` names hold whole programs.
fn legible(name: &str) -> String {
    let mut cut: String = name.chars().take(60).collect();
    if cut.len() < name.len() {
        cut.push_str("...");
    }
    cut
}

/// Finds where `name` points to.
///
/// # Errors
/// If it is unreadable or points to an external store.
pub fn locate(name: &str) -> Result<Location, AttachmentError> {
    let Some((scheme, rest)) = name.split_once(':') else { return Ok(Location::Attached(name.to_owned())) };
    match scheme {
        "mem" => URL_SAFE
            .decode(rest)
            .map(Location::Inline)
            .map_err(|_| AttachmentError::Inline { name: legible(name) }),
        "couch" => Ok(Location::Attached(rest.to_owned())),
        _ => Err(AttachmentError::External { name: legible(name), scheme: scheme.to_owned() }),
    }
}

/// Checks that the document lists the attachment; `attachments` is its `_attachments`.
///
/// # Errors
/// If it lists others, or none.
pub fn check_listed(name: &str, attachments: Option<&Value>) -> Result<(), AttachmentError> {
    let listed = attachments.and_then(Value::as_object);
    if listed.is_some_and(|listed| listed.contains_key(name)) {
        return Ok(());
    }
    let found = listed.map_or_else(
        || "none".to_owned(),
        |listed| listed.keys().map(|key| format!("'{}'", legible(key))).collect::<Vec<_>>().join(", "),
    );
    Err(AttachmentError::Differs { name: legible(name), found })
}

/// The code string that goes to `/init`: the bytes as base-64 when the action is binary, else as text.
///
/// # Errors
/// If text code is not UTF-8.
pub fn code(name: &str, bytes: Vec<u8>, binary: bool) -> Result<String, AttachmentError> {
    if binary {
        return Ok(STANDARD.encode(bytes));
    }
    String::from_utf8(bytes).map_err(|_| AttachmentError::NotText { name: legible(name) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn every_scheme_of_the_contract() {
        assert_eq!(locate("mem:aGk="), Ok(Location::Inline(b"hi".to_vec())));
        assert_eq!(locate("mem:_-8="), Ok(Location::Inline(vec![0xff, 0xef])));
        assert_eq!(locate("couch:b2f5ede6"), Ok(Location::Attached("b2f5ede6".to_owned())));
        assert_eq!(locate("codefile"), Ok(Location::Attached("codefile".to_owned())));
        assert_eq!(
            locate("s3:bucket/x").unwrap_err().to_string(),
            "attachment 's3:bucket/x' is in an external store (s3), which is not supported"
        );
        assert_eq!(locate("mem:%%").unwrap_err().to_string(), "attachment name 'mem:%%' holds no base-64");
    }

    #[test]
    fn the_document_must_list_what_the_action_names() {
        let listed = json!({ "a": { "stub": true } });
        assert_eq!(check_listed("a", Some(&listed)), Ok(()));
        assert_eq!(
            check_listed("b", Some(&listed)).unwrap_err().to_string(),
            "the action names attachment 'b', the document has 'a'"
        );
        assert_eq!(
            check_listed("b", None).unwrap_err().to_string(),
            "the action names attachment 'b', the document has none"
        );
    }

    #[test]
    fn binary_decides_between_base64_and_text() {
        assert_eq!(code("a", b"PK\x03\x04\xff".to_vec(), true).unwrap(), "UEsDBP8=");
        assert_eq!(code("a", "h\u{e9}".into(), false).unwrap(), "h\u{e9}");
        assert!(code("a", vec![0xff], false).is_err());
    }

    proptest! {
        #[test]
        fn no_name_panics(name in ".*") {
            let _ = locate(&name);
        }

        #[test]
        fn inline_content_comes_back(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let name = format!("mem:{}", URL_SAFE.encode(&bytes));
            prop_assert_eq!(locate(&name), Ok(Location::Inline(bytes)));
        }
    }
}
