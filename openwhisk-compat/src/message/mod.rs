//! What travels through Kafka (contract section 2).
//!
//! Values are UTF-8 JSON with a null key. Readers ignore unknown members; writers leave out absent options
//! and emit the superset that every supported controller reads (contract 0.2). The one `null` ever written
//! is an absent `revision`.

mod ack;
mod event;
mod identity;
mod instance;
mod invalidation;
mod transaction;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

pub use self::ack::{AckResponse, Acknowledgement};
pub use self::event::{ActivationEvent, EventBody, MetricEvent, MissingAnnotation, UserEvent};
pub use self::identity::{Identity, Namespace, UserLimits};
pub use self::instance::{ControllerId, InvokerInstanceId, PingMessage};
pub use self::invalidation::{CacheInvalidation, CacheKey};
pub use self::transaction::TransactionId;
pub use crate::entity::FullyQualifiedName;

/// A message that cannot be used. The source names the member and what was found there.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not UTF-8 or not JSON at all, or a member is missing or has the wrong type.
    #[error("unreadable message")]
    Json(#[source] serde_json::Error),
}

/// One activation to run: topic `<prefix>invoker<N>` (contract 2.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActivationMessage {
    /// Echoed unchanged in every acknowledgement.
    pub transid: TransactionId,
    /// The action to run, as the controller resolved it.
    pub action: FullyQualifiedName,
    /// The revision of the action's document; absent (`null`) for health tests.
    #[serde(default)]
    pub revision: Option<String>,
    /// Who invokes.
    pub user: Identity,
    /// The activation's identity.
    pub activation_id: ActivationId,
    /// Where acknowledgements go.
    pub root_controller_index: ControllerId,
    /// Whether a caller waits for the result.
    pub blocking: bool,
    /// The arguments, an object or an array; parameters of package and action are merged in already.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "content")]
    pub content: Option<Value>,
    /// Names of the arguments that go to the environment at `/init`.
    pub init_args: Vec<String>,
    /// Arguments that are encrypted, with the algorithm of each (contract 4.4). Older controllers leave the
    /// member out.
    #[serde(default)]
    pub locked_args: BTreeMap<String, String>,
    /// The activation of the enclosing sequence or composition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<ActivationId>,
    /// Context of a tracing system; carried, not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_context: Option<BTreeMap<String, String>>,
}

impl ActivationMessage {
    /// Reads the value of a Kafka record.
    ///
    /// # Errors
    /// Anything that is not an activation message; such a message has no acknowledgement (contract 3.4).
    pub fn parse(value: &[u8]) -> Result<Self, MessageError> {
        serde_json::from_slice(value).map_err(MessageError::Json)
    }

    /// Whether the activation is a step of a sequence or composition (annotation `causedBy`).
    pub fn caused_by_sequence(&self) -> bool {
        self.cause.is_some()
    }
}

fn content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    match Option::<Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(value @ (Value::Object(_) | Value::Array(_))) => Ok(Some(value)),
        Some(other) => {
            Err(D::Error::custom(format_args!("content is {other}, expected an object or an array")))
        }
    }
}

/// The identity of an activation: 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ActivationId(String);

/// A text that is not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an activation id, expected 32 hexadecimal digits")]
pub struct ActivationIdError(String);

impl ActivationId {
    /// Checks and keeps `text` as it is written.
    ///
    /// # Errors
    /// When `text` is not 32 hexadecimal digits.
    pub fn new(text: impl Into<String>) -> Result<Self, ActivationIdError> {
        let text = text.into();
        if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(text))
        } else {
            Err(ActivationIdError(text.chars().take(64).collect()))
        }
    }

    /// The 32 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ActivationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ActivationId {
    /// A string, or a JSON number: an id of decimal digits only may have lost its quotes on the way. The raw
    /// text is read, since 32 digits do not fit a machine number.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let text = if raw.get().starts_with('"') {
            serde_json::from_str::<String>(raw.get()).map_err(D::Error::custom)?
        } else {
            raw.get().to_owned()
        };
        Self::new(text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
