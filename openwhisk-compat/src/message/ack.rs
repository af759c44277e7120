//! Acknowledgements (contract 2.6).

use std::sync::Arc;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ActivationId, InvokerInstanceId, TransactionId};
use crate::entity::ActivationRecord;

/// What an invoker tells the controller about one activation: topic `<prefix>completed<controller>`.
///
/// A `Completion` or `Combined` frees the controller's slot; a `Result` answers a waiting caller and is
/// always sent before its completion.
#[derive(Debug, Clone, PartialEq)]
pub enum Acknowledgement {
    /// The slot is free.
    Completion {
        /// Echoed from the activation message.
        transid: TransactionId,
        /// Whose slot.
        activation_id: ActivationId,
        /// The response was a whisk error; feeds the controller's view of our health.
        is_system_error: bool,
        /// Who answers.
        instance: InvokerInstanceId,
    },
    /// The result is here; the slot is still taken (logs are being collected).
    Result {
        /// Echoed from the activation message.
        transid: TransactionId,
        /// The result, or where to find it.
        response: AckResponse,
    },
    /// Both at once.
    Combined {
        /// Echoed from the activation message.
        transid: TransactionId,
        /// The result, or where to find it.
        response: AckResponse,
        /// The response was a whisk error.
        is_system_error: bool,
        /// Who answers.
        instance: InvokerInstanceId,
    },
}

/// An activation in an acknowledgement: whole, or shrunk to its id (the controller then reads the store).
#[derive(Debug, Clone, PartialEq)]
pub enum AckResponse {
    /// The record, without logs.
    Whole(Arc<ActivationRecord>),
    /// The id alone.
    Shrunk(ActivationId),
}

impl AckResponse {
    /// Whose result.
    pub fn activation_id(&self) -> &ActivationId {
        match self {
            AckResponse::Whole(record) => &record.activation_id,
            AckResponse::Shrunk(id) => id,
        }
    }
}

impl Acknowledgement {
    /// A completion for `record`.
    pub fn completion(
        transid: TransactionId,
        record: &ActivationRecord,
        instance: InvokerInstanceId,
    ) -> Self {
        Acknowledgement::Completion {
            transid,
            activation_id: record.activation_id.clone(),
            is_system_error: record.response.is_whisk_error(),
            instance,
        }
    }

    /// A whole result. The logs are the store's alone: pass a record without them.
    pub fn result(transid: TransactionId, record: Arc<ActivationRecord>) -> Self {
        Acknowledgement::Result { transid, response: AckResponse::Whole(record) }
    }

    /// A whole result and completion in one.
    pub fn combined(
        transid: TransactionId,
        record: Arc<ActivationRecord>,
        instance: InvokerInstanceId,
    ) -> Self {
        Acknowledgement::Combined {
            transid,
            is_system_error: record.response.is_whisk_error(),
            response: AckResponse::Whole(record),
            instance,
        }
    }

    /// The same with the response reduced to its id. Every acknowledgement of a non-blocking activation is
    /// shrunk, and one that the broker finds too large.
    #[must_use]
    pub fn shrink(mut self) -> Self {
        if let Acknowledgement::Result { response, .. } | Acknowledgement::Combined { response, .. } =
            &mut self
        {
            *response = AckResponse::Shrunk(response.activation_id().clone());
        }
        self
    }

    /// Whether shrinking would make it smaller.
    pub fn is_whole(&self) -> bool {
        matches!(
            self,
            Acknowledgement::Result { response: AckResponse::Whole(_), .. }
                | Acknowledgement::Combined { response: AckResponse::Whole(_), .. }
        )
    }

    /// Whether the controller frees the slot on it.
    pub fn frees_slot(&self) -> bool {
        !matches!(self, Acknowledgement::Result { .. })
    }

    /// Whose acknowledgement.
    pub fn activation_id(&self) -> &ActivationId {
        match self {
            Acknowledgement::Completion { activation_id, .. } => activation_id,
            Acknowledgement::Result { response, .. } | Acknowledgement::Combined { response, .. } => {
                response.activation_id()
            }
        }
    }

    /// The transaction it belongs to.
    pub fn transid(&self) -> &TransactionId {
        match self {
            Acknowledgement::Completion { transid, .. }
            | Acknowledgement::Result { transid, .. }
            | Acknowledgement::Combined { transid, .. } => transid,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    transid: &'a TransactionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a AckResponse>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activation_id: Option<&'a ActivationId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_system_error: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a InvokerInstanceId>,
}

impl Serialize for Acknowledgement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match self {
            Acknowledgement::Completion { transid, activation_id, is_system_error, instance } => Written {
                transid,
                response: None,
                activation_id: Some(activation_id),
                is_system_error: Some(*is_system_error),
                instance: Some(instance),
            },
            Acknowledgement::Result { transid, response } => Written {
                transid,
                response: Some(response),
                activation_id: None,
                is_system_error: None,
                instance: None,
            },
            Acknowledgement::Combined { transid, response, is_system_error, instance } => Written {
                transid,
                response: Some(response),
                activation_id: None,
                is_system_error: Some(*is_system_error),
                instance: Some(instance),
            },
        };
        written.serialize(serializer)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    transid: TransactionId,
    #[serde(default)]
    response: Option<AckResponse>,
    #[serde(default)]
    activation_id: Option<ActivationId>,
    #[serde(default)]
    is_system_error: bool,
    #[serde(default)]
    instance: Option<InvokerInstanceId>,
}

impl<'de> Deserialize<'de> for Acknowledgement {
    /// The shape follows from the members: `instance` and `response` make it combined, `instance` alone a
    /// completion, anything else a result.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read { transid, response, activation_id, is_system_error, instance } =
            Read::deserialize(deserializer)?;
        match (instance, response, activation_id) {
            (Some(instance), Some(response), _) => {
                Ok(Acknowledgement::Combined { transid, response, is_system_error, instance })
            }
            (Some(instance), None, Some(activation_id)) => {
                Ok(Acknowledgement::Completion { transid, activation_id, is_system_error, instance })
            }
            (Some(_), None, None) => Err(D::Error::missing_field("activationId")),
            (None, Some(response), _) => Ok(Acknowledgement::Result { transid, response }),
            (None, None, _) => Err(D::Error::missing_field("response")),
        }
    }
}

impl Serialize for AckResponse {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            AckResponse::Whole(record) => record.as_ref().serialize(serializer),
            AckResponse::Shrunk(id) => id.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for AckResponse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = AckResponse;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an activation record or an activation id")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AckResponse, E> {
                ActivationId::new(text).map(AckResponse::Shrunk).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AckResponse, A::Error> {
                let record =
                    ActivationRecord::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(AckResponse::Whole(Arc::new(record)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
