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
#[serde(rename_all = "camelCase", from = "Envelope")]
pub struct ActivationMessage {
    /// Echoed unchanged in every acknowledgement.
    pub transid: TransactionId,
    /// The action to run, as the controller resolved it.
    pub action: FullyQualifiedName,
    /// The revision of the action's document; absent (`null`) for health tests.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
    /// Why the arguments cannot be used, if so; `content` is absent then. They are the caller's, and a caller
    /// must not be able to take the invoker's slot from the controller by arguments that nobody answers.
    #[serde(skip)]
    pub unusable_content: Option<String>,
    /// Names of the arguments that go to the environment at `/init`.
    pub init_args: Vec<String>,
    /// Arguments that are encrypted, with the algorithm of each (contract 4.4). Older controllers leave the
    /// member out.
    pub locked_args: BTreeMap<String, String>,
    /// The activation of the enclosing sequence or composition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<ActivationId>,
    /// Context of a tracing system; carried, not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_context: Option<BTreeMap<String, String>>,
}

impl ActivationMessage {
    /// Reads the value of a Kafka record.
    ///
    /// # Errors
    /// Anything that is not an activation message; such a message has no acknowledgement (contract 3.4).
    /// Unusable arguments are no error here, see [`ActivationMessage::unusable_content`].
    pub fn parse(value: &[u8]) -> Result<Self, MessageError> {
        serde_json::from_slice(value).map_err(MessageError::Json)
    }

    /// Whether the activation is a step of a sequence or composition (annotation `causedBy`).
    pub fn caused_by_sequence(&self) -> bool {
        self.cause.is_some()
    }
}

/// An activation message before its arguments are read. Reading raw JSON knows no limit of depth.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    transid: TransactionId,
    action: FullyQualifiedName,
    #[serde(default)]
    revision: Option<String>,
    user: Identity,
    activation_id: ActivationId,
    root_controller_index: ControllerId,
    blocking: bool,
    #[serde(default)]
    content: Option<Box<RawValue>>,
    init_args: Vec<String>,
    #[serde(default)]
    locked_args: BTreeMap<String, String>,
    #[serde(default)]
    cause: Option<ActivationId>,
    #[serde(default)]
    trace_context: Option<Box<RawValue>>,
}

impl From<Envelope> for ActivationMessage {
    fn from(envelope: Envelope) -> Self {
        let (content, unusable_content) = match envelope.content.map(|raw| read_content(&raw)) {
            None => (None, None),
            Some(Ok(content)) => (content, None),
            Some(Err(reason)) => (None, Some(reason)),
        };
        Self {
            transid: envelope.transid,
            action: envelope.action,
            revision: envelope.revision,
            user: envelope.user,
            activation_id: envelope.activation_id,
            root_controller_index: envelope.root_controller_index,
            blocking: envelope.blocking,
            content,
            unusable_content,
            init_args: envelope.init_args,
            locked_args: envelope.locked_args,
            cause: envelope.cause,
            // Of no consequence, hence no reason to refuse the message.
            trace_context: envelope.trace_context.and_then(|raw| serde_json::from_str(raw.get()).ok()),
        }
    }
}

fn read_content(raw: &RawValue) -> Result<Option<Value>, String> {
    match crate::json::parse(raw.get()) {
        Ok(Value::Null) => Ok(None),
        Ok(value @ (Value::Object(_) | Value::Array(_))) => Ok(Some(value)),
        Ok(other) => {
            let shown: String = other.to_string().chars().take(80).collect();
            Err(format!("arguments are {shown}, expected an object or an array"))
        }
        Err(error) => Err(format!("arguments cannot be read: {error}")),
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
