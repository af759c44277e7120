//! Every setting, declared once (contract 1.3).
//!
//! [`table`] is the one declaration: name, type, default and meaning of each setting. From it come the
//! typed [`Settings`], the reading of the environment, the messages about mistakes, and
//! `docs/configuration.md` ([`document()`]). Reading has two stages and no effects: [`Sources`] gathers raw
//! texts under canonical names, then every declared setting is parsed, and all mistakes are reported at once.

mod document;
mod hocon;
mod properties;
mod sources;
mod table;
mod value;

use crate::entity::ActionLimits;
use crate::limits::LimitBounds;

pub use self::document::document;
pub use self::properties::find_properties_file;
pub use self::sources::{ReadError, Sources};
pub use self::table::*;
pub use self::value::{Choice, Fraction, ManifestText, Map, Secret};

/// One setting, as the table declares it.
#[derive(Debug, Clone, Copy)]
pub struct Declaration {
    /// Where it comes from.
    pub origin: Origin,
    /// Its name there: `kafka.hosts`, `container-pool.user-memory` (below `whisk.`), `REWIND_ENGINE`.
    pub path: &'static str,
    /// The default's text. `None`: required, unless the type has a value for absence.
    pub default: Option<&'static str>,
    /// What it means, in Markdown.
    pub doc: &'static str,
    /// The form expected, such as `a size`.
    pub form: fn() -> String,
    /// Whether it may be absent although it has no default.
    pub optional: bool,
}

/// The family a setting belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A flat property: environment variable in capitals, or a line of `whisk.properties`.
    Flat,
    /// A path of the structured tree below `whisk.`: `CONFIG_whisk_...`, or a file.
    Tree,
    /// A variable of this very name.
    Env,
}

impl Declaration {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        match self.origin {
            Origin::Flat => sources::flat_variable(self.path),
            Origin::Tree => sources::tree_variable(&format!("whisk.{}", self.path)),
            Origin::Env => self.path.to_owned(),
        }
    }
}

/// One mistake of the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The variable, file or line at fault, as the operator wrote it.
    pub place: String,
    /// What is wrong, naming the offending value unless it is a secret.
    pub what: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// All mistakes of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad configuration, cannot start: {}", join(.0))]
pub struct Mistakes(pub Vec<Mistake>);

