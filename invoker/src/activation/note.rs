//! What the journal keeps of an activation: enough to answer it after a crash, and nothing of the
//! user's data.

use openwhisk_compat::entity::{ActivationRecord, ActivationResponse, FullyQualifiedName, StatusCode};
use openwhisk_compat::message::{
    ActivationId, ActivationMessage, ControllerId, Identity, Namespace, TransactionId, UserLimits,
};
use serde::{Deserialize, Serialize};

use crate::journal::Progress;

/// The members of an [`ActivationMessage`] that an answer needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// Echoed in the acknowledgement.
    pub transid: TransactionId,
    /// Which action was asked for.
    pub action: FullyQualifiedName,
    /// Whose answer.
    #[serde(rename = "id")]
    pub activation_id: ActivationId,
    /// The invoking subject.
    pub subject: String,
    /// The invoking namespace.
    pub namespace: Namespace,
    /// The namespace's activations are not stored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unstored: bool,
    /// Where the answer goes.
    pub controller: ControllerId,
    /// Whether a caller waits.
    pub blocking: bool,
    /// The enclosing sequence or composition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<ActivationId>,
}

/// The same, borrowed, for writing.
#[derive(Serialize)]
struct Written<'a> {
    transid: &'a TransactionId,
    action: &'a FullyQualifiedName,
    id: &'a ActivationId,
    subject: &'a str,
    namespace: &'a Namespace,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unstored: bool,
    controller: &'a ControllerId,
    blocking: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'a ActivationId>,
}

impl Note {
    /// The note of `message`, as bytes for the journal.
    #[must_use]
    pub fn of(message: &ActivationMessage) -> Vec<u8> {
        let written = Written {
            transid: &message.transid,
            action: &message.action,
            id: &message.activation_id,
            subject: &message.user.subject,
            namespace: &message.user.namespace,
            unstored: !message.user.limits.stores_activations(),
            controller: &message.root_controller_index,
            blocking: message.blocking,
            cause: message.cause.as_ref(),
        };
        let mut bytes = Vec::with_capacity(512);
        // Writing plain data into memory does not fail; an empty note would be reported at recovery.
        if let Err(error) = serde_json::to_writer(&mut bytes, &written) {
            tracing::error!(%error, "note of an activation cannot be written");
        }
        bytes
    }

    /// Reads a note back.
    ///
    /// # Errors
    /// When the bytes are not a note.
    pub fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The invoking user, as far as an answer, its record and its event need it.
    #[must_use]
    pub fn user(&self) -> Identity {
        Identity {
            subject: self.subject.clone(),
            namespace: self.namespace.clone(),
            authkey: serde_json::Map::new(),
            rights: Vec::new(),
            limits: UserLimits { store_activations: self.unstored.then_some(false), ..UserLimits::default() },
        }
    }

    /// The record of an activation whose invoker ended before it was settled.
    #[must_use]
    pub fn cut_off(&self, progress: Progress, now_ms: u64) -> ActivationRecord {
        let text = match progress {
            Progress::Taken => CUT_OFF_WAITING,
            Progress::Started => CUT_OFF_STARTED,
            Progress::Acked => CUT_OFF_ACKED,
        };
        super::record::fallback(
            &super::record::Subject {
                action: &self.action,
                activation_id: &self.activation_id,
                namespace: &self.namespace.name,
                subject: &self.subject,
                cause: self.cause.as_ref(),
            },
            ActivationResponse::error(StatusCode::WhiskError, text, None),
            now_ms,
        )
    }
}

/// The answer when `/run` may have been sent.
const CUT_OFF_STARTED: &str =
    "The invoker ended while the action was running. The action may have run and will not be run again.";
/// The record of an activation that was answered, in place of the one that was lost.
const CUT_OFF_ACKED: &str =
    "The invoker ended after the action was answered and before its record was stored.";
/// The answer when `/run` was not sent.
const CUT_OFF_WAITING: &str = "The invoker ended before the action was run. It will not be run again.";

#[cfg(test)]
mod tests {
    use openwhisk_compat::entity::Annotations;

    use super::*;

    fn message() -> ActivationMessage {
        ActivationMessage::parse(
            br#"{"transid":["t",1711531200123,true],"action":{"path":"guest/p","name":"hello","version":"0.0.3"},
                "revision":null,"user":{"subject":"s","namespace":{"name":"guest","uuid":"u"},
                "authkey":{"api_key":"secret"},"rights":[],"limits":{"storeActivations":false}},
                "activationId":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c",
                "rootControllerIndex":{"asString":"0","instanceType":"controller"},"blocking":true,
                "content":{"password":"secret"},"initArgs":[],"lockedArgs":{},
                "cause":"ff6fb1d1a2a84a2fafb1d1a2a8ba2f5c"}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_note_has_what_an_answer_needs_and_no_secret() {
        let message = message();
        let bytes = Note::of(&message);
        assert!(!String::from_utf8_lossy(&bytes).contains("secret"));
        let note = Note::read(&bytes).unwrap();
        assert_eq!(note.transid.as_json(), message.transid.as_json());
        assert!(note.transid.extra_logging());
        assert_eq!(note.controller.as_string, "0");
        assert!(!note.user().limits.stores_activations());
        let record = note.cut_off(Progress::Started, 5);
        assert_eq!((record.start, record.end, record.duration), (5, 5, Some(0)));
        assert_eq!(record.response.status_code, StatusCode::WhiskError);
        assert_eq!(record.cause, message.cause);
        assert_eq!(record.annotations, Annotations::of_fallback("guest/p/hello", true, None));
    }

    #[test]
    fn a_note_that_is_none_is_an_error() {
        assert!(Note::read(b"{}").is_err());
        assert!(Note::read(b"").is_err());
    }
}
