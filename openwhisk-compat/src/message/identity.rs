//! Who invokes, with what limits (contract 2.3).

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::size::ByteSize;

/// The invoking user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The subject's name.
    pub subject: String,
    /// The namespace invoked in.
    pub namespace: Namespace,
    /// The "generic auth key": an object whose members go to the action's environment (contract 5.2).
    #[serde(default, deserialize_with = "authkey")]
    pub authkey: Map<String, Value>,
    /// Subset of `READ`, `PUT`, `DELETE`, `ACTIVATE`, `REJECT`; not used by the invoker.
    #[serde(default)]
    pub rights: Vec<String>,
    /// Limits that differ from the system's.
    #[serde(default)]
    pub limits: UserLimits,
}

/// A namespace: name and identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// The name, first part of every path.
    pub name: String,
    /// The identity, `userId` of user events.
    pub uuid: String,
}

/// Limits of one user, all optional. Logs and memory are in MB, time-outs in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the names are the wire's and say what they are; the units are above")]
pub struct UserLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invocations_per_minute: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_invocations: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fires_per_minute: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_kinds: Option<Vec<String>>,
    /// Absent means yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_activations: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_action_memory: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_action_memory: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_action_logs: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_action_logs: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_action_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_action_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_action_concurrency: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_action_concurrency: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_action_instances: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_parameter_size: Option<ByteSize>,
    /// The largest answer to `/run` (contract 5.5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_payload_size: Option<ByteSize>,
    /// How much of a larger answer is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncation_size: Option<ByteSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmed_container_keeping_count: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmed_container_keeping_timeout: Option<String>,
}

impl UserLimits {
    /// Whether this user's activations are stored at all (contract 4.7).
    pub fn stores_activations(&self) -> bool {
        self.store_activations.unwrap_or(true)
    }
}

/// An object; a bare string is the old form of an API key.
fn authkey<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Object(members) => Ok(members),
        Value::String(key) => Ok(Map::from_iter([("api_key".to_owned(), Value::String(key))])),
        Value::Null => Ok(Map::new()),
        // The value is a credential: say its type, not its text.
        _ => Err(D::Error::custom("authkey is neither an object nor a string")),
    }
}
