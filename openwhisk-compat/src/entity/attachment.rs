//! Where an action's code is (contract 4.3).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Code as a document has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StoredCode {
    /// In the document.
    Inline(String),
    /// In an attachment.
    Attachment(AttachmentRef),
}

/// An attachment as the document refers to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentRef {
    /// A URI, see [`AttachmentName`].
    pub attachment_name: String,
    /// The content type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment_type: Option<String>,
    /// The length in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// `sha256-<hex>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// What an attachment's name says about the place of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachmentName {
    /// `mem:`, the content is in the name.
    Memory(Vec<u8>),
    /// `couch:<uuid>` or a bare name: the attachment of this name on the action's document.
    Document(String),
    /// Another scheme: a store we do not have.
    External {
        /// The scheme, such as `s3`.
        scheme: String,
    },
}

/// Reads base64url with or without padding; upstream writes it padded.
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl AttachmentName {
    /// Reads the URI in `attachmentName`.
    ///
    /// # Errors
    /// When a `mem:` name is not base64url, or a name is empty.
    pub fn parse(uri: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = uri.split_once(':') else {
            return if uri.is_empty() {
                Err("attachment name is empty".to_owned())
            } else {
                Ok(AttachmentName::Document(uri.to_owned()))
            };
        };
        match scheme {
            "mem" => match BASE64_URL.decode(rest) {
                Ok(content) => Ok(AttachmentName::Memory(content)),
                Err(error) => Err(format!("attachment name does not hold base64url: {error}")),
            },
            "couch" if !rest.is_empty() => Ok(AttachmentName::Document(rest.to_owned())),
            "couch" => Err("attachment name `couch:` names no attachment".to_owned()),
            other => Ok(AttachmentName::External { scheme: other.chars().take(32).collect() }),
        }
    }

    /// The name under which `content` is kept in the document itself.
    pub fn memory(content: &[u8]) -> String {
        format!("mem:{}", URL_SAFE.encode(content))
    }
}

impl<'de> Deserialize<'de> for StoredCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = StoredCode;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("code as text or as an attachment")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StoredCode, E> {
                Ok(StoredCode::Inline(text.to_owned()))
            }

            fn visit_string<E: serde::de::Error>(self, text: String) -> Result<StoredCode, E> {
                Ok(StoredCode::Inline(text))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<StoredCode, A::Error> {
                AttachmentRef::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    .map(StoredCode::Attachment)
                    .map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_name() {
        for (uri, expected) in [
            (
                "mem:ZnVuY3Rpb24gbWFpbigpe3JldHVybiB7fX0=",
                AttachmentName::Memory(b"function main(){return {}}".into()),
            ),
            ("mem:_-8", AttachmentName::Memory(vec![0xff, 0xef])),
            ("mem:", AttachmentName::Memory(vec![])),
            (
                "couch:b3f0a2de-6f0e-4b5c-9c3e-0a0b7d1f4a11",
                AttachmentName::Document("b3f0a2de-6f0e-4b5c-9c3e-0a0b7d1f4a11".to_owned()),
            ),
            ("codefile", AttachmentName::Document("codefile".to_owned())),
            ("jarfile", AttachmentName::Document("jarfile".to_owned())),
            ("s3:abc", AttachmentName::External { scheme: "s3".to_owned() }),
        ] {
            assert_eq!(AttachmentName::parse(uri), Ok(expected), "{uri}");
        }
        for bad in ["", "mem:äöü", "mem:A", "couch:"] {
            assert!(AttachmentName::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(AttachmentName::memory(&[0xff, 0xef]), "mem:_-8=");
    }
}