fn join(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Settings {
    /// Reads the process's environment, and the files it leads to: `whisk.properties` upwards from the
    /// working directory, and the file that `OPENWHISK_CONFIG` names.
    ///
    /// # Errors
    /// Every mistake found.
    pub fn from_process() -> Result<Self, Mistakes> {
        match Sources::from_process() {
            Ok(sources) => Self::read(&sources),
            Err(error) => Err(Mistakes(vec![error.into_mistake()])),
        }
    }

    /// Parses every setting, then checks how they go together.
    ///
    /// # Errors
    /// Every mistake found.
    pub fn read(sources: &Sources) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let settings = Self::parse(sources, &mut mistakes);
        if let Some(settings) = &settings {
            settings.check(&mut mistakes);
        }
        match settings {
            Some(settings) if mistakes.is_empty() => Ok(settings),
            _ => Err(Mistakes(mistakes)),
        }
    }

    /// The standards that stand in for an action's missing limits.
    pub fn standard_limits(&self) -> ActionLimits {
        ActionLimits {
            timeout_ms: millis(self.limits.time_std),
            memory_mb: mb(self.limits.memory_std.mb()),
            logs_mb: mb(self.limits.logs_std.mb()),
            concurrency: self.limits.concurrency_std,
            instances: None,
        }
    }

    /// The bounds of an action's limits where a user has none of his own.
    pub fn limit_bounds(&self) -> LimitBounds {
        let limits = &self.limits;
        let time = |own: Option<std::time::Duration>, system| u64::from(millis(own.unwrap_or(system)));
        let size =
            |own: Option<crate::size::ByteSize>, system: crate::size::ByteSize| own.unwrap_or(system).mb();
        let count = |own: Option<u32>, system: u32| u64::from(own.unwrap_or(system));
        LimitBounds {
            timeout_ms: (
                time(limits.namespace_time_min, limits.time_min),
                time(limits.namespace_time_max, limits.time_max),
            ),
            memory_mb: (
                size(limits.namespace_memory_min, limits.memory_min),
                size(limits.namespace_memory_max, limits.memory_max),
            ),
            logs_mb: (
                size(limits.namespace_logs_min, limits.logs_min),
                size(limits.namespace_logs_max, limits.logs_max),
            ),
            concurrency: (
                count(limits.namespace_concurrency_min, limits.concurrency_min),
                count(limits.namespace_concurrency_max, limits.concurrency_max),
            ),
        }
    }

    /// The largest record on our topics in bytes: payload maximum plus serialisation overhead (contract 1.4).
    pub fn max_message_bytes(&self) -> u64 {
        self.activation.payload_max.bytes() + self.activation.serdes_overhead
    }

    /// How many activations are handed out at once (contract 3.2, `maxPeek`).
    pub fn max_peek(&self) -> u32 {
        let containers = self.pool.user_memory.bytes() / self.limits.memory_min.bytes().max(1);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded down as upstream does, and `as` saturates"
        )]
        let concurrent = (containers as f64
            * f64::from(self.limits.concurrency_max)
            * self.pool.concurrent_peek_factor.value()) as u64;
        u32::try_from(containers.max(concurrent)).unwrap_or(u32::MAX).max(1)
    }

    /// Which activations are stored (contract 4.7).
    pub fn store_level(&self, blocking: bool) -> StoreLevel {
        let level = if blocking {
            self.activation.store_blocking_result_level
        } else {
            self.activation.store_non_blocking_result_level
        };
        level.unwrap_or(match self.activation.disable_store_result {
            true => StoreLevel::Failures,
            false => StoreLevel::Always,
        })
    }

    /// Number of partitions and settings of our own topic, with Kafka's names (contract 1.4).
    pub fn invoker_topic_config(&self) -> (i32, Vec<(String, String)>) {
        let mut config: std::collections::BTreeMap<String, String> = [
            ("retention.ms".to_owned(), "172800000".to_owned()),
            ("retention.bytes".to_owned(), "1073741824".to_owned()),
            ("segment.bytes".to_owned(), "536870912".to_owned()),
            ("max.message.bytes".to_owned(), self.max_message_bytes().to_string()),
        ]
        .into();
        config.extend(self.kafka.invoker_topic.dotted());
        let partitions = config.remove("partitions").and_then(|text| text.parse().ok()).unwrap_or(1);
        (partitions, config.into_iter().collect())
    }

    /// `__OW_API_HOST`: the API's address, without the port when that is the protocol's own.
    pub fn api_host(&self) -> String {
        let OpenWhisk { api_host_proto, api_host_port, api_host_name, .. } = &self.openwhisk;
        let usual = matches!((api_host_proto.as_str(), api_host_port), ("https", 443) | ("http", 80));
        if usual {
            format!("{api_host_proto}://{api_host_name}")
        } else {
            format!("{api_host_proto}://{api_host_name}:{api_host_port}")
        }
    }

    /// What single settings cannot show.
    fn check(&self, mistakes: &mut Vec<Mistake>) {
        let mut check = |holds: bool, path: &str, what: String| {
            if !holds {
                mistakes.push(Mistake { place: sources::tree_variable(&format!("whisk.{path}")), what });
            }
        };
        let limits = &self.limits;
        let order = |min: u128, std: u128, max: u128| min <= std && std <= max;
        check(
            order(limits.time_min.as_millis(), limits.time_std.as_millis(), limits.time_max.as_millis()),
            "time-limit",
            format!(
                "min {:?}, std {:?}, max {:?} are not in order",
                limits.time_min, limits.time_std, limits.time_max
            ),
        );
        for (path, min, std, max) in [
            ("memory", limits.memory_min, limits.memory_std, limits.memory_max),
            ("log-limit", limits.logs_min, limits.logs_std, limits.logs_max),
        ] {
            check(
                order(min.bytes().into(), std.bytes().into(), max.bytes().into()),
                path,
                format!("min {min}, std {std}, max {max} are not in order"),
            );
        }
        check(
            order(
                limits.concurrency_min.into(),
                limits.concurrency_std.into(),
                limits.concurrency_max.into(),
            ),
            "concurrency-limit",
            format!(
                "min {}, std {}, max {} are not in order",
                limits.concurrency_min, limits.concurrency_std, limits.concurrency_max
            ),
        );
        check(
            limits.concurrency_std > 0,
            "concurrency-limit.std",
            "0 activations at once run nothing".to_owned(),
        );
        check(limits.memory_min.mb() > 0, "memory.min", format!("{} is less than 1 MB", limits.memory_min));
        check(
            !limits.time_std.is_zero() && u32::try_from(limits.time_max.as_millis()).is_ok(),
            "time-limit.max",
            format!("{:?} is not a usable time limit", limits.time_max),
        );
        check(
            self.pool.user_memory >= limits.memory_min,
            "container-pool.user-memory",
            format!("{} does not hold one container of {}", self.pool.user_memory, limits.memory_min),
        );
        if let Some(Err(error)) =
            self.kafka.invoker_topic.get("partitions").map(|text| text.parse::<std::num::NonZeroU16>())
        {
            let text = self.kafka.invoker_topic.get("partitions").unwrap_or_default();
            check(
                false,
                "kafka.topics.invoker.partitions",
                format!("`{text}` is not a number of partitions: {error}"),
            );
        }
        let topic = crate::name::invoker_topic(&self.kafka.topics_prefix, u32::MAX);
        check(
            crate::name::is_topic(&topic),
            "kafka.topics.prefix",
            format!("`{}` cannot begin the name of a topic", self.kafka.topics_prefix),
        );
        let topic = crate::name::events_topic(&self.kafka.user_event_prefix);
        check(
            crate::name::is_topic(&topic),
            "kafka.topics.user-event.prefix",
            format!("`{}` cannot begin the name of a topic", self.kafka.user_event_prefix),
        );
    }
}

/// Whole milliseconds, as limits are written; the check at start keeps them below the bound.
fn millis(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn mb(size: u64) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
