//! The runtimes manifest (contract 1.6).

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::duration;
use crate::entity::{ActionLimits, AttachmentRef, Exec, ImageName, ReadContext};
use crate::size::ByteSize;

/// The runtimes this system has.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimesManifest {
    /// By kind.
    runtimes: BTreeMap<String, Runtime>,
    /// The default kind of each family.
    defaults: BTreeMap<String, String>,
    /// Images of blackbox actions that count as native: not pulled, their logs are sentinelled.
    blackboxes: Vec<ImageName>,
}

/// One runtime.
#[derive(Debug, Clone, PartialEq)]
pub struct Runtime {
    /// The kind, such as `nodejs:20`.
    pub kind: String,
    /// The image its containers run.
    pub image: ImageName,
    /// Whether actions of it may still be created; the invoker runs them either way.
    pub deprecated: bool,
    /// Whether an action must name its entry point.
    pub require_main: bool,
    /// Whether code goes to an attachment.
    pub attached: bool,
    /// Whether it marks the end of an activation's output.
    pub sentinelled_logs: bool,
    /// Containers to keep ready.
    pub stem_cells: Vec<StemCell>,
}

/// How many containers of one kind and memory are kept ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StemCell {
    /// How many at the start, and always if not `reactive`.
    pub initial_count: NonZeroU32,
    /// Memory of each.
    pub memory: ByteSize,
    /// How the number follows demand.
    pub reactive: Option<Reactive>,
}

/// How the number of stem cells follows demand (contract 6.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reactive {
    /// Never fewer than this many.
    pub min_count: u32,
    /// Never more than this many.
    pub max_count: u32,
    /// How long one is kept.
    pub ttl: Duration,
    /// So many cold starts ask for `increment` more.
    pub threshold: u32,
    /// See `threshold`.
    pub increment: u32,
}

/// All that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ManifestError(pub Vec<String>);

