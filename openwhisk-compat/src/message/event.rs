//! User events (contract 2.7).

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{ActivationId, Identity};
use crate::entity::{ActivationRecord, annotation};

/// One message on topic `<userEventPrefix>events`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UserEvent {
    /// Who reports: `invoker0`, `controller0`.
    pub source: String,
    /// What happened.
    pub body: EventBody,
    /// The invoking subject.
    pub subject: String,
    /// The invoking namespace's name.
    pub namespace: String,
    /// The invoking namespace's uuid.
    pub user_id: String,
    /// `Activation` or `Metric`, after the body.
    pub event_type: String,
    /// Milliseconds since the epoch.
    pub timestamp: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum EventBody {
    /// An activation ended.
    Activation(ActivationEvent),
    /// A controller counted something.
    Metric(MetricEvent),
}

/// An activation that ended. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActivationEvent {
    /// The `path` annotation.
    pub name: String,
    /// Whose.
    pub activation_id: ActivationId,
    /// The response's status, 0 to 3.
    pub status_code: u8,
    /// Init and run.
    pub duration: u64,
    /// From the transaction's start to the action's.
    pub wait_time: u64,
    /// 0 when the container was warm.
    pub init_time: u64,
    /// The action's kind, `unknown` if it never came to that.
    pub kind: String,
    /// Whether a conductor.
    pub conductor: bool,
    /// The action's memory limit in MB, 0 when unknown.
    pub memory: u32,
    /// `sequence` for a step of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caused_by: Option<String>,
    /// The response's size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The status the action put into its result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_defined_status_code: Option<i64>,
}

/// A controller's count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricEvent {
    /// `ConcurrentRateLimit`, `TimedRateLimit` or `ConcurrentInvocations`.
    pub metric_name: String,
    /// The count.
    pub metric_value: i64,
}

/// The record lacks an annotation without which there is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("activation has no text annotation `{0}`")]
pub struct MissingAnnotation(pub &'static str);

impl UserEvent {
    /// The event for an activation that ended, built from the unshrunk record.
    ///
    /// # Errors
    /// When the record has no `path` or `kind` annotation; no event is sent then.
    pub fn activation(
        source: String,
        record: &ActivationRecord,
        user: &Identity,
        now_ms: u64,
    ) -> Result<Self, MissingAnnotation> {
        let text = |key: &'static str| {
            record
                .annotations
                .get(key)
                .and_then(Value::as_str)
                .map(str::to_owned)
                .ok_or(MissingAnnotation(key))
        };
        let number = |key: &str| record.annotations.get(key).and_then(Value::as_u64).unwrap_or(0);
        let memory = record
            .annotations
            .get(annotation::LIMITS)
            .and_then(|limits| limits.get("memory"))
            .and_then(Value::as_u64)
            .and_then(|mb| u32::try_from(mb).ok())
            .unwrap_or(0);
        let body = ActivationEvent {
            name: text(annotation::PATH)?,
            activation_id: record.activation_id.clone(),
            status_code: record.response.status_code.code(),
            duration: record.duration.unwrap_or(0),
            wait_time: number(annotation::WAIT_TIME),
            init_time: number(annotation::INIT_TIME),
            kind: text(annotation::KIND)?,
            conductor: record.annotations.get(annotation::CONDUCTOR) == Some(&Value::Bool(true)),
            memory,
            caused_by: text(annotation::CAUSED_BY).ok(),
            size: record.response.size,
            user_defined_status_code: user_defined_status_code(record.response.result.as_ref()),
        };
        Ok(Self {
            source,
            body: EventBody::Activation(body),
            subject: record.subject.clone(),
            namespace: record.namespace.clone(),
            user_id: user.namespace.uuid.clone(),
            event_type: "Activation".to_owned(),
            timestamp: now_ms,
        })
    }
}

/// `result.error.statusCode`, else `result.statusCode`; 400 when it is there and not an integer.
fn user_defined_status_code(result: Option<&Value>) -> Option<i64> {
    const BAD_REQUEST: i64 = 400;
    let result = result?.as_object()?;
    let status =
        result.get("error").and_then(|error| error.get("statusCode")).or_else(|| result.get("statusCode"))?;
    Some(match status {
        Value::Number(number) => number.as_i64().unwrap_or(BAD_REQUEST),
        Value::String(text) => text.parse().unwrap_or(BAD_REQUEST),
        _ => BAD_REQUEST,
    })
}

impl<'de> Deserialize<'de> for UserEvent {
    /// The body's type follows from its members, as upstream's reader has it: `metricName` makes a metric.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Read {
            source: String,
            body: Box<RawValue>,
            subject: String,
            namespace: String,
            user_id: String,
            event_type: String,
            timestamp: u64,
        }
        let Read { source, body, subject, namespace, user_id, event_type, timestamp } =
            Read::deserialize(deserializer)?;
        let members: serde_json::Map<String, Value> =
            serde_json::from_str(body.get()).map_err(D::Error::custom)?;
        let body = if members.contains_key("metricName") {
            serde_json::from_str(body.get()).map(EventBody::Metric)
        } else {
            serde_json::from_str(body.get()).map(EventBody::Activation)
        }
        .map_err(D::Error::custom)?;
        Ok(Self { source, body, subject, namespace, user_id, event_type, timestamp })
    }
}
