//! Genuine messages and documents: read, written again, and made anew from what caused them.

use openwhisk_compat::entity::{
    ActionDocument, ActionLimits, ActivationFacts, ActivationRecord, Annotations, ReadContext,
    StoredActivation,
};
use openwhisk_compat::message::{
    Acknowledgement, ActivationMessage, CacheInvalidation, Identity, PingMessage, UserEvent,
};
use openwhisk_compat::protocol::{Arguments, Invocation};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn lines(name: &str) -> Vec<String> {
    let path = format!("{}/tests/fixtures/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect(&path);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(!lines.is_empty(), "{path} is empty");
    lines
}

/// Reads and writes every line of a topic and demands an equal JSON value. Members that the recorded test
/// producer left out although every controller writes them may be added: `added` names them.
fn round_trip<T: DeserializeOwned + Serialize>(name: &str, added: &[&str]) {
    for line in lines(name) {
        let value: T = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let expected: Value = serde_json::from_str(&line).expect("JSON");
        let mut written = serde_json::to_value(&value).expect("serialises");
        for member in added {
            if expected.get(member).is_none() {
                written.as_object_mut().expect("an object").remove(*member);
            }
        }
        assert_eq!(written, expected, "{line}");
    }
}

#[test]
fn messages_are_written_as_they_were_read() {
    round_trip::<Acknowledgement>("completed0", &[]);
    round_trip::<UserEvent>("events", &[]);
    round_trip::<PingMessage>("health", &[]);
    round_trip::<CacheInvalidation>("cacheInvalidation", &[]);
}

#[test]
fn activations_are_written_as_they_were_read() {
    for line in lines("invoker0") {
        let message =
            ActivationMessage::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{error}: {line}"));
        let mut expected: Value = serde_json::from_str(&line).expect("JSON");
        // The plain form of a name is written as an object.
        if let Some(name) = expected["action"].as_str().map(str::to_owned) {
            let (path, name) = name.rsplit_once('/').expect("a path");
            expected["action"] = json!({ "path": path, "name": name });
        }
        assert_eq!(serde_json::to_value(&message).expect("serialises"), expected, "{line}");
        assert!(line.contains(message.transid.as_json()), "{line}");
    }
}

#[test]
fn records_are_written_as_they_were_read() {
    for line in lines("activations") {
        let record: ActivationRecord =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let expected: Value = serde_json::from_str(&line).expect("JSON");
        let updated = expected["updated"].as_u64().expect("a time");
        let stored = StoredActivation { record, updated };
        assert_eq!(serde_json::to_value(&stored).expect("serialises"), expected, "{line}");
    }
}

/// Whatever the genuine invoker annotated, in the order it did so.
#[test]
fn annotations_are_made_as_recorded() {
    for line in lines("activations") {
        let record: ActivationRecord = serde_json::from_str(&line).expect("a record");
        let get = |key: &str| record.annotations.get(key);
        let text = |key: &str| get(key).and_then(Value::as_str);
        let made = match get("limits") {
            Some(limits) => {
                let limits: ActionLimits = serde_json::from_value(limits.clone()).expect("limits");
                Annotations::of_activation(&ActivationFacts {
                    caused_by_sequence: text("causedBy").is_some(),
                    binding: text("binding"),
                    path: text("path").expect("a path"),
                    wait_ms: get("waitTime").and_then(Value::as_u64).expect("a time"),
                    kind: text("kind").expect("a kind"),
                    timed_out: get("timeout").and_then(Value::as_bool).expect("a flag"),
                    limits: &limits,
                    init_ms: get("initTime").and_then(Value::as_u64),
                })
            }
            None => Annotations::of_fallback(
                text("path").expect("a path"),
                text("causedBy").is_some(),
                text("binding"),
            ),
        };
        let made: Vec<_> = made.iter().collect();
        assert_eq!(made, record.annotations.iter().collect::<Vec<_>>(), "{line}");
    }
}

/// Every event follows from a record; compare with the recorded event of the same activation.
#[test]
fn events_follow_from_records() {
    let events: Vec<Value> =
        lines("events").iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let mut compared = 0;
    for line in lines("completed0") {
        let ack: Acknowledgement = serde_json::from_str(&line).expect("an acknowledgement");
        let (Acknowledgement::Result { response, .. } | Acknowledgement::Combined { response, .. }) = ack
        else {
            continue;
        };
        let openwhisk_compat::message::AckResponse::Whole(record) = response else { continue };
        let id = json!(record.activation_id);
        let Some(expected) = events.iter().find(|event| event["body"]["activationId"] == id) else {
            continue;
        };
        let user: Identity = serde_json::from_value(json!({
            "subject": record.subject, "namespace": {"name": record.namespace, "uuid": expected["userId"]}
        }))
        .expect("an identity");
        let now = expected["timestamp"].as_u64().expect("a time");
        let event = UserEvent::activation("invoker0".to_owned(), &record, &user, now).expect("an event");
        assert_eq!(serde_json::to_value(&event).expect("serialises"), *expected);
        compared += 1;
    }
    assert!(compared > 2, "only {compared} events were compared");
}

struct Recorded;

impl ReadContext for Recorded {
    fn resolve_kind(&self, kind: &str) -> Option<String> {
        Some(kind.to_owned())
    }

    fn standard_limits(&self) -> ActionLimits {
        ActionLimits::STANDARD
    }
}

#[test]
fn containers_are_sent_what_was_recorded() {
    for line in lines("container") {
        let call: Value = serde_json::from_str(&line).expect("JSON");
        let message = ActivationMessage::parse(call["message"].to_string().as_bytes()).expect("a message");
        let document = ActionDocument::parse(call["document"].to_string().as_bytes()).expect("a document");
        // Code in an attachment is not recorded here and does not matter to `/run`.
        let attachment = document.attachment().expect("a known store").map(|_| b"code".to_vec());
        let action = document.into_executable(attachment, &Recorded).expect("an executable action");
        let arguments = Arguments::partition(message.content.clone(), &message.init_args);
        let invocation = Invocation { action: &action, message: &message };
        let mut expected = call["body"].clone();
        let made = if call["path"] == "/init" {
            let env = expected["value"]["env"].clone();
            let deadline =
                env["__OW_DEADLINE"].as_str().and_then(|text| text.parse().ok()).expect("a deadline");
            invocation.init_body(&arguments.env, deadline)
        } else {
            let deadline =
                expected["deadline"].as_str().and_then(|text| text.parse().ok()).expect("a deadline");
            // Upstream writes null for a missing version, which crashes one of its own launchers.
            if expected["action_version"].is_null() {
                expected["action_version"] = json!("");
            }
            invocation.run_body(&arguments.run, deadline)
        };
        let made: Value = serde_json::from_slice(&made).expect("JSON");
        assert_eq!(made, expected, "{line}");
    }
}

#[test]
fn documents_are_written_as_they_were_read() {
    for line in lines("whisks") {
        match ActionDocument::parse(line.as_bytes()) {
            Ok(document) => {
                let expected: Value = serde_json::from_str(&line).expect("JSON");
                let mut written = serde_json::to_value(&document).expect("serialises");
                // Attachments' stubs are CouchDB's own and are not carried.
                if let Some(stubs) = expected.get("_attachments") {
                    written["_attachments"] = stubs.clone();
                }
                assert_eq!(written, expected, "{line}");
            }
            Err(openwhisk_compat::entity::EntityError::WrongType(other)) => {
                assert!(line.contains(&format!("\"entityType\":\"{other}\"")), "{line}");
            }
            Err(error) => panic!("{error}: {line}"),
        }
    }
}