#[derive(Deserialize)]
struct ManifestJson {
    #[serde(default)]
    runtimes: BTreeMap<String, Vec<Box<RawValue>>>,
    #[serde(default)]
    blackboxes: Vec<ImageName>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeJson {
    kind: String,
    image: ImageName,
    #[serde(default)]
    deprecated: Option<bool>,
    #[serde(default)]
    default: Option<bool>,
    #[serde(default)]
    attached: Option<AttachmentRef>,
    #[serde(default)]
    require_main: Option<bool>,
    #[serde(default)]
    sentinelled_logs: Option<bool>,
    #[serde(default)]
    stem_cells: Option<Vec<StemCellJson>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StemCellJson {
    /// Called `count` in 1.0.0's first manifests.
    #[serde(alias = "count")]
    initial_count: i64,
    memory: ByteSize,
    #[serde(default)]
    reactive: Option<ReactiveJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReactiveJson {
    min_count: i64,
    max_count: i64,
    ttl: String,
    threshold: i64,
    increment: i64,
}

impl RuntimesManifest {
    /// Reads the JSON text of `RUNTIMES_MANIFEST`.
    ///
    /// # Errors
    /// Every mistake found, each naming the kind and the offending value.
    pub fn parse(json: &str) -> Result<Self, ManifestError> {
        let manifest: ManifestJson =
            serde_json::from_str(json).map_err(|error| ManifestError(vec![error.to_string()]))?;
        let mut mistakes = Vec::new();
        let mut runtimes = BTreeMap::new();
        let mut defaults = BTreeMap::new();
        for (family, versions) in manifest.runtimes {
            let mut kinds = Vec::new();
            let mut marked = Vec::new();
            for raw in versions {
                let version: RuntimeJson = match serde_json::from_str(raw.get()) {
                    Ok(version) => version,
                    Err(error) => {
                        mistakes.push(format!("family `{family}`: {error}"));
                        continue;
                    }
                };
                let is_default = version.default == Some(true);
                let runtime = version.check(&mut mistakes);
                kinds.push(runtime.kind.clone());
                if is_default {
                    marked.push(runtime.kind.clone());
                }
                if let Some(twin) = runtimes.insert(runtime.kind.clone(), runtime) {
                    mistakes.push(format!("kind `{}` is there twice", twin.kind));
                }
            }
            match (kinds.as_slice(), marked.as_slice()) {
                (_, [default]) | ([default], []) => {
                    defaults.insert(family, default.clone());
                }
                ([], []) => {}
                (kinds, []) => {
                    mistakes.push(format!("family `{family}` has no default among {}", kinds.join(", ")));
                }
                (_, several) => {
                    mistakes.push(format!("family `{family}` has several defaults: {}", several.join(", ")));
                }
            }
        }
        if mistakes.is_empty() {
            Ok(Self { runtimes, defaults, blackboxes: manifest.blackboxes })
        } else {
            Err(ManifestError(mistakes))
        }
    }

    /// The runtime for a kind; `family:default` is resolved, and so is a bare `family` of old documents.
    pub fn runtime(&self, kind: &str) -> Option<&Runtime> {
        let default = |family: &str| self.defaults.get(family).and_then(|kind| self.runtimes.get(kind));
        self.runtimes.get(kind).or_else(|| match kind.strip_suffix(":default") {
            Some(family) => default(family),
            None if !kind.contains(':') => default(kind),
            None => None,
        })
    }

    /// All runtimes, by kind.
    pub fn runtimes(&self) -> impl Iterator<Item = &Runtime> {
        self.runtimes.values()
    }

    /// The images that count as native.
    pub fn blackboxes(&self) -> &[ImageName] {
        &self.blackboxes
    }

    /// Whether containers of this action mark the end of an activation's output: its kind does, or it is a
    /// blackbox action whose image counts as native (contract 5.8).
    pub fn has_sentinels(&self, exec: &Exec) -> bool {
        match &exec.image {
            Some(image) => self.blackboxes.contains(image),
            None => self.runtime(&exec.kind).is_none_or(|runtime| runtime.sentinelled_logs),
        }
    }

    /// Whether a blackbox action's image is used as it lies on the machine, without a pull: it counts as
    /// native, or its prefix is `local_prefix` (`runtimes.local-image-prefix`, if
    /// `runtimes.bypass-pull-for-local-images`).
    pub fn skips_pull(&self, image: &ImageName, local_prefix: Option<&str>) -> bool {
        self.blackboxes.contains(image) || (local_prefix.is_some() && image.prefix.as_deref() == local_prefix)
    }

    /// What a document needs to become an executable action.
    pub fn read_context(&self, standard: ActionLimits) -> ManifestContext<'_> {
        ManifestContext { manifest: self, standard }
    }
}

/// A manifest together with the standard limits.
#[derive(Debug, Clone, Copy)]
pub struct ManifestContext<'a> {
    manifest: &'a RuntimesManifest,
    standard: ActionLimits,
}

impl ReadContext for ManifestContext<'_> {
    fn resolve_kind(&self, kind: &str) -> Option<String> {
        self.manifest.runtime(kind).map(|runtime| runtime.kind.clone())
    }

    fn standard_limits(&self) -> ActionLimits {
        self.standard
    }
}

impl RuntimeJson {
    fn check(self, mistakes: &mut Vec<String>) -> Runtime {
        let kind = self.kind;
        if self.image.reference("").parse::<ImageName>().is_err() {
            mistakes.push(format!("kind `{kind}`: `{}` is not the name of an image", self.image));
        }
        let stem_cells = self.stem_cells.unwrap_or_default();
        let stem_cells = stem_cells.into_iter().filter_map(|cell| cell.check(&kind, mistakes)).collect();
        Runtime {
            kind,
            image: self.image,
            deprecated: self.deprecated.unwrap_or(false),
            require_main: self.require_main.unwrap_or(false),
            attached: self.attached.is_some(),
            sentinelled_logs: self.sentinelled_logs.unwrap_or(true),
            stem_cells,
        }
    }
}

