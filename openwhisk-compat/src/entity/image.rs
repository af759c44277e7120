//! Names of container images (contract 1.6, 6.5).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An image's name: `[registry/][prefix/]name[:tag][@digest]`.
///
/// A missing tag equals `latest`, as upstream compares images.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageName {
    /// Host, perhaps with a port. Wins over the configured registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// One or more parts between registry and name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The last part.
    pub name: String,
    /// The tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// `sha256:<hex>`. Upstream reads it and forgets it; we keep it, so that the image asked for is the one run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A text that is not an image's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of an image")]
pub struct ImageNameError(String);

impl ImageName {
    /// The reference to give to Docker. `registry` is the configured one, used unless the name has its own.
    pub fn reference(&self, registry: &str) -> String {
        let mut reference = String::new();
        let registry = self.registry.as_deref().filter(|own| !own.is_empty()).unwrap_or(registry);
        for part in [registry.trim_end_matches('/'), self.prefix.as_deref().unwrap_or_default()] {
            if !part.is_empty() {
                reference.push_str(part);
                reference.push('/');
            }
        }
        reference.push_str(&self.name);
        for (mark, part) in [(':', &self.tag), ('@', &self.digest)] {
            if let Some(part) = part.as_deref().filter(|part| !part.is_empty()) {
                reference.push(mark);
                reference.push_str(part);
            }
        }
        reference
    }

    /// Whether the tag is absent or `latest`: such an image must be pulled anew (contract 6.5). A digest
    /// says exactly which image, so it never needs that.
    pub fn is_latest(&self) -> bool {
        self.digest.is_none() && self.effective_tag() == "latest"
    }

    fn effective_tag(&self) -> &str {
        self.tag.as_deref().filter(|tag| !tag.is_empty()).unwrap_or("latest")
    }
}

impl FromStr for ImageName {
    type Err = ImageNameError;

    fn from_str(text: &str) -> Result<Self, ImageNameError> {
        parse(text).ok_or_else(|| ImageNameError(text.chars().take(300).collect()))
    }
}

/// The grammar of Docker's references.
fn parse(text: &str) -> Option<ImageName> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let (registry, path) = match rest.split_once('/') {
        Some((first, path)) if is_domain(first) => (Some(first), path),
        _ => (None, rest),
    };
    let (path, tag) = match path.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    let well_formed =
        path.split('/').all(is_path_component) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest);
    if !well_formed {
        return None;
    }
    let (prefix, name) = match path.rsplit_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, path),
    };
    let own = |part: Option<&str>| part.map(str::to_owned);
    Some(ImageName {
        registry: own(registry),
        prefix: own(prefix),
        name: name.to_owned(),
        tag: own(tag),
        digest: own(digest),
    })
}

/// A first part with a point, a port, or `localhost` is a host, not a prefix.
fn is_domain(part: &str) -> bool {
    let (host, port) = match part.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (part, None),
    };
    let host_like = port.is_some() || host.contains('.') || host == "localhost";
    host_like
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
        && host
            .split('.')
            .all(|label| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
}

/// Lower-case letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = |b: Option<u8>| b.is_some_and(alphanumeric);
    let bytes = part.as_bytes();
    ends(bytes.first().copied())
        && ends(bytes.last().copied())
        && bytes.split(|b| alphanumeric(*b)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        algorithm.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'.' | b'-' | b'_'))
            && hex.len() >= 32
            && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reference(""))
    }
}

impl PartialEq for ImageName {
    fn eq(&self, other: &Self) -> bool {
        let part = |part: &Option<String>| part.clone().filter(|part| !part.is_empty());
        self.name == other.name
            && part(&self.registry) == part(&other.registry)
            && part(&self.prefix) == part(&other.prefix)
            && self.effective_tag() == other.effective_tag()
            && self.digest == other.digest
    }
}

impl Eq for ImageName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart_and_put_together() {
        for (text, registry, prefix, name, tag) in [
            ("alpine", None, None, "alpine", None),
            ("openwhisk/dockerskeleton", None, Some("openwhisk"), "dockerskeleton", None),
            ("user/img:tag", None, Some("user"), "img", Some("tag")),
            ("a/b/c:1.0_x-y", None, Some("a/b"), "c", Some("1.0_x-y")),
            ("localhost:5000/img", Some("localhost:5000"), None, "img", None),
            ("reg.example.org/a/b/c:t", Some("reg.example.org"), Some("a/b"), "c", Some("t")),
            ("REG.example.org:80/a", Some("REG.example.org:80"), None, "a", None),
        ] {
            let image: ImageName = text.parse().expect(text);
            let parts = (
                image.registry.as_deref(),
                image.prefix.as_deref(),
                image.name.as_str(),
                image.tag.as_deref(),
            );
            assert_eq!(parts, (registry, prefix, name, tag), "{text}");
            assert_eq!(image.to_string(), text);
        }
        let digest = format!("a/b@sha256:{}", "0a".repeat(32));
        let image: ImageName = digest.parse().expect("a digest");
        assert_eq!((image.to_string(), image.is_latest()), (digest, false));
    }

    #[test]
    fn bad_references_are_refused() {
        let long_tag = format!("a:{}", "t".repeat(129));
        for text in [
            "",
            "A",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:b:c",
            "a b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "Reg/a",
            "a@b",
            "a@sha256:00",
            "a;rm",
            "a\n",
            "--privileged",
            "x:80a/y",
            &long_tag,
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_missing_tag_is_latest() {
        let image = |text: &str| text.parse::<ImageName>().expect(text);
        assert_eq!(image("a/b"), image("a/b:latest"));
        assert_ne!(image("a/b"), image("a/b:1"));
        assert_ne!(image("a/b"), image("b"));
        assert!(image("a").is_latest() && !image("a:1").is_latest());
    }

    #[test]
    fn the_own_registry_wins() {
        let image = |text: &str| text.parse::<ImageName>().expect(text);
        assert_eq!(image("a/b:1").reference("reg:5000"), "reg:5000/a/b:1");
        assert_eq!(image("a/b:1").reference("reg:5000/"), "reg:5000/a/b:1");
        assert_eq!(image("own.org/a/b").reference("reg:5000"), "own.org/a/b");
    }
}
