//! Annotations of actions and activations (contract 4.6, 5.2).

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ActionLimits, SEQUENCE};

/// The keys of annotations that mean something to the invoker.
pub mod annotation {
    /// `sequence` when a sequence caused the activation.
    pub const CAUSED_BY: &str = "causedBy";
    /// The package binding through which the action was reached.
    pub const BINDING: &str = "binding";
    /// `ns/[pkg/]name` without a version.
    pub const PATH: &str = "path";
    /// Milliseconds from the transaction's start to the action's.
    pub const WAIT_TIME: &str = "waitTime";
    /// The action's kind.
    pub const KIND: &str = "kind";
    /// Whether the time limit was exceeded.
    pub const TIMEOUT: &str = "timeout";
    /// The action's limits.
    pub const LIMITS: &str = "limits";
    /// Milliseconds `/init` took; only there when it ran.
    pub const INIT_TIME: &str = "initTime";
    /// On an action or record: it is a conductor.
    pub const CONDUCTOR: &str = "conductor";
    /// On an action: whether the API key goes to the environment.
    pub const PROVIDE_API_KEY: &str = "provide-api-key";
    /// The kind of an activation that never came to an action.
    pub const UNKNOWN_KIND: &str = "unknown";
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Annotation {
    key: String,
    #[serde(default)]
    value: Value,
}

/// A list of keys and values in a kept order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Annotations(Vec<Annotation>);

/// What the annotations of an activation are made of. Times are in milliseconds.
#[derive(Debug, Clone)]
pub struct ActivationFacts<'a> {
    /// A sequence or composition caused it.
    pub caused_by_sequence: bool,
    /// The package binding's path.
    pub binding: Option<&'a str>,
    /// `ns/[pkg/]name`.
    pub path: &'a str,
    /// From the transaction's start to the action's.
    pub wait_ms: u64,
    /// The action's kind.
    pub kind: &'a str,
    /// The time limit was exceeded.
    pub timed_out: bool,
    /// The action's limits.
    pub limits: &'a ActionLimits,
    /// How long `/init` took, if it ran.
    pub init_ms: Option<u64>,
}

impl Annotations {
    /// The value under `key`; the last of that name.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().rev().find(|annotation| annotation.key == key).map(|annotation| &annotation.value)
    }

    /// Keys and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|annotation| (annotation.key.as_str(), &annotation.value))
    }

    /// Whether the value under `key` is truthy; `absent` if there is none (contract 5.2).
    pub fn is_truthy(&self, key: &str, absent: bool) -> bool {
        self.get(key).map_or(absent, is_truthy)
    }

    /// Appends one.
    pub fn push(&mut self, key: &str, value: impl Into<Value>) {
        self.0.push(Annotation { key: key.to_owned(), value: value.into() });
    }

    /// The annotations of an activation that reached a container, in upstream's order.
    pub fn of_activation(facts: &ActivationFacts<'_>) -> Self {
        let mut this = Self::default();
        if facts.caused_by_sequence {
            this.push(annotation::CAUSED_BY, SEQUENCE);
        }
        if let Some(binding) = facts.binding {
            this.push(annotation::BINDING, binding);
        }
        this.push(annotation::PATH, facts.path);
        this.push(annotation::WAIT_TIME, facts.wait_ms);
        this.push(annotation::KIND, facts.kind);
        this.push(annotation::TIMEOUT, facts.timed_out);
        this.push(annotation::LIMITS, limits_value(facts.limits));
        if let Some(init_ms) = facts.init_ms {
            this.push(annotation::INIT_TIME, init_ms);
        }
        this
    }

    /// The annotations of a fallback activation, which never came to an action (contract 3.5).
    pub fn of_fallback(path: &str, caused_by_sequence: bool, binding: Option<&str>) -> Self {
        let mut this = Self::default();
        this.push(annotation::PATH, path);
        this.push(annotation::KIND, annotation::UNKNOWN_KIND);
        if caused_by_sequence {
            this.push(annotation::CAUSED_BY, SEQUENCE);
        }
        if let Some(binding) = binding {
            this.push(annotation::BINDING, binding);
        }
        this
    }
}

fn limits_value(limits: &ActionLimits) -> Value {
    let ActionLimits { timeout_ms, memory_mb, logs_mb, concurrency, instances } = limits;
    let mut value =
        json!({ "timeout": timeout_ms, "memory": memory_mb, "logs": logs_mb, "concurrency": concurrency });
    if let Some(instances) = instances {
        value["instances"] = json!(instances);
    }
    value
}

/// True, a number other than zero, a text that is not empty, an object or an array.
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        // A number too large for a float is certainly not zero.
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

impl PartialEq for Annotations {
    /// As maps: order is no part of the value.
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && (self.0 == other.0 || self.0.iter().all(|mine| self.get(&mine.key) == other.get(&mine.key)))
    }
}

impl Eq for Annotations {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truthiness() {
        let list = |value: Value| {
            serde_json::from_value::<Annotations>(json!([{ "key": "k", "value": value }]))
                .expect("annotations")
        };
        for value in [json!(true), json!(1), json!(-0.5), json!("x"), json!("false"), json!([]), json!({})] {
            assert!(list(value.clone()).is_truthy("k", false), "{value}");
        }
        for value in [json!(false), json!(0), json!(0.0), json!(""), Value::Null] {
            assert!(!list(value.clone()).is_truthy("k", true), "{value}");
        }
        assert!(list(json!(false)).is_truthy("other", true));
        assert!(!list(json!(true)).is_truthy("other", false));
    }

    #[test]
    fn activations_are_annotated_in_upstream_s_order() {
        let facts = ActivationFacts {
            caused_by_sequence: true,
            binding: Some("guest/b1"),
            path: "guest/p1/inpkg",
            wait_ms: 77,
            kind: "nodejs:20",
            timed_out: false,
            limits: &ActionLimits::STANDARD,
            init_ms: Some(50),
        };
        let keys = |facts: &ActivationFacts<'_>| {
            Annotations::of_activation(facts).iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            keys(&facts),
            ["causedBy", "binding", "path", "waitTime", "kind", "timeout", "limits", "initTime"]
        );
        let warm = ActivationFacts { caused_by_sequence: false, binding: None, init_ms: None, ..facts };
        assert_eq!(keys(&warm), ["path", "waitTime", "kind", "timeout", "limits"]);
    }
}
