//! Activation records (contract 4.6).

use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::Annotations;
use crate::message::ActivationId;

/// How an activation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StatusCode {
    /// 0: the action gave a result.
    Success,
    /// 1: the action gave an error as its result.
    ApplicationError,
    /// 2: the action misbehaved.
    DeveloperError,
    /// 3: we failed. Feeds the controller's view of our health.
    WhiskError,
}

impl StatusCode {
    /// The number on the wire.
    pub const fn code(self) -> u8 {
        match self {
            StatusCode::Success => 0,
            StatusCode::ApplicationError => 1,
            StatusCode::DeveloperError => 2,
            StatusCode::WhiskError => 3,
        }
    }

    /// The status of this number.
    pub const fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            0 => StatusCode::Success,
            1 => StatusCode::ApplicationError,
            2 => StatusCode::DeveloperError,
            3 => StatusCode::WhiskError,
            _ => return None,
        })
    }

    /// The words of the API's `response.status`.
    pub const fn status(self) -> &'static str {
        match self {
            StatusCode::Success => "success",
            StatusCode::ApplicationError => "application error",
            StatusCode::DeveloperError => "action developer error",
            StatusCode::WhiskError => "whisk internal error",
        }
    }
}

impl Serialize for StatusCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.code())
    }
}

impl<'de> Deserialize<'de> for StatusCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = u64::deserialize(deserializer)?;
        Self::from_code(code)
            .ok_or_else(|| serde::de::Error::custom(format_args!("status code {code}, expected 0 to 3")))
    }
}

/// What an activation answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActivationResponse {
    /// How it ended.
    pub status_code: StatusCode,
    /// Object or array; for errors `{"error": ...}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Length of the container's answer in UTF-16 units; absent when it gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

impl ActivationResponse {
    /// A success.
    pub fn success(result: Value, size: u64) -> Self {
        Self { status_code: StatusCode::Success, result: Some(result), size: Some(size) }
    }

    /// An error: its result is `{"error": error}`.
    pub fn error(status_code: StatusCode, error: impl Into<Value>, size: Option<u64>) -> Self {
        Self { status_code, result: Some(json!({ "error": error.into() })), size }
    }

    /// Whether the failure is ours: `isSystemError` of an acknowledgement.
    pub fn is_whisk_error(&self) -> bool {
        self.status_code == StatusCode::WhiskError
    }

    /// Whether the container that gave it must go: any status but success and application error
    /// (contract 6.3).
    pub fn is_container_failure(&self) -> bool {
        matches!(self.status_code, StatusCode::DeveloperError | StatusCode::WhiskError)
    }
}

/// The record of one activation. Times are in milliseconds, points in time since the epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActivationRecord {
    /// The invoking namespace's name.
    pub namespace: String,
    /// The action's simple name.
    pub name: String,
    /// The invoking subject.
    pub subject: String,
    /// Its identity.
    pub activation_id: ActivationId,
    /// The enclosing sequence or composition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<ActivationId>,
    /// Run start minus init duration; init start when init failed.
    pub start: u64,
    /// Run end. Controllers write 0 for triggers.
    #[serde(default)]
    pub end: u64,
    /// What it answered.
    pub response: ActivationResponse,
    /// Lines of output (contract 5.8); empty in acknowledgements.
    #[serde(default)]
    pub logs: Vec<String>,
    /// The action's version.
    #[serde(default = "first_version")]
    pub version: String,
    /// Always false.
    #[serde(default)]
    pub publish: bool,
    /// See [`Annotations::of_activation`].
    #[serde(default)]
    pub annotations: Annotations,
    /// `end - start`; controllers leave it out for triggers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<u64>,
}

fn first_version() -> String {
    "0.0.1".to_owned()
}

impl ActivationRecord {
    /// The same without logs, as it goes into acknowledgements.
    #[must_use]
    pub fn without_logs(&self) -> Self {
        // Field by field, so that logs of megabytes are not copied only to be dropped.
        Self {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            subject: self.subject.clone(),
            activation_id: self.activation_id.clone(),
            cause: self.cause.clone(),
            start: self.start,
            end: self.end,
            response: self.response.clone(),
            logs: Vec::new(),
            version: self.version.clone(),
            publish: self.publish,
            annotations: self.annotations.clone(),
            duration: self.duration,
        }
    }

    /// The document's id: `ns/activationId`.
    pub fn document_id(&self) -> String {
        format!("{}/{}", self.namespace, self.activation_id)
    }
}

/// A record as a document of the activations database.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredActivation {
    /// The record.
    pub record: ActivationRecord,
    /// When it is written, milliseconds since the epoch.
    pub updated: u64,
}

impl StoredActivation {
    /// The document's id: `ns/activationId`.
    pub fn id(&self) -> String {
        self.record.document_id()
    }
}

impl Serialize for StoredActivation {
    /// The record's members between the envelope's (contract 4.2). Written by hand: `serde(flatten)` and
    /// numbers of arbitrary precision do not go together.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ActivationRecord {
            namespace,
            name,
            subject,
            activation_id,
            cause,
            start,
            end,
            response,
            logs,
            version,
            publish,
            annotations,
            duration,
        } = &self.record;
        let members = 14 + usize::from(cause.is_some()) + usize::from(duration.is_some());
        let mut document = serializer.serialize_struct("StoredActivation", members)?;
        document.serialize_field("_id", &self.id())?;
        document.serialize_field("namespace", namespace)?;
        document.serialize_field("name", name)?;
        document.serialize_field("subject", subject)?;
        document.serialize_field("activationId", activation_id)?;
        if let Some(cause) = cause {
            document.serialize_field("cause", cause)?;
        }
        document.serialize_field("start", start)?;
        document.serialize_field("end", end)?;
        document.serialize_field("response", response)?;
        document.serialize_field("logs", logs)?;
        document.serialize_field("version", version)?;
        document.serialize_field("publish", publish)?;
        document.serialize_field("annotations", annotations)?;
        if let Some(duration) = duration {
            document.serialize_field("duration", duration)?;
        }
        document.serialize_field("updated", &self.updated)?;
        document.serialize_field("entityType", "activation")?;
        document.end()
    }
}
