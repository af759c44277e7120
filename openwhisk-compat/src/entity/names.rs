//! Names of entities (contract 2.1, 4.2).

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The longest part of a path upstream accepts.
const NAME_LENGTH_MAX: usize = 256;

/// An action's whole name, as the controller resolved it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct FullyQualifiedName {
    /// Namespace, or namespace and package: `guest`, `guest/pkg`.
    pub path: String,
    /// The simple name.
    pub name: String,
    /// The version; a message may lack it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The path of the package binding through which the action was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binding: Option<String>,
}

/// A text that cannot be part of an entity's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of an entity")]
pub struct NameError(String);

impl FullyQualifiedName {
    /// The action `name` in `path`.
    ///
    /// # Errors
    /// When a part is not a name.
    pub fn new(path: impl Into<String>, name: impl Into<String>) -> Result<Self, NameError> {
        let this = Self { path: path.into(), name: name.into(), version: None, binding: None };
        this.check()?;
        Ok(this)
    }

    /// Reads `namespace/[package/]name`.
    ///
    /// # Errors
    /// When there are fewer than two parts or a part is not a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let trimmed = text.strip_prefix('/').unwrap_or(text);
        let (path, name) = trimmed.rsplit_once('/').ok_or_else(|| NameError::of(text))?;
        Self::new(path, name)
    }

    fn check(&self) -> Result<(), NameError> {
        let parts = self.path.split('/').chain([self.name.as_str()]);
        match parts.into_iter().find(|part| !is_entity_name(part)) {
            Some(part) => Err(NameError::of(part)),
            None => Ok(()),
        }
    }

    /// The namespace that owns the action: the first part of the path.
    pub fn namespace(&self) -> &str {
        self.path.split('/').next().unwrap_or_default()
    }

    /// `ns/[pkg/]name`: the document's id, and the `path` annotation.
    pub fn qualified(&self) -> String {
        format!("{}/{}", self.path, self.name)
    }
}

impl NameError {
    fn of(text: &str) -> Self {
        Self(text.chars().take(80).collect())
    }
}

/// Whether `text` may be one part of a path: letters, digits and `_`, inside also `@`, blank, `.`, `&`, `-`.
pub fn is_entity_name(text: &str) -> bool {
    fn word(b: u8) -> bool {
        b.is_ascii_alphanumeric() || b == b'_'
    }
    fn inside(b: u8) -> bool {
        word(b) || matches!(b, b'@' | b' ' | b'.' | b'&' | b'-')
    }
    let bytes = text.as_bytes();
    match bytes {
        [] => false,
        [first, rest @ ..] => {
            bytes.len() <= NAME_LENGTH_MAX
                && word(*first)
                && rest.iter().all(|b| inside(*b))
                && rest.last() != Some(&b' ')
        }
    }
}

impl fmt::Display for FullyQualifiedName {
    /// `ns/[pkg/]name[@version]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.path, self.name)?;
        match &self.version {
            Some(version) => write!(f, "@{version}"),
            None => Ok(()),
        }
    }
}

impl<'de> Deserialize<'de> for FullyQualifiedName {
    /// An object, or the plain text `ns/pkg/name`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Members {
            path: String,
            name: String,
            #[serde(default)]
            version: Option<String>,
            #[serde(default)]
            binding: Option<String>,
        }

        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = FullyQualifiedName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name as an object or as text")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<FullyQualifiedName, E> {
                FullyQualifiedName::parse(text).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FullyQualifiedName, A::Error> {
                let Members { path, name, version, binding } =
                    Members::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                let this = FullyQualifiedName { path, name, version, binding };
                this.check().map_err(A::Error::custom)?;
                Ok(this)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let object: FullyQualifiedName = serde_json::from_str(
            r#"{"path":"guest/pkg","name":"hello","version":"0.0.3","binding":"guest/b"}"#,
        )
        .expect("an object");
        assert_eq!((object.namespace(), object.qualified().as_str()), ("guest", "guest/pkg/hello"));
        assert_eq!(object.to_string(), "guest/pkg/hello@0.0.3");
        assert_eq!(object.binding.as_deref(), Some("guest/b"));
        let text: FullyQualifiedName = serde_json::from_str(r#""guest/pkg/hello""#).expect("a text");
        assert_eq!(text, FullyQualifiedName::new("guest/pkg", "hello").expect("a name"));
    }

    #[test]
    fn parts_are_checked() {
        for good in ["a", "_", "a b", "whisk.system", "36ainit400", "a@b.c", "a-", "A&B"] {
            assert!(is_entity_name(good), "{good}");
        }
        for bad in ["", " a", "a ", "-a", ".a", "a/b", "ä", "a\n", &"x".repeat(257)] {
            assert!(!is_entity_name(bad), "{bad}");
        }
        for bad in [
            r#""hello""#,
            r#""""#,
            r#""/""#,
            r#""a//b""#,
            r#"{"path":"","name":"a"}"#,
            r#"{"name":"a"}"#,
            "7",
        ] {
            assert!(serde_json::from_str::<FullyQualifiedName>(bad).is_err(), "{bad}");
        }
    }
}