impl StemCellJson {
    fn check(self, kind: &str, mistakes: &mut Vec<String>) -> Option<StemCell> {
        let before = mistakes.len();
        let initial_count = u32::try_from(self.initial_count).ok().and_then(NonZeroU32::new);
        if initial_count.is_none() {
            mistakes
                .push(format!("kind `{kind}`: initialCount is {}, expected more than 0", self.initial_count));
        }
        if self.memory.mb() == 0 {
            mistakes.push(format!("kind `{kind}`: memory is {}, expected at least 1 MB", self.memory));
        }
        let reactive = self.reactive.and_then(|reactive| reactive.check(kind, mistakes));
        (mistakes.len() == before).then_some(())?;
        Some(StemCell { initial_count: initial_count?, memory: self.memory, reactive })
    }
}

impl ReactiveJson {
    fn check(self, kind: &str, mistakes: &mut Vec<String>) -> Option<Reactive> {
        let before = mistakes.len();
        let Self { min_count, max_count, ttl: ttl_text, threshold, increment } = self;
        let mut count = |name: &str, value: i64, holds: bool, rule: &str| {
            let number = u32::try_from(value).ok().filter(|_| holds);
            if number.is_none() {
                mistakes.push(format!("kind `{kind}`: {name} is {value}, expected {rule}"));
            }
            number
        };
        let max = count("maxCount", max_count, max_count > 0, "more than 0");
        let min = count("minCount", min_count, min_count <= max_count, "0 to maxCount");
        let threshold = count("threshold", threshold, threshold > 0, "more than 0");
        let increment = count(
            "increment",
            increment,
            increment > 0 && increment <= max_count,
            "more than 0 and at most maxCount",
        );
        let ttl = match duration::parse(&ttl_text) {
            Ok(ttl) if !ttl.is_zero() => Some(ttl),
            Ok(_) => {
                mistakes.push(format!("kind `{kind}`: ttl is `{ttl_text}`, expected more than 0"));
                None
            }
            Err(error) => {
                mistakes.push(format!("kind `{kind}`: ttl: {error}"));
                None
            }
        };
        (mistakes.len() == before).then_some(())?;
        Some(Reactive {
            min_count: min?,
            max_count: max?,
            ttl: ttl?,
            threshold: threshold?,
            increment: increment?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn example() -> Value {
        json!({"runtimes":{"nodejs":[{"kind":"nodejs:20","default":true,"image":{"prefix":"openwhisk","name":"action-nodejs-v20","tag":"nightly"},
          "deprecated":false,"attached":{"attachmentName":"codefile","attachmentType":"text/plain"},
          "stemCells":[{"initialCount":2,"memory":"256 MB","reactive":{"minCount":1,"maxCount":4,"ttl":"2 minutes","threshold":1,"increment":1}}]}],
         "java":[{"kind":"java:8","default":true,"requireMain":true,"image":{"prefix":"openwhisk","name":"java8action","tag":"nightly"},
          "attached":{"attachmentName":"codefile","attachmentType":"text/plain"}}]},
         "blackboxes":[{"prefix":"openwhisk","name":"dockerskeleton","tag":"nightly"}]})
    }

    fn mistakes(manifest: &Value) -> Vec<String> {
        match RuntimesManifest::parse(&manifest.to_string()) {
            Ok(_) => Vec::new(),
            Err(ManifestError(mistakes)) => mistakes,
        }
    }

    #[test]
    fn the_contract_s_example_is_read() {
        let manifest = RuntimesManifest::parse(&example().to_string()).expect("a manifest");
        let node = manifest.runtime("nodejs:default").expect("nodejs");
        assert_eq!((node.kind.as_str(), node.sentinelled_logs, node.attached), ("nodejs:20", true, true));
        assert_eq!(node.image.to_string(), "openwhisk/action-nodejs-v20:nightly");
        let cell = &node.stem_cells[0];
        assert_eq!((cell.initial_count.get(), cell.memory.mb()), (2, 256));
        let reactive = cell.reactive.as_ref().expect("reactive");
        assert_eq!((reactive.min_count, reactive.max_count, reactive.ttl), (1, 4, Duration::from_secs(120)));
        assert!(manifest.runtime("java").expect("java").require_main);
        assert!(manifest.runtime("nodejs:18").is_none());
        let skeleton: ImageName = "openwhisk/dockerskeleton:nightly".parse().expect("an image");
        assert!(manifest.skips_pull(&skeleton, None));
        let local: ImageName = "whisk/local".parse().expect("an image");
        assert!(!manifest.skips_pull(&local, None) && manifest.skips_pull(&local, Some("whisk")));
    }

    #[test]
    fn sentinels_are_expected_where_the_manifest_says() {
        let mut json = example();
        json["runtimes"]["java"][0]["sentinelledLogs"] = json!(false);
        let manifest = RuntimesManifest::parse(&json.to_string()).expect("a manifest");
        let exec = |kind: &str, image: Option<&str>| Exec {
            kind: kind.to_owned(),
            image: image.map(|image| image.parse().expect("an image")),
            code: None,
            binary: false,
            main: None,
        };
        assert!(manifest.has_sentinels(&exec("nodejs:20", None)));
        assert!(!manifest.has_sentinels(&exec("java:8", None)));
        assert!(manifest.has_sentinels(&exec("blackbox", Some("openwhisk/dockerskeleton:nightly"))));
        assert!(!manifest.has_sentinels(&exec("blackbox", Some("user/img"))));
    }

    #[test]
    fn a_family_has_one_default() {
        let image = json!({"name":"a"});
        let two = |a: bool, b: bool| json!({"runtimes":{"x":[{"kind":"x:1","image":image,"default":a},{"kind":"x:2","image":image,"default":b}]}});
        assert_eq!(mistakes(&two(true, false)), Vec::<String>::new());
        assert_eq!(mistakes(&two(false, false)), ["family `x` has no default among x:1, x:2"]);
        assert_eq!(mistakes(&two(true, true)), ["family `x` has several defaults: x:1, x:2"]);
        let single = json!({"runtimes":{"x":[{"kind":"x:1","image":image}]}}).to_string();
        let single = RuntimesManifest::parse(&single).expect("a manifest");
        assert_eq!(single.runtime("x:default").expect("the only one").kind, "x:1");
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let manifest = json!({"runtimes":{
            "x":[{"kind":"x:1","image":{"name":"Bad Name"},"stemCells":[
                {"initialCount":0,"memory":"256 MB"},
                {"initialCount":1,"memory":"256 MB","reactive":{"minCount":5,"maxCount":4,"ttl":"0 s","threshold":0,"increment":9}}]}],
            "y":[{"kind":"y:1"}],
            "z":[{"kind":"z:1","image":{"name":"z"},"stemCells":[{"initialCount":1,"memory":"lots"}]}]}});
        let found = mistakes(&manifest).join("\n");
        for expected in [
            "kind `x:1`: `Bad Name` is not the name of an image",
            "kind `x:1`: initialCount is 0, expected more than 0",
            "kind `x:1`: minCount is 5, expected 0 to maxCount",
            "kind `x:1`: threshold is 0, expected more than 0",
            "kind `x:1`: increment is 9, expected more than 0 and at most maxCount",
            "kind `x:1`: ttl is `0 s`, expected more than 0",
            "family `y`: missing field `image`",
            "`lots` is not a size",
        ] {
            assert!(found.contains(expected), "{expected} not in\n{found}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = RuntimesManifest::parse(&text);
        }
    }
}
